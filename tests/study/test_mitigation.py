"""Mitigation of a stored prompt's noise: what is worth verifying, and what a calibration takes back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small import filled_store

from nvcim_jax import crossbar, devices, pipeline, selection, study, tuning

PROBES = 200


@pytest.mark.slow
def test_curvature_is_the_diagonal_of_the_hessian(lm):
    batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
    weights = jnp.array([[1.0, 0.5]])
    prompt = 0.3 * jax.random.normal(jax.random.key(2), (2, 32))

    def loss(flat):
        return tuning.answer_loss(flat.reshape(2, 32), lm, batch, weights[0], adapter=tuning.prompt(2))

    hessian = np.asarray(jax.jit(jax.hessian(loss))(prompt.ravel()), np.float64)
    found = study.curvature(jax.random.key(3), prompt[None], lm, batch, weights, num_probes=PROBES)
    truth = np.diag(hessian)
    # z_i (H z)_i = H_ii + sum_{j != i} H_ij z_i z_j: its variance is the sum of the squares off the diagonal
    error = np.sqrt((np.square(hessian).sum(axis=1) - truth**2) / PROBES)
    assert found.shape == (1, 2, 32)
    assert (np.abs(np.asarray(found[0]).ravel() - truth) < 5 * error + 1e-5).all()
    assert np.abs(truth).max() > 5 * error.min()


def test_importance_of_codes_is_that_of_prompts_where_the_codec_is_the_identity(lm, config):
    store = filled_store(lm, config, num=4)
    diagonal = jax.random.normal(jax.random.key(4), store.prompts.shape)
    found = study.code_importance(store, diagonal)
    np.testing.assert_array_equal(
        found, jnp.abs(pipeline.matrices(store._replace(prompts=diagonal), config=config).values)
    )


def test_importance_goes_through_a_linear_decoder_as_its_squared_weights(lm, config):
    codec = selection.codec_init(jax.random.key(5), 32, code=8)
    store = filled_store(lm, config, num=4, codec=codec)
    diagonal = jax.random.normal(jax.random.key(4), store.prompts.shape)
    found = study.code_importance(store, diagonal)
    assert found.shape == pipeline.matrices(store, config=config).values.shape
    weight = np.asarray(codec.decoder[0][0], np.float64)
    truth = np.einsum("svw,cw->svc", np.abs(np.asarray(diagonal)), weight**2).reshape(4, -1).T
    np.testing.assert_allclose(found, truth, rtol=1e-4)


@pytest.mark.slow
def test_selective_write_verify_spans_no_mitigation_to_exact_writing(lm, config, device, arrays, memory):
    store = filled_store(lm, config, num=4)
    importance = jnp.abs(pipeline.matrices(store, config=config).values)

    def write(share, residual):
        return study.program_selected(
            jax.random.key(6), store, importance, device, config=config, arrays=arrays, share=share, residual=residual
        )

    plain = pipeline.program_store(jax.random.key(6), store, memory, config=config)
    without = pipeline.crossbar_memory(device.replace(sigma=jnp.zeros(())), arrays)
    exact = pipeline.program_store(jax.random.key(6), store, without, config=config)
    for name in ("values", "keys"):
        g = {what: getattr(a, name).cells.g for what, a in (("plain", plain), ("exact", exact))}
        np.testing.assert_array_equal(getattr(write(0.0, 0.3), name).cells.g, g["plain"])
        np.testing.assert_array_equal(getattr(write(1.0, 0.0), name).cells.g, g["exact"])
        some = getattr(write(0.25, 0.0), name).cells.g
        assert bool(((some == g["plain"]) | (some == g["exact"])).all())
    read = pipeline.read_prompts(jax.random.key(7), store, write(0.25, 0.0), memory)
    aim = pipeline.read_prompts(jax.random.key(7), store, exact, memory)
    right = jnp.abs(read - aim).reshape(4, -1).T < 1e-5
    mask = crossbar.selected(importance, 0.25)
    assert bool(right[mask].all())
    assert float(right[~mask].mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("affine", [False, True])
def test_calibration_takes_back_a_gain_that_differs_by_column(lm, config, arrays, affine):
    # a day of drift takes .4 of every conductance; 8 bits, so that rounding does not set the floor
    drift = devices.Drift(mean=0.06, std=0.01)
    device = devices.get("Gaussian", sigma=0.01, drift=drift)
    memory = pipeline.crossbar_memory(device, dataclasses.replace(arrays, weight_bits=8))
    store = filled_store(lm, config, num=4)
    chips = pipeline.program_store(jax.random.key(8), store, memory, config=config)
    state = pipeline.drift_state(pipeline.State(store, chips), 86_400.0)
    known, asked = jax.random.normal(jax.random.key(9), (2, 40, 1, 32))
    mended = study.calibrated(jax.random.key(10), known, store, state.arrays, memory, config=config, affine=affine)
    corrected = study.corrected_memory(memory)
    exact = pipeline.program_store(jax.random.key(11), store, pipeline.exact_memory(), config=config)

    def scores(held, memory):
        return pipeline.search(jax.random.key(12), asked, store, held, memory, config=config)

    truth = scores(exact, pipeline.exact_memory())
    found = ((state.arrays, memory), (mended, corrected))
    before, after = (float(jnp.square(scores(*each) - truth).mean()) for each in found)
    assert after < 0.2 * before
    assert bool((mended.keys.gain > 1.3).all())
    assert bool((mended.keys.offset == 0).all()) != affine
    read = [pipeline.read_prompts(jax.random.key(13), store, *each) for each in found]
    errors = [float(jnp.square(r - store.prompts).mean()) for r in read]
    assert errors[1] < 0.2 * errors[0]


def test_calibration_leaves_exact_memory_as_it_is(lm, config, arrays):
    memory = pipeline.crossbar_memory(devices.get("ideal"), dataclasses.replace(arrays, weight_bits=16))
    store = filled_store(lm, config, num=4)
    held = pipeline.program_store(jax.random.key(8), store, memory, config=config)
    known = jax.random.normal(jax.random.key(9), (40, 1, 32))
    for affine in (False, True):
        found = study.calibrated(jax.random.key(10), known, store, held, memory, config=config, affine=affine)
        np.testing.assert_allclose(found.keys.gain, 1.0, atol=1e-3)
        np.testing.assert_allclose(found.values.value_gain, 1.0, atol=1e-3)
        np.testing.assert_allclose(found.keys.offset, 0.0, atol=1e-3)


def test_a_memory_without_corrections_is_the_memory_itself(lm, config, memory):
    store = filled_store(lm, config, num=4)
    features = jax.random.normal(jax.random.key(9), (3, 1, 32))
    found = []
    for each in (memory, study.corrected_memory(memory)):
        held = pipeline.program_store(jax.random.key(8), store, each, config=config)
        found.append(pipeline.search(jax.random.key(9), features, store, held, each, config=config))
        found.append(pipeline.read_prompts(jax.random.key(10), store, held, each))
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
