"""Scores against scikit-learn and rouge-score, on random and on edge texts."""

import warnings

import numpy as np
import pytest

from nvcim_jax import metrics

LABELS = ["a", "b", "c", "never"]


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_are_scikit_learns(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    golds = [LABELS[i] for i in rng.integers(0, 3, 60)]
    preds = [(*LABELS, "other")[i] for i in rng.choice([0, 1, 2, 4], 60)]
    assert metrics.accuracy(golds, preds) == sklearn.accuracy_score(golds, preds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.f1_score(golds, preds, labels=LABELS, average="macro")
    assert metrics.macro_f1(golds, preds, LABELS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_scikit_learns(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    golds, preds = rng.integers(1, 6, 50), rng.normal(3, 1, 50)
    expected = sklearn.mean_absolute_error(golds, preds), sklearn.mean_squared_error(golds, preds) ** 0.5
    assert (
        metrics.mean_absolute_error(golds, preds),
        metrics.root_mean_squared_error(golds, preds),
    ) == pytest.approx(expected, rel=1e-12)


EDGES = [
    ("", ""),
    ("", "a b"),
    ("a b", "... !?"),
    ("The  cat's\thats\n", "the cat s hats"),
    ("a a a b", "a b a c a"),
    ("naïve café İstanbul 日本 x", "na ve caf i stanbul x"),
    ("running runs", "run"),
    ("1,000.5 %", "1 000 5"),
    ("under_score", "under score"),
    ("x " * 100, "x " * 70 + "y " * 50),
]


def _texts(seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = ["the", "The", "cat", "cats", "on", "mat-", "2", "a", "é"]
    draw = lambda: " ".join(words[i] for i in rng.integers(0, len(words), rng.integers(0, 30)))  # noqa: E731
    return [(draw(), draw()) for _ in range(200)]


def test_rouge_is_rouge_scores() -> None:
    pytest.importorskip("rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for gold, pred in [*EDGES, *((b, a) for a, b in EDGES), *_texts(0)]:
        expected = scorer.score(gold, pred)
        found = metrics.rouge(gold, pred)
        assert found == pytest.approx((expected["rouge1"].fmeasure, expected["rougeL"].fmeasure), abs=1e-15)


def test_wrong_columns_are_named() -> None:
    with pytest.raises(ValueError, match="`preds` must have shape"):
        metrics.accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="`golds`"):
        metrics.mean_absolute_error([], [])
    with pytest.raises(ValueError, match="`labels` must name each label once"):
        metrics.macro_f1(["a"], ["a"], ["a", "a"])
    with pytest.raises(ValueError, match="`labels` must name every right answer, but lacks 'c'"):
        metrics.macro_f1(["a", "c"], ["a", "a"], ["a", "b"])
