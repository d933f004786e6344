"""One product on a fresh chip: what `product`, `sweep`, `tolerance` and `sensitivity` measure the output error of.

What is swept is a device, a number of its physics, an option of the crossbar, or a method against its errors.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nvcim_jax import checks, crossbar, devices, pipeline
from nvcim_jax.cli.known import known_device, there

__all__ = [
    "BITS",
    "CHOICES",
    "DEFAULTS",
    "MEMORY_BUDGET_MB",
    "MITIGATIONS",
    "NUMBERS",
    "PHYSICS",
    "Product",
    "build",
    "check",
    "check_all",
    "check_room",
    "closed_form",
    "common",
    "config_of",
    "device_of",
    "level_sigma",
    "named",
    "operands",
    "sigma_label",
]

_OF_DEVICE = ("sigma", "d2d_sigma", "stuck_on", "stuck_off", "on_off_ratio")
PHYSICS = (*_OF_DEVICE, "drift_time_s")
"""Numbers of a device's physics."""

NUMBERS = (*PHYSICS, "verified_share", "residual_sigma")
"""Settings that are numbers: they enter the compiled program as arguments."""

BITS = ("dac_bits", "adc_bits")
"""Options that `build` can relax to real numbers."""

MITIGATIONS = ("none", "write_verify", "column_factors", "drift_compensation")
"""Methods against the errors of a chip, an axis like any other: all of them see the same chips.

- `none`: the chip as it is.
- `write_verify`: the largest weights, `verified_share` of them (0.1), are verified until `residual_sigma` (0.03) is
  left (`crossbar.program_verified`).
- `column_factors`: a digital factor a column, fitted on a calibration batch (`crossbar.column_factors`).
- `drift_compensation`: a digital factor an array, from its summed conductance (`crossbar.compensate`); for devices that
  drift, with `drift_time_s`.
"""

Settings = dict[str, Any]

_CALIBRATION_BATCH = 64
_AFTER_READ = 2**31  # folds of the read key beyond those of the arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """One product y = x W on a chip; its fields, and those of its arrays, are the settings of every command."""

    device: str = "FeFET3"
    """Memory cell: RRAM1, FeFET2, FeFET3, RRAM4, FeFET6, PCM, RRAMWan2022-1d, RRAMMilo2021, Gaussian, ideal, ..., a
    file that nvcim device wrote of measured cells, or FILE@G_MAX_US of a table of measurements."""
    sigma: float | None = None
    """Programming noise: a share of g_max (the five of NVCiM-PT, Gaussian), or a factor on a measured noise (the
    others). None: the device's own."""
    d2d_sigma: float | None = None
    """Lasting offsets of cells, standard deviation relative to g_max. None: none."""
    stuck_on: float | None = None
    """Share of cells stuck at g_max, 0 to 1. None: none."""
    stuck_off: float | None = None
    """Share of cells stuck at g_min, 0 to 1. None: none."""
    on_off_ratio: float | None = None
    """g_max / g_min. None: the device's own."""
    drift_time_s: float | None = None
    """Seconds between programming and reading, for devices that drift. None: none."""
    mitigation: str = "none"
    """Method against the errors: none, write_verify, column_factors, drift_compensation."""
    verified_share: float | None = None
    """Share of the weights that write_verify verifies. None: 0.1."""
    residual_sigma: float | None = None
    """Noise that write_verify leaves, in the unit of sigma. None: 0.03."""
    rng: str = "counter"
    """Generator of the cells' noise: counter, threefry."""
    sampling: str = "device"
    """How a chip is drawn: device, pair, output_joint, output_marginal, moment_matched."""
    inputs: int = 384
    """Rows of the matrix W."""
    outputs: int = 128
    """Columns of the matrix W."""
    batch: int = 32
    """Input vectors that every chip is read with."""
    arrays: Annotated[crossbar.Config, tyro.conf.arg(name="")] = pipeline.Preset().arrays

    def settings(self) -> Settings:
        """Return it as settings by name: numbers that are not given, and the default bits of a cell, left out."""
        arrays = dataclasses.asdict(self.arrays)
        if self.arrays.cell_bits == _ARRAYS["cell_bits"]:
            del arrays["cell_bits"]
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "arrays"}
        return {name: value for name, value in own.items() if value is not None or name not in NUMBERS} | arrays


_ARRAYS = dataclasses.asdict(Product().arrays)
DEFAULTS: Settings = {
    **{f.name: f.default for f in dataclasses.fields(Product) if f.name not in (*NUMBERS, "arrays")},
    **_ARRAYS,
}
"""The product that every command takes where nothing else is said: one array of the crossbars of NVCiM-PT, whose cells
have no more bits than the device has levels for."""

CHOICES = tuple(DEFAULTS)
"""Settings that choose a program: each combination is compiled once."""

MEMORY_BUDGET_MB = 1024.0


def check(settings: Mapping[str, Any], memory_budget_mb: float = MEMORY_BUDGET_MB) -> None:
    """Check the settings of one point before anything is allocated or compiled.

    Raises:
        ValueError: If a name or a value is wrong; the message names it.
    """
    for name in settings:
        if name not in NUMBERS and name not in DEFAULTS:
            known = [*NUMBERS, *DEFAULTS]
            checks.fail(name, "be a setting of a product", "is not one", checks.suggestion(name, known))
    for name in ("inputs", "outputs", "batch"):
        checks.integer(name, {**DEFAULTS, **settings}[name])
    checks.choice("mitigation", {**DEFAULTS, **settings}["mitigation"], MITIGATIONS)
    _check_numbers(settings)
    device = device_of(settings, settings)
    config = config_of(settings)
    _check_time(settings, device)
    if "drift_time_s" in settings and device.drift is None:
        fix = "Choose a device that drifts, such as PCM, or leave drift_time_s out."
        checks.fail("drift_time_s", "be left out for a device without drift", f"is given for {device.name}", fix)
    if settings.get("mitigation") == "drift_compensation" and "drift_time_s" not in settings:
        checks.fail("drift_time_s", "be given with mitigation='drift_compensation'", "is missing")
    if settings.get("sampling", "device") != "device" and _keeps_a_chip(settings, config):
        found = f"is {settings['sampling']!r}, which keeps no chip"
        checks.fail("sampling", "be 'device' where a chip is calibrated, drifts or is mitigated", found)
    check_room(settings, memory_budget_mb)
    shapes = jax.eval_shape(lambda: operands(settings))
    jax.eval_shape(build({**settings}), jax.random.key(0), _numbers(settings), *shapes)


def check_room(settings: Mapping[str, Any], memory_budget_mb: float = MEMORY_BUDGET_MB) -> None:
    """Refuse a product that cannot stay inside the budget; its size follows from shapes alone.

    A chip is its cells as wanted, as programmed and as read, in float32, beside the matrix, what came of it, and the
    inputs and outputs of every array.
    """
    checks.number("memory_budget_mb", memory_budget_mb, low=0.0, low_open=True, unit="MiB")
    chosen = {**DEFAULTS, **settings}
    inputs, outputs, batch = chosen["inputs"], chosen["outputs"], chosen["batch"]
    found = crossbar.report((inputs, outputs), config_of(settings))
    converted = found.num_arrays * (found.array_rows + found.array_cols)
    needed = 4 * (3 * found.num_cells_available + 2 * inputs * outputs + batch * converted) / 2**20
    if needed > memory_budget_mb:
        wanted = f"be at least about {needed:.0f}, what a product of {inputs} x {outputs} takes on a chip"
        fix = "Give smaller `inputs`, `outputs` or `batch`, or a larger memory_budget_mb."
        checks.fail("memory_budget_mb", wanted, f"is {memory_budget_mb:g}", fix)


def _check_numbers(settings: Mapping[str, Any]) -> None:
    for name in NUMBERS:
        value = settings.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            checks.fail(name, "be a number", f"is {value!r}")
    checks.number("drift_time_s", settings.get("drift_time_s", 0.0), low=0.0, unit="s")
    checks.number("verified_share", settings.get("verified_share", 0.0), low=0.0, high=1.0)
    checks.number("residual_sigma", settings.get("residual_sigma", 0.0), low=0.0)


def _numbers(settings: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.float32(settings[name]) for name in NUMBERS if name in settings}


def device_of(settings: Mapping[str, Any], numbers: Mapping[str, Any]) -> devices.Device:
    """Return the device of a product, with the numbers of its physics from `numbers`."""
    given = {name: numbers[name] for name in _OF_DEVICE if name in numbers}
    chosen = {**DEFAULTS, **settings}
    device = known_device(chosen["device"], rng=chosen["rng"], **given)
    if "level_sigma" not in numbers:
        return device
    levels = _table(device)
    return device.replace(programming=devices.level_table(levels.conductance, numbers["level_sigma"], levels.mean))


def _table(device: devices.Device) -> Any:
    levels = None if device.programming is None else device.programming.levels
    if levels is None:
        fix = "Choose one of NVCiM-PT, such as FeFET6, or use sigma."
        checks.fail("level_sigma", "be of a device whose noise is a table of levels", f"is of {device.name!r}", fix)
    return levels


def level_sigma(settings: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Return the conductance and the noise, relative to the device's sigma, of each level of the device (L,).

    Raises:
        ValueError: If its noise is not a table of levels.

    Example:
        >>> conductance, sigma = level_sigma({"device": "FeFET6"})
        >>> [f"{s:.3f}" for s in sigma.tolist()]  # 1 / sqrt(0.6 + 0.4 x 36) outside, six times that inside
        ['0.258', '1.549', '1.549', '0.258']
    """
    table = _table(device_of(settings, settings))
    return table.conductance, table.sigma


def config_of(settings: Mapping[str, Any], relaxed: Sequence[str] = ()) -> crossbar.Config:
    """Return the options of the arrays; those of `BITS` in `relaxed` are there, whatever they are."""
    chosen: Settings = {name: settings.get(name, default) for name, default in _ARRAYS.items()}
    if "cell_bits" not in settings:
        chosen["cell_bits"] = _cell_bits({**DEFAULTS, **settings})
    # bits that are arguments: any number says that there is a converter
    chosen |= dict.fromkeys(relaxed, 24)
    return crossbar.Config(**chosen)


def _cell_bits(settings: Mapping[str, Any]) -> int | None:
    """Return the default bits of a cell: real for real weights, else no more than the device has levels for."""
    if settings["weight_bits"] is None:
        return None
    return pipeline.Preset().fitted(known_device(settings["device"])).arrays.cell_bits


def _keeps_a_chip(settings: Mapping[str, Any], config: crossbar.Config) -> bool:
    """Return whether something is done to a chip between its programming and its read."""
    calibrated = "calibrated" in (config.dac_range, config.adc_range)
    return calibrated or settings.get("mitigation", "none") != "none" or "drift_time_s" in settings


def operands(settings: Mapping[str, Any], seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Return the matrix (inputs, outputs) and the inputs (batch, inputs), standard normal from `seed`."""
    chosen = {**DEFAULTS, **settings}
    rows, cols, batch = chosen["inputs"], chosen["outputs"], chosen["batch"]
    weight_key, input_key = jax.random.split(jax.random.key(seed))
    return jax.random.normal(weight_key, (rows, cols)), jax.random.normal(input_key, (batch, rows))


def build(
    settings: Settings, relaxed: Sequence[str] = (), *, with_info: bool = False
) -> Callable[..., dict[str, jax.Array]]:
    """Return the metric `fn(key, numbers, weights, x)` for the settings that choose a program.

    Its value "error" is the relative root mean square error |Y - X W| / |X W| of one product on a freshly programmed
    chip, over batch and columns; converters, slicing and noise all count. Ranges that are to be calibrated, and
    `column_factors`, are found for each chip with 64 standard normal inputs of their own.

    Args:
        settings: Any of `CHOICES` (and `NUMBERS`, which are used where `numbers` does not hold them).
        relaxed: Those of `BITS` that are in `numbers`, as real numbers (`crossbar.Bits`).
        with_info: Whether there is also "adc_saturated", the share of conversions beyond the range.

    Example:
        >>> ideal = {"weight_bits": None, "dac_bits": None, "adc_bits": None}
        >>> metric = build({"device": "Gaussian", "weight_scale": "tensor", **ideal})
        >>> weights, x = operands({})
        >>> error = metric(jax.random.key(1), {"sigma": jnp.float32(0.02)}, weights, x)["error"]
        >>> print(f"{error:.2f}, {2 ** 0.5 * 0.02 * jnp.abs(weights).max():.2f}")  # sigma sqrt(2) w_max / w_rms
        0.1..., 0.1...
    """
    config = config_of(settings, relaxed)
    mitigation, sampling = settings.get("mitigation", "none"), settings.get("sampling", "device")

    def metric(key: jax.Array, numbers: dict[str, jax.Array], weights: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        given = {**{name: settings[name] for name in NUMBERS if name in settings}, **numbers}
        device = device_of(settings, given)
        bits = crossbar.Bits(**{name.removesuffix("_bits"): numbers[name] for name in relaxed})
        if _keeps_a_chip(given | {"mitigation": mitigation}, config):
            y, info = _product_of_chip(key, x, weights, given, device, config, mitigation, bits)
        else:
            target = crossbar.encode(weights, device, config=config)
            y, info = crossbar.sample(key, x, target, sampling=sampling, bits=bits)
        exact = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
        error = {"error": jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)}
        return {**error, "adc_saturated": info.adc_saturated} if with_info else error

    return metric


def _product_of_chip(
    key: jax.Array,
    x: jax.Array,
    weights: jax.Array,
    given: Mapping[str, Any],
    device: devices.Device,
    config: crossbar.Config,
    mitigation: str,
    bits: crossbar.Bits,
) -> tuple[jax.Array, crossbar.Info]:
    """Program a chip, calibrate it, let it drift, mitigate its errors, and multiply; the chip is that of `sample`."""
    write_key, read_key = jax.random.split(key)
    range_key, batch_key, method_key = jax.random.split(jax.random.fold_in(read_key, _AFTER_READ), 3)
    batch = jax.random.normal(batch_key, (_CALIBRATION_BATCH, weights.shape[0]))
    if mitigation == "write_verify":
        verified = crossbar.selected(jnp.abs(weights), jnp.float32(given.get("verified_share", 0.1)))
        residual = given.get("residual_sigma", 0.03)
        chip = crossbar.program_verified(write_key, weights, verified, device, residual, config=config)
    else:
        chip = crossbar.program(write_key, weights, device, config=config)
    if "calibrated" in (config.dac_range, config.adc_range):
        chip = crossbar.calibrate(range_key, batch, chip)
    if "drift_time_s" in given:
        chip = crossbar.drift(chip, jnp.float32(given["drift_time_s"]))
    if mitigation == "drift_compensation":
        chip = crossbar.compensate(method_key, chip)
    y, info = crossbar.matmul(read_key, x, chip, bits=bits)
    if mitigation == "column_factors":
        outputs, _ = crossbar.matmul(method_key, batch, chip, bits=bits)
        reference = jnp.matmul(batch, weights, precision=jax.lax.Precision.HIGHEST)
        y = y * crossbar.column_factors(outputs, reference)[None, :]
    return y, info


def closed_form(settings: Settings, weights: jax.Array, x: jax.Array) -> float | None:
    """Return the expected RMS error of the cells alone, with ideal converters; None where there is no closed form."""
    device, config = device_of(settings, settings), config_of(settings)
    if device.read is not None or "drift_time_s" in settings or settings.get("mitigation", "none") != "none":
        return None
    mean, variance = crossbar.product_moments(x, crossbar.encode(weights, device, config=config))
    exact = np.asarray(jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST))
    squares = np.square(np.asarray(mean) - exact) + np.asarray(variance)
    return math.sqrt(np.sum(squares, dtype=np.float64) / np.sum(np.square(exact), dtype=np.float64))


def named(settings: Settings) -> str:
    """Return the device of a product and its noise, with the noise's unit.

    Example:
        >>> named({"device": "FeFET6", "sigma": 0.05}), named({"device": "PCM"})
        ('FeFET6, sigma 0.05 (share of g_max)', 'PCM, sigma 1 (multiple of the measured noise)')
    """
    device = device_of(settings, settings)
    return f"{device.name}, {device.sigma_label.replace('sigma', f'sigma {float(device.sigma):g}')}"


def sigma_label(named: Iterable[str], fixed: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return what sigma is of: a share of g_max for some devices, a multiple of what was measured for others.

    Args:
        named: Names of devices, such as the values of an axis.
        fixed: Settings of all points, which name the device where it is no axis.

    Example:
        >>> sigma_label(["FeFET3", "FeFET6"]), sigma_label((), {"device": "PCM"})
        ('sigma (share of g_max)', 'sigma (multiple of the measured noise)')
    """
    given = [*named] or [fixed.get("device", DEFAULTS["device"])]
    known = {name: _if_there(name) for name in dict.fromkeys(given)}
    known = {name: device for name, device in known.items() if device is not None}
    labels = {name: device.sigma_label for name, device in known.items()}
    if len(set(labels.values())) < 2:
        return next(iter(labels.values()), "sigma")
    measured = ", ".join(name for name, device in known.items() if device.sigma_unit == "measured")
    return f"sigma (share of g_max;\nfor {measured} a multiple of the measured noise)"


def common(axes: Sequence[str], fixed: Mapping[str, Any]) -> str:
    """Return the device and the noise of a sweep where they are no axis, from the settings of all points.

    Example:
        >>> common(["sigma"], {"device": "PCM"}), common(["adc_bits"], {"sigma": 0.05})
        ('PCM', 'FeFET3, sigma 0.05 (share of g_max)')
    """
    fixed = {name: fixed[name] for name in ("device", "sigma") if name not in axes and name in fixed}
    name = str(fixed.get("device", DEFAULTS["device"]))
    if "device" in axes:
        return f"sigma {fixed['sigma']:g}" if "sigma" in fixed else ""
    if "sigma" in axes or _if_there(name) is None:
        return name.rpartition("/")[2]
    return named({"device": name} | fixed)


def _check_time(settings: Mapping[str, Any], device: devices.Device) -> None:
    """Refuse a time beyond the last one that cells were measured at, which a traced time cannot be."""
    last = getattr(device.drift, "last_s", None)
    if last is not None and "drift_time_s" in settings:
        fix = f"Nothing is known of {device.name!r} beyond that."
        checks.number("drift_time_s", settings["drift_time_s"], low=0.0, high=float(last) * 1.00001, unit="s", fix=fix)


def _if_there(name: str) -> devices.Device | None:
    """Return a device of the table or of a file; None where there is none any more."""
    if name in devices.names() or there(name):
        return known_device(name)
    return None


def check_all(points: Sequence[Mapping[str, Any]], memory_budget_mb: float = MEMORY_BUDGET_MB) -> None:
    """Check every point of a grid; those that differ in numbers only are traced once."""
    seen = set()
    for settings in points:
        program = tuple(sorted((n, str(v)) for n, v in settings.items() if n not in NUMBERS))
        if program not in seen:
            check(settings, memory_budget_mb)
            seen.add(program)
        else:
            _check_numbers(settings)
            _check_time(settings, device_of(settings, settings))
