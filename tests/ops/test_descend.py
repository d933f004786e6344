"""The one optimiser loop against Optax's own loop written out, and its seams."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvcim_jax import ops

TARGET = jnp.array([1.0, -2.0, 0.5])


def _loss(p: jax.Array, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    del key, step
    value = jnp.square(p - TARGET).sum()
    return value, value


@pytest.mark.parametrize("make", [optax.adam, optax.sgd, optax.adamw, optax.lion, optax.rmsprop])
def test_equals_the_loop_written_out(make: object, key: jax.Array) -> None:
    optimiser = make(0.1)  # type: ignore[operator]
    found, reported = ops.descend(key, jnp.zeros(3), _loss, optimiser, num_steps=5)
    p, state = jnp.zeros(3), optimiser.init(jnp.zeros(3))
    for t in range(5):
        value, slope = jax.value_and_grad(lambda p: _loss(p, key, jnp.int32(0))[0])(p)
        np.testing.assert_allclose(value, reported[t], rtol=1e-6)
        change, state = optimiser.update(slope, state, p)
        p = optax.apply_updates(p, change)
    np.testing.assert_allclose(found, p, rtol=1e-6)


def test_the_projection_holds_from_the_start(key: jax.Array) -> None:
    def loss(p: jax.Array, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _loss(p, key, step)[0], jnp.abs(p).max()

    _, seen = ops.descend(
        key, jnp.full(3, 9.0), loss, optax.sgd(1.0), num_steps=4, project=lambda p: jnp.clip(p, -0.3, 0.3)
    )
    assert float(seen.max()) <= np.float32(0.3)


def test_a_gradient_of_ones_own_and_a_step_of_its_own_key(key: jax.Array) -> None:
    def gradient(key: jax.Array, loss: object, p: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del loss
        return jnp.ones_like(p), jax.random.uniform(key) + 0.0 * step.astype(jnp.float32)

    p, reported = ops.descend(key, jnp.zeros(2), _loss, optax.sgd(1.0), num_steps=3, gradient=gradient)
    np.testing.assert_allclose(p, -3.0)
    keys = [float(jax.random.uniform(jax.random.fold_in(key, t))) for t in range(3)]
    np.testing.assert_allclose(reported, keys, rtol=1e-6)


def test_no_steps_are_the_projected_start(key: jax.Array) -> None:
    p, reported = ops.descend(key, jnp.ones(3), _loss, optax.sgd(1.0), num_steps=0, project=lambda p: p / 2)
    np.testing.assert_allclose(p, 0.5)
    assert reported.shape == (0,)
