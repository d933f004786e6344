"""The stages of NVCiM-PT on the host: a buffer becomes stored prompts, a query becomes an answer."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nvcim_jax import checks, devices, models, selection, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import Arrays, Retrieved, program_store, retrieve
from nvcim_jax.pipeline.noise import training_noise
from nvcim_jax.pipeline.store import Inserted, Store, empty_store, insert
from nvcim_jax.pipeline.text import (
    Queries,
    Words,
    answer_ids,
    label_candidates,
    make_examples,
    make_queries,
    make_words,
    pad_rows,
    query_ids,
    text_features,
)
from nvcim_jax.types import Key

__all__ = [
    "AnswerInfo",
    "Buffer",
    "ObserveInfo",
    "State",
    "answer",
    "fit_codec",
    "init",
    "make_buffer",
    "make_starts",
    "observe",
]


class State(NamedTuple):
    """Hold a personalised memory: what is stored, where it is programmed, on which device.

    Attributes:
        store: The prompts and what finds them.
        arrays: What is programmed.
        device: The memory cells; None for exact digital memory.
    """

    store: Store
    arrays: Arrays
    device: devices.Device | None


class Buffer(NamedTuple):
    """Hold one buffer of records as arrays.

    Attributes:
        examples: Texts and answers.
        features: Features by which texts are searched (records, key tokens, width).
        centres: What they are clustered by (records, width), or twice the width with `cluster_by='record'`.
        starts: Token ids that a prompt may start from, for each record, (records, virtual tokens).
        words: Sums of embeddings that a prompt may start from; None unless `config.init` is `examples`.
        answers: Answer of each record.
    """

    examples: tuning.Examples
    features: jax.Array
    centres: jax.Array
    starts: jax.Array
    words: Words | None
    answers: tuple[str, ...]


class ObserveInfo(NamedTuple):
    """Say what became of a buffer.

    Attributes:
        clusters: Its clusters.
        representatives: Index of each cluster's representative (prompts,).
        tuned: How the prompts were tuned.
        inserted: Slots that they went to.
        codec: How the codec was trained; None without one.
    """

    clusters: selection.Clusters
    representatives: jax.Array
    tuned: tuning.Info
    inserted: Inserted
    codec: Any


class AnswerInfo(NamedTuple):
    """Say how a query was answered.

    Attributes:
        found: What the search found.
        log_probabilities: Of every label (queries, labels), nats; None where text was generated.
        state: The state with these uses counted.
    """

    found: Retrieved
    log_probabilities: jax.Array | None
    state: State


def init(key: Key, lm: LM, device: devices.Device | None = None, *, config: Config) -> State:
    """Return an empty memory, programmed.

    Args:
        key: Key of the chip.
        lm: The language model.
        device: The memory cells; None for exact digital memory.
        config: Options of the pipeline.
    """
    store = empty_store(lm.config, config)
    return State(store, _program(key, store, device, config=config), device)


_program = jax.jit(program_store, static_argnames="config")


def make_buffer(records: Sequence[Any], lm: LM, text: Text, *, config: Config) -> Buffer:
    """Turn records into arrays.

    Args:
        records: Things with `input` and `output`.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        config: Options of the pipeline.

    Raises:
        ValueError: If there is no record, or one has no answer.
    """
    if not records:
        checks.fail("records", "hold at least one record", "is empty")
    queries = make_queries([record.input for record in records], lm, text)
    look = partial(text_features, lm, queries.ids, queries.mask, config=config)
    # The answer first: it is the part that a prompt must not lose when the text is longer than the prompt.
    texts = [[*answer_ids(r.output, text), *query_ids(r.input, lm, text)] for r in records]
    starts = np.stack([np.resize(np.asarray(ids, np.int32), config.num_virtual) for ids in texts])
    return Buffer(
        make_examples(records, lm, text),
        look(),
        _grouped_by(records, look(num=1)[:, 0], lm, text, config),
        jnp.asarray(starts),
        make_words(records, lm, text) if config.init == "examples" else None,
        tuple(record.output for record in records),
    )


def _grouped_by(records: Sequence[Any], inputs: jax.Array, lm: LM, text: Text, config: Config) -> jax.Array:
    """Return what records are clustered by (records, width or twice the width)."""
    if config.cluster_by == "input":
        return inputs
    ids, mask = pad_rows([answer_ids(record.output, text) for record in records])
    answers = text_features(lm, ids, mask, config=config, num=1)[:, 0]
    parts = [a / jnp.maximum(jnp.linalg.norm(a, axis=1, keepdims=True), 1e-6) for a in (inputs, answers)]
    return jnp.concatenate(parts, axis=1)


def make_starts(
    key: Key, buffer: Buffer, chosen: Int[Array, " prompts"], weights: Float[Array, "prompts records"], lm: LM,
    *, config: Config,
) -> Float[Array, "prompts virtual width"]:  # fmt: skip
    """Return where the prompts of a buffer start.

    Args:
        key: A key; used by `config.init="vocabulary"` alone.
        buffer: The buffer.
        chosen: Record whose text each prompt starts from.
        weights: Records that each prompt is tuned on, > 0; it starts from them where `config.init` is `examples`.
        lm: The language model.
        config: Options of the pipeline.
    """
    if config.init == "examples":
        assert buffer.words is not None
        held = np.zeros((len(chosen), config.num_virtual, len(buffer.answers)), np.float32)
        for one, row in zip(held, np.asarray(weights) > 0, strict=True):
            one[:, row] = tuning.deal_examples([buffer.answers[i] for i in np.flatnonzero(row)], config.num_virtual)
        start = partial(tuning.init_examples, layout=lm.soft_tokens, size=buffer.words.size)
        return jax.vmap(start, in_axes=(None, None, 0))(buffer.words.inputs, buffer.words.answers, jnp.asarray(held))
    if config.init == "vocabulary":
        draw = partial(tuning.init_vocabulary, lm=lm, num=config.num_virtual)
        return jnp.stack([draw(jax.random.fold_in(key, i)) for i in range(len(chosen))])
    rows = buffer.starts[chosen]
    if config.init == "text":
        return models.embed(lm, rows)
    stop = lm.config.num_layers if config.feature_layers is None else config.feature_layers
    start = partial(tuning.init_activations, num=config.num_virtual, stop=stop)
    return jax.vmap(start, in_axes=(None, 0))(lm, rows)


def _anchors(buffer: Buffer, chosen: jax.Array, config: Config) -> jax.Array | None:
    """Return what an anchored prompt is held to: its representative as a query sees it."""
    if config.key != "anchored":
        return None
    every = jnp.ones(buffer.features.shape[1], bool)
    return jax.vmap(lambda f: selection.pool_tokens(f, every, config.num_virtual))(buffer.features[chosen])


def observe(
    key: Key,
    state: State,
    records: Sequence[Any],
    lm: LM,
    text: Text,
    *,
    config: Config,
    rates: tuning.Rates | None = None,
) -> tuple[State, ObserveInfo]:
    """Take in one full buffer: representatives -> prompts tuned side by side -> store -> codec -> programmed arrays.

    The codec is trained anew on all stored prompts and on this buffer's texts, so every call writes all arrays.

    Args:
        key: A key.
        state: The memory so far, from `init` or `observe`.
        records: The buffer: things with `input` and `output`. Who or what they are about is never looked at.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        config: Options of the pipeline, those of `init`.
        rates: Numbers of the tuning; the defaults of `tuning.Rates` if None.

    Returns:
        The memory with the buffer's prompts in it, and what happened.

    Raises:
        ValueError: If the buffer is empty, an answer is missing, or the store is full and refuses.

    Example: see the README; `nvcim run` calls it for every buffer of a stream.
    """
    buffer = make_buffer(records, lm, text, config=config)
    cluster_key, start_key, tune_key, codec_key, chip_key = jax.random.split(key, 5)
    chosen, clusters = selection.representative(cluster_key, buffer.centres, num=config.num_prompts)
    anchors = _anchors(buffer, chosen, config)
    member = (clusters.assignment[None, :] == jnp.arange(len(chosen))[:, None]).astype(jnp.float32)
    weights = member if config.train_on == "cluster" else jnp.ones_like(member)
    starts = make_starts(start_key, buffer, chosen, weights, lm, config=config) if anchors is None else anchors
    prompts, tuned = tuning.tune(
        tune_key,
        starts,
        lm,
        buffer.examples,
        weights,
        rates,
        options=config.tuning,
        perturb=training_noise(state.device, config),
        anchors=anchors,
    )
    found_by = buffer.features[chosen]
    if config.key == "centroid":
        found_by = jnp.einsum("pr,rtw->ptw", member / member.sum(axis=1, keepdims=True), buffer.features)
    store, inserted = insert(state.store, prompts, found_by, config=config)
    store, fitted = fit_codec(codec_key, store, buffer, inserted.slots[clusters.assignment], config=config)
    arrays = _program(chip_key, store, state.device, config=config)
    return State(store, arrays, state.device), ObserveInfo(clusters, chosen, tuned, inserted, fitted)


def fit_codec(
    key: Key, store: Store, buffer: Buffer, owner: Float[Array, " records"] | Any, *, config: Config
) -> tuple[Store, Any]:
    """Train the codec on all stored prompts and on a buffer's texts.

    Args:
        key: A key.
        store: The store.
        buffer: The texts; those of earlier buffers are represented by their representatives.
        owner: Slot of the prompt that each text belongs to (records,).
        config: `codec` and `key` say how.

    Returns:
        The store with its codec, and the info of the training; None with the identity.
    """
    if config.codec == "identity":
        return store, None
    width = store.prompts.shape[-1]
    init_key, fit_key = jax.random.split(key)
    codec = selection.codec_init(init_key, width, code=config.code)
    filled = np.flatnonzero(np.asarray(store.filled))
    queries = jnp.concatenate([buffer.features, store.features[filled]])
    if config.key != "contrastive":
        tokens = jnp.concatenate([store.prompts[filled].reshape(-1, width), queries.reshape(-1, width)])
        codec, fitted = selection.fit(fit_key, codec, tokens, config=config.codec_fit)
        return store._replace(codec=codec), fitted
    place = {int(slot): i for i, slot in enumerate(filled)}
    belongs = jnp.asarray([*(place[int(slot)] for slot in owner), *range(len(filled))], jnp.int32)
    every = jnp.ones(config.num_virtual, bool)
    pooled = jax.vmap(lambda p: selection.pool_tokens(p, every, config.search_tokens))(store.prompts[filled])
    codec, fitted = selection.fit_contrastive(
        fit_key,
        codec,
        queries,
        pooled,
        belongs,
        config=config.codec_fit,
        search=config.search,
        weights=store.scale_weights,
    )
    return store._replace(codec=codec), fitted


@jax.jit
def _rank(lm: LM, queries: Queries, prompts: jax.Array, answers: models.Candidates) -> jax.Array:
    return models.rank(lm, models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask)), answers)


_retrieve = jax.jit(retrieve, static_argnames="config")


def answer(
    key: Key,
    state: State,
    query: str | Sequence[str],
    lm: LM,
    text: Text,
    *,
    config: Config,
    labels: Sequence[str] | None = None,
    max_new_tokens: int = 16,
) -> tuple[Any, AnswerInfo]:
    """Answer queries: search on the arrays -> read back -> decode -> the language model behind the prompt found.

    Args:
        key: Key of these reads.
        state: The memory.
        query: One text, or several.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        config: Options of the pipeline, those of `init`.
        labels: The answers to choose from, by their probability; None lets the model write.
        max_new_tokens: Most tokens that it writes.

    Returns:
        The answer (of one text) or list of answers, and the info. With an empty store the model answers by itself.

    Raises:
        ValueError: If there is no text, or no label.
    """
    texts = [query] if isinstance(query, str) else list(query)
    queries = make_queries(texts, lm, text)
    found_key, text_key = jax.random.split(key)
    features = text_features(lm, queries.ids, queries.mask, config=config)
    prompts, found = _retrieve(found_key, features, state.store, state.arrays, state.device, config=config)
    if not bool(state.store.filled.any()):
        prompts = prompts[:, :0]
    else:
        uses = state.store.uses + jnp.bincount(found.slots, length=config.capacity).astype(jnp.int32)
        state = state._replace(store=state.store._replace(uses=uses))
    if labels is not None:
        answers = label_candidates(labels, lm, text)
        logs = _rank(lm, queries, prompts, answers)
        written = [labels[int(i)] for i in jnp.argmax(logs, axis=1)]
    else:
        logs, written = None, _write(text_key, queries, prompts, lm, text, max_new_tokens)
    return (written[0] if isinstance(query, str) else written), AnswerInfo(found, logs, state)


_generate = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")


def _write(key: Key, queries: Queries, prompts: jax.Array, lm: LM, text: Text, max_new_tokens: int) -> list[str]:
    """Generate the answers."""
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    tokens, number = _generate(key, lm, inputs, max_new_tokens=max_new_tokens)
    rows = [row[:n] for row, n in zip(np.asarray(tokens), np.asarray(number), strict=True)]
    return [text.decode(row).strip() for row in rows]
