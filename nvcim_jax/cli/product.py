"""`nvcim product`: how far one matrix product is off on noisy chips, over many of them."""

import dataclasses
import json
import math
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jaxlib
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import nvcim_jax
from nvcim_jax import checks, crossbar, files, io, montecarlo, plots
from nvcim_jax.cli import duration, matrix
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.known import content
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["FILES", "Options", "Summary", "main"]

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
CHIPS = "chips"  # folder of the chips of a study that is not finished
PRODUCT = matrix.Product()
NAMES = {"path": "--device"}
"""Options of what the library calls otherwise."""

FILES = ("chips.jsonl", "chips.csv", "error.png", "product.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure one noisy product over chips: y = x W on freshly programmed chips, against x W without any error.

    W and x are drawn from a normal distribution by the seed; every chip is programmed and read anew. `None` is ideal.
    The chips, and every default, are those of `nvcim sweep`.
    """

    product: Annotated[matrix.Product, tyro.conf.arg(name="")] = PRODUCT
    instances: int = 1000
    """Chips."""
    seed: int = 0
    """Seed of the matrix, the inputs and the chips."""
    memory_budget_mb: float = matrix.MEMORY_BUDGET_MB
    """MiB that one chip may take."""
    out: Path = Path("runs/product")
    """Folder for the results; new or empty, or that of the same command, which then goes on."""
    overwrite: bool = False
    """Replace earlier results in that folder."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


class Summary(NamedTuple):
    """What came out.

    Attributes:
        chips: Columns of the records: `relative_error`, ||y - x W|| / ||x W|| over the batch of each chip, and
            `adc_saturated`, the share of conversions beyond the range; float64 arrays (instances,).
        statistics: Numbers over all finite chips; None where there are too few chips for a number.
        hardware: What the matrix takes: arrays, cells, operations.
        seconds: Time from the first chip's compilation to the last chip.
    """

    chips: dict[str, Any]
    statistics: dict[str, Any]
    hardware: dict[str, Any]
    seconds: float


def main(options: Options) -> int:
    """Run the command and return its exit code: 1 where no chip gave a number.

    Raises:
        ValueError: If an option is wrong or the folder cannot be used, before any chip is computed.
        OSError: If the disk refuses the results.
    """
    checks.integer("instances", options.instances)
    checks.integer("seed", options.seed, low=0, high=2**32 - 1)
    settings = options.product.settings()
    matrix.check(settings, options.memory_budget_mb)
    if options.dry_run:
        return _planned(settings, options)
    prepare_folder(options.out, overwrite=options.overwrite)
    found = _measure(settings, options)
    _print_table(found, settings)
    written = _write(found, settings, options)
    shutil.rmtree(options.out / CHIPS, ignore_errors=True)  # all of it is in the tables now
    print("Written:")
    for path in written:
        print(f"  {path}")
    print_result(options, _about(found, settings, options))
    if found.statistics["nonfinite"] < found.statistics["instances"]:
        return 0
    print("nvcim product: no chip gave a finite error; see the noise of the device", file=sys.stderr)
    return 1


def _planned(settings: dict[str, Any], options: Options) -> int:
    """Say how long it would take and what would be written."""
    weights, x = matrix.operands(settings, options.seed)
    metric, numbers = _metric(settings)
    line, seconds = duration.chips(metric, (numbers, weights, x), options.instances)
    print(line)
    print(duration.nothing_done(options.out, FILES))
    print_result(options, {"chips": options.instances, "seconds": seconds, "out": str(options.out)})
    return 0


def _metric(settings: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    """Return the metric of a chip, and the numbers that are its arguments."""
    numbers = {name: float(settings[name]) for name in matrix.NUMBERS if name in settings}
    return matrix.build({n: v for n, v in settings.items() if n not in numbers}, with_info=True), numbers


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make the folder, and check that it can be written to and holds at most chips of an unfinished run.

    Raises:
        ValueError: If it holds something else and is not to be overwritten.
        OSError: If it cannot be written to.
    """
    files.folder("--out", out)
    files.write(out / ".probe", "").unlink()  # tells now what would be told after the last chip
    for leftover in out.glob(".*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink()
    own = {CHIPS, *FILES} if (out / CHIPS).is_dir() else set()  # killed before or while the tables were written
    there = sorted({path.name for path in out.iterdir()} - own)
    if overwrite:
        shutil.rmtree(out / CHIPS, ignore_errors=True)
    elif there:
        fix = "Give another --out, or --overwrite to replace earlier results."
        checks.fail("--out", "be a new or empty folder", f"{out} holds {there[0]}", fix)


def _measure(settings: dict[str, Any], options: Options) -> Summary:
    """Run the chips, kept while they are computed, and count what they take."""
    weights, x = matrix.operands(settings, options.seed)
    metric, numbers = _metric(settings)
    started = time.perf_counter()
    stats = montecarlo.run(
        metric,
        jax.random.key(options.seed),
        options.instances,
        args=(numbers, weights, x),
        quantiles=QUANTILES,
        progress=options.said.progress,
        store=io.folder(options.out / CHIPS, config={**settings, "seed": options.seed} | content(settings["device"])),
    )
    seconds = time.perf_counter() - started
    error = stats.values["error"]
    finite = np.asarray(error, np.float64)[np.isfinite(error)]
    statistics = {
        "instances": stats.num_instances,
        "nonfinite": stats.num_nonfinite,
        "mean_relative_error": stats.mean["error"],
        "standard_error": stats.standard_error["error"],
        "standard_deviation": stats.standard_deviation["error"],
        "rms_relative_error": math.sqrt(np.mean(finite**2)) if len(finite) else math.nan,
        "rms_relative_error_closed_form": matrix.closed_form(settings, weights, x),
        "quantiles": {str(q): v for q, v in zip(QUANTILES, stats.quantiles["error"], strict=True)},
        "adc_saturated": stats.mean["adc_saturated"],
    }
    hardware = crossbar.report(weights.shape, matrix.config_of(settings))
    counts = hardware._asdict() | {"num_cells_used": hardware.num_cells_used}
    chips = {"relative_error": error, "adc_saturated": stats.values["adc_saturated"]}
    return Summary(chips, _numbers(statistics), counts, seconds)


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain numbers that JSON knows: None where one is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if value is None or isinstance(value, int):
            return value
        return float(value) if math.isfinite(value) else None

    return {name: plain(value) for name, value in values.items()}


def _print_table(found: Summary, settings: dict[str, Any]) -> None:
    numbers, hardware = found.statistics, found.hardware

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.3f} %"

    title = f"{settings['inputs']} x {settings['outputs']} product on {matrix.named(settings)}"
    table = Table(title=title, title_justify="left")
    table.add_column("relative error over chips")
    table.add_column("", justify="right")
    spread = f"{share(numbers['mean_relative_error'])} ± {share(numbers['standard_error'])}"
    table.add_row("mean ± standard error", spread)
    table.add_row("standard deviation", share(numbers["standard_deviation"]))
    table.add_row("RMS", share(numbers["rms_relative_error"]))
    table.add_row("RMS, closed form, ideal converters", share(numbers["rms_relative_error_closed_form"]))
    for level, value in numbers["quantiles"].items():
        table.add_row(f"quantile {float(level):.0%}", share(value))
    table.add_row("conversions beyond the range", share(numbers["adc_saturated"]), end_section=True)
    table.add_row("chips", f"{numbers['instances']}")
    table.add_row("of these not finite, left out", f"{numbers['nonfinite']}")
    table.add_row("chips a second", f"{numbers['instances'] / found.seconds:.0f}", end_section=True)
    size = f"{hardware['num_arrays']} of {hardware['array_rows']} x {hardware['array_cols']}"
    table.add_row("arrays of a chip", size)
    used = f"{hardware['num_cells_used']:,} of {hardware['num_cells_available']:,} ({hardware['utilisation']:.0%})"
    table.add_row("cells used", used)
    table.add_row("conversions a product", f"{hardware['num_adc_conversions']:,}")
    Console().print(table)


def _write(found: Summary, settings: dict[str, Any], options: Options) -> list[Path]:
    """Write all files, each whole or not at all."""
    records = _records(found.chips)
    contents = {
        "chips.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "chips.csv": files.csv(records),
        "error.png": _figure(found, settings),
        "product.json": json.dumps(_about(found, settings, options), indent=1) + "\n",
    }
    return [files.write(options.out / name, contents[name]) for name in FILES]


def _records(chips: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {name: [float(value) for value in values] for name, values in chips.items()}
    count = len(next(iter(columns.values())))
    return [{"instance": i} | _numbers({name: values[i] for name, values in columns.items()}) for i in range(count)]


def _figure(found: Summary, settings: dict[str, Any]) -> bytes:
    quantiles = {float(q): math.nan if v is None else v for q, v in found.statistics["quantiles"].items()}
    size = f"{settings['inputs']} × {settings['outputs']}"
    figure = plots.error_distribution(
        np.asarray(found.chips["relative_error"], np.float64),
        quantiles,
        closed_form=found.statistics["rms_relative_error_closed_form"],
        title=f"{matrix.named(settings)}; {size}; {found.statistics['instances']} chips",
    )
    return plots.png(figure)


def _about(found: Summary, settings: dict[str, Any], options: Options) -> dict[str, Any]:
    return {
        "command": command_line("product", options, in_full=True),
        "settings": settings,
        "statistics": found.statistics,
        "hardware": found.hardware,
        "seconds": round(found.seconds, 3),
        "versions": {
            "nvcim_jax": nvcim_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind, "cpus": os.cpu_count()},
    }
