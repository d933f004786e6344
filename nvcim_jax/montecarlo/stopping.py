"""Run until an interval is narrow enough, with the stated coverage although the data are looked at repeatedly.

The rule stops on the interval's *width*, never on where it lies (Chow and Robbins 1965; Geertsema 1970 for
quantiles): such a stop keeps the nominal coverage as the width shrinks. What it loses at finite sizes comes from
stopping when a spread is small by luck. So looks are few and planned: each look predicts the number of instances from
the width so far (width falls as 1 / sqrt(n)), 10 % more are run, at most four times as many, and only then is it
looked at again. `tests/montecarlo/test_stopping.py` measures the coverage of nominal 95 % intervals over 2,000
repetitions.

A mean of skewed values is stopped too early where few values of the tail have come so far. Its interval allows for the
skewness (`skewed_mean_interval`), is not believed before 200 instances, and a warning says so where a sample is more
skewed than its size bears (fewer than 15 times the skewness squared). Values that are all equal say nothing of a rare
one: 2,000 of them are drawn, and a warning says what may still be there.

A rule that stops because a difference is *significant* would need other intervals; none here does.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.montecarlo.columns import columns
from nvcim_jax.montecarlo.intervals import Interval, quantile_interval, skewed_mean_interval, skewness, yield_interval
from nvcim_jax.montecarlo.placement import CHOSEN, Placement
from nvcim_jax.montecarlo.runner import QUANTILES, check_run
from nvcim_jax.montecarlo.statistics import Stats, stats_of_values
from nvcim_jax.montecarlo.stored import instances
from nvcim_jax.montecarlo.variance import as_floats
from nvcim_jax.progress import Advance, progress_bar
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree, Store

__all__ = ["KINDS", "Precision", "Reached", "interval", "next_look", "paired", "run_until"]

KINDS = ("mean", "quantile", "yield")
_TAIL = 50
_SURPLUS = 1.1
_LEAST_GROWTH, _MOST_GROWTH = 1.1, 4.0
_SKEWED, _LEAST_SKEWED = 0.5, 200  # skewness from which on so many instances are needed to see the tail
_LEAST_EQUAL = 2000
_ENOUGH = 15  # times the skewness squared: instances from which on the interval of a mean holds its level


@checks.frozen_config
class Precision:
    """What must be known, and how well.

    Attributes:
        half_width: Stop when half the interval is at most this, in the unit of what is estimated.
        kind: "mean", "quantile" (of the instances' values), or "yield" (share of good instances).
        of: Name of the value where `fn` returns a tree, such as "loss"; "value" where it returns one number.
        relative: Whether `half_width` is a fraction of the estimate's magnitude.
        level: Confidence of the interval.
        quantile: Level of the quantile, for kind "quantile".
        bound: Worst value of a good instance, for kind "yield": the largest, or the smallest if `larger_is_better`.
        larger_is_better: Whether the value is one, like an accuracy, that should be large; for kind "yield".
        min_instances: Instances before the first look; raised to 50 / min(q, 1 - q) for a quantile, and to 200 for the
            mean of values that are skewed by more than 0.5, to 2,000 where they are all equal.
    """

    half_width: float
    kind: str = "mean"
    of: str = "value"
    relative: bool = False
    level: float = 0.95
    quantile: float | None = None
    bound: float | None = None
    larger_is_better: bool = False
    min_instances: int = 200

    def __post_init__(self) -> None:
        checks.choice("kind", self.kind, KINDS)
        checks.number("half_width", self.half_width, low=0.0, low_open=True)
        checks.number("level", self.level, low=0.5, high=0.9999)
        checks.integer("min_instances", self.min_instances, low=30)
        for name, kind in (("quantile", "quantile"), ("bound", "yield")):
            value = getattr(self, name)
            if (value is None) == (self.kind == kind):
                must = f'be given for kind "{kind}" and only there'
                checks.fail(name, must, f"is {value} for kind {self.kind!r}")
        if self.quantile is not None:
            checks.number("quantile", self.quantile, low=1e-6, high=1 - 1e-6)
        if self.bound is not None:
            checks.number("bound", self.bound)


class Reached(NamedTuple):
    """Result of `run_until`.

    Attributes:
        interval: Estimate and interval at the last look.
        reached: Whether the interval is narrow enough; False when `max_instances` came first.
        looks: Number of instances at each look.
        stats: Statistics over all instances that were run.
    """

    interval: Interval
    reached: bool
    looks: tuple[int, ...]
    stats: Stats


def interval(values: np.ndarray, precision: Precision) -> Interval:
    """Return the interval of what `precision` asks for, from one value an instance."""
    if precision.quantile is not None:
        return quantile_interval(values, precision.quantile, precision.level)
    if precision.bound is not None:
        return yield_interval(values, precision.bound, precision.level, larger_is_better=precision.larger_is_better)
    return skewed_mean_interval(values, precision.level)


def next_look(found: Interval | None, num: int, precision: Precision, skew: float = 0.0) -> int:
    """Return how many instances to have at the next look; `num` again when the interval is narrow enough.

    Args:
        found: Interval at the last look, None before the first.
        num: Number of instances at the last look.
        precision: What must be known.
        skew: Skewness of the values so far.

    Example:
        >>> rule = Precision(half_width=0.1)
        >>> next_look(None, 0, rule)
        200
        >>> next_look(Interval(0.0, -0.2, 0.2, 0.95, 200), 200, rule)  # half the width needs four times as many
        800
        >>> next_look(Interval(0.0, -0.1, 0.1, 0.95, 800), 800, rule)
        800
    """
    if found is None:
        q = precision.quantile
        return precision.min_instances if q is None else max(precision.min_instances, math.ceil(_TAIL / min(q, 1 - q)))
    target = precision.half_width * (abs(found.estimate) if precision.relative else 1.0)
    if found.half_width <= target:
        if precision.kind == "mean" and found.half_width == 0 and num < _LEAST_EQUAL:
            return min(num * int(_MOST_GROWTH), _LEAST_EQUAL)
        early = precision.kind == "mean" and num < _LEAST_SKEWED and abs(skew) > _SKEWED
        return _LEAST_SKEWED if early else num
    growth = _SURPLUS * (found.half_width / target) ** 2 if target > 0 else math.inf
    growth = growth if math.isfinite(growth) else _MOST_GROWTH
    return math.ceil(num * min(max(growth, _LEAST_GROWTH), _MOST_GROWTH))


@checked
def paired(first: Callable[..., PyTree], second: Callable[..., PyTree]) -> Callable[..., dict[str, PyTree]]:
    """Return the metric of two methods on the same chips: values "first", "second" and "difference" (second - first).

    Both receive the same key (common random numbers), so that what the chip does to both cancels in the difference.

    Args:
        first: Metric of one method, `first(key, *args)`.
        second: Metric of the other, with the same arguments and the same tree of values.

    Example:
        >>> from nvcim_jax import montecarlo
        >>> metric = montecarlo.paired(lambda key: jax.random.normal(key), lambda key: jax.random.normal(key) + 0.5)
        >>> stats = montecarlo.run(metric, jax.random.key(0), 100)
        >>> print(f"{stats.mean['difference']:.3f}, s.e. {stats.standard_error['difference']:.0e}")
        0.500, s.e. ...e-0...
    """

    def both(key: jax.Array, *args: Any) -> dict[str, PyTree]:
        a, b = as_floats(first(jax.random.clone(key), *args)), as_floats(second(jax.random.clone(key), *args))
        return {"first": a, "second": b, "difference": jax.tree.map(lambda x, y: y - x, a, b)}

    return both


@checked
def run_until(
    fn: Callable[..., PyTree],
    key: Key,
    precision: Precision,
    *,
    max_instances: int = 1_000_000,
    args: tuple[Any, ...] = (),
    quantiles: tuple[float, ...] = QUANTILES,
    placement: Placement = CHOSEN,
    progress: bool | Advance | None = None,
    store: Store | None = None,
) -> Reached:
    """Run instances until the interval of a mean, a quantile or a yield is narrow enough.

    Args:
        fn: Metric of one instance; `paired(a, b)` with `of="difference"` compares two methods on the same chips.
        key: One JAX random key.
        precision: What must be known, and how well.
        max_instances: Give up after so many.
        args: As in `run`, and so are all further ones.
        quantiles: See `run`.
        placement: See `run`.
        progress: See `run`.
        store: See `run`; a run that was killed goes on to the same stop.

    Returns:
        `Reached`: the interval, whether it is narrow enough, the looks, and the statistics.

    Raises:
        ValueError: If an argument is wrong, or `fn` has no scalar value of the name `precision.of`.

    Example:
        >>> found = run_until(lambda k: jax.random.normal(k) + 2, jax.random.key(0), Precision(half_width=0.05))
        >>> found.reached, found.interval.low < 2.0 < found.interval.high  # about (1.96 / 0.05)^2 = 1537 instances
        (True, True)

    References:
        Chow and Robbins (1965), On the asymptotic theory of fixed-width sequential confidence intervals for the mean.
        Geertsema (1970), Sequential confidence intervals based on rank tests.
    """
    key = checks.key("key", key)
    check_run(fn, key, max_instances, args=args, quantiles=quantiles, placement=placement)
    parts: list[PyTree] = []
    looks: list[int] = []
    found, num, skew = None, 0, 0.0
    with progress_bar(max_instances, progress, "instances (at most)") as advance:
        while num < max_instances:
            wanted = min(next_look(found, num, precision, skew), max_instances)
            if wanted == num:
                break
            new = instances(fn, key, range(num, wanted), args=args, placement=placement, store=store)
            for part in new:
                parts.append(part.values)
                advance(part.num, "" if found is None else f"± {found.half_width:.2g}")
            parts = [jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)]
            num = wanted
            looks.append(num)
            chosen = _selected(parts[0], precision.of)
            found, skew = interval(chosen, precision), skewness(chosen)
    assert found is not None
    reached = next_look(found, num, precision, skew) == num
    _warn_of_skew(precision, found, skew)
    return Reached(found, reached, tuple(looks), stats_of_values(parts[0], quantiles))


def _warn_of_skew(precision: Precision, found: Interval, skew: float) -> None:
    """Say so where a mean rests on too few values of a long tail for its interval to hold its level."""
    if precision.kind == "mean" and found.half_width == 0:
        warnings.warn(
            f"No value has differed from another in {found.num_instances} instances: the interval of their mean knows "
            f"nothing of what happens to fewer than one in {found.num_instances // 3}. If that matters, ask for a "
            'yield: kind="yield" with a bound.',
            RuntimeWarning,
            stacklevel=3,
        )
    enough = math.ceil(_ENOUGH * skew**2)
    if precision.kind == "mean" and found.num_instances < enough:
        warnings.warn(
            f"The values are so skewed (skewness {skew:.1f}) that the interval of their mean, from "
            f"{found.num_instances} instances, may hold the true one less often than {100 * precision.level:g} %. Give "
            f"min_instances={enough}, or ask for a quantile.",
            RuntimeWarning,
            stacklevel=3,
        )


def _selected(values: PyTree, name: str) -> np.ndarray:
    named = columns(values)
    checks.choice("of", name, named)
    if named[name].ndim != 1:
        checks.fail("of", "name a scalar of each instance", f"names values of shape {named[name].shape[1:]}")
    return named[name]
