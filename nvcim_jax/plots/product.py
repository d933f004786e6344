"""Figures of the error of a noisy product: its distribution over chips, and how it depends on one number."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.plots.figure import COLOURS, MARKERS, new_figure, style
from nvcim_jax.signature import checked

__all__ = ["Curve", "error_curves", "error_distribution", "error_groups"]


class Curve(NamedTuple):
    """One series of measured points, each with its interval, and what theory says.

    Attributes:
        label: Name in the legend.
        x: Positions (points,).
        error: Relative error at each (points,), a share, not per cent.
        low: Lower end of its 95 % interval (points,).
        high: Upper end (points,).
        expected: Relative error in theory at the same positions (points,), NaN where there is none.
    """

    label: str
    x: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    expected: np.ndarray


@checked
def error_distribution(
    values: np.ndarray, quantiles: dict[float, float], *, closed_form: float | None = None, title: str = ""
) -> Any:
    """Draw the share of chips whose error is at most x, with quantiles marked.

    Args:
        values: Relative error of each chip (chips,), a share; non-finite ones count as chips and are never reached.
        quantiles: Level -> value, in the unit of `values`.
        closed_form: Expected error without converters, drawn as a line; None leaves it out.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no chip.

    Example:
        >>> axes = error_distribution(np.array([0.02, 0.01, np.inf, 0.04]), {0.5: 0.02}).axes[0]
        >>> axes.lines[0].get_xydata().tolist()  # in per cent; what is not finite is never reached
        [[1.0, 0.25], [2.0, 0.5], [4.0, 0.75]]
    """
    if not len(values):
        checks.fail("values", "hold at least one chip", "is empty")
    order = 100 * np.sort(values[np.isfinite(values)])
    for numbers in (values, [*quantiles], [*quantiles.values()]):
        checks.real("values" if numbers is values else "quantiles", numbers)
    with style():
        figure, axes = new_figure()
        axes.step(order, np.arange(1, len(order) + 1) / len(values), where="post", color=COLOURS[0], label="chips")
        known = {level: 100 * value for level, value in quantiles.items() if np.isfinite(value)}
        axes.plot([*known.values()], [*known], marker="o", color=COLOURS[1], linestyle="none", label="quantiles")
        lines = [f"{level:.0%} of chips: {value:.3g} %" for level, value in sorted(known.items(), reverse=True)]
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
        axes.text(0.99, 0.04, "\n".join(lines), transform=axes.transAxes, ha="right", fontsize=6.5, bbox=box)
        if closed_form is not None:
            label = "closed form (ideal converters)"
            axes.axvline(100 * closed_form, color=COLOURS[2], linestyle="--", label=label)
        axes.set(xlabel="relative error of the product (%)", ylabel="share of chips", ylim=(0, 1.06))
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


@checked
def error_curves(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    x_log: bool = False,
    y_log: bool = True,
    xticks: Sequence[float] | None = None,
    floor: tuple[float, str] | None = None,
    legend_columns: int = 2,
) -> Any:
    """Draw measured errors as points with intervals, and theory as lines.

    Args:
        curves: The series, at most as many as there are colours.
        xlabel: Quantity and unit of the horizontal axis.
        x_log: Whether the horizontal axis is logarithmic.
        y_log: Whether the vertical axis is.
        xticks: Where the horizontal axis has its numbers; None leaves it to matplotlib.
        floor: A level with its name, drawn across.
        legend_columns: Columns of the legend below the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no curves, or more than colours.

    Example:
        >>> x, error = np.array([0.0, 1.0]), np.array([0.01, 0.02])
        >>> curve = Curve("chip", x, error, 0.9 * error, 1.1 * error, expected=error)
        >>> axes = error_curves([curve], xlabel="sigma", floor=(0.005, "8 bits")).axes[0]
        >>> axes.get_ylabel(), [line.get_label() for line in axes.lines[-2:]]
        ('relative RMS error (%)', ['lines: theory; bars: 95 %', '8 bits'])
    """
    _check_number(curves)
    with style():
        figure, axes = new_figure()
        for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
            _points(axes, curve, np.asarray(curve.x, float), colour, marker)
            axes.plot(curve.x, 100 * curve.expected, color=colour)
        axes.plot([], [], color="0.3", label="lines: theory; bars: 95 %")
        if floor is not None:
            axes.axhline(100 * floor[0], color="0.5", linestyle="--", linewidth=0.8, label=floor[1])
        _scales(axes, x_log, y_log)
        if xticks is not None:
            axes.set_xticks(list(xticks), [f"{tick:g}" for tick in xticks])
            axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel="relative RMS error (%)")
        _legend(figure, axes, legend_columns)
    return figure


@checked
def error_groups(curves: Sequence[Curve], names: Sequence[str], *, y_log: bool = True) -> Any:
    """Draw measured errors of named cases side by side, with a bar where theory puts it.

    Args:
        curves: The series; their `x` is the index of a name.
        names: Names along the horizontal axis.
        y_log: Whether the vertical axis is logarithmic.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no curves, or more than colours.

    Example:
        >>> x, error = np.array([0.0, 1.0]), np.array([0.01, 0.02])
        >>> curve = Curve("chip", x, error, 0.9 * error, 1.1 * error, expected=error)
        >>> axes = error_groups([curve], ["offset", "differential"]).axes[0]
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['offset', 'differential']
    """
    _check_number(curves)
    spread = np.linspace(-0.27, 0.27, len(curves)) if len(curves) > 1 else np.zeros(1)
    with style():
        figure, axes = new_figure(height_in=2.8)
        for curve, colour, marker, shift in zip(curves, COLOURS, MARKERS, spread, strict=False):
            x = np.asarray(curve.x, float) + shift
            known = np.isfinite(curve.expected)
            axes.hlines(100 * curve.expected[known], x[known] - 0.2, x[known] + 0.2, color=colour, linewidth=1.2)
            _points(axes, curve, x, colour, marker)
        axes.plot([], [], color="0.3", label="dashes: theory; bars: 95 %")
        _scales(axes, False, y_log)
        axes.set_xticks(range(len(names)), list(names), rotation=40, ha="right", rotation_mode="anchor")
        axes.set(ylabel="relative RMS error (%)", xlim=(-0.6, len(names) - 0.4))
        axes.grid(False, axis="x")
        _legend(figure, axes, 2)
    return figure


def _check_number(curves: Sequence[Curve]) -> None:
    if not 0 < len(curves) <= len(COLOURS):
        checks.fail("curves", f"hold 1 to {len(COLOURS)} series, one for each colour", f"holds {len(curves)}")


def _points(axes: Any, curve: Curve, x: np.ndarray, colour: str, marker: str) -> None:
    error, low, high = (100 * np.asarray(part, float) for part in (curve.error, curve.low, curve.high))
    reach = np.maximum(np.stack([error - low, high - error]), 0.0)
    axes.errorbar(
        x,
        error,
        yerr=reach,
        linestyle="none",
        marker=marker,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.4,
        elinewidth=0.9,
        capsize=1.8,
        label=curve.label,
        zorder=3,
    )


def _scales(axes: Any, x_log: bool, y_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    if x_log:
        axes.set_xscale("log")
    if y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        if high / low < 500:  # fewer than three decades: numbers between the powers of ten are needed
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _legend(figure: Any, axes: Any, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    points = [i for i, handle in enumerate(handles) if type(handle).__name__ == "ErrorbarContainer"]
    order = [*points, *(i for i in range(len(handles)) if i not in points)]
    chosen = {"handles": [handles[i] for i in order], "labels": [labels[i] for i in order]}
    figure.legend(**chosen, loc="outside lower center", ncols=columns, columnspacing=1.2)
