"""`nvcim study`: how far one matrix product is off on noisy chips, over many of them."""

import dataclasses
import functools
import json
import math
import os
import platform
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from nvcim_jax import checks, files

__all__ = ["Options", "Summary", "command", "main"]

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
FILES = ("chips.jsonl", "chips.csv", "error.png", "study.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Monte Carlo study of one noisy product: y = x W on freshly programmed chips, against x W without any error.

    W and x are drawn from a normal distribution by the seed; every chip is programmed and read anew. `None` is ideal.
    """

    device: str = "FeFET6"
    """Memory cell: RRAM1, FeFET2, FeFET3, RRAM4, FeFET6, PCM, RRAMWan2022-1d, RRAMMilo2021, Gaussian, ideal, ..."""
    sigma: float | None = None
    """Programming noise: relative to g_max (devices of NVCiM-PT and Gaussian) or a multiplier of the measured noise.
    None is the device's own."""
    d2d_sigma: float | None = None
    """Lasting offsets of cells, standard deviation relative to g_max; None for none."""
    stuck_on: float | None = None
    """Share of cells stuck at g_max, 0 to 1; None for none."""
    stuck_off: float | None = None
    """Share of cells stuck at g_min, 0 to 1; None for none."""
    on_off_ratio: float | None = None
    """g_max / g_min; None is the device's own."""
    rng: str = "counter"
    """Generator of the cells' noise: counter, threefry."""
    inputs: int = 384
    """Rows of the matrix W."""
    outputs: int = 128
    """Columns of the matrix W."""
    batch: int = 32
    """Input vectors that every chip is read with."""
    rows: int | None = 384
    """Word lines of one array; None for as many as are needed."""
    cols: int | None = 128
    """Bit lines of one array; None for as many as are needed."""
    mapping: str = "differential"
    """Signed weights as: differential, offset, offset_digital."""
    slices: str = "arrays"
    """Where the slices of a weight lie: arrays, rows, columns."""
    weight_bits: int | None = 16
    """Bits of a weight, sign included."""
    cell_bits: int | None = 2
    """Bits of one cell."""
    dac_bits: int | None = 8
    """Bits of an input, sign included."""
    adc_bits: int | None = 8
    """Bits of a conversion."""
    adc_range: str = "absmax"
    """Full scale of the conversions: absmax, max, calibrated."""
    sampling: str = "device"
    """How a chip is drawn: device, pair, output_joint, output_marginal, moment_matched."""
    instances: int = 1000
    """Chips."""
    seed: int = 0
    """Seed of the matrix, the inputs and the chips."""
    out: Path = Path("runs/study")
    """Folder for the results; new or empty."""
    overwrite: bool = False
    """Replace the results of an earlier study in that folder."""


class Summary(NamedTuple):
    """What a study found.

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
    """Run the study, print its table, and write records and figure; everything written is named at the end.

    Args:
        options: What to study.

    Returns:
        Exit code 0.

    Raises:
        ValueError: If an option is wrong or the folder cannot be used, before any chip is computed.
        OSError: If the disk refuses the results.
    """
    problem = _problem(options)  # everything that can be wrong with the hardware
    prepare_folder(options.out, overwrite=options.overwrite)
    found = _measure(problem, options)
    _print_table(found, options)
    written = _write(found, options)
    print("Written:")
    for path in written:
        print(f"  {path}")
    return 0


def command(options: Options) -> str:
    """Return the command that repeats a study, with every option written out, so that no later default changes it.

    Example:
        >>> command(Options(sigma=0.1)).split(" --")[:3]
        ['nvcim study', 'device FeFET6', 'sigma 0.1']
    """
    words = ["nvcim", "study"]
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), "--" + field.name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make the folder, and check that it is empty (unless `overwrite`) and can be written to.

    Raises:
        ValueError: If it is not.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        there = sorted(path.name for path in out.iterdir())
    except OSError as error:
        checks.fail("out", "be a folder that can be written", f"is {out} ({error.strerror})", "Give another --out.")
    if there and not overwrite:
        fix = "Give another --out, or --overwrite to replace an earlier study."
        checks.fail("out", "be a new or empty folder", f"{out} holds {there[0]}", fix)


class _Problem(NamedTuple):
    """One product, its exact result, and the hardware it runs on."""

    x: Any
    truth: Any
    target: Any
    device: Any
    config: Any
    key: Any


def _problem(options: Options) -> _Problem:
    """Draw the product and place it on the hardware, which checks every option but the folder."""
    import jax
    import jax.numpy as jnp

    from nvcim_jax import crossbar

    for name in ("inputs", "outputs", "batch", "instances"):
        checks.integer(name, getattr(options, name))
    checks.integer("seed", options.seed, low=0, high=2**32 - 1)
    device = _device(options)
    shared = {field.name for field in dataclasses.fields(crossbar.Config)} & vars(options).keys()
    config = crossbar.Config(**{name: getattr(options, name) for name in shared})
    weight_key, input_key, range_key, chip_key = jax.random.split(jax.random.key(options.seed), 4)
    weights = jax.random.normal(weight_key, (options.inputs, options.outputs), jnp.float32)
    x = jax.random.normal(input_key, (options.batch, options.inputs), jnp.float32)
    target = crossbar.encode(weights, device, config=config)
    if config.adc_range == "calibrated":
        target = dataclasses.replace(target, adc_range=_ranges(range_key, x, target))
    jax.eval_shape(functools.partial(crossbar.sample, sampling=options.sampling), chip_key, x, target)
    truth = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
    return _Problem(x, truth, target, device, config, chip_key)


def _ranges(key: Any, x: Any, target: Any) -> Any:
    """Take the ranges of the converters from one chip, for all chips."""
    import jax

    from nvcim_jax import crossbar

    @jax.jit
    def find(key: jax.Array, x: jax.Array, target: Any) -> Any:
        write_key, read_key = jax.random.split(key)
        return crossbar.calibrate(read_key, x, crossbar.write(write_key, target)).adc_range

    return find(key, x, target)


def _device(options: Options) -> Any:
    from nvcim_jax import devices

    checks.choice("--device", options.device, devices.names())
    given = ("sigma", "d2d_sigma", "stuck_on", "stuck_off", "on_off_ratio")
    numbers = {name: getattr(options, name) for name in given}
    given_numbers = {name: value for name, value in numbers.items() if value is not None}
    return devices.get(options.device, rng=options.rng, **given_numbers)


def _chip(key: Any, x: Any, truth: Any, target: Any, *, sampling: str) -> dict[str, Any]:
    """Return the error of one chip, and what its converters did."""
    import jax.numpy as jnp

    from nvcim_jax import crossbar

    y, info = crossbar.sample(key, x, target, sampling=sampling)
    error = jnp.linalg.norm(y - truth) / jnp.linalg.norm(truth)
    return {"relative_error": error, "adc_saturated": info.adc_saturated}


def _measure(problem: _Problem, options: Options) -> Summary:
    import numpy as np

    from nvcim_jax import montecarlo
    from nvcim_jax.crossbar.report import report

    metric = functools.partial(_chip, sampling=options.sampling)
    arguments = (problem.x, problem.truth, problem.target)
    started = time.perf_counter()
    stats = montecarlo.run(metric, problem.key, options.instances, args=arguments, quantiles=QUANTILES)
    seconds = time.perf_counter() - started
    error = stats.values["relative_error"]
    finite = np.asarray(error, np.float64)[np.isfinite(error)]
    statistics = {
        "instances": stats.num_instances,
        "nonfinite": stats.num_nonfinite,
        "mean_relative_error": stats.mean["relative_error"],
        "standard_error": stats.standard_error["relative_error"],
        "standard_deviation": stats.standard_deviation["relative_error"],
        "rms_relative_error": math.sqrt(np.mean(finite**2)) if len(finite) else math.nan,
        "rms_relative_error_closed_form": _closed_form(problem),
        "quantiles": {str(q): v for q, v in zip(QUANTILES, stats.quantiles["relative_error"], strict=True)},
        "adc_saturated": stats.mean["adc_saturated"],
    }
    hardware = report((options.inputs, options.outputs), problem.config)
    counts = hardware._asdict() | {"num_cells_used": hardware.num_cells_used}
    chips = {name: stats.values[name] for name in ("relative_error", "adc_saturated")}
    return Summary(chips, _numbers(statistics), counts, seconds)


def _closed_form(problem: _Problem) -> float | None:
    """Return the expected RMS error of the cells alone; None where there is no closed form."""
    import numpy as np

    from nvcim_jax.crossbar.moments import product_moments

    if problem.device.read is not None:
        return None
    mean, variance = product_moments(problem.x, problem.target)
    squares = np.square(np.asarray(mean) - np.asarray(problem.truth)) + np.asarray(variance)
    return math.sqrt(np.sum(squares, dtype=np.float64) / np.sum(np.square(problem.truth), dtype=np.float64))


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return plain numbers that JSON knows: None where one is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items()}
        if value is None or isinstance(value, int):
            return value
        return float(value) if math.isfinite(value) else None

    return {name: plain(value) for name, value in values.items()}


def _print_table(found: Summary, options: Options) -> None:
    from rich.console import Console
    from rich.table import Table

    numbers, hardware = found.statistics, found.hardware

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.3f} %"

    device = _device(options)
    noise = device.sigma_label.replace("sigma", f"sigma {float(device.sigma):g}")
    title = f"{options.inputs} x {options.outputs} product on {options.device}, {noise}"
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


def _write(found: Summary, options: Options) -> list[Path]:
    """Write all files, each whole or not at all."""
    contents = {
        "chips.jsonl": _jsonl(found.chips),
        "chips.csv": files.csv(_records(found.chips)),
        "error.png": _figure(found, options),
        "study.json": json.dumps(_about(found, options), indent=1) + "\n",
    }
    for name in FILES:
        files.write(options.out / name, contents[name])
    return [options.out / name for name in FILES]


def _records(chips: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {name: [float(value) for value in values] for name, values in chips.items()}
    count = len(next(iter(columns.values())))
    return [{"instance": i} | _numbers({name: values[i] for name, values in columns.items()}) for i in range(count)]


def _jsonl(chips: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in _records(chips))


def _figure(found: Summary, options: Options) -> bytes:
    import numpy as np

    from nvcim_jax import plots

    quantiles = {float(q): math.nan if v is None else v for q, v in found.statistics["quantiles"].items()}
    figure = plots.error_distribution(
        np.asarray(found.chips["relative_error"], np.float64),
        quantiles,
        closed_form=found.statistics["rms_relative_error_closed_form"],
        title=f"{options.device}, {options.inputs} × {options.outputs}, {options.instances} chips",
    )
    return plots.png(figure)


def _about(found: Summary, options: Options) -> dict[str, Any]:
    import jax
    import jaxlib
    import numpy as np

    import nvcim_jax

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {
        "command": command(options),
        "options": plain,
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
