"""What is no text, no record or no answer is said in one line, by every reader of files."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nvcim_jax import data, devices, metrics

ROW = {"id": "a", "user_or_domain": "u", "task": "t", "input": "x", "output": "y", "split": "train"}
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
READERS: dict[str, Callable[[Path], Any]] = {
    "read_jsonl": lambda path: list(data.read_jsonl(path)),
    "read_lamp": lambda path: list(data.read_lamp(path, split="test", task="LaMP_3")),
    "outputs of read_lamp": lambda path: list(data.read_lamp(_questions(path), path, split="dev", task="LaMP_3")),
    "golds": lambda path: metrics.lamp_evaluate(path, {"a": "1"}, task="LaMP_3"),
    "preds": lambda path: metrics.lamp_evaluate({"a": "1"}, path, task="LaMP_3"),
    "from_csv": lambda path: devices.from_csv(path, g_max_us=40.0),
    "read_records": devices.read_records,
}
WRONG: dict[str, tuple[str, bytes, str]] = {
    "an image": ("rows.jsonl", PNG, "a PNG image"),
    "zeros": ("rows.jsonl", b"{\x00}", "is binary"),
    "UTF-16": ("rows.jsonl", json.dumps(ROW).encode("utf-16"), "text in UTF-16"),
    "Latin-1": ("rows.jsonl", '{"é": 1}'.encode("latin-1"), "is no UTF-8"),
    "gzip without the name": ("rows.jsonl", gzip.compress(b"{}"), r"is compressed\. Name it rows\.jsonl\.gz"),
    "the name without gzip": ("rows.jsonl.gz", b"{}", "no gzip file"),
    "half a gzip": ("rows.jsonl.gz", gzip.compress(b"{}" * 99)[:-12], "cut short"),
    "a page": ("rows.jsonl", b"\xef\xbb\xbf\n <!DOCTYPE html>", "HTML page"),
    "Parquet": ("rows.jsonl", b"PAR1rest", "a Parquet file"),
}


def _questions(path: Path) -> Path:
    file = path.parent / "dev_questions.json"
    file.write_text(json.dumps([{"id": "a", "input": "x", "profile": []}]))
    return file


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_text_is_named(reader: str, wrong: str, tmp_path: Path) -> None:
    name, content, message = WRONG[wrong]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        READERS[reader](tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", READERS)
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
@example(content=b"")
@example(content=b"null")
@example(content=b"[null]")
@example(content=b'{"a": null}')
@example(content=b'[{"id": null, "output": null}]')
@example(content=b'{"golds": 3}')
@example(content=b"[" * 100_000)
@example(content=b'{"a":' * 100_000)
@example(content=b"level,g_us\n0,nan\n")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused_in_one_line(reader: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    said = ""
    try:
        READERS[reader](path)
    except ValueError as error:
        said = str(error)
    assert not said or said.startswith("Argument `")
    assert "\n" not in said


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode())
    assert [row.id for row in data.read_jsonl(lines)] == ["a"]
    table = tmp_path / "table.csv"
    table.write_bytes(b"\xef\xbb\xbflevel,mean_us,sigma_us\n0,1,0.2\n1,39,0.8\n")
    assert devices.from_csv(table, g_max_us=40.0).num_levels == 2
    answers = tmp_path / "a.json"
    answers.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": "1"}).encode())
    assert metrics.lamp_evaluate(answers, answers, task="LaMP_3")["MAE"] == 0.0


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_prediction_that_is_none_is_a_failure(nothing: Any) -> None:
    right = {"a": "none", "b": "none of these"}
    found = metrics.lamp_evaluate(right, {"a": nothing, "b": "none of these"}, task="LaMP_5")
    assert (found["rouge-1"], found["parse_failure_rate"]) == (0.5, 0.5)
    assert metrics.lamp_evaluate({"a": "1"}, {"a": nothing}, task="LaMP_3")["MAE"] == 4.0
    assert metrics.lamp_evaluate({"a": "[1]"}, {"a": nothing}, task="LaMP_1")["accuracy"] == 0.0
    assert metrics.accuracy(["a", "b"], ["a", None]) == 0.5
    assert metrics.rouge("none", None) == (0.0, 0.0)


def test_a_prediction_that_is_none_is_written_empty(tmp_path: Path) -> None:
    path = data.write_predictions(tmp_path / "p.json", "LaMP_5", {"a": None, "b": 3})
    assert [row["output"] for row in json.loads(path.read_text())["golds"]] == ["", "3"]


WRONG_ANSWERS: dict[str, tuple[Any, Any, str]] = {
    "a right answer of None": (
        {"q1": None},
        {"q1": "x"},
        "`golds` must be texts or numbers, but the one of 'q1' is None",
    ),
    "NaN": ({"q1": float("nan")}, {"q1": "x"}, "the one of 'q1' is nan"),
    "a list": ({"q1": "x"}, {"q1": ["x"]}, r"`preds` must be .* the one of 'q1' is \['x'\]"),
    "a truth value": ({"q1": "x"}, {"q1": True}, "the one of 'q1' is True"),
    "an id of None": ([{"id": None, "output": "x"}], {"None": "x"}, "row 0 has the id None"),
    "a number": (3, {"q1": "x"}, r"`golds` must hold rows .* is a int"),
}


@pytest.mark.parametrize(("golds", "preds", "message"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_what_is_no_answer_is_named(golds: Any, preds: Any, message: str, tmp_path: Path) -> None:
    paths = []
    for name, content in (("golds", golds), ("preds", preds)):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        metrics.lamp_evaluate(*paths, task="LaMP_5")


def _lamp(folder: Path, question: dict[str, Any], output: Any = "3", split: str = "dev") -> Path:
    folder.mkdir(exist_ok=True)
    given = {"id": "7", "input": "review: x", "profile": [{"id": "1", "text": "good", "score": "5"}]} | question
    (folder / f"{split}_questions.json").write_text(json.dumps([given]))
    rows = [{"id": given["id"], "output": output}]
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": rows}))
    return folder


@pytest.mark.parametrize(
    ("question", "output", "message"),
    [
        ({}, None, r"`outputs` must hold texts or numbers, but dev_outputs\.json has None for '7'"),
        ({}, {"x": 1}, "has {'x': 1} for '7'"),
        ({"id": None}, "3", "row 0 has the id None"),
        ({"input": None}, "3", r"question 1 of dev_questions\.json has input None"),
        ({"input": True}, "3", "has input True"),
    ],
)
def test_nothing_in_the_official_files_is_named(question: Any, output: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(data.read_lamp(_lamp(tmp_path, question, output)))


def test_nothing_in_a_profile_is_left_out(tmp_path: Path) -> None:
    items = [{"text": None, "score": "5"}, {"text": "bad", "score": None}, {"text": "fine", "score": 4}]
    (record,) = data.read_lamp(_lamp(tmp_path, {"profile": items, "user_id": None}))
    assert record.user_or_domain == "7"
    assert [(row.input, row.output) for row in data.profile_pairs(record)] == [("review: fine", "4")]


def test_several_splits_in_a_folder_ask_for_one(tmp_path: Path) -> None:
    _lamp(tmp_path, {})
    _lamp(tmp_path, {}, split="train")
    with pytest.raises(
        ValueError, match=r"`split` must be given, but .*Choose one, such as split='dev' \(--split dev\)"
    ):
        data.read_lamp(tmp_path)
    assert len(list(data.read_lamp(tmp_path, split="train"))) == 1


CALLS = {
    "nv.data.stream(['a line'], seed=0)": "row 0 is a str. Read a file with data.read_jsonl.",
    "nv.data.stream([{'id': 'a'}], seed=0)": "row 0 is a dict. Make them with data.Record(**row).",
    "nv.data.stream('rows.jsonl', seed=0)": "is 'rows.jsonl'. Read a file with list(data.read_jsonl(path)).",
    "nv.data.stream({}, seed=0)": "is a dict. Give a list of them.",
    "nv.data.stream(None, seed=0)": "is None",
    "nv.data.write_jsonl('x', jax.random.key(0))": "is a PRNGKeyArray. Give a list of them.",
    "nv.data.clinc5([{'id': 'a'}])": "row 0 is a dict",
    "nv.data.most_opposed(['a'], ['a', 'b'], 2, 1)": "row 0 is a str",
    "nv.data.permuted_users(['a'], ['a'], 2, None, np.random.default_rng(0))": "row 0 is a str",
    "nv.data.write_jsonl('x.jsonl', ['a'])": "row 0 is a str",
    "nv.data.write_predictions('x.json', 'LaMP_5', {'a': [3]})": "be texts, numbers or None, but is [3] for 'a'",
    "nv.data.profile_pairs({'id': 'a'})": "but is a dict",
    "nv.metrics.accuracy(['a', None], ['a', None])": "but row 1 is None",
    "nv.metrics.macro_f1([None], ['a'], ['a'])": "row 0 is None",
    "nv.metrics.mean_absolute_error([1.0], [None])": "`preds` must be",
    "nv.metrics.mean_absolute_error([1.0], ['2'])": "`preds` must be",
    "nv.metrics.root_mean_squared_error([1.0, 2.0], [1.0, float('nan')])": "`preds` must be finite",
    "nv.metrics.rouge(None, 'x')": "`gold` must be text, but is None",
    "nv.metrics.interval([1.0, 2j])": "`values` must be",
    "nv.metrics.interval(['1'])": "`values` must be",
    "nv.metrics.forgetting(np.ones((2, 2), complex))": "`R` must be",
}


def test_what_is_no_record_and_no_number_is_named(said_plainly: Any) -> None:
    for (kind, text), (call, wanted) in zip(said_plainly(CALLS), CALLS.items(), strict=True):
        assert kind == "ValueError", (call, text)
        assert wanted in text
        assert "\n" not in text


def test_records_may_come_from_a_generator() -> None:
    rows = [data.Record(f"{s}{i}", "d", "t", f"x {i}", "y", s) for s in ("train", "test") for i in range(4)]
    made = data.stream((row for row in rows), seed=0, config=data.StreamConfig(buffer_size=2))
    assert made == data.stream(rows, seed=0, config=data.StreamConfig(buffer_size=2))
    assert len(data.clinc5(row for row in rows)) == 8


UNITS = {
    "siemens": (
        "0,1e-6,2e-7\n1,39e-6,8e-7",
        40.0,
        r"reach 0\.01 to 1\.1 of g_max, but its greatest is 9\.75e-07 of it",
    ),
    "g_max in siemens": ("0,1,0.2\n1,39,0.8", 40e-6, r"its greatest is 9\.75e\+05 of it\. Give both in microsiemens"),
    "g_max below the data": ("0,1,0.2\n1,39,0.8", 20.0, r"its greatest is 1\.95 of it"),
}


@pytest.mark.parametrize(("rows", "g_max_us", "message"), UNITS.values(), ids=UNITS)
def test_a_measurement_in_another_unit_is_refused(rows: str, g_max_us: float, message: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"level,mean_us,sigma_us\n{rows}\n")
    with pytest.raises(ValueError, match=message):
        devices.from_csv(table, g_max_us=g_max_us)
    records = tmp_path / "records.csv"
    lines = [line.split(",") for line in rows.split("\n")]
    text = "".join(
        f"{level},{float(mean) * share}\n" for level, mean, _ in lines for share in np.linspace(0.9, 1.1, 12)
    )
    records.write_text("level,g_us\n" + text)
    with pytest.raises(ValueError, match=r"`mean_us` must reach 0\.01 to 1\.1 of g_max"):
        devices.from_csv(records, g_max_us=g_max_us)


@pytest.mark.parametrize(
    ("mean", "sigma", "message"),
    [([0.8, 39.0], [0.01, 0.02], "`mean` must reach"), ([0.02, 0.97], [0.01, 2.0], r"`sigma` must lie in \[-inf, 1\]")],
)
def test_a_table_in_microsiemens_is_refused(mean: list[float], sigma: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*Divide by g_max"):
        devices.from_table([0.0, 1.0], mean, sigma, g_max_us=40.0)
