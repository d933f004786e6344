"""Files are whole or as they were before, whatever the disk does."""

import csv
import errno
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import files

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def _refuse(number: int):
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_refused_write_leaves_what_was_there(
    where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write(tmp_path / "a.json", "before")
    monkeypatch.setattr(where, _refuse(number))
    with pytest.raises(OSError, match="Could not write") as error:
        files.write(path, "after")
    assert error.value.errno == number
    assert ("make room" in str(error.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("number", REFUSALS)
def test_what_cannot_be_added_whole_is_taken_back(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"
    files.append(path, "first\n")
    monkeypatch.setattr("os.fsync", _refuse(number))
    with pytest.raises(OSError, match="Could not write"):
        files.append(path, "second\n")
    monkeypatch.undo()
    assert path.read_text() == "first\n"
    files.append(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def _half(path: Path, error: type[BaseException]) -> None:
    with files.replacing(path) as part:
        part.write_text("half")
        raise error


def test_an_error_or_an_interrupt_in_between_leaves_nothing(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            _half(tmp_path / "a", error)
    assert os.listdir(tmp_path) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.text("x,\"\n ±'", max_size=5), min_size=1), min_size=1))
def test_tables_come_back(rows: list[dict[str, str]]) -> None:
    found = list(csv.DictReader(io.StringIO(files.csv(rows), newline="")))
    names = list(dict.fromkeys(name for row in rows for name in row))
    assert found == [{name: row.get(name, "") for name in names} for row in rows]


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": [1, 0.1, None, "±"], "b": {}}
    assert json.loads(files.write_json(tmp_path / "a.json", content).read_text(encoding="utf-8")) == content
