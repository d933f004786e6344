"""Figures of the domain-shift protocol: the matrix R[t, i], accuracy against a number, accuracies side by side.

Rows are those of `nvcim_jax.study.summarise`: dictionaries with `accuracy`, `accuracy_low`, `accuracy_high` (None
where an end is not known) and what they are grouped by.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.plots.figure import COLOURS, COLUMN_WIDTH_IN, MARKERS, new_figure, style
from nvcim_jax.signature import checked

__all__ = ["Panel", "accuracy_bars", "accuracy_curves", "shift_heatmaps"]

Row = Mapping[str, Any]
_LINES = ("-", "--", ":", "-.")
# Lines across, one look each: dashes, and a shade that turns with them.
_DASHES = ("--", ":", "-.", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2, 2, 2)), (0, (2, 2)))
_SHADES = ("0.15", "0.45", "0.65")


class Panel(NamedTuple):
    """One matrix of a figure.

    Attributes:
        title: Text above it.
        R: Score on domain i after block t (blocks, domains); NaN where not measured.
        blocks: Name of each block, its own domain.
        domains: Names of the domains.
    """

    title: str
    R: np.ndarray
    blocks: Sequence[str]
    domains: Sequence[str]


@checked
def shift_heatmaps(panels: Sequence[Panel], *, columns: int = 2, label: str = "accuracy") -> Any:
    """Draw matrices R[t, i] on one scale, each entry with its number, each block's own domain framed.

    Args:
        panels: The matrices.
        columns: Panels side by side.
        label: Name of the score.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no panel, or names do not fit a matrix.

    Example:
        >>> panel = Panel("one prompt", np.array([[0.8, 0.1], [0.2, 0.7]]), ["a", "b"], ["a", "b"])
        >>> figure = shift_heatmaps([panel])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['.80', '.10', '.20', '.70']
    """
    if not panels:
        checks.fail("panels", "hold at least one matrix", "is empty")
    for panel in panels:
        checks.shape("R", panel.R, (len(panel.blocks), len(panel.domains)), "(blocks, domains)")
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    tall = max(len(panel.blocks) for panel in panels)
    top = max(float(np.nanmax(panel.R)) for panel in panels)
    with style():
        size = (COLUMN_WIDTH_IN * (1 if columns == 1 else 2), lines * (0.9 + 0.24 * tall))
        figure = Figure(figsize=size, dpi=300, layout="constrained")
        images = []
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(lines, columns, i + 1)
            images.append(_matrix(axes, panel, max(top, 1e-9)))
            if i % columns:
                axes.set_ylabel("")
        figure.colorbar(images[0], ax=figure.axes, label=label, fraction=0.03, pad=0.02)
    return figure


def _matrix(axes: Any, panel: Panel, top: float) -> Any:
    from matplotlib.patches import Rectangle

    image = axes.imshow(np.asarray(panel.R, float), vmin=0.0, vmax=top, cmap="cividis", aspect="auto")
    for t, i in np.ndindex(*panel.R.shape):
        value = float(panel.R[t, i])
        if np.isfinite(value):
            text = f"{value:.2f}".removeprefix("0")
            colour = "black" if value > 0.6 * top else "white"
            axes.text(i, t, text, ha="center", va="center", fontsize=6.5, color=colour)
    for t, name in enumerate(panel.blocks):
        if name in panel.domains:
            corner = (list(panel.domains).index(name) - 0.46, t - 0.46)
            axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=COLOURS[1], linewidth=1.3))
    axes.set_xticks(range(len(panel.domains)), [_short(n) for n in panel.domains], rotation=30, ha="right")
    axes.set_yticks(range(len(panel.blocks)), [f"{t + 1} {_short(n)}" for t, n in enumerate(panel.blocks)])
    axes.set(ylabel="after block")
    axes.set_title(panel.title)
    axes.grid(False)
    return image


def _short(name: str) -> str:
    """Return the first words of a long name."""
    words = name.replace("_", " ")
    return words if len(words) <= 10 else words.split()[0]


def _ends(rows: Sequence[Row], value: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means and ends; an unknown end is the mean itself."""
    mean = np.array([np.nan if row[value] is None else row[value] for row in rows], float)
    low, high = (
        np.array(
            [m if row[f"{value}_{end}"] is None else row[f"{value}_{end}"] for row, m in zip(rows, mean, strict=True)]
        )
        for end in ("low", "high")
    )
    return mean, low.astype(float), high.astype(float)


def _level_look(index: int) -> dict[str, Any]:
    """Return the look of a line across, told from every other of as many as 24."""
    shade = _SHADES[index % len(_SHADES)]
    return {"color": shade, "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 0.9}


def _columns(labels: Sequence[str]) -> int:
    """Return how many entries of a legend fit side by side."""
    return 3 if max(map(len, labels)) <= 20 else 2


def said(rows: Sequence[Row]) -> str:
    """Return what rows of a summary have in common: device and noise, chips, and what an interval is over.

    Example:
        >>> said([{"device": "FeFET3", "sigma": 0.1, "streams": 5, "instances": 10}])
        'FeFET3, sigma 0.1; 10 chips, 95 % intervals over 5 streams'
        >>> said([{"method": "ours"}])
        ''
    """
    noisy = [row for row in rows if row.get("device", "digital") != "digital" and "sigma" in row]
    devices, sigmas = (list({row[name] for row in noisy}) for name in ("device", "sigma"))
    place = [str(devices[0])] if len(devices) == 1 else []
    place += [f"sigma {sigmas[0]:g}"] if len(sigmas) == 1 else []
    parts = [", ".join(place)]
    counted = [row for row in rows if "streams" in row and "instances" in row]
    if counted:
        streams, chips = (max(row[name] for row in counted) for name in ("streams", "instances"))
        over = f"{streams} streams" if streams > 1 else "the chips of one stream"
        parts.append(f"{chips} chip{'s' if chips > 1 else ''}, 95 % intervals over {over}")
    return "; ".join(part for part in parts if part)


def _series(rows: Sequence[Row], by: str) -> list[str]:
    names = list(dict.fromkeys(str(row[by]) for row in rows))
    if not names:
        checks.fail("rows", "hold at least one row", "is empty")
    return names


@checked
def accuracy_curves(
    rows: Sequence[Row],
    *,
    x: str = "sigma",
    by: str = "method",
    value: str = "accuracy",
    levels: Mapping[str, float] | None = None,
    xlabel: str = "programming noise σ (share of full scale)",
    ylabel: str = "accuracy",
) -> Any:
    """Draw a score against a number, a line and the band of its interval for each series.

    Args:
        rows: Rows of a summary.
        x: Field along the axis, a number.
        by: Field that names the series.
        value: Name of the score.
        levels: Name -> a level that does not depend on `x`, drawn across.
        xlabel: Quantity and unit of the axis.
        ylabel: Name of the score.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no row.

    Example:
        >>> ends = {"accuracy_low": None, "accuracy_high": None}
        >>> rows = [{"method": "ours", "sigma": sigma, "accuracy": 1.0 - sigma} | ends for sigma in (0.5, 0.0)]
        >>> axes = accuracy_curves(rows, levels={"chance": 0.25}).axes[0]
        >>> print(axes.lines[0].get_ydata(), [line.get_label() for line in axes.lines])  # by rising sigma
        [1.  0.5] ['ours', 'chance']
    """
    names = _series(rows, by)
    ticks = sorted({float(row[x]) for row in rows})
    with style():
        figure, axes = new_figure(height_in=2.8)
        for i, name in enumerate(names):
            own = sorted((row for row in rows if str(row[by]) == name), key=lambda row: float(row[x]))
            at = np.array([float(row[x]) for row in own])
            mean, low, high = _ends(own, value)
            look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.plot(at, mean, label=name, linestyle=_LINES[i // len(COLOURS) % len(_LINES)], **look)
            axes.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
        for i, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, label=name, **_level_look(i))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(axes.get_ylim()[1], 1.05))
        columns = _columns([*names, *(levels or {})])
        figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.2)
        figure.suptitle(said(rows), fontsize=6.5)
    return figure


@checked
def accuracy_bars(
    rows: Sequence[Row],
    *,
    group: str = "device",
    by: str = "method",
    value: str = "accuracy",
    levels: Mapping[str, float] | None = None,
    ylabel: str = "accuracy",
) -> Any:
    """Draw scores with intervals as bars, side by side in groups.

    Args:
        rows: Rows of a summary.
        group: Field that names the groups.
        by: Field that names the bars of a group.
        value: Name of the score.
        levels: Name -> a level drawn across, such as a baseline without a device.
        ylabel: Name of the score.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no row.

    Example:
        >>> ends = {"accuracy_low": 0.1, "accuracy_high": 0.9}
        >>> rows = [{"method": name, "device": "FeFET3", "accuracy": 0.5} | ends for name in ("ours", "theirs")]
        >>> axes = accuracy_bars(rows).axes[0]
        >>> print([f"{bar.get_x() + bar.get_width() / 2:.1f}" for bar in axes.patches])  # about their device
        ['-0.2', '0.2']
    """
    names, groups = _series(rows, by), _series(rows, group)
    width = 0.8 / len(names)
    room = max(COLUMN_WIDTH_IN, 0.5 + 0.11 * len(names) * len(groups))
    with style():
        figure, axes = new_figure(width_in=min(room, 2 * COLUMN_WIDTH_IN), height_in=2.9)
        for i, name in enumerate(names):
            own = [row for row in rows if str(row[by]) == name]
            at = np.array([groups.index(str(row[group])) + (i - (len(names) - 1) / 2) * width for row in own])
            mean, low, high = _ends(own, value)
            reach = np.maximum(np.stack([mean - low, high - mean]), 0.0)
            bars = {"color": COLOURS[i % len(COLOURS)], "hatch": ("", "/////", ".....")[i // len(COLOURS) % 3]}
            axes.bar(at, mean, width, label=name, edgecolor="white", linewidth=0.3, **bars)
            axes.errorbar(at, mean, yerr=reach, linestyle="none", color="0.3", elinewidth=0.7, capsize=1.2)
        for i, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, label=name, zorder=3, **_level_look(i))
        turned = {"rotation": 30, "ha": "right"} if sum(map(len, groups)) > 45 else {}
        axes.set_xticks(range(len(groups)), groups, **turned)
        axes.set(ylabel=ylabel)
        axes.set_ylim(0.0, min(axes.get_ylim()[1], 1.05))  # an interval of few streams may reach beyond 1
        axes.grid(False, axis="x")
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] in (levels or {}))  # the bars first
        chosen = {"handles": [handles[i] for i in order], "labels": [labels[i] for i in order]}
        figure.legend(**chosen, loc="outside lower center", ncols=_columns(labels), columnspacing=1.2)
        figure.suptitle(said(rows), fontsize=6.5)
    return figure
