"""A buffer becomes stored prompts: representatives, prompts tuned side by side, store, codec, memory. All traced."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from nvcim_jax import checks, selection, tuning
from nvcim_jax.models import LM
from nvcim_jax.ops import as_partial, moments_add
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import Memory, as_memory, exact_memory
from nvcim_jax.pipeline.retrieval import TEMPERATURE, Arrays, program_store, seen_as
from nvcim_jax.pipeline.store import Inserted, Store, check_room, empty_store, insert
from nvcim_jax.pipeline.text import Buffer
from nvcim_jax.selection import Similarity
from nvcim_jax.signature import checked
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import Key

__all__ = ["Chosen", "ObserveInfo", "Parts", "State", "Tuned", "complete", "init", "observe", "tune_rows"]


class State(NamedTuple):
    """Hold a personalised memory.

    Attributes:
        store: The prompts and what finds them.
        arrays: What is programmed, in whatever form the memory keeps it.
    """

    store: Store
    arrays: Arrays


class Parts(TypedDict, total=False):
    """Functions that the stages take as keywords; what is left out is as the options say.

    Attributes:
        adapter: What is tuned: `tuning.prompt` by default.
        memory: What holds the store: exact by default.
        similarity: What is stored of a code, and what drives a search: a `selection.Similarity`.
        cluster: `cluster(key, centres, num)`: the cluster of each record (records,), see `selection.representative`;
            `selection.kmeans` by default.
        codec: `codec(key, store, features, owner) -> (codec, info)`: what stands between prompt and memory, made anew
            for every buffer; `features` (records, key tokens, width) of its texts, `owner` (records,) their slots.
        optimiser: As for `tuning.tune`, and so are the others.
        gradient: How the slope is found.
        perturb: What the memory does to rows while they are tuned.
        penalty: Added to the loss.
        project: Applied after every update.
        temperature: Of a soft pick, in the unit of the scores, above 0: that of `objective` and `train` by default.
    """

    adapter: Adapter
    memory: Memory
    similarity: Similarity | None
    cluster: Callable[..., Any]
    codec: Callable[..., Any]
    optimiser: Callable[..., Any]
    gradient: Callable[..., Any]
    perturb: Callable[..., Any]
    penalty: Callable[..., Any]
    project: Callable[..., Any]
    temperature: ArrayLike


class Chosen(NamedTuple):
    """Hold all parts of a call, each a tree."""

    adapter: Adapter
    memory: Memory
    similarity: Similarity | None
    cluster: Partial
    codec: Partial
    tuning: dict[str, Partial]
    temperature: jax.Array


class Tuned(NamedTuple):
    """Hold what was tuned on a buffer, before any of it is stored.

    Attributes:
        rows: Rows of each prompt (prompts, rows of the adapter, their width).
        info: How they were tuned, with a leading axis of prompts.
    """

    rows: jax.Array
    info: tuning.TuneInfo


class ObserveInfo(NamedTuple):
    """Say what became of a buffer.

    Attributes:
        clusters: Its clusters; `clusters.assignment` (records,) is the number of each record's prompt.
        representatives: Index of each cluster's representative (prompts,).
        tuned: How the prompts were tuned, with a leading axis of prompts.
        inserted: Slots that they went to.
        codec: How the codec was trained; None without one.
    """

    clusters: selection.Clusters
    representatives: jax.Array
    tuned: tuning.TuneInfo
    inserted: Inserted
    codec: Any


def complete(config: Config, given: Parts) -> Chosen:
    """Return all parts of a call, those of the options where none was given.

    Raises:
        TypeError: If there is no such part; the message suggests the nearest.
        ValueError: If the temperature is not positive.
    """
    checks.options("the pipeline", given.keys() - Parts.__annotations__.keys(), Parts.__annotations__)
    checks.number("temperature", given.get("temperature", TEMPERATURE), low=0.0, low_open=True)
    adapter, similarity = given.get("adapter", config.adapter()), given.get("similarity")
    return Chosen(
        Adapter(*map(as_partial, adapter)),
        as_memory(given.get("memory", exact_memory())),
        None if similarity is None else Similarity(*map(as_partial, similarity)),
        as_partial(given.get("cluster", selection.kmeans)),
        as_partial(given.get("codec", Partial(fit_codec, config))),
        {name: as_partial(given[name]) for name in tuning.Parts.__annotations__ if name in given},  # type: ignore[literal-required]
        jnp.asarray(given.get("temperature", TEMPERATURE), jnp.float32),
    )


@jax.jit
def _program(key: Key, store: Store, config: Config, chosen: Chosen) -> Arrays:
    return program_store(key, store, chosen.memory, config=config, similarity=chosen.similarity)


@checked
def init(
    key: Key,
    lm: LM,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    **parts: Unpack[Parts],
) -> State:
    """Return an empty memory, programmed.

    Args:
        key: Key of the memory's chips.
        lm: The language model.
        config: Options of the pipeline.
        **parts: As for `observe`, which takes the same ones afterwards.

    Returns:
        The memory; no slot is filled.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> config = pipeline.Config(capacity=3, num_virtual=2, codec="identity")
        >>> state = init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config)
        >>> state.store.prompts.shape, state.arrays.values.shape, bool(state.store.filled.any())  # a prompt is a column
        ((3, 2, 32), (64, 3), False)
    """
    chosen = complete(config, parts)
    store = empty_store(chosen.adapter.rows_shape(lm), config)
    return State(store, _program(key, store, config, chosen))


def _anchors(buffer: Buffer, representatives: jax.Array, num: int) -> jax.Array:
    """Return what an anchored prompt is held to: its representative as a query sees it."""
    every = jnp.ones(buffer.features.shape[1], bool)
    return jax.vmap(lambda f: selection.pool_tokens(f, every, num))(buffer.features[representatives])


class _Keys(NamedTuple):
    """Hold the keys of the stages."""

    cluster: Key
    start: Key
    tune: Key
    codec: Key
    chip: Key


class _Members(NamedTuple):
    """Say which records make a prompt: its representative (prompts,), and who belongs to it (prompts, records)."""

    representatives: jax.Array
    member: jax.Array
    clusters: selection.Clusters


def _clustered(key: Key, buffer: Buffer, config: Config, chosen: Chosen) -> _Members:
    representatives, clusters = selection.representative(
        key, buffer.centres, num=config.num_prompts, cluster=chosen.cluster
    )
    member = (clusters.assignment[None, :] == jnp.arange(len(representatives))[:, None]).astype(jnp.float32)
    return _Members(representatives, member, clusters)


def _tuned(keys: _Keys, buffer: Buffer, members: _Members, lm: LM, config: Config, chosen: Chosen) -> Tuned:
    """Tune the rows of every prompt of a buffer, side by side."""
    representatives, member, _ = members
    adapter, num = chosen.adapter, len(representatives)
    weights = member if config.train_on == "cluster" else jnp.ones_like(member)
    start_keys, tune_keys = (
        jax.vmap(lambda i, k=k: jax.random.fold_in(k, i))(jnp.arange(num)) for k in (keys.start, keys.tune)
    )
    if config.keys == "anchored":
        rows, _ = adapter.rows_shape(lm)
        starts = jax.vmap(adapter.from_rows)(_anchors(buffer, representatives, rows))
    else:
        # The representative counts most: it is the text that a prompt may start from.
        first = weights.at[jnp.arange(num), representatives].add(1.0)
        starts = jax.vmap(lambda key, counts: adapter.init(key, lm, buffer.examples, counts))(start_keys, first)

    def one(key: Key, start: Any, weights: jax.Array) -> tuple[Any, tuning.TuneInfo]:
        options: Any = chosen.tuning
        return tuning.tune(key, start, lm, buffer.examples, weights, adapter=adapter, options=config.tuning, **options)

    states, info = jax.vmap(one)(tune_keys, starts, weights)
    return Tuned(jax.vmap(adapter.rows)(states), info)


@jax.jit
def _tune_rows(key: Key, buffer: Buffer, lm: LM, config: Config, chosen: Chosen) -> Tuned:
    keys = _Keys(*jax.random.split(key, 5))
    return _tuned(keys, buffer, _clustered(keys.cluster, buffer, config, chosen), lm, config, chosen)


@checked
def tune_rows(
    key: Key,
    buffer: Buffer,
    lm: LM,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    **parts: Unpack[Parts],
) -> Tuned:
    """Tune the prompts of a buffer and store none: nearly all the time that `observe` takes.

    `observe` takes what is returned as `tuned`, with the same key, buffer, model and parts, and does the rest; so
    memories that differ in keys, search, codec or cells tune once. Rows depend on `config.for_tuning()` alone.

    Args:
        key: The key of `observe`; where JAX looks for keys that are used twice, `jax.random.clone` of it.
        buffer: The buffer, from `make_buffer`.
        lm: The language model.
        config: Options of the pipeline.
        **parts: As for `observe`.

    Returns:
        Rows and info.

    Raises:
        TypeError: If there is no such part.

    Example:
        >>> from nvcim_jax import data, models, pipeline
        >>> lm, text = models.load(models.BUNDLED)
        >>> buffer = pipeline.make_buffer(data.builtin_users(0).blocks[0].records, lm, text)
        >>> few = pipeline.Config(num_virtual=4, num_prompts=1)
        >>> jax.eval_shape(lambda key: tune_rows(key, buffer, lm, config=few), jax.random.key(0)).rows.shape
        (1, 4, 256)
    """
    given: Any = {name: part for name, part in parts.items() if name not in ("memory", "similarity", "codec")}
    own = config.for_tuning()
    return _tune_rows(key, buffer, lm, own, complete(own, given))


def _found_by(key: Key, buffer: Buffer, members: _Members, config: Config, chosen: Chosen) -> jax.Array:
    """Return the features that each prompt is found by (prompts, keys x key tokens, width)."""
    representatives, member, _ = members
    if config.num_keys > 1:  # of the one prompt of this buffer; its one cluster drew nothing from the key
        num = min(config.num_keys, len(buffer.centres))
        representatives, clusters = selection.representative(
            jax.random.fold_in(key, 1), buffer.centres, num=num, cluster=chosen.cluster
        )
        every = jnp.arange(config.num_keys) % num
        representatives = representatives[every]
        member = (clusters.assignment[None, :] == every[:, None]).astype(jnp.float32)
    found = buffer.features[representatives]
    if config.keys == "centroid":
        found = jnp.einsum("pr,rtw->ptw", member / member.sum(axis=1, keepdims=True), buffer.features)
    return found.reshape(-1, config.num_keys * found.shape[1], found.shape[2])


def _observe(
    key: Key, state: State, buffer: Buffer, lm: LM, config: Config, chosen: Chosen, tuned: Tuned | None
) -> tuple[State, ObserveInfo]:
    """Take in a buffer; the arguments are checked."""
    keys = _Keys(*jax.random.split(key, 5))
    members = _clustered(keys.cluster, buffer, config, chosen)
    if tuned is None:
        tuned = _tuned(keys, buffer, members, lm, config, chosen)
    found_by = _found_by(keys.cluster, buffer, members, config, chosen)
    store, inserted = insert(state.store, tuned.rows, found_by, config=config)
    seen = moments_add(state.store.seen, buffer.features)
    store = store._replace(seen=jax.tree.map(partial(jnp.where, inserted.refused), state.store.seen, seen))
    assignment = members.clusters.assignment
    codec, fitted = chosen.codec(keys.codec, store, buffer.features, inserted.slots[assignment])
    store = store._replace(codec=codec)
    arrays = program_store(keys.chip, store, chosen.memory, config=config, similarity=chosen.similarity)
    info = ObserveInfo(members.clusters, members.representatives, tuned.info, inserted, fitted)
    return State(store, arrays), info


_observe_jitted = jax.jit(_observe)


@checked
def observe(
    key: Key,
    state: State,
    buffer: Buffer,
    lm: LM,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    tuned: Tuned | None = None,
    **parts: Unpack[Parts],
) -> tuple[State, ObserveInfo]:
    """Take in one full buffer: representatives -> prompts tuned side by side -> store -> codec -> memory.

    Everything is traced: users, seeds and chips are axes of `jax.vmap`. The codec is trained anew on all stored prompts
    and on this buffer's texts, so every call writes the whole memory. A second buffer of the same shapes compiles
    nothing.

    Args:
        key: A key.
        state: The memory so far, from `init` or `observe`.
        buffer: The buffer, from `make_buffer`.
        lm: The language model.
        config: Options of the pipeline, those of `init`.
        tuned: What `tune_rows` has made of this key and buffer; None: it is tuned now.
        **parts: Functions in place of those that the options name, see `Parts`: `adapter`, `memory`, `optimiser`,
            `similarity`, `cluster`, `codec`, `perturb` and others. A `Preset` gives its own for a device.

    Returns:
        The memory with the buffer's prompts in it, and what happened.

    Raises:
        TypeError: If there is no such part.
        ValueError: If `tuned` has rows of another shape; if the store is full and refuses: a traced call stores no
            prompt and says so in `inserted.refused`. Its codec and its arrays are made anew all the same: keep the
            state from before.

    Example:
        >>> from nvcim_jax import data, models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> config = pipeline.Config(capacity=3, num_virtual=2, num_prompts=1, codec="identity")
        >>> rows = [data.Record(str(i), "u", "t", word, "yes", "train") for i, word in enumerate(("pay", "card"))]
        >>> buffer = pipeline.make_buffer(rows, lm, text, config=config)
        >>> state = init(jax.random.key(1), lm, config=config)
        >>> see = lambda key, state: observe(key, state, buffer, lm, config=config)
        >>> after, info = jax.eval_shape(see, jax.random.key(2), state)
        >>> info.inserted.slots.shape, after.store.prompts.shape  # one prompt is added; the memory keeps its size
        ((1,), (3, 2, 32))
    """
    chosen = complete(config, parts)
    num = config.num_prompts or selection.num_representatives(len(buffer.centres))
    if tuned is not None:
        checks.shape("tuned.rows", tuned.rows, (num, *chosen.adapter.rows_shape(lm)))
    if config.when_full == "refuse" and checks.is_concrete(state.store.filled):
        check_room(state.store, num, config)
    return _observe_jitted(key, state, buffer, lm, config, chosen, tuned)


def fit_codec(
    config: Config, key: Key, store: Store, features: jax.Array, owner: Int[Array, " records"]
) -> tuple[selection.Codec, Any]:
    """Train the codec of the options on all stored prompts and on a buffer's texts.

    Args:
        config: `codec` and `keys` say how.
        key: A key.
        store: The store.
        features: Features of the texts; those of earlier buffers are represented by their representatives.
        owner: Slot of the prompt that each text belongs to (records,).

    Returns:
        The codec, and the info of the training; None with the identity.
    """
    if config.codec == "identity":
        return store.codec, None
    width, slots = store.prompts.shape[-1], len(store.filled)
    init_key, fit_key = jax.random.split(key)
    codec = selection.codec_init(init_key, width, code=config.code)
    keys = store.features.reshape(-1, *features.shape[1:])
    queries = seen_as(jnp.concatenate([features, keys]), store, config)
    real = jnp.concatenate([jnp.ones(len(features), bool), jnp.repeat(store.filled, len(keys) // slots)])
    if config.keys != "contrastive":
        tokens = jnp.concatenate([store.prompts.reshape(-1, width), queries.reshape(-1, width)])
        counts = [jnp.repeat(store.filled, store.prompts.shape[1]), jnp.repeat(real, queries.shape[1])]
        return selection.fit(fit_key, codec, tokens, config=config.codec_fit, real=jnp.concatenate(counts))
    every = jnp.ones(store.prompts.shape[1], bool)
    pooled = jax.vmap(lambda p: selection.pool_tokens(p, every, config.search_tokens))(store.prompts)
    pairs = selection.Pairs(
        queries, pooled, jnp.concatenate([owner, jnp.arange(slots, dtype=jnp.int32)]), real, store.filled
    )
    return selection.fit_contrastive(
        fit_key, codec, pairs, config=config.codec_fit, search=config.search, weights=store.scale_weights
    )
