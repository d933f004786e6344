"""Five kinds of tasks: their streams of users, how their answers are scored, and what needs no language model."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import data as public
from experiments.fine_tuning.tasks import slots
from nvcim_jax import data, metrics, models, study

__all__ = ["METRICS", "TASKS", "Task", "as_text", "floors", "made_up", "read", "stream"]

Rows = Sequence[data.Record]
Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]

METRICS = {
    "accuracy": "accuracy",
    "mae": "mean absolute error",
    "exact": "exact match",
    "slot_f1": "slot F1",
    "rouge_1": "ROUGE-1",
}
"""Scores of all tasks, and what they are called; all but `mae` are better the larger they are."""


class Task(NamedTuple):
    """One kind of task.

    Attributes:
        folder: Its folder of data, and the name of the file in it.
        suffix: What stands between a text and its answer.
        max_input: Tokens of a text that are looked at; where answers are written, longer texts are left out instead,
            but for abstracts, which are cut.
        max_output: Tokens of an answer; rows of longer ones are left out, and no more are written.
        num_domains: Domains of a stream.
        score: Scores of some answers.
        labels: The answers to choose from where they are the same for all domains.
        chosen: Whether the answer is chosen among given ones; it is written otherwise.
        cut: Whether longer texts are cut.
        left_out: Domains that are left out.
    """

    folder: str
    suffix: str
    max_input: int
    max_output: int
    num_domains: int
    score: Score
    labels: tuple[str, ...] | None = None
    chosen: bool = False
    cut: bool = True
    left_out: tuple[str, ...] = ()


def _accuracy(golds: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    return {"accuracy": metrics.accuracy(golds, answers)}


def _ratings(golds: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    error = metrics.mean_absolute_error([*map(float, golds)], [*map(float, answers)])
    return {**_accuracy(golds, answers), "mae": error}


def _rouge(golds: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    found = [metrics.rouge(gold, answer).rouge_1 for gold, answer in zip(golds, answers, strict=True)]
    return {"rouge_1": float(np.mean(found))}


TASKS = {
    "intents": Task("clinc150", "\nIntent:", 24, 8, 4, _accuracy, chosen=True),
    "ratings": Task("movielens_users", "\nRating:", 64, 4, 4, _ratings, ("1", "2", "3", "4", "5"), chosen=True),
    "slots": Task("snips_slots", "\nSlots:", 44, 40, 4, slots, (), cut=False),
    "paraphrase": Task(
        "shakespeare_paraphrase",
        "\nShakespeare:",
        44,
        40,
        4,
        _rouge,
        (),
        cut=False,
        left_out=("romeojuliet", "shrew", "richardiii", "tempest"),
    ),
    "titles": Task("pmlr_titles", "\nTitle:", 128, 32, 3, _rouge, ()),
}
"""What is fixed for each task; nothing was tried out. Plays whose lines are in a common training text are left out."""


def read(name: str, text: models.Text) -> list[data.Record]:
    """Return the rows of a task that fit.

    Raises:
        ValueError: If the data folder is not there.
    """
    task = TASKS[name]
    folder = public.folder(task.folder, "Or run --tiny.")
    rows = [
        row
        for row in data.read_jsonl(folder / f"{task.folder}.jsonl.gz")
        if row.user_or_domain not in task.left_out
        and (task.cut or len(text.encode(row.input)) <= task.max_input)
        and len(text.encode(f" {row.output}")) < task.max_output  # with the token that ends it
    ]
    return data.clinc5(rows) if name == "intents" else rows


def made_up(name: str) -> list[data.Record]:
    """Return rows of a task made of a few words, for trying things out without any file."""
    rng, rows, places = np.random.default_rng(zlib.crc32(name.encode())), [], ("bank", "home", "road", "food", "work")
    for place in places[: 3 if name == "titles" else 5]:
        for i in range(60):
            colour, thing = ("red", "blue", "old")[rng.integers(3)], ("card", "key", "map")[rng.integers(3)]
            words = f"the {colour} {thing} of the {place}"
            outputs = {
                "intents": f"{place} {thing}",
                "ratings": str(1 + len(f"{place}{thing}{colour}") % 5),
                "slots": f"colour = {colour} | item = {thing}",
                "paraphrase": f"a {thing} {colour} for {place}",
                "titles": f"{colour} {thing}",
            }
            split = "train" if i < 40 else "test"
            rows.append(data.Record(f"{name} {place} {i}", place, name, words, outputs[name], split))
    return rows


def _domains(name: str, rows: Rows, seed: int, enough: tuple[int, int]) -> tuple[str, ...]:
    """Return the domains of one stream, in order.

    Intents have the four of the other tables. Users of different streams are different ones. Of the domains of the
    other tasks some are drawn, in an order that is drawn.
    """
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        place = row.user_or_domain, row.split
        counts[place] = counts.get(place, 0) + 1
    known = list(dict.fromkeys(row.user_or_domain for row in rows))
    wanted = tuple(zip(("train", "test"), enough, strict=True))
    known = [d for d in known if all(counts.get((d, split), 0) >= number for split, number in wanted)]
    if name == "intents" and set(data.CLINC5_DOMAINS) <= set(known):
        return data.CLINC5_DOMAINS
    num, by_user = TASKS[name].num_domains, name == "ratings" and len(known) >= 2 * TASKS[name].num_domains
    order = np.random.default_rng([zlib.crc32(name.encode()), 0 if by_user else seed]).permutation(len(known))
    first = num * seed % (len(known) // num * num) if by_user else 0
    return tuple(known[i] for i in order[first : first + num])


def stream(name: str, rows: Rows, seed: int, *, buffer_size: int, num_test: int) -> data.Stream:
    """Return the stream of a seed: one buffer of each domain, one after the other."""
    task, config = TASKS[name], data.StreamConfig(buffer_size=buffer_size, num_test=num_test)
    domains = _domains(name, rows, seed, (buffer_size, num_test))
    own = [row for row in rows if row.user_or_domain in domains]
    return data.stream(own, seed=seed, config=config, domains=domains, labels=task.labels)


def _most_frequent(answers: Sequence[str]) -> str:
    return max(dict.fromkeys(answers), key=list(answers).count)


def _median(answers: Sequence[str]) -> str:
    return sorted(answers, key=float)[(len(answers) - 1) // 2]


def floors(name: str, made: data.Stream, text: models.Text) -> Iterator[tuple[str, list[str], list[bool] | None]]:
    """Yield what needs no language model: its name, its answers to all test rows, and whether it met the right domain.

    `own` ones are told the domain. The nearest text is looked for in the part of the texts that the model sees.

    Args:
        name: The task.
        made: The stream.
        text: The tokenizer, with the task's template.
    """
    seen = [(block.domain, record) for block in made.blocks for record in block.records]
    asked = [(domain, row) for domain in made.domains for row in made.test[domain]]
    own = {domain: [record for place, record in seen if place == domain] for domain in made.domains}

    def each(pick: Callable[[Sequence[str]], str], told: bool) -> list[str]:
        every = [record.output for _, record in seen]
        return [pick([record.output for record in own[d]] if told else every) for d, _ in asked]

    queries = [text.kept(row.input) for _, row in asked]
    found = study.nearest_text([text.kept(record.input) for _, record in seen], queries)
    hit = [seen[i][0] == domain for i, (domain, _) in zip(found, asked, strict=True)]
    yield "1-NN text", [seen[i][1].output for i in found], hit
    nearest = []
    for domain in made.domains:
        texts = [text.kept(record.input) for record in own[domain]]
        wanted = [query for query, (place, _) in zip(queries, asked, strict=True) if place == domain]
        nearest += [own[domain][i].output for i in study.nearest_text(texts, wanted)]
    yield "1-NN own domain", nearest, None
    if name == "ratings":
        yield "most frequent", each(_most_frequent, False), None
        yield "most frequent, own user", each(_most_frequent, True), None
        yield "median", each(_median, False), None
        yield "median, own user", each(_median, True), None
    elif name == "titles":
        words = round(float(np.mean([len(record.output.split()) for _, record in seen])))
        yield "lead", [" ".join(query.split()[:words]) for query in queries], None
    elif not TASKS[name].chosen:
        yield "copy", queries, None


def as_text(text: models.Text, name: str, preset: Any) -> models.Text:
    """Return how text goes into the model for a task: the preset's template with what is fixed for the task."""
    task = TASKS[name]
    template = models.Template(suffix=task.suffix, answer=preset.template.answer, max_input=task.max_input)
    return text.replace(template=template)
