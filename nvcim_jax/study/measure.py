"""Whole tables: every method on every stream and device, as flat records of accuracy, chip by chip.

What is the same for several methods is made once: a training of a stream, the chips of a store, the ranking of the
labels behind one prompt that one chip gave back. Which methods are measured together, and whether a study was
interrupted, changes no record.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import devices, models, montecarlo, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline.config import Config, crossbar_for
from nvcim_jax.pipeline.objective import Batch, EndToEnd, train, trainable, with_trained
from nvcim_jax.pipeline.stages import make_buffer
from nvcim_jax.pipeline.store import Store
from nvcim_jax.study.nearest_text import nearest_text
from nvcim_jax.study.plan import (
    DEFAULT_BASELINES,
    END_TO_END,
    SEARCHED,
    Settings,
    Unit,
    check,
    trainings,
    units,
)
from nvcim_jax.study.protocol import (
    METHODS,
    Method,
    Questions,
    make_questions,
    method_config,
    observe_stream,
    retrieve_on_chip,
    tune_one,
)
from nvcim_jax.types import Key

__all__ = ["LIPSCHITZ", "measure"]

LIPSCHITZ = 0.01
"""Weight of the Lipschitz penalty for CorrectNet where the rates have none: this library's choice [I]."""

UNSEEN = ("ids", "mask", "answers")
"""Fields of the test rows that a chip does not see."""

_CHIPS = 64  # chips whose prompts are held at a time
_ROWS = 32  # queries that are ranked in one call, whatever the method: one compilation, and no row depends on others

Record = dict[str, Any]
Advance = Callable[[int, str], None]


class _Bench(NamedTuple):
    """Hold one stream while it is measured; `made` keeps what several methods share."""

    key: Key
    stream: Any
    lm: LM
    text: Text
    asked: Questions
    names: tuple[str, ...]
    settings: Settings
    made: dict[Any, Any]
    advance: Advance


def measure(
    key: Key,
    streams: Sequence[Any],
    lm: LM,
    text: Text,
    device_list: Sequence[devices.Device],
    *,
    config: Config,
    rates: tuning.Rates,
    methods: Mapping[str, Method] = METHODS,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    num_instances: int = 10,
    every_block: bool = False,
    end_to_end: EndToEnd | None = None,
    end_to_end_rates: tuning.Rates | None = None,
    digital: bool = True,
    train_device: devices.Device | None = None,
    skip: Collection[Unit] = (),
    advance: Advance = lambda done, note: None,
) -> Iterator[Record]:
    """Yield one record for each stream, device, method, block, chip and domain.

    All methods of a stream meet the same chips, key by key, so they can be compared in pairs; a stream's records do
    not depend on which other streams, devices or methods are measured. A record is a flat dictionary:
    `kind`, `stream` (seed), `device`, `sigma`, `trained_for`, `method` (see `Unit`), `block`, `current` (its domain),
    `instance` (chip), `domain`, `role` (`current`, `previous`, `later` or `unseen`), `queries`, `accuracy`, and `hit`,
    the share of queries that found a prompt (or text) of their own domain: None where nothing is searched, or nothing
    could be found.

    Args:
        key: Key of the study; each stream folds in its seed.
        streams: Streams with answers to choose from, such as `nvcim_jax.data.stream`.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        device_list: Devices to measure on; the bits of a cell are cut to each one's levels.
        config: Options of the pipeline.
        rates: Numbers of the tuning; `lipschitz` is used by methods with that training alone (`LIPSCHITZ` if 0).
        methods: Name -> method.
        baselines: Names out of `BASELINES`.
        num_instances: Chips of a device.
        every_block: Whether to measure after every block, or after the last alone.
        end_to_end: Options of joint training through the noisy pipeline, a row of its own; None leaves it out.
        end_to_end_rates: Its numbers; a tenth of the learning rate of `rates` by default.
        digital: Whether to measure methods in exact memory, too (device "digital").
        train_device: Device whose noise noise-aware training meets; None: the one that is measured on.
        skip: Units that are not measured.
        advance: Called as `advance(1, note)` for each unit finished, and `advance(0, note)` before a training.

    Yields:
        The records, unit by unit in the order of `plan`.

    Raises:
        ValueError: If an argument is wrong.
    """
    slower = rates.replace(learning_rate=0.1 * rates.learning_rate) if end_to_end_rates is None else end_to_end_rates  # type: ignore[attr-defined]  # made by flax
    options = (config, rates, methods, tuple(baselines), num_instances, every_block, end_to_end, slower)
    settings = Settings(*options, digital, train_device)
    check(streams, device_list, settings)
    for stream in streams:
        wanted = {u: where for u, where in units(stream, device_list, settings).items() if u not in skip}
        if not wanted:
            continue
        bench = _bench(key, stream, lm, text, settings, advance)
        for unit, (device, trained_on) in wanted.items():
            if unit.method in settings.baselines:
                yield from _baseline(bench, unit)
            else:
                yield from _method(bench, unit, device, trained_on)
            advance(1, f"stream {unit.stream}: {unit.method}, {unit.device} {unit.sigma:g}")


def _bench(key: Key, stream: Any, lm: LM, text: Text, settings: Settings, advance: Advance) -> _Bench:
    unseen = getattr(stream, "unseen", None)
    names = (*stream.domains, *((unseen,) if unseen is not None else ()))
    asked = make_questions(stream, lm, text, config=settings.config, domains=names)
    own = jax.random.fold_in(key, int(getattr(stream, "seed", 0)))
    return _Bench(own, stream, lm, text, asked, names, settings, {}, advance)


def _keys(bench: _Bench) -> tuple[Key, Key, Key, Key]:
    """Return the keys of a stream: learning, chips, joint training, baselines."""
    if "keys" not in bench.made:
        bench.made["keys"] = tuple(jax.random.split(bench.key, 4))
    return tuple(jax.random.clone(key) for key in bench.made["keys"])  # type: ignore[return-value]


def _blocks(bench: _Bench) -> range:
    last = len(bench.stream.blocks)
    return range(0 if bench.settings.every_block else last - 1, last)


def _role(stream: Any, block: int, domain: str) -> str:
    if domain == getattr(stream, "unseen", None):
        return "unseen"
    if domain == stream.blocks[block].domain:
        return "current"
    return "previous" if domain in [b.domain for b in stream.blocks[:block]] else "later"


def _records(bench: _Bench, unit: Unit, block: int, right: np.ndarray, hit: np.ndarray | None) -> Iterator[Record]:
    """Yield the records of one block from what was right and hit, (instances, queries) each."""
    domain = np.asarray(bench.asked.domain)
    for instance in range(len(right)):
        for i, name in enumerate(bench.names):
            own, role = domain == i, _role(bench.stream, block, name)
            found = None if hit is None or role in ("later", "unseen") else float(hit[instance, own].mean())
            yield {
                **unit._asdict(),
                "block": block,
                "current": bench.stream.blocks[block].domain,
                "instance": instance,
                "domain": name,
                "role": role,
                "queries": int(own.sum()),
                "accuracy": float(right[instance, own].mean()),
                "hit": found,
            }


@jax.jit
def _best(lm: LM, prompts: jax.Array, ids: jax.Array, mask: jax.Array, answers: models.Candidates) -> jax.Array:
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, ids), mask))
    return jnp.argmax(models.rank(lm, inputs, answers), axis=1)


def _right(bench: _Bench, prompts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return whether the right label is ranked first, for rows of a prompt and the number of a query each."""
    ids, mask, truth = (np.asarray(a) for a in (bench.asked.ids, bench.asked.mask, bench.asked.truth))
    found = []
    for start in range(0, len(queries), _ROWS):
        rows = np.resize(np.arange(start, min(start + _ROWS, len(queries))), _ROWS)
        which = queries[rows]
        texts = (jnp.asarray(prompts[rows]), jnp.asarray(ids[which]), jnp.asarray(mask[which]))
        best = _best(bench.lm, *texts, bench.asked.answers)
        found.append(np.asarray(best) == truth[which])
    return np.concatenate(found)[: len(queries)]


def _baseline(bench: _Bench, unit: Unit) -> Iterator[Record]:
    """Yield the records of a method without a memory."""
    every = np.arange(len(bench.asked.ids))
    if unit.method.startswith("1-NN"):
        for block in _blocks(bench):
            right, hit = _neighbour(bench, block, unit.method == "1-NN own domain")
            yield from _records(bench, unit, block, right[None], hit[None])
        return
    if unit.method == "frozen":
        right = _right(bench, np.zeros((len(every), 0, bench.lm.config.width), np.float32), every)
        for block in _blocks(bench):
            yield from _records(bench, unit, block, right[None], None)
        return
    bench.advance(0, f"stream {unit.stream}: tuning one prompt, {unit.method}")
    key = _keys(bench)[3]
    config, rates = bench.settings.config, bench.settings.rates.replace(lipschitz=0.0)  # type: ignore[attr-defined]
    tuned = tune_one(key, bench.stream, bench.lm, bench.text, config=config, rates=rates, kind=unit.method)
    for block, prompt in enumerate(tuned):
        if block in _blocks(bench):
            right = _right(bench, np.repeat(np.asarray(prompt), len(every), axis=0), every)
            yield from _records(bench, unit, block, right[None], None)


def _neighbour(bench: _Bench, block: int, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the nearest text's answer is right, and whether that text came in a block of the right domain."""
    seen = [(b.domain, record) for b in bench.stream.blocks[: block + 1] for record in b.records]
    right, hit = [], []
    for name in bench.names:
        rows = list(bench.stream.test[name])
        stored = [row for row in seen if row[0] == name] if own else seen
        stored = stored or seen
        # The same part of a text that the language model sees.
        kept = bench.text.kept
        found = nearest_text([kept(record.input) for _, record in stored], [kept(row.input) for row in rows])
        right += [stored[i][1].output == row.output for i, row in zip(found, rows, strict=True)]
        hit += [stored[i][0] == name for i in found]
    return np.asarray(right), np.asarray(hit)


def _fitted(config: Config, device: devices.Device | None) -> Config:
    levels = None if device is None else device.num_levels
    return dataclasses.replace(config, arrays=crossbar_for(levels, config.arrays))


def _stores(
    bench: _Bench, unit: Unit, method: Method, trained_on: devices.Device
) -> tuple[Any, tuple[Store, ...], tuple[Any, ...]]:
    """Return a name for the training, the stores after every block, and their second derivatives."""
    settings = bench.settings
    # A codec trained contrastively knows the search; every other store serves any search.
    searched = method if settings.config.key == "contrastive" else Method(measure=settings.config.search.measure)
    name = (method.training, unit.trained_for, searched.measure, searched.axis, searched.storage)
    if name not in bench.made:
        bench.advance(0, f"stream {unit.stream}: training {method.training} {unit.trained_for}".rstrip())
        noisy = method.training == "noise"
        config = _fitted(settings.config, trained_on) if noisy else settings.config
        wanted = float(settings.rates.lipschitz) or LIPSCHITZ
        bench.made[name] = observe_stream(
            _keys(bench)[0],
            bench.stream,
            bench.lm,
            bench.text,
            trained_on if noisy else None,
            config=method_config(config, dataclasses.replace(searched, training=method.training, weights=None)),
            rates=settings.rates.replace(lipschitz=wanted if method.training == "lipschitz" else 0.0),  # type: ignore[attr-defined]
            with_curvature=any(
                m.mitigation == "swv" and m.training == method.training for m in settings.methods.values()
            ),
        )
    learned = bench.made[name]
    if unit.method != END_TO_END:
        return name, learned.stores, learned.curvatures
    joint = (END_TO_END, unit.trained_for)
    if joint not in bench.made:
        bench.made[joint] = _jointly(bench, unit, learned.stores, trained_on)
    return joint, bench.made[joint], learned.curvatures


def _jointly(bench: _Bench, unit: Unit, stores: tuple[Store, ...], trained_on: devices.Device) -> tuple[Store, ...]:
    """Train prompts, codec and scale weights through the noisy pipeline, on all records that came so far."""
    bench.advance(0, f"stream {unit.stream}: training end to end, {unit.trained_for}")
    settings = bench.settings
    assert settings.end_to_end is not None
    config = dataclasses.replace(method_config(_fitted(settings.config, trained_on), SEARCHED), pick="straight_through")
    every = [record for block in bench.stream.blocks for record in block.records]
    buffer = make_buffer(every, bench.lm, bench.text, config=config)
    sizes = np.cumsum([len(block.records) for block in bench.stream.blocks])
    key, trained = _keys(bench)[2], list(stores)
    for block in _blocks(bench):
        # Records that have not come yet weigh nothing: one compilation for all blocks.
        weights = (jnp.arange(len(every)) < int(sizes[block])).astype(jnp.float32)
        batch = Batch(buffer.examples, buffer.features, stores[block], weights)
        changed, _ = train(
            jax.random.fold_in(key, block),
            trainable(stores[block]),
            batch,
            bench.lm,
            trained_on,
            config=config,
            options=settings.end_to_end,
            rates=settings.end_to_end_rates,
        )
        trained[block] = with_trained(stores[block], changed)
    return tuple(trained)


@functools.cache
def _on_chip(config: Config, method: Method) -> Callable[..., dict[str, jax.Array]]:
    """Return the function of one chip without the language model: slots found and prompts read."""

    def found(key: Key, store: Store, diagonal: Any, calibration: Any, asked: Questions, device: Any) -> dict[str, Any]:
        slots, prompts = retrieve_on_chip(
            key, store, diagonal, calibration, asked, device, config=config, method=method
        )
        return {"slots": slots, "prompts": prompts}

    return found


def _method(bench: _Bench, unit: Unit, device: devices.Device | None, trained_on: devices.Device) -> Iterator[Record]:
    """Yield the records of a method on all chips of a device, or in exact memory."""
    method = trainings(bench.settings)[unit.method]
    if device is None:  # nothing to mitigate
        method = dataclasses.replace(method, mitigation="none")
    name, stores, curvatures = _stores(bench, unit, method, trained_on)
    config = method_config(_fitted(bench.settings.config, device), method)
    # Texts and labels are not looked at on the chip: without them streams share one compilation.
    none = {
        field: jax.tree.map(lambda a: a[:, :0] if a.ndim > 1 else a[:0], getattr(bench.asked, field))
        for field in UNSEEN
    }
    asked = bench.asked._replace(**none)
    num = 1 if device is None else bench.settings.num_instances
    for block in _blocks(bench):
        store = stores[block]
        features = make_buffer(bench.stream.blocks[block].records, bench.lm, bench.text, config=config).features
        # The noise of training is no part of what a chip computes: methods that differ in it share one compilation.
        fn = _on_chip(dataclasses.replace(config, noise="none"), dataclasses.replace(method, training="plain"))
        parts = montecarlo.stream(
            fn,
            _keys(bench)[1],
            range(num),
            placement=montecarlo.Placement(chunk=min(num, _CHIPS)),
            args=(store, curvatures[block], features, asked, device),
        )
        known = bench.made.setdefault((name, block, unit.device, unit.sigma, method.mitigation), {})
        # The prompts of all chips together would fill the memory: each part is answered before the next is read.
        found = [(part.values["slots"], _answered(bench, part.first, known=known, **part.values)) for part in parts]
        slots, right = (np.concatenate(rows) for rows in zip(*found, strict=True))
        owner = np.asarray(bench.asked.domain_of_block)[np.maximum(np.asarray(store.block)[slots], 0)]
        yield from _records(bench, unit, block, right, owner == np.asarray(bench.asked.domain)[None, :])


def _answered(
    bench: _Bench, first: int, *, slots: np.ndarray, prompts: np.ndarray, known: dict[tuple[int, int, int], bool]
) -> np.ndarray:
    """Return what is right (chips, queries) from chip `first` on; what was found there before is not ranked again."""
    asked = [(first + i, q, int(slot)) for i, row in enumerate(slots) for q, slot in enumerate(row)]
    missing = [entry for entry in asked if entry not in known]
    if missing:
        rows = np.stack([prompts[i - first, slot] for i, _, slot in missing])
        found = _right(bench, rows, np.asarray([q for _, q, _ in missing]))
        known.update(zip(missing, map(bool, found), strict=True))
    return np.asarray([known[entry] for entry in asked]).reshape(slots.shape)
