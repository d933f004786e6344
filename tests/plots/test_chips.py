"""Figures of chips draw what the records hold."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvcim_jax.plots import chips, png


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


def test_ecdf_counts_a_failed_chip_as_never_reached(records: chips.Records) -> None:
    figure = chips.ecdf(records, "loss")
    first, second = figure.axes[0].lines[:2]
    assert first.get_label() == "sigma 0.1"
    assert [axes.get_title() for axes in figure.axes] == ["device A", "device B"]
    assert first.get_ydata()[-1] == pytest.approx(49 / 50)
    assert second.get_ydata()[-1] == 1.0
    good = np.sort(records.columns["loss"][:50])[:49]
    np.testing.assert_array_equal(first.get_xdata(), good)


def test_band_holds_mean_and_quantiles(records: chips.Records) -> None:
    line = chips.band(records, "loss", "sigma").axes[0].lines[1]
    assert line.get_label() == "device B"
    np.testing.assert_array_equal(line.get_xdata(), [0.1, 0.2, 0.3])
    assert line.get_ydata()[1] == pytest.approx(records.columns["loss"][200:250].mean())


def test_yield_counts_a_failed_chip_as_bad(records: chips.Records) -> None:
    figure = chips.yield_curve(records, "loss", "sigma", bound=1e9)
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([0.98, 1.0, 1.0])


def test_violin_draws_every_group(records: chips.Records) -> None:
    assert [len(axes.get_xticks()) for axes in chips.violin(records, "loss").axes] == [3, 3]


def test_bad_input_is_named(records: chips.Records, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        chips.ecdf(records, "los")
    with pytest.raises(ValueError, match="`x` must be one of sigma"):
        chips.band(records, "loss", "device")
    with pytest.raises(ValueError, match="`path` must be a file of records"):
        chips.load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="has no axes"):
        chips.load(tmp_path / "b.parquet")


def _grid(path: Path, command: str) -> chips.Records:
    """Three axes in the order of the alphabet, as records have them, of two chips each."""
    values = [(bits, device, sigma) for bits in (4, 8, 12) for device in ("FeFET3", "PCM") for sigma in (0.1, 0.2)]
    bits, device, sigma = (np.repeat(column, 2) for column in zip(*values, strict=True))
    columns = {"adc_bits": bits, "device": device, "sigma": sigma, "instance": np.tile([0, 1], 12)}
    table = pa.table(columns | {"error": np.linspace(0.01, 2.0, 24)})
    about = {"axes": json.dumps(["adc_bits", "device", "sigma"]), "command": command}
    pq.write_table(table.replace_schema_metadata(about), path)
    return chips.load(path)


@pytest.mark.parametrize(
    ("command", "order"),
    [
        ("nvcim sweep --axis sigma=.1,.2 --axis adc_bits=4,8", ("sigma", "adc_bits", "device")),
        ("nvcim sweep --axis=device=FeFET3 --set sigma=.1", ("device", "adc_bits", "sigma")),
        ("", ("adc_bits", "device", "sigma")),
    ],
)
def test_the_axis_named_first_comes_first(command: str, order: tuple[str, ...], tmp_path: Path) -> None:
    found = _grid(tmp_path / "records.parquet", command)
    assert found.axes == order
    assert chips.number_axes(found) == [name for name in order if name != "device"]


def test_legends_lie_below_and_take_no_room_from_the_curves(tmp_path: Path) -> None:
    made = _grid(tmp_path / "records.parquet", "")._replace(labels={"sigma": "sigma (share of g_max)"})
    for figure in (chips.ecdf(made, "error"), chips.band(made, "error", "sigma")):
        assert figure.axes[0].get_legend() is None
        (legend,) = figure.legends
        png(figure)
        below = legend.get_window_extent().y1
        assert below <= min(axes.get_tightbbox().y0 for axes in figure.axes)
        assert figure.axes[0].get_window_extent().height / figure.dpi > 1.0  # inches, however long the legend
    assert figure.axes[-1].get_xlabel() == "sigma (share of g_max)"


def test_values_over_decades_get_a_logarithmic_axis(tmp_path: Path) -> None:
    made = _grid(tmp_path / "records.parquet", "")
    assert chips.ecdf(made, "error").axes[0].get_xscale() == "log"
    with_zero = made.columns | {"error": made.columns["error"] * (made.columns["instance"] > 0)}
    assert chips.ecdf(made._replace(columns=with_zero), "error").axes[0].get_xscale() == "linear"


def test_several_axes_are_small_multiples_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    made = _grid(tmp_path / "records.parquet", "nvcim --axis device=FeFET3,PCM --axis adc_bits=4,8 --axis sigma=1")
    figure = chips.ecdf(made, "error")
    names = [f"device {device}, adc_bits {bits}" for device in ("FeFET3", "PCM") for bits in (4, 8, 12)]
    assert [axes.get_title() for axes in figure.axes] == names
    assert [line.get_label() for line in figure.axes[0].lines] == ["sigma 0.1", "sigma 0.2"]
    figure = chips.band(made, "error", "adc_bits")
    assert [axes.get_title() for axes in figure.axes] == ["device FeFET3", "device PCM"]
    assert {axes.get_ylim() for axes in figure.axes} == {figure.axes[0].get_ylim()}


def test_a_figure_says_what_it_shows(records: chips.Records) -> None:
    made = records._replace(about="A, sigma 0.1")
    for figure, wanted in (
        (chips.ecdf(made, "loss"), "A, sigma 0.1; 50 chips each"),
        (chips.violin(made, "loss"), "A, sigma 0.1; 50 chips each; bar: 1 % to 99 % of chips, dot: median"),
        (chips.band(made, "loss", "sigma"), "A, sigma 0.1; 50 chips a point; band: 5 % to 95 % of chips"),
        (
            chips.yield_curve(made, "loss", "sigma", bound=1.0),
            "A, sigma 0.1; 50 chips a point; good: loss <= 1",
        ),
    ):
        assert " ".join(figure.get_suptitle().split()) == wanted
    fewer = made._replace(columns={name: column[:-10] for name, column in made.columns.items()})
    assert "40 to 50 chips a point" in chips.band(fewer, "loss", "sigma").get_suptitle()
