"""`nvcim report`: the table and the figures of a run or a sweep again, from its records alone."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from nvcim_jax import checks, files, io
from nvcim_jax.cli import figures
from nvcim_jax.cli.chip_means import PLACE, table
from nvcim_jax.cli.page import Table, page
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["Options", "finished", "is_sweep", "main", "report"]

JOURNAL = "records.jsonl"
"""What a run adds to while it goes on."""

MOST_DOWNLOADED = 200_000
"""Rows that a page carries; more stay in their file."""


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


class _Shown(NamedTuple):
    """What a folder has to say.

    Attributes:
        rows: Rows for other programs.
        tables: The tables that people read.
        caption: What a figure's numbers are over.
        draw: Makes the figures, and says where their numbers come from.
        records: Returns one row a chip; none where they are too many for a page.
        about: What was run.
        whole: Whether nothing is missing.
    """

    rows: Sequence[Mapping[str, Any]]
    tables: Sequence[Table]
    caption: str
    draw: Callable[[], tuple[figures.Figures, Mapping[str, str] | None]]
    records: Callable[[], Sequence[Mapping[str, Any]]]
    about: Mapping[str, Any]
    whole: bool = True


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    shown = _of_sweep(options.folder) if is_sweep(options.folder) else _of_run(options.folder)
    for path in _report(shown, options.folder, plots=options.plots, html=options.html):
        print(f"  {path}")
    print_result(options, shown.rows)
    return 0 if shown.whole else 1


def is_sweep(folder: Path) -> bool:
    """Return whether a folder holds the records of a sweep."""
    path = folder / io.RECORDS
    return path.is_file() and io.records_about(path)["of"] == "sweep"


def report(folder: Path, *, plots: bool) -> list[Path]:
    """Print the table of a run and draw its figures.

    Args:
        folder: Folder with records.
        plots: Whether to draw.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no records.
    """
    return _report(_of_run(folder), folder, plots=plots)


def _report(shown: _Shown, folder: Path, *, plots: bool, html: bool = False) -> list[Path]:
    for each in shown.tables:
        print_table(each.rows, title=each.title)
    made, source = shown.draw() if plots or html else ({}, None)
    written = figures.save(made, folder, source) if plots else []
    return [*written, _page(shown, made, folder)] if html else written


def _page(shown: _Shown, made: figures.Figures, folder: Path) -> Path:
    """Write everything as one page."""
    from nvcim_jax import plots

    drawn = {f"{name}: {shown.caption}": plots.svg(figure) for name, figure in made.items()}
    records = shown.records()
    downloads = {"summary.csv": files.csv(shown.rows)}
    if records:
        downloads["records.csv"] = files.csv(records)
    title = shown.about.get("command", folder.name)
    return files.write(folder / "report.html", page(title, shown.tables, drawn, shown.about, downloads))


def finished(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the records of rows of a run that are finished, and what is to be said of the others."""
    from nvcim_jax import study

    whole = folder / io.RECORDS
    if whole.is_file() and not any(folder.rglob(JOURNAL)):
        rows = io.read_records(whole)[0]
        unknown = [name for name in (*PLACE, "stream", "instance", "block", "role") if name not in rows[0]]
        if unknown:
            fix = "Other rows are those of a sweep: io.write_records(.., of='sweep')."
            checks.fail("folder", "hold the records of a study", f"has no {', '.join(unknown)}: {whole}", fix)
        return rows, ""
    records = study.read(checks.file("folder", folder, folder=True))
    lacking, said = _unfinished(folder)
    kept = [record for record in records if _row(record) not in lacking]
    if not kept:
        found = f"{folder} has none yet{f': {said}' if said else ''}"
        checks.fail("folder", "hold a finished row of the table", found, "Let the run finish.")
    left = ", ".join(sorted({row[-1] for row in lacking}))
    return kept, f"{said}. Left out until they are finished: {left}." if lacking else ""


def _row(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in PLACE)


def _unfinished(folder: Path) -> tuple[set[tuple[Any, ...]], str]:
    """Return the rows of the table that lack records, and how many records are there."""
    from nvcim_jax import study

    found = study.incomplete(folder)
    rows = {_row(unit._asdict()) for unit in found.units}
    return rows, f"{found.num_found} of {found.num_expected} records are there" if rows else ""


def _of_run(folder: Path) -> _Shown:
    """Return what a run has to say; what is not finished is said at once."""
    records, said = finished(folder)
    if said:
        print(said)
    rows = table(records)
    tables = [Table(_title(records), [_worded(row) for row in rows])]
    scores, config = folder / "official.json", folder / "config.json"
    if scores.is_file():
        tables.append(Table("Official LaMP scores, chip by chip", json.loads(scores.read_text(encoding="utf-8"))))
    about = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    noisy = sorted({f"{r['device']}, sigma {r['sigma']:g}" for r in records if r["device"] != "digital"})
    caption = f"{'; '.join(noisy) or 'exact memory alone'}. {_title(records)}"
    return _Shown(
        rows,
        tables,
        caption,
        lambda: (figures.of_run(records, rows), None),
        lambda: records if len(records) <= MOST_DOWNLOADED else (),
        about,
        not said,
    )


def _of_sweep(folder: Path) -> _Shown:
    """Return what a sweep has to say."""
    path = folder / io.RECORDS
    rows, about = io.summarise_records(path), io.records_about(path)
    most = max((row["num_instances"] for row in rows), default=0) * len(rows)
    if (folder / "sweep.json").is_file():
        about = files.read_json("folder", folder / "sweep.json") | {"records": about}
    caption = "each point over its chips"
    return _Shown(
        rows,
        [Table(f"Sweep in {folder}: {caption}", rows)],
        caption,
        lambda: figures.of_sweep(path),
        lambda: io.read_records(path)[0] if most <= MOST_DOWNLOADED else (),
        about | _versions(folder),
    )


def _versions(folder: Path) -> dict[str, Any]:
    """Return the versions that a sweep was made with."""
    first = min((folder / "points").glob("*/run.json"), default=None)
    if first is None:
        return {}
    return {"versions": files.read_json("folder", first)["fingerprint"]["versions"]}


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
