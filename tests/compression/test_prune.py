"""Pruners and GPTQ against twins in float64, and which of them leaves the products closest."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import compression

BLOCK, DAMP = 128, 0.01


def _draw(inputs: int = 160, outputs: int = 24, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix and correlated inputs of very different sizes, one of them always 0."""
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((samples, 24)) @ rng.standard_normal((24, inputs)) + rng.standard_normal((samples, inputs))
    x *= np.exp(rng.standard_normal(inputs))
    x[:, 7] = 0.0
    return rng.standard_normal((inputs, outputs)).astype(np.float32), x.astype(np.float32)


W, X = _draw()
SECOND = X.T @ X


def twin(w: np.ndarray, second: np.ndarray, sparsity: float, gone: Any = None, bits: int = 0) -> tuple[Any, Any]:
    """Run algorithm 1 of SparseGPT and GPTQ, with the inverse itself, in float64; inputs that are all 0 go first."""
    w, second = w.astype(np.float64).copy(), second.astype(np.float64).copy()
    inputs = len(w)
    step = None if not bits else np.abs(w).max(0) / (2 ** (bits - 1) - 1)
    dead = np.diag(second) == 0
    second[dead, dead] = 1.0
    second += DAMP * np.diag(second).mean() * np.eye(inputs)
    upper = np.linalg.cholesky(np.linalg.inv(second)).T
    mask = np.zeros(w.shape, bool)
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        if gone is None:
            scores = w[start:stop] ** 2 / np.diag(upper)[start:stop, None] ** 2
            scores[dead[start:stop]] = 0.0
            count = int(sparsity * w[:stop].size + 1e-9) - int(sparsity * w[:start].size + 1e-9)
            mask[start:stop].flat[np.argsort(scores, axis=None, kind="stable")[:count]] = True
        else:
            mask[start:stop] = gone[start:stop]
        for i in range(start, stop):
            kept = np.where(mask[i], 0.0, w[i])
            if step is not None:
                kept = np.clip(np.round(kept / step), -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step
            error = (w[i] - kept) / upper[i, i]
            w[i + 1 :] -= upper[i, i + 1 :, None] * error
            w[i] = kept
    return w, mask


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_sparsegpt_is_its_twin(sparsity) -> None:
    made, gone = compression.sparsegpt(jnp.asarray(W), jnp.asarray(SECOND), sparsity)
    wanted, mask = twin(W, SECOND, sparsity)
    np.testing.assert_array_equal(gone, mask)
    np.testing.assert_allclose(made, wanted, atol=2e-4)
    assert int(gone.sum()) == int(sparsity * W.size + 1e-9)


@pytest.mark.parametrize("bits", [3, 8])
def test_gptq_is_its_twin(bits) -> None:
    made = np.asarray(compression.gptq(jnp.asarray(W), jnp.asarray(SECOND), bits))
    wanted, _ = twin(W, SECOND, 0.0, np.zeros(W.shape, bool), bits)
    # single precision may fall on the other side of a half now and then, and what follows makes up for it
    assert (np.abs(made - wanted) < 1e-4).mean() > 0.97


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_wanda_and_magnitude_are_their_twins(sparsity) -> None:
    made, gone = compression.wanda(jnp.asarray(W), jnp.asarray(SECOND), sparsity)
    scores = np.abs(W.astype(np.float64)) * np.linalg.norm(X.astype(np.float64), axis=0)[:, None]
    ends = np.floor(np.arange(W.shape[1] + 1) * len(W) * sparsity + 1e-9).astype(int)
    for o, count in enumerate(np.diff(ends)):
        assert set(np.argsort(scores[:, o], kind="stable")[:count]) == set(np.flatnonzero(gone[:, o]))
    np.testing.assert_array_equal(made, np.where(gone, 0.0, W))
    made, gone = compression.magnitude(jnp.asarray(W), sparsity)
    count = int(sparsity * W.size + 1e-9)
    assert set(np.argsort(np.abs(W), axis=None, kind="stable")[:count]) == set(np.flatnonzero(gone))
    np.testing.assert_array_equal(made, np.where(gone, 0.0, W))


def test_of_equal_weights_the_first_go() -> None:
    w = jnp.array([[1.0, -1.0, 1.0], [1.0, 2.0, -1.0]])
    np.testing.assert_array_equal(compression.magnitude(w, 0.5)[1], [[True, True, True], [False, False, False]])


def _error(made) -> float:
    return float(np.linalg.norm(X.astype(np.float64) @ (np.asarray(made, np.float64) - W)))


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_sparsegpt_beats_wanda_beats_magnitude_on_correlated_inputs(sparsity) -> None:
    w, second = jnp.asarray(W), jnp.asarray(SECOND)
    best, middle = (_error(fn(w, second, sparsity)[0]) for fn in (compression.sparsegpt, compression.wanda))
    worst = _error(compression.magnitude(w, sparsity)[0])
    assert best < 0.7 * middle
    assert middle < 0.7 * worst


def test_inputs_that_are_never_there_go_first_and_no_further() -> None:
    """ReLU networks have many: to set all of them to 0 would exceed the budget, and err on other text."""
    second = jnp.diag(jnp.array([1.0, 0.0, 1.0]))
    w = jnp.array([[3.0, 2.0], [9.0, 8.0], [1.0, 4.0]])
    for sparsity, wanted in ((0.0, w), (1 / 6, w.at[1, 0].set(0.0)), (0.5, w.at[1].set(0.0).at[2, 0].set(0.0))):
        made, gone = compression.sparsegpt(w, second, sparsity)
        np.testing.assert_allclose(made, wanted, rtol=1e-6)
        assert int(gone.sum()) == round(6 * sparsity)
    np.testing.assert_allclose(compression.gptq(w, second, 8), compression.quantise(w, 8, axis=0), rtol=1e-6)


def test_gptq_beats_the_nearest_value() -> None:
    codes, scales = compression.to_codes(jnp.asarray(W), 3)
    nearest = codes.astype(jnp.float32) * scales
    assert _error(compression.gptq(jnp.asarray(W), jnp.asarray(SECOND), 3)) < 0.7 * _error(nearest)


def test_a_second_moment_of_another_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`second` must have shape .* x.T @ x"):
        compression.wanda(jnp.ones((3, 2)), jnp.ones((2, 2)), 0.5)
    with pytest.raises(ValueError, match="`sparsity` must"):
        compression.magnitude(jnp.ones((3, 2)), 1.5)
    for second in (-jnp.eye(3), jnp.eye(3).at[0, 0].set(jnp.nan)):
        with pytest.raises(ValueError, match="`second` must be a second moment, positive semidefinite"):
            compression.sparsegpt(jnp.ones((3, 2)), second, 0.5)
        with pytest.raises(ValueError, match="`second` must be a second moment, positive semidefinite"):
            compression.gptq(jnp.ones((3, 2)), second, 4)
