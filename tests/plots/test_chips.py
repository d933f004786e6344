"""Figures of chips draw what the records hold."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvcim_jax.plots import chips


@pytest.fixture
def records(tmp_path: Path) -> chips.Records:
    rng = np.random.default_rng(0)
    sigma, device = np.repeat([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], 50), np.repeat(["A", "B"], 150)
    loss = sigma * rng.exponential(size=300) * np.where(device == "A", 1, 2)
    loss[7] = np.nan
    table = pa.table({"device": device, "sigma": sigma, "instance": np.tile(np.arange(50), 6), "loss": loss})
    path = tmp_path / "records.parquet"
    pq.write_table(table.replace_schema_metadata({"axes": json.dumps(["device", "sigma"]), "command": "make"}), path)
    return chips.load(path)


class Drawn:
    """The axes of the figure that a call saves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.axes = None
        save = chips._save

        def spy(figure, axes, *rest):
            self.axes = axes
            return save(figure, axes, *rest)

        monkeypatch.setattr(chips, "_save", spy)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def test_ecdf_counts_a_failed_chip_as_never_reached(records: chips.Records, tmp_path: Path, drawn: Drawn) -> None:
    assert chips.ecdf(records, "loss", tmp_path / "a.png").stat().st_size > 1000
    assert drawn.axes is not None
    first, second = drawn.axes.lines[:2]
    assert first.get_label() == "device A, sigma 0.1"
    assert first.get_ydata()[-1] == pytest.approx(49 / 50)
    assert second.get_ydata()[-1] == 1.0
    good = np.sort(records.columns["loss"][:50])[:49]
    np.testing.assert_array_equal(first.get_xdata(), good)


def test_band_holds_mean_and_quantiles(records: chips.Records, tmp_path: Path, drawn: Drawn) -> None:
    chips.band(records, "loss", "sigma", tmp_path / "a.png")
    assert drawn.axes is not None
    line = drawn.axes.lines[1]
    assert line.get_label() == "device B"
    np.testing.assert_array_equal(line.get_xdata(), [0.1, 0.2, 0.3])
    assert line.get_ydata()[1] == pytest.approx(records.columns["loss"][200:250].mean())


def test_yield_counts_a_failed_chip_as_bad(records: chips.Records, tmp_path: Path, drawn: Drawn) -> None:
    chips.yield_curve(records, "loss", "sigma", tmp_path / "a.png", bound=1e9)
    assert drawn.axes is not None
    assert list(drawn.axes.lines[0].get_ydata()) == pytest.approx([0.98, 1.0, 1.0])


def test_violin_draws_every_group(records: chips.Records, tmp_path: Path, drawn: Drawn) -> None:
    chips.violin(records, "loss", tmp_path / "a.png")
    assert drawn.axes is not None
    assert len(drawn.axes.get_xticks()) == 6


def test_bad_input_is_named(records: chips.Records, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        chips.ecdf(records, "los", tmp_path / "a.png")
    with pytest.raises(ValueError, match="`x` must be one of sigma"):
        chips.band(records, "loss", "device", tmp_path / "a.png")
    with pytest.raises(ValueError, match="`path` must be a file of records"):
        chips.load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="has no axes"):
        chips.load(tmp_path / "b.parquet")
