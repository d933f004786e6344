"""Quantisers: values against NumPy, gradients against their relaxed twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import ops


def test_rounding_keeps_every_bit_and_passes_the_gradient() -> None:
    x = jnp.linspace(-1e6, 1e6, 1001)
    np.testing.assert_array_equal(ops.round_straight_through(x), np.round(np.asarray(x)))
    np.testing.assert_array_equal(jax.vmap(jax.grad(ops.round_straight_through))(x), np.ones(1001))


@pytest.mark.parametrize("num_steps", [1, 3, 254])
def test_uniform_steps_hit_both_ends_and_nearest_values(num_steps: int) -> None:
    low, high = jnp.array([-1.5]), jnp.array([2.0])
    x = jnp.linspace(-3, 3, 2001)
    y = np.asarray(ops.uniform_steps(x, low, high, num_steps=num_steps))
    grid = np.linspace(-1.5, 2.0, num_steps + 1)
    distance = np.abs(np.clip(x, -1.5, 2.0)[:, None] - grid).min(axis=1)
    np.testing.assert_allclose(np.abs(y - np.clip(x, -1.5, 2.0)), distance, atol=1e-6)
    assert y.min() == pytest.approx(-1.5)
    assert y.max() == pytest.approx(2.0)


def test_uniform_steps_gradients_are_those_of_clipping_and_of_the_range() -> None:
    def value(x: jax.Array, high: jax.Array) -> jax.Array:
        return ops.uniform_steps(x, -high, high, num_steps=8).sum()

    x = jnp.array([-3.0, -0.4, 0.7, 5.0])
    dx, dhigh = jax.grad(value, argnums=(0, 1))(x, jnp.array(1.0))
    np.testing.assert_allclose(dx, [0.0, 1.0, 1.0, 0.0])
    # saturated values move with their end; inside, y / high = k (2 / 8) - 1 with the code k held fixed, less the
    # straight-through part x / high
    step = 2 / 8
    inside = [round((v + 1) / step) * step - 1 - v for v in (-0.4, 0.7)]
    np.testing.assert_allclose(dhigh, -1 + 1 + sum(inside), atol=1e-6)


@settings(deadline=None)  # the first example compiles
@given(st.integers(2, 16), st.integers(1, 5), st.integers(0, 10**6))
def test_digits_are_those_of_python(base: int, num_digits: int, number: int) -> None:
    number %= base**num_digits
    split = ops.digits(jnp.array([float(number)]), base=base, num_digits=num_digits).ravel()
    expected = [number // base**i % base for i in range(num_digits)]
    np.testing.assert_array_equal(split, expected)


def test_digits_round_trip_has_gradient_one() -> None:
    def there_and_back(code: jax.Array) -> jax.Array:
        return ops.from_digits(ops.digits(code, base=4, num_digits=8), base=4)

    value, slope = jax.value_and_grad(there_and_back)(jnp.array(32767.0))
    assert float(value) == 32767.0
    assert float(slope) == pytest.approx(1.0, rel=1e-6)
