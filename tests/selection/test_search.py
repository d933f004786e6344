"""The search: pooling against NumPy and torch's rule, the score against its definition, G against its eigenvalues."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import selection
from nvcim_jax.selection.search import pool, scores

MEASURES = ("mips", "cosine", "ssa")
SSA = [
    selection.SearchConfig(axis=axis, storage=storage)
    for axis, storage in itertools.product(("tokens", "features"), ("shared", "apart"))
]
COSINE = selection.SearchConfig(measure="cosine")


def _pool_numpy(x: np.ndarray, window: int, axis: str) -> np.ndarray:
    number = 0 if axis == "tokens" else 1
    parts = np.split(x, range(window, x.shape[number], window), axis=number)
    return np.stack([part.mean(axis=number) for part in parts], axis=number)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tokens", "features"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 100])
def test_pool_averages_windows_and_what_remains(window: int, axis: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)
    np.testing.assert_allclose(pool(jnp.asarray(x), window, axis), _pool_numpy(x, window, axis), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("real", [1, 2, 5, 7])
def test_pool_tokens_averages_the_real_tokens_wherever_they_lie(real: int, num: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 4)).astype(np.float32)
    places = np.sort(rng.choice(9, size=real, replace=False))
    mask = np.zeros(9, np.int32)
    mask[places] = 1
    x[mask == 0] = np.nan
    kept = x[places]
    expected = []
    for i in range(num):
        start = i * real // num
        stop = start + 1 if real < num else -((-(i + 1) * real) // num)
        expected.append(kept[start:stop].mean(axis=0))
    found = selection.pool_tokens(jnp.asarray(x), jnp.asarray(mask), num)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_pool_tokens_takes_a_traced_mask() -> None:
    x = jnp.arange(12.0).reshape(6, 2)
    traces = []

    @jax.jit
    def jitted(x: jax.Array, mask: jax.Array) -> jax.Array:
        traces.append(1)
        return selection.pool_tokens(x, mask, 4)

    for real in (2, 6):
        mask = jnp.arange(6) < real
        np.testing.assert_allclose(jitted(x, mask), selection.pool_tokens(x, mask, 4), rtol=1e-6)
    assert len(traces) == 1


def test_pool_tokens_equals_torchs_adaptive_pooling() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(2).normal(size=(13, 3)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.tensor(x.T), 5).numpy().T
    np.testing.assert_allclose(
        selection.pool_tokens(jnp.asarray(x), jnp.ones(13, bool), 5), expected, rtol=1e-5, atol=1e-7
    )


def test_pool_tokens_of_nothing_is_zero_with_a_finite_gradient() -> None:
    x = jnp.full((3, 2), jnp.nan)
    value, slope = jax.value_and_grad(lambda x: selection.pool_tokens(x, jnp.zeros(3, bool), 2).sum())(x)
    assert float(value) == 0.0
    np.testing.assert_array_equal(slope, jnp.zeros((3, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("config", SSA, ids=str)
@pytest.mark.parametrize("shape", mostly_slow([(8, 48), (5, 7), (1, 3)], (5, 7)))
def test_score_is_the_weighted_sum_of_pooled_products(config: selection.SearchConfig, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    query = rng.normal(size=shape).astype(np.float32)
    stored = rng.normal(size=(4, *shape)).astype(np.float32)
    weights = (0.7, -0.2, 1.3)
    expected = [
        sum(
            weight * np.sum(_pool_numpy(query, scale, config.axis) * _pool_numpy(other, scale, config.axis))
            for weight, scale in zip(weights, (1, 2, 4), strict=True)
        )
        for other in stored
    ]
    keys = jax.vmap(lambda code: selection.key_vector(code, config=config), out_axes=1)(jnp.asarray(stored))
    assert keys.shape == (selection.num_key_rows(*shape, config=config), 4)
    vector = selection.query_vector(jnp.asarray(query), weights, config=config)
    np.testing.assert_allclose(scores(vector, keys), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tokens", "features"])
def test_eigenvalues_of_the_bilinear_form(axis: str) -> None:
    # P_L^T P_L has the eigenvalue 1/L on what is constant over a window, else 0: 1, 1 + .8/2, 1 + .8/2 + .6/4
    config = selection.SearchConfig(axis=axis)
    shape = (16, 1) if axis == "tokens" else (1, 16)
    g = jax.jacobian(lambda x: selection.query_vector(x.reshape(shape), selection.SSA_WEIGHTS, config=config))(
        jnp.ones(16)
    )
    np.testing.assert_allclose(g, g.T, atol=1e-7)
    expected = [1.0] * 8 + [1.4] * 4 + [1.55] * 4
    np.testing.assert_allclose(np.linalg.eigvalsh(np.asarray(g)), expected, atol=1e-5)


def test_cosine_is_the_cosine_and_zero_for_zeros() -> None:
    config = selection.SearchConfig(measure="cosine")
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 3, 5)).astype(np.float32)
    query = selection.query_vector(jnp.asarray(a), (), config=config)
    found = query @ selection.key_vector(jnp.asarray(b), config=config)
    assert float(found) == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)
    zero, slope = jax.value_and_grad(lambda x: selection.key_vector(x, config=config).sum())(jnp.zeros((3, 5)))
    assert float(zero) == 0.0
    assert bool(jnp.isfinite(slope).all())


def test_mips_is_the_inner_product_whatever_the_storage() -> None:
    config = selection.SearchConfig(measure="mips", storage="apart")
    code = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(selection.key_vector(code, config=config), np.arange(6.0))
    np.testing.assert_array_equal(selection.query_vector(code, (), config=config), np.arange(6.0))
    assert selection.num_key_rows(2, 3, config=config) == 6


def test_scores_go_through_the_injected_product_and_mark_empty_slots() -> None:
    queries = jnp.arange(6.0).reshape(2, 3)
    chip = {"stored": jnp.ones((3, 4)), "gain": jnp.array(2.0)}
    found = scores(
        queries,
        chip,
        similarity=lambda x, chip: chip["gain"] * (x @ chip["stored"]),
        filled=jnp.array([True, False, True, True]),
    )
    expected = np.array([[6.0, -np.inf, 6.0, 6.0], [24.0, -np.inf, 24.0, 24.0]])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("config", mostly_slow([*SSA, COSINE], SSA[3], COSINE), ids=str)
def test_contracts_of_the_search(config: selection.SearchConfig, key: jax.Array) -> None:
    query_key, stored_key = jax.random.split(key)
    queries = jax.random.normal(query_key, (3, 5, 7))
    stored = jax.random.normal(stored_key, (4, 5, 7))
    traces = []

    def one(code: jax.Array, weights: jax.Array) -> jax.Array:
        traces.append(1)
        keys = jax.vmap(lambda code: selection.key_vector(code, config=config), out_axes=1)(stored)
        return scores(selection.query_vector(code, weights, config=config), keys)

    weights = jnp.asarray(selection.SSA_WEIGHTS)
    eager = jnp.stack([one(query, weights) for query in queries])
    jitted = jax.jit(one)
    traces.clear()
    for factor in (1.0, 0.5, 2.0):
        jitted(queries[0], factor * weights)
    assert len(traces) == 1
    np.testing.assert_allclose(jitted(queries[0], weights), eager[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(one, in_axes=(0, None))(queries, weights), eager, rtol=1e-5, atol=1e-5)
    slopes = jax.grad(lambda code, weights: jnp.square(one(code, weights)).sum(), argnums=(0, 1))(queries[0], weights)
    assert all(bool(jnp.isfinite(slope).all()) for slope in slopes)
    assert float(jnp.abs(slopes[0]).max()) > 0
    if config.measure == "ssa":
        # the score is linear in the weights: their gradient is the score of each scale alone
        rows = [one(queries[0], jnp.eye(3)[i]) for i in range(3)]
        jacobian = jax.jacobian(one, argnums=1)(queries[0], weights)
        np.testing.assert_allclose(jacobian.T, jnp.stack(rows), rtol=1e-4, atol=1e-5)


def test_bad_input_is_named() -> None:
    config = selection.SearchConfig()
    with pytest.raises(
        ValueError, match=r"`measure` must be one of cosine, mips, ssa, but is 'SSA'. Did you mean 'ssa'"
    ):
        selection.SearchConfig(measure="SSA")
    with pytest.raises(TypeError, match=r"no option `scale`. Did you mean 'scales'"):
        selection.SearchConfig(scale=(1, 2))  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="`scales` must be a tuple"):
        selection.SearchConfig(scales=())
    with pytest.raises(ValueError, match=r"`weights` must have shape \(scales,\) = \(3,\)"):
        selection.query_vector(jnp.ones((2, 2)), (1.0, 0.8), config=config)
    with pytest.raises(ValueError, match=r"`keys` must have shape"):
        scores(jnp.ones(3), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"`similarity` must return an array"):
        scores(jnp.ones(3), jnp.ones((3, 2)), similarity=lambda x, w: (x @ w, None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`filled` must have shape \(slots,\) = \(2,\)"):
        scores(jnp.ones(3), jnp.ones((3, 2)), filled=jnp.ones(3, bool))
