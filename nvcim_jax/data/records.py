"""One labelled text of one user, and the JSON-lines files that hold many."""

import contextlib
import dataclasses
import gzip
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nvcim_jax import checks, files
from nvcim_jax.signature import checked

__all__ = ["FIELDS", "SPLITS", "Record", "check_records", "read_jsonl", "text_of", "write_jsonl"]

SPLITS = ("train", "val", "test")
"""The names a split can have."""

FIELDS = ("id", "user_or_domain", "task", "input", "output", "split")
"""The fields every line must have; all others go to `extra`."""

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a pair that stands for one character: no encoding can write it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One input of a user, and the answer that this user wants.

    Attributes:
        id: Unique name of the row.
        user_or_domain: Whose row it is, or about what. For scoring only: a method under test never sees it.
        task: Name of the task, such as "intent" or "LaMP_2".
        input: What the language model is asked.
        output: The right answer; empty where it is not known.
        split: "train", "val" or "test".
        extra: Any further fields of the line.

    Example:
        >>> Record("r1", "travel", "intent", "is my flight on time", "flight status", "test").output
        'flight status'
    """

    id: str
    user_or_domain: str
    task: str
    input: str
    output: str
    split: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def check_records(argument: str, records: Iterable[Any]) -> tuple[Record, ...]:
    """Return records as a tuple, after a check that they are records.

    Raises:
        ValueError: If one is something else, such as a line of text or a mapping.

    Example:
        >>> check_records("records", [{"id": "a"}])
        Traceback (most recent call last):
        ...
        ValueError: Argument `records` must hold Records, but row 0 is a dict. Make them with data.Record(**row).
    """
    if isinstance(records, str | Path):
        checks.fail(argument, "hold Records", f"is {str(records)!r}", "Read a file with list(data.read_jsonl(path)).")
    if isinstance(records, Mapping) or not isinstance(records, Iterable) or getattr(records, "ndim", 1) == 0:
        checks.fail(argument, "hold Records", f"is a {type(records).__name__}", "Give a list of them.")
    rows = tuple(records)
    for i, row in enumerate(rows):
        if not isinstance(row, Record):
            fix = "Read a file with data.read_jsonl." if isinstance(row, str) else "Make them with data.Record(**row)."
            checks.fail(argument, "hold Records", f"row {i} is a {type(row).__name__}", fix)
    return rows


def text_of(value: Any) -> str | None:
    """Return a text or a finite number of a JSON file as text; None for anything else, null and true among them."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else str(value)


def _parse(line: str, where: str) -> Record:
    """Return the record of one line, or name the line and what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        checks.fail("path", "hold one JSON object a line", f"{where} is none: {error.msg} at column {error.colno}")
    except RecursionError:
        checks.fail("path", "hold one JSON object a line", f"{where} nests too deeply")
    if not isinstance(row, dict):
        checks.fail("path", "hold one JSON object a line", f"{where} is a {type(row).__name__}")
    missing = [name for name in FIELDS if name not in row]
    if missing:
        fix = " ".join(checks.suggestion(name, row) for name in missing[:1] if row)
        checks.fail("path", f"have the fields {', '.join(FIELDS)}", f"{where} lacks {', '.join(missing)}", fix)
    if row["split"] not in SPLITS:
        found = f"{where} has split {row['split']!r}"
        checks.fail("path", f"have a split of {', '.join(SPLITS)}", found, checks.suggestion(str(row["split"]), SPLITS))
    for name in FIELDS:
        if text_of(row[name]) is None:
            checks.fail("path", "hold texts or numbers", f"{where} has {name} {row[name]!r}")
        if _HALF.search(str(row[name])):
            checks.fail("path", "hold whole characters", f"{where} has half of one in {name}: {row[name]!r}")
    extra = {name: value for name, value in row.items() if name not in FIELDS}
    return Record(*(str(row[name]) for name in FIELDS), extra=extra)


@checked
def read_jsonl(path: str | Path) -> Iterator[Record]:
    """Yield the records of a JSON-lines file (plain or .gz), one at a time.

    Args:
        path: The file. Each line is an object with the fields of `FIELDS`; further ones go to `extra`.

    Returns:
        An iterator; the file is read as it goes, and only the ids are kept in memory.

    Raises:
        FileNotFoundError: If there is no such file; the message names the nearest.
        ValueError: If a line is no JSON object, lacks a field, has an unknown split, half a character or repeats an id
            (the message gives the line), or if the file is no text: binary, in another encoding, a web page, cut short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl.gz"
        >>> write_jsonl(path, [Record("a", "u", "t", "x", "y", "train", {"year": 1999})])
        1
        >>> [(row.id, row.extra["year"]) for row in read_jsonl(path)]
        [('a', 1999)]
    """
    return _read(checks.file("path", path))


def _read(path: Path) -> Iterator[Record]:
    lines: dict[str, int] = {}
    with files.reading("path", path, kind="JSON lines in UTF-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = _parse(line, f"line {number} of {path.name}")
            if record.id in lines:
                found = f"line {number} of {path.name} repeats id {record.id!r} of line {lines[record.id]}"
                checks.fail("path", "have each id once", found)
            lines[record.id] = number
            yield record


@checked
def write_jsonl(path: str | Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines, whole or not at all, gzipped where the name ends in .gz.

    Args:
        path: The file to write; its folder must exist.
        records: The records, in order.

    Returns:
        Their number.

    Raises:
        ValueError: If one is no record, or a field of its `extra` has the name of a field of the record.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
        >>> write_jsonl(path, [Record("a", "u", "t", "x", "y", "train", {"year": 1999})])
        1
        >>> json.loads(path.read_text())["year"]  # `extra` lies beside the fields
        1999
    """
    path = Path(path)
    checks.file("path", path.parent, folder=True)
    number = 0
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(stack.enter_context(files.replacing(path)).open("wb"))
        if path.suffix == ".gz":  # neither a name nor a time inside: the same records are the same bytes
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        for record in check_records("records", records):
            clash = sorted(set(FIELDS) & set(record.extra))
            if clash:
                checks.fail("records", f"leave {', '.join(FIELDS)} out of `extra`", f"{record.id} has {clash[0]} there")
            row = {name: getattr(record, name) for name in FIELDS} | dict(record.extra)
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            number += 1
    return number
