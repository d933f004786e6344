"""The domain-shift protocol: a stream goes in, and every method's accuracy, chip by chip, comes out.

A stream is anything with `blocks` (each with `domain` and `records`), `test` (domain -> records), `domains` and
`labels`, such as `nvcim_jax.data.stream`. Domains are used for scoring alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks, devices, models, selection, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import program_store, read_prompts, search
from nvcim_jax.pipeline.stages import Buffer, State, init, make_buffer, make_starts, observe
from nvcim_jax.pipeline.store import Store
from nvcim_jax.pipeline.text import label_candidates, make_queries, text_features
from nvcim_jax.study.mitigation import MITIGATIONS, calibrated, code_importance, curvature, program_selected
from nvcim_jax.types import Key

__all__ = [
    "METHODS",
    "Method",
    "Observed",
    "Questions",
    "chip_metric",
    "hits",
    "make_questions",
    "method_config",
    "observe_stream",
    "ranked_right",
    "retrieve_on_chip",
    "tune_one",
]

ROUTES = ("search", "oracle", "random")
TRAININGS = ("plain", "noise", "lipschitz")


@checks.frozen_config
class Method:
    """Say what one row of a table does.

    Attributes:
        training: How prompts are tuned: `plain`, with the device's `noise`, or with a `lipschitz` penalty.
        measure: What the search computes, see `selection.SearchConfig`.
        mitigation: What is done about the noise of the chip, see `MITIGATIONS`.
        route: Who chooses the prompt: the `search`; an `oracle` that knows the domain and searches among its prompts;
            or chance (`random`).
        axis: What the scaled search pools, see `selection.SearchConfig`; None: as the options of the pipeline say.
        storage: How its scales are stored; None: likewise.
        weights: Weights of its scales, one each; None: those of the store.
    """

    training: str = "plain"
    measure: str = "mips"
    mitigation: str = "none"
    route: str = "search"
    axis: str | None = None
    storage: str | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        checks.choice("training", self.training, TRAININGS)
        checks.choice("measure", self.measure, ("mips", "cosine", "ssa"))
        checks.choice("mitigation", self.mitigation, MITIGATIONS)
        checks.choice("route", self.route, ROUTES)


METHODS = {
    "SWV": Method(mitigation="swv"),
    "CxDNN": Method(mitigation="cxdnn"),
    "CorrectNet": Method(training="lipschitz", mitigation="correctnet"),
    "No-Miti(MIPS)": Method(),
    "NVP*(MIPS)": Method(training="noise"),
    "NVCiM-PT": Method(training="noise", measure="ssa"),
    "oracle route": Method(training="noise", measure="ssa", route="oracle"),
    "random route": Method(training="noise", measure="ssa", route="random"),
}
"""The rows of the paper's main table [S, readings I], and two bounds on what any search can do."""


class Questions(NamedTuple):
    """Hold the test rows as arrays.

    Attributes:
        ids: Tokens (queries, tokens), padded on the left.
        mask: Which are real.
        features: Features by which they are searched (queries, key tokens, width).
        truth: Index of the right label (queries,), int32.
        domain: Index of the domain (queries,), int32.
        counts: Queries of each domain (domains,), float32.
        answers: The labels to rank.
        domain_of_block: Domain of every block (blocks,), int32.
    """

    ids: jax.Array
    mask: jax.Array
    features: jax.Array
    truth: jax.Array
    domain: jax.Array
    counts: jax.Array
    answers: models.Candidates
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

    @property
    def calibration(self) -> jax.Array:
        """Features of the last buffer's queries."""
        return self.calibrations[-1]

    @property
    def curvature(self) -> jax.Array:
        """Second derivatives after the last block."""
        return self.curvatures[-1]


def method_config(config: Config, method: Method) -> Config:
    """Return the options of the pipeline for one method: its search, and its noise in training."""
    noise = config.noise if method.training == "noise" else "none"
    search = {"measure": method.measure, "axis": method.axis, "storage": method.storage}
    found = dataclasses.replace(config.search, **{name: value for name, value in search.items() if value is not None})
    if method.weights is not None:
        checks.shape("weights", method.weights, (len(found.scales),), "(scales,)")
    return dataclasses.replace(config, noise=noise, search=found)


def make_questions(
    stream: Any, lm: LM, text: Text, *, config: Config, domains: Sequence[str] | None = None
) -> Questions:
    """Turn the test rows of a stream into arrays.

    Args:
        stream: The stream.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        config: Options of the pipeline.
        domains: Domains to ask about; those of the buffers by default.
    """
    names = list(stream.domains if domains is None else domains)
    rows = [(i, record) for i, name in enumerate(names) for record in stream.test[name]]
    labels = list(stream.labels)
    queries = make_queries([record.input for _, record in rows], lm, text)
    return Questions(
        ids=queries.ids,
        mask=queries.mask,
        features=text_features(lm, queries.ids, queries.mask, config=config),
        truth=jnp.asarray([labels.index(record.output) for _, record in rows], jnp.int32),
        domain=jnp.asarray([i for i, _ in rows], jnp.int32),
        counts=jnp.asarray([len(stream.test[name]) for name in names], jnp.float32),
        answers=label_candidates(labels, lm, text),
        domain_of_block=jnp.asarray([names.index(block.domain) for block in stream.blocks], jnp.int32),
    )


def observe_stream(
    key: Key,
    stream: Any,
    lm: LM,
    text: Text,
    device: devices.Device | None,
    *,
    config: Config,
    rates: tuning.Rates,
    with_curvature: bool = False,
    advance: Callable[[int, str], None] = lambda done, note: None,
) -> Observed:
    """Observe all blocks of a stream, one after the other.

    Args:
        key: A key; block t uses `fold_in(key, t)`.
        stream: The stream.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        device: The memory cells whose noise the training meets, if `config.noise` asks for it.
        config: Options of the pipeline.
        rates: Numbers of the tuning.
        with_curvature: Whether to measure second derivatives, which SWV needs; they are zero otherwise.
        advance: Called after every block.

    Returns:
        The stores, and what mitigation needs to know.
    """
    # Nothing is programmed while learning: chips are made when they are asked, one for each instance.
    init_key, probe_key = jax.random.split(jax.random.fold_in(key, len(stream.blocks)))
    state = init(init_key, lm, None, config=config)._replace(device=device)
    stores, calibrations, curvatures, infos = [], [], [], []
    diagonal = jnp.zeros_like(state.store.prompts)
    for t, block in enumerate(stream.blocks):
        state, info = observe(jax.random.fold_in(key, t), state, block.records, lm, text, config=config, rates=rates)
        buffer = make_buffer(block.records, lm, text, config=config)
        if with_curvature:
            diagonal = _add_curvature(jax.random.fold_in(probe_key, t), diagonal, state, buffer, info, lm)
        stores.append(state.store)
        calibrations.append(buffer.features)
        curvatures.append(diagonal)
        infos.append(info)
        advance(1, f"block {t + 1}")
    return Observed(tuple(stores), tuple(calibrations), tuple(curvatures), tuple(infos))


def _add_curvature(key: Key, diagonal: jax.Array, state: State, buffer: Buffer, info: Any, lm: LM) -> jax.Array:
    """Measure the second derivatives of a buffer's prompts on the examples of their clusters."""
    slots = info.inserted.slots
    member = (info.clusters.assignment[None, :] == jnp.arange(len(slots))[:, None]).astype(jnp.float32)
    found = curvature(key, state.store.prompts[slots], lm, buffer.examples, member)
    return diagonal.at[slots].set(found)


def tune_one(
    key: Key, stream: Any, lm: LM, text: Text, *, config: Config, rates: tuning.Rates, kind: str
) -> Iterator[jax.Array]:
    """Tune one prompt for a whole stream, and yield it after every block, (1, virtual tokens, width).

    It sees as many examples a buffer as the prompts of a buffer see together: its batch is as many times as large.

    Args:
        key: A key.
        stream: The stream.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        config: Options of the pipeline.
        rates: Numbers of the tuning.
        kind: `latest`: from scratch on the newest buffer; `sequential`: on the newest, from where it stood; `joint`:
            from scratch on all buffers so far, which no memory-bound device could keep.

    Raises:
        ValueError: If there is no such kind.
    """
    checks.choice("kind", kind, ("latest", "sequential", "joint"))
    prompt = None
    every = [record for block in stream.blocks for record in block.records]
    seen = 0
    options = config.tuning
    if options.batch is not None:
        num = config.num_prompts or selection.num_representatives(len(stream.blocks[0].records))
        options = dataclasses.replace(options, batch=options.batch * num)
    for t, block in enumerate(stream.blocks):
        seen += len(block.records)
        # Joint tuning keeps one table of all records and weighs those not seen yet with 0: one compilation.
        buffer = make_buffer(every if kind == "joint" else block.records, lm, text, config=config)
        known = jnp.arange(len(buffer.starts)) < (seen if kind == "joint" else len(block.records))
        weights = known[None, :].astype(jnp.float32)
        start_key, tune_key = jax.random.split(jax.random.fold_in(key, t))
        if prompt is None or kind != "sequential":
            prompt = make_starts(start_key, buffer, jnp.zeros(1, jnp.int32), weights, lm, config=config)
        prompt, _ = tuning.tune(
            tune_key,
            prompt,
            lm,
            buffer.examples,
            weights,
            rates,
            options=options,
        )
        yield prompt


def _route(key: Key, scores: jax.Array, asked: Questions, store: Store, route: str) -> jax.Array:
    """Return the slot of every query."""
    owner = jnp.take(asked.domain_of_block, jnp.maximum(store.block, 0))
    if route == "oracle":
        right = (owner[None, :] == asked.domain[:, None]) & store.filled[None, :]
        # A query whose domain was never stored is left to the search.
        scores = jnp.where(right | ~right.any(axis=1, keepdims=True), scores, -jnp.inf)
    elif route == "random":
        scores = jnp.where(store.filled[None, :], jax.random.uniform(key, scores.shape), -jnp.inf)
    return jnp.argmax(scores, axis=1)


def retrieve_on_chip(
    key: Key,
    store: Store,
    diagonal: jax.Array,
    calibration: jax.Array,
    asked: Questions,
    device: devices.Device | None,
    *,
    config: Config,
    method: Method,
) -> tuple[jax.Array, jax.Array]:
    """Return the slot of every query and all prompts as one chip gives them back.

    The programming of the chip and the read of its prompts draw from keys of their own, so two methods with the same
    store and mitigation read the same prompts under the same key.

    Args:
        key: Key of the chip.
        store: What is to be held.
        diagonal: Second derivatives of the stored prompts, for `swv`.
        calibration: Features of known queries, for `cxdnn` and `correctnet`.
        asked: The test rows; their texts are not looked at.
        device: The memory cells; None for exact memory.
        config: Options of the pipeline, those of the method.
        method: What is done with the chip.

    Returns:
        Slots (queries,) and prompts (slots, virtual tokens, width).
    """
    chip_key, search_key, read_key, calibration_key, route_key = jax.random.split(key, 5)
    if method.weights is not None:
        store = store._replace(scale_weights=jnp.asarray(method.weights, jnp.float32))
    if method.mitigation == "swv" and device is not None:
        arrays = program_selected(chip_key, store, code_importance(store, diagonal), device, config=config)
    else:
        arrays = program_store(chip_key, store, device, config=config)
    if method.mitigation in ("cxdnn", "correctnet") and device is not None:
        arrays = calibrated(calibration_key, calibration, store, arrays, device, config=config, kind=method.mitigation)
    scores = search(search_key, asked.features, store, arrays, device, config=config)
    slots = _route(route_key, scores, asked, store, method.route)
    return slots, read_prompts(read_key, store, arrays, device, config=config)


@functools.cache
def chip_metric(config: Config, method: Method) -> Callable[..., dict[str, jax.Array]]:
    """Return the function of one chip for `montecarlo.run`: accuracy and hit rate of each domain.

    The function is `metric(key, lm, store, curvature, calibration, asked, device)`; `device` None is
    exact memory. The same key gives the same chip whatever the method, so methods can be compared in pairs.

    Args:
        config: Options of the pipeline, those of the method (`method_config`).
        method: What is done with the chip.

    Returns:
        The same function object for the same arguments, so that nothing is compiled twice.
    """

    def metric(
        key: Key, lm: LM, store: Store, diagonal: Any, calibration: Any, asked: Questions, device: Any
    ) -> dict[str, jax.Array]:
        slots, prompts = retrieve_on_chip(
            key, store, diagonal, calibration, asked, device, config=config, method=method
        )
        right = ranked_right(lm, prompts[slots], asked)
        return {"accuracy": _by_domain(right, asked), "hit": _by_domain(hits(slots, store, asked), asked)}

    return metric


def hits(slots: jax.Array, store: Store, asked: Questions) -> jax.Array:
    """Return whether the slot found for each query belongs to a block of the query's domain (queries,), bool."""
    return jnp.take(asked.domain_of_block, jnp.maximum(store.block[slots], 0)) == asked.domain


def ranked_right(lm: LM, prompts: jax.Array, asked: Questions) -> jax.Array:
    """Return whether the right label is ranked first behind each query's prompt."""
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, asked.ids), asked.mask))
    logs = models.rank(lm, inputs, asked.answers)
    return jnp.argmax(logs, axis=1) == asked.truth


def _by_domain(values: jax.Array, asked: Questions) -> jax.Array:
    """Return the mean over the queries of each domain (domains,)."""
    total = jnp.zeros_like(asked.counts).at[asked.domain].add(values.astype(jnp.float32))
    return total / asked.counts
