"""Every experiment with a tiny variant runs as its head says, and leaves records and figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.shift import settings
from nvcim_jax import data, pipeline, selection

ROOT = Path(__file__).parent.parent
TINY = sorted(
    path.parent.name
    for path in (ROOT / "experiments").glob("*/run.py")
    if "--tiny" in path.read_text(encoding="utf-8") and "--out" in path.read_text(encoding="utf-8")
)
SHIFT = [
    name for name in TINY if "experiments.shift.measure" in (ROOT / "experiments" / name / "run.py").read_text("utf-8")
]

# One process for all experiments on domain shift, so that what they share is compiled once.
RUN_ALL = """
import importlib, pathlib, sys
from experiments.shift import draw, measure
for name in sys.argv[2:]:
    out = str(pathlib.Path(sys.argv[1], name))
    run, plot = (importlib.import_module(f"experiments.{name}.{part}") for part in ("run", "plot"))
    measure.main(run.NAME, run.CONFIGS, ["--tiny", "--out", out])
    draw.main(plot.FIGURES, [out])
"""


def _python(words: list[str | Path], seconds: float = 900.0) -> str:
    """Run Python in the root of the repository, compiled as quickly as these tests are, and return what it printed."""
    ran = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_there_are_experiments_to_run() -> None:
    assert "1_output_error" in TINY


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TINY if name not in SHIFT])
def test_the_tiny_variant_writes_records_and_figures(name: str, tmp_path: Path) -> None:
    folder = ROOT / "experiments" / name
    _python([folder / "run.py", "--tiny", "--out", tmp_path])
    if not list(tmp_path.rglob("*.png")):
        _python([folder / "plot.py", tmp_path])
    _check_files(tmp_path)
    if name == "1_output_error":
        _check_output_error(tmp_path)


def _check_files(folder: Path) -> None:
    """Check that there are records and figures, and that none is empty."""
    records = [path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".csv", ".parquet")]
    assert records
    assert all(path.stat().st_size > 0 for path in records)
    figures = list(folder.rglob("*.png"))
    assert figures
    for path in figures:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 5000  # more than empty axes


@pytest.mark.slow
def test_the_tiny_variants_on_domain_shift_write_records_and_figures(tmp_path: Path) -> None:
    assert [name[0] for name in SHIFT] == ["2", "3", "4", "5", "6", "7", "9"]
    _python(["-c", RUN_ALL, tmp_path, *SHIFT], seconds=900.0)
    for name in SHIFT:
        _check_files(tmp_path / name)
        lines = (tmp_path / name / "records.jsonl").read_text(encoding="utf-8").splitlines()
        for record in map(json.loads, lines):
            assert 0.0 <= record["accuracy"] <= 1.0
            if record["method"] == "oracle route" and record["role"] in ("current", "previous"):
                assert record["hit"] == 1.0
        assert f"experiments.{name}.run" in json.loads((tmp_path / name / "run.json").read_text("utf-8"))["command"]


@pytest.mark.parametrize("name", SHIFT)
def test_the_head_names_the_command(name: str) -> None:
    for part in ("run", "plot"):
        text = (ROOT / "experiments" / name / f"{part}.py").read_text(encoding="utf-8")
        assert f"Command:  python -m experiments.{name}.{part} " in text


def _check_output_error(folder: Path) -> None:
    """Hold every point against its expectation without drawing, and the record against what it must say."""
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert about["command"].startswith("python -m experiments.1_output_error.run --tiny")
    assert set(about["versions"]) >= {"nvcim_jax", "jax"}
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(list(folder.glob("*.png"))) == len({record["figure"] for record in records}) == 5
    assert sum(record["expected"] is not None for record in records) > 10
    for record in records:
        assert record["num_chips"] >= 30
        assert record["num_nonfinite"] == 0
        assert record["low"] <= record["relative_rms_error"] <= record["high"]
        if record["expected"] is not None:
            # 95 % intervals of some twenty points: two and a half of them wide, and 1 % for the range of each read
            reach = 2.5 * (record["high"] - record["low"]) / 2 + 0.01 * record["expected"]
            assert abs(record["relative_rms_error"] - record["expected"]) < reach, record["series"]


@pytest.mark.slow
def test_most_prompts_of_the_experiments_hold_one_answer() -> None:
    if data.data_folder("clinc150") is None:
        pytest.skip("no folder clinc150 in NVCIM_DATA or ../shared/data")
    chosen = settings.Settings()
    (lm, text), (stream,) = settings.language_model(chosen), settings.streams(chosen, [0])
    answers = []
    for t, block in enumerate(stream.blocks):
        centres = pipeline.make_buffer(block.records, lm, text, config=chosen.preset.config).centres
        _, clusters = selection.representative(jax.random.key(t), centres)
        for own in range(5):
            held = [row.output for row, k in zip(block.records, clusters.assignment, strict=True) if int(k) == own]
            answers.append(len(set(held)))
    assert len(answers) == 20
    assert answers.count(1) >= 17
