"""The store in a memory: what its columns hold, the search among them, and the prompts that are read back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, selection
from nvcim_jax.ops import moments_spread
from nvcim_jax.pipeline.config import SEPARATE_KEYS, Config
from nvcim_jax.pipeline.memory import Memory
from nvcim_jax.pipeline.store import Store
from nvcim_jax.selection import Similarity
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = [
    "TEMPERATURE",
    "Arrays",
    "Retrieved",
    "matrices",
    "program_store",
    "read_prompts",
    "retrieve",
    "search",
    "seen_as",
]


TEMPERATURE = 0.1
"""Of a soft pick, in training and in answering, in the unit of the scores (a cosine, with `key_unit`) [I]."""


class Arrays(NamedTuple):
    """Hold what is programmed, in whatever form the memory keeps it.

    Attributes:
        values: The prompts' codes, one a column.
        keys: The keys, one a column; None where the search runs on `values`.
    """

    values: Any
    keys: Any


class Retrieved(NamedTuple):
    """Say what a search found.

    Attributes:
        scores: Score of every slot for every query (queries, slots), -inf for an empty slot.
        weights: Share of every slot in the prompt that is used (queries, slots).
        slots: The best slot of every query (queries,), int32.
    """

    scores: jax.Array
    weights: jax.Array
    slots: jax.Array


def _unit(code: jax.Array) -> jax.Array:
    return code * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(code)), 1e-12))


def _common(codes: jax.Array, filled: jax.Array) -> jax.Array:
    """Return the mean of the codes that are there (tokens, code)."""
    weights = filled.astype(codes.dtype)
    return jnp.einsum("s,stc->tc", weights, codes, precision="highest") / jnp.maximum(weights.sum(), 1.0)


def _found_by(store: Store, config: Config) -> tuple[jax.Array, jax.Array]:
    """Return the features of every key (slots x keys, key tokens, width), and which of them are there."""
    features = store.features.reshape(-1, config.search_tokens, store.features.shape[-1])
    return seen_as(features, store, config), jnp.repeat(store.filled, config.num_keys)


def seen_as(features: jax.Array, store: Store, config: Config) -> jax.Array:
    """Return features in the unit of their spread over all texts observed, where the options ask for it."""
    return features / moments_spread(store.seen)[None] if config.key_spread else features


def value_matrix(store: Store) -> Float[Array, "rows slots"]:
    """Return the codes of the stored prompts, flattened, one a column; zeros for an empty slot."""
    codes = selection.encode(store.codec, store.prompts)
    return jnp.where(store.filled[None, :], codes.reshape(len(codes), -1).T, 0.0)


def key_matrix(store: Store, *, config: Config, similarity: Similarity | None = None) -> Float[Array, "rows keys"]:
    """Return what is searched, one key a column, those of a slot side by side; zeros for an empty slot."""
    if config.keys in SEPARATE_KEYS:
        tokens, filled = _found_by(store, config)
    else:
        filled = store.filled
        every = jnp.ones(store.prompts.shape[1], bool)
        tokens = jax.vmap(lambda p: selection.pool_tokens(p, every, config.search_tokens))(store.prompts)
    codes = selection.encode(store.codec, tokens)
    if config.key_centre:
        codes = codes - _common(codes, filled)[None]
    if config.key_clip is not None:
        size = jnp.sqrt(jnp.square(codes).mean(axis=(1, 2), keepdims=True))
        codes = jnp.clip(codes, -config.key_clip * size, config.key_clip * size)
    if config.key_unit:
        codes = jax.vmap(_unit)(codes)
    column = selection.similarity(config.search).key if similarity is None else similarity.key
    return jnp.where(filled[None, :], jax.vmap(column)(codes).T, 0.0)


@checked
def matrices(store: Store, *, config: Config, similarity: Similarity | None = None) -> Arrays:
    """Return what a memory is to hold of a store: the exact values and keys, one prompt a column.

    Args:
        store: The store.
        config: `keys` says what is stored to be searched, `search` how it is laid out.
        similarity: What is stored of a code and drives a search; None: that of `config.search`.

    Returns:
        Values (rows, slots), and keys (rows, slots x keys) or None where the search runs on the values; empty slots are
        zero.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=3, num_virtual=2, codec="identity")
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> found = pipeline.matrices(store, config=config)
        >>> found.values.shape, found.keys.shape  # 2 tokens of 32, and the features that find them, a slot a column
        ((64, 3), (32, 3))
    """
    shared = config.shares_arrays and similarity is None
    return Arrays(value_matrix(store), None if shared else key_matrix(store, config=config, similarity=similarity))


@checked
def program_store(
    key: Key, store: Store, memory: Memory, *, config: Config, similarity: Similarity | None = None
) -> Arrays:
    """Program the store into a fresh memory.

    Args:
        key: Key of the memory's chips.
        store: What is to be held.
        memory: What holds it.
        config: Options of the pipeline.
        similarity: As for `matrices`.

    Returns:
        What is held.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=3, num_virtual=2, codec="identity")
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> store = store._replace(prompts=jnp.arange(192.0).reshape(3, 2, 32), filled=jnp.ones(3, bool))
        >>> held = pipeline.program_store(jax.random.key(2), store, pipeline.exact_memory(), config=config)
        >>> bool((held.values[:, 1] == store.prompts[1].ravel()).all())  # exact memory holds the matrix itself
        True
    """
    value_key, search_key = jax.random.split(key)
    exact = matrices(store, config=config, similarity=similarity)
    keys = None if exact.keys is None else memory.program(search_key, exact.keys)
    return Arrays(memory.program(value_key, exact.values), keys)


def _query_rows(features: jax.Array, store: Store, config: Config, similarity: Similarity | None) -> jax.Array:
    codes = selection.encode(store.codec, seen_as(features, store, config))
    if config.key_centre:  # queries about the features that were stored, whatever the keys are
        stored, filled = _found_by(store, config)
        codes = codes - _common(selection.encode(store.codec, stored), filled)[None]
    if config.key_unit:
        codes = jax.vmap(_unit)(codes)
    row = selection.similarity(config.search).query if similarity is None else similarity.query
    return jax.vmap(lambda code: row(code, store.scale_weights))(codes)


@checked
def search(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Arrays,
    memory: Memory,
    *,
    config: Config,
    similarity: Similarity | None = None,
    every: bool = False,
) -> Float[Array, "queries columns"]:
    """Return the score of every slot for every query, computed in the memory.

    Args:
        key: Key of this read.
        features: Features of the queries, see `make_queries`.
        store: The store; its codec and the weights of the scales are digital.
        arrays: What is programmed.
        memory: What holds it.
        config: Options of the pipeline.
        similarity: As for `matrices`.
        every: Whether the products of all columns are returned as they are (queries, slots x keys), empty slots among
            them, for calibration. Otherwise a slot scores as its best key, an empty one -inf.

    Returns:
        Scores (queries, slots), or (queries, slots x keys) with `every`.

    Raises:
        ValueError: If the features have other tokens than the keys.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=3, num_virtual=1, codec="identity", keys="prompt", key_unit=False)
        >>> config = config.changed(search={"measure": "mips"})
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> store = store._replace(prompts=jnp.ones((3, 1, 32)), filled=jnp.array([True, True, False]))
        >>> exact = pipeline.exact_memory()
        >>> arrays = pipeline.program_store(jax.random.key(2), store, exact, config=config)
        >>> print(pipeline.search(jax.random.key(3), jnp.full((1, 1, 32), 0.5), store, arrays, exact, config=config))
        [[ 16.  16. -inf]]
    """
    shape = (len(features), config.search_tokens, store.features.shape[-1])
    checks.shape("features", features, shape, "(queries, key tokens, width)")
    held = arrays.values if arrays.keys is None else arrays.keys
    rows = _query_rows(features, store, config, similarity)
    found = memory.multiply(key, rows, held)
    if every:
        return found
    best = found.reshape(len(found), len(store.filled), -1).max(axis=2)
    return jnp.where(store.filled[None, :], best, -jnp.inf)


@checked
def read_prompts(key: Key, store: Store, arrays: Arrays, memory: Memory) -> Float[Array, "slots rows width"]:
    """Return all prompts, read back from the memory and decoded.

    Args:
        key: Key of this read.
        store: The store; its codec is digital.
        arrays: What is programmed.
        memory: What holds it.

    Returns:
        The prompts as the memory gives them back.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=3, num_virtual=2, codec="identity")
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> store = store._replace(prompts=jnp.arange(192.0).reshape(3, 2, 32), filled=jnp.ones(3, bool))
        >>> exact = pipeline.exact_memory()
        >>> held = pipeline.program_store(jax.random.key(2), store, exact, config=config)
        >>> bool((pipeline.read_prompts(jax.random.key(3), store, held, exact) == store.prompts).all())
        True
    """
    codes = memory.read(key, arrays.values).T.reshape(*store.prompts.shape[:2], -1)
    return selection.decode(store.codec, codes)


@checked
def retrieve(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Arrays,
    memory: Memory,
    *,
    config: Config,
    similarity: Similarity | None = None,
    temperature: ArrayLike = TEMPERATURE,
) -> tuple[Float[Array, "queries rows width"], Retrieved]:
    """Find the prompt of every query in the memory, and read it.

    Search in the memory, choice, one read, decoding: differentiable in prompts, codec, search weights and the device
    through `pick='soft'` or `'straight_through'`.

    Args:
        key: Key of these reads.
        features: Features of the queries (queries, key tokens, width).
        store: The store.
        arrays: What is programmed.
        memory: What holds it.
        config: Options of the pipeline.
        similarity: As for `matrices`.
        temperature: Of a soft choice, in the unit of the scores.

    Returns:
        The prompt of each query, and what the search found. With an empty store prompts are zero.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=2, num_virtual=1, codec="identity", keys="prompt", key_unit=False)
        >>> config = config.changed(search={"measure": "mips"})
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> prompts = jnp.stack([jnp.ones((1, 32)), -jnp.ones((1, 32))])
        >>> store, exact = store._replace(prompts=prompts, filled=jnp.ones(2, bool)), pipeline.exact_memory()
        >>> arrays = pipeline.program_store(jax.random.key(2), store, exact, config=config)
        >>> query = -jnp.ones((1, 1, 32))
        >>> rows, found = pipeline.retrieve(jax.random.key(3), query, store, arrays, exact, config=config)
        >>> found.slots.tolist(), float(rows.max())  # the prompt that is like the query
        ([1], -1.0)
    """
    search_key, read_key = jax.random.split(key)
    scores = search(search_key, features, store, arrays, memory, config=config, similarity=similarity)
    weights = jax.vmap(lambda row: selection.pick(row, kind=config.pick, temperature=temperature))(scores)
    prompts = read_prompts(read_key, store, arrays, memory)
    prompts = jnp.where(store.filled[:, None, None], prompts, 0.0)
    chosen = jnp.einsum("qs,svw->qvw", weights, prompts, precision="highest")
    return chosen, Retrieved(scores, weights, jnp.argmax(scores, axis=1).astype(jnp.int32))
