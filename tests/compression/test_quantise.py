"""The symmetric quantiser against NumPy in float64, and what its gradient is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import compression


def twin(x: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Return the nearest multiple of max|x| / (2^(b-1) - 1), in float64."""
    step = np.abs(x.astype(np.float64)).max(axis, keepdims=True) / (2.0 ** (bits - 1) - 1)
    step[step == 0] = 1.0
    return np.round(x / step) * step


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [0, -1])
def test_values_are_those_of_a_twin(bits, axis) -> None:
    x = np.random.default_rng(bits).standard_normal((40, 24)).astype(np.float32)
    x[:, 3], x[5] = 0.0, 0.0  # zeros stay zeros
    np.testing.assert_allclose(compression.quantise(jnp.asarray(x), bits, axis=axis), twin(x, bits, axis), atol=1e-6)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_and_scales_are_the_same_values(bits) -> None:
    w = np.random.default_rng(bits).standard_normal((40, 24)).astype(np.float32)
    codes, scales = compression.to_codes(jnp.asarray(w), bits)
    assert codes.dtype == jnp.int8
    assert int(np.abs(codes).max()) == 2 ** (bits - 1) - 1
    np.testing.assert_allclose(np.float64(codes) * np.float64(scales), twin(w, bits, 0), atol=1e-6)


def test_bits_may_be_traced_and_mapped_over() -> None:
    x = jax.random.normal(jax.random.key(0), (5, 7))
    found = jax.jit(jax.vmap(lambda bits: compression.quantise(x, bits)))(jnp.array([2.0, 4.0, 8.0]))
    for bits, own in zip((2, 4, 8), found, strict=True):
        np.testing.assert_allclose(own, compression.quantise(x, bits), atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_kept(dtype) -> None:
    assert compression.quantise(jnp.ones(3, dtype), 4).dtype == dtype


def test_the_gradient_is_one_and_ends_where_it_is_clipped() -> None:
    x = jnp.array([-3.0, -0.2, 0.0, 1.9, 2.0])
    slope = jax.grad(lambda x, clip: (jnp.arange(5.0) * compression.quantise(x, 3, clip=clip)).sum())
    np.testing.assert_array_equal(slope(x, None), jnp.arange(5.0))
    np.testing.assert_array_equal(slope(x, 2.0), jnp.array([0.0, 1.0, 2.0, 3.0, 0.0]))


def test_numbers_whose_step_is_no_float_are_zero() -> None:
    x = jnp.array([1e-38, 0.0, 3e-39])
    np.testing.assert_allclose(compression.quantise(x, 8), x, atol=2e-38)
    np.testing.assert_array_equal(compression.to_codes(jnp.zeros((3, 1)).at[0].set(1e-44), 8)[0], 0)


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_bits_without_levels_or_room_are_refused(bits) -> None:
    with pytest.raises(ValueError, match=r"Argument `bits` must .* but"):
        compression.quantise(jnp.ones(3), bits)
    with pytest.raises(ValueError, match=r"Argument `clip` must"):
        compression.quantise(jnp.ones(3), 4, clip=0.0)
