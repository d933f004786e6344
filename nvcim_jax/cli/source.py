"""Where the streams of `nvcim run` come from: built-in users, the official files of LaMP, or JSON lines."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks, data, metrics
from nvcim_jax.data import MARKERS

__all__ = ["LABEL_LIMIT", "Source", "read_source"]

_OF_LINES, _OF_LAMP = ("domains", "num_labels"), ("instruction", "predictions")

LABEL_LIMIT = 256
"""Most different answers that are taken for labels to choose from."""


class Source(NamedTuple):
    """Streams, and what they are of.

    Attributes:
        streams: One a seed.
        task: The task of LaMP; empty for other data.
        about: One line for the user.
    """

    streams: list[data.Stream]
    task: str
    about: str


class _User(NamedTuple):
    """One user of LaMP: a question that holds the profile, and all questions without it."""

    first: data.Record
    questions: list[data.Record]


def read_source(options: Any) -> Source:
    """Make the streams that the options of `nvcim run` ask for.

    Args:
        options: `Options` of the command.

    Returns:
        One stream a seed, `options.seed` and those after it.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If they are broken, of another task, or do not suffice.
    """
    seeds = range(options.seed, options.seed + options.streams)
    if options.data is None:
        _left_out(options, ("task", "split", *_OF_LINES, *_OF_LAMP, "max_new_tokens"), "without --data")
        return _builtin(options, seeds)
    _left_out(options, ("own_words",), "with --data")
    path = Path(options.data).expanduser()
    if not path.exists():
        checks.file("--data", path)
    if options.task is None and path.is_file() and path.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        _left_out(options, ("split",), "with JSON lines, whose rows name theirs")
        _left_out(options, (*_OF_LAMP, "max_new_tokens"), "with JSON lines")
        return _lines(options, path, seeds)
    if path.is_file() and not path.name.removesuffix(".gz").endswith(".json"):
        wanted = "name a folder of LaMP, a questions file (.json) or JSON lines (.jsonl), each also .gz"
        checks.fail("--data", wanted, f"is {path.name}")
    _left_out(options, _OF_LINES, "with the files of LaMP")
    return _lamp(options, path, seeds)


def _left_out(options: Any, names: Iterable[str], where: str) -> None:
    """Refuse options that do nothing."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        given = getattr(options, name)
        if given != defaults[name]:
            no, found = ("no-", "is given") if given is False else ("", f"is {given!r}")
            checks.fail(f"--{no}{name.replace('_', '-')}", f"be left out {where}", found)


def _builtin(options: Any, seeds: range) -> Source:
    num_test = 12 if options.num_test is None else options.num_test
    made = [
        data.builtin_users(
            seed,
            kind=options.kind,
            num_users=options.num_users,
            buffer_size=options.buffer_size,
            num_topics=3,
            num_train=options.buffer_size * (1 if options.kind in ("block", "conflict") else max(2, options.num_users)),
            num_test=num_test,
            num_words=1,
            own_words=options.own_words,
        )
        for seed in seeds
    ]
    told = "name occasions of their own" if options.own_words else "ask exactly the same questions"
    return Source(made, "", f"built-in: {options.num_users} users with opposite tastes, who {told}")


def _opposed(options: Any) -> bool:
    """Return whether the users are chosen such that they answer most differently."""
    return options.kind == "conflict" and not options.domains


def _stream(options: Any, rows: list[data.Record], seed: int, domains: list[str] | None, labels: Any) -> data.Stream:
    config = data.StreamConfig(
        kind=options.kind,
        buffer_size=options.buffer_size,
        num_users=options.num_users,
        num_test=options.num_test,
    )
    return data.stream(rows, seed=seed, config=config, domains=domains, labels=labels)


def _lines(options: Any, path: Path, seeds: range) -> Source:
    rows = list(data.read_jsonl(path))
    if not rows:
        checks.fail("--data", "hold one record at least", f"{path} is empty")
    if options.num_labels is not None:
        rows = data.clinc5(rows, num_labels=options.num_labels)
    known = list(dict.fromkeys(row.user_or_domain for row in rows))
    for name in options.domains:
        checks.choice("--domains", name, known)
    names = None if _opposed(options) else list(options.domains) or known[: options.num_users]
    rows = [row for row in rows if names is None or row.user_or_domain in names]
    empty = next((row.id for row in rows if not row.output), None)
    if empty is not None:
        checks.fail("--data", "have an output in each row", f"row {empty!r} of {path.name} has none")
    made = [_stream(options, rows, seed, names, None) for seed in seeds]
    answers = max(len(stream.labels) for stream in made)
    if answers > LABEL_LIMIT:
        fix = "Free text is answered and scored for the tasks of LaMP."
        checks.fail("--data", f"have at most {LABEL_LIMIT} different answers", f"{path.name} has {answers}", fix)
    return Source(made, "", f"{path.name}: {', '.join(names or made[0].domains)}")


def _lamp(options: Any, path: Path, seeds: range) -> Source:
    users = _users(data.read_lamp(path, task=options.task, split=options.split))
    if not users:
        checks.fail("--data", "hold one question at least", f"{path} has none")
    task = next(iter(users.values())).first.task
    if any(not question.output for user in users.values() for question in user.questions):
        checks.fail("--split", "have public outputs", f"questions of {path.name} have none", "Use train or dev.")
    if task in metrics.LAMP_LABELS:
        _left_out(options, ("max_new_tokens",), f"with {task}, whose answers are chosen")
    else:
        _left_out(options, ("methods", "instances", "every_block"), f"with {task}, whose answers are written")
    enough = [name for name, user in users.items() if len(user.first.extra["profile"]) >= options.buffer_size]
    if len(enough) < options.num_users:
        found = f"{len(enough)} of {len(users)} users have"
        fix = "Use fewer users or smaller buffers."
        checks.fail("--num-users", f"be at most the users with {options.buffer_size} profile items", found, fix)
    if _opposed(options) and task not in metrics.LAMP_LABELS:
        checks.fail("--kind", "be another for a task of free text", "is 'conflict'", "Users disagree about labels.")
    titles = [str(item["title"]) for user in users.values() for item in user.first.extra["profile"] if "title" in item]
    made = []
    for seed in seeds:
        order = np.random.default_rng([seed, len(enough)]).permutation(len(enough))
        names = enough if _opposed(options) else [enough[i] for i in order[: options.num_users]]
        rows = [row for name in names for row in _rows(options, name, users[name], task, seed, titles)]
        labels = metrics.LAMP_LABELS.get(task, ())
        own = None if _opposed(options) else names
        made.append(_stream(options, rows, seed, own, dict.fromkeys(names, labels)))
    return Source(made, task, f"{task} of {path}: {options.num_users} of {len(enough)} users")


def _users(records: Iterable[data.Record]) -> dict[str, _User]:
    """Gather the questions of each user; questions with one and the same profile are of one user."""
    found: dict[str, _User] = {}
    for record in records:
        own = record.extra["profile"]
        if not own:
            continue
        profile = json.dumps([sorted((k, str(v)) for k, v in item.items() if k != "id") for item in own])
        name = record.user_or_domain if record.user_or_domain != record.id else profile
        found.setdefault(name, _User(record, [])).questions.append(dataclasses.replace(record, extra={}))
    return {f"user {user.first.user_or_domain}": user for user in found.values()}


def _rows(options: Any, name: str, user: _User, task: str, seed: int, titles: list[str]) -> Iterable[data.Record]:
    """Yield the training rows of a user's profile, and the questions as test rows."""
    for record in data.profile_pairs(user.first, task, seed=seed, distractors=titles if task == "LaMP_1" else ()):
        yield _shown(dataclasses.replace(record, user_or_domain=name, extra={}), task, options.instruction)
    for record in user.questions:
        yield _shown(dataclasses.replace(record, user_or_domain=name, split="test"), task, options.instruction)


def _shown(record: data.Record, task: str, instruction: bool) -> data.Record:
    """Leave out the wording that all questions of a task share, which would fill the window of a small model."""
    marker = MARKERS.get(task)
    if instruction or marker is None:
        return record
    text = record.input.partition(marker)[2].strip()
    return dataclasses.replace(record, input=text or record.input)
