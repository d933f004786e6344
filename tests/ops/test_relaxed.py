"""The relaxed quantiser: its closed form, its relation to the hard one, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nvcim_jax import ops

LOW, HIGH = jnp.array([-1.0]), jnp.array([1.5])
NUM = 200_000


def _steps(bits: float) -> jax.Array:
    return jnp.exp2(jnp.full(1, bits)) - 1.0


@pytest.mark.parametrize("rng", ops.RNGS)
@pytest.mark.parametrize("bits", [2.0, 4.5, 8.0])
def test_error_has_the_mean_and_variance_of_rounding(bits: float, rng: str) -> None:
    x = jnp.full(NUM, 0.2)
    error = np.asarray(ops.relaxed_steps(jax.random.key(1), x, LOW, HIGH, num_steps=_steps(bits), rng=rng) - x)
    step = 2.5 / (2**bits - 1)
    error = error.astype(np.float64) / step
    assert abs(error.mean()) < 5 * (1 / 12 / NUM) ** 0.5
    assert abs(error.var() - 1 / 12) < 5 * (1 / 180 / NUM) ** 0.5 + 1e-5  # float32 of x and y
    assert np.abs(error).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("value", [-0.6, 0.013, 0.9])
def test_it_is_distributed_as_the_hard_quantiser_with_subtracted_dither(value: float) -> None:
    steps, dither_key = 7, jax.random.key(2)
    step = 2.5 / steps
    x = jnp.full(20_000, value)
    dither = step * ops.centred_uniform(dither_key, x.shape)
    hard = ops.uniform_steps(x + dither, LOW, HIGH, num_steps=steps) - dither
    relaxed = ops.relaxed_steps(jax.random.key(3), x, LOW, HIGH, num_steps=jnp.full(1, float(steps)))
    assert stats.ks_2samp(np.asarray(hard), np.asarray(relaxed)).pvalue > 1e-6
    assert stats.kstest(np.asarray((hard - value) / step) + 0.5, "uniform").pvalue > 1e-6


def test_over_even_inputs_both_have_the_same_error_and_at_the_ends_none() -> None:
    x = jax.random.uniform(jax.random.key(4), (NUM,), minval=-1.0, maxval=1.5)
    hard = ops.uniform_steps(x, LOW, HIGH, num_steps=15)
    relaxed = ops.relaxed_steps(jax.random.key(5), x, LOW, HIGH, num_steps=jnp.full(1, 15.0))
    squares = [np.square(np.asarray(y - x, np.float64)) for y in (hard, relaxed)]
    error = np.hypot(*(s.std() / NUM**0.5 for s in squares))
    assert abs(squares[0].mean() - squares[1].mean()) < 5 * error
    ends = jnp.array([-3.0, -1.0, 1.5, 2.0])
    for y in (
        ops.uniform_steps(ends, LOW, HIGH, num_steps=15),
        ops.relaxed_steps(jax.random.key(5), ends, LOW, HIGH, num_steps=jnp.full(1, 15.0)),
    ):
        np.testing.assert_array_equal(y, [-1.0, -1.0, 1.5, 1.5])


def test_gradients_are_those_of_finite_differences_with_common_keys_and_of_the_closed_form() -> None:
    x = jnp.full(NUM, 0.2)

    def mean_square(bits: jax.Array) -> jax.Array:
        y = ops.relaxed_steps(jax.random.key(6), x, LOW, HIGH, num_steps=jnp.exp2(bits.reshape(1)) - 1.0)
        return jnp.mean(jnp.square(y - x))

    bits, step = jnp.float32(4.0), 1e-2
    found = float(jax.grad(mean_square)(bits))
    difference = float(mean_square(bits + step) - mean_square(bits - step)) / (2 * step)
    assert found == pytest.approx(difference, rel=1e-3)
    # (r / (2^b - 1))^2 / 12: slope -2 ln 2 2^b / (2^b - 1) times the value, whose relative error is sqrt(0.8 / NUM)
    truth = -2 * np.log(2) * 16 / 15 * (2.5 / 15) ** 2 / 12
    assert abs(found / truth - 1) < 5 * (0.8 / NUM) ** 0.5
    slope = jax.vmap(
        jax.grad(lambda v: ops.relaxed_steps(jax.random.key(7), v, LOW[0], HIGH[0], num_steps=_steps(3)[0]))
    )
    np.testing.assert_array_equal(slope(jnp.array([-2.0, 0.3, 2.0])), [0.0, 1.0, 0.0])


def test_a_mirrored_key_mirrors_the_noise(key: jax.Array) -> None:
    one, other = (ops.relaxed_steps(k, jnp.zeros(50), LOW, HIGH, num_steps=_steps(3.0)) for k in (key, ops.mirror(key)))
    np.testing.assert_array_equal(one, -other)
    assert float(jnp.abs(one).max()) > 0
