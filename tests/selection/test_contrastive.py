"""Contrastive training: the loss against NumPy, hits against chance, and what noise in training is good for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import selection
from nvcim_jax.selection.search import scores

NUM, TOKENS, WIDTH, CODE = 4, 2, 16, 8


def _data(spread: float = 0.3) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries around one centre for each prompt, prompts unrelated to the centres, and the owners."""
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(NUM, TOKENS, WIDTH)).astype(np.float32)
    owner = np.arange(10 * NUM) % NUM
    queries = rng.normal(size=(NUM, TOKENS, WIDTH))[owner] + spread * rng.normal(size=(10 * NUM, TOKENS, WIDTH))
    return jnp.asarray(queries.astype(np.float32)), jnp.asarray(prompts), jnp.asarray(owner)


def _additive(sigma: jax.Array, key: jax.Array, x: jax.Array) -> jax.Array:
    """Return value-level noise relative to the largest value."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max())
    return x + sigma * largest * jax.random.normal(key, x.shape)


def _hits(
    key: jax.Array, codec: selection.Codec, search: selection.SearchConfig, sigma: float, num: int = 50
) -> np.ndarray:
    queries, prompts, owner = _data()
    keys = jax.vmap(lambda x: selection.key_vector(selection.encode(codec, x), config=search), out_axes=1)(prompts)
    vectors = jax.vmap(
        lambda x: selection.query_vector(selection.encode(codec, x), selection.SSA_WEIGHTS, config=search)
    )(queries)

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> jax.Array:
        found = scores(vectors, _additive(jnp.array(sigma), key, keys))
        return (jnp.argmax(found, axis=1) == owner).mean(dtype=jnp.float32)

    return np.asarray(one(jax.random.split(key, num)))


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["cosine", "ssa"])
def test_queries_learn_to_find_prompts_they_have_nothing_in_common_with(measure: str, key: jax.Array) -> None:
    queries, prompts, owner = _data()
    search = selection.SearchConfig(measure=measure, storage="apart")
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    fitted = []
    for i, steps in enumerate((0, 200)):
        config = selection.FitConfig(num_steps=steps, learning_rate=1e-2)
        fit_key = jax.random.fold_in(key, 1 + i)
        fitted.append(
            selection.fit_contrastive(
                fit_key, codec, selection.Pairs(queries, prompts, owner), config=config, search=search
            )
        )
    (_, before), (trained, after) = fitted
    assert float(before.hit_rate) < 0.7
    assert float(after.hit_rate) == 1.0
    assert float(after.losses[-1]) < 0.7 * float(after.losses[0])
    assert _hits(jax.random.fold_in(key, 3), trained, search, 0.0, num=1)[0] == 1.0


@pytest.mark.parametrize("storage", ["shared", "apart"])
def test_first_loss_is_cross_entropy_plus_relative_errors(storage: str, key: jax.Array) -> None:
    queries, prompts, owner = _data()
    search = selection.SearchConfig(storage=storage)
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    config = selection.FitConfig(num_steps=1, start="codec", temperature=0.5, reconstruction_weight=0.3)
    _, info = selection.fit_contrastive(
        jax.random.fold_in(key, 1), codec, selection.Pairs(queries, prompts, owner), config=config, search=search
    )

    def codes(x: jax.Array) -> np.ndarray:
        return np.asarray(x) @ np.asarray(codec.encoder[0][0])

    scores = sum(
        weight
        * np.einsum(
            "qnc,pnc->qp",
            codes(queries).reshape(-1, TOKENS, CODE // scale, scale).mean(axis=3),
            codes(prompts).reshape(-1, TOKENS, CODE // scale, scale).mean(axis=3),
        )
        for scale, weight in zip((1, 2, 4), selection.SSA_WEIGHTS, strict=True)
    )
    logits = scores / scores.std() / 0.5
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(owner)), np.asarray(owner)]
    errors = [
        ((x - codes(x) @ np.asarray(codec.decoder[0][0])) ** 2).sum() / ((x - x.mean(axis=(0, 1))) ** 2).sum()
        for x in (np.asarray(queries), np.asarray(prompts))
    ]
    assert float(info.losses[0]) == pytest.approx(entropy.mean() + 0.3 * sum(errors), rel=1e-3)


def test_training_through_the_noise_finds_more_prompts_through_it(key: jax.Array) -> None:
    queries, prompts, owner = _data()
    sigma, search = 0.4, selection.SearchConfig()
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    config = selection.FitConfig(num_steps=300, learning_rate=1e-2)
    rates = []
    for i, trained_at in enumerate((0.0, sigma)):
        perturb = jax.tree_util.Partial(_additive, jnp.array(trained_at))
        fitted, _ = selection.fit_contrastive(
            jax.random.fold_in(key, 1 + i),
            codec,
            selection.Pairs(queries, prompts, owner),
            config=config,
            search=search,
            perturb=perturb,
        )
        rates.append(_hits(jax.random.fold_in(key, 10), fitted, search, sigma, num=100))
    error = np.sqrt(sum(rate.var() / len(rate) for rate in rates))
    assert rates[1].mean() - rates[0].mean() > 3 * error


def test_one_trace_over_weights_and_the_same_seed_gives_the_same_codec(key: jax.Array) -> None:
    queries, prompts, owner = _data()
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    config = selection.FitConfig(num_steps=3, batch=5)
    traces = []

    def counted(key: jax.Array, x: jax.Array) -> jax.Array:
        traces.append(1)
        return x

    made = []
    count = []
    for weights in (selection.SSA_WEIGHTS, (1.0, 0.0, 0.0), selection.SSA_WEIGHTS):
        made.append(
            selection.fit_contrastive(
                jax.random.fold_in(key, 1),
                codec,
                selection.Pairs(queries, prompts, owner),
                config=config,
                weights=weights,
                perturb=counted,
            )[0]
        )
        count.append(len(traces))
    assert count[0] == count[2] > 0
    first, other, again = (jax.tree.leaves(codec) for codec in made)
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(bool((left != right).any()) for left, right in zip(first, other, strict=True))


def test_bad_input_is_named(key: jax.Array) -> None:
    queries, prompts, owner = _data()
    codec = selection.codec_init(jax.random.fold_in(key, 0), WIDTH, code=CODE)
    config = selection.FitConfig()
    with pytest.raises(ValueError, match=r"`owner` must lie in \[0, 3\], but is 4"):
        selection.fit_contrastive(
            jax.random.fold_in(key, 1), codec, selection.Pairs(queries, prompts, owner + 1), config=config
        )
    with pytest.raises(ValueError, match=r"`the number of prompts` must be an integer of at least 2"):
        selection.fit_contrastive(
            jax.random.fold_in(key, 1), codec, selection.Pairs(queries, prompts[:1], owner), config=config
        )
