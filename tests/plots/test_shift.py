"""Figures of domain shift: what is drawn is what the rows say."""

import numpy as np
import pytest

from nvcim_jax import plots


def row(method: str, sigma: float, mean: float, half: float | None, device: str = "FeFET3") -> dict[str, object]:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    place = {"method": method, "sigma": sigma, "device": device}
    return place | {"accuracy": mean, "accuracy_low": low, "accuracy_high": high}


def test_a_matrix_shows_its_numbers_and_frames_each_blocks_own_domain() -> None:
    R = np.array([[0.9, 0.1], [np.nan, 0.8], [0.7, 1.0]])
    panels = [
        plots.Panel("one", R, ["a", "b", "a"], ["a", "b"]),
        plots.Panel("two", R / 2, ["a", "b", "a"], ["a", "b"]),
    ]
    figure = plots.shift_heatmaps(panels)
    first, second, _ = figure.axes
    assert [text.get_text() for text in first.texts] == [".90", ".10", ".80", ".70", "1.00"]
    np.testing.assert_allclose(
        [patch.get_xy() for patch in first.patches], [(-0.46, -0.46), (0.54, 0.54), (-0.46, 1.54)]
    )
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0.0, 1.0)
    assert plots.png(figure)[:4] == b"\x89PNG"


def test_a_matrix_with_other_names_is_refused() -> None:
    with pytest.raises(ValueError, match="`R` must have shape"):
        plots.shift_heatmaps([plots.Panel("", np.zeros((2, 2)), ["a"], ["a", "b"])])
    with pytest.raises(ValueError, match="`panels` must hold at least one"):
        plots.shift_heatmaps([])


def test_curves_have_their_bands_in_the_order_of_x() -> None:
    rows = [row("NVP*", 0.1, 0.3, 0.05), row("NVP*", 0.0, 0.5, 0.02), row("MIPS", 0.0, 0.4, None)]
    figure = plots.accuracy_curves(rows, levels={"1-NN text": 0.6})
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0.0, 0.5], [0.1, 0.3]])
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.25)
    assert corners[:, 1].max() == pytest.approx(0.52)
    assert axes.lines[2].get_ydata()[0] == 0.6
    assert [text.get_text() for text in figure.legends[0].texts] == ["NVP*", "MIPS", "1-NN text"]
    assert plots.png(figure)[:4] == b"\x89PNG"


def test_bars_stand_in_their_groups() -> None:
    rows = [row(m, 0.1, mean, 0.1, device) for device, m, mean in (("A", "x", 0.2), ("A", "y", 0.3), ("B", "x", 0.4))]
    figure = plots.accuracy_bars(rows, levels={"frozen": 0.05})
    (axes,) = figure.axes
    bars = [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in axes.patches]
    assert bars == [(-0.2, 0.2), (0.8, 0.4), (0.2, 0.3)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "B"]
    with pytest.raises(ValueError, match="`rows` must hold at least one"):
        plots.accuracy_bars([])


def test_as_many_baselines_as_there_are_methods_look_unlike() -> None:
    levels = {f"baseline {i}": 0.1 * i for i in range(1, 9)}
    rows = [row("a", sigma, 0.5, 0.1) for sigma in (0.1, 0.2)]
    for figure in (plots.accuracy_curves(rows, levels=levels), plots.accuracy_bars(rows[:1], levels=levels)):
        (axes,) = figure.axes
        lines = [line for line in axes.lines if str(line.get_label()).startswith("baseline")]
        looks = {(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in lines}
        assert len(looks) == len(lines) == 8
