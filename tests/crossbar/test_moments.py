"""Closed-form moments of a product against textbook cases, exact products, and chips drawn cell by cell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices
from nvcim_jax.crossbar.moments import product_moments

ROWS, COLS, CHIPS = 20, 5, 2000
CASES: dict[str, tuple[devices.Device, dict[str, Any]]] = {
    "pair, analog": (devices.get("Gaussian", sigma=0.1), {}),
    "pair, clipped at 0": (devices.get("Gaussian", sigma=0.1, clip=True), {}),
    "pair, slices and tiles with remainder rows": (
        devices.get("FeFET6", sigma=0.1),
        {"rows": 16, "weight_bits": 6, "cell_bits": 2},
    ),
    "offset with reference columns of two column tiles": (
        devices.get("FeFET3", sigma=0.1),
        {"rows": 12, "cols": 4, "weight_bits": 4, "cell_bits": 2, "mapping": "offset"},
    ),
    "offset subtracted digitally, one scale a column": (
        devices.get("Gaussian", sigma=0.1),
        {"weight_bits": 6, "cell_bits": 3, "mapping": "offset_digital", "weight_scale": "column"},
    ),
    "finite on/off ratio, stuck cells and device-to-device noise": (
        devices.get("Gaussian", sigma=0.05, on_off_ratio=10.0, d2d_sigma=0.05, stuck_on=0.02, stuck_off=0.05),
        {"cell_bits": 4},
    ),
}


def _problem() -> tuple[jax.Array, jax.Array]:
    weights = jax.random.normal(jax.random.key(1), (ROWS, COLS))
    return weights, jax.random.normal(jax.random.key(2), (3, ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_chips_drawn_cell_by_cell_agree(name: str) -> None:
    device, options = CASES[name]
    config = crossbar.Config(**options)
    weights, x = _problem()
    target = crossbar.encode(weights, device, config=config)
    mean, variance = product_moments(x, target)

    @jax.jit
    def chips(keys: jax.Array) -> jax.Array:
        return jax.lax.map(lambda key: crossbar.sample(key, x, target)[0], keys)

    y = np.asarray(chips(jax.random.split(jax.random.key(3), CHIPS)), np.float64)
    assert mean.shape == variance.shape == (3, COLS)
    for found, truth in ((y, mean), ((y - np.asarray(mean)) ** 2, variance)):
        standard_error = found.std(axis=0) / CHIPS**0.5
        assert np.max(np.abs(found.mean(axis=0) - np.asarray(truth)) / standard_error) < 5


def test_an_unclipped_gaussian_pair_has_twice_the_variance_of_a_cell() -> None:
    weights, x = _problem()
    device, config = devices.get("Gaussian", sigma=0.03), crossbar.Config()
    target = crossbar.encode(weights, device, config=config)
    mean, variance = product_moments(x, target)
    truth = 2 * (0.03 * np.abs(weights).max()) ** 2 * np.sum(np.square(x), axis=1)
    np.testing.assert_allclose(mean, x @ weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variance, np.broadcast_to(truth[:, None], variance.shape), rtol=1e-5)


@pytest.mark.parametrize("mapping", ["differential", "offset", "offset_digital"])
def test_an_ideal_device_gives_the_quantised_product_without_variance(mapping: str) -> None:
    weights, x = _problem()
    device = devices.get("ideal")
    config = crossbar.Config(rows=16, cols=4, weight_bits=6, cell_bits=2, mapping=mapping)
    target = crossbar.encode(weights, device, config=config)
    mean, variance = product_moments(x, target)
    y, _ = crossbar.sample(jax.random.key(0), x, target)
    np.testing.assert_allclose(mean, y, rtol=2e-5, atol=2e-5)
    assert not np.any(variance)


def test_one_vector_equals_its_row_of_a_batch_and_jit_equals_eager() -> None:
    weights, x = _problem()
    device, config = devices.get("FeFET6"), crossbar.Config(weight_bits=4, cell_bits=2)
    target = crossbar.encode(weights, device, config=config)
    batch = jax.jit(product_moments)(x, target)
    one = product_moments(x[1], target)
    for all_rows, single in zip(batch, one, strict=True):
        np.testing.assert_allclose(all_rows[1], single, rtol=1e-5)


def test_gradient_to_sigma_is_that_of_the_closed_form() -> None:
    weights, x = _problem()
    device, config = devices.get("Gaussian", sigma=0.1), crossbar.Config()
    target = crossbar.encode(weights, device, config=config)

    def total(sigma: jax.Array) -> jax.Array:
        return product_moments(x, target.replace(device=device.replace(sigma=sigma)))[1].sum()

    value, slope = jax.value_and_grad(total)(jnp.float32(0.1))
    np.testing.assert_allclose(slope, 2 * value / 0.1, rtol=1e-5)  # quadratic in sigma


def test_what_it_does_not_know_is_refused() -> None:
    weights, x = _problem()
    ideal, config = devices.get("ideal"), crossbar.Config()
    target = crossbar.encode(weights, ideal, config=config)
    with pytest.raises(ValueError, match="Argument `target` must be of a device without read noise"):
        product_moments(x, crossbar.encode(weights, devices.get("PCM"), config=config))
    with pytest.raises(ValueError, match=r"Argument `target` must have noise='cell'"):
        product_moments(x, crossbar.encode(weights, ideal, config=crossbar.Config(noise="value")))
    with pytest.raises(ValueError, match="Argument `x` must have shape"):
        product_moments(x[:, :3], target)
