"""The worked example runs in its tiny form, and what it fits holds the truth."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """Return the module as `python -m` in the root of the repository would find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("experiments.measured_device.run")


@pytest.mark.slow
def test_the_tiny_example_fits_its_truth_and_writes_its_files(example, tmp_path: Path, capsys) -> None:
    example.main(["--tiny", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "tiny.json").read_text())
    for kind in ("sigma", "mean"):
        fitted, error, truth = (
            np.array(record[name]) for name in (f"{kind}_us", f"{kind}_error_us", f"true_{kind}_us")
        )
        assert np.all(np.abs(fitted - truth) < 5 * error)
    assert abs(record["d2d_us"] - record["true_d2d_us"]) < 5 * record["d2d_error_us"]
    assert np.abs(record["device_mean_score"]).max() < 5
    drawn = (tmp_path / "tiny.png").read_bytes()
    assert len(drawn) > 10_000
    plot = importlib.import_module("experiments.measured_device.plot")
    plot.main([str(tmp_path / "tiny.json")])
    assert (tmp_path / "tiny.png").read_bytes() == drawn
    printed = capsys.readouterr().out
    assert printed.count("\n") == 13
    assert "device-to-device sigma: true 0.600" in printed


def test_another_seed_gives_other_records_and_the_same_seed_the_same(example, tmp_path: Path) -> None:
    texts = []
    for index, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{index}.csv"
        example.simulate(example.Config(num_cells=2, repeats=2, seed=seed), path)
        texts.append(path.read_text())
    assert texts[0] == texts[1] != texts[2]
