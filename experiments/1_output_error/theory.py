"""The expected error of a noisy product without drawing any chip: what the simulation must agree with.

The output of an array is a sum over independent cells, so it is normal (exactly for unclipped Gaussian cells, in the
limit of many rows otherwise) with mean and variance in closed form (`crossbar.moments`). A converter maps it by known
steps, so mean and variance of the code are one-dimensional integrals, done here by quantiles. Arrays are independent:
their moments add. For ideal converters this is `product_moments`, and for an analog Gaussian pair the textbook's
Var y = 2 (w_max sigma)^2 sum x^2, which `textbook_error` writes out on its own.

One approximation is left: with `adc_range="absmax"` the step follows the largest output of each read, of which the
mean is taken.
"""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from nvcim_jax import crossbar
from nvcim_jax.crossbar.converters import dac
from nvcim_jax.crossbar.moments import array_moments

__all__ = ["expected_error", "textbook_error"]

NUM_QUANTILES = 129

_array_moments = jax.jit(array_moments)
_dac = jax.jit(dac, static_argnums=(1, 2))


def textbook_error(x: jax.Array, weights: jax.Array, sigma: float) -> float:
    """Return the relative RMS error of analog Gaussian pairs, Var y = 2 (w_max sigma)^2 sum x^2."""
    truth = np.asarray(x, np.float64) @ np.asarray(weights, np.float64)
    variance = 2 * (sigma * np.abs(weights).max()) ** 2 * np.sum(np.square(x), axis=1, dtype=np.float64)
    return float(np.sqrt(truth.shape[1] * variance.sum() / np.sum(truth**2)))


def expected_error(x: jax.Array, truth: jax.Array, target: crossbar.Target) -> float:
    """Return the relative RMS error over chips of a product with all its converters.

    Args:
        x: Inputs (batch, rows).
        truth: Exact product (batch, cols).
        target: What the cells are to hold, on a device without read noise: inputs applied at once, pairs subtracted
            before a symmetric converter, ideal wires.

    Returns:
        sqrt(E |y - truth|^2) / |truth|.
    """
    config = target.config
    arrays = _array_moments(target)
    num_arrays, tile_rows, _ = arrays.mean.shape
    num_tiles = crossbar.geometry((target.num_rows, truth.shape[1]), config).num_row_tiles
    drive = _dac(x, num_tiles, tile_rows, target.dac_max, config)
    mean, variance = np.zeros(truth.shape), np.zeros(truth.shape)
    for a in range(num_arrays):
        tile = a // (num_arrays // num_tiles)
        voltages = drive.voltages[tile, 0]
        centre = jnp.matmul(voltages, arrays.mean[a], precision="highest")
        spread = jnp.sqrt(jnp.matmul(voltages**2, arrays.variance[a], precision="highest"))
        bounds = None if target.adc_range is None else target.adc_range[a, 0, 1]  # one column tile
        centre, spread_squared = _converted(centre, spread, bounds, tile_rows, config)
        weight = np.asarray(arrays.weight[a] * drive.scale[tile], np.float64)[:, None] * np.asarray(target.scale)
        mean += weight * np.asarray(centre, np.float64)
        variance += weight**2 * np.asarray(spread_squared, np.float64)
    error = np.sum((mean - np.asarray(truth)) ** 2 + variance)
    return float(np.sqrt(error / np.sum(np.square(truth), dtype=np.float64)))


def _converted(
    centre: jax.Array, spread: jax.Array, high: jax.Array | None, tile_rows: int, config: crossbar.Config
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of the codes of normal outputs."""
    if config.adc_bits is None:
        return centre, spread**2
    steps = 2 ** (config.adc_bits - 1) - 1
    if config.adc_range == "absmax":  # the range follows the outputs: it sets the step, and nothing is beyond it
        return _code_moments(centre, spread, _expected_absmax(centre, spread) / steps, jnp.inf)
    limit = jnp.float32(tile_rows) if high is None else high
    step = jnp.broadcast_to(limit / steps, (centre.shape[0], 1))
    return _code_moments(centre, spread, step, limit)


@jax.jit
def _code_moments(
    centre: jax.Array, spread: jax.Array, step: jax.Array, limit: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of normal outputs, cut at a limit and rounded to a step for each vector."""
    unit = np.array([NormalDist().inv_cdf((i + 0.5) / NUM_QUANTILES) for i in range(NUM_QUANTILES)], np.float32)
    unit = unit / unit.std()
    outputs = centre[None] + spread[None] * unit[:, None, None]
    codes = jnp.round(jnp.clip(outputs, -limit, limit) / step[None]) * step[None]
    return codes.mean(axis=0), codes.var(axis=0)


@jax.jit
def _expected_absmax(centre: jax.Array, spread: jax.Array) -> jax.Array:
    """Return E max_k |v_k| over independent normal outputs, the integral of 1 - P(all |v_k| <= t)."""
    top = jnp.max(jnp.abs(centre) + 6 * spread, axis=1, keepdims=True)
    top = jnp.where(top > 0, top, 1.0)
    share = (jnp.arange(256) + 0.5) / 256
    safe = jnp.maximum(spread, 1e-6 * top)
    level = share[:, None, None] * top[None]
    below = ndtr((level - centre[None]) / safe[None]) - ndtr((-level - centre[None]) / safe[None])
    missing = 1 - jnp.exp(jnp.sum(jnp.log(jnp.maximum(below, 1e-30)), axis=2))
    return missing.mean(axis=0)[:, None] * top
