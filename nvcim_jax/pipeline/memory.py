"""The memory that holds the store: programmed once, searched and read back through its noise."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, crossbar, devices, selection
from nvcim_jax.pipeline.config import SEPARATE_KEYS, Config
from nvcim_jax.pipeline.store import Store
from nvcim_jax.types import Key

__all__ = [
    "Arrays",
    "Correction",
    "Retrieved",
    "key_matrix",
    "program_store",
    "read_prompts",
    "retrieve",
    "search",
    "value_matrix",
]


class Correction(NamedTuple):
    """Hold digital corrections of what a chip gives; see `nvcim_jax.pipeline.mitigation`.

    Attributes:
        score_gain: Factor on the scores of each slot (slots,).
        score_offset: Added to them afterwards (slots,).
        value_gain: Factor on the values read from each slot (slots,).
    """

    score_gain: jax.Array
    score_offset: jax.Array
    value_gain: jax.Array


class Arrays(NamedTuple):
    """Hold what is programmed: chips, or plain matrices where there is no device.

    Attributes:
        values: The prompts' codes, one a column.
        keys: The keys, one a column; None where the search runs on `values`.
        correction: Digital corrections; None for none.
    """

    values: Any
    keys: Any
    correction: Correction | None = None


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


def value_matrix(store: Store) -> Float[Array, "rows slots"]:
    """Return the codes of the stored prompts, flattened, one a column; zeros for an empty slot."""
    codes = selection.encode(store.codec, store.prompts)
    return jnp.where(store.filled[None, :], codes.reshape(len(codes), -1).T, 0.0)


def _unit(code: jax.Array) -> jax.Array:
    return code * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(code)), 1e-12))


def _common(codes: jax.Array, store: Store) -> jax.Array:
    """Return the mean of the filled slots' codes (tokens, code)."""
    weights = store.filled.astype(codes.dtype)
    return jnp.einsum("s,stc->tc", weights, codes, precision="highest") / jnp.maximum(weights.sum(), 1.0)


def key_matrix(store: Store, *, config: Config) -> Float[Array, "rows slots"]:
    """Return what is searched, one key a column; zeros for an empty slot.

    Args:
        store: The store.
        config: `key` says what is stored, `search` how it is laid out.
    """
    if config.key in SEPARATE_KEYS:
        tokens = store.features
    else:
        every = jnp.ones(config.num_virtual, bool)
        tokens = jax.vmap(lambda p: selection.pool_tokens(p, every, config.search_tokens))(store.prompts)
    codes = selection.encode(store.codec, tokens)
    if config.key_centre:
        codes = codes - _common(codes, store)[None]
    if config.key_clip is not None:
        size = jnp.sqrt(jnp.square(codes).mean(axis=(1, 2), keepdims=True))
        codes = jnp.clip(codes, -config.key_clip * size, config.key_clip * size)
    if config.unit_keys:
        codes = jax.vmap(_unit)(codes)
    columns = jax.vmap(lambda code: selection.key_vector(code, config=config.search))(codes)
    return jnp.where(store.filled[None, :], columns.T, 0.0)


def _query_rows(features: jax.Array, store: Store, config: Config) -> jax.Array:
    codes = selection.encode(store.codec, features)
    if config.key_centre:  # queries about the features that were stored, whatever the keys are
        codes = codes - _common(selection.encode(store.codec, store.features), store)[None]
    if config.unit_keys:
        codes = jax.vmap(_unit)(codes)
    return jax.vmap(lambda code: selection.query_vector(code, store.scale_weights, config=config.search))(codes)


def program_store(key: Key, store: Store, device: devices.Device | None, *, config: Config) -> Arrays:
    """Program the store on one physical chip.

    Slots lie in columns with a scale of their own, and the noise of a cell depends on the key and its place alone, so a
    store that grew programs its old columns to the same conductances under the same key.

    Args:
        key: Key of the chip.
        store: What is to be held.
        device: The memory cells; None keeps exact matrices.
        config: `arrays` are the options of the crossbars.

    Returns:
        The arrays, at t = 0.
    """
    value_key, search_key = jax.random.split(key)
    values = value_matrix(store)
    keys = None if config.shares_arrays else key_matrix(store, config=config)
    if device is None:
        return Arrays(values, keys)
    write = partial(crossbar.program, device=device, config=config.arrays)
    return Arrays(write(value_key, values), None if keys is None else write(search_key, keys))


def search(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Arrays,
    device: devices.Device | None,
    *,
    config: Config,
    every: bool = False,
) -> Float[Array, "queries slots"]:
    """Return the score of every slot for every query, computed in the memory.

    Args:
        key: Key of this read.
        features: Features of the queries, from `text_features`.
        store: The store; its codec and the weights of the scales are digital.
        arrays: What is programmed.
        device: The memory cells, or None.
        config: Options of the pipeline.
        every: Whether empty slots are scored as well, for calibration; they score -inf otherwise.
    """
    checks.shape("features", features, (len(features), *store.features.shape[1:]), "(queries, key tokens, width)")
    chip = arrays.values if arrays.keys is None else arrays.keys

    def on_arrays(x: jax.Array, chip: Any) -> jax.Array:
        return crossbar.matmul(key, x, chip)[0]

    rows = _query_rows(features, store, config)
    similarity = partial(jnp.matmul, precision="highest") if device is None else on_arrays
    if arrays.correction is not None:
        gain, offset, _ = arrays.correction
        exact = similarity
        similarity = lambda x, chip: exact(x, chip) * gain[None, :] + offset[None, :]  # noqa: E731
    return selection.scores(rows, chip, similarity=similarity, filled=None if every else store.filled)


def read_prompts(
    key: Key, store: Store, arrays: Arrays, device: devices.Device | None, *, config: Config
) -> Float[Array, "slots virtual width"]:
    """Read all prompts back from the memory and decode them.

    Args:
        key: Key of this read.
        store: The store; its codec is digital.
        arrays: What is programmed.
        device: The memory cells, or None.
        config: Options of the pipeline.
    """
    values = arrays.values
    if device is not None:
        values = crossbar.read_back(key, values)
    if arrays.correction is not None:
        values = values * arrays.correction.value_gain[None, :]
    codes = values.T.reshape(len(store.filled), config.num_virtual, -1)
    return selection.decode(store.codec, codes)


def retrieve(
    key: Key,
    features: Float[Array, "queries tokens width"],
    store: Store,
    arrays: Arrays,
    device: devices.Device | None,
    *,
    config: Config,
    temperature: ArrayLike = 1.0,
) -> tuple[Float[Array, "queries virtual width"], Retrieved]:
    """Find the prompt of every query in the memory, and read it.

    Search on the arrays, choice, one read of the cells, decoding: differentiable in prompts, codec, search weights and
    the device through `pick='soft'` or `'straight_through'`.

    Args:
        key: Key of these reads.
        features: Features of the queries (queries, key tokens, width).
        store: The store.
        arrays: What is programmed.
        device: The memory cells, or None.
        config: Options of the pipeline.
        temperature: Of a soft choice, in the unit of the scores.

    Returns:
        The prompt of each query, and what the search found. With an empty store prompts are zero.
    """
    search_key, read_key = jax.random.split(key)
    scores = search(search_key, features, store, arrays, device, config=config)
    weights = jax.vmap(lambda row: selection.pick(row, kind=config.pick, temperature=temperature))(scores)
    prompts = read_prompts(read_key, store, arrays, device, config=config)
    prompts = jnp.where(store.filled[:, None, None], prompts, 0.0)
    chosen = jnp.einsum("qs,svw->qvw", weights, prompts, precision="highest")
    return chosen, Retrieved(scores, weights, jnp.argmax(scores, axis=1).astype(jnp.int32))
