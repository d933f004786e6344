"""Mitigation of a stored prompt's noise: what is worth verifying, and what a calibration takes back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices, pipeline, selection, study, tuning
from nvcim_jax.pipeline.memory import value_matrix

PROBES = 200


def filled_store(lm, config, codec=None) -> pipeline.Store:
    store = pipeline.empty_store(lm.config, config)
    prompts = jax.random.normal(jax.random.key(0), (4, 2, 32))
    features = jax.random.normal(jax.random.key(1), (4, 1, 32))
    store, _ = pipeline.insert(store, prompts, features, config=config)
    return store if codec is None else store._replace(codec=codec)


def test_curvature_is_the_diagonal_of_the_hessian(lm):
    batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
    weights = jnp.array([[1.0, 0.5]])
    prompt = 0.3 * jax.random.normal(jax.random.key(2), (2, 32))

    def loss(flat):
        return tuning.prompt_loss(flat.reshape(2, 32), lm, batch, weights[0])

    hessian = np.asarray(jax.jit(jax.hessian(loss))(prompt.ravel()), np.float64)
    found = study.curvature(jax.random.key(3), prompt[None], lm, batch, weights, num_probes=PROBES)
    truth = np.diag(hessian)
    # z_i (H z)_i = H_ii + sum_{j != i} H_ij z_i z_j: its variance is the sum of the squares off the diagonal
    error = np.sqrt((np.square(hessian).sum(axis=1) - truth**2) / PROBES)
    assert found.shape == (1, 2, 32)
    assert (np.abs(np.asarray(found[0]).ravel() - truth) < 5 * error + 1e-5).all()
    assert np.abs(truth).max() > 5 * error.min()


def test_importance_of_codes_is_that_of_prompts_where_the_codec_is_the_identity(lm, config):
    store = filled_store(lm, config)
    diagonal = jax.random.normal(jax.random.key(4), store.prompts.shape)
    found = study.code_importance(store, diagonal)
    np.testing.assert_array_equal(found, jnp.abs(value_matrix(store._replace(prompts=diagonal))))


def test_importance_goes_through_a_linear_decoder_as_its_squared_weights(lm, config):
    codec = selection.codec_init(jax.random.key(5), 32, code=8)
    store = filled_store(lm, config, codec)
    diagonal = jax.random.normal(jax.random.key(4), store.prompts.shape)
    found = study.code_importance(store, diagonal)
    assert found.shape == value_matrix(store).shape
    weight = np.asarray(codec.decoder[0][0], np.float64)
    truth = np.einsum("svw,cw->svc", np.abs(np.asarray(diagonal)), weight**2).reshape(4, -1).T
    np.testing.assert_allclose(found, truth, rtol=1e-4)


def test_selective_write_verify_spans_no_mitigation_to_exact_writing(lm, config, device):
    store = filled_store(lm, config)
    importance = jnp.abs(value_matrix(store))

    def write(share, residual):
        return study.program_selected(
            jax.random.key(6), store, importance, device, config=config, share=share, residual=residual
        )

    plain = pipeline.program_store(jax.random.key(6), store, device, config=config)
    exact = pipeline.program_store(jax.random.key(6), store, device.replace(sigma=jnp.zeros(())), config=config)
    for name in ("values", "keys"):
        g = {what: getattr(a, name).cells.g for what, a in (("plain", plain), ("exact", exact))}
        np.testing.assert_array_equal(getattr(write(0.0, 0.3), name).cells.g, g["plain"])
        np.testing.assert_array_equal(getattr(write(1.0, 0.0), name).cells.g, g["exact"])
        some = getattr(write(0.25, 0.0), name).cells.g
        assert bool(((some == g["plain"]) | (some == g["exact"])).all())
    read = pipeline.read_prompts(jax.random.key(7), store, write(0.25, 0.0), device, config=config)
    aim = pipeline.read_prompts(jax.random.key(7), store, exact, device, config=config)
    right = jnp.abs(read - aim).reshape(4, -1).T < 1e-5
    mask = crossbar.selected(importance, 0.25)
    assert bool(right[mask].all())
    assert float(right[~mask].mean()) < 0.1


@pytest.mark.parametrize("kind", ["cxdnn", "correctnet"])
def test_calibration_takes_back_a_gain_that_differs_by_column(lm, config, kind):
    # a day of drift takes .4 of every conductance; 8 bits, so that rounding does not set the floor
    config = dataclasses.replace(config, arrays=dataclasses.replace(config.arrays, weight_bits=8))
    drift = devices.Drift(mean=0.06, std=0.01)
    device = devices.get("Gaussian", sigma=0.01, drift=drift)
    store = filled_store(lm, config)
    chip = pipeline.program_store(jax.random.key(8), store, device, config=config)
    state = pipeline.drift_state(pipeline.State(store, chip, device), 86_400.0)
    known, asked = jax.random.normal(jax.random.key(9), (2, 40, 1, 32))
    mended = study.calibrated(jax.random.key(10), known, store, state.arrays, device, config=config, kind=kind)
    exact = pipeline.program_store(jax.random.key(11), store, None, config=config)

    def scores(arrays, cells):
        return pipeline.search(jax.random.key(12), asked, store, arrays, cells, config=config)

    truth = scores(exact, None)
    before, after = (float(jnp.square(scores(a, device) - truth).mean()) for a in (state.arrays, mended))
    assert after < 0.2 * before
    assert mended.correction is not None
    assert bool((mended.correction.score_gain > 1.3).all())
    assert bool((mended.correction.score_offset == 0).all()) == (kind == "cxdnn")
    read = [pipeline.read_prompts(jax.random.key(13), store, a, device, config=config) for a in (state.arrays, mended)]
    errors = [float(jnp.square(r - store.prompts).mean()) for r in read]
    assert errors[1] < 0.2 * errors[0]


def test_calibration_leaves_exact_memory_as_it_is(lm, config):
    ideal = devices.get("ideal")
    fine = dataclasses.replace(config, arrays=dataclasses.replace(config.arrays, weight_bits=16))
    store = filled_store(lm, fine)
    arrays = pipeline.program_store(jax.random.key(8), store, ideal, config=fine)
    known = jax.random.normal(jax.random.key(9), (40, 1, 32))
    for kind in ("cxdnn", "correctnet"):
        found = study.calibrated(jax.random.key(10), known, store, arrays, ideal, config=fine, kind=kind)
        assert found.correction is not None
        np.testing.assert_allclose(found.correction.score_gain, 1.0, atol=1e-3)
        np.testing.assert_allclose(found.correction.value_gain, 1.0, atol=1e-3)
        np.testing.assert_allclose(found.correction.score_offset, 0.0, atol=1e-3)
