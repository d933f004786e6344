"""The laws that come with the library: each returns functions of the conductance with their numbers bound as leaves."""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.devices import curves
from nvcim_jax.devices.spec import Law, Read
from nvcim_jax.devices.tree import strong
from nvcim_jax.signature import checked

__all__ = ["level_table", "log_linear", "one_over_f", "polynomial"]

# An array, or a list of numbers as it is typed.
Row: TypeAlias = ArrayLike | Sequence[int | float]


@checked
def level_table(levels: Row, sigma: Row, mean: Row | None = None) -> Law:
    """Return programming noise known at a few conductances, linear in between, constant outside.

    Args:
        levels: Target conductances (L,), rising, in [0, 1].
        sigma: Noise at each, relative to the device's `sigma` (L,), at least 0.
        mean: Expected conductance after programming at each (L,); None where it is the target itself.

    Returns:
        The law; its `levels` are the three rows.

    Raises:
        ValueError: If the rows differ in length or are not finite, the conductances do not rise within [0, 1], or a
            sigma is negative.

    Example:
        >>> from nvcim_jax import devices
        >>> law = devices.level_table([0.0, 1.0], [0.01, 0.03])
        >>> device = devices.get("Gaussian", sigma=1.0).replace(programming=law)
        >>> print(f"{devices.sigma_of(0.5, device):.3f}")  # halfway
        0.020
    """
    length = _check_row("levels", levels, None, 0.0)
    checks.number("levels", levels, low=0.0, high=1.0 + 1e-6, fix="Divide conductances by g_max.")
    if checks.is_concrete(levels) and not np.all(np.diff(np.asarray(levels)) > 0):
        checks.fail("levels", "rise from entry to entry", f"is {np.asarray(levels).tolist()}")
    _check_row("sigma", sigma, length, 0.0)
    at = jnp.asarray(levels, jnp.float32)
    law = Law(sigma=Partial(curves.on_levels, at, jnp.asarray(sigma, jnp.float32)))
    if mean is None:
        return law
    _check_row("mean", mean, length, -np.inf)
    return law.replace(mean=Partial(curves.shifted, at, jnp.asarray(mean, jnp.float32)))


def _check_row(argument: str, value: Row, length: int | None, least: float) -> int:
    """Check one row of a table, and return its length: rank, length, every entry finite and at least `least`."""
    checks.rank(argument, value, 1, "(levels,)")
    if length is not None:
        checks.shape(argument, value, (length,), fix="One entry for each level.")
    checks.finite(argument, value)
    checks.number(argument, value, low=least)
    found = np.shape(value)[0]
    checks.integer("num_levels", found)
    return found


@checked
def polynomial(coefficients: Row) -> Law:
    """Return programming noise as a polynomial of the target conductance, cut at 0.

    sigma(g) = device.sigma * max(sum_i coefficients[i] * g**i, 0)

    Args:
        coefficients: Ascending (n,), relative to g_max. One coefficient is a noise that is the same at every level.

    Raises:
        ValueError: If there is none, or one is not finite.

    Example:
        >>> from nvcim_jax import devices
        >>> device = devices.get("Gaussian", sigma=0.1).replace(programming=devices.polynomial([1.0, -0.5]))
        >>> print(f"{devices.sigma_of(1.0, device):.3f}")  # 0.1 (1 - 0.5)
        0.050
    """
    _check_row("coefficients", coefficients, None, -np.inf)
    return Law(sigma=Partial(curves.polynomial, jnp.asarray(coefficients, jnp.float32)))


@checked
def log_linear(
    offset: ArrayLike, slope: ArrayLike = 0.0, *, low: ArrayLike = 0.0, high: ArrayLike = float("inf")
) -> Partial:
    """Return a drift exponent that is linear in the logarithm of the conductance: clip(slope ln g + offset, low, high).

    Args:
        offset: Value at g = 1, before the limits.
        slope: Change per unit of ln g.
        low: Lower limit, at least 0.
        high: Upper limit.

    Returns:
        A function of g, for `Drift(mean=..., std=...)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> print(devices.log_linear(0.1, -0.02)(jnp.exp(jnp.asarray([0.0, -1.0]))))
        [0.1  0.12]
    """
    numbers = {"offset": strong("offset", offset), "slope": strong("slope", slope)}
    limits = {"low": strong("low", low, low=0.0), "high": strong("high", high, low=0.0)}
    return Partial(curves.log_linear, **numbers, **limits)


@checked
def one_over_f(
    scale: ArrayLike = 0.0088,
    exponent: ArrayLike = 0.65,
    *,
    floor: ArrayLike = 1e-3,
    ceiling: ArrayLike = 0.2,
    t_read_s: ArrayLike = 250e-9,
    t0_s: ArrayLike = 20.0,
) -> Read:
    """Return read noise with a 1/f spectrum, accumulated since programming.

    sigma = |g| * min(scale / max(g_programmed ** exponent, floor), ceiling) * sqrt(ln((t + t0 + t_read) / (2 t_read)))

    Args:
        scale: Relative noise at g_programmed = 1.
        exponent: Power of the conductance.
        floor: Least value of the power, so that an empty cell stays finite.
        ceiling: Greatest relative noise.
        t_read_s: Duration of one read, seconds.
        t0_s: Time from programming to the reference read, seconds, above `t_read_s`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import math
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> law = devices.one_over_f(0.01, t_read_s=1.0, t0_s=2 * math.e - 1)  # ln((t0 + t_read) / (2 t_read)) = 1
        >>> device = devices.get("ideal", read=law)
        >>> cells = devices.program(jax.random.key(0), jnp.ones(1), device)
        >>> print(f"{devices.read_sigma(cells, device)[0]:.4f}")
        0.0100

    References:
        Joshi et al., Nature Communications 11:2473, 2020; the defaults as in aihwkit's PCMLikeNoiseModel.
    """
    numbers = {
        name: strong(name, value, low=0.0)
        for name, value in (("scale", scale), ("exponent", exponent), ("ceiling", ceiling), ("t0_s", t0_s))
    }
    positive = {
        name: strong(name, value, low=0.0, low_open=True) for name, value in (("floor", floor), ("t_read_s", t_read_s))
    }
    if checks.is_concrete(t_read_s):
        fix = "Give a t0_s above t_read_s: no read ends before it began."
        checks.number("t0_s", t0_s, low=float(np.max(np.asarray(t_read_s))), low_open=True, unit="s", fix=fix)
    return Read(sigma=Partial(curves.one_over_f, **numbers, **positive))
