"""Running moments: those of all samples at once, however they came."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import ops


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.sampled_from([0.0, 3.0, 300.0]))
def test_moments_of_parts_are_those_of_the_whole(seed: int, cut: int, mean: float) -> None:
    rows = mean + np.random.default_rng(seed).standard_normal((7, 2, 3)) * np.array([1.0, 0.5, 10.0])
    seen = ops.moments_init((2, 3))
    for part in (rows[:cut], rows[cut:]):
        seen = ops.moments_add(seen, jnp.asarray(part, jnp.float32))
    assert float(seen.number) == 7.0
    np.testing.assert_allclose(seen.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-5)
    # A mean 3,000 times the spread leaves float32 three digits of it.
    np.testing.assert_allclose(ops.moments_spread(seen), rows.std(axis=0), rtol=2e-3)


def test_what_does_not_differ_is_not_blown_up() -> None:
    seen = ops.moments_init((3,))
    np.testing.assert_array_equal(ops.moments_spread(seen), np.ones(3))
    same = ops.moments_add(seen, jnp.full((4, 3), 2.5))
    np.testing.assert_array_equal(ops.moments_spread(same), np.ones(3))
    one = ops.moments_add(seen, jnp.array([[0.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
    np.testing.assert_allclose(ops.moments_spread(one), [1.5, 1.5e-3 / np.sqrt(3), 1.5e-3 / np.sqrt(3)], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_samples_of_every_float_are_added_up_in_float32(dtype) -> None:
    seen = ops.moments_add(ops.moments_init((1,)), jnp.array([[100.0], [100.5], [101.0], [101.5]], dtype))
    assert {leaf.dtype for leaf in seen} == {jnp.dtype("float32")}
    np.testing.assert_allclose((seen.mean[0], seen.squares[0]), (100.75, 1.25), rtol=1e-6)


def test_no_samples_change_nothing() -> None:
    seen = ops.moments_add(ops.moments_init((2,)), jnp.array([[1.0, 2.0], [3.0, 5.0]]))
    for state in (seen, ops.moments_init((2,))):
        for found, there in zip(ops.moments_add(state, jnp.zeros((0, 2))), state, strict=True):
            np.testing.assert_array_equal(found, there)


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`samples`.*\(samples, \*shape\)"):
        ops.moments_add(ops.moments_init((3,)), jnp.ones((2, 4)))
