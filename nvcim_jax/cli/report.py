"""`nvcim report`: the table and the figures of a run again, from its records alone."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from nvcim_jax import checks, files
from nvcim_jax.cli.page import Table, page
from nvcim_jax.cli.spec import value_of
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["Options", "main", "report", "table"]

BAR_METHODS = 14
SWEPT = "records.parquet"
"""What a folder of a sweep holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Print the table of a run, or of a sweep, and draw its figures again, from the records alone.

    What is not finished is counted and left out of the table, and the exit code is 1.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of several parts of one; or of a sweep."""
    plots: bool = True
    """Whether to draw the figures."""
    html: bool = False
    """Also write report.html: tables that sort and filter, figures, options and records in one file that needs no
    network."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    if (options.folder / SWEPT).is_file():
        return _of_sweep(options)
    for path in report(options.folder, plots=options.plots, html=options.html):
        print(f"  {path}")
    print_result(options, table(finished(options.folder)[0]))
    return 1 if _unfinished(options.folder)[0] else 0


def _of_sweep(options: Options) -> int:
    """Print the summary of a sweep and draw its figures."""
    from nvcim_jax.cli.plot import draw
    from nvcim_jax.cli.tables import print_table

    if options.html:
        checks.fail("--html", "be left out for a sweep", "is given", "It writes the page of a run.")
    with (options.folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: value_of(word) if word else None for name, word in row.items()} for row in csv.DictReader(file)]
    print_table(rows, title=f"Sweep in {options.folder}: each point over its chips")
    for path in draw(options.folder / SWEPT, options.folder, "error") if options.plots else []:
        print(f"  {path}")
    print_result(options, rows)
    return 0


def finished(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the records of rows that are finished, and what is to be said of the others."""
    from nvcim_jax import study

    records = study.read(checks.file("folder", folder, folder=True))
    lacking, said = _unfinished(folder)
    kept = [record for record in records if _row(record) not in lacking]
    if not kept:
        found = f"{folder} has none yet{f': {said}' if said else ''}"
        checks.fail("folder", "hold a finished row of the table", found, "Let the run finish.")
    left = ", ".join(sorted({row[-1] for row in lacking}))
    return kept, f"{said}. Left out until they are finished: {left}." if lacking else ""


def report(folder: Path, *, plots: bool, html: bool = False) -> list[Path]:
    """Print the table of a folder and draw its figures.

    Args:
        folder: Folder with records.
        plots: Whether to draw.
        html: Whether to write all of it as one page.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no records.
    """
    from nvcim_jax.cli.tables import print_table

    records, said = finished(folder)
    if said:
        print(said)
    rows = table(records)
    shown = [Table(_title(records), [_worded(row) for row in rows])]
    scores = folder / "official.json"
    if scores.is_file():
        shown.append(Table("Official LaMP scores, chip by chip", json.loads(scores.read_text(encoding="utf-8"))))
    for each in shown:
        print_table(each.rows, title=each.title)
    figures = _figures(records, rows) if plots or html else {}
    written = _draw(figures, folder) if plots else []
    return [*written, _page(records, shown, figures, folder)] if html else written


def _page(records: Sequence[dict[str, Any]], shown: Sequence[Table], figures: Mapping[str, Any], folder: Path) -> Path:
    """Write everything as one page."""
    from nvcim_jax import plots

    config = folder / "config.json"
    about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    noisy = sorted({f"{r['device']}, sigma {r['sigma']:g}" for r in records if r["device"] != "digital"})
    where = f"{'; '.join(noisy) or 'exact memory alone'}. {_title(records)}"
    drawn = {f"{name.removesuffix('.png')}: {where}": plots.svg(figure) for name, figure in figures.items()}
    title = about.get("command", f"Run in {folder.name}")
    made = page(title, shown, drawn, about, {"records.csv": files.csv(records)})
    return files.write(folder / "report.html", made)


_ROW = ("kind", "device", "sigma", "trained_for", "method")


def _row(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _ROW)


def _unfinished(folder: Path) -> tuple[set[tuple[Any, ...]], str]:
    """Return the rows of the table that lack records, and how many records are there."""
    from nvcim_jax import study

    found = study.incomplete(folder)
    rows = {_row(unit._asdict()) for unit in found.units}
    return rows, f"{found.num_found} of {found.num_expected} records are there" if rows else ""


def table(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a summary, with intervals over the chips where there is only one stream.

    Chips of one stream share its prompts: such an interval says how far chips differ, not streams.

    Args:
        records: Records of a study.

    Returns:
        Rows of `study.summarise`.
    """
    from nvcim_jax import metrics, study

    rows = study.summarise(records)
    for row in rows:
        if row["streams"] > 1 or row["instances"] < 2:
            continue
        own = [r for r in records if all(r[k] == row[k] for k in ("kind", "device", "sigma", "trained_for", "method"))]
        last = max(r["block"] for r in own)
        for name in ("accuracy", "hit"):
            chips: dict[int, list[float]] = {}
            for r in own:
                if r["block"] == last and r["role"] != "unseen" and r[name] is not None:
                    chips.setdefault(r["instance"], []).append(r[name])
            if chips:
                found = metrics.interval([sum(values) / len(values) for values in chips.values()])
                row[f"{name}_low"], row[f"{name}_high"] = float(found.low), float(found.high)
    return rows


def _title(records: Sequence[dict[str, Any]]) -> str:
    streams = len({(r["kind"], r["stream"]) for r in records})
    over = f"over {streams} streams" if streams > 1 else "over the chips of the one stream"
    return f"After the last buffer, mean over the domains; 95 % intervals {over}"


def _worded(row: dict[str, Any]) -> dict[str, str]:
    """Return one line of the table."""

    def number(name: str) -> str:
        return "-" if row[name] is None else f"{row[name]:.3f}"

    def ends(name: str) -> str:
        if row[f"{name}_low"] is None:
            return "-"
        low, high = (min(max(row[f"{name}_{end}"], 0.0), 1.0) for end in ("low", "high"))
        return f"{low:.3f} .. {high:.3f}"

    digital = row["device"] == "digital"
    found = {
        "method": row["method"],
        "memory": "exact" if digital else f"{row['device']}, sigma {row['sigma']:g}",
        "accuracy": number("accuracy"),
        "95 %": ends("accuracy"),
        "hit rate": number("hit"),
        "95 % ": ends("hit"),
        "streams x chips": f"{row['streams']} x {row['instances']}",
    }
    if row["forgetting"] is not None:
        found["forgetting"] = number("forgetting")
    return found


def _draw(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures."""
    from nvcim_jax import plots

    return [files.write(folder / name, plots.png(figure)) for name, figure in figures.items()]


def _figures(records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Draw what the records allow."""
    from nvcim_jax import study
    from nvcim_jax.plots import Panel, accuracy_bars, shift_heatmaps

    baselines = {row["method"]: row["accuracy"] for row in rows if row["method"] in study.BASELINES}
    named = [
        {**row, "place": "exact" if row["device"] == "digital" else f"{row['device']} {row['sigma']:g}"}
        for row in rows
        if row["method"] not in study.BASELINES
    ]
    figures: dict[str, Any] = {}
    for name, label in (("accuracy", "share of right answers"), ("hit", "share of right prompts")):
        known = [row for row in named if row[name] is not None]
        if known:
            levels = baselines if name == "accuracy" else None
            figures[f"{name}.png"] = accuracy_bars(known, group="place", value=name, levels=levels, ylabel=label)
    several = len({record["block"] for record in records}) > 1
    if several:
        figures["shift.png"] = shift_heatmaps([Panel(*made) for made in _panels(records, rows)])
    return figures


def _panels(records: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the matrix of each method, on devices where it was measured there."""
    from nvcim_jax import study

    noisy = {row["method"] for row in rows if row["device"] != "digital"}
    made = []
    for row in rows:
        if row["device"] != "digital" or row["method"] not in noisy:
            place = {"device": row["device"], "sigma": row["sigma"], "trained_for": row["trained_for"]}
            title = row["method"] if row["device"] == "digital" else f"{row['method']}, {row['device']}"
            made.append((title, *study.shift_matrix(records, row["method"], **place)))
    return made[:BAR_METHODS]
