"""Gradients of means and quantiles against closed forms and finite differences over common chips."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import montecarlo

SIGMA = {"program": 0.6, "read": 0.3}


def two_noises(key: jax.Array, sigma: dict[str, jax.Array]) -> jax.Array:
    first, second = jax.random.split(key)
    return 1.0 + sigma["program"] * jax.random.normal(first) + sigma["read"] * jax.random.normal(second)


def squared(key: jax.Array, sigma: dict[str, jax.Array]) -> jax.Array:
    return jnp.square(two_noises(key, sigma) - 1.0)


def lognormal(key: jax.Array, sigma: jax.Array) -> jax.Array:
    return jnp.exp(sigma * jax.random.normal(key))


def test_gradient_of_the_mean_is_the_closed_form() -> None:
    found = montecarlo.sensitivity(squared, jax.random.key(0), 20_000, SIGMA)
    for name, sigma in SIGMA.items():  # E f = sigma_p^2 + sigma_r^2
        assert abs(found.mean[name] - 2 * sigma) < 5 * found.mean_error[name]
    total = sum(sigma**2 for sigma in SIGMA.values())
    assert found.elasticity["program"] == pytest.approx(2 * 0.36 / total, rel=0.06)
    assert found.elasticity["program"] > found.elasticity["read"]
    assert abs(found.stats.mean - total) < 5 * found.stats.standard_error


@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9, 0.99])
def test_gradient_of_a_quantile_is_the_closed_form(quantile: float) -> None:
    found = montecarlo.sensitivity(two_noises, jax.random.key(1), 40_000, SIGMA, quantiles=(quantile,))
    total, z = math.hypot(*SIGMA.values()), NormalDist().inv_cdf(quantile)
    for name, sigma in SIGMA.items():  # Q = 1 + z sqrt(sigma_p^2 + sigma_r^2)
        # the estimated place of the quantile adds its own error: slope sigma / total^2 times that of Q
        density = NormalDist(0, total).pdf(z * total)
        place = math.sqrt(quantile * (1 - quantile) / 40_000) / density * sigma / total**2
        error = math.hypot(found.quantiles_error[name][0], place)
        assert abs(found.quantiles[name][0] - z * sigma / total) < 5 * error


def test_gradient_of_a_quantile_of_a_curved_metric() -> None:
    found = montecarlo.sensitivity(lognormal, jax.random.key(2), 40_000, 0.5, quantiles=(0.9,))
    z = NormalDist().inv_cdf(0.9)
    assert found.quantiles[0] == pytest.approx(z * math.exp(0.5 * z), rel=0.03)


def test_gradients_agree_with_finite_differences_over_the_same_chips() -> None:
    step = 1e-2

    def mean(sigma: float) -> tuple[float, float]:
        stats = montecarlo.run(lognormal, jax.random.key(2), 20_000, args=(jnp.float32(sigma),))
        return float(stats.mean), float(stats.quantiles[3])

    (mean_up, quantile_up), (mean_down, quantile_down) = mean(0.5 + step), mean(0.5 - step)
    found = montecarlo.sensitivity(lognormal, jax.random.key(2), 20_000, 0.5)
    assert found.mean == pytest.approx((mean_up - mean_down) / (2 * step), rel=1e-3)
    assert found.quantiles[3] == pytest.approx((quantile_up - quantile_down) / (2 * step), rel=0.02)


def test_sigma_of_each_level_has_its_own_gradient() -> None:
    levels = jnp.array([0, 0, 1, 3])

    def metric(key: jax.Array, sigma: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(sigma[levels] * jax.random.normal(key, (4,))))

    found = montecarlo.sensitivity(metric, jax.random.key(0), 20_000, jnp.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_less(np.abs(found.mean - [0.4, 0.4, 0.0, 0.8]), 5 * found.mean_error + 1e-12)
    assert found.mean[2] == 0


def test_a_metric_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"`fn` must return one float number.*shape \(3,\)"):
        montecarlo.sensitivity(lambda k, p: p * jax.random.normal(k, (3,)), jax.random.key(0), 30, 1.0)
    with pytest.raises(ValueError, match="`values` must hold at least 20 finite instances"):
        montecarlo.sensitivity(lambda k, p: p * jax.random.normal(k), jax.random.key(0), 5, 1.0)
