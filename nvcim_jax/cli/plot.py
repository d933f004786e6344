"""`nvcim plot`: the figures of a sweep, from its saved records only."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from nvcim_jax import checks
from nvcim_jax.cli import matrix
from nvcim_jax.cli.report import SWEPT, report

__all__ = ["Options", "draw", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draw the figures of a sweep, or of a run, from its saved records."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the sweep or of the run."""
    metric: str = "error"
    """Value to draw."""
    x: str | None = None
    """Axis along which bands and yields are drawn (default: the first that is a number)."""
    bound: float | None = None
    """Worst metric of a good chip, for the yield (default: what 95 % of the chips reach at the best setting)."""
    larger_is_better: bool | None = None
    """Whether the metric is one, like an accuracy, that should be large (default: what the records or its name say)."""


def _about(axes: Sequence[str], command: str, sigma: str) -> str:
    """Return what all chips have in common, and what sigma is of where it is an axis."""
    own = sigma.replace("\n", " ") if "sigma" in axes else ""
    return "; ".join(part for part in (matrix.common(axes, command), own) if part)


def draw(
    records: Path,
    out: Path,
    metric: str,
    x: str | None = None,
    bound: float | None = None,
    larger: bool | None = None,
) -> list[Path]:
    """Draw every figure that the records allow, and return the paths."""
    from nvcim_jax.plots import chips

    table = chips.load(records)
    named = table.columns["device"].tolist() if "device" in table.columns else ()
    labels = {"sigma": matrix.sigma_label(named, table.source["command"])}
    labels |= {"error": "relative error of a product"} if metric == "error" else {}
    table = table._replace(labels=labels, about=_about(table.axes, table.source["command"], labels["sigma"]))
    paths = [
        chips.ecdf(table, metric, out / f"{metric}_ecdf.png"),
        chips.violin(table, metric, out / f"{metric}_violin.png"),
    ]
    numeric = chips.number_axes(table)
    if x is not None:
        checks.choice("--x", x, numeric)
    if numeric:
        along = x or numeric[0]
        paths.append(chips.band(table, metric, along, out / f"{metric}_against_{along}.png"))
        where = out / f"{metric}_yield_{along}.png"
        paths.append(chips.yield_curve(table, metric, along, where, bound=bound, larger=larger))
    return paths


def _of_run(options: Options) -> int:
    """Draw the figures of a run, which have axes of their own."""
    given = dataclasses.replace(options, folder=Path()) != Options(folder=Path())
    if given:
        checks.fail("--metric", "be left out for a run", "it, --x, --bound or --larger-is-better is given")
    for path in report(options.folder, plots=True):
        print(f"figure: {path}")
    return 0


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    records = options.folder / SWEPT
    if (options.folder / "records.jsonl").is_file():
        return _of_run(options)
    if not records.is_file():
        fix = "Run `nvcim sweep` or `nvcim run` first."
        checks.fail("folder", f"hold {SWEPT} or records.jsonl", f"does not: {options.folder}", fix)
    how = (options.metric, options.x, options.bound, options.larger_is_better)
    for path in draw(records, options.folder, *how):
        print(f"figure: {path}")
    return 0
