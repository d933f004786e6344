"""What every plot script on domain shift does: read the records, draw, write the PNG files and the table."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.shift.measure import read, summaries, table
from nvcim_jax import files, plots

__all__ = ["levels_of", "main", "of_device"]

Record = dict[str, Any]
Figure = Callable[[list[Record], list[Record]], Any]


def of_device(rows: Sequence[Record]) -> list[Record]:
    """Return the rows that were measured on devices."""
    return [row for row in rows if row["device"] != "digital"]


def levels_of(rows: Sequence[Record], names: Sequence[str]) -> dict[str, float]:
    """Return the accuracies of methods without a device, as far as they were measured."""
    found = {row["method"]: row["accuracy"] for row in rows if row["device"] == "digital"}
    return {name: found[name] for name in names if name in found}


def main(
    figures: Mapping[str, Figure],
    arguments: Sequence[str] | None = None,
    *,
    columns: Sequence[str] = ("accuracy", "hit", "gap", "difference"),
) -> list[Path]:
    """Draw the figures of a folder that run.py has written, write its table, and return the paths.

    Args:
        figures: Name of each file -> function of the records and of the rows of their summary; None where nothing of
            it was measured.
        arguments: Words of the command line; those of the process by default.
        columns: Columns of the table.
    """
    parser = argparse.ArgumentParser(description="Draw the figures of an experiment from its records.")
    parser.add_argument("folder", type=Path, help="folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    records = read(folder)
    rows = summaries(records)
    paths = []
    for name, figure in figures.items():
        drawn = figure(records, rows)
        if drawn is not None:
            paths.append(folder / f"{name}.png")
            files.write(paths[-1], plots.png(drawn))
    paths.append(folder / "table.md")
    files.write(paths[-1], table(rows, columns) + "\n")
    print("Written:", *paths, sep="\n  ")
    return paths
