"""The official files of the LaMP benchmark: questions with profiles, and outputs.

The layout, from the benchmark's repository and site (github.com/LaMP-Benchmark/LaMP, lamp-benchmark.github.io):
`<split>_questions.json` is an array of {"id", "input", "profile": [..]}, `<split>_outputs.json` an envelope {"task",
"golds": [{"id", "output"}, ..]}, with the splits train, dev and test; the outputs of the test split are not public.
The time-based files have the same layout, with a "date" in the items of a profile; "user_id" is read where it is there.

Inferred, not official: a bare array of {"id", "output"} is taken for outputs too; where a question has no user_id, it
is a user of its own; a folder may hold the files themselves, or a folder for each split.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nvcim_jax import checks, files
from nvcim_jax.data.json_array import iterate_array
from nvcim_jax.data.records import Record, text_of
from nvcim_jax.signature import checked

__all__ = ["LAMP_TASKS", "PROFILE_FIELDS", "read_lamp", "write_predictions"]

PROFILE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "LaMP_1": ("title", "abstract"),
    "LaMP_2M": ("description", "tag"),
    "LaMP_2N": ("text", "category"),
    "LaMP_3": ("text", "score"),
    "LaMP_4": ("text", "title"),
    "LaMP_5": ("abstract", "title"),
    "LaMP_7": ("text",),
}
"""Task -> the fields of a profile's item. LaMP_2M (movie tags) and LaMP_2N (news) are both LaMP_2 in the files."""

LAMP_TASKS = tuple(PROFILE_FIELDS)
"""The tasks that can be read. LaMP_6 is not among them: its e-mails are not public."""

SPLITS = {"train": "train", "dev": "val", "test": "test"}


def _normal(argument: str, task: str) -> str:
    """Return a task's name as in the files, LaMP_2 standing for both of its variants."""
    name = task.replace("-", "_")
    checks.choice(argument, name, [*LAMP_TASKS, "LaMP_2"])
    return name


def _official(task: str) -> str:
    return "LaMP_2" if task in ("LaMP_2M", "LaMP_2N") else task


def _questions_file(source: Path, split: str | None) -> Path:
    """Return the questions file of a folder, or the file itself."""
    if source.is_file():
        return source
    if not source.is_dir():
        checks.file("source", source)
    names = [split] if split else list(SPLITS)
    found = [
        path
        for name in names
        for folder in (source, source / name)
        for ending in (".json", ".json.gz")
        if (path := folder / f"{name}_questions{ending}").is_file()
    ]
    if len(found) == 1:
        return found[0]
    if found:
        there = ", ".join(path.name for path in found)
        have = [name for name in SPLITS if any(path.name.startswith(f"{name}_") for path in found)]
        # several splits, or one split twice (plain and .gz, here and in a folder of its own)
        fix = f"Choose one, such as split={have[-1]!r} (--split {have[-1]})." if len(have) > 1 else "Name the file."
        argument, wanted = ("split", "be given") if len(have) > 1 else ("source", "hold the questions once")
        checks.fail(argument, wanted, f"{source} holds {there}", fix)
    there = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
    wanted = " or ".join(f"{name}_questions.json" for name in names)
    return checks.fail("source", f"hold {wanted}", f"{source} holds {there}")


def _outputs_file(questions: Path, split: str) -> Path | None:
    """Return the outputs file beside the questions, or None for the test split, whose outputs are not public."""
    beside = questions.with_name(questions.name.replace("_questions", "_outputs"))
    if beside != questions and beside.is_file():
        return beside
    if split == "test":
        return None
    return checks.fail("outputs", "be given where no outputs file is beside the questions", f"there is no {beside}")


def _read_outputs(path: Path) -> tuple[str | None, dict[str, str]]:
    """Return the task's name (None for a bare array) and id -> output."""
    content = files.read_json("outputs", path)
    task = content.get("task") if isinstance(content, dict) else None
    rows = content.get("golds") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        checks.fail("outputs", 'be {"task", "golds"} or an array of {"id", "output"}', f"{path.name} is neither")
    found: dict[str, str] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not {"id", "output"} <= set(row):
            checks.fail("outputs", 'hold rows of {"id", "output"}', f"row {i} of {path.name} is {str(row)[:80]}")
        name, output = text_of(row["id"]), text_of(row["output"])
        if name is None:
            checks.fail("outputs", "name every row by a text or a number", f"row {i} has the id {row['id']!r}")
        if output is None:
            checks.fail("outputs", "hold texts or numbers", f"{path.name} has {row['output']!r} for {name!r}")
        if name in found:
            checks.fail("outputs", "have each id once", f"{path.name} has {name!r} twice")
        found[name] = output
    return task, found


def _named_task(task: str | None, said: str | None, path: Path) -> str:
    """Return the task from the argument, the outputs file or the path; the first two must agree."""
    if said is not None:
        said = _normal("the task in outputs", said)
    if task is not None:
        task = _normal("task", task)
        if said is not None and _official(said) != _official(task):
            checks.fail("task", f"be the task of the outputs file, {said}", f"is {task}")
    if task or said:
        return task if task and task != "LaMP_2" else said or "LaMP_2"
    matches = re.findall(r"LaMP[_-][1-7][MN]?", str(path))
    if not matches:
        checks.fail("task", "be given where neither the outputs nor the path names it", "is None", "Say task='LaMP_3'.")
    return _normal("the task in the path", matches[-1])


def _variant(task: str, question: Mapping[str, Any]) -> str:
    """Return the exact task of a question, after a look at the fields of its profile."""
    items = question["profile"]
    candidates = ("LaMP_2M", "LaMP_2N") if task == "LaMP_2" else (task,)
    for name in candidates:
        if all(isinstance(item, dict) and set(PROFILE_FIELDS[name]) <= set(item) for item in items):
            return name
    have = sorted(set(items[0]) if isinstance(items[0], dict) else [])
    want = " or ".join(", ".join(PROFILE_FIELDS[name]) for name in candidates)
    found = f"question {question['id']} has items of {', '.join(have)}"
    return checks.fail("task", f"fit the profiles ({task}: {want})", found)


def _checked(question: Mapping[str, Any], number: int, path: Path, seen: set[str]) -> str:
    """Return the id of a question after a check of its fields."""
    missing = [name for name in ("id", "input", "profile") if name not in question]
    if missing:
        fix = "It looks like an outputs file." if "output" in question else ""
        checks.fail("source", "have id, input and profile", f"question {number} of {path.name} lacks {missing}", fix)
    for field in ("id", "input"):
        if text_of(question[field]) is None:
            found = f"question {number} of {path.name} has {field} {question[field]!r}"
            checks.fail("source", "hold texts or numbers as id and input", found)
    name = str(question["id"])
    if name in seen:
        checks.fail("source", "have each id once", f"question {number} of {path.name} repeats {name!r}")
    if not isinstance(question["profile"], list):
        checks.fail("source", "have a list as profile", f"question {name} has a {type(question['profile']).__name__}")
    seen.add(name)
    return name


@checked
def read_lamp(
    source: str | Path, outputs: str | Path | None = None, *, task: str | None = None, split: str | None = None
) -> Iterator[Record]:
    """Yield the questions of an official LaMP file, one at a time.

    The questions, whose profiles make the files large, are streamed; ids and outputs are held in memory.

    Args:
        source: A folder with `<split>_questions.json` (or with a folder for each split), or a questions file (or .gz).
        outputs: The outputs file; by default the one beside the questions. The test split may have none.
        task: "LaMP_1", "LaMP_2" (either variant), "LaMP_2M", "LaMP_2N", "LaMP_3", "LaMP_4", "LaMP_5" or "LaMP_7"; by
            default what the outputs file or the path says.
        split: "train", "dev" or "test"; by default the only one in the folder, or what the file's name begins with.

    Returns:
        An iterator of records: `task` is exact (LaMP_2M or LaMP_2N), "dev" is the split "val", `output` is empty where
        it is not public, `user_or_domain` is the user's id where there is one, and `extra` holds the profile as it
        is in the file, and every further field.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the task does not fit the profiles, ids are twice there or without output, or a file is broken.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> item = {"id": "7", "text": "a dull film", "score": "2"}
        >>> questions = json.dumps([{"id": "1", "input": "rate", "profile": [item]}])
        >>> _ = (folder / "dev_questions.json").write_text(questions)
        >>> _ = write_predictions(folder / "dev_outputs.json", "LaMP_3", {"1": "4"})
        >>> [(row.task, row.split, row.output) for row in read_lamp(folder)]
        [('LaMP_3', 'val', '4')]

    References:
        Salemi et al. (2024), LaMP: when large language models meet personalization.
    """
    if split is not None:
        checks.choice("split", split, SPLITS)
    path = _questions_file(Path(source).expanduser(), split)
    beginning = path.name.split("_")[0]
    split = split or (beginning if beginning in SPLITS else None)
    if split is None:
        checks.fail("split", f"be given where the file's name does not begin with {', '.join(SPLITS)}", "is None")
    where = checks.file("outputs", outputs) if outputs is not None else _outputs_file(path, split)
    said, known = _read_outputs(where) if where is not None else (None, None)
    return _read_questions(path, known, _named_task(task, said, path), SPLITS[split])


def _read_questions(path: Path, known: dict[str, str] | None, task: str, split: str) -> Iterator[Record]:
    seen: set[str] = set()
    for number, question in enumerate(iterate_array(path), 1):
        name = _checked(question, number, path, seen)
        if known is not None and name not in known:
            checks.fail("outputs", "have the ids of the questions", f"lacks {name!r} (question {number})")
        if question["profile"]:
            task = _variant(task, question)
        extra = {key: value for key, value in question.items() if key not in ("id", "input", "user_id")}
        user = text_of(question.get("user_id")) or name
        output = known[name] if known is not None else ""
        yield Record(name, user, task, str(question["input"]), output, split, extra)
    unasked = sorted(set(known or ()) - seen)
    if unasked:
        some = ", ".join(unasked[:5]) + (", ..." if len(unasked) > 5 else "")
        checks.fail("outputs", "have the ids of the questions", f"has {len(unasked)} without a question: {some}")


def _prediction(name: str, output: Any) -> str:
    """Return a prediction as text; where there is none it is empty, which counts as a failure."""
    if output is None:
        return ""
    text = text_of(output)
    if text is None:
        checks.fail("predictions", "be texts, numbers or None", f"is {output!r} for {name!r}")
    return text


@checked
def write_predictions(
    path: str | Path, task: str, predictions: Mapping[str, str | None] | Iterable[tuple[str, str | None]]
) -> Path:
    """Write a prediction file for the official evaluator: {"task", "golds": [{"id", "output"}, ..]}.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Args:
        path: The file to write; its folder must exist.
        task: A task of LaMP; LaMP_2M and LaMP_2N are written as LaMP_2, which is what the evaluator knows.
        predictions: Id -> output, or pairs of them; None is written as an empty text, which scores as a failure.

    Returns:
        The path.

    Raises:
        ValueError: If there are no predictions, an id comes twice, or a prediction is no text.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> write_predictions(Path(folder) / "preds.json", "LaMP_2M", {"200": "comedy"}).read_text()
        '{"task": "LaMP_2", "golds": [{"id": "200", "output": "comedy"}]}'
    """
    path = Path(path).expanduser()
    name = _official(_normal("task", task))
    checks.file("path", path.parent, folder=True)
    rows: dict[str, str] = {}
    for row in predictions.items() if isinstance(predictions, Mapping) else predictions:
        if not isinstance(row, tuple | list) or len(row) != 2:
            checks.fail("predictions", "be a mapping, or pairs of an id and a text", f"hold {checks.shown(row)}")
        key, output = row
        if str(key) in rows:
            checks.fail("predictions", "have each id once", f"has {key!r} twice")
        rows[str(key)] = _prediction(str(key), output)
    if not rows:
        checks.fail("predictions", "hold one row at least", "is empty")
    content = {"task": name, "golds": [{"id": key, "output": output} for key, output in rows.items()]}
    return files.write(path, json.dumps(content, ensure_ascii=False))
