"""Figures of costs: curves with bands, bills as stacked bars, and what is worth its cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.plots.figure import COLOURS, MARKERS, new_figure, style
from nvcim_jax.signature import checked

__all__ = ["CostCurve", "Frontier", "cost_bars", "cost_curves", "cost_frontier", "cost_sensitivities", "frontier"]

# More items than colours: the palette again, paler, as hatching would be lost in print.
_ITEMS = (*COLOURS[:6], "0.35", "#88CCEE", "#DDCC77", "#AA4499")


class CostCurve(NamedTuple):
    """One cost against one number.

    Attributes:
        label: Name in the legend.
        x: Positions (points,).
        value: Cost at each (points,).
        low: Lower end of its band (points,).
        high: Upper end (points,).
        dashed: Whether the line is dashed and without a band: a level to compare with.
    """

    label: str
    x: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dashed: bool = False


class Frontier(NamedTuple):
    """Candidates by cost and quality.

    Attributes:
        label: Name in the legend.
        cost: Cost of each (points,).
        quality: What it is worth (points,).
        error: Standard error of the quality (points,).
        low: Lower end of the band of each cost (points,); None leaves bands out.
        high: Upper end (points,).
    """

    label: str
    cost: np.ndarray
    quality: np.ndarray
    error: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@checked
def cost_curves(curves: Sequence[CostCurve], *, xlabel: str, ylabel: str, title: str = "") -> Any:
    """Draw costs against a number, both logarithmic, with 5-95 % bands.

    Args:
        curves: The series; those that are not dashed at most as many as there are colours.
        xlabel: Quantity of the horizontal axis.
        ylabel: Quantity and unit of the vertical axis.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no curves, or more than colours.

    Example:
        >>> x = np.array([1.0, 10.0, 100.0])
        >>> curves = [CostCurve("chip", x, x, x / 2, 2 * x), CostCurve("120 x", x, 120 * x, x, x, dashed=True)]
        >>> axes = cost_curves(curves, xlabel="stored prompts", ylabel="latency (us)").axes[0]
        >>> [line.get_label() for line in axes.lines], axes.get_yscale()
        (['chip', '120 x'], 'log')
    """
    full = [curve for curve in curves if not curve.dashed]
    if not 0 < len(full) <= len(COLOURS):
        checks.fail("curves", f"hold 1 to {len(COLOURS)} series, one for each colour", f"holds {len(full)}")
    with style():
        figure, axes = new_figure(3.35, 3.0)
        for curve, colour, marker in zip(full, COLOURS, MARKERS, strict=False):
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
            at = max(1, len(curve.x) // 6)
            axes.plot(curve.x, curve.value, color=colour, marker=marker, markevery=at, label=curve.label)
        dashes = ("--", ":", "-.")
        for curve, dash in zip([c for c in curves if c.dashed], dashes, strict=False):
            axes.plot(curve.x, curve.value, dash, color="0.3", linewidth=0.9, label=curve.label)
        axes.set(xlabel=xlabel, ylabel=f"{ylabel}\nband: 5-95 %", xscale="log", yscale="log")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2)
    return figure


@checked
def cost_bars(
    bills: Mapping[str, Mapping[str, float]],
    *,
    xlabel: str,
    ylabel: str = "",
    totals: bool = True,
    title: str = "",
) -> Any:
    """Draw bills as stacked bars, one below the other.

    Args:
        bills: Name -> item -> number, all in one unit; an item that is below 0.5 % of every bill joins "rest".
        xlabel: Quantity and unit.
        ylabel: What the names are.
        totals: Whether the whole stands beside each bar.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no bill.

    Example:
        >>> bills = {"a": {"converters": 3.0, "cells": 1.0, "select": 0.002}, "b": {"converters": 8.0}}
        >>> axes = cost_bars(bills, xlabel="energy (nJ)").axes[0]
        >>> [text.get_text() for text in axes.texts], [group.get_label() for group in axes.containers]
        (['4', '8'], ['converters', 'cells', 'rest'])
    """
    if not bills:
        checks.fail("bills", "hold one bill at least", "is empty")
    names = list(dict.fromkeys(item for bill in bills.values() for item in bill))
    shares = {n: max(bill.get(n, 0.0) / max(sum(bill.values()), 1e-300) for bill in bills.values()) for n in names}
    shown = [name for name in names if shares[name] >= 0.005]
    rest = [name for name in names if shares[name] < 0.005]
    with style():
        figure, axes = new_figure(3.35, 1.3 + 0.26 * len(bills))
        places = np.arange(len(bills))[::-1]
        left = np.zeros(len(bills))
        for name, colour in zip([*shown, *(["rest"] if rest else [])], [*_ITEMS] * 2, strict=False):
            parts = [name] if name in shown else rest
            wide = np.array([sum(bill.get(part, 0.0) for part in parts) for bill in bills.values()])
            axes.barh(places, wide, left=left, height=0.7, color=colour, label=str(name).replace("_", " "))
            left = left + wide
        for place, end in zip(places, left, strict=True) if totals else ():
            axes.annotate(f"{end:.3g}", (end, place), (2, 0), textcoords="offset points", va="center", fontsize=6.5)
        axes.set_yticks(places, list(bills))
        axes.set(xlim=(0, (1.15 if totals else 1.0) * left.max()), ylabel=ylabel)
        axes.set_xlabel(xlabel, loc="right")
        axes.grid(False, axis="y")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0)
    return figure


@checked
def cost_sensitivities(slopes: Mapping[str, float], *, xlabel: str, most: int = 12) -> Any:
    """Draw how much a cost depends on each constant, the most first.

    Args:
        slopes: Constant -> d log cost / d log constant.
        xlabel: What depends.
        most: Bars that are drawn.

    Returns:
        The figure.

    Example:
        >>> axes = cost_sensitivities({"a": 0.1, "b": -0.9, "c": 0.5}, xlabel="slope", most=2).axes[0]
        >>> [label.get_text() for label in axes.get_yticklabels()]  # by size, whatever the sign
        ['b', 'c']
    """
    chosen = sorted(slopes.items(), key=lambda item: -abs(item[1]))[:most]
    with style():
        figure, axes = new_figure(3.35, 0.7 + 0.17 * len(chosen))
        places = np.arange(len(chosen))[::-1]
        colours = [COLOURS[0] if value > 0 else COLOURS[1] for _, value in chosen]
        axes.barh(places, [value for _, value in chosen], height=0.7, color=colours)
        axes.set_yticks(places, [name.replace("_", " ") for name, _ in chosen])
        axes.axvline(0.0, color="0.3", linewidth=0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel(xlabel, loc="right")
    return figure


@checked
def frontier(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Return which points no other one beats in both: less cost, and no less quality.

    Args:
        cost: Cost of each (points,).
        quality: What it is worth (points,).

    Returns:
        Indices, by rising cost.

    Example:
        >>> frontier(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.9])).tolist()
        [0, 2]
    """
    best, kept = -np.inf, []
    for i in np.lexsort((-quality, cost)):
        if quality[i] > best:
            best = quality[i]
            kept.append(int(i))
    return np.array(kept, int)


@checked
def cost_frontier(
    groups: Sequence[Frontier], *, xlabel: str, ylabel: str, floor: tuple[float, str] | None = None, title: str = ""
) -> Any:
    """Draw candidates by cost and quality, and join those of all groups that no other one beats.

    Args:
        groups: The candidates, at most as many groups as colours.
        xlabel: Cost and unit.
        ylabel: Quality and unit.
        floor: A level with its name, drawn across.
        title: Text above the axes.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no groups, or more than colours.

    Example:
        >>> cost, quality = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.9])
        >>> axes = cost_frontier([Frontier("chip", cost, quality, 0 * cost)], xlabel="nJ", ylabel="accuracy").axes[0]
        >>> joined = next(line for line in axes.lines if line.get_label() == "not beaten")
        >>> joined.get_xydata().tolist()  # 2.0 costs more than 1.0, and is worth less
        [[1.0, 0.5], [3.0, 0.9]]
    """
    if not 0 < len(groups) <= len(COLOURS):
        checks.fail("groups", f"hold 1 to {len(COLOURS)} groups, one for each colour", f"holds {len(groups)}")
    cost, quality = (np.concatenate([getattr(group, part) for group in groups]) for part in ("cost", "quality"))
    best = frontier(cost, quality)
    with style():
        figure, axes = new_figure(3.35, 3.0)
        for group, colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
            points: Any = {"linestyle": "none", "marker": marker, "markersize": 2.8, "color": colour, "alpha": 0.7}
            axes.errorbar(group.cost, group.quality, group.error, elinewidth=0.5, label=group.label, **points)
        axes.plot(cost[best], quality[best], color="0.2", linewidth=1.0, zorder=4, label="not beaten")
        if all(group.low is not None and group.high is not None for group in groups):
            low, high = (np.concatenate([np.asarray(getattr(g, part)) for g in groups]) for part in ("low", "high"))
            band: Any = {"color": "0.2", "linewidth": 0.6, "alpha": 0.6}
            axes.hlines(quality[best], low[best], high[best], label="5-95 % of its cost", **band)
        if floor is not None:
            axes.axhline(floor[0], color="0.5", linestyle="--", linewidth=0.8, label=floor[1])
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=2, columnspacing=1.2)
    return figure
