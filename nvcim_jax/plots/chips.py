"""Figures of many chips, from saved records only: distributions, bands against a number, yields.

Of several axes the last is told apart by colour, those before it are small multiples, in the order in which they were
asked for. Above stands what all have in common, how many chips there are, and what a band is.

`Records.source` is what a figure's metadata should say of where its numbers come from: the file of records, its
SHA-256, and the command that made it (`plots.png(figure, records.source)`).
"""

import hashlib
import itertools
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.plots.figure import COLOURS, COLUMN_WIDTH_IN, MARKERS, new_figure, style

__all__ = ["Records", "band", "ecdf", "larger_is_better", "load", "number_axes", "violin", "yield_curve"]

_MOST_GROUPS = 24
_MOST_TICKS = 6
# From this ratio of the greatest to the least number an axis is logarithmic.
_LOG_FROM = 50.0


class Records(NamedTuple):
    """One row an instance.

    Attributes:
        columns: Settings and values by name.
        axes: Names of the settings.
        source: Path, SHA-256 and command, for the figure's metadata.
        labels: Words for an axis in place of its name, such as its unit.
        about: What all chips have in common, such as the device.
    """

    columns: dict[str, np.ndarray]
    axes: tuple[str, ...]
    source: dict[str, str]
    labels: Mapping[str, str] = MappingProxyType({})
    about: str = ""

    def label(self, name: str) -> str:
        """Return the words for an axis or a value."""
        return self.labels.get(name, name)


def load(path: str | Path) -> Records:
    """Read the records of a sweep, a Parquet file with the names of its axes in the metadata.

    Raises:
        ValueError: If the file is not one.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        checks.fail("path", "be a file of records", f"there is none: {path}")
    table = pq.read_table(path)
    about = table.schema.metadata or {}
    if b"axes" not in about:
        checks.fail("path", "hold the records of a sweep", f"has no axes: {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"records": str(path), "sha256": digest, "command": about.get(b"command", b"").decode()}
    if b"larger_is_better" in about:
        source["larger_is_better"] = about[b"larger_is_better"].decode()
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return Records(columns, _as_named(json.loads(about[b"axes"]), source["command"]), source)


def _as_named(axes: Sequence[str], command: str) -> tuple[str, ...]:
    """Return the axes in the order in which the command names them, those that it does not name last."""
    words = shlex.split(command)
    given = [word.partition("=")[0] for flag, word in itertools.pairwise(words) if flag == "--axis"]
    given += [word.removeprefix("--axis=").partition("=")[0] for word in words if word.startswith("--axis=")]
    order = [name for name in dict.fromkeys(given) if name in axes]
    return (*order, *(name for name in axes if name not in order))


def number_axes(records: Records) -> list[str]:
    """Return the axes whose values are all numbers and not all the same, the one that was named first in front."""
    axes = [name for name in records.axes if records.columns[name].dtype.kind in "if"]
    return [name for name in axes if len(np.unique(records.columns[name])) > 1]


def _values(records: Records, metric: str) -> np.ndarray:
    known = [name for name in records.columns if name not in records.axes and name != "instance"]
    checks.choice("metric", metric, known)
    return np.asarray(records.columns[metric], np.float64)


Group = tuple[str, np.ndarray]


class _Layout(NamedTuple):
    """Panels and curves: label and rows of each.

    Attributes:
        panels: Combinations of all axes but the last; one without a name where there is no other.
        curves: Values of the last axis.
        columns: Panels side by side.
    """

    panels: list[Group]
    curves: list[Group]
    columns: int


def _layout(records: Records, without: str | None = None) -> _Layout:
    """Return what becomes a panel and what a curve, few enough to be told apart."""
    axes = [name for name in records.axes if name != without and len(set(records.columns[name].tolist())) > 1]
    panels, curves = _combinations(records, axes[:-1]), _combinations(records, axes[-1:])
    for what, found in (("panels", panels), ("curves", curves)):
        if len(found) > _MOST_GROUPS:
            checks.fail("records", f"have at most {_MOST_GROUPS} {what}", f"have {len(found)}", "Sweep fewer settings.")
    if len(axes) < 2:
        return _Layout([("", panels[0][1])], curves, 1)
    across = len(set(records.columns[axes[-2]].tolist())) if len(axes) > 2 else 3
    return _Layout(panels, curves, min(across, len(panels), 4))


def _combinations(records: Records, axes: Sequence[str]) -> list[Group]:
    """Return label and rows of each combination of settings, in the order of the axes' values."""
    keys = list(zip(*[records.columns[name].tolist() for name in axes], strict=True)) if axes else []
    if not keys:
        return [("all chips", np.ones(len(records.columns["instance"]), bool))]
    unique = sorted(set(keys), key=lambda k: [(isinstance(v, str), "" if v is None else v) for v in k])
    index = np.array([unique.index(key) for key in keys])
    labels = [", ".join(f"{name} {value}" for name, value in zip(axes, key, strict=True)) for key in unique]
    return [(label, index == i) for i, label in enumerate(labels)]


def _curve(index: int, markers: bool = True) -> dict[str, Any]:
    """Return colour, marker and dash of a curve: told apart without colour too."""
    turn = index // len(COLOURS)
    found: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":", "-.")[turn % 4]}
    return found | ({"marker": MARKERS[index % len(MARKERS)]} if markers else {})


def _panelled(layout: _Layout, height_in: float = 2.4) -> tuple[Any, list[Any]]:
    """Return a figure with a panel for each, of one scale, and their axes."""
    if len(layout.panels) == 1:
        figure, axes = new_figure(height_in=height_in)
        return figure, [axes]
    from matplotlib.figure import Figure

    lines = -(-len(layout.panels) // layout.columns)
    size = (2 * COLUMN_WIDTH_IN, 0.4 + 0.75 * height_in * lines)
    figure = Figure(figsize=size, dpi=300, layout="constrained")
    cells = figure.subplots(lines, layout.columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (label, _) in zip(cells, layout.panels, strict=False):
        axes.set_title(label)
    for axes in cells[len(layout.panels) :]:
        axes.remove()
    return figure, list(cells[: len(layout.panels)])


def _name_outer(axes: Sequence[Any], columns: int, xlabel: str, ylabel: str) -> None:
    """Name the scales at the outside."""
    for i, one in enumerate(axes):
        if i % columns == 0:
            one.set_ylabel(ylabel)
        if i + columns >= len(axes):
            one.set_xlabel(xlabel)
            one.tick_params(labelbottom=True)


def _legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """Put the legend under the axes, and make the figure so much taller that they keep their size."""
    named = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    longest = max(map(len, named))
    width, height = figure.get_size_inches()
    columns = max(1, min(4, int(width / (0.35 + 0.047 * longest))))
    figure.set_size_inches(width, height + 0.13 * -(-len(named) // columns))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns, columnspacing=1.2)


def _caption(figure: Any, records: Records, layout: _Layout, what: str, x: str | None = None) -> None:
    """Write above what all chips have in common, how many there are, and what is drawn of them."""
    at = [records.columns[x] == v for v in np.unique(records.columns[x])] if x is not None else [True]
    found = {
        int((panel & curve & own).sum()) for _, panel in layout.panels for _, curve in layout.curves for own in at
    } - {0}
    chips = f"{min(found):,}" if len(found) == 1 else f"{min(found):,} to {max(found):,}"
    words = "; ".join(
        part for part in (records.about, f"{chips} chips {'each' if x is None else 'a point'}", what) if part
    )
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(words, int(19 * width))
    figure.set_size_inches(width, height + 0.12 * len(lines))
    figure.suptitle("\n".join(lines), fontsize=6.5)


def _wide(values: np.ndarray) -> bool:
    """Return whether numbers are all positive and span so much that a logarithmic axis shows them better."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() > _LOG_FROM * known.min())


def _scale(axes: Any, x: np.ndarray) -> None:
    """Give the horizontal axis a scale that fits its numbers; few of them are its ticks."""
    if _wide(x):
        axes.set_xscale("log")
    elif len(at := np.unique(x)) <= _MOST_TICKS:
        axes.set_xticks(at, [f"{value:g}" for value in at])


def _with_legend(figure: Any, axes: Sequence[Any], curves: int) -> Any:
    """Return the figure, with a legend where there are several curves."""
    if curves > 1:
        _legend_below(figure, axes)
    return figure


@style()
def ecdf(records: Records, metric: str) -> Any:
    """Draw the share of chips below each value, one curve a combination of settings; a failed chip never is.

    Args:
        records: From `load`.
        metric: Name of the value.

    Returns:
        The figure.
    """
    values, layout = _values(records, metric), _layout(records)
    figure, axes = _panelled(layout)
    for one, (_, panel) in zip(axes, layout.panels, strict=True):
        for i, (label, curve) in enumerate(layout.curves):
            rows = panel & curve
            inside = np.sort(values[rows & np.isfinite(values)])
            share = np.arange(1, len(inside) + 1) / max(rows.sum(), 1)
            one.step(inside, share, where="post", label=label, **_curve(i, False))
        one.set_ylim(0, 1)
        if _wide(values):
            one.set_xscale("log")
    _name_outer(axes, layout.columns, records.label(metric), "share of chips")
    _caption(figure, records, layout, "")
    return _with_legend(figure, axes, len(layout.curves))


@style()
def violin(records: Records, metric: str) -> Any:
    """Draw the distribution over chips, one violin a combination of settings, with median, 1 % and 99 %.

    Args:
        records: From `load`.
        metric: Name of the value.

    Returns:
        The figure.
    """
    values, layout = _values(records, metric), _layout(records)
    longest = max(len(label) for label, _ in layout.curves)
    turned = {"rotation": 90} if longest > 16 else {"rotation": 30, "ha": "right"}
    figure, axes = _panelled(layout, 2.2 + 0.045 * longest * (1.0 if longest > 16 else 0.5))
    for one, (_, panel) in zip(axes, layout.panels, strict=True):
        for i, (_, curve) in enumerate(layout.curves):
            inside = values[panel & curve & np.isfinite(values)]
            if len(inside) < 2:
                continue
            if np.ptp(inside) > 0:
                (body,) = one.violinplot(inside, positions=[i], showextrema=False, widths=0.8)["bodies"]
                body.set_facecolor(COLOURS[0])
            low, middle, high = np.quantile(inside, (0.01, 0.5, 0.99))
            one.plot([i, i], [low, high], color="black", lw=0.8)
            one.plot([i], [middle], marker="o", color="black", ms=2)
        one.set_xticks(range(len(layout.curves)), [label for label, _ in layout.curves], fontsize=6, **turned)
        if _wide(values):
            one.set_yscale("log")
    _name_outer(axes, layout.columns, "", records.label(metric))
    _caption(figure, records, layout, "bar: 1 % to 99 % of chips, dot: median")
    return _with_legend(figure, axes, 1)


@style()
def band(records: Records, metric: str, x: str) -> Any:
    """Draw the mean against a number with the band from the 5 % to the 95 % quantile over chips.

    Args:
        records: From `load`.
        metric: Name of the value.
        x: Name of an axis that is a number.

    Returns:
        The figure.
    """
    values = _values(records, metric)
    checks.choice("x", x, number_axes(records))
    layout = _layout(records, without=x)
    figure, axes = _panelled(layout)
    for one, (_, panel) in zip(axes, layout.panels, strict=True):
        for i, (label, curve) in enumerate(layout.curves):
            at = np.unique(records.columns[x][panel & curve])
            chosen = [values[panel & curve & (records.columns[x] == v) & np.isfinite(values)] for v in at]
            low, high = (np.array([np.quantile(c, q) if len(c) else np.nan for c in chosen]) for q in (0.05, 0.95))
            (line,) = one.plot(at, [c.mean() if len(c) else np.nan for c in chosen], label=label, **_curve(i))
            one.fill_between(at, low, high, alpha=0.2, color=line.get_color(), lw=0)
        _scale(one, records.columns[x].astype(np.float64))
    _name_outer(axes, layout.columns, records.label(x), f"mean {records.label(metric)}")
    _caption(figure, records, layout, "band: 5 % to 95 % of chips", x)
    return _with_legend(figure, axes, len(layout.curves))


LARGER_IS_BETTER = ("accuracy", "f1", "hit", "right", "rouge", "score", "yield")
"""Beginnings of the names of metrics that should be large, where the records do not say."""


def larger_is_better(records: Records, metric: str) -> bool:
    """Return whether a metric should be large: what the records say (`io.export`), or else what its name says.

    Args:
        records: From `load`.
        metric: Name of the value.
    """
    said = records.source.get("larger_is_better")
    return metric in said.split(", ") if said else metric.startswith(LARGER_IS_BETTER)


@style()
def yield_curve(
    records: Records,
    metric: str,
    x: str,
    *,
    bound: float | None = None,
    larger: bool | None = None,
) -> Any:
    """Draw the share of good chips against a number: metric <= bound, or >= where larger is better.

    A chip whose metric is not finite is not good. Without a bound it is what 95 % of the chips reach at the setting
    whose median is the best, so that the curve says what is lost from there on.

    Args:
        records: From `load`.
        metric: Name of the value.
        x: Name of an axis that is a number.
        bound: Worst metric of a good chip.
        larger: Whether larger is better; None asks `larger_is_better`.

    Returns:
        The figure.
    """
    values = _values(records, metric)
    checks.choice("x", x, number_axes(records))
    up = larger_is_better(records, metric) if larger is None else larger
    sign = -1.0 if up else 1.0
    limit = sign * _reached(sign * values, records) if bound is None else bound
    most = sign * limit + 4 * np.finfo(np.float32).eps * abs(limit)  # as in `montecarlo.yield_interval`
    layout = _layout(records, without=x)
    figure, axes = _panelled(layout)
    for one, (_, panel) in zip(axes, layout.panels, strict=True):
        for i, (label, curve) in enumerate(layout.curves):
            own = panel & curve
            at = np.unique(records.columns[x][own])
            share = [np.mean(sign * values[own & (records.columns[x] == v)] <= most) for v in at]
            one.plot(at, share, label=label, **_curve(i))
        one.set_ylim(-0.02, 1.02)
        _scale(one, records.columns[x].astype(np.float64))
    how = ", what 95 % reach at the best setting" if bound is None else ""
    _name_outer(axes, layout.columns, records.label(x), "share of good chips")
    _caption(figure, records, layout, f"good: {metric} {'>=' if up else '<='} {limit:.3g}{how}", x)
    return _with_legend(figure, axes, len(layout.curves))


def _reached(values: np.ndarray, records: Records) -> float:
    """Return the smallest bound that 95 % of the chips keep at the setting with the lowest median."""
    groups = [values[rows & np.isfinite(values)] for _, rows in _combinations(records, records.axes)]
    best = min((group for group in groups if len(group)), key=np.median, default=np.zeros(1))
    return float(np.quantile(best, 0.95, method="higher"))
