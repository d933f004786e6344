"""Training a codec so that a query meets its own prompt, through the noise of the memory that holds the keys."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax import checks
from nvcim_jax.ops import as_partial
from nvcim_jax.selection.codec import Codec, check_tokens, decode, encode, row_mean
from nvcim_jax.selection.fit import (
    FitConfig,
    FitInfo,
    draw,
    mean_square,
    mean_square_spread,
    relative_errors,
    start,
    train,
    undisturbed,
)
from nvcim_jax.selection.search import SSA_WEIGHTS, SearchConfig, key_vector, query_vector, scores
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Pairs", "fit_contrastive"]


class Pairs(NamedTuple):
    """Hold queries with the prompts that they are to find; a table that fills up keeps its shape.

    Attributes:
        queries: Tokens of each query (queries, num_tokens, width), such as those of `pool_tokens`.
        prompts: Prompts (prompts, num_tokens, width), at least 2.
        owner: Number of the prompt that belongs to each query (queries,).
        real: Which queries count (queries,), bool; None: all.
        filled: Which prompts there are (prompts,), bool; None: all.
    """

    queries: Float[Array, "queries num_tokens width"] | jax.Array
    prompts: Float[Array, "prompts num_tokens width"] | jax.Array
    owner: Int[Array, " queries"] | jax.Array
    real: Bool[Array, " queries"] | None = None
    filled: Bool[Array, " prompts"] | None = None


@checked
def fit_contrastive(
    key: Key,
    codec: Codec,
    pairs: Pairs,
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
        pairs: Queries, prompts, and which belong together.
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
        >>> _, info = fit_contrastive(jax.random.key(1), codec, Pairs(queries, prompts, owner), config=config)
        >>> print(f"{info.hit_rate:.2f} of 1")  # the prompts have nothing in common with the queries
        1.00 of 1

    References:
        A. van den Oord et al., "Representation learning with contrastive predictive coding", arXiv:1807.03748, 2018.
        R. Qin et al., "Robust implementation of retrieval-augmented generation on edge-based computing-in-memory
        architectures", arXiv:2405.04700, 2024 (noise-aware contrastive training of embeddings).
    """
    search = SearchConfig() if search is None else search
    queries, prompts, owner, real, filled = pairs
    checks.rank("queries", queries, 3, "(queries, num_tokens, width)")
    checks.rank("prompts", prompts, 3, "(prompts, num_tokens, width)")
    checks.shape("queries", queries, (queries.shape[0], *prompts.shape[1:]), "(queries, num_tokens, width)")
    checks.integer("the number of prompts", prompts.shape[0], low=2)
    checks.integer("the number of queries", queries.shape[0])
    checks.shape("owner", owner, (queries.shape[0],), "(queries,)")
    checks.number("owner", owner, low=0.0, high=float(prompts.shape[0] - 1))
    for name, mask, size in (("real", real, len(queries)), ("filled", filled, len(prompts))):
        if mask is not None:
            checks.shape(name, mask, (size,))
    for name, value in (("queries", queries), ("prompts", prompts)):
        check_tokens(codec, name, value)
        checks.finite(name, value)
    data = Pairs(queries.astype(jnp.float32), prompts.astype(jnp.float32), owner.astype(jnp.int32), real, filled)
    return _fit(key, codec, data, jnp.asarray(weights, jnp.float32), as_partial(perturb), config, search)


def _each_token(mask: jax.Array | None, num: int) -> jax.Array | None:
    return None if mask is None else jnp.repeat(mask, num)


def _both(pairs: Pairs) -> tuple[jax.Array, jax.Array | None]:
    """Return all tokens of queries and prompts, and which count."""
    num, width = pairs.queries.shape[1:]
    tokens = jnp.concatenate([pairs.queries.reshape(-1, width), pairs.prompts.reshape(-1, width)])
    if pairs.real is None and pairs.filled is None:
        return tokens, None
    masks = [
        jnp.ones(len(table), bool) if mask is None else mask
        for table, mask in ((pairs.queries, pairs.real), (pairs.prompts, pairs.filled))
    ]
    return tokens, jnp.repeat(jnp.concatenate(masks), num)


@jax.jit
def _fit(
    key: Key,
    codec: Codec,
    data: Pairs,
    weights: Float[Array, " scales"],
    perturb: jax.tree_util.Partial,
    config: FitConfig,
    search: SearchConfig,
) -> tuple[Codec, FitInfo]:
    """Return the trained codec; the arguments are checked."""
    queries, prompts, owner, real, filled = data
    if real is not None and filled is not None:  # a query that does not count asks for a prompt that there is
        owner = jnp.where(real, owner, jnp.argmax(filled).astype(jnp.int32))
    num, width = queries.shape[1:]
    tokens, counted = _both(data)
    spread_queries, spread_prompts = (
        mean_square_spread(x.reshape(-1, width), _each_token(mask, num))
        for x, mask in ((queries, real), (prompts, filled))
    )
    key_start, key_steps, key_last = jax.random.split(key, 3)

    def loss(codec: Codec, key: Key) -> jax.Array:
        key_batch, key_noise = jax.random.split(key)
        batch, counts = draw(key_batch, queries.shape[0], config.batch, real)
        x, codes = queries[batch], encode(codec, queries[batch])
        found, stored = _search(key_noise, codes, encode(codec, prompts), weights, perturb, search)
        apart = (x - decode(codec, codes)).reshape(-1, width)
        error = mean_square(apart, _each_token(counts, num)) / spread_queries
        back = (prompts - decode(codec, stored)).reshape(-1, width)
        error += mean_square(back, _each_token(filled, num)) / spread_prompts
        nce = _info_nce(found, owner[batch], config.temperature, counts, filled)
        return nce + config.reconstruction_weight * error

    codec, losses = train(key_steps, start(key_start, codec, tokens, counted, config), loss, config)
    found, _ = _search(
        key_last, encode(codec, queries), encode(codec, prompts), weights, as_partial(undisturbed), search
    )
    found = found if filled is None else jnp.where(filled[None, :], found, -jnp.inf)
    hits = row_mean((jnp.argmax(found, axis=1).astype(jnp.int32) == owner).astype(jnp.float32), real)
    errors = relative_errors(jax.random.fold_in(key_last, 1), codec, tokens, counted, perturb)
    return codec, FitInfo(losses, *errors, hits)


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
    found: Float[Array, "queries prompts"],
    owner: Int[Array, " queries"],
    temperature: ArrayLike,
    counts: Array | None,
    filled: Bool[Array, " prompts"] | None,
) -> Float[Array, ""]:
    """Return the mean cross entropy of the owners, scores taken in units of their standard deviation."""
    deviation = jnp.sqrt(_variance(found, counts, filled) + jnp.finfo(found.dtype).tiny)
    logits = found / (temperature * jnp.maximum(deviation, 1e-12))
    logits = logits if filled is None else jnp.where(filled[None, :], logits, -jnp.inf)
    return row_mean(optax.softmax_cross_entropy_with_integer_labels(logits, owner), counts)


def _variance(found: jax.Array, counts: jax.Array | None, filled: jax.Array | None) -> jax.Array:
    """Return the variance of the scores between queries and prompts that count."""
    if counts is None and filled is None:
        return jnp.var(found)
    rows = jnp.ones(found.shape[0]) if counts is None else counts
    cols = jnp.ones(found.shape[1]) if filled is None else filled.astype(found.dtype)
    weights = rows[:, None] * cols[None, :]
    total = jnp.maximum(weights.sum(), 1.0)
    mean = (found * weights).sum() / total
    return (jnp.square(found - mean) * weights).sum() / total
