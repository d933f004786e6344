"""The curves of the library's own laws: functions of bound numbers and the conductance, elementwise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = [
    "OWN",
    "even_levels",
    "everywhere",
    "interpolate",
    "log_linear",
    "on_even_levels",
    "on_levels",
    "one_over_f",
    "polynomial",
    "shifted",
]

# Up to here a sum of clipped ramps, which fuses with its surroundings, is faster than a search in the table.
_MAX_RAMPS = 64
# Below this fraction of g_max the logarithm of a conductance is held constant.
_LEAST_LOG = 1e-7
# Keeps the slope of a power of an empty cell finite; far below where the floor of `one_over_f` acts.
_LEAST_POWER = 1e-12


def everywhere(value: jax.Array, g: jax.Array, *rest: Any) -> jax.Array:
    """Return one value for every conductance: the function that a plain number stands for."""
    del rest
    return jnp.broadcast_to(value, g.shape)


def interpolate(g: Float[Array, "*cells"], at: Float[Array, " L"], row: Float[Array, " L"]) -> Float[Array, "*cells"]:
    """Return the piecewise linear curve through (at, row), constant outside."""
    if at.shape[0] > _MAX_RAMPS:
        return jnp.interp(g, at, row)
    value = jnp.full_like(g, row[0]) if at.shape[0] == 1 else row[0]
    for low, high, left, right in zip(at[:-1], at[1:], row[:-1], row[1:], strict=True):
        width = high - low
        value = value + (right - left) / width * jnp.clip(g - low, 0.0, width)
    return value


def on_levels(at: jax.Array, row: jax.Array, g: jax.Array) -> jax.Array:
    """Return the noise of a table of levels."""
    return interpolate(g, at, row)


def on_even_levels(at: jax.Array, row: jax.Array, g: jax.Array) -> jax.Array:
    """Return the noise of levels that lie evenly from g_min to 1, and go with g_min."""
    return interpolate(g, at, row)


def even_levels(g_min: Float[Array, "..."], num: int) -> Float[Array, "... num"]:
    """Return where such levels lie."""
    low = jnp.asarray(g_min)[..., None]
    share = np.linspace(0.0, 1.0, num, dtype=np.float32)
    return low + (1.0 - low) * share.reshape((1,) * (low.ndim - 1) + (num,))


def shifted(at: jax.Array, mean: jax.Array, g: jax.Array) -> jax.Array:
    """Return the mean of a table of levels: the target and its interpolated shift."""
    return g + interpolate(g, at, mean - at)


def polynomial(coefficients: jax.Array, g: jax.Array) -> jax.Array:
    """Return a polynomial of the conductance, cut at 0."""
    value = jnp.broadcast_to(coefficients[-1], g.shape)
    for power in reversed(range(coefficients.shape[0] - 1)):
        value = value * g + coefficients[power]
    return jnp.maximum(value, 0.0)


def log_linear(g: jax.Array, *, offset: jax.Array, slope: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Return a number that is linear in the logarithm of the conductance, within limits."""
    log_g = jnp.log(jnp.maximum(jnp.abs(g), _LEAST_LOG))
    return jnp.clip(slope * log_g + offset, low, high)


def one_over_f(
    g: jax.Array,
    g_programmed: jax.Array,
    t_s: jax.Array,
    *,
    scale: jax.Array,
    exponent: jax.Array,
    floor: jax.Array,
    ceiling: jax.Array,
    t_read_s: jax.Array,
    t0_s: jax.Array,
) -> jax.Array:
    """Return the standard deviation of a read with a 1/f spectrum."""
    power = jnp.maximum(jnp.abs(g_programmed), _LEAST_POWER) ** exponent
    relative = jnp.minimum(scale / jnp.maximum(power, floor), ceiling)
    age = jnp.log((t_s + t0_s + t_read_s) / (2.0 * t_read_s))
    return jnp.abs(g) * relative * jnp.sqrt(age)


OWN = (everywhere, on_levels, on_even_levels, shifted, polynomial, log_linear, one_over_f)
"""Curves whose values need no look: their numbers were checked."""
