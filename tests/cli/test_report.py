"""`nvcim report`: its intervals against the closed form, and one line for a folder without records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvcim_jax import cli
from nvcim_jax.cli.report import table

CHIPS = ([0.5, 0.7], [0.4, 0.8], [0.9, 0.9])


def _records(streams: int) -> list[dict[str, Any]]:
    place = {"kind": "block", "device": "FeFET3", "sigma": 0.1, "trained_for": "FeFET3 0.1", "method": "NVCiM-PT"}
    return [
        {**place, "stream": s, "block": 1, "current": "b", "instance": i, "domain": domain, "role": role, "queries": 10}
        | {"accuracy": chip[k] - 0.1 * s, "hit": 1.0 if k else 0.5}
        for s in range(streams)
        for i, chip in enumerate(CHIPS)
        for k, (domain, role) in enumerate((("a", "previous"), ("b", "current")))
    ]


def test_one_stream_gets_the_interval_of_its_chips_and_several_that_of_the_streams() -> None:
    means = np.array([np.mean(chip) for chip in CHIPS])
    row = table(_records(1))[0]
    # Student with two degrees of freedom: 4.3027
    half = 4.302653 * means.std(ddof=1) / 3**0.5
    assert row["accuracy"] == pytest.approx(means.mean())
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((means.mean() - half, means.mean() + half))
    assert (row["hit"], row["hit_low"], row["hit_high"]) == pytest.approx((0.75, 0.75, 0.75))
    row = table(_records(2))[0]
    # Two stream means 0.1 apart, one degree of freedom: 12.7062 * 0.1 / sqrt(2) / sqrt(2)
    half = 12.706205 * 0.05
    assert row["accuracy"] == pytest.approx(means.mean() - 0.05)
    assert row["accuracy_high"] - row["accuracy"] == pytest.approx(half, rel=1e-5)


def test_table_and_figures_come_from_the_records_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in _records(1))
    (tmp_path / "records.jsonl").write_text(lines, encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "NVCiM-PT" in said
    assert "0.700" in said
    written = {path.name for path in tmp_path.iterdir()} - {"records.jsonl"}
    assert written == {"accuracy.png", "hit.png"}
    assert all(str(tmp_path / name) in said for name in written)


@pytest.mark.parametrize(("make", "message"), [(True, "must hold records.jsonl"), (False, "must name a folder")])
def test_a_folder_without_records_gets_one_line(
    make: bool, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    assert cli.main(["report", str(folder)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("nvcim report: ")
    assert said.err.count("\n") == 1
    assert message in said.err
