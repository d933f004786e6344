"""Accuracy, macro F1, mean absolute and root mean squared error."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Real

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = [
    "accuracy",
    "label_counts",
    "macro_f1",
    "macro_f1_of_counts",
    "mean_absolute_error",
    "root_mean_squared_error",
]

Numbers = Real[np.ndarray, " rows"] | Sequence[float | int]


def _pair(golds: Sequence[Any] | np.ndarray, preds: Sequence[Any] | np.ndarray) -> None:
    """Check that two columns have the same number of rows, and some."""
    checks.shape("preds", np.empty(len(preds)), (len(golds),), "(rows,)")
    if not len(golds):
        checks.fail("golds", "hold one row at least", "is empty")
    missing = next((i for i, gold in enumerate(golds) if gold is None), None)
    if missing is not None:
        checks.fail("golds", "hold an answer in every row", f"row {missing} is None", "Leave such rows out.")


def _numbers(golds: Numbers, preds: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Return two columns of finite numbers of one length."""
    _pair(golds, preds)
    for argument, column in (("golds", golds), ("preds", preds)):
        checks.finite(argument, column, "Leave out what is no number, or count it as the worst.")
    return np.asarray(golds, np.float64), np.asarray(preds, np.float64)


@checked
def accuracy(golds: Sequence[str], preds: Sequence[str | None]) -> float:
    """Return the share of rows whose prediction is the right answer, letter by letter.

    Args:
        golds: Right answers, (rows,).
        preds: Predictions, (rows,); None is a failure.

    Example:
        >>> accuracy(["a", "b", "a"], ["a", "b", "A"])  # 2 of 3
        0.6666666666666666
    """
    _pair(golds, preds)
    return float(np.mean([gold == pred for gold, pred in zip(golds, preds, strict=True)]))


def label_counts(golds: Sequence[str], preds: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Return for each row which label is right, predicted, and both: one-hot, shape (3, rows, labels).

    A text that is not a label has no entry.
    """
    known = np.array(labels)
    gold = np.asarray(golds)[:, None] == known
    pred = np.asarray(preds)[:, None] == known
    return np.stack([gold, pred, gold & pred]).astype(np.int64)


def macro_f1_of_counts(counts: np.ndarray) -> float:
    """Return macro F1 from the numbers of right, predicted and hit rows of each label, shape (3, labels)."""
    gold, pred, both = counts.astype(np.float64)
    return float(np.mean(2 * both / np.maximum(gold + pred, 1)))


@checked
def macro_f1(golds: Sequence[str], preds: Sequence[str | None], labels: Sequence[str]) -> float:
    """Return the mean over all labels of F1 = 2 hits / (right + predicted).

    A label that occurs in neither column counts with F1 = 0, as in the official evaluator of LaMP.

    Args:
        golds: Right answers, (rows,).
        preds: Predictions, (rows,); a text outside the labels is never a hit.
        labels: The full list of labels.

    Raises:
        ValueError: If a right answer is no label, or a label stands twice.

    Example:
        >>> macro_f1(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])  # both have 2 / 3
        0.6666666666666666
    """
    _pair(golds, preds)
    if len(set(labels)) < len(labels) or not labels:
        checks.fail("labels", "name each label once", f"is {list(labels)}")
    other = next((gold for gold in golds if gold not in labels), None)
    if other is not None:
        checks.fail("labels", "name every right answer", f"lacks {other!r}", "Add it, or leave such rows out.")
    return macro_f1_of_counts(label_counts(golds, preds, labels).sum(1))


@checked
def mean_absolute_error(golds: Numbers, preds: Numbers) -> float:
    """Return the mean of |gold - pred|.

    Args:
        golds: Right numbers, (rows,).
        preds: Predicted numbers, (rows,).

    Example:
        >>> mean_absolute_error([1.0, 5.0], [2.0, 5.0])
        0.5
    """
    gold, pred = _numbers(golds, preds)
    return float(np.mean(np.abs(gold - pred)))


@checked
def root_mean_squared_error(golds: Numbers, preds: Numbers) -> float:
    """Return the root of the mean of (gold - pred)^2.

    Args:
        golds: Right numbers, (rows,).
        preds: Predicted numbers, (rows,).

    Example:
        >>> root_mean_squared_error([1.0, 5.0], [3.0, 5.0])  # sqrt(4 / 2)
        1.4142135623730951
    """
    gold, pred = _numbers(golds, preds)
    return float(np.sqrt(np.mean((gold - pred) ** 2)))
