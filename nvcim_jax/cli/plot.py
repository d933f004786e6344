"""`nvcim plot`: the figures of a sweep or a run, from its saved records only."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from nvcim_jax import checks, files, io
from nvcim_jax.cli import figures
from nvcim_jax.cli.chip_means import chip_means, table
from nvcim_jax.cli.report import JOURNAL, finished, is_sweep

__all__ = ["Options", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the figures of a sweep, or of a run, from its saved records."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the sweep or of the run."""
    metric: str | None = None
    """Value whose spread over the chips is drawn: error of a sweep; accuracy or hit of a run (default: the first of a
    sweep; of a run the methods side by side, and what is forgotten)."""
    x: str | None = None
    """Axis along which bands and yields are drawn (default: the first that is a number)."""
    bound: float | None = None
    """Worst metric of a good chip, for the yield (default: what 95 % of the chips reach at the best setting)."""
    larger_is_better: bool | None = None
    """Whether the metric is one, like an accuracy, that should be large (default: what the records or its name say)."""


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    how = {"x": options.x, "bound": options.bound, "larger": options.larger_is_better}
    if is_sweep(options.folder):
        made, source = figures.of_sweep(options.folder / io.RECORDS, options.metric, **how)
    else:
        made, source = _of_run(options, how)
    for path in figures.save(made, options.folder, source):
        print(f"figure: {path}")
    return 0


def _of_run(options: Options, how: dict[str, Any]) -> Any:
    """Draw the methods of a run, or the spread of a value over its chips."""
    folder = options.folder
    there = (folder / io.RECORDS, folder / JOURNAL)
    if not any(path.is_file() for path in there) and not any(folder.rglob(JOURNAL)):
        fix = "Run `nvcim sweep` or `nvcim run` first."
        checks.fail("folder", f"hold {io.RECORDS} or {JOURNAL}", f"does not: {folder}", fix)
    if options.metric is None:
        given = [name for name, value in how.items() if value is not None]
        if given:
            found = f"is not, while {', '.join(given)} is"
            checks.fail("--metric", "be given with --x, --bound or --larger-is-better of a run", found)
    records, said = finished(folder)
    if said:
        print(said)
    if options.metric is None:
        return figures.of_run(records, table(records)), None
    config = folder / "config.json"
    command = files.read_json("folder", config)["command"] if config.is_file() else ""
    path = next((path for path in there if path.is_file()), None) or min(folder.rglob(JOURNAL))
    return figures.of_run_chips(chip_means(records), path, command, options.metric, **how)
