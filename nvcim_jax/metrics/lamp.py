"""The scores of the LaMP benchmark, with the keys and the numbers of its official evaluator.

What is taken from that evaluator (`eval/evaluation.py` of LaMP-Benchmark/LaMP): outputs are stripped; a label counts
only as a whole and letter by letter; F1 is macro over the full label list; a LaMP-3 score that is not a number counts
as the extreme (1 or 5) that is farther from the right one, and scores are rounded to float32; ROUGE without stemming.

What differs, on purpose:
- the official ROUGE is the middle of a bootstrap without a seed and changes from run to run; here it is the exact mean;
- LaMP-3 "nan" and "inf", at which the official evaluator stops, count as not a number;
- an answer key outside the label list, a duplicate id or a missing id is an error that names it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.metrics.rouge import rouge
from nvcim_jax.metrics.scores import label_counts, macro_f1_of_counts
from nvcim_jax.signature import checked

__all__ = ["LAMP_LABELS", "lamp_evaluate"]

LAMP_LABELS: Mapping[str, tuple[str, ...]] = {
    "LaMP_1": ("[1]", "[2]"),
    "LaMP_2M": (
        "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy", "classic",
        "psychology", "fantasy", "romance", "thought-provoking", "social commentary", "violence", "true story",
    ),
    "LaMP_2N": (
        "food & drink", "sports", "education", "parents", "religion", "travel", "business", "crime",
        "science & technology", "culture & arts", "entertainment", "politics", "women", "style & beauty",
        "healthy living",
    ),
    "LaMP_3": ("1", "2", "3", "4", "5"),
}  # fmt: skip
"""The official label lists. LaMP_2M (movie tags) and LaMP_2N (news categories) are both called LaMP_2 in the files."""

TASKS = (*LAMP_LABELS, "LaMP_2", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7")

Answers: TypeAlias = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A file, the official envelope, a list of {"id", "output"}, or a mapping from id to output."""


class _Scored(NamedTuple):
    """What the scores of any sample of rows follow from.

    Attributes:
        official: From indices of rows to the official scores.
        num_failed: Predictions that could not be read.
    """

    official: Callable[[np.ndarray], dict[str, float]]
    num_failed: int


def _load(argument: str, answers: Answers) -> Any:
    """Return the content of a file, or what was given instead of one."""
    if not isinstance(answers, str | Path):
        return answers
    return files.read_json(argument, answers)


def _text(argument: str, name: str, output: Any, optional: bool) -> str:
    """Return an output as stripped text; nothing (None, NaN) is an empty one where that may be."""
    nothing = output is None or (isinstance(output, float) and output != output)
    if nothing and optional:
        return ""
    if nothing or isinstance(output, bool) or not isinstance(output, str | int | float | np.number):
        wanted = "be texts or numbers" + (", or None" if optional else "")
        checks.fail(argument, wanted, f"the one of {name!r} is {output!r}")
    return str(output).strip()


def _answers(argument: str, given: Answers, optional: bool = False) -> tuple[str | None, dict[str, str]]:
    """Return the task's name (None if not said) and id -> stripped output, empty where it is missing if `optional`."""
    content = _load(argument, given)
    task = None
    if isinstance(content, Mapping) and isinstance(content.get("golds"), list):
        task, content = content.get("task"), content["golds"]
    if isinstance(content, Mapping):
        content = [{"id": name, "output": output} for name, output in content.items()]
    if isinstance(content, str | bytes) or not isinstance(content, Iterable):
        checks.fail(argument, 'hold rows of {"id", "output"}', f"is a {type(content).__name__}")
    found: dict[str, str] = {}
    for i, row in enumerate(content):
        if not isinstance(row, Mapping) or not {"id", "output"} <= set(row):
            checks.fail(argument, 'hold rows of {"id", "output"}', f"row {i} is {str(row)[:80]}")
        if isinstance(row["id"], bool) or not isinstance(row["id"], str | int | np.integer):
            checks.fail(argument, "name every row by a text or a whole number", f"row {i} has the id {row['id']!r}")
        name = str(row["id"])
        if name in found:
            checks.fail(argument, "have each id once", f"has {name!r} twice")
        found[name] = _text(argument, name, row["output"], optional)
    if not found:
        checks.fail(argument, "hold one row at least", "is empty")
    return task, found


def _same_ids(golds: Mapping[str, str], preds: Mapping[str, str]) -> None:
    """Check that both have the same ids; the message names the first few that are not in both."""
    for kind, ids in (("lacks", golds.keys() - preds.keys()), ("has unknown", preds.keys() - golds.keys())):
        if ids:
            some = ", ".join(sorted(ids)[:5]) + (", ..." if len(ids) > 5 else "")
            checks.fail("preds", "have the ids of the golds", f"{kind} {len(ids)}: {some}")


def _base(task: str) -> str:
    return "LaMP_2" if task in ("LaMP_2M", "LaMP_2N") else task


def _task(task: str | None, named: Mapping[str, str | None], golds: Mapping[str, str]) -> str:
    """Return the task, from the argument or the files, with the variant of LaMP_2 read off the golds."""
    said = {name: value.replace("-", "_") for name, value in {"task": task, **named}.items() if value is not None}
    for name, value in said.items():
        checks.choice(name, value, TASKS)
    if not said:
        checks.fail("task", "be given where neither file names it", "is None", "For example task='LaMP_3'.")
    if len({_base(value) for value in said.values()}) > 1:
        checks.fail("task", "be the same everywhere", "is " + ", ".join(f"{v} in {n}" for n, v in said.items()))
    exact = next((value for value in said.values() if value != "LaMP_2"), "LaMP_2")
    if exact != "LaMP_2":
        return exact
    news = sum(gold in LAMP_LABELS["LaMP_2N"] for gold in golds.values())
    return "LaMP_2N" if 2 * news > len(golds) else "LaMP_2M"


def _labelled(task: str, golds: list[str], preds: list[str]) -> _Scored:
    labels = LAMP_LABELS[task]
    wrong = next((gold for gold in golds if gold not in labels), None)
    if wrong is not None:
        checks.fail("golds", f"hold labels of {task}", f"hold {wrong!r}", checks.suggestion(wrong, labels))
    counts = label_counts(golds, preds, labels)
    hits = counts[2].sum(-1).astype(np.float64)

    def official(rows: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(hits[rows].mean()), "f1": macro_f1_of_counts(counts[:, rows].sum(1))}

    return _Scored(official, sum(pred not in labels for pred in preds))


def _number(text: str) -> float | None:
    """Return a finite number rounded to float32, or None where the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return rounded if np.isfinite(rounded) else None


def _rated(golds: list[str], preds: list[str]) -> _Scored:
    right = [_number(gold) for gold in golds]
    if None in right:
        checks.fail("golds", "hold numbers for LaMP_3", f"hold {golds[right.index(None)]!r}")
    gold = np.array(right, np.float64)
    read = [_number(pred) for pred in preds]
    worst = np.where(np.abs(1 - gold) > np.abs(5 - gold), 1.0, 5.0)
    error = np.array([far if value is None else value for value, far in zip(read, worst, strict=True)]) - gold

    def official(rows: np.ndarray) -> dict[str, float]:
        return {"MAE": float(np.abs(error[rows]).mean()), "RMSE": float(np.sqrt((error[rows] ** 2).mean()))}

    return _Scored(official, read.count(None))


def _generated(golds: list[str], preds: list[str]) -> _Scored:
    each = np.array([rouge(gold, pred) for gold, pred in zip(golds, preds, strict=True)])

    def official(rows: np.ndarray) -> dict[str, float]:
        one, longest = each[rows].mean(0)
        return {"rouge-1": float(one), "rouge-L": float(longest)}

    return _Scored(official, preds.count(""))


def _bootstrap(scored: _Scored, num_rows: int, num_samples: int, seed: int, level: float) -> dict[str, float]:
    """Return the percentile interval of each official score over samples of the rows with replacement."""
    key = jax.random.key(seed)
    samples = []
    for i in range(num_samples):
        rows = np.asarray(jax.random.randint(jax.random.fold_in(key, i), (num_rows,), 0, num_rows))
        samples.append(scored.official(rows))
    ends = {"low": (1 - level) / 2, "high": (1 + level) / 2}
    return {
        f"{name}_{end}": float(np.quantile([sample[name] for sample in samples], share))
        for name in samples[0]
        for end, share in ends.items()
    }


@checked
def lamp_evaluate(
    golds: Answers,
    preds: Answers,
    *,
    task: str | None = None,
    bootstrap: int | None = None,
    seed: int | None = None,
    level: float = 0.95,
) -> dict[str, float]:
    """Score predictions as the official evaluator of LaMP does.

    Args:
        golds: The right outputs: a file, the official envelope {"task", "golds": [{"id", "output"}, ..]}, such a list,
            or a mapping from id to output.
        preds: The predictions, in any of these forms; the same ids in any order. One that is None (null in a file) or
            NaN is empty: it scores 0, or counts as the worst, and is a failure.
        task: "LaMP_1" .. "LaMP_7", "LaMP_2M" (movie tags) or "LaMP_2N" (news); may be left out where a file names it.
            For "LaMP_2" the golds decide which of the two it is.
        bootstrap: Number of resamples of the rows for a percentile interval; None for none.
        seed: Seed of the bootstrap; required with it.
        level: Confidence of the interval.

    Returns:
        The official scores ("accuracy" and "f1" for LaMP_1 and LaMP_2; "MAE" and "RMSE" for LaMP_3; "rouge-1" and
        "rouge-L" for the rest), then what is not official: "parse_failure_rate" (share of predictions that are not a
        label, not a number, or empty) and, with `bootstrap`, the ends "<score>_low" and "<score>_high".

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If ids are missing, unknown or twice there, a right output is None, a file is no JSON, or the tasks
            differ.

    Example:
        >>> found = lamp_evaluate({"a": "5", "b": "2"}, {"a": "4", "b": "good"}, task="LaMP_3")
        >>> found["MAE"], found["parse_failure_rate"]  # (|4 - 5| + |5 - 2|) / 2; "good" counts as 5
        (2.0, 0.5)

    References:
        Salemi et al. (2024), LaMP: when large language models meet personalization; the evaluator is
        eval/evaluation.py of github.com/LaMP-Benchmark/LaMP.
    """
    gold_task, right = _answers("golds", golds)
    pred_task, given = _answers("preds", preds, optional=True)
    name = _task(task, {"golds": gold_task, "preds": pred_task}, right)
    _same_ids(right, given)
    columns = [right[i] for i in right], [given[i] for i in right]
    if name in LAMP_LABELS and name != "LaMP_3":
        scored = _labelled(name, *columns)
    else:
        scored = _rated(*columns) if name == "LaMP_3" else _generated(*columns)
    scores = scored.official(np.arange(len(right)))
    scores["parse_failure_rate"] = scored.num_failed / len(right)
    if bootstrap is not None:
        checks.integer("bootstrap", bootstrap)
        checks.integer("seed", seed, low=0, fix="A bootstrap needs a seed.")
        checks.number("level", level, low=0.5, high=0.9999)
        scores |= _bootstrap(scored, len(right), bootstrap, seed or 0, level)
    return scores
