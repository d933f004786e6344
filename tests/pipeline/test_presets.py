"""Presets: what they make, and the noise that prompts are tuned in: its size, its gradient, and what compiles anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, pipeline, tuning
from nvcim_jax.pipeline.presets import training_noise

SHAPE = (2, 32)
NUM = 4000


@pytest.fixture(scope="module")
def prompt():
    return jax.random.normal(jax.random.key(0), SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "value", "cell", "censored"])
def test_every_kind_passes_the_gradient_on_as_it_is(prompt, device, arrays, kind):
    perturb = training_noise(kind, device, arrays)
    direction = jax.random.normal(jax.random.key(1), SHAPE)
    noisy, back = jax.vjp(lambda p: perturb(jax.random.key(2), p), prompt)
    np.testing.assert_array_equal(back(direction)[0], direction)
    assert jnp.array_equal(noisy, prompt) == (kind == "none")
    assert jnp.array_equal(noisy, perturb(jax.random.key(2), prompt))
    assert jnp.array_equal(noisy, perturb(jax.random.key(3), prompt)) == (kind == "none")


def test_value_level_noise_is_that_of_programming_alone(prompt, device, arrays):
    effects = {"d2d_sigma": 0.1, "stuck_on": 0.1, "drift": devices.Drift(mean=0.1), "read": devices.Read(sigma=0.1)}
    levels = device.programming.levels
    shifted = devices.level_table(levels.conductance, levels.sigma, 0.9 * levels.conductance)
    found = training_noise("value", device.replace(programming=shifted, **effects), arrays)(jax.random.key(2), prompt)
    np.testing.assert_allclose(found, devices.value_noise(jax.random.key(2), prompt, device), rtol=1e-6)


def test_without_a_device_there_is_no_noise(prompt, arrays):
    np.testing.assert_array_equal(training_noise("cell", None, arrays)(jax.random.key(2), prompt), prompt)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["differential", "offset"])
def test_cell_level_noise_has_the_moments_of_the_crossbar(prompt, device, arrays, mapping):
    arrays = dataclasses.replace(arrays, mapping=mapping)
    perturb = training_noise("cell", device, arrays)
    target = crossbar.encode(prompt.reshape(-1, 1), device, config=arrays)
    mean, variance = crossbar.product_moments(jnp.eye(64), target)
    keys = jax.random.split(jax.random.key(3), NUM)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: perturb(k, prompt)))(keys), np.float64).reshape(NUM, -1)
    mean, variance = np.asarray(mean, np.float64)[:, 0], np.asarray(variance, np.float64)[:, 0]
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variance / NUM) + 1e-6).all()
    spread = np.square(np.square(draws - mean) - variance).mean(axis=0)
    assert (np.abs(draws.var(axis=0) - variance) < 5 * np.sqrt(spread / NUM)).all()
    assert variance.max() > 1.5 * variance.min()  # every cell has the noise of its own level


def test_cell_level_noise_is_what_a_programmed_chip_gives_back(prompt, device, arrays):
    found = training_noise("cell", device, arrays)(jax.random.key(4), prompt)
    write_key, read_key = jax.random.split(jax.random.key(4))
    chip = crossbar.program(write_key, prompt.reshape(-1, 1), device, config=arrays)
    np.testing.assert_allclose(found, crossbar.read_back(read_key, chip).reshape(SHAPE), rtol=1e-5, atol=1e-6)


def test_another_device_number_compiles_no_tuning(lm, arrays):
    batch, adapter = tuning.examples([[1, 5]], [[8, 2]]), tuning.prompt(2)

    def run(sigma: float) -> jax.Array:
        perturb = training_noise("cell", devices.get("FeFET3", sigma=sigma), arrays)
        how = {"adapter": adapter, "options": tuning.Options(num_steps=2), "perturb": perturb}
        return tuning.tune(jax.random.key(0), jnp.ones(SHAPE), lm, batch, **how)[0]

    first = run(0.1)
    with count_traces() as traced:
        second = run(0.2)
    assert traced == []
    assert not jnp.array_equal(first, second)


def test_cells_take_as_many_bits_as_the_device_has_levels():
    preset = pipeline.Preset()
    assert preset.fitted(devices.get("RRAM1")).arrays.cell_bits == 1
    assert preset.fitted(devices.get("FeFET3")).arrays.cell_bits == 2
    assert preset.fitted(None) == preset


@pytest.mark.slow
@pytest.mark.parametrize("name", [*pipeline.presets])
def test_every_preset_makes_all_parts(lm, name):
    preset = pipeline.presets[name].changed(config={"capacity": 3, "codec": "identity"})
    for device in (None, devices.get("FeFET3")):
        parts = preset.parts(device)
        state = pipeline.init(jax.random.key(0), lm, config=preset.config, **parts)
        assert state.store.prompts.shape == (3, preset.config.num_virtual, 32)
        assert isinstance(state.arrays.values, jax.Array) == (device is None)


def test_numbers_without_sense_are_named():
    for change in ({"learning_rate": -1.0}, {"bound": 0.0}, {"lipschitz": -0.1}, {"noise": "vlaue"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            pipeline.Preset(**change)
    with pytest.raises(TypeError, match="Did you mean 'bound'"):
        pipeline.Preset().changed(bond=1.0)
