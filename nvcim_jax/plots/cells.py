"""Figures of measured cells: distributions of levels, spread against time, measured and simulated quantiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvcim_jax import checks
from nvcim_jax.plots.figure import COLOURS, MARKERS, new_figure, style
from nvcim_jax.signature import checked

__all__ = ["cell_levels", "cell_quantiles", "cell_spread", "shown_time"]

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


@checked
def shown_time(t_s: float) -> str:
    """Return a time in a unit that suits it.

    Args:
        t_s: Time, seconds.

    Example:
        >>> [shown_time(t) for t in (0.0, 0.01, 3.44, 86400.0)]
        ['0 s', '10 ms', '3.44 s', '1 d']
    """
    if not t_s > 0:
        return "0 s"
    unit, name = next((pair for pair in _UNITS if t_s >= 0.9995 * pair[0]), _UNITS[-1])
    return f"{t_s / unit:.3g} {name}"


@checked
def cell_levels(labels: Sequence[str], values: Mapping[float, Sequence[Any]], *, ylabel: str, title: str = "") -> Any:
    """Draw, for each level, the median, the middle half and the middle 98 % of its cells at some times.

    Args:
        labels: Names of the levels (L,).
        values: Time in seconds -> the conductances of each level (L, any number).
        ylabel: Name of the vertical axis, with the unit.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no time, or a time has another number of levels.

    Example:
        >>> cells = [np.full(9, 0.1), np.linspace(0.4, 0.6, 9)]
        >>> axes = cell_levels(["0", "1"], {0.0: cells}, ylabel="conductance (g_max)").axes[0]
        >>> print(axes.lines[0].get_ydata())  # the medians
        [0.1 0.5]
    """
    if not values:
        checks.fail("values", "hold one time at least", "is empty")
    with style():
        figure, axes = new_figure(3.35 if len(labels) <= 16 else 6.9)
        for i, (t_s, levels) in enumerate(values.items()):
            if len(levels) != len(labels):
                checks.fail("values", f"hold {len(labels)} levels at each time", f"holds {len(levels)} at {t_s:g} s")
            at = np.arange(len(labels)) + 0.5 * (i + 0.5) / len(values) - 0.25
            found = np.array([np.quantile(v, [0.01, 0.25, 0.5, 0.75, 0.99]) for v in levels]).T
            axes.vlines(at, found[0], found[4], color=COLOURS[i], linewidth=0.7)
            axes.vlines(at, found[1], found[3], color=COLOURS[i], linewidth=2.2, alpha=0.6)
            axes.plot(at, found[2], marker=MARKERS[i], linestyle="none", color=COLOURS[i], label=shown_time(float(t_s)))
        step = max(1, len(labels) // 16)
        axes.set_xticks(np.arange(0, len(labels), step), [*labels][::step])
        axes.set(xlabel="level", ylabel=ylabel)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.2)
    return figure


@checked
def cell_spread(
    times_s: Sequence[float] | np.ndarray,
    series: Mapping[str, np.ndarray],
    *,
    ylabel: str,
    xlabel: str = "time since programming (s)",
    title: str = "",
) -> Any:
    """Draw something of the levels against time, in the logarithm where there are decades: median, and middle half.

    Args:
        times_s: Times (K,), seconds, rising, the first may be 0.
        series: Name -> values (levels, K); one row is drawn as a curve alone.
        ylabel: Name of the vertical axis, with the unit.
        xlabel: Name of the other.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If a series has another number of times.

    Example:
        >>> spread = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])  # 3 levels at 2 times
        >>> axes = cell_spread([0.0, 60.0], {"chip": spread}, ylabel="spread (µS)").axes[0]
        >>> print(axes.lines[0].get_ydata())  # the median over levels
        [3. 4.]
    """
    times = np.asarray(times_s, np.float64)
    with style():
        figure, axes = new_figure()
        for i, (name, values) in enumerate(series.items()):
            checks.shape("series", values, (np.shape(values)[0], len(times)), "(levels, times)")
            colour = COLOURS[i % len(COLOURS)]
            middle = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
            dashed = "--" if i else "-"
            axes.plot(times, middle[1], dashed, marker=MARKERS[i % len(MARKERS)], color=colour, label=name)
            if len(values) > 1:
                axes.fill_between(times, middle[0], middle[2], color=colour, alpha=0.15, linewidth=0)
        positive = times[times > 0]
        if len(positive) > 1 and positive[-1] > 30 * positive[0]:
            axes.set_xscale("symlog", linthresh=float(positive[0]), linscale=0.5)
            # The locator's own ticks stand on top of each other about zero.
            first, last = (round(float(np.log10(t))) for t in (positive[0], positive[-1]))
            axes.set_xticks([*(t for t in times if t == 0.0), *(10.0**n for n in range(first, last + 1))])
            axes.minorticks_off()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_title(title)
        if len(series) > 1:
            axes.legend()
    return figure


@checked
def cell_quantiles(
    measured: Mapping[float, np.ndarray], simulated: Mapping[str, Mapping[float, np.ndarray]], *, title: str = ""
) -> Any:
    """Draw quantiles of measured deviations, in standard deviations, against a Gaussian's, and of simulated ones.

    A Gaussian lies on the dotted line.

    Args:
        measured: Time in seconds -> deviations of cells from the mean of their level, in its standard deviations (n,).
        simulated: Law -> the same.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If a law lacks a time.

    Example:
        >>> from scipy.special import ndtri
        >>> exact = ndtri((np.arange(1000) + 0.5) / 1000)  # a Gaussian lies on the dotted line
        >>> axes = cell_quantiles({1.0: exact}, {"Gaussian": {1.0: exact}}).axes[0]
        >>> dotted, measured, simulated = (line.get_xydata() for line in axes.lines[:3])
        >>> bool(np.abs(measured[:, 0] - measured[:, 1]).max() < 0.05), bool((measured == simulated).all())
        (True, True)
    """
    from scipy.special import ndtr

    z = np.linspace(-3.6, 3.6, 73)
    with style():
        figure, axes = new_figure(3.35, 2.9)
        axes.plot(z, z, ":", color="0.4", linewidth=0.8)
        lines = ("-", "--", "-.", (0, (1, 1)))
        for i, (t_s, values) in enumerate(measured.items()):
            colour = COLOURS[i % len(COLOURS)]
            within = np.abs(z) <= _outermost(len(values))
            found = np.quantile(values, ndtr(z[within]))
            label = shown_time(float(t_s))
            axes.plot(z[within], found, MARKERS[i % len(MARKERS)], markersize=2.2, color=colour, label=label)
            for (law, times), line in zip(simulated.items(), lines, strict=False):
                if t_s not in times:
                    checks.fail("simulated", "hold the times of measured", f"{law!r} lacks {t_s:g} s")
                there = np.abs(z) <= _outermost(len(times[t_s]))
                axes.plot(
                    z[there], np.quantile(times[t_s], ndtr(z[there])), linestyle=line, color=colour, linewidth=0.9
                )
        for law, line in zip(simulated, lines, strict=False):
            axes.plot([], [], linestyle=line, color="0.3", label=f"simulated: {law}")
        axes.set(xlabel="quantile of a Gaussian (σ)", ylabel="deviation from the mean of the level (σ)")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=3, columnspacing=1.2)
    return figure


def _outermost(count: int) -> float:
    """Return up to which normal quantile so many values say something: five of them lie beyond."""
    from scipy.special import ndtri

    return float(-ndtri(min(5.0 / count, 0.5)))
