"""A converter of the user's own: the products of a named one where it is that, mapped and differentiated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, io, ops
from nvcim_jax.types import Work

W = jax.random.normal(jax.random.key(0), (12, 3))
X = jax.random.normal(jax.random.key(1), (4, 12))
DEVICE = devices.get("FeFET3", sigma=0.1)


def symmetric(v: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    step = high / (2 ** (bits - 1) - 1)
    return ops.round_straight_through(ops.clip_inclusive(v, low, high) / step) * step


def uniform(v: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    return ops.uniform_steps(v, low, high, num_steps=2**bits - 1)


def bent(v: jax.Array, low: jax.Array, high: jax.Array, bits: int, bow: float) -> jax.Array:
    """Bend the characteristic by a cubic that leaves both ends in place, then round."""
    unit = v / high
    return symmetric(high * (unit + bow * unit * (unit * unit - 1.0)), low, high, bits)


class Unhashable(list):
    def __call__(self, v: jax.Array, *_: Any) -> jax.Array:
        return v


def _config(code: Any, **options: Any) -> crossbar.Config:
    return crossbar.Config(rows=8, adc_bits=5, adc_code=code, **options)


@functools.partial(jax.jit, static_argnums=2)
def _product(seed: jax.Array | int, x: jax.Array, config: crossbar.Config) -> tuple[jax.Array, crossbar.Info]:
    return crossbar.sample(jax.random.key(seed), x, crossbar.encode(W, DEVICE, config=config))


@pytest.mark.slow
@pytest.mark.parametrize(("own", "name"), [(symmetric, "symmetric"), (uniform, "uniform")])
@pytest.mark.parametrize("options", [{}, {"adc_range": "max", "adc_before_subtraction": True}], ids=str)
def test_a_function_that_is_a_named_code_gives_its_products(own: Any, name: str, options: dict) -> None:
    y, info = _product(2, X, _config(own, **options))
    named, named_info = _product(2, X, _config(name, **options))
    np.testing.assert_array_equal(y, named)
    assert info.adc_saturated == named_info.adc_saturated


def test_a_chip_is_read_again_with_a_code_of_ones_own() -> None:
    chip = crossbar.program(jax.random.key(3), W, DEVICE, config=_config("symmetric"))
    bent_less = functools.partial(bent, bow=0.0)
    converters = crossbar.Converters(adc_bits=5, adc_code=bent_less)
    y, _ = crossbar.matmul(jax.random.key(4), X, chip, converters=converters)
    named, _ = crossbar.matmul(jax.random.key(4), X, chip)
    np.testing.assert_allclose(y, named, atol=1e-5)


@pytest.mark.slow
def test_contracts_of_a_code_of_ones_own() -> None:
    config = _config(functools.partial(bent, bow=0.2))
    y = jax.vmap(lambda seed: _product(seed, X, config)[0])(jnp.arange(3))
    for seed in range(3):
        np.testing.assert_allclose(y[seed], _product(seed, X, config)[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(y[0] - _product(0, X, _config("symmetric"))[0]).max() > 0.1
    slope = jax.grad(lambda x: jnp.square(_product(0, x, config)[0]).sum())(X)
    assert jnp.isfinite(slope).all()
    assert jnp.abs(slope).max() > 0
    other = 2.0 * X
    with count_traces() as made:
        _product(1, X, config)
        _product(2, other, config)
    assert made == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("unform", r"`adc_code` must be one of symmetric, uniform, but is 'unform'\. Did you mean 'uniform'"),
        (3, r"`adc_code` must be one of symmetric, uniform, or a function, but is 3"),
        (Unhashable(), r"`adc_code` must be a function that can be hashed, but a Unhashable .*functools\.partial"),
    ],
    ids=str,
)
def test_what_is_no_code_is_named(code: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(code)


def test_a_code_that_returns_something_else_and_bits_beside_it_are_named() -> None:
    with pytest.raises(ValueError, match=r"`adc_code` must return an array of float32 of shape .*, but returns"):
        _product(6, X, _config(lambda v, low, high, bits: v.sum()))
    target = crossbar.encode(W, DEVICE, config=_config(symmetric))
    with pytest.raises(ValueError, match=r"`bits\.adc` must be left out with an adc_code that is a function"):
        crossbar.sample(jax.random.key(7), X, target, bits=crossbar.Bits(adc=5.0))


def test_a_folder_tells_bound_numbers_of_a_code_apart() -> None:
    work = Work(None, jax.random.key(8), ())
    one, other = (io.fingerprint(_config(functools.partial(bent, bow=bow)), work) for bow in (0.1, 0.2))
    assert one == io.fingerprint(_config(functools.partial(bent, bow=0.1)), work)
    assert io.difference(one, other) == ["the setting adc_code.keywords.bow (0.1 there, 0.2 here)"]
