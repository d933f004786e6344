"""The noise that prompts are tuned in: its size, its gradient, and what compiles anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices, pipeline, tuning

SHAPE = (2, 32)
NUM = 4000


@pytest.fixture(scope="module")
def prompt():
    return jax.random.normal(jax.random.key(0), SHAPE)


@pytest.mark.parametrize("kind", ["none", "value", "cell", "censored"])
def test_every_kind_passes_the_gradient_on_as_it_is(prompt, device, config, kind):
    perturb = pipeline.training_noise(device, dataclasses.replace(config, noise=kind))
    direction = jax.random.normal(jax.random.key(1), SHAPE)
    noisy, back = jax.vjp(lambda p: perturb(jax.random.key(2), p), prompt)
    np.testing.assert_array_equal(back(direction)[0], direction)
    assert jnp.array_equal(noisy, prompt) == (kind == "none")
    assert jnp.array_equal(noisy, perturb(jax.random.key(2), prompt))
    assert jnp.array_equal(noisy, perturb(jax.random.key(3), prompt)) == (kind == "none")


def test_without_a_device_there_is_no_noise(prompt, config):
    perturb = pipeline.training_noise(None, dataclasses.replace(config, noise="cell"))
    np.testing.assert_array_equal(perturb(jax.random.key(2), prompt), prompt)


@pytest.mark.parametrize("mapping", ["differential", "offset"])
def test_cell_level_noise_has_the_moments_of_the_crossbar(prompt, device, config, mapping):
    arrays = dataclasses.replace(config.arrays, mapping=mapping)
    target = crossbar.encode(prompt.reshape(-1, 1), device, config=arrays)
    mean, variance = crossbar.product_moments(jnp.eye(64), target)
    keys = jax.random.split(jax.random.key(3), NUM)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda k: pipeline.through_cells(k, prompt, device, config=arrays)))(keys), np.float64
    ).reshape(NUM, -1)
    mean, variance = np.asarray(mean, np.float64)[:, 0], np.asarray(variance, np.float64)[:, 0]
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variance / NUM) + 1e-6).all()
    spread = np.square(np.square(draws - mean) - variance).mean(axis=0)
    assert (np.abs(draws.var(axis=0) - variance) < 5 * np.sqrt(spread / NUM)).all()
    assert variance.max() > 1.5 * variance.min()  # every cell has the noise of its own level


def test_cell_level_noise_is_what_a_programmed_chip_gives_back(prompt, device, config):
    found = pipeline.through_cells(jax.random.key(4), prompt, device, config=config.arrays)
    write_key, read_key = jax.random.split(jax.random.key(4))
    chip = crossbar.program(write_key, prompt.reshape(-1, 1), device, config=config.arrays)
    read = crossbar.read_back(read_key, chip)
    np.testing.assert_allclose(found, read.reshape(SHAPE), rtol=1e-5, atol=1e-6)


def test_another_sigma_compiles_no_tuning(lm, config):
    from nvcim_jax.tuning.soft_prompt import _tune_all

    batch = tuning.examples([[1, 5]], [[8, 2]])
    config = dataclasses.replace(config, noise="cell")

    def run(sigma: float) -> jax.Array:
        perturb = pipeline.training_noise(devices.get("FeFET3", sigma=sigma), config)
        return tuning.tune(
            jax.random.key(0), jnp.ones((1, *SHAPE)), lm, batch, jnp.ones((1, 1)),
            options=tuning.Options(num_steps=2), perturb=perturb,
        )[0]  # fmt: skip

    first = run(0.1)
    before = _tune_all._cache_size()
    assert not jnp.array_equal(first, run(0.2))
    assert _tune_all._cache_size() == before
