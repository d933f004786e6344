"""One product on a freshly programmed chip, drawn cell by cell or directly in the space of outputs."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices, ops
from nvcim_jax.crossbar.chip import drawn_pair, pair_moments, write_cells
from nvcim_jax.crossbar.config import OUTPUT_SAMPLINGS, Config
from nvcim_jax.crossbar.converters import check_inputs, dac
from nvcim_jax.crossbar.mapping import Target, check_sampling, output_factor
from nvcim_jax.crossbar.product import (
    Info,
    Lines,
    accumulate,
    check_calibrated,
    converts_lines,
    lines_of,
    tiling,
)
from nvcim_jax.types import Key

__all__ = ["sample"]

MIN_ROWS_FOR_MOMENTS = 16
# Relative variance added to a Gram matrix so that its float32 Cholesky factor exists when inputs repeat.
_JITTER = 1e-5


def sample(
    key: Key, x: Num[ArrayLike, "..."], target: Target, device: devices.Device, *, config: Config
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
    num_cols = target.scale.shape[0]
    check_inputs(x, target.num_rows, target.dac_max, config)
    x = jnp.asarray(x, jnp.float32)
    check_calibrated(target.dac_max, target.adc_range, config)
    check_sampling(device, config)
    num_arrays, _, tile_rows, _ = target.conductance.shape
    gain = jnp.ones(num_arrays, jnp.float32)
    drive = dac(jnp.atleast_2d(x), *tiling(gain, target.conductance, config), target.dac_max, config)
    if config.sampling in OUTPUT_SAMPLINGS:
        _check_output_sampling(min(tile_rows, target.num_rows), drive.plane_weights.shape[0], config)
    write_key, read_key = jax.random.split(key)
    conductance = target.conductance
    if config.noise == "value":
        conductance = write_cells(write_key, conductance, device, config).g
    # Halves travel apart: a slice of a slice inside the loop over arrays keeps XLA from vectorising it on a CPU.
    arrays = tuple(conductance[:, half] for half in range(conductance.shape[1]))
    if config.sampling != "device":
        # outside the loop over arrays, so that a loop over chips around it computes them once
        arrays = _line_moments(arrays, device, config)

    def array_lines(a: jax.Array, halves: tuple[jax.Array, ...]) -> Lines:
        array_key = jax.random.fold_in(write_key, a)
        if config.sampling in OUTPUT_SAMPLINGS:
            return _noisy_outputs(array_key, *halves, device, config)
        if config.sampling == "pair":
            return Lines(drawn_pair(array_key, *halves, device), None, subtracted=True)
        if config.noise == "value":
            return lines_of(halves, config, num_cols)
        if _only_cycle_noise(device):
            return lines_of(_programmed(array_key, halves, device), config, num_cols)
        cells = devices.program(array_key, jnp.stack(halves), device)
        seen = cells.g if device.read is None else devices.read(jax.random.fold_in(read_key, a), cells, device)
        return lines_of((*seen,), config, num_cols)

    y, saturated = accumulate(array_lines, arrays, drive, target.adc_range, gain, device, config, num_cols)
    y = y * (output_factor(device, config) * target.scale)[None, :]
    return y.reshape(*x.shape[:-1], num_cols), Info(drive.clipped, saturated)


def _only_cycle_noise(device: devices.Device) -> bool:
    others = (device.d2d_sigma, device.stuck_on, device.stuck_off, device.drift, device.read)
    return device.programming is not None and all(effect is None for effect in others)


def _programmed(key: Key, halves: tuple[jax.Array, ...], device: devices.Device) -> tuple[jax.Array, ...]:
    """Return what `devices.program` gives for such a device, half by half, so that all of it is one loop."""
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


def _noisy_outputs(key: Key, mean: jax.Array, spread: jax.Array, device: devices.Device, config: Config) -> Lines:
    """Return one array whose noise is added to its outputs; `spread` is its sigma (joint) or each cell's variance."""
    if config.sampling == "output_joint":

        def noise(voltages: jax.Array) -> jax.Array:
            return spread * _joint_noise(key, lax.stop_gradient(voltages), mean.shape[1], device)

    else:

        def noise(voltages: jax.Array) -> jax.Array:
            squared = jnp.square(lax.stop_gradient(voltages))
            sigma = jnp.sqrt(lax.dot(squared, spread, precision=lax.Precision.HIGHEST))
            return sigma * ops.normal(key, sigma.shape, rng=device.rng)

    together = config.mapping == "differential" and not converts_lines(config)
    return Lines(mean, noise, subtracted=together or config.mapping == "offset_digital")


def _joint_noise(
    key: Key, voltages: Float[Array, "vectors tile_rows"], num_lines: int, device: devices.Device
) -> Float[Array, "vectors lines"]:
    """Draw X E for cells E of unit variance, jointly over the vectors X."""
    num_vectors, tile_rows = voltages.shape
    z = ops.normal(key, (min(num_vectors, tile_rows), num_lines), rng=device.rng)
    if num_vectors > tile_rows:
        return lax.dot(voltages, z, precision=lax.Precision.HIGHEST)
    length = jnp.sqrt(jnp.sum(jnp.square(voltages), axis=1, keepdims=True))
    unit = voltages / jnp.where(length > 0, length, 1.0)
    gram = lax.dot(unit, unit.T, precision=lax.Precision.HIGHEST) + _JITTER * jnp.eye(num_vectors, dtype=unit.dtype)
    return length * lax.dot(jnp.linalg.cholesky(gram), z, precision=lax.Precision.HIGHEST)


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
