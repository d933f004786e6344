"""Several keys a prompt, and keys in the unit of their spread, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices, io, pipeline

EXACT = pipeline.exact_memory()


@pytest.fixture
def several(config):
    return config.changed(
        num_prompts=1,
        num_keys=3,
        keys="centroid",
        key_centre=True,
        key_spread=True,
        capacity=3,
        search={"measure": "mips"},
    )


def observed(lm, text, buffers, config):
    state, infos = pipeline.init(jax.random.key(0), lm, config=config), []
    for t, rows in enumerate(buffers[:2]):
        buffer = pipeline.make_buffer(rows, lm, text, config=config)
        state, info = pipeline.observe(jax.random.fold_in(jax.random.key(1), t), state, buffer, lm, config=config)
        infos.append((buffer, info))
    return state, infos


@pytest.mark.slow
def test_a_prompt_is_found_by_the_best_of_its_keys(lm, text, buffers, several):
    state, infos = observed(lm, text, buffers, several)
    assert state.store.features.shape == (3, 3, 32)
    assert state.arrays.keys.shape == (32, 9)
    every = np.concatenate([np.asarray(buffer.features, np.float64) for buffer, _ in infos])[:, 0]
    spread = every.std(axis=0)
    stored = np.asarray(state.store.features, np.float64)[:2].reshape(6, 32) / spread
    centre = stored.mean(axis=0)
    keys = stored - centre
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    asked = every[:4] / spread - centre
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    truth = (asked @ keys.T).reshape(4, 2, 3).max(axis=2)
    found = pipeline.search(
        jax.random.key(2), infos[0][0].features[:4], state.store, state.arrays, EXACT, config=several
    )
    np.testing.assert_allclose(found[:, :2], truth, rtol=1e-4, atol=1e-4)
    assert bool((found[:, 2] == -jnp.inf).all())
    columns = pipeline.search(
        jax.random.key(2), infos[0][0].features[:4], state.store, state.arrays, EXACT, config=several, every=True
    )
    assert columns.shape == (4, 9)


def test_keys_of_a_prompt_are_the_centroids_of_its_records(lm, text, buffers, several):
    state, infos = observed(lm, text, buffers, several)
    buffer, _ = infos[1]
    means = np.asarray(state.store.features[1])
    # Every key is the mean of some records, and together they are all records: means weighted by counts give the mean.
    features = np.asarray(buffer.features)[:, 0]
    nearest = np.argmin(np.linalg.norm(features[:, None] - means[None], axis=2), axis=1)
    assert set(nearest) == {0, 1, 2}
    representatives = several.changed(keys="representative")
    kept = observed(lm, text, buffers, representatives)[0].store.features[1]
    for row in np.asarray(kept):
        assert np.abs(features - row).max(axis=1).min() < 1e-6


@pytest.mark.slow
def test_fewer_records_than_keys_repeat_some(lm, text, buffers, several):
    config = several.changed(num_keys=5)
    state, _ = observed(lm, text, [buffers[0][:3]], config)
    kept = np.asarray(state.store.features[0])
    np.testing.assert_array_equal(kept[3:], kept[:2])
    assert len(np.unique(kept, axis=0)) == 3


@pytest.mark.slow
def test_the_spread_that_a_refused_buffer_would_change_stays(lm, text, buffers, several):
    config = several.changed(capacity=1)
    state, infos = observed(lm, text, buffers[:1], config)
    observe = jax.jit(lambda state, buffer: pipeline.observe(jax.random.key(3), state, buffer, lm, config=config))
    again, info = observe(state, infos[0][0])
    assert bool(info.inserted.refused)
    np.testing.assert_array_equal(again.store.seen.number, state.store.seen.number)


def test_several_keys_on_chips_are_saved_and_found_again(lm, text, buffers, several, arrays, tmp_path):
    memory = pipeline.crossbar_memory(devices.get("FeFET3", sigma=0.0), arrays)
    state, _ = observed(lm, text, buffers, several)
    state = state._replace(arrays=pipeline.program_store(jax.random.key(4), state.store, memory, config=several))
    path = io.save_state(tmp_path / "one.safetensors", state, config=several)
    again, config = io.load_state(path, memory)
    assert config == several
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_keys": 2}, "num_keys"),
        ({"num_keys": 2, "num_prompts": 1, "keys": "prompt"}, "num_keys"),
        ({"key_spread": True, "keys": "prompt"}, "key_spread"),
        ({"num_keys": 0}, "num_keys"),
    ],
)
def test_what_has_no_keys_of_its_own_is_refused(config, change, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        config.changed(**change)
