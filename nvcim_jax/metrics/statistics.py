"""Intervals of a mean over few independent runs, exact at any number of runs, in float64 on the host."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Real

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["MeanInterval", "hierarchical_interval", "interval", "paired_interval", "student_quantile"]

_FINITE_SUM = 200  # degrees of freedom up to which the finite sum is taken


class MeanInterval(NamedTuple):
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: The mean.
        low: Lower end; minus infinity for a single run.
        high: Upper end; infinity for a single run.
        level: Confidence.
        num: Number of independent runs it rests on.
    """

    mean: float
    low: float
    high: float
    level: float
    num: int

    @property
    def half_width(self) -> float:
        """Half the distance between the ends."""
        return (self.high - self.low) / 2


def _student_inside(t: float, freedom: int) -> float:
    """Return P(|T| <= t) of Student's t with a whole number of degrees of freedom, by its finite sum."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine2 = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = 1.0 if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + sine * math.cos(angle) * total)
    return sine * total


def _large(z: float, freedom: int) -> float:
    """Return the quantile from the normal one by its series in 1 / freedom."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / freedom + second / freedom**2 + third / freedom**3 + fourth / freedom**4


@checked
def student_quantile(level: float, freedom: int) -> float:
    """Return the t with P(|T| <= t) = level, for Student's t with `freedom` degrees of freedom.

    Args:
        level: Probability between the two ends, in [.5, .9999].
        freedom: Degrees of freedom, a whole number.

    Returns:
        The quantile, to about 1e-10.

    Example:
        >>> round(student_quantile(0.95, 4), 4)  # table: 2.7764
        2.7764

    References:
        Abramowitz and Stegun (1964), 26.7.3 and 26.7.4; 26.7.5 beyond 200 degrees.
    """
    checks.number("level", level, low=0.5, high=0.9999)
    checks.integer("freedom", freedom)
    if freedom > _FINITE_SUM:
        return _large(NormalDist().inv_cdf((1 + level) / 2), freedom)
    if freedom >= 10:  # the series is near: Newton's steps on the finite sum end it
        t = _large(NormalDist().inv_cdf((1 + level) / 2), freedom)
        unit = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        for _ in range(4):
            density = 2 * unit * (1 + t * t / freedom) ** (-(freedom + 1) / 2)
            t += (level - _student_inside(t, freedom)) / density
        return t
    low, high = 0.0, 1.0
    while _student_inside(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, freedom) < level else (low, middle)
    return (low + high) / 2


@checked
def interval(values: Real[np.ndarray, " runs"] | Sequence[float | int], level: float = 0.95) -> MeanInterval:
    """Return Student's interval of the mean of independent runs.

    mean -+ t(level, n - 1) s / sqrt(n), with s the standard deviation with n - 1.

    Args:
        values: One value a run; the runs must be independent (see `hierarchical_interval` where they are not).
        level: Confidence, such as .95.

    Returns:
        The interval; a single run gives infinite ends.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Example:
        >>> found = interval([1.0, 2.0, 3.0, 4.0, 5.0])  # 3 -+ 2.7764 sqrt(2.5 / 5)
        >>> found.mean, round(found.half_width, 3)
        (3.0, 1.963)
    """
    checks.real("values", values)
    good = np.asarray(values, np.float64)
    checks.rank("values", good, 1, "(runs,)")
    if not len(good):
        checks.fail("values", "hold one value at least", "is empty")
    checks.finite("values", good, "Leave out what was not measured.")
    mean = float(good.mean())
    if len(good) == 1:
        checks.number("level", level, low=0.5, high=0.9999)
        return MeanInterval(mean, -math.inf, math.inf, level, 1)
    half = student_quantile(level, len(good) - 1) * float(good.std(ddof=1)) / math.sqrt(len(good))
    return MeanInterval(mean, mean - half, mean + half, level, len(good))


@checked
def hierarchical_interval(values: Real[np.ndarray, "streams instances"], level: float = 0.95) -> MeanInterval:
    """Return the interval of the mean over streams, each measured on several device instances.

    Instances of one stream share its prompts, so they are not independent runs: every stream is averaged over its
    instances first, and the interval is Student's over the stream means (num = number of streams). The noise of the
    instances is in it, because it moves the stream means.

    Args:
        values: (streams, instances).
        level: Confidence.

    Returns:
        The interval of the grand mean.

    Example:
        >>> found = hierarchical_interval(np.array([[1.0, 3.0], [4.0, 4.0]]))  # stream means 2 and 4
        >>> found.mean, found.num
        (3.0, 2)
    """
    checks.rank("values", values, 2, "(streams, instances)")
    checks.finite("values", values, "Leave out what was not measured.")
    return interval(np.asarray(values, np.float64).mean(1), level)


@checked
def paired_interval(
    first: Real[np.ndarray, "*runs"] | Sequence[float | int],
    second: Real[np.ndarray, "*runs"] | Sequence[float | int],
    level: float = 0.95,
) -> MeanInterval:
    """Return the interval of the mean difference first - second between runs that share their randomness.

    Args:
        first: (runs,) or (streams, instances), one method.
        second: The other method on the same runs, in the same order.
        level: Confidence.

    Returns:
        The interval; with streams and instances, that of `hierarchical_interval` of the differences.

    Example:
        >>> round(paired_interval([0.5, 0.7, 0.9], [0.4, 0.6, 0.8]).mean, 6)  # .1 in every run
        0.1
    """
    checks.real("first", first)
    checks.real("second", second)
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    checks.shape("second", two, one.shape)
    checks.rank("first", one, (1, 2), "(runs,) or (streams, instances)")
    return hierarchical_interval(one - two, level) if one.ndim == 2 else interval(one - two, level)
