"""The benchmark of Monte Carlo runs, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_tiny_benchmark_prints_its_table_and_writes_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.benchmarks.montecarlo", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for expected in ("run / bare map, 20 instances", "run, saved / bare map", "peak memory of 5,000 cheap"):
        assert expected in done.stdout
    records = [json.loads(line) for line in (tmp_path / "montecarlo_cpu.jsonl").read_text().splitlines()]
    assert records[0]["command"] == "python -m experiments.benchmarks.montecarlo"
    assert [r["case"] for r in records if "case" in r] == ["bare", "run", "run, saved"]
    assert all(len(r["cpu_s"]) == 2 and min(r["cpu_s"]) > 0 for r in records if "case" in r)
    assert [r["num_instances"] for r in records if "num_instances" in r] == [100, 5000]
