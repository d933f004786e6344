"""The domain-shift protocol: a stream is observed block by block, and its test rows are asked, chip by chip.

A stream is anything with `blocks` (each with `domain` and `records`), `test` (domain -> records), `domains` and
`labels`, such as `nvcim_jax.data.stream`. Domains are used for scoring alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks, devices, pipeline, selection, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline import Preset, State, Store
from nvcim_jax.signature import checked
from nvcim_jax.study.methods import Trial
from nvcim_jax.study.mitigation import calibrated, code_importance, corrected_memory, curvature, program_selected
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import Key

__all__ = [
    "Keep",
    "Observed",
    "Questions",
    "chip_metric",
    "make_questions",
    "observe_stream",
    "retrieve_on_chip",
    "tune_one",
]


Keep = Callable[[int, Key, Callable[[], Any]], Any]
"""`keep(t, key, tune)` returns the rows of block t, tuned with the key: those of `tune()`, or what was kept of them."""


class Questions(NamedTuple):
    """Hold the test rows as arrays.

    Attributes:
        queries: The rows, as `pipeline.make_queries` makes them, with the labels to rank.
        truth: Index of the right label (queries,), int32.
        domain: Index of the domain (queries,), int32.
        counts: Queries of each domain (domains,), float32.
        domain_of_block: Domain of every block (blocks,), int32.
    """

    queries: Any
    truth: jax.Array
    domain: jax.Array
    counts: jax.Array
    domain_of_block: jax.Array


class Observed(NamedTuple):
    """Hold what one training made of a stream.

    Attributes:
        stores: The store after every block.
        calibrations: Features of each block's queries, for calibrating chips.
        curvatures: Second derivatives of the prompts stored after each block, (slots, virtual tokens, width).
        info: What `observe` said about every block.
    """

    stores: tuple[Store, ...]
    calibrations: tuple[jax.Array, ...]
    curvatures: tuple[jax.Array, ...]
    info: tuple[Any, ...]


@checked
def make_questions(
    stream: Any, lm: LM, text: Text, *, preset: Preset, domains: Sequence[str] | None = None
) -> Questions:
    """Return the test rows of a stream as arrays.

    Args:
        stream: The stream.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        preset: Everything that is chosen.
        domains: Domains to ask about; those of the buffers by default.

    Returns:
        The questions.

    Raises:
        ValueError: If the model has no tokenizer.

    Example:
        >>> from nvcim_jax import data, models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> found = make_questions(stream, lm, text, preset=Preset())
        >>> found.domain.tolist(), found.counts.tolist(), found.domain_of_block.tolist()  # 3 rows of each user
        ([0, 0, 0, 1, 1, 1], [3.0, 3.0], [0, 1])
    """
    names = list(stream.domains if domains is None else domains)
    rows = [(i, record) for i, name in enumerate(names) for record in stream.test[name]]
    labels = list(stream.labels)
    words = [record.input for _, record in rows]
    return Questions(
        queries=pipeline.make_queries(words, lm, text, config=preset.config, labels=labels),
        truth=jnp.asarray([labels.index(record.output) for _, record in rows], jnp.int32),
        domain=jnp.asarray([i for i, _ in rows], jnp.int32),
        counts=jnp.asarray([len(stream.test[name]) for name in names], jnp.float32),
        domain_of_block=jnp.asarray([names.index(block.domain) for block in stream.blocks], jnp.int32),
    )


@checked
def observe_stream(
    key: Key,
    stream: Any,
    lm: LM,
    text: Text,
    device: devices.Device | None,
    *,
    preset: Preset,
    with_curvature: bool = False,
    keep: Keep = lambda t, key, tune: tune(),
    advance: Callable[[int, str], None] = lambda done, note: None,
) -> Observed:
    """Observe all blocks of a stream, one after the other.

    Args:
        key: A key; block t uses `fold_in(key, t)`.
        stream: The stream.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        device: The memory cells whose noise the training meets, if `preset.noise` asks for it; None: none.
        preset: Everything that is chosen.
        with_curvature: Whether to measure second derivatives, which SWV needs; they are zero otherwise.
        keep: `keep(t, key, tune)` returns what `tune()` does, rows tuned on block t, or what was kept of it.
        advance: Called after every block.

    Returns:
        The stores, and what mitigation needs to know.

    Raises:
        ValueError: If the store is full and refuses, or the model has no tokenizer.

    Example:
        >>> from nvcim_jax import data, models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> preset = Preset(config=pipeline.Config(num_virtual=2, num_prompts=1, capacity=2, codec="identity"))
        >>> see = lambda key: observe_stream(key, stream, lm, text, None, preset=preset).stores
        >>> [store.prompts.shape for store in jax.eval_shape(see, jax.random.key(1))]  # after each of 2 blocks
        [(2, 2, 32), (2, 2, 32)]
    """
    config = preset.config
    init_key, probe_key = jax.random.split(jax.random.fold_in(key, len(stream.blocks)))
    # Nothing is programmed meanwhile: chips are made when they are asked, one for each instance.
    parts: Any = preset.parts(device) | {"memory": pipeline.exact_memory()}
    state = pipeline.init(init_key, lm, config=config)
    stores, calibrations, curvatures, infos = [], [], [], []
    diagonal = jnp.zeros_like(state.store.prompts)
    for t, block in enumerate(stream.blocks):
        buffer = pipeline.make_buffer(block.records, lm, text, config=config)
        own = jax.random.fold_in(key, t)
        tune = partial(pipeline.tune_rows, jax.random.clone(own), buffer, lm, config=config, **parts)
        tuned = keep(t, jax.random.clone(own), tune)
        state, info = pipeline.observe(own, state, buffer, lm, config=config, tuned=tuned, **parts)
        if with_curvature:
            found = _curvature(jax.random.fold_in(probe_key, t), state, buffer, info, lm, config.adapter())
            diagonal = diagonal.at[info.inserted.slots].set(found)
        stores.append(state.store)
        calibrations.append(buffer.features)
        curvatures.append(diagonal)
        infos.append(info)
        advance(1, f"block {t + 1}")
    return Observed(tuple(stores), tuple(calibrations), tuple(curvatures), tuple(infos))


def _curvature(key: Key, state: State, buffer: Any, info: Any, lm: LM, adapter: Adapter) -> jax.Array:
    """Measure the second derivatives of a buffer's prompts on the examples of their clusters."""
    slots = info.inserted.slots
    member = (info.clusters.assignment[None, :] == jnp.arange(len(slots))[:, None]).astype(jnp.float32)
    return curvature(key, state.store.prompts[slots], lm, buffer.examples, member, adapter=adapter)


@checked
def tune_one(
    key: Key,
    stream: Any,
    lm: LM,
    text: Text,
    *,
    preset: Preset,
    kind: str,
    blocks: Sequence[int] | None = None,
    keep: Keep = lambda t, key, tune: tune(),
) -> Iterator[jax.Array]:
    """Return one prompt, tuned for a whole stream, as its rows after every block, (virtual tokens, width).

    It sees as many examples a buffer as the prompts of a buffer see together: its batch is as many times as large.

    Args:
        key: A key.
        stream: The stream.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        preset: Everything that is chosen.
        kind: `latest`: from scratch on the newest buffer; `sequential`: on the newest, from where it stood; `joint`:
            from scratch on all buffers so far, which no memory-bound device could keep.
        blocks: Blocks after which it is yielded, in order; None: all. What they do not need is not tuned.
        keep: `keep(t, key, tune)` returns what `tune()` does, the prompt tuned after block t, or what was kept of it.

    Yields:
        The rows after each block that is asked for.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> from nvcim_jax import data, models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> preset = Preset(config=pipeline.Config(num_virtual=2))
        >>> see = lambda key: [*tune_one(key, stream, lm, text, preset=preset, kind="latest")]
        >>> [rows.shape for rows in jax.eval_shape(see, jax.random.key(1))]  # after each of 2 blocks
        [(2, 32), (2, 32)]
    """
    checks.choice("kind", kind, ("latest", "sequential", "joint"))
    config, adapter, prompt, seen = preset.config, preset.config.adapter(), None, 0
    every = [record for block in stream.blocks for record in block.records]
    options = config.tuning
    if options.batch is not None:
        num = config.num_prompts or selection.num_representatives(len(stream.blocks[0].records))
        options = dataclasses.replace(options, batch=options.batch * num)
    held: Any = {name: part for name, part in preset.parts(None).items() if name in ("optimiser", "project", "penalty")}
    asked = set(range(len(stream.blocks)) if blocks is None else blocks)
    for t, block in enumerate(stream.blocks):
        seen += len(block.records)
        if t not in asked and (kind != "sequential" or t > max(asked, default=-1)):
            continue
        # Joint tuning keeps one table of all records and weighs those not seen yet with 0: one compilation.
        records = every if kind == "joint" else block.records
        buffer = pipeline.make_buffer(records, lm, text, config=config)
        weights = (jnp.arange(len(records)) < (seen if kind == "joint" else len(block.records))).astype(jnp.float32)
        own = jax.random.fold_in(key, t)
        start_key, tune_key = jax.random.split(own)
        if prompt is None or kind != "sequential":
            # Of examples that count alike, a start takes the text of the first.
            prompt = adapter.init(jax.random.fold_in(start_key, 0), lm, buffer.examples, weights)
        update = partial(tuning.tune, adapter=adapter, options=options, **held)
        tune = partial(update, jax.random.fold_in(tune_key, 0), prompt, lm, buffer.examples, weights)
        prompt = keep(t, jax.random.clone(own), lambda tune=tune: tune()[0])
        if t in asked:
            yield adapter.rows(prompt)


def _route(key: Key, scores: jax.Array, questions: Questions, store: Store, route: str) -> jax.Array:
    """Return the slot of every query."""
    owner = jnp.take(questions.domain_of_block, jnp.maximum(store.block, 0))
    if route == "oracle":
        right = (owner[None, :] == questions.domain[:, None]) & store.filled[None, :]
        # A query whose domain was never stored is left to the search.
        scores = jnp.where(right | ~right.any(axis=1, keepdims=True), scores, -jnp.inf)
    elif route == "random":
        scores = jnp.where(store.filled[None, :], jax.random.uniform(key, scores.shape), -jnp.inf)
    return jnp.argmax(scores, axis=1)


@checked
def retrieve_on_chip(
    key: Key,
    trial: Trial,
    store: Store,
    diagonal: jax.Array,
    calibration: jax.Array,
    questions: Questions,
    device: devices.Device | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the slot of every query and all prompts as one chip gives them back.

    The programming of the chip and the read of its prompts draw from keys of their own, so two methods with the same
    store and mitigation read the same prompts under the same key.

    Args:
        key: Key of the chip.
        trial: What is done with the chip.
        store: What is to be held.
        diagonal: Second derivatives of the stored prompts, for `swv`.
        calibration: Features of known queries, for `cxdnn` and `correctnet`.
        questions: The test rows; their texts are not looked at.
        device: The memory cells; None for exact memory, where nothing is mitigated.

    Returns:
        Slots (queries,) and prompts (slots, virtual tokens, width).

    Example:
        >>> from nvcim_jax import models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> config = pipeline.Config(capacity=2, num_virtual=1, codec="identity", keys="prompt", key_unit=False)
        >>> config = config.changed(search={"measure": "mips"})
        >>> store = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config).store
        >>> prompts = jnp.stack([jnp.ones((1, 32)), -jnp.ones((1, 32))])
        >>> store, none = store._replace(prompts=prompts, filled=jnp.ones(2, bool)), jnp.zeros(1, jnp.int32)
        >>> queries = pipeline.text.Queries(none, none, -jnp.ones((1, 1, 32)))
        >>> asked = Questions(queries, none, none, none, none)
        >>> own = Trial(config=config, arrays=pipeline.Preset().arrays)
        >>> slots, found = retrieve_on_chip(jax.random.key(2), own, store, none, none, asked, None)
        >>> slots.tolist(), bool((found == prompts).all())  # exact memory: the prompt that is like the query
        ([1], True)
    """
    chip_key, search_key, read_key, calibration_key, route_key = jax.random.split(key, 5)
    config, memory = trial.config, pipeline.exact_memory()
    if trial.weights is not None:
        store = store._replace(scale_weights=jnp.asarray(trial.weights, jnp.float32))
    if device is not None:
        memory = pipeline.crossbar_memory(device, trial.arrays)
    if trial.mitigation == "swv" and device is not None:
        importance = code_importance(store, diagonal)
        arrays = program_selected(chip_key, store, importance, device, config=config, arrays=trial.arrays)
    else:
        arrays = pipeline.program_store(chip_key, store, memory, config=config)
    if trial.mitigation in ("cxdnn", "correctnet") and device is not None:
        affine = trial.mitigation == "correctnet"
        arrays = calibrated(calibration_key, calibration, store, arrays, memory, config=config, affine=affine)
        memory = corrected_memory(memory)
    scores = pipeline.search(search_key, questions.queries.features, store, arrays, memory, config=config)
    slots = _route(route_key, scores, questions, store, trial.route)
    return slots, pipeline.read_prompts(read_key, store, arrays, memory)


@checked
def chip_metric(
    key: Key,
    trial: Trial,
    lm: LM,
    store: Store,
    diagonal: jax.Array,
    calibration: jax.Array,
    questions: Questions,
    device: devices.Device | None,
) -> dict[str, jax.Array]:
    """Return accuracy and hit rate of each domain on one chip: a metric for `montecarlo.run`.

    `montecarlo.run(study.chip_metric, key, 100, args=(trial, lm, store, ...))`. The same key gives the same chip
    whatever the method, so methods can be compared in pairs.

    Args:
        key: Key of the chip.
        trial: What is done with the chip, see `trial`.
        lm: The language model.
        store: What is to be held.
        diagonal: As for SWV, see `curvature`; zeros where no method needs it.
        calibration: Features of known queries.
        questions: The test rows.
        device: The memory cells; None for exact memory.

    Returns:
        `accuracy` and `hit`, each (domains,), shares.

    Example:
        >>> from nvcim_jax import data, models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> preset = Preset(config=pipeline.Config(num_virtual=2, capacity=2, codec="identity"))
        >>> questions = make_questions(stream, lm, text, preset=preset)
        >>> store = pipeline.init(jax.random.key(1), lm, config=preset.config).store
        >>> own = Trial(config=preset.config, arrays=preset.arrays)
        >>> args = (own, lm, store, store.prompts, store.features, questions)
        >>> found = jax.eval_shape(lambda key: chip_metric(key, *args, devices.get("FeFET3")), jax.random.key(2))
        >>> {name: share.shape for name, share in found.items()}  # 2 users
        {'accuracy': (2,), 'hit': (2,)}
    """
    slots, prompts = retrieve_on_chip(key, trial, store, diagonal, calibration, questions, device)
    logs = pipeline.rank(prompts[slots], questions.queries, lm, adapter=trial.config.adapter())
    right = jnp.argmax(logs, axis=1) == questions.truth
    hit = jnp.take(questions.domain_of_block, jnp.maximum(store.block[slots], 0)) == questions.domain
    return {"accuracy": _by_domain(right, questions), "hit": _by_domain(hit, questions)}


def _by_domain(values: jax.Array, questions: Questions) -> jax.Array:
    """Return the mean over the queries of each domain (domains,)."""
    total = jnp.zeros_like(questions.counts).at[questions.domain].add(values.astype(jnp.float32))
    return total / questions.counts
