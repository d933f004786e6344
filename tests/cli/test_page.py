"""The page of a run: well-formed, whole in one file, with what was said and nothing that a text could smuggle in."""

import base64
import csv
import html.parser
import io
import json
import re
from pathlib import Path

import pytest
from support.study_records import records

from nvcim_jax import cli
from nvcim_jax.cli.page import Table, page

VOID = {"meta", "input", "br"}


class Reader(html.parser.HTMLParser):
    """Read a page, and refuse what is not nested as it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def test_a_text_is_a_text_and_no_element() -> None:
    nasty = "<script>alert(1)</script>"
    read = Reader(
        page(
            nasty, [Table(nasty, [{nasty: nasty, "n": 0.25}])], {nasty: "<svg></svg>"}, {nasty: nasty}, {"a.csv": nasty}
        )
    )
    assert read.open == []
    assert read.cells == [nasty, "0.25"]
    assert read.tags.count("script") == 1


def test_a_run_becomes_one_file_that_needs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records(2))
    (tmp_path / "records.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"command": "nvcim run --seed 3", "seed": 3}), encoding="utf-8")
    assert cli.main(["report", str(tmp_path), "--no-plots", "--html"]) == 0
    assert "report.html" in capsys.readouterr().out
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = Reader(made)
    assert read.open == []
    assert "NVCiM-PT" in read.cells
    assert read.tags.count("svg") == 2
    assert "nvcim run --seed 3" in made
    outside = [link for link in read.links if not link.startswith(("data:", "#"))]
    assert outside == []
    assert not re.search(r"url\((?!#)", made)
    summary, data = [link for link in read.links if link.startswith("data:text/csv")]
    assert "NVCiM-PT" in base64.b64decode(summary.partition(",")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data.partition(",")[2]).decode())))
    assert len(rows) == len(records(2))
    assert {path.name for path in tmp_path.iterdir()} == {"records.jsonl", "config.json", "report.html"}


def test_the_same_run_is_the_same_page(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(1)), encoding="utf-8")
    found = []
    for _ in range(2):
        cli.main(["report", str(tmp_path), "--no-plots", "--html"])
        found.append((tmp_path / "report.html").read_bytes())
    assert found[0] == found[1]


def test_a_sweep_becomes_one_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--set inputs=16 --set outputs=8 --set batch=2 --instances 4"
    assert cli.main(["sweep", "--axis", "sigma=.05,.1", *words.split(), "--out", str(tmp_path), "--no-plots"]) == 0
    assert cli.main(["report", str(tmp_path), "--no-plots", "--html"]) == 0
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = Reader(made)
    assert read.open == []
    assert read.tags.count("svg") == 4  # distribution, spread, band and yield
    assert "nvcim sweep --axis sigma=.05,.1" in made
    assert "jaxlib" in made
    assert [link for link in read.links if not link.startswith(("data:", "#"))] == []
    _, data = [link for link in read.links if link.startswith("data:text/csv")]
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(data.partition(",")[2]).decode())))
    assert len(rows) == 8
    assert {row["sigma"] for row in rows} == {"0.05", "0.1"}
