"""The official scores: golden files of the official evaluator, its rules one by one, and clear errors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nvcim_jax.metrics import LAMP_LABELS, lamp_evaluate, rouge

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GOLDEN = Path(os.environ.get("NVCIM_DATA") or BESIDE) / "lamp" / "golden_eval"
CASES = ("lamp1_plain", "lamp2_all_labels", "lamp3_plain", "lamp5_lead12_pmlr")


@pytest.mark.parametrize("case", CASES)
def test_golden_scores_of_the_official_evaluator(case: str) -> None:
    if not GOLDEN.is_dir():
        pytest.skip("no folder lamp/golden_eval in NVCIM_DATA or ../shared/data")
    expected = json.loads((GOLDEN / "expected.json").read_text())[case]
    found = lamp_evaluate(GOLDEN / f"{case}_golds.json", str(GOLDEN / f"{case}_preds.json"))
    exact = expected.get("exact_mean_f", expected["official"])
    for name, value in exact.items():
        assert found[name] == pytest.approx(value, rel=1e-12)
    assert [name for name in found if name != "parse_failure_rate"] == list(expected["official"])
    assert found["parse_failure_rate"] == 0.0


def test_official_rouge_is_the_exact_mean_to_its_own_bootstrap_noise() -> None:
    if not GOLDEN.is_dir():
        pytest.skip("no folder lamp/golden_eval in NVCIM_DATA or ../shared/data")
    expected = json.loads((GOLDEN / "expected.json").read_text())["lamp5_lead12_pmlr"]
    files = [GOLDEN / f"lamp5_lead12_pmlr_{kind}.json" for kind in ("golds", "preds")]
    found = lamp_evaluate(*files, bootstrap=300, seed=0)
    for name, ends in expected["official_min_max_5_seeds"].items():
        deviation = (found[f"{name}_high"] - found[f"{name}_low"]) / (2 * 1.96)
        # the official number is the median of 1000 resampled means
        standard_error = np.sqrt(np.pi / 2) * deviation / np.sqrt(1000)
        assert all(abs(end - found[name]) < 5 * standard_error for end in (*ends, expected["official"][name]))
    golds, preds = (
        {row["id"]: row["output"] for row in json.loads(path.read_text(encoding="utf-8"))["golds"]} for path in files
    )
    for name, each in zip(golds, expected["per_item_f_first10"], strict=False):
        assert rouge(golds[name], preds[name]) == pytest.approx((each["rouge-1"], each["rouge-L"]), abs=1e-12)


def test_a_label_counts_only_whole_and_letter_by_letter() -> None:
    golds = {str(i): "comedy" for i in range(5)}
    preds = dict(zip(golds, [" comedy\n", "Comedy", "comedy.", "dark comedy", ""], strict=True))
    found = lamp_evaluate(golds, preds, task="LaMP_2")
    assert found["accuracy"] == 0.2
    assert found["f1"] == pytest.approx(2 * 1 / (5 + 1) / 15)
    assert found["parse_failure_rate"] == pytest.approx(3 / 5)


def test_variant_of_lamp_2_is_read_off_the_golds() -> None:
    assert len(LAMP_LABELS["LaMP_2M"]) == len(LAMP_LABELS["LaMP_2N"]) == 15
    assert not set(LAMP_LABELS["LaMP_2M"]) & set(LAMP_LABELS["LaMP_2N"])
    for variant in ("LaMP_2M", "LaMP_2N"):
        golds = {label: label for label in LAMP_LABELS[variant]}
        for task in ("LaMP_2", "LaMP-2", variant):
            assert lamp_evaluate(golds, golds, task=task)["f1"] == 1.0
    with pytest.raises(ValueError, match="`golds` must hold labels of LaMP_2M"):
        lamp_evaluate({"a": "sports"}, {"a": "sports"}, task="LaMP_2M")


@pytest.mark.parametrize(
    ("gold", "pred", "error"),
    [("1", "bad", 4), ("2", "bad", 3), ("3", "bad", 2), ("4", "bad", 3), ("5", "", 4), ("5", "nan", 4), ("1", "inf", 4),
     ("4", " 3.0 ", 1), ("4", "7", 3), ("1", "1e60", 4), ("4", "four", 3)],
)  # fmt: skip
def test_lamp_3_reads_numbers_and_takes_the_worst_extreme_otherwise(gold: str, pred: str, error: float) -> None:
    found = lamp_evaluate({"a": gold}, {"a": pred}, task="LaMP_3")
    assert found["MAE"] == found["RMSE"] == error
    assert found["parse_failure_rate"] == float(pred.strip() not in ("3.0", "7"))


def test_lamp_3_rounds_to_float32_like_the_official_columns() -> None:
    found = lamp_evaluate({"a": "4"}, {"a": "4.3"}, task="LaMP_3")
    assert found["MAE"] == float(np.float32(4.3)) - 4


def test_every_form_of_input_gives_the_same(tmp_path: Path) -> None:
    golds, preds = {"1": "a b c", "2": "d"}, {"2": "d e", "1": "a"}
    rows = [{"id": name, "output": text} for name, text in golds.items()]
    path = tmp_path / "golds.json"
    path.write_text(json.dumps({"task": "LaMP_5", "golds": rows}), encoding="utf-8")
    expected = lamp_evaluate(golds, preds, task="LaMP_5")
    assert expected["rouge-1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert lamp_evaluate(rows, preds, task="LaMP_5") == expected
    assert lamp_evaluate(path, preds) == expected
    assert (
        lamp_evaluate(path, {"task": "LaMP_5", "golds": [{"id": k, "output": v} for k, v in preds.items()]}) == expected
    )


def test_bootstrap_is_seeded_covers_and_changes_no_score() -> None:
    rng = np.random.default_rng(0)
    golds = {str(i): "[1]" for i in range(400)}
    preds = {str(i): "[1]" if right else "[2]" for i, right in enumerate(rng.random(400) < 0.7)}
    plain = lamp_evaluate(golds, preds, task="LaMP_1")
    found = lamp_evaluate(golds, preds, task="LaMP_1", bootstrap=300, seed=1)
    assert {name: found[name] for name in plain} == plain
    assert found == lamp_evaluate(golds, preds, task="LaMP_1", bootstrap=300, seed=1)
    assert found != lamp_evaluate(golds, preds, task="LaMP_1", bootstrap=300, seed=2)
    share = plain["accuracy"]
    width = 2 * 1.96 * np.sqrt(share * (1 - share) / 400)
    # the standard error of a quantile at .025 from 300 draws is about .15 standard deviations, of two ends .22
    assert abs(found["accuracy_high"] - found["accuracy_low"] - width) < 5 * 0.22 * width / 3.92
    with pytest.raises(ValueError, match="needs a seed"):
        lamp_evaluate(golds, preds, task="LaMP_1", bootstrap=10)


@pytest.mark.parametrize(
    ("golds", "preds", "task", "message"),
    [
        ({"a": "1", "b": "2"}, {"a": "1"}, "LaMP_3", "lacks 1: b"),
        ({"a": "1"}, {"a": "1", "c": "2"}, "LaMP_3", "has unknown 1: c"),
        ({"a": "1"}, [{"id": "a", "output": "1"}] * 2, "LaMP_3", "has 'a' twice"),
        ({"a": "1"}, [{"id": "a"}], "LaMP_3", "row 0 is"),
        ({"a": "1"}, {"a": "1"}, None, "where neither file names it"),
        ({"a": "1"}, {"a": "1"}, "LaMP_33", "Did you mean 'LaMP_3'"),
        ({"task": "LaMP_1", "golds": [{"id": "a", "output": "[1]"}]}, {"a": "1"}, "LaMP_3", "be the same everywhere"),
        ({"a": "good"}, {"a": "1"}, "LaMP_3", "hold numbers"),
        ({"a": "[3]"}, {"a": "[1]"}, "LaMP_1", "hold labels of LaMP_1"),
        ({}, {}, "LaMP_3", "is empty"),
    ],
)
def test_what_is_wrong_is_named(golds: dict, preds: dict, task: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lamp_evaluate(golds, preds, task=task)


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    page, broken = tmp_path / "page.json", tmp_path / "broken.json"
    page.write_text("\n <!doctype html>")
    broken.write_text('{"task": "LaMP_3",\n "golds": [')
    with pytest.raises(ValueError, match="HTML page"):
        lamp_evaluate(page, {"a": "1"}, task="LaMP_3")
    with pytest.raises(ValueError, match="at line 2"):
        lamp_evaluate({"a": "1"}, broken, task="LaMP_3")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'page\.json'"):
        lamp_evaluate(tmp_path / "pages.json", {"a": "1"})
