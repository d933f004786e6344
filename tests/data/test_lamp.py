"""The official files: every task by hand-written rows, the fixture in the official layout, and clear errors."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from nvcim_jax import metrics
from nvcim_jax.data import (
    LAMP_TASKS,
    SOURCES,
    StreamConfig,
    data_folder,
    profile_pairs,
    read_lamp,
    stream,
    write_predictions,
)
from nvcim_jax.data.json_array import iterate_array

PAPER = {"id": "p1", "title": "On Rivers", "abstract": "We study rivers."}
OTHER = {"id": "p2", "title": "On Lakes", "abstract": "We study lakes."}
QUESTIONS: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "LaMP_1": (
        'For an author who has written the paper with the title "On Seas", which reference is related? Just answer '
        'with [1] or [2] without explanation. [1]: "A" [2]: "B"',
        [PAPER, OTHER],
        "[2]",
    ),
    "LaMP_2M": (
        "Which tag does this movie relate to? tags: [comedy, action] description: A man runs.",
        [{"id": "m", "tag": "action", "description": "A car runs."}],
        "comedy",
    ),
    "LaMP_2N": (
        "Which category does this article relate to? categories: [sports, crime] article: They won.",
        [{"id": "n", "text": "They lost.", "title": "Loss", "category": "sports", "date": "2016-01-02"}],
        "sports",
    ),
    "LaMP_3": (
        "What is the score of the following review on a scale of 1 to 5? review: Nice.",
        [{"id": "r", "text": "Bad: a review: no.", "score": "1"}],
        "4",
    ),
    "LaMP_4": (
        "Generate a headline for the following article: Rain fell.",
        [{"id": "h", "text": "Snow fell.", "title": "Snow"}],
        "Rain",
    ),
    "LaMP_5": (
        "Generate a title for the following abstract of a paper: We study seas.",
        [PAPER],
        "On Seas",
    ),
    "LaMP_7": (
        "Paraphrase the following tweet without any explanation before or after it: good day",
        [{"id": "t", "text": "one two three four five six seven eight"}, {"id": "w", "text": "alone"}],
        "a good day",
    ),
}


def _save(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _files(folder: Path, task: str, *, envelope: bool = True, split: str = "dev") -> Path:
    question, profile, output = QUESTIONS[task]
    rows = [{"id": str(i), "input": question, "profile": profile, "user_id": f"u{i % 2}"} for i in range(3)]
    golds: Any = [{"id": str(i), "output": output} for i in range(3)]
    _save(folder / f"{split}_questions.json", rows)
    name = "LaMP_2" if task.startswith("LaMP_2") else task
    _save(folder / f"{split}_outputs.json", {"task": name, "golds": golds} if envelope else golds)
    return folder


@pytest.mark.parametrize("task", LAMP_TASKS)
def test_every_task_is_read_and_its_variant_found(tmp_path: Path, task: str) -> None:
    rows = list(read_lamp(_files(tmp_path, task)))
    assert [row.id for row in rows] == ["0", "1", "2"]
    assert [row.user_or_domain for row in rows] == ["u0", "u1", "u0"]
    assert {(row.task, row.split, row.output, row.input) for row in rows} == {
        (task, "val", QUESTIONS[task][2], QUESTIONS[task][0])
    }
    assert rows[0].extra == {"profile": QUESTIONS[task][1]}
    bare = list(read_lamp(_files(tmp_path / "bare", task, envelope=False), task=task.replace("_", "-")))
    assert bare == rows


EXPECTED = {
    "LaMP_1": [
        ("Write an abstract for this title: On Rivers", "We study rivers."),
        ("Write an abstract for this title: On Lakes", "We study lakes."),
    ],
    "LaMP_2M": [("Which tag does this movie relate to? tags: [comedy, action] description: A car runs.", "action")],
    "LaMP_2N": [
        ("Which category does this article relate to? categories: [sports, crime] article: They lost.", "sports")
    ],
    "LaMP_3": [
        ("What is the score of the following review on a scale of 1 to 5? review: Bad: a review: no.", "1"),
    ],
    "LaMP_4": [("Generate a headline for the following article: Snow fell.", "Snow")],
    "LaMP_5": [("Generate a title for the following abstract of a paper: We study rivers.", "On Rivers")],
    "LaMP_7": [("Complete the following tweet: one", "two three four five six seven eight")],
}


@pytest.mark.parametrize("task", LAMP_TASKS)
def test_pairs_of_a_profile(tmp_path: Path, task: str) -> None:
    record = next(read_lamp(_files(tmp_path, task)))
    pairs = profile_pairs(record, seed=0)
    assert [(row.input, row.output) for row in pairs] == EXPECTED[task]
    assert {(row.user_or_domain, row.split, row.task) for row in pairs} == {("u0", "train", task)}
    assert {row.extra["source"] for row in pairs} == {SOURCES[task]}
    assert ("date" in pairs[0].extra) == (task == "LaMP_2N")
    assert len({row.id for row in pairs}) == len(pairs)


def test_citation_choices_are_marked_as_inferred(tmp_path: Path) -> None:
    record = next(read_lamp(_files(tmp_path, "LaMP_1")))
    rows = [row for seed in range(20) for row in profile_pairs(record, seed=seed, distractors=["On Stars", "On Lakes"])]
    assert {row.output for row in rows} == {"[1]", "[2]"}
    for row in rows:
        own = "On Lakes" if 'title "On Rivers"' in row.input else "On Rivers"
        assert f'{row.output}: "{own}"' in row.input
        assert '"On Stars"' in row.input
        assert row.extra["source"] == "inferred"
    with pytest.raises(ValueError, match="`seed`"):
        profile_pairs(record, distractors=["On Stars"])
    with pytest.raises(ValueError, match="not the user's"):
        profile_pairs(record, seed=0, distractors=["On Lakes"])


def test_tweets_are_cut_after_a_tenth_to_a_quarter(tmp_path: Path) -> None:
    text = " ".join(str(i) for i in range(100))
    rows = [{"id": str(i), "input": "x: y", "profile": [{"text": text}]} for i in range(200)]
    _save(tmp_path / "LaMP_7" / "test_questions.json", rows)
    cuts = []
    for record in read_lamp(tmp_path / "LaMP_7"):
        (row,) = profile_pairs(record, seed=0)
        head = row.input.removeprefix("Complete the following tweet: ")
        assert f"{head} {row.output}" == text
        cuts.append(len(head.split()))
    assert 10 <= min(cuts) < 13
    assert 22 < max(cuts) <= 25


def test_test_split_has_no_outputs_and_layouts_are_found(tmp_path: Path) -> None:
    root = tmp_path / "time" / "LaMP_4"
    _files(root / "dev", "LaMP_4")
    _files(root / "train", "LaMP_4", split="train")
    _files(root / "test", "LaMP_4", split="test")
    (root / "test" / "test_outputs.json").unlink()
    assert {(row.split, row.output) for row in read_lamp(root, split="test")} == {("test", "")}
    assert {row.split for row in read_lamp(root, split="train")} == {"train"}
    with pytest.raises(ValueError, match=r"`split` must be given.*--split test"):
        read_lamp(root)
    packed = _save(tmp_path / "dev_questions.json.gz", json.loads((root / "dev/dev_questions.json").read_text()))
    assert len(list(read_lamp(packed, root / "dev" / "dev_outputs.json"))) == 3


@pytest.mark.parametrize(("task", "exact", "number"), [("LaMP_2", "LaMP_2M", None), ("LaMP_3", "LaMP_3", None)])
def test_fixture_in_the_official_layout(tmp_path: Path, task: str, exact: str, number: int | None) -> None:
    folder = data_folder("lamp/format_fixture")
    if folder is None:
        pytest.skip("no folder lamp/format_fixture in NVCIM_DATA or ../shared/data")
    rows = list(read_lamp(folder / task))
    golds = json.loads((folder / task / "dev_outputs.json").read_text(encoding="utf-8"))
    assert {row.id: row.output for row in rows} == {row["id"]: row["output"] for row in golds["golds"]}
    assert {row.task for row in rows} == {exact}
    pairs = [row for record in rows for row in profile_pairs(record)]
    assert len(pairs) == sum(len(row.extra["profile"]) for row in rows)
    assert {row.output for row in pairs} <= set(metrics.LAMP_LABELS[exact])
    path = write_predictions(tmp_path / "preds.json", exact, {row.id: row.output for row in rows})
    found = metrics.lamp_evaluate(folder / task / "dev_outputs.json", path)
    assert found.get("accuracy", 1.0) == 1.0
    assert found.get("MAE", 0.0) == 0.0


def test_pairs_of_users_make_a_stream(tmp_path: Path) -> None:
    items = [{"id": str(i), "text": f"text {i}", "score": str(1 + i % 5)} for i in range(8)]
    question = QUESTIONS["LaMP_3"][0]
    rows = [{"id": str(i), "input": f"{question} {i}", "profile": items} for i in range(3)]
    _save(tmp_path / "dev_questions.json", rows)
    _save(tmp_path / "dev_outputs.json", {"task": "LaMP_3", "golds": [{"id": str(i), "output": "3"} for i in range(3)]})
    records = list(read_lamp(tmp_path))
    train = [row for record in records for row in profile_pairs(record)]
    made = stream(
        [*train, *records],
        seed=0,
        config=StreamConfig(buffer_size=8, split="val"),
        labels=metrics.LAMP_LABELS["LaMP_3"],
    )
    assert len(made.blocks) == 3
    assert all(len(own) == 1 for own in made.test.values())


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_array_is_the_same_at_any_chunk(tmp_path: Path, chunk: int) -> None:
    content = [{"a": 'q"\\ é \u2028 [}', "b": [1.5e-3, True, None, {"c": -0.25}]}, {}, {"日": "\n" * 20}] * 3
    for ascii_only in (True, False):
        path = tmp_path / "a.json"
        path.write_text("\ufeff \n" + json.dumps(content, ensure_ascii=ascii_only, indent=2) + "\n", encoding="utf-8")
        assert list(iterate_array(path, chunk=chunk)) == content
    path.write_text(" [ ] ")
    assert list(iterate_array(path, chunk=chunk)) == []


@pytest.mark.parametrize("chunk", [1, 16, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"b": 2]', "is broken .* on line 2"),
        ('[{"a": 1},\n{"b": "x', "breaks off .* on line 2"),
        ('[{"a": 1}\n', "breaks off on line 2"),
        ('[{"a": 1} {"b": 2}]', "has '{' after an element on line 1"),
        ('[{"a": 1}, 3]', "holds '3', which is no object, on line 1"),
        ('[{"a": 1}] x', "goes on after its end"),
        ('[{"a": 1},]', "is broken .* on line 1"),
        ('{"task": 1}', "begins with '{'"),
        ("", "is empty"),
        ("<html>", "HTML page"),
    ],
)
def test_a_broken_array_is_named_with_its_line(tmp_path: Path, text: str, message: str, chunk: int) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(iterate_array(path, chunk=chunk))


def test_reading_holds_one_question_at_a_time(tmp_path: Path) -> None:
    item = {"id": "r", "text": "x" * 2000, "score": "1"}
    rows = [{"id": str(i), "input": "review: y", "profile": [item] * 20} for i in range(500)]
    path = _save(tmp_path / "LaMP_3" / "test_questions.json", rows)
    assert path.stat().st_size > 20e6
    del rows
    tracemalloc.start()
    try:
        assert sum(len(row.extra["profile"]) for row in read_lamp(path)) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


@pytest.mark.parametrize(
    ("break_it", "options", "message"),
    [
        (lambda q, o: o["golds"].pop(), {}, "lacks '2'"),
        (lambda q, o: q.pop(), {}, "has 1 without a question: 2"),
        (lambda q, o: q.append(q[0]), {}, "question 4 of dev_questions.json repeats '0'"),
        (lambda q, o: o["golds"].append(o["golds"][0]), {}, "has '0' twice"),
        (lambda q, o: q[1].pop("profile"), {}, r"question 2 of dev_questions.json lacks \['profile'\]"),
        (lambda q, o: q[1]["profile"][0].pop("score"), {}, "question 1 has items of id, text"),
        (lambda q, o: o.pop("golds"), {}, "is neither"),
        (lambda q, o: o.update(task="LaMP_33"), {}, "Did you mean 'LaMP_3'"),
        (lambda q, o: None, {"task": "LaMP_2"}, "be the task of the outputs file, LaMP_3"),
        (lambda q, o: None, {"task": "LaMP3"}, "Did you mean 'LaMP_3'"),
        (lambda q, o: None, {"split": "val"}, "`split` must be one of dev, test, train"),
        (lambda q, o: None, {"split": "train"}, "hold train_questions.json"),
        (lambda q, o: o.update(task="LaMP_5"), {}, "fit the profiles .LaMP_5: abstract, title"),
    ],
)
def test_what_is_wrong_with_the_files_is_named(tmp_path: Path, break_it: Any, options: dict, message: str) -> None:
    _files(tmp_path, "LaMP_3")
    paths = [tmp_path / f"dev_{kind}.json" for kind in ("questions", "outputs")]
    contents = [json.loads(path.read_text()) for path in paths]
    break_it(*contents)
    for path, content in zip(paths, contents, strict=True):
        _save(path, content)
    with pytest.raises(ValueError, match=message):
        list(read_lamp(tmp_path, **options))


def test_missing_files_are_named(tmp_path: Path) -> None:
    _files(tmp_path / "LaMP_3", "LaMP_3")
    with pytest.raises(FileNotFoundError, match="Did you mean 'LaMP_3'"):
        read_lamp(tmp_path / "LaMP-3")
    (tmp_path / "LaMP_3" / "dev_outputs.json").unlink()
    with pytest.raises(ValueError, match="where no outputs file is beside"):
        read_lamp(tmp_path / "LaMP_3")
    with pytest.raises(ValueError, match=r"hold train_questions\.json or dev_questions\.json"):
        read_lamp(tmp_path)
    other = _save(tmp_path / "x" / "mine.json", [])
    with pytest.raises(ValueError, match="name does not begin with"):
        read_lamp(other)
    _save(tmp_path / "x" / "test_questions.json", [])
    with pytest.raises(ValueError, match="neither the outputs nor the path names it"):
        read_lamp(tmp_path / "x")


def test_predictions_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "preds.json", "LaMP-5", [("b", "é"), ("a", "")])
    expected = {"task": "LaMP_5", "golds": [{"id": "b", "output": "é"}, {"id": "a", "output": ""}]}
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    with pytest.raises(ValueError, match="has 'a' twice"):
        write_predictions(path, "LaMP_5", [("a", "x"), ("a", "y")])
    with pytest.raises(UnicodeEncodeError):
        write_predictions(path, "LaMP_5", {"a": "\ud800"})
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["preds.json"]
    with pytest.raises(ValueError, match="is empty"):
        write_predictions(path, "LaMP_5", {})
    with pytest.raises(FileNotFoundError, match="must name a folder"):
        write_predictions(tmp_path / "no" / "preds.json", "LaMP_5", {"a": "x"})
