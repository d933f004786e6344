"""The crossbar benchmark runs, and its arithmetic is right."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks import common, crossbar, digits, network, workload
from experiments.benchmarks.common import Samples
from experiments.benchmarks.crossbar import Comparison

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_tiny_benchmark_prints_its_tables_and_writes_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.benchmarks.crossbar", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for expected in ("device tiny", "output_joint tiny", "counter, in pairs", "peak memory"):
        assert expected in done.stdout
    records = [json.loads(line) for line in (tmp_path / "crossbar_cpu.jsonl").read_text().splitlines()]
    assert records[0]["machine"]["cores"] >= 1
    timed = {(r["tool"], r["case"]): r for r in records if "case" in r}
    for record in timed.values():
        assert len(record["cpu_s"]) == len(record["wall_s"]) == 2
        assert min(record["cpu_s"]) > 0
    assert ("numpy", "matmul tiny") in timed
    assert [r["memory"]["num"] for r in records if "memory" in r] == [2, 8]


def test_targets_are_held_against_the_right_side_of_the_ratio() -> None:
    ours, theirs = Samples([1.0, 1.0, 2.0], [1.0] * 3), Samples([3.0, 2.0, 4.0], [2.0] * 3)
    faster = Comparison("device", "aihwkit", "device", least=2.0)
    assert crossbar.quotient(faster, ours, theirs, "cpu_s") == common.Ratio(2.0, 2.0, 3.0)
    assert [crossbar.verdict(faster, value) for value in (1.99, 2.0)] == ["no", "yes"]
    longer = Comparison("no_noise", "numpy", "matmul", most=1.1)
    assert crossbar.quotient(longer, ours, theirs, "cpu_s") == common.Ratio(0.5, 1 / 3, 0.5)
    assert [crossbar.verdict(longer, value) for value in (1.11, 1.1)] == ["no", "yes"]
    assert crossbar.verdict(Comparison("a", "torch", "b"), 0.1) == ""


def test_a_side_that_lacks_its_tool_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "absent_side.py").write_text(
        "from experiments.benchmarks.common import serve\nserve('absent', dict, ['no_such_tool'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert common.start(sys.executable, "absent_side", [], None) is None


def test_a_side_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "failing_side.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="exit status 3"):
        common.start(sys.executable, "failing_side", [], None)


def test_the_workload_is_that_of_the_comparison() -> None:
    x, weights = workload.inputs_and_weights(workload.SHAPES["1024x1024"])
    assert x.shape == (64, 1024)
    assert weights.shape == (1024, 1024)
    assert abs(x).max() <= 1.0
    assert abs(float(weights.std()) * 32 - 1.0) < 0.01  # 1 / sqrt(rows)


@pytest.mark.slow
def test_tiny_network_benchmark_prints_its_tables_and_writes_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.benchmarks.network", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "nvcim_jax dense, one network" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "network_cpu.jsonl").read_text().splitlines()]
    timed = {record["case"]: record for record in records if "case" in record}
    assert {"dense", "convolutional", "dense, its products", "convolutional, written by hand"} <= set(timed)
    for record in timed.values():
        assert len(record["cpu_s"]) == 2
        assert min(record["cpu_s"]) > 0
    assert 0.5 < timed["dense"]["accuracy"] < 1.0


def test_targets_of_the_network_benchmark() -> None:
    fast, slow = ("nvcim_jax", "dense"), ("torch", "dense")
    assert [network.verdict(network.Comparison(fast, slow, least=3.0), r) for r in (2.9, 3.0)] == ["no", "yes"]
    assert [network.verdict(network.Comparison(fast, slow, most=1.1), r) for r in (1.2, 1.1)] == ["no", "yes"]
    assert network.verdict(network.Comparison(fast, slow), 9.0) == ""


def test_the_networks_of_the_benchmark_read_digits() -> None:
    found = digits.networks()
    scores = np.maximum(found.images @ found.dense[0], 0.0) @ found.dense[1]
    assert (scores.argmax(axis=1) == found.labels).mean() > 0.9
    seen = digits.patches(found.images.reshape(-1, 8, 8, 1))
    assert seen.shape == (450, 4, 4, 9)
    np.testing.assert_array_equal(seen[:, 1, 2, 5], found.images.reshape(-1, 8, 8)[:, 3, 6])
