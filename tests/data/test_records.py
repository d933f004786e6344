"""Record files: round trips, and one clear line for everything that can be wrong with one."""

import gzip
import json
from pathlib import Path

import pytest

from nvcim_jax.data import Record, read_jsonl, write_jsonl

ROW = {"id": "a", "user_or_domain": "u", "task": "t", "input": "x", "output": "y", "split": "train"}


def _write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_round_trip_keeps_every_field(tmp_path: Path, name: str) -> None:
    rows = [Record("a", "u", "t", "naïve — x", "y\nz", "train", {"ts": 3}), Record("b", "u", "t", "", "", "test")]
    assert write_jsonl(tmp_path / name, rows) == 2
    assert list(read_jsonl(tmp_path / name)) == rows


def test_reads_as_it_goes(tmp_path: Path) -> None:
    path = _write(tmp_path / "rows.jsonl", json.dumps(ROW), "{broken")
    rows = read_jsonl(path)
    assert next(rows).id == "a"
    with pytest.raises(ValueError, match=r"line 2 of rows\.jsonl is none"):
        next(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**ROW, "id": "a"}), "line 2 of rows.jsonl repeats id 'a' of line 1"),
        (json.dumps({k: v for k, v in ROW.items() if k != "output"}), "line 2 of rows.jsonl lacks output"),
        (
            json.dumps({**ROW, "id": "b", "split": "trian"}),
            "line 2 of rows.jsonl has split 'trian'.*Did you mean 'train'",
        ),
        (json.dumps({**ROW, "id": "b", "input": None}), "line 2 of rows.jsonl has input None"),
        (
            json.dumps({**ROW, "id": "b", "input": "a\ud800b"}),
            r"line 2 of rows.jsonl has half of one in input: 'a\\ud800b'",
        ),
        ("[1]", "line 2 of rows.jsonl is a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_jsonl(_write(tmp_path / "rows.jsonl", json.dumps(ROW), line)))


def test_a_page_saved_as_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="HTML page"):
        list(read_jsonl(_write(tmp_path / "rows.jsonl", "<!DOCTYPE html>", "<html></html>")))


def test_a_wrong_path_names_what_is_near(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "clinc.jsonl", [])
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'clinc\.jsonl'"):
        read_jsonl(tmp_path / "clinc.json")
    with pytest.raises(FileNotFoundError, match=r"has no 'nowhere'"):
        read_jsonl(tmp_path / "nowhere" / "deep" / "clinc.jsonl")
    with pytest.raises(FileNotFoundError, match="is not one"):
        read_jsonl(tmp_path)


def test_a_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode())[:-12])
    with pytest.raises(ValueError, match=r"must be JSON lines .* cut short\. Fetch it again"):
        list(read_jsonl(path))


def test_extra_fields_must_not_hide_a_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`extra`"):
        write_jsonl(tmp_path / "rows.jsonl", [Record("a", "u", "t", "x", "y", "train", {"split": "test"})])
