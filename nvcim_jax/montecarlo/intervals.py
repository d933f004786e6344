"""Confidence intervals of a mean, a quantile and a yield from independent instances, in float64 on the host."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["Interval", "mean_interval", "quantile_interval", "yield_interval"]


class Interval(NamedTuple):
    """An estimate and its two-sided confidence interval."""

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


def _student_quantile(level: float, freedom: int) -> float:
    """Return Student's t quantile by its series in 1 / freedom (error below 1e-4 from 20 degrees on)."""
    z, v = _normal_quantile(level), float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


@checked
def mean_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return Student's interval of the mean; non-finite values are left out.

    Args:
        values: One value an instance.
        level: Confidence, such as 0.95.

    Example:
        >>> mean_interval(np.arange(100.0)).estimate
        49.5

    References:
        Abramowitz and Stegun (1964), 26.7.5 (series of the t quantile).
    """
    good = np.asarray(values, np.float64)
    good = good[np.isfinite(good)]
    if len(good) < 2:
        return Interval(float(good.mean()) if len(good) else math.nan, -math.inf, math.inf, level, len(good))
    mean = float(good.mean())
    half = _student_quantile(level, len(good) - 1) * float(good.std(ddof=1)) / math.sqrt(len(good))
    return Interval(mean, mean - half, mean + half, level, len(good))


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
def yield_interval(values: np.ndarray, bound: float, level: float = 0.95) -> Interval:
    """Return Wilson's interval of the share of instances with value <= bound.

    A non-finite instance is a failed chip: it counts as over the bound.

    Args:
        values: One value an instance.
        bound: Largest value of a good chip.
        level: Confidence.

    Example:
        >>> found = yield_interval(np.arange(100.0), 89.0)
        >>> found.estimate, round(found.low, 3), round(found.high, 3)
        (0.9, 0.826, 0.945)

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    wide = np.asarray(values, np.float64)
    num = len(wide)
    share = float(np.mean(np.isfinite(wide) & (wide <= bound))) if num else math.nan
    if not num:
        return Interval(share, 0.0, 1.0, level, 0)
    z2 = _normal_quantile(level) ** 2 / num
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), level, num)
