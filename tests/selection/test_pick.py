"""The picks: hard against NumPy, soft against softmax, how the two are related, and empty slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import selection

SCORES = jnp.array([0.3, -jnp.inf, 1.2, 1.1, -2.0])
VALUES = jnp.array([1.0, 7.0, -3.0, 2.0, 5.0])


def test_hard_takes_the_first_of_the_largest() -> None:
    np.testing.assert_array_equal(selection.pick_hard(jnp.array([1.0, 3.0, 3.0])), [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(selection.pick_hard(SCORES), [0, 0, 1, 0, 0])


def test_soft_is_the_softmax_of_the_filled_slots() -> None:
    filled = np.isfinite(SCORES)
    expected = np.where(filled, np.exp(np.asarray(SCORES) / 0.7), 0.0)
    np.testing.assert_allclose(selection.pick_soft(SCORES, 0.7), expected / expected.sum(), rtol=1e-6)


def test_soft_becomes_hard_as_the_temperature_goes_to_zero() -> None:
    hard = selection.pick_hard(SCORES)
    distance = [float(jnp.abs(selection.pick_soft(SCORES, t) - hard).max()) for t in (1.0, 0.1, 0.03, 0.001)]
    assert distance == sorted(distance, reverse=True)
    # the runner-up lies 0.1 below: its odds are exp(-0.1 / t)
    assert distance[2] == pytest.approx(1 / (1 + np.exp(0.1 / 0.03)), rel=1e-3)
    assert distance[3] == 0.0


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    np.testing.assert_array_equal(selection.pick_straight_through(SCORES, 0.5), selection.pick_hard(SCORES))
    slopes = [
        jax.grad(lambda s, pick=pick: (pick(s, 0.5) * VALUES).sum())(SCORES)
        for pick in (selection.pick_straight_through, selection.pick_soft)
    ]
    np.testing.assert_array_equal(*slopes)
    assert float(slopes[0][1]) == 0.0


def test_soft_gradient_agrees_with_finite_differences() -> None:
    def value(scores: jax.Array) -> jax.Array:
        return (selection.pick_soft(scores, 0.5) * VALUES).sum()

    slope = jax.grad(value)(SCORES)
    step = 1e-2
    for i in (0, 2, 3, 4):
        shift = step * jnp.eye(5)[i]
        numeric = (float(value(SCORES + shift)) - float(value(SCORES - shift))) / (2 * step)
        assert float(slope[i]) == pytest.approx(numeric, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", selection.PICKS)
@pytest.mark.parametrize("scores", [SCORES, jnp.full(3, -jnp.inf), jnp.array([1e30, 0.0, -jnp.inf])], ids=str)
def test_empty_slots_weigh_nothing_and_gradients_are_finite(kind: str, scores: jax.Array) -> None:
    def weights(scores: jax.Array, temperature: jax.Array) -> jax.Array:
        return selection.pick(scores, kind=kind, temperature=temperature)

    found = weights(scores, jnp.array(0.1))
    np.testing.assert_array_equal(np.asarray(found)[np.isinf(scores)], 0.0)
    total = 1.0 if bool(jnp.isfinite(scores).any()) else 0.0
    assert float(found.sum()) == pytest.approx(total, abs=1e-6)
    slopes = jax.jacobian(weights, argnums=(0, 1))(scores, jnp.array(0.1))
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)


@pytest.mark.parametrize("kind", selection.PICKS)
def test_contracts_of_the_picks(kind: str) -> None:
    batch = jnp.stack([SCORES, SCORES[::-1], 2.0 * SCORES])
    traces = []

    def one(scores: jax.Array, temperature: jax.Array) -> jax.Array:
        traces.append(1)
        return selection.pick(scores, kind=kind, temperature=temperature)

    eager = jnp.stack([one(scores, jnp.array(0.5)) for scores in batch])
    traces.clear()
    jitted = jax.jit(one)
    for temperature in (0.1, 0.5, 2.0):
        jitted(SCORES, jnp.array(temperature))
    assert len(traces) == 1
    np.testing.assert_allclose(jitted(SCORES, jnp.array(0.5)), eager[0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(one, in_axes=(0, None))(batch, jnp.array(0.5)), eager, rtol=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"`kind` must be one of .* Did you mean 'hard'"):
        selection.pick(SCORES, kind="hart")
    with pytest.raises(ValueError, match=r"`temperature` must lie in \(0, inf\], but is 0"):
        selection.pick_soft(SCORES, 0.0)
    with pytest.raises(ValueError, match=r"`kind` must have shape of its result \(slots,\) = \(5,\)"):
        selection.pick(SCORES, kind=lambda scores, temperature: scores[:2])


def test_a_rule_of_ones_own() -> None:
    def second(scores: jax.Array, temperature: jax.Array) -> jax.Array:
        del temperature
        return jax.nn.one_hot(jnp.argsort(-scores)[1], scores.shape[0], dtype=scores.dtype)

    found = selection.pick(jnp.array([0.1, 0.9, 0.5]), kind=second)
    np.testing.assert_array_equal(found, [0.0, 0.0, 1.0])
