"""Value-level noise of NVCiM-PT: buckets, scale, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

# One compilation a shape is faster than one a shape and operation; the contracts hold the two together.
value_noise = jax.jit(devices.value_noise)


@pytest.mark.parametrize("name", ["FeFET2", "FeFET3", "RRAM4", "FeFET6"])
def test_each_quarter_of_the_range_has_the_noise_of_its_level(name: str, key, assert_moments) -> None:
    device = devices.get(name, sigma=0.1)
    row = np.asarray(0.1 * device.programming.levels.sigma)
    # bounds belong to the bucket below; signs do not matter; the largest value, 4, is the scale
    values = jnp.asarray([0.0, 1.0, -1.0, 1.001, -2.0, 2.001, 3.0, -3.001, 4.0])
    levels = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3])
    noise = jax.vmap(lambda k: value_noise(k, values, device))(jax.random.split(key, 40_000)) - values[None]
    assert_moments(noise, np.zeros(9), (4.0 * row[levels]) ** 2)
    correlation = np.corrcoef(np.asarray(noise).T) - np.eye(9)
    assert np.abs(correlation).max() < 5 / np.sqrt(40_000)


@pytest.mark.parametrize("name", ["RRAM1", "Gaussian"])
def test_a_constant_row_is_one_noise_for_all(name: str, key, assert_moments) -> None:
    device = devices.get(name, sigma=0.05)
    values = jnp.broadcast_to(jnp.asarray([0.0, -0.3, 2.0]), (50_000, 3))
    noise = value_noise(key, values, device) - values
    assert_moments(noise, np.zeros(3), np.full(3, (2.0 * 0.05) ** 2))


@pytest.mark.parametrize("name", ["PCM", "RRAMWan2022-1s", "RRAMMilo2021", "ideal"])
def test_a_device_without_four_levels_is_refused(name: str, key) -> None:
    with pytest.raises(ValueError, match=rf"`device` must have four levels.*but '{name}' has neither\. Use FeFET2"):
        value_noise(key, jnp.ones(3), devices.get(name))


EFFECTS = {
    "d2d_sigma": 0.05,
    "stuck_off": 0.1,
    "drift": devices.Drift(mean=0.05),
    "read": devices.Read(sigma=0.01),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_effects_that_belong_to_cells_are_refused_and_can_be_taken_away(effect: str, key) -> None:
    device = devices.get("FeFET6", **{effect: EFFECTS[effect]})
    with pytest.raises(ValueError, match=rf"programming noise alone, but 'FeFET6' has {effect}\. .*\({effect}=None\)"):
        devices.value_noise(key, jnp.ones(3), device)
    assert jnp.isfinite(value_noise(key, jnp.ones(3), device.replace(**{effect: None}))).all()


def test_a_shift_of_the_mean_is_refused_by_value_and_in_a_chip(key) -> None:
    device = devices.from_table([0.0, 1 / 3, 2 / 3, 1.0], [0.1, 0.4, 0.7, 0.9], [0.01] * 4, g_max_us=40.0)
    with pytest.raises(ValueError, match=r"has a shift of its mean\. .*=device\.programming\.replace\(mean=None\)"):
        devices.value_noise(key, jnp.ones(3), device)
    with pytest.raises(ValueError, match=r"`config\.noise` must be 'cell' for a .* miss their targets"):
        crossbar.encode(jnp.eye(3), device, config=crossbar.Config(noise="value"))
    centred = device.replace(programming=device.programming.replace(mean=None))
    noise = value_noise(key, jnp.ones(10_000), centred) - 1.0
    assert abs(float(noise.mean())) < 5 * 0.01 / 100


def test_values_must_be_finite(key) -> None:
    with pytest.raises(ValueError, match="`values` must be finite, but has 1 NaN"):
        devices.value_noise(key, jnp.asarray([1.0, jnp.nan]), devices.get("FeFET6"))


def test_gradients_pass_straight_and_reach_sigma(key) -> None:
    values = jnp.asarray([[0.5, -2.0], [3.0, 0.1]])
    device = devices.get("FeFET6")

    def total(values: jax.Array, sigma: jax.Array) -> jax.Array:
        return jnp.sum(value_noise(jax.random.clone(key), values, device.replace(sigma=sigma)))

    to_values, to_sigma = jax.grad(total, argnums=(0, 1))(values, jnp.float32(0.1))
    np.testing.assert_array_equal(to_values, np.ones((2, 2)))
    noise = total(values, jnp.float32(0.1)) - values.sum()
    np.testing.assert_allclose(to_sigma, noise / 0.1, rtol=1e-4)


@pytest.mark.parametrize("values", [jnp.zeros((3, 2)), jnp.zeros((0, 4))])
def test_zero_and_empty_values_stay_as_they_are(values: jax.Array, key) -> None:
    np.testing.assert_array_equal(value_noise(key, values, devices.get("FeFET6")), values)


def test_jit_and_vmap_equal_eager_and_the_type_is_kept() -> None:
    device = devices.get("FeFET3")
    values = jnp.linspace(-1.0, 1.0, 24).reshape(2, 3, 4)
    keys = jax.random.split(jax.random.key(1))
    mapped = jax.vmap(value_noise, in_axes=(0, 0, None))(keys, values, device)
    for index, one in enumerate(jax.random.split(jax.random.key(1))):
        np.testing.assert_allclose(mapped[index], value_noise(one, values[index], device), atol=1e-6)
    eager = devices.value_noise(jax.random.split(jax.random.key(1))[0], values[0], device)
    np.testing.assert_allclose(mapped[0], eager, atol=1e-6)
    low = value_noise(jax.random.key(2), values[0].astype(jnp.bfloat16), device)
    assert low.dtype == jnp.bfloat16
