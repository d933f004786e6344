"""One product on a freshly programmed chip, drawn cell by cell or directly in the space of outputs."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices, ops
from nvcim_jax.crossbar.chip import drawn_pair, pair_moments, write_cells
from nvcim_jax.crossbar.config import OUTPUT_SAMPLINGS, Config
from nvcim_jax.crossbar.converters import Bits, Drive, check_bits, check_inputs, dac, dither
from nvcim_jax.crossbar.mapping import Target, check_sampling, output_factor
from nvcim_jax.crossbar.product import (
    Info,
    Lines,
    accumulate,
    array_voltages,
    check_calibrated,
    converts_lines,
    known_lines,
    lines_of,
    lines_through,
    tiling,
)
from nvcim_jax.types import Key, PyTree

__all__ = ["sample"]

MIN_ROWS_FOR_MOMENTS = 16
# Relative variance added to a Gram matrix so that its float32 Cholesky factor exists when inputs repeat.
_JITTER = 1e-5


def sample(
    key: Key,
    x: Num[ArrayLike, "..."],
    target: Target,
    device: devices.Device,
    *,
    config: Config,
    bits: Bits | None = None,
) -> tuple[Float[Array, "..."], Info]:
    """Draw one product on a fresh chip: `write` and `matmul` in one, keeping no cells.

    `config.sampling` says what is drawn:

    - `device`: every cell. The reference: equal to `matmul(read_key, x, write(write_key, target))` with
      `write_key, read_key = jax.random.split(key)`.
    - `pair`: one normal number a differential pair, of variance sigma_plus^2 + sigma_minus^2. Exact for Gaussian
      noise.
    - `output_joint`: outputs of a row tile as X W + sigma L Z, L L^T = X X^T. Exact jointly over the batch, for
      Gaussian noise of one size at every level. With more vectors than rows it draws cells, then the smaller number.
    - `output_marginal`: X W + sqrt(X^2 S) Z with Z drawn for each vector apart. Exact for each vector by itself, and so
      for means over a batch; wrong for the spread between chips, and for whatever compares vectors of one chip.
    - `moment_matched`: the same with mean and variance of cells clipped at 0. Right in those two moments, and close to
      Gaussian from 16 rows on.

    None but `device` knows stuck cells, drift, read noise or wires, and they are refused there. The output samplings
    pass gradients to the inputs as if there were no noise.

    Args:
        key: Key of the chip and its one read.
        x: One vector (rows,) or a batch (batch, rows) that shares the chip.
        target: What the chip is to hold, from `encode`.
        device: The memory cells.
        config: Options of the crossbar.
        bits: Bits of relaxed converters, in place of those of `config`; None rounds.

    Returns:
        y: Products (cols,) or (batch, cols).
        info: Shares of clipped inputs and saturated conversions.

    Raises:
        ValueError: If the sampling is not exact for this device or these options; the message says why.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("Gaussian", sigma=0.1), crossbar.Config(sampling="output_joint")
        >>> target = crossbar.encode(jnp.ones((50, 4000)), device, config=config)
        >>> y, _ = crossbar.sample(jax.random.key(0), jnp.ones((2, 50)), target, device, config=config)
        >>> print(f"{y[0].std():.2f}, sigma sqrt(2 sum x^2) = {0.1 * 100 ** 0.5:.2f}")
        1.00, sigma sqrt(2 sum x^2) = 1.00
        >>> print(bool(jnp.abs(y[0] - y[1]).max() < 0.05))  # equal inputs, one chip
        True
    """
    check_inputs(x, target.num_rows, target.dac_max, config)
    check_calibrated(target.dac_max, target.adc_range, config)
    check_sampling(device, config)
    check_bits(bits, config)
    return _sampled(key, jnp.asarray(x, jnp.float32), target, device, config, bits)


@functools.partial(jax.jit, static_argnames="config", inline=True)
def _sampled(
    key: Key, x: Float[Array, "..."], target: Target, device: devices.Device, config: Config, bits: Bits | None
) -> tuple[Float[Array, "..."], Info]:
    """Return the product on a fresh chip; the arguments are checked."""
    num_cols = target.scale.shape[0]
    num_arrays, _, tile_rows, _ = target.conductance.shape
    gain = jnp.ones(num_arrays, jnp.float32)
    write_key, read_key = jax.random.split(key)
    relaxed = dither(read_key, bits, device.rng)
    drive = dac(jnp.atleast_2d(x), *tiling(gain, target.conductance, config), target.dac_max, config, relaxed)
    if config.sampling in OUTPUT_SAMPLINGS:
        _check_output_sampling(min(tile_rows, target.num_rows), drive.plane_weights.shape[0], config)
    if config.sampling in OUTPUT_SAMPLINGS:
        array_lines, arrays = _output_lines(write_key, target.conductance, drive, device, config)
    elif config.noise == "value":
        array_lines, arrays = known_lines(
            write_cells(write_key, target.conductance, device, config).g, config, num_cols
        )
    elif config.sampling == "pair":
        array_lines, arrays = _pair_lines(write_key, target.conductance, device, config)
    else:
        array_lines, arrays = _cell_lines(write_key, read_key, target.conductance, device, config, num_cols)
    y, saturated = accumulate(array_lines, arrays, drive, target.adc_range, gain, device, config, num_cols, relaxed)
    y = y * (output_factor(device, config) * target.scale)[None, :]
    return y.reshape(*x.shape[:-1], num_cols), Info(drive.clipped, saturated)


def _pair_lines(
    key: Key, conductance: jax.Array, device: devices.Device, config: Config
) -> tuple[Callable[[jax.Array, PyTree], Lines], PyTree]:
    """Return how the differences of one array are drawn, and from which means and variances."""
    plus, minus = _halves(conductance)

    def lines(a: jax.Array, moments: tuple[jax.Array, jax.Array]) -> Lines:
        mean, variance = moments
        return lines_through(drawn_pair(jax.random.fold_in(key, a), mean, variance, device), config)

    return lines, pair_moments(plus, minus, device)


def _cell_lines(
    write_key: Key, read_key: Key, conductance: jax.Array, device: devices.Device, config: Config, num_cols: int
) -> tuple[Callable[[jax.Array, PyTree], Lines], PyTree]:
    """Return how the cells of one array are drawn and multiplied with, and from which targets."""
    others = (device.d2d_sigma, device.stuck_on, device.stuck_off, device.drift, device.read)
    only_cycle_noise = all(effect is None for effect in others)
    if only_cycle_noise and device.programming is None:
        # nothing is drawn: each array is its target
        return lambda _, g: lines_of(
            (*devices.programmed(g, jnp.zeros_like(g), device),), config, num_cols
        ), conductance

    def lines(a: jax.Array, halves: tuple[jax.Array, ...]) -> Lines:
        array_key = jax.random.fold_in(write_key, a)
        if only_cycle_noise:
            return lines_of(_programmed(array_key, halves, device), config, num_cols)
        cells = devices.program(array_key, jnp.stack(halves), device)
        seen = cells.g if device.read is None else devices.read(jax.random.fold_in(read_key, a), cells, device)
        return lines_of((*seen,), config, num_cols)

    return lines, _halves(conductance)


def _halves(conductance: Float[Array, "arrays halves tile_rows lines"]) -> tuple[jax.Array, ...]:
    """Split the halves of all arrays: a slice of a slice inside the loop keeps XLA from vectorising it on a CPU."""
    return tuple(conductance[:, half] for half in range(conductance.shape[1]))


def _programmed(key: Key, halves: tuple[jax.Array, ...], device: devices.Device) -> tuple[jax.Array, ...]:
    """Return what `devices.program` gives for a device with no other effect, half by half, so that it is one loop."""
    cycle_key = devices.cycle_key(key)
    if len(halves) == 1:
        z = (ops.normal(cycle_key, halves[0].shape, rng=device.rng),)
    else:
        z = ops.normal_pair(cycle_key, halves[0].shape, rng=device.rng)
    return tuple(devices.programmed(g, noise, device) for g, noise in zip(halves, z, strict=True))


def _line_moments(
    halves: tuple[jax.Array, ...], device: devices.Device, config: Config
) -> tuple[Float[Array, "arrays tile_rows lines"], Float[Array, "arrays ..."]]:
    """Return mean and variance of the cells on each line: of a pair's difference where its halves meet on one line.

    For `output_joint` the second is one standard deviation for each array.
    """
    if len(halves) == 2 and not converts_lines(config):
        mean, variance = pair_moments(halves[0], halves[1], device)
    else:
        moments = [devices.program_moments(g, device) for g in halves]
        mean, variance = (jnp.concatenate(parts, axis=-1) for parts in zip(*moments, strict=True))
    if config.sampling == "output_joint":  # the same in every cell, as `check_sampling` has made sure
        return mean, jnp.sqrt(variance[:, 0, 0])
    return mean, variance


def _output_lines(
    key: Key, conductance: jax.Array, drive: Drive, device: devices.Device, config: Config
) -> tuple[Callable[[jax.Array, PyTree], Lines], PyTree]:
    """Return how the outputs of one array are drawn, and what from: its outputs without noise, and their spread."""
    moments = _line_moments(_halves(conductance), device, config)
    together = config.mapping == "differential" and not converts_lines(config)
    subtracted = together or config.mapping == "offset_digital"

    def exact(a: jax.Array, mean: jax.Array, spread: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _output_moments(array_voltages(a, drive, config), mean, spread, config)

    def lines(a: jax.Array, outputs: tuple[jax.Array, jax.Array]) -> Lines:
        noise = _output_noise(jax.random.fold_in(key, a), *outputs, device, config)
        return Lines(lambda _: outputs[0] + noise, subtracted)

    if math.prod(drive.voltages.shape[1:3]) <= drive.voltages.shape[3]:
        # The key has no part in them: computed for all arrays here, they are computed once in a loop over chips.
        return lines, jax.vmap(exact)(jnp.arange(moments[0].shape[0]), *moments)
    # More vectors than rows: outputs are larger than weights, so those of one array are held at a time.
    return lambda a, cells: lines(a, exact(a, *cells)), moments


def _output_moments(
    voltages: Float[Array, "vectors tile_rows"], mean: jax.Array, spread: jax.Array, config: Config
) -> tuple[Float[Array, "vectors lines"], Float[Array, "vectors ..."]]:
    """Return the mean outputs of one array, and the matrix (joint) or the sigma that its normal numbers are scaled by.

    `spread` is the sigma of the array (joint) or the variance of each cell.
    """
    outputs = lax.dot(voltages, mean, precision=lax.Precision.HIGHEST)
    voltages = lax.stop_gradient(voltages)
    if config.sampling == "output_joint":
        return outputs, spread * _factor(voltages)
    return outputs, jnp.sqrt(lax.dot(jnp.square(voltages), spread, precision=lax.Precision.HIGHEST))


def _output_noise(key: Key, outputs: jax.Array, scale: jax.Array, device: devices.Device, config: Config) -> jax.Array:
    if config.sampling == "output_joint":
        z = ops.normal(key, (scale.shape[1], outputs.shape[1]), rng=device.rng)
        return lax.dot(scale, z, precision=lax.Precision.HIGHEST)
    return scale * ops.normal(key, scale.shape, rng=device.rng)


def _factor(voltages: Float[Array, "vectors tile_rows"]) -> Float[Array, "vectors factors"]:
    """Return L with L L^T = X X^T: L Z is then X E, jointly over the vectors X, for cells E of unit variance."""
    num_vectors, tile_rows = voltages.shape
    if num_vectors > tile_rows:
        return voltages
    length = jnp.sqrt(jnp.sum(jnp.square(voltages), axis=1, keepdims=True))
    unit = voltages / jnp.where(length > 0, length, 1.0)
    gram = lax.dot(unit, unit.T, precision=lax.Precision.HIGHEST) + _JITTER * jnp.eye(num_vectors, dtype=unit.dtype)
    return length * jnp.linalg.cholesky(gram)


def _check_output_sampling(tile_rows: int, num_planes: int, config: Config) -> None:
    if config.sampling != "output_joint" and num_planes > 1:
        checks.fail(
            "config.sampling",
            "be 'device' or 'output_joint' with dac_bits_per_cycle",
            f"is {config.sampling!r}",
            "The cycles of one input meet the same cells, so their noise is not independent.",
        )
    if config.sampling == "moment_matched" and tile_rows < MIN_ROWS_FOR_MOMENTS:
        checks.fail(
            "config.sampling",
            f"be 'device' for arrays of fewer than {MIN_ROWS_FOR_MOMENTS} used rows",
            f"is 'moment_matched' with {tile_rows}",
            "The sum of so few clipped cells is not Gaussian.",
        )
