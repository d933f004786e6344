"""The noise-aware matrix product: one read of a programmed chip."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.chip import Chip, conductances
from nvcim_jax.crossbar.config import Config, Converters, stored_slices
from nvcim_jax.crossbar.converters import Bits, Dither, Drive, adc, as_read, check_bits, check_inputs, dac, dither
from nvcim_jax.crossbar.lines import bit_lines, converts_lines, signed_cells, subtract_lines
from nvcim_jax.crossbar.mapping import Target, output_factor, scaled, slice_weights, zero_conductance
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["Info", "matmul"]


class Info(NamedTuple):
    """What happened in the converters.

    Attributes:
        dac_clipped: Share of the inputs beyond the full scale.
        adc_saturated: Share of the conversions beyond the range.
    """

    dac_clipped: Float[Array, ""]
    adc_saturated: Float[Array, ""]


class Lines(NamedTuple):
    """One array as a product sees it.

    Attributes:
        outputs: Returns what the bit lines carry for a batch of inputs.
        subtracted: Whether pairs or references are subtracted already.
    """

    outputs: Callable[[Float[Array, "vectors tile_rows"]], Float[Array, "vectors lines"]]
    subtracted: bool


@checked
def matmul(
    key: Key,
    x: Num[ArrayLike, "..."],
    chip: Chip,
    *,
    converters: Converters | None = None,
    bits: Bits | None = None,
) -> tuple[Float[Array, "..."], Info]:
    """Multiply inputs with a programmed chip: one read, clock 3 of the noise.

    Array by array: y += base**s gain_a ADC(sum_rows DAC(x) g_a), with the subtraction of pairs or references before or
    after the conversion, then times the scale of the column. All vectors of a call meet the same read noise; map over
    keys for a read each.

    Args:
        key: Key of this read; used where the device has read noise.
        x: Inputs (..., rows), real: one vector, a batch, any leading axes. Converters work on each vector by itself.
        chip: The chip, from `program`.
        converters: Converters of this read; None for those of the chip. The layout is the chip's in any case.
        bits: Bits of relaxed converters, in place of those of the converters; None rounds.

    Returns:
        y: Products (..., cols).
        info: Shares of clipped inputs and saturated conversions.

    Raises:
        ValueError: If `x` has the wrong shape, is not finite, or lies outside a fixed range; if a range is to be
            calibrated and is not; if the converters do not fit the chip.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("Gaussian", sigma=0.05)
        >>> weights, x = jnp.ones((400, 2000)), jnp.ones(400)
        >>> chip = crossbar.program(jax.random.key(0), weights, device, config=crossbar.Config())
        >>> y, _ = crossbar.matmul(jax.random.key(1), x, chip)
        >>> print(f"{y.std():.1f}, sigma sqrt(2 sum x^2) = {0.05 * (2 * 400) ** 0.5:.1f}")
        1.4, sigma sqrt(2 sum x^2) = 1.4

    References:
        R. Qin et al., "NVCiM-PT: An NVCiM-assisted prompt tuning framework for edge LLMs", DATE 2025, arXiv:2411.08244.
    """
    chip = as_read(chip, converters)
    check_read(x, chip, bits)
    return _read_product(key, jnp.asarray(x, jnp.float32), chip, bits)


def check_read(x: ArrayLike, held: Chip | Target, bits: Bits | None) -> None:
    """Check inputs, ranges and relaxed bits of a read, before anything is traced."""
    check_inputs(x, held.num_rows, held.dac_max, held.config)
    check_calibrated(held)
    check_bits(bits, held.config)


# Compiled once for a shape and a configuration, for eager callers; inside another jit it is inlined.
@functools.partial(jax.jit, inline=True)
def _read_product(key: Key, x: Float[Array, "..."], chip: Chip, bits: Bits | None) -> tuple[Float[Array, "..."], Info]:
    """Return the product of one read; the arguments are checked."""
    relaxed = dither(key, bits, chip.device.rng)
    drive = driven(x, chip, chip.cells.g.shape, relaxed)
    return product(reads(key, chip), drive, chip, chip.gain, x.shape[:-1], relaxed)


def driven(x: Float[Array, "..."], held: Chip | Target, cells: tuple[int, ...], relaxed: Dither | None) -> Drive:
    """Return what the word lines are driven with; `cells` is the shape of all cells."""
    tiling = cells[0] // stored_slices(held.config), cells[2]
    return dac(x.reshape(-1, x.shape[-1]), *tiling, held.dac_max, held.config, relaxed)


def product(
    read: tuple[Callable[[jax.Array, PyTree], Lines], PyTree],
    drive: Drive,
    held: Chip | Target,
    gain: Float[Array, " arrays"],
    shape: tuple[int, ...],
    relaxed: Dither | None,
) -> tuple[Float[Array, "..."], Info]:
    """Return the product in the unit of the weights, with the leading axes `shape`, and what the converters did."""
    y, saturated = accumulate(*read, drive, held, gain, relaxed)
    y = scaled(y, output_factor(held.device, held.config), held.scale)
    return y.reshape(*shape, held.scale.shape[0]), Info(drive.clipped, saturated)


def accumulate(
    array_lines: Callable[[jax.Array, PyTree], Lines],
    arrays: PyTree,
    drive: Drive,
    held: Chip | Target,
    gain: Float[Array, " arrays"],
    relaxed: Dither | None = None,
) -> tuple[Float[Array, "batch cols"], Float[Array, ""]]:
    """Add up the converted outputs of all arrays, one after another, in units of signed conductance.

    One array at a time keeps its cells in the cache, and bounds the memory of whatever `array_lines` draws.
    """
    config, num_cols, adc_range = held.config, held.scale.shape[0], held.adc_range
    num_slices = stored_slices(config)
    num_planes, num_vectors = drive.voltages.shape[1:3]
    weights, zeros = slice_weights(config), zero_conductance(held.device, config)
    if config.adc_range == "max":
        adc_range = _largest_outputs(drive.voltages.shape[3], gain.shape[0], held)

    def add_array(carry: tuple[jax.Array, jax.Array], inputs: PyTree) -> tuple[tuple[jax.Array, jax.Array], None]:
        y, saturated = carry
        a, cells, bounds, gain_a = inputs
        tile, slice_ = a // num_slices, a % num_slices
        voltages = array_voltages(a, drive, config)
        v = array_outputs(array_lines(a, cells), voltages, config, num_cols)
        v, beyond = adc(v, bounds, config, num_cols, relaxed, a)
        if converts_lines(config):
            v = subtract_lines(v, config, num_cols)
        if config.mapping == "offset_digital":  # what the cells have lost is made up for before the known offset goes
            v = v * gain_a - zeros[slice_] * jnp.sum(voltages, axis=1, keepdims=True)
        v = v.reshape(num_planes, num_vectors, num_cols)
        part = v[0] * drive.plane_weights[0] if num_planes == 1 else jnp.tensordot(drive.plane_weights, v, axes=1)
        weight = weights[slice_] if config.mapping == "offset_digital" else gain_a * weights[slice_]
        part = part * (weight * drive.scale[tile])[:, None]
        return (y + part, saturated + beyond), None

    start = (jnp.zeros((num_vectors, num_cols), jnp.float32), jnp.zeros((), jnp.float32))
    num_arrays = gain.shape[0]
    # two arrays a turn: without noise the bookkeeping of a turn is a fifth of its time on a CPU
    inputs = (jnp.arange(num_arrays), arrays, adc_range, gain)
    (y, saturated), _ = lax.scan(add_array, start, inputs, unroll=2)
    return y, saturated / num_arrays


def array_outputs(
    lines: Lines, voltages: Float[Array, "vectors tile_rows"], config: Config, num_cols: int
) -> jax.Array:
    """Return the outputs of one array as its converters see them."""
    v = lines.outputs(voltages)
    return v if lines.subtracted or converts_lines(config) else subtract_lines(v, config, num_cols)


def lines_of(halves: Sequence[Float[Array, "tile_rows lines"]], config: Config, num_cols: int) -> Lines:
    """Return what one array of known conductances multiplies with."""
    return lines_through(line_weights(halves, config, num_cols), config)


def line_weights(
    halves: Sequence[Float[Array, "tile_rows lines"]], config: Config, num_cols: int
) -> Float[Array, "tile_rows outputs"]:
    """Return the matrix of one array whose product with the inputs is converted."""
    return bit_lines(halves) if converts_lines(config) else signed_cells(halves, config, num_cols)


def lines_through(weight: Float[Array, "tile_rows lines"], config: Config) -> Lines:
    """Return the lines of an array that multiplies with `weight`."""
    return Lines(
        lambda voltages: lax.dot(voltages, weight, precision=lax.Precision.HIGHEST),
        subtracted=not converts_lines(config),
    )


def known_lines(
    conductance: Float[Array, "arrays halves tile_rows lines"], config: Config, num_cols: int
) -> tuple[Callable[[jax.Array, PyTree], Lines], PyTree]:
    """Return the lines of arrays whose conductances are known, and what they are made from."""
    # Subtracted array by array: the differences of a whole matrix would be new memory in every call.
    return lambda _, halves: lines_of((*halves,), config, num_cols), conductance


def check_calibrated(held: Chip | Target) -> None:
    """Refuse a product whose ranges are still to be calibrated."""
    for kind, value in (("dac", held.dac_max), ("adc", held.adc_range)):
        if getattr(held.config, f"{kind}_range") == "calibrated" and value is None:
            checks.fail(
                "chip", f"be calibrated, with {kind}_range='calibrated'", "is not", "Call crossbar.calibrate first."
            )


def reads(key: Key, chip: Chip) -> tuple[Callable[[jax.Array, PyTree], Lines], PyTree]:
    """Return how each array is read, and what it is read from, with a leading axis of arrays."""
    num_cols, config, device = chip.scale.shape[0], chip.config, chip.device
    if device.read is None or chip.wires is not None:
        return known_lines(conductances(key, chip), config, num_cols)
    time = chip.cells.t_s

    def read(a: jax.Array, cells: devices.Cells) -> Lines:
        g = devices.read(jax.random.fold_in(key, a), cells._replace(t_s=time), device)
        return lines_of((*g,), config, num_cols)

    return read, chip.cells._replace(t_s=None)  # type: ignore[arg-type]


def array_voltages(a: jax.Array, drive: Drive, config: Config) -> Float[Array, "vectors tile_rows"]:
    """Return all vectors, of all cycles, that array a is driven with."""
    return drive.voltages[a // stored_slices(config)].reshape(-1, drive.voltages.shape[3])


def _largest_outputs(tile_rows: int, num_arrays: int, held: Chip | Target) -> Float[Array, "arrays 1 2"]:
    """Return the largest output that each array can have: all its used rows at full scale, all cells at g_max."""
    first = np.arange(num_arrays) // stored_slices(held.config) * tile_rows
    used = np.minimum(held.num_rows - first, tile_rows).astype(np.float32)
    return jnp.asarray(np.stack([-used, used], axis=1)[:, None])
