"""Figures of records: those of a run, and those over the chips of a sweep or a run."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import checks, files, io
from nvcim_jax.cli import matrix
from nvcim_jax.cli.chip_means import PLACE

__all__ = ["of_chips", "of_run", "of_run_chips", "of_sweep", "save"]

BAR_METHODS = 14
Figures = dict[str, Any]
"""Name of a file, without its ending -> figure."""


def save(figures: Mapping[str, Any], folder: Path, source: Mapping[str, str] | None = None) -> list[Path]:
    """Write figures as PNG files, and return their paths."""
    from nvcim_jax import plots

    return [files.write(folder / f"{name}.png", plots.png(figure, source)) for name, figure in figures.items()]


def of_chips(
    table: Any, metric: str, x: str | None = None, bound: float | None = None, larger: bool | None = None
) -> Figures:
    """Draw the spread over chips, and its band and the yield against a number where there is one.

    Args:
        table: Records of `plots.chips`.
        metric: Name of a value of them.
        x: Axis that is a number (default: the first).
        bound: See `chips.yield_curve`.
        larger: See `chips.yield_curve`.
    """
    from nvcim_jax.plots import chips

    numeric = chips.number_axes(table)
    if x is not None:
        checks.choice("--x", x, numeric)
    if bound is not None:
        checks.number("--bound", bound)
    if not numeric and (bound is not None or larger is not None):
        fix = "A yield is drawn against a number, such as sigma."
        checks.fail("--bound and --larger-is-better", "be left out", "there is no axis with several numbers", fix)
    made = {f"{metric}_ecdf": chips.ecdf(table, metric), f"{metric}_violin": chips.violin(table, metric)}
    if numeric:
        along = x or numeric[0]
        made[f"{metric}_against_{along}"] = chips.band(table, metric, along)
        made[f"{metric}_yield_{along}"] = chips.yield_curve(table, metric, along, bound=bound, larger=larger)
    return made


def of_sweep(path: Path, metric: str | None = None, **how: Any) -> tuple[Figures, dict[str, str]]:
    """Draw what the records of a sweep allow, by default of its first value.

    Returns:
        The figures, and where their numbers come from.
    """
    from nvcim_jax.plots import chips

    table = chips.load(path)
    values = [name for name in table.columns if name not in (*table.axes, "instance")]
    metric = metric or next(iter(values), "error")
    if not table.source["command"].startswith("nvcim "):  # somebody's own rows: nothing is known that they do not say
        return of_chips(table, metric, **how), table.source
    labels = {"error": "relative error of a product"} if metric == "error" else {}
    about, fixed = "", io.records_about(path).get("common")
    if fixed is not None:  # not kept by versions before it
        named = table.columns["device"].tolist() if "device" in table.columns else ()
        labels["sigma"] = matrix.sigma_label(named, fixed)
        own = labels["sigma"].replace("\n", " ") if "sigma" in table.axes else ""
        about = "; ".join(part for part in (matrix.common(table.axes, fixed), own) if part)
    return of_chips(table._replace(labels=labels, about=about), metric, **how), table.source


def of_run_chips(rows: Sequence[Mapping[str, Any]], path: Path, command: str, metric: str, **how: Any) -> Any:
    """Draw the spread over the chips of a run.

    Args:
        rows: One a method, stream and chip, from `chip_means`.
        path: The file that they come from.
        command: What made it.
        metric: `accuracy` or `hit`.
        **how: As for `of_chips`.

    Returns:
        The figures, and where their numbers come from.
    """
    from nvcim_jax.plots import chips

    checks.choice("--metric", metric, ("accuracy", "hit"))
    known = [row for row in rows if row["device"] != "digital" and row[metric] is not None]
    if not known:
        checks.fail("folder", f"hold {metric} on chips", "has none", "Run a method that has a memory.")
    columns = {name: np.array([row[name] for row in known]) for name in (*PLACE, "stream", "instance", metric)}
    width = len(str(columns["stream"].max()))
    columns["stream"] = np.array([f"{seed:0{width}d}" for seed in columns["stream"].tolist()])  # a name, no quantity
    axes = tuple(name for name in ("stream", *PLACE) if len(set(columns[name].tolist())) > 1)
    places = {name: columns[name].tolist()[0] for name in ("device", "sigma") if name not in axes}
    about = ", ".join(f"sigma {v:g}" if name == "sigma" else str(v) for name, v in places.items())
    source = {"records": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "command": command}
    labels = {"accuracy": "share of right answers", "hit": "share of right prompts"}
    return of_chips(chips.Records(columns, axes, source, labels, about), metric, **how), source


def of_run(records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Figures:
    """Draw the methods of a run side by side, and what is forgotten.

    Args:
        records: Records of a study.
        rows: Its summary.
    """
    from nvcim_jax import study
    from nvcim_jax.plots import Panel, accuracy_bars, shift_heatmaps

    baselines = {row["method"]: row["accuracy"] for row in rows if row["method"] in study.BASELINES}
    named = [
        {**row, "place": "exact" if row["device"] == "digital" else f"{row['device']} {row['sigma']:g}"}
        for row in rows
        if row["method"] not in study.BASELINES
    ]
    figures: Figures = {}
    for name, label in (("accuracy", "share of right answers"), ("hit", "share of right prompts")):
        known = [row for row in named if row[name] is not None]
        if known:
            levels = baselines if name == "accuracy" else None
            figures[name] = accuracy_bars(known, group="place", value=name, levels=levels, ylabel=label)
    if len({record["block"] for record in records}) > 1:
        figures["shift"] = shift_heatmaps([Panel(*made) for made in _panels(records, rows)])
    return figures


def _panels(records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the matrix of each method, on devices where it was measured there."""
    from nvcim_jax import study

    noisy = {row["method"] for row in rows if row["device"] != "digital"}
    several = len({row["kind"] for row in rows}) > 1
    made = []
    for row in rows:
        if row["device"] != "digital" or row["method"] not in noisy:
            place = {name: row[name] for name in PLACE if name != "method"}
            title = row["method"] if row["device"] == "digital" else f"{row['method']}, {row['device']}"
            title += f", {row['kind']}" if several else ""
            made.append((title, *study.shift_matrix(records, row["method"], **place)))
    return made[:BAR_METHODS]
