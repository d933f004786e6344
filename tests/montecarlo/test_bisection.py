"""Bisection for what a task can stand, against a closed form."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import montecarlo

TRUTH = 1 / NormalDist().inv_cdf(0.95)  # 90 % of |x N| lie below 1


def metric(key: jax.Array, x: jax.Array) -> jax.Array:
    return x * jnp.abs(jax.random.normal(key))


def _tolerance(num: int = 5000, seed: int = 0, fn=metric, **options) -> montecarlo.Tolerance:
    good = montecarlo.Good(bound=1.0, share=0.9)
    return montecarlo.tolerance(fn, jax.random.key(seed), num, good=good, **({"between": (0.0, 2.0)} | options))


def test_tolerance_is_the_sample_quantile_to_the_resolution() -> None:
    found = _tolerance(resolution=1e-4)
    chips = montecarlo.run(metric, jax.random.key(0), 5000, args=(jnp.float32(1),)).values
    assert found.value == pytest.approx(1 / np.quantile(chips, 0.9), abs=4e-4)
    assert found.low < found.value < found.high
    assert found.low < TRUTH < found.high
    assert found.interval.estimate >= 0.9
    xs, shares = zip(*found.curve, strict=True)
    assert list(xs) == sorted(xs)
    assert list(shares) == sorted(shares, reverse=True)


@pytest.mark.slow
def test_the_bracket_covers_at_its_level() -> None:
    found = [_tolerance(num=400, seed=seed, resolution=0.02) for seed in range(30)]
    # resolution: ends are good x, up to 0.04 below the crossing
    covered = sum(t.low <= TRUTH <= t.high + 0.04 for t in found)
    assert covered >= 24  # binomial (30, 0.95): less than 24 has probability 0.0006


def test_one_program_serves_every_x() -> None:
    def own(key: jax.Array, x: jax.Array) -> jax.Array:
        return metric(key, x)

    with count_traces() as made:
        _tolerance(num=50, fn=own)
    assert made.count("jit(on_one_device)") == 1


def test_too_few_chips_to_be_safe_gives_nan() -> None:
    found = _tolerance(num=20)
    assert math.isnan(found.low)


def test_a_wrong_bracket_is_named() -> None:
    with pytest.raises(ValueError, match=r"`between` must have a share of good chips of at least 0\.9 at its least x"):
        _tolerance(between=(1.5, 2.0))
    with pytest.raises(ValueError, match=r"`between` must have a share of good chips below 0.9 .*Raise the greatest"):
        _tolerance(between=(0.0, 0.3))
    with pytest.raises(ValueError, match="`between` must be the least and the greatest x"):
        _tolerance(between=(3.0, 2.0))


def test_a_failed_chip_is_not_a_good_one() -> None:
    def failing(key: jax.Array, x: jax.Array) -> jax.Array:
        value = metric(key, x)
        return jnp.where(value > 1, jnp.nan, value)

    assert _tolerance(fn=failing).value == _tolerance().value
