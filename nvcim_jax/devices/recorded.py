"""Laws that are tables of records: functions of bound arrays, the conductance, and the cell's own normal number.

A table has L levels, at the targets `at` (L,), or evenly spaced between the two of `at` (2,), and R programmed cells in
the order of their levels: level l has the rows starts[l] to starts[l + 1]. `centred` holds their conductances less the
mean of their level, at one time (R,) or at each of K times (K, R). A cell's normal number z gives it its
place u = Phi(z) among the measured cells, which it keeps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nvcim_jax.devices import curves

__all__ = [
    "LAST_KNOT",
    "OWN",
    "at_time",
    "cells_change",
    "cells_noise",
    "cells_sigma",
    "gaussian_change",
    "knots_change",
    "knots_noise",
    "knots_of",
    "level_sigma",
    "mean_of_levels",
    "quantiles_change",
    "quantiles_noise",
    "quantiles_sigma",
]

_ROOT_HALF = 0.5**0.5
# Bits of a place beyond these choose between two levels.
_FINE = 2.0**15
_Cells = Float[Array, "*cells"]
_Levels = Float[Array, " L"]
_At = Float[Array, " A"]  # all levels, or the first and the last

LAST_KNOT = 6.75
"""Quantile functions are tabulated for normal numbers up to here: no generator draws larger ones."""


def knots_of(num: int) -> list[float]:
    """Return the normal numbers at which quantile functions are tabulated."""
    return [2.0 * LAST_KNOT * i / (num - 1) - LAST_KNOT for i in range(num)]


def _share(z: _Cells) -> _Cells:
    """Return the normal distribution function, within [0, 1)."""
    return jnp.minimum(0.5 * (1.0 + lax.erf(z * _ROOT_HALF)), 1.0 - 2.0**-24)


def _between(at: _At, num: int, g: _Cells) -> tuple[Int[Array, "*cells"], _Cells]:
    """Return the level below each conductance, and how far it is to the next: (l, w) in at[l] + w (at[l+1] - at[l]).

    Where `at` holds but the first and the last of more levels, those between are evenly spaced: a number of operations
    that does not grow with them.
    """
    if at.shape[0] < num:
        place = (g - at[0]) * ((num - 1) / (at[1] - at[0]))
        place = jnp.clip(place, 0.0, num - 1.0)
    else:
        place = curves.interpolate(g, at, jnp.arange(num, dtype=jnp.float32))
    low = jnp.clip(place.astype(jnp.int32), 0, max(num - 2, 0))
    return low, place - low.astype(jnp.float32)


def _mix(at: _At, row: _Levels, g: _Cells) -> _Cells:
    """Return the piecewise linear curve through the levels, constant outside."""
    num = row.shape[0]
    if at.shape[0] == num:
        return curves.interpolate(g, at, row)
    low, w = _between(at, num, g)
    below = _take(row, low)
    return below + w * (_take(row, _upper(low, num)) - below)


def mean_of_levels(at: _At, shift: _Levels, g: _Cells) -> _Cells:
    """Return the target and the shift of the mean, linear between levels."""
    return g + _mix(at, shift, g)


def _take(table: jax.Array, index: Int[Array, "*cells"]) -> jax.Array:
    return table.at[index].get(mode="promise_in_bounds")


def _upper(low: Int[Array, "*cells"], num: int) -> Int[Array, "*cells"]:
    return jnp.minimum(low + 1, num - 1)


def _row(starts: Int[Array, " L1"], level: Int[Array, "*cells"], u: _Cells) -> Int[Array, "*cells"]:
    """Return which record of a level lies at the share u of it."""
    counts = (starts[1:] - starts[:-1]).astype(jnp.float32)
    return _take(starts, level) + (u * _take(counts, level)).astype(jnp.int32)


# trajectories: each cell is one that was measured


def _measured_cell(at: _At, starts: Int[Array, " L1"], g: _Cells, z: _Cells) -> Int[Array, "*cells"]:
    """Return the record that a cell follows: one of the level below, or, with the probability w, of that above.

    The high bits of u say which record, bits far below them which of the two levels.
    """
    num = starts.shape[0] - 1
    low, w = _between(at, num, g)
    u = _share(z)
    fine = u * _FINE
    return _row(starts, jnp.where(fine - jnp.floor(fine) < w, _upper(low, num), low), u)


def cells_noise(at: _At, starts: Int[Array, " L1"], centred: Float[Array, " R"], g: _Cells, z: _Cells) -> _Cells:
    """Return how far the measured cell that stands at z is from the mean of its level."""
    return _take(centred, _measured_cell(at, starts, lax.stop_gradient(g), lax.stop_gradient(z)))


def cells_sigma(at: _At, variance: _Levels, g: _Cells) -> _Cells:
    """Return the standard deviation of `cells_noise`: variances mix as the cells do."""
    return _root(_mix(at, variance, g))


def cells_change(
    at: _At,
    starts: Int[Array, " L1"],
    times_s: Float[Array, " K"],
    means: Float[Array, "K L"],
    centred: Float[Array, "K R"],
    g: _Cells,
    z: _Cells,
    t_s: Float[Array, ""],
) -> _Cells:
    """Return the change of the measured cell since its first read, and that of the mean of its level."""
    moved = cells_noise(at, starts, _since(times_s, centred, t_s), g, z)
    return _mix(at, _since(times_s, means, t_s), g) + moved


# empirical: quantiles of the records, at each time


def quantiles_noise(at: _At, starts: Int[Array, " L1"], centred: Float[Array, " R"], g: _Cells, z: _Cells) -> _Cells:
    """Return the quantile u of the records, those of a level in rising order, linear between the levels."""
    num = starts.shape[0] - 1
    low, w = _between(at, num, g)
    u = _share(lax.stop_gradient(z))
    below = _take(centred, _row(starts, low, u))
    return below + w * (_take(centred, _row(starts, _upper(low, num), u)) - below)


def quantiles_sigma(at: _At, variance: _Levels, common: _Levels, g: _Cells) -> _Cells:
    """Return the standard deviation of quantiles between levels; `common` is the covariance with the next level's."""
    num = variance.shape[0]
    low, w = _between(at, num, g)
    parts = (1.0 - w) ** 2 * _take(variance, low) + w**2 * _take(variance, _upper(low, num))
    return _root(parts + 2.0 * w * (1.0 - w) * _take(common, low))


def quantiles_change(
    at: _At,
    starts: Int[Array, " L1"],
    times_s: Float[Array, " K"],
    means: Float[Array, "K L"],
    centred: Float[Array, "K R"],
    g: _Cells,
    z: _Cells,
    t_s: Float[Array, ""],
) -> _Cells:
    """Return the change of the quantile at which a cell stays, and that of the mean of its level."""
    moved = quantiles_noise(at, starts, _since(times_s, centred, t_s), g, z)
    return _mix(at, _since(times_s, means, t_s), g) + moved


# student: quantile functions of a fitted distribution, tabulated at knots of z


def knots_noise(at: _At, knots: Float[Array, "L M"], g: _Cells, z: _Cells) -> _Cells:
    """Return the quantile of a tabulated distribution at z, linear between knots and between levels."""
    levels, num = knots.shape
    low, w = _between(at, levels, g)
    place = jnp.clip((z + LAST_KNOT) * ((num - 1) / (2.0 * LAST_KNOT)), 0.0, num - 1.001)
    left = lax.stop_gradient(place).astype(jnp.int32)
    part = place - left.astype(jnp.float32)
    flat = knots.reshape(-1)

    def one(level: jax.Array) -> jax.Array:
        first = _take(flat, level * num + left)
        return first + part * (_take(flat, level * num + left + 1) - first)

    below = one(low)
    return below + w * (one(_upper(low, levels)) - below)


def knots_change(
    at: _At,
    times_s: Float[Array, " K"],
    means: Float[Array, "K L"],
    knots: Float[Array, "K L M"],
    g: _Cells,
    z: _Cells,
    t_s: Float[Array, ""],
) -> _Cells:
    """Return the change of the quantile at which a cell stays, and that of the mean of its level."""
    moved = knots_noise(at, _since(times_s, knots, t_s), g, z)
    return _mix(at, _since(times_s, means, t_s), g) + moved


# gaussian: mean and standard deviation of each level, at each time


def gaussian_change(
    at: _At,
    times_s: Float[Array, " K"],
    means: Float[Array, "K L"],
    sigmas: Float[Array, "K L"],
    g: _Cells,
    z: _Cells,
    t_s: Float[Array, ""],
) -> _Cells:
    """Return the change of mean + sigma z."""
    moved = _mix(at, _since(times_s, sigmas, t_s), g) * z
    return _mix(at, _since(times_s, means, t_s), g) + moved


def level_sigma(at: _At, sigma: _Levels, g: _Cells) -> _Cells:
    """Return a standard deviation that is linear between levels."""
    return _mix(at, sigma, g)


def time_place(times_s: Float[Array, " K"], t_s: Float[Array, ""]) -> Float[Array, ""]:
    """Return where a time lies among the times of a table: linear in its logarithm, linear in itself before the second.

    The first time is that of programming, and may be 0; before it the place is 0, after the last K - 1.
    """
    second = times_s[1]
    early = (t_s - times_s[0]) / (second - times_s[0])
    late = 1.0 + jnp.interp(
        jnp.log(jnp.maximum(t_s, second)), jnp.log(times_s[1:]), jnp.arange(times_s.shape[0] - 1, dtype=jnp.float32)
    )
    return jnp.where(t_s < second, jnp.maximum(early, 0.0), late)


def at_time(times_s: Float[Array, " K"], table: Float[Array, "K ..."], t_s: Float[Array, ""]) -> Float[Array, "..."]:
    """Return a table at one time."""
    if table.shape[0] == 1:
        return table[0]
    place = time_place(times_s, t_s)
    left = jnp.clip(lax.stop_gradient(place).astype(jnp.int32), 0, table.shape[0] - 2)
    first = table[left]
    return first + (place - left.astype(jnp.float32)) * (table[left + 1] - first)


def _since(times_s: Float[Array, " K"], table: Float[Array, "K ..."], t_s: Float[Array, ""]) -> Float[Array, "..."]:
    return at_time(times_s, table, t_s) - table[0]


@jax.custom_jvp
def _root(variance: _Cells) -> _Cells:
    """Return the square root, with the slope 0 at 0."""
    return jnp.sqrt(jnp.maximum(variance, 0.0))


@_root.defjvp
def _root_slope(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    found = _root(primals[0])
    return found, jnp.where(found > 0, tangents[0] / jnp.where(found > 0, 2.0 * found, 1.0), 0.0)


OWN: tuple[Callable[..., jax.Array], ...] = (
    cells_noise,
    cells_sigma,
    cells_change,
    quantiles_noise,
    quantiles_sigma,
    quantiles_change,
    knots_noise,
    knots_change,
    gaussian_change,
    level_sigma,
    mean_of_levels,
)
"""Functions whose tables were checked."""
