"""Intervals against SciPy's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from nvcim_jax.montecarlo import Good, mean_interval, quantile_interval, yield_interval


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("num", [2, 3, 21, 200, 5000])
def test_mean_interval_is_students(num: int, level: float) -> None:
    values = np.random.default_rng(num).normal(size=num)
    low, high = scipy_stats.t.interval(level, num - 1, values.mean(), values.std(ddof=1) / math.sqrt(num))
    found = mean_interval(values, level)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9)


@pytest.mark.parametrize(("good", "num"), [(90, 100), (0, 50), (50, 50), (990, 1000)])
def test_yield_interval_is_wilsons(good: int, num: int) -> None:
    values = np.r_[np.zeros(good), np.full(num - good, np.nan)]
    reference = scipy_stats.binomtest(good, num).proportion_ci(0.95, "wilson")
    found = yield_interval(values, 0.0)
    np.testing.assert_allclose([found.low, found.high], [reference.low, reference.high], atol=1e-12)


def test_quantile_interval_is_close_to_the_binomial_one() -> None:
    values = np.random.default_rng(0).exponential(size=2000)
    reference = scipy_stats.quantile_test(values, p=0.9).confidence_interval(0.95)
    found = quantile_interval(values, 0.9)
    np.testing.assert_allclose([found.low, found.high], [reference.low, reference.high], atol=0.02)


def test_small_samples_give_infinite_ends() -> None:
    found = quantile_interval(np.arange(100.0), 0.99)
    assert math.isinf(found.high)
    assert math.isfinite(found.low)
    assert math.isinf(mean_interval(np.array([1.0])).half_width)
    assert math.isnan(mean_interval(np.array([np.nan])).estimate)
    assert yield_interval(np.array([]), 1.0).half_width == 0.5


@pytest.mark.parametrize("larger", [True, False])
def test_values_at_the_bound_are_good_whatever_float32_makes_of_both(larger: bool) -> None:
    right = jnp.arange(100)
    shares = np.asarray(jax.jit(jax.vmap(lambda k: jnp.mean((right < k).astype(jnp.float32))))(right))
    assert (shares != np.arange(100) / 100).any()
    for k in range(1, 100):
        assert yield_interval(shares[k : k + 1], k / 100, larger_is_better=larger).estimate == 1.0
        worse = shares[k : k + 1] + (-1e-4 if larger else 1e-4)
        assert yield_interval(worse, k / 100, larger_is_better=larger).estimate == 0.0


def test_a_bound_that_is_no_number_is_refused() -> None:
    for call in (lambda: yield_interval(np.zeros(3), math.nan), lambda: Good(bound=math.nan)):
        with pytest.raises(ValueError, match="Argument `bound` must lie in"):
            call()
