"""How much of a non-ideality a task can stand: the largest x at which enough chips are still good."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.montecarlo.intervals import Interval, yield_interval
from nvcim_jax.montecarlo.runner import run
from nvcim_jax.progress import Advance, progress_bar
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Tolerance", "tolerance"]


class Tolerance(NamedTuple):
    """The largest x that the task stands.

    Attributes:
        value: Largest x found at which the share of good chips is at least the wanted one.
        low: The same with the lower end of the yield's interval in place of the yield: x up to here is safe at the
            level of confidence; NaN where even the lowest x is not, which more instances may mend.
        high: The same with its upper end: x beyond here is not good enough; infinite where the upper limit is.
        interval: Yield at `value`.
        curve: Every x that was tried with its yield, rising in x.
    """

    value: float
    low: float
    high: float
    interval: Interval
    curve: tuple[tuple[float, float], ...]


@checked
def tolerance(
    fn: Callable[..., jax.Array],
    key: Key,
    num_instances: int,
    *,
    bound: float,
    low: float,
    high: float,
    share: float = 0.99,
    args: tuple[Any, ...] = (),
    resolution: float = 1e-3,
    level: float = 0.95,
    progress: bool | Advance | None = None,
    **options: Any,
) -> Tolerance:
    """Bisect for the largest x at which `share` of the chips have `fn(key, x, *args) <= bound`.

    Every x is tried on the same chips (common random numbers), so the yield falls without jitter where each chip gets
    worse with x, and one program serves all. A chip with a non-finite metric is a failed one.

    Args:
        fn: Metric of one chip, `fn(key, x, *args)`, one number.
        key: One JAX random key.
        num_instances: Chips. To be sure of 99 % at 95 % confidence takes 381 chips at least.
        bound: Largest metric of a good chip.
        low: Least x; must be good enough.
        high: Greatest x to try.
        share: Wanted share of good chips, in (0, 1).
        args: Further arguments.
        resolution: Width of the final bracket, as a fraction of high - low.
        level: Confidence of `low` and `high` of the result.
        progress: See `run`.
        **options: `placement` of `run`.

    Returns:
        `Tolerance`.

    Raises:
        ValueError: If `low` is not good enough or `high` still is.

    Example:
        >>> found = tolerance(lambda key, x: x * jax.numpy.abs(jax.random.normal(key)), jax.random.key(0), 20_000,
        ...                   bound=1.0, low=0.0, high=1.0)
        >>> found.low < 1 / 2.5758 < found.high  # 99 % of |N| lie below 2.5758
        True
    """
    checks.number("share", share, low=1e-9, high=1 - 1e-9)
    checks.number("resolution", resolution, low=1e-6, high=0.5)
    if not low < high:
        checks.fail("high", "be above low", f"is {high:g} with low {low:g}")
    tried: dict[float, Interval] = {}
    steps = math.ceil(math.log2(1 / resolution))
    with progress_bar(num_instances * (2 + 3 * steps), progress, "instances (at most)") as advance:

        def at(x: float) -> Interval:
            if x not in tried:
                call = {"args": (jnp.float32(x), *args), "progress": advance, "quantiles": (), **options}
                values = run(fn, key, num_instances, **call).values
                if np.ndim(values) != 1:
                    checks.fail("fn", "return one number", f"returns shape {np.shape(values)[1:]}")
                tried[x] = yield_interval(values, bound, level)
            return tried[x]

        _check_bracket(at(low), at(high), low, high, share)
        crossings = [_bisect(lambda x, e=end: e(at(x)) >= share, low, high, steps) for end in _ENDS]
    value, safe, beyond = crossings
    curve = tuple((x, tried[x].estimate) for x in sorted(tried))
    return Tolerance(
        value,
        safe if tried[low].low >= share else math.nan,
        beyond if tried[high].high < share else math.inf,
        tried[value],
        curve,
    )


_ENDS: tuple[Callable[[Interval], float], ...] = (lambda i: i.estimate, lambda i: i.low, lambda i: i.high)


def _bisect(good: Callable[[float], bool], low: float, high: float, steps: int) -> float:
    """Return the good end of the final bracket; `low` where nothing is good, `high` where all is."""
    if not good(low) or good(high):
        return low if not good(low) else high
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _check_bracket(at_low: Interval, at_high: Interval, low: float, high: float, share: float) -> None:
    if at_low.estimate < share:
        found = f"gives {at_low.estimate:.4g} at {low:g}"
        checks.fail("low", f"give a share of good chips of at least {share:g}", found, "Lower it, or relax the bound.")
    if at_high.estimate >= share:
        found = f"gives {at_high.estimate:.4g} at {high:g}"
        checks.fail("high", f"give a share of good chips below {share:g}", found, "Raise it, or tighten the bound.")
