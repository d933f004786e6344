"""Functions of the user's own in `observe`, ten lines each, without a change to the library."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from nvcim_jax import pipeline, selection, tuning


@pytest.fixture(scope="module")
def observed(lm, text, buffers, config):
    """Return a function that shows the first buffer to an empty memory, with some parts of one's own."""
    buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)

    def run(**parts):
        state = pipeline.init(jax.random.key(0), lm, config=config, **parts)
        return pipeline.observe(jax.random.key(1), state, buffer, lm, config=config, **parts)

    return run


def noisy_write(sigma, key, matrix):
    return matrix + sigma * jnp.abs(matrix).max() * jax.random.normal(key, matrix.shape)


@pytest.mark.slow
def test_a_memory(observed):
    memory = pipeline.Memory(
        program=Partial(noisy_write, 0.1), multiply=lambda key, x, held: x @ held, read=lambda key, held: held
    )
    state, _ = observed(memory=memory)
    exact, _ = observed()
    error = (state.arrays.values - exact.arrays.values) / jnp.abs(exact.arrays.values).max()
    assert 0.07 < float(error.std()) < 0.13


def test_a_similarity(observed):
    # signs alone: one bit a value
    similarity = selection.Similarity(key=lambda code: jnp.sign(code).ravel(), query=lambda code, w: code.ravel())
    state, info = observed(similarity=similarity)
    keys = state.arrays.keys[:, info.inserted.slots]
    assert set(np.unique(keys)) <= {-1.0, 1.0}


def test_a_clustering(observed):
    def in_order(key, centres, num):
        return jnp.arange(len(centres)) * num // len(centres)

    _, info = observed(cluster=in_order)
    np.testing.assert_array_equal(info.clusters.assignment, [0, 0, 0, 1, 1, 1])


def heavy_tails(scale, key, rows):
    return rows + scale * jax.random.t(key, 3.0, rows.shape)


@pytest.mark.slow
def test_noise_in_training(observed):
    _, quiet = observed()
    _, info = observed(perturb=Partial(heavy_tails, 0.5))
    assert float(info.tuned.losses[0, 0]) != float(quiet.tuned.losses[0, 0])


def momentum(rate, num_steps):
    return optax.sgd(optax.linear_schedule(rate, 0.0, num_steps), momentum=0.9)


def test_an_optimiser(observed):
    state, info = observed(optimiser=Partial(momentum, jnp.float32(0.5)))
    assert bool((info.tuned.losses[:, -1] < info.tuned.losses[:, 0]).all())
    assert not jnp.allclose(state.store.prompts, observed()[0].store.prompts)


def test_an_adapter(observed):
    adapter = tuning.Adapter(
        init=lambda key, lm, examples, weights=None: jnp.zeros((1, lm.config.width)),
        apply=lambda state, lm, inputs: (lm, inputs._replace(x=inputs.x + state[None])),  # added to every token
        rows=lambda state: state,
        from_rows=lambda rows: rows,
    )
    state, info = observed(adapter=adapter)
    assert state.store.prompts.shape == (4, 1, 32)
    assert bool((info.tuned.losses[:, -1] < info.tuned.losses[:, 0]).all())


def test_a_codec(observed):
    def components(key, store, features, owner):
        tokens = jnp.concatenate([features.reshape(-1, 32), store.features.reshape(-1, 32)])
        fresh = selection.codec_init(key, 32, code=4)
        return selection.codec_pca(jax.random.fold_in(key, 1), fresh, tokens), None

    state, _ = observed(codec=components)
    assert state.arrays.values.shape == (2 * 4, 4)
