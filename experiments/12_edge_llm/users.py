"""The users whose texts are tuned on: domains of clinc5, intents of SNIPS, windows of WikiText-2, all of one shape."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wikitext
from experiments.fine_tuning import tasks
from experiments.shift.settings import Settings, changed, language_model, streams
from nvcim_jax import checks, data, models, pipeline, tuning

__all__ = ["TASKS", "Asked", "Sizes", "Users", "load", "make", "thinned"]

TASKS = ("clinc5", "snips_slots", "wikitext2")


@checks.frozen_config
class Sizes:
    """How many users, and how much text each has.

    Attributes:
        settings: The model, and the records of clinc5: texts of a user, and how many are measured on.
        streams: Seeds of clinc5, each with four users; of the other tasks, users of a kind.
        kinds: Intents of SNIPS that are reported, and behind them the one that rates are chosen on.
        slots: Records of SNIPS of a user, to tune on and to measure on.
        tokens: Tokens of a window of WikiText-2, and most of an input of SNIPS are three eighths of it.
        windows: Windows of WikiText-2 of a user, to tune on and to measure on.
        room: Most tokens that are written.
    """

    settings: Settings
    streams: int = 3
    kinds: tuple[str, ...] = ("GetWeather", "PlayMusic", "AddToPlaylist")
    slots: tuple[int, int] = (50, 98)
    tokens: int = 128
    windows: tuple[int, int] = (64, 64)
    room: int = 40


class Asked(NamedTuple):
    """Hold what is asked of users, for ranking and for writing.

    Attributes:
        ids: Tokens, padded on the left (users, queries, tokens), int32.
        mask: Which are real.
        answers: The answers to choose from; None where the model writes.
        truth: Number of the right answer (users, queries), -1 where there is none; None where the model writes.
        golds: The right answers as text, a list a user.
    """

    ids: jax.Array
    mask: jax.Array
    answers: models.Candidates | None
    truth: np.ndarray | None
    golds: list[list[str]]


class Users(NamedTuple):
    """Hold users of one shape, side by side.

    Attributes:
        names: Their names.
        train: Texts to tune on, arrays (users, texts, ...).
        test: Texts to measure on.
        asked: Their queries; None for plain text.
    """

    names: tuple[str, ...]
    train: tuning.Examples
    test: tuning.Examples
    asked: Asked | None


class _User(NamedTuple):
    name: str
    train: Sequence[Any]
    test: Sequence[Any]


def load(sizes: Sizes) -> tuple[models.LM, models.Text]:
    """Return the language model, its weights floats, and its tokenizer."""
    return language_model(sizes.settings)


def _arrays(found: list[_User], lm: models.LM, text: models.Text, labels: Sequence[str] | None) -> Users:
    """Return records as arrays: all users at once, so that all have one shape."""
    least = [min(len(part) for part in parts) for parts in zip(*((u.train, u.test) for u in found), strict=True)]
    cut = [_User(u.name, u.train[: least[0]], u.test[: least[1]]) for u in found]
    look = pipeline.Config(features="embedding", cluster_by="input", start="text")
    rows = [row for user in cut for part in (user.train, user.test) for row in part]
    every = pipeline.make_buffer(rows, lm, text, config=look).examples
    every = jax.tree.map(lambda a: a.reshape(len(cut), sum(least), *a.shape[1:]), every._replace(words=None))
    train, test = (jax.tree.map(lambda a, s=s: a[:, s], every) for s in (slice(least[0]), slice(least[0], None)))
    tests = [row for user in cut for row in user.test]
    queries = pipeline.make_queries([row.input for row in tests], lm, text, config=look, labels=labels)
    shape = (len(cut), least[1])
    number = {label: i for i, label in enumerate(labels or ())}
    truth = np.array([number.get(row.output, -1) for row in tests]).reshape(shape) if number else None
    golds = [[row.output for row in user.test] for user in cut]
    ids, mask = (a.reshape(*shape, -1) for a in (queries.ids, queries.mask))
    return Users(tuple(u.name for u in cut), train, test, Asked(ids, mask, queries.answers, truth, golds))


def _split(users: Users, number: int) -> tuple[Users, Users]:
    """Return the users before a number, and the others."""

    def part(at: slice) -> Users:
        cut = lambda tree: jax.tree.map(lambda a: a[at], tree)  # noqa: E731
        asked = users.asked
        if asked is not None:
            truth = None if asked.truth is None else asked.truth[at]
            asked = Asked(asked.ids[at], asked.mask[at], asked.answers, truth, asked.golds[at])
        return Users(users.names[at], cut(users.train), cut(users.test), asked)

    return part(slice(number)), part(slice(number, None))


def _clinc5(sizes: Sizes, lm: models.LM, text: models.Text) -> tuple[Users, Users]:
    """Return the domains of other intents, which are never ranked, and those of some streams."""
    (other,) = streams(changed(sizes.settings, first_intent=5), [0])
    own = streams(sizes.settings, range(sizes.streams))
    given = [(f"other {b.domain}", b.records, other.test[b.domain]) for b in other.blocks]
    given += [(f"{s} {b.domain}", b.records, own[s].test[b.domain]) for s in range(len(own)) for b in own[s].blocks]
    users = _arrays([_User(*parts) for parts in given], lm, text, list(own[0].labels))
    return _split(users, len(other.blocks))


def _snips(sizes: Sizes, lm: models.LM, text: models.Text) -> tuple[Users, Users]:
    """Return users of one intent, and of the others: each has records of its own to tune on."""
    *reported, other = sizes.kinds
    of_slots = text.replace(template=models.Template(suffix="\nSlots:", max_input=3 * sizes.tokens // 8))
    found = []
    for kind, count in ((other, 2), *((kind, sizes.streams) for kind in reported)):
        rows = tasks.snips(kind) if sizes.settings.data != "builtin" else _builtin(kind)
        train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
        for seed in range(count):
            drawn = np.random.default_rng(seed).permutation(len(train))[: sizes.slots[0]]
            found.append(_User(f"{seed} {kind}", [train[i] for i in drawn], test[: sizes.slots[1]]))
    return _split(_arrays(found, lm, of_slots, None), 2)


def _builtin(kind: str) -> list[data.Record]:
    return data.builtin_records(len(kind), num_users=1, num_topics=2, num_train=12, num_test=4)[0]


def _wikitext2(sizes: Sizes, text: models.Text) -> tuple[Users, Users]:
    """Return users with windows of the validation split, measured on its end, and on the test split."""
    (each, measured), tokens, count = sizes.windows, sizes.tokens, sizes.streams + 1
    if sizes.settings.data == "builtin":
        words = " ".join(f"{row.input} {row.output}." for row in data.builtin_records(0)[0])
        ids = np.asarray(text.encode(words), np.int32)
        ids = np.resize(ids, (each * count + 2 * measured, tokens))
        valid, held, test = np.split(ids, [each * count, each * count + measured])
    else:
        valid = wikitext.windows(text, "valid", tokens=tokens)
        test = wikitext.windows(text, "test", tokens=tokens)
        test, held = test[np.arange(measured) * len(test) // measured], valid[-measured:]

    def arrays(windows: np.ndarray) -> tuning.Examples:
        given = {"tokens": tokens, "num_train": len(windows), "num_test": 0, "ids": windows}
        return tasks.predicting("wikitext2", text, **given).examples

    def together(starts: Sequence[int], test: np.ndarray) -> Users:
        train = [arrays(valid[i * each : (i + 1) * each]) for i in starts]
        tests = [arrays(test)] * len(train)
        own, held = (jax.tree.map(lambda *a: jnp.stack(a), *parts) for parts in (train, tests))
        return Users(tuple(f"{i} windows" for i in starts), own, held, None)

    return together([0], held), together(range(1, count), test)


def thinned(users: Users, every: int) -> Users:
    """Return users with each second, or third, of the texts that are measured on."""
    asked = users.asked
    if asked is not None:
        truth = None if asked.truth is None else asked.truth[:, ::every]
        golds = [rows[::every] for rows in asked.golds]
        asked = Asked(asked.ids[:, ::every], asked.mask[:, ::every], asked.answers, truth, golds)
    return users._replace(test=jax.tree.map(lambda a: a[:, ::every], users.test), asked=asked)


def make(task: str, sizes: Sizes, lm: models.LM, text: models.Text) -> tuple[Users, Users]:
    """Return the users that rates are chosen on, and those that are reported; all of one shape.

    Raises:
        ValueError: If there is no such task, or the data folder is not there.
    """
    checks.choice("task", task, TASKS)
    if task == "wikitext2":
        return _wikitext2(sizes, text)
    return (_clinc5 if task == "clinc5" else _snips)(sizes, lm, text)
