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
from nvcim_jax.progress import progress_bar
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, Store

__all__ = ["Good", "Tolerance", "tolerance"]


@checks.frozen_config
class Good:
    """Which chips are good, and how many must be.

    Attributes:
        bound: Worst metric of a good chip: the largest, or the smallest if `larger_is_better`.
        larger_is_better: Whether the metric is one, like an accuracy, that should be large.
        share: Wanted share of good chips, in (0, 1). To be sure of 99 % at 95 % confidence takes 381 chips at least.
        level: Confidence of the ends of the result.
    """

    bound: float
    larger_is_better: bool = False
    share: float = 0.99
    level: float = 0.95

    def __post_init__(self) -> None:
        checks.number("bound", self.bound)
        checks.number("share", self.share, low=1e-9, high=1 - 1e-9)
        checks.number("level", self.level, low=0.5, high=0.9999)


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
    good: Good,
    between: tuple[float, float],
    args: tuple[Any, ...] = (),
    resolution: float = 1e-3,
    store: Callable[[dict[str, Any]], Store] | None = None,
    **options: Any,
) -> Tolerance:
    """Bisect for the largest x at which enough chips are good, by their metric `fn(key, x, *args)`.

    Every x is tried on the same chips (common random numbers), so the yield falls without jitter where each chip gets
    worse with x, and one program serves all. A chip with a non-finite metric is a failed one.

    Args:
        fn: Metric of one chip, `fn(key, x, *args)`, one number.
        key: One JAX random key.
        num_instances: Chips, the same at every x.
        good: Which chips are good, and how many must be.
        between: Least x, which must be good enough, and greatest x to try.
        args: Further arguments.
        resolution: Width of the final bracket, as a fraction of the first.
        store: Where the chips of an x are kept, from `{"x": x}`, such as `nvcim_jax.io.points("runs/x")`: a bisection
            that was killed goes on from there.
        **options: `placement`, `progress` of `run`.

    Returns:
        `Tolerance`.

    Raises:
        ValueError: If the least x is not good enough or the greatest still is.

    Example:
        >>> found = tolerance(lambda key, x: x * jax.numpy.abs(jax.random.normal(key)), jax.random.key(0), 20_000,
        ...                   good=Good(bound=1.0), between=(0.0, 1.0))
        >>> found.low < 1 / 2.5758 < found.high  # 99 % of |N| lie below 2.5758
        True
    """
    checks.number("resolution", resolution, low=1e-6, high=0.5)
    low, high = between
    if not low < high:
        checks.fail("between", "be the least and the greatest x", f"is ({low:g}, {high:g})")
    tried: dict[float, Interval] = {}
    steps = math.ceil(math.log2(1 / resolution))
    total = num_instances * (2 + 3 * steps)
    with progress_bar(total, options.pop("progress", None), "instances (at most)") as advance:

        def at(x: float) -> Interval:
            if x not in tried:
                kept = None if store is None else store({"x": x})
                call = {"args": (jnp.float32(x), *args), "progress": advance, "quantiles": (), "store": kept, **options}
                values = run(fn, key, num_instances, **call).values
                if np.ndim(values) != 1:
                    checks.fail("fn", "return one number", f"returns shape {np.shape(values)[1:]}")
                tried[x] = yield_interval(values, good.bound, good.level, larger_is_better=good.larger_is_better)
            return tried[x]

        _check_bracket(at(low), at(high), between, good.share)
        crossings = [_bisect(lambda x, e=end: e(at(x)) >= good.share, low, high, steps) for end in _ENDS]
    value, safe, beyond = crossings
    curve = tuple((x, tried[x].estimate) for x in sorted(tried))
    return Tolerance(
        value,
        safe if tried[low].low >= good.share else math.nan,
        beyond if tried[high].high < good.share else math.inf,
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


def _check_bracket(at_low: Interval, at_high: Interval, between: tuple[float, float], share: float) -> None:
    low, high = between
    if at_low.estimate < share:
        found = f"has {at_low.estimate:.4g} at {low:g}"
        fix = "Lower the least x, or relax the bound."
        checks.fail("between", f"have a share of good chips of at least {share:g} at its least x", found, fix)
    if at_high.estimate >= share:
        found = f"has {at_high.estimate:.4g} at {high:g}"
        fix = "Raise the greatest x, or tighten the bound."
        checks.fail("between", f"have a share of good chips below {share:g} at its greatest x", found, fix)
