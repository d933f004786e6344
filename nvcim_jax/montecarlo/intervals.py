"""Confidence intervals of a mean, a quantile and a yield from independent instances, in float64 on the host."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.metrics import student_quantile
from nvcim_jax.signature import checked

__all__ = [
    "Interval",
    "mean_interval",
    "quantile_interval",
    "skewed_mean_interval",
    "skewness",
    "yield_interval",
]

_ROUNDINGS = 4 * float(np.finfo(np.float32).eps)  # relative; a metric's sum is off by more than one


class Interval(NamedTuple):
    """An estimate and its two-sided confidence interval.

    Attributes:
        estimate: The estimate.
        low: Lower end.
        high: Upper end.
        level: Confidence level, in (0, 1).
        num_instances: Instances that it comes from.
    """

    estimate: float
    low: float
    high: float
    level: float
    num_instances: int

    @property
    def half_width(self) -> float:
        """Half the distance between the ends; infinite where the sample is too small to give an end."""
        return (self.high - self.low) / 2


def _normal_quantile(level: float) -> float:
    checks.number("level", level, low=0.5, high=0.9999)
    return NormalDist().inv_cdf((1 + level) / 2)


@checked
def mean_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return Student's interval of the mean; non-finite values are left out.

    Args:
        values: One value an instance.
        level: Confidence, such as 0.95.

    Example:
        >>> found = mean_interval(np.array([0.0, 2.0]))  # two values: 12.71 standard errors, which are 1 here
        >>> found.estimate, round(found.half_width, 2)
        (1.0, 12.71)
    """
    good = np.asarray(values, np.float64)
    good = good[np.isfinite(good)]
    if len(good) < 2:
        return Interval(float(good.mean()) if len(good) else math.nan, -math.inf, math.inf, level, len(good))
    mean = float(good.mean())
    half = student_quantile(level, len(good) - 1) * float(good.std(ddof=1)) / math.sqrt(len(good))
    return Interval(mean, mean - half, mean + half, level, len(good))


@checked
def skewness(values: np.ndarray) -> float:
    """Return the skewness of the finite values, their third central moment over the 1.5th power of the second.

    Example:
        >>> skewness(np.array([0.0, 0.0, 0.0, 1.0]))  # (1 - 2 p) / sqrt(p (1 - p)) with p = 1/4
        1.15...
    """
    good = np.asarray(values, np.float64)
    good = good[np.isfinite(good)]
    centred = good - good.mean() if len(good) else good
    spread = np.square(centred).mean() if len(good) else 0.0
    return float((centred**3).mean() / spread**1.5) if spread > 0 else 0.0


@checked
def skewed_mean_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return an interval of the mean that allows for skewness; non-finite values are left out.

    Student's t of skewed values is skewed itself. Hall's cubic transformation, with the skewness g of the n values,

        W(t) = t + g t^2 / (3 sqrt(n)) + g^2 t^3 / (27 n) + g / (6 sqrt(n)),

    takes that away; the ends are those of Student's interval through its inverse, and lie unequally far from the mean.

    Args:
        values: One value an instance.
        level: Confidence, such as 0.95.

    Example:
        >>> found = skewed_mean_interval(np.exp(np.linspace(-2.0, 2.0, 200)))
        >>> found.high - found.estimate > found.estimate - found.low  # few large values have been seen so far
        True

    References:
        Hall (1992), On the removal of skewness by transformation, J. R. Stat. Soc. B 54.
    """
    plain, g = mean_interval(values, level), skewness(values)
    if not math.isfinite(plain.half_width) or g == 0.0:
        return plain
    root = math.sqrt(plain.num_instances)
    factor = student_quantile(level, plain.num_instances - 1)
    unit = plain.half_width / factor

    def inverse(t: float) -> float:
        return 3 * root / g * (math.cbrt(1 + g / root * (t - g / (6 * root))) - 1)

    low, high = plain.estimate - unit * inverse(factor), plain.estimate - unit * inverse(-factor)
    return plain._replace(low=low, high=high)


@checked
def quantile_interval(values: np.ndarray, quantile: float, level: float = 0.95) -> Interval:
    """Return the interval of a quantile between two order statistics; no assumption on the distribution.

    The ranks are n q + 1/2 -+ z sqrt(n q (1 - q)), rounded outwards. An end outside the sample is infinite.

    Args:
        values: One value an instance; non-finite ones are left out.
        quantile: Level of the quantile in (0, 1).
        level: Confidence.

    Example:
        >>> found = quantile_interval(np.arange(1001.0), 0.5)
        >>> found.estimate, found.low, found.high  # 500 -+ 1.96 sqrt(1001) / 2 = 31.0
        (500.0, 468.0, 532.0)

    References:
        David and Nagaraja (2003), Order Statistics, section 7.1.
    """
    checks.number("quantile", quantile, low=1e-9, high=1 - 1e-9)
    good = np.asarray(values, np.float64)
    good = np.sort(good[np.isfinite(good)])
    if not len(good):
        return Interval(math.nan, -math.inf, math.inf, level, 0)
    centre = len(good) * quantile - 0.5
    reach = _normal_quantile(level) * math.sqrt(len(good) * quantile * (1 - quantile))
    low, high = math.floor(centre - reach), math.ceil(centre + reach)
    return Interval(
        float(np.quantile(good, quantile)),
        float(good[low]) if low >= 0 else -math.inf,
        float(good[high]) if high < len(good) else math.inf,
        level,
        len(good),
    )


@checked
def yield_interval(
    values: np.ndarray, bound: float, level: float = 0.95, *, larger_is_better: bool = False
) -> Interval:
    """Return Wilson's interval of the share of good instances: value <= bound, or >= where larger is better.

    A non-finite instance is a failed chip: it is not good. What differs from the bound by float32's rounding alone, as
    the mean of nine right answers in ten does from .9, lies at the bound and is good.

    Args:
        values: One value an instance.
        bound: Worst value of a good chip.
        level: Confidence.
        larger_is_better: Whether the metric is one, like an accuracy, that should be large.

    Example:
        >>> found = yield_interval(np.arange(100.0), 89.0)
        >>> found.estimate, round(found.low, 3), round(found.high, 3)
        (0.9, 0.826, 0.945)

    Raises:
        ValueError: If the bound is no number.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    checks.number("bound", bound)
    wide = np.asarray(values, np.float64)
    num = len(wide)
    slack = _ROUNDINGS * abs(bound)
    good = np.isfinite(wide) & ((wide >= bound - slack) if larger_is_better else (wide <= bound + slack))
    share = float(good.mean()) if num else math.nan
    if not num:
        return Interval(share, 0.0, 1.0, level, 0)
    z2 = _normal_quantile(level) ** 2 / num
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), level, num)
