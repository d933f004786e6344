"""Training a codec so that a query meets its own prompt, through the noise of the memory that holds the keys."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.selection.codec import Codec, check_tokens, decode, encode
from nvcim_jax.selection.fit import (
    FitConfig,
    FitInfo,
    as_partial,
    draw,
    mean_square_spread,
    relative_errors,
    start,
    train,
    undisturbed,
)
from nvcim_jax.selection.search import SSA_WEIGHTS, SearchConfig, key_vector, query_vector, scores
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["fit_contrastive"]


@checked
def fit_contrastive(
    key: Key,
    codec: Codec,
    queries: Float[Array, "queries num_tokens width"],
    prompts: Float[Array, "prompts num_tokens width"],
    owner: Int[Array, " queries"],
    *,
    config: FitConfig,
    search: SearchConfig | None = None,
    weights: Float[Array, " scales"] | tuple[float, ...] = SSA_WEIGHTS,
    perturb: Callable[[Key, jax.Array], jax.Array] = undisturbed,
) -> tuple[Codec, FitInfo]:
    """Train a codec by the score of the search itself, so that each query finds the prompt that was tuned for it.

    loss = mean_q -log softmax_j(s_qj / (t std(s)))[owner_q] + w (relative error of queries + of prompts), with the
    score s of `scores` on a key matrix that is disturbed afresh every step, the temperature t and the weight w of
    `config`. Dividing by the standard deviation of the scores makes the loss the same for codes of any scale. Prompts
    are decoded from the disturbed codes, since that is what is read back.

    This goes beyond the paper, whose autoencoder is not known to be trained for the search.

    Args:
        key: Key of the start, the batches and the noise.
        codec: Codec of the wanted sizes, from `codec_init`.
        queries: Tokens of each query (queries, num_tokens, width), such as those of `pool_tokens`.
        prompts: Prompts (prompts, num_tokens, width), at least 2.
        owner: Index of the prompt that belongs to each query, (queries,).
        config: Options.
        search: Options of the search; None for the defaults of `SearchConfig`.
        weights: Weights of the scales.
        perturb: Noise on a matrix with a prompt in each column, drawn afresh every step: (key, matrix) -> matrix. See
            `fit` for noise that holds arrays.

    Returns:
        codec: The trained codec.
        info: Losses, errors (over queries and prompts together) and the share of queries that find their prompt.

    Raises:
        ValueError: If a shape is wrong, a value is not finite, or an owner does not exist.

    Example:
        >>> import jax
        >>> from nvcim_jax.selection import codec_init
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> prompts = jax.random.normal(keys[0], (3, 2, 8))
        >>> owner = jnp.arange(30) % 3
        >>> queries = jax.random.normal(keys[1], (3, 2, 8))[owner] + 0.1 * jax.random.normal(keys[2], (30, 2, 8))
        >>> codec = codec_init(keys[3], 8, code=4)
        >>> config = FitConfig(num_steps=200, learning_rate=1e-2)
        >>> _, info = fit_contrastive(jax.random.key(1), codec, queries, prompts, owner, config=config)
        >>> print(f"{info.hit_rate:.2f} of 1")  # the prompts have nothing in common with the queries
        1.00 of 1

    References:
        A. van den Oord et al., "Representation learning with contrastive predictive coding", arXiv:1807.03748, 2018.
        R. Qin et al., "Robust implementation of retrieval-augmented generation on edge-based computing-in-memory
        architectures", arXiv:2405.04700, 2024 (noise-aware contrastive training of embeddings).
    """
    search = SearchConfig() if search is None else search
    checks.rank("queries", queries, 3, "(queries, num_tokens, width)")
    checks.rank("prompts", prompts, 3, "(prompts, num_tokens, width)")
    checks.shape("queries", queries, (queries.shape[0], *prompts.shape[1:]), "(queries, num_tokens, width)")
    checks.integer("the number of prompts", prompts.shape[0], low=2)
    checks.integer("the number of queries", queries.shape[0])
    checks.shape("owner", owner, (queries.shape[0],), "(queries,)")
    checks.number("owner", owner, low=0.0, high=float(prompts.shape[0] - 1))
    for name, value in (("queries", queries), ("prompts", prompts)):
        check_tokens(codec, name, value)
        checks.finite(name, value)
    data = (queries.astype(jnp.float32), prompts.astype(jnp.float32), owner.astype(jnp.int32))
    return _fit(key, codec, data, jnp.asarray(weights, jnp.float32), as_partial(perturb), config=config, search=search)


@functools.partial(jax.jit, static_argnames=("config", "search"))
def _fit(
    key: Key,
    codec: Codec,
    data: tuple[jax.Array, jax.Array, jax.Array],
    weights: Float[Array, " scales"],
    perturb: jax.tree_util.Partial,
    *,
    config: FitConfig,
    search: SearchConfig,
) -> tuple[Codec, FitInfo]:
    """Return the trained codec; the arguments are checked."""
    queries, prompts, owner = data
    width = queries.shape[-1]
    tokens = jnp.concatenate([queries.reshape(-1, width), prompts.reshape(-1, width)])
    spread_queries, spread_prompts = (mean_square_spread(x.reshape(-1, width)) for x in (queries, prompts))
    key_start, key_steps, key_last = jax.random.split(key, 3)

    def loss(codec: Codec, key: Key) -> jax.Array:
        key_batch, key_noise = jax.random.split(key)
        batch = draw(key_batch, jnp.arange(queries.shape[0]), config.batch)
        x, codes = queries[batch], encode(codec, queries[batch])
        found, stored = _search(key_noise, codes, encode(codec, prompts), weights, perturb, search)
        error = jnp.square(x - decode(codec, codes)).mean() / spread_queries
        error += jnp.square(prompts - decode(codec, stored)).mean() / spread_prompts
        return _info_nce(found, owner[batch], config.temperature) + config.reconstruction_weight * error

    codec, losses = train(key_steps, start(key_start, codec, tokens, config), loss, config)
    found, _ = _search(
        key_last, encode(codec, queries), encode(codec, prompts), weights, as_partial(undisturbed), search
    )
    hits = (jnp.argmax(found, axis=1).astype(jnp.int32) == owner).mean(dtype=jnp.float32)
    return codec, FitInfo(losses, *relative_errors(jax.random.fold_in(key_last, 1), codec, tokens, perturb), hits)


def _search(
    key: Key,
    queries: Float[Array, "queries num_tokens code"],
    prompts: Float[Array, "prompts num_tokens code"],
    weights: Float[Array, " scales"],
    perturb: jax.tree_util.Partial,
    search: SearchConfig,
) -> tuple[Float[Array, "queries prompts"], Float[Array, "prompts num_tokens code"]]:
    """Return the scores on the disturbed keys, and the prompts' codes as they are read back."""
    key_search, key_read = jax.random.split(key)
    keys = perturb(key_search, jax.vmap(lambda code: key_vector(code, config=search), out_axes=1)(prompts))
    found = scores(jax.vmap(lambda code: query_vector(code, weights, config=search))(queries), keys)
    # one array serves both where the key is the code; else the code is stored in cells of its own
    same = search.measure == "mips" or (search.measure == "ssa" and search.storage == "shared")
    stored = keys if same else perturb(key_read, prompts.reshape(prompts.shape[0], -1).T)
    return found, stored.T.reshape(prompts.shape)


def _info_nce(
    found: Float[Array, "queries prompts"], owner: Int[Array, " queries"], temperature: ArrayLike
) -> Float[Array, ""]:
    """Return the mean cross entropy of the owners, scores taken in units of their standard deviation."""
    deviation = jnp.sqrt(jnp.var(found) + jnp.finfo(found.dtype).tiny)
    logits = found / (temperature * jnp.maximum(deviation, 1e-12))
    return optax.softmax_cross_entropy_with_integer_labels(logits, owner).mean()
