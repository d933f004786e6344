"""Whole tables: every method on every stream and device, as flat records of accuracy, chip by chip.

What is the same for several methods is made once: a training of a stream, the chips of a store, the ranking of the
labels behind one prompt that one chip gave back. Which methods are measured together, and whether a study was
interrupted, changes no record.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import devices, io, montecarlo, pipeline, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline import Preset, Store
from nvcim_jax.signature import checked
from nvcim_jax.study.methods import Method, Trial, method_config, trial
from nvcim_jax.study.nearest_text import nearest_text
from nvcim_jax.study.plan import END_TO_END, SEARCHED, Design, Unit, check, trainings, units
from nvcim_jax.study.protocol import Questions, make_questions, observe_stream, retrieve_on_chip, tune_one
from nvcim_jax.study.trained import Session, kept, plain, records_digest
from nvcim_jax.types import Key, Work

__all__ = ["LIPSCHITZ", "measure"]

LIPSCHITZ = 0.01
"""Weight of the Lipschitz penalty for CorrectNet where the rates have none: this library's choice [I]."""

_CHIPS = 64  # chips whose prompts are held at a time
_ROWS = 32  # queries that are ranked in one call, whatever the method: one compilation, and no row depends on others

Record = dict[str, Any]


class _Bench(NamedTuple):
    """Hold one stream while it is measured; `made` keeps what several methods share."""

    key: Key
    stream: Any
    lm: LM
    text: Text
    questions: Questions
    names: tuple[str, ...]
    preset: Preset
    design: Design
    made: dict[Any, Any]
    session: Session


@checked
def measure(
    key: Key,
    streams: Sequence[Any],
    lm: LM,
    text: Text,
    device_list: Sequence[devices.Device],
    *,
    preset: Preset,
    design: Design = Design(),  # noqa: B008  # frozen
    session: Session = Session(),  # noqa: B008  # immutable
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
        text: Its tokenizer and the form of the task.
        device_list: Devices to measure on; the bits of a cell are cut to each one's levels.
        preset: Everything that is chosen; `lipschitz` is used by methods with that training alone (`LIPSCHITZ` if 0).
        design: What is compared.
        session: How it is worked through, see `Session`.

    Yields:
        The records, unit by unit in the order of `plan`.

    Raises:
        ValueError: If an argument is wrong.

    Example:
        >>> from nvcim_jax import data, models
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> design = Design(methods={}, baselines=("1-NN own domain",))
        >>> rows = measure(jax.random.key(1), [stream], lm, text, [], preset=pipeline.Preset(), design=design)
        >>> [(row["domain"], row["role"], row["queries"], row["hit"]) for row in rows]  # it is told the domain
        [('user 1', 'previous', 3, 1.0), ('user 2', 'current', 3, 1.0)]
    """
    check(streams, device_list, design)
    for stream in streams:
        wanted = {u: where for u, where in units(stream, device_list, design).items() if u not in session.skip}
        if not wanted:
            continue
        unseen = getattr(stream, "unseen", None)
        names = (*stream.domains, *((unseen,) if unseen is not None else ()))
        questions = make_questions(stream, lm, text, preset=preset, domains=names)
        own = jax.random.fold_in(key, int(getattr(stream, "seed", 0)))
        bench = _Bench(own, stream, lm, text, questions, names, preset, design, {}, session)
        for unit, (device, trained_on) in wanted.items():
            if unit.method in design.baselines:
                yield from _baseline(bench, unit)
            else:
                yield from _method(bench, unit, device, trained_on)
            session.advance(1, f"stream {unit.stream}: {unit.method}, {unit.device} {unit.sigma:g}")


def _keys(bench: _Bench) -> tuple[Key, Key, Key, Key]:
    """Return the keys of a stream: learning, chips, joint training, baselines."""
    if "keys" not in bench.made:
        bench.made["keys"] = tuple(jax.random.split(bench.key, 4))
    return tuple(jax.random.clone(key) for key in bench.made["keys"])  # type: ignore[return-value]


def _blocks(bench: _Bench) -> range:
    last = len(bench.stream.blocks)
    return range(0 if bench.design.every_block else last - 1, last)


def _role(stream: Any, block: int, domain: str) -> str:
    if domain == getattr(stream, "unseen", None):
        return "unseen"
    if domain == stream.blocks[block].domain:
        return "current"
    return "previous" if domain in [b.domain for b in stream.blocks[:block]] else "later"


def _records(bench: _Bench, unit: Unit, block: int, right: np.ndarray, hit: np.ndarray | None) -> Iterator[Record]:
    """Yield the records of one block from what was right and hit, (instances, queries) each."""
    domain = np.asarray(bench.questions.domain)
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


def _right(bench: _Bench, prompts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return whether the right label is ranked first, for a prompt's rows (or none) and the number of a query each."""
    all_queries, truth = bench.questions.queries, np.asarray(bench.questions.truth)
    adapter = bench.preset.config.adapter() if prompts.shape[1] else tuning.frozen()
    ids, mask = np.asarray(all_queries.ids), np.asarray(all_queries.mask)
    found = []
    for start in range(0, len(queries), _ROWS):
        rows = np.resize(np.arange(start, min(start + _ROWS, len(queries))), _ROWS)
        which = queries[rows]
        part = all_queries._replace(ids=jnp.asarray(ids[which]), mask=jnp.asarray(mask[which]))
        logs = pipeline.rank(jnp.asarray(prompts[rows]), part, bench.lm, adapter=adapter)
        found.append(np.asarray(jnp.argmax(logs, axis=1)) == truth[which])
    return np.concatenate(found)[: len(queries)]


def _baseline(bench: _Bench, unit: Unit) -> Iterator[Record]:
    """Yield the records of a method without a memory."""
    every = np.arange(len(bench.questions.truth))
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
    tuned = _one_prompt(bench, unit)
    for block, prompt in zip(_blocks(bench), tuned, strict=True):
        right = _right(bench, np.repeat(np.asarray(prompt)[None], len(every), axis=0), every)
        yield from _records(bench, unit, block, right[None], None)


def _one_prompt(bench: _Bench, unit: Unit) -> tuple[jax.Array, ...]:
    """Return the one prompt of a baseline after every block that is measured."""
    key, preset, kind, digests = _keys(bench)[3], bench.preset.changed(lipschitz=0.0), unit.method, _digests(bench)

    def keep(t: int, key: Key, tune: Callable[[], Any]) -> Any:
        seen = {"latest": digests[t : t + 1], "sequential": digests[: t + 1], "joint": digests}[kind]
        about = {"one prompt": kind, "after": t, "preset": preset, "blocks": seen}
        return _kept(bench, key, about, _said(bench, f"{kind}, block {t + 1}", unit, tune), jax.eval_shape(tune))

    chosen: Any = {"preset": preset, "kind": kind, "blocks": _blocks(bench), "keep": keep}
    return tuple(tune_one(key, bench.stream, bench.lm, bench.text, **chosen))


def _said(bench: _Bench, what: str, unit: Unit, make: Callable[[], Any]) -> Callable[[], Any]:
    """Return what makes something, and says so before; it returns when it is made."""

    def made() -> Any:
        bench.session.advance(0, f"stream {unit.stream}: training {what}")
        return jax.block_until_ready(make())

    return made


def _kept(bench: _Bench, key: Key, about: dict[str, Any], make: Any, like: Any, device: Any = None) -> Any:
    """Return what is made, or was kept of it by the session; everything that it depends on names it."""
    if bench.session.trained is None:
        return make()
    if "the model" not in bench.made:
        args = io.fingerprint({}, Work(None, key, bench.lm.params))["args"]
        bench.made["the model"] = [plain(bench.lm.config), hashlib.sha256(json.dumps(args).encode()).hexdigest()]
    about = about | {
        "model": bench.made["the model"],
        "template": bench.text.template,
        "backend": jax.default_backend(),
    }
    return kept(bench.session, Work(None, key, {"device": device}), plain(about), make, like)


def _digests(bench: _Bench) -> list[str]:
    return [records_digest(block.records) for block in bench.stream.blocks]


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


def _stores(
    bench: _Bench, unit: Unit, method: Method, trained_on: devices.Device
) -> tuple[Any, tuple[Store, ...], tuple[Any, ...]]:
    """Return a name for the training, the stores after every block, and their second derivatives."""
    preset, noisy = bench.preset, method.training == "noise"
    # A codec trained contrastively knows the search; every other store serves any search.
    searched = method if preset.config.keys == "contrastive" else Method(measure=preset.config.search.measure)
    name = (method.training, unit.trained_for, searched.measure, searched.axis, searched.storage)
    if name not in bench.made:
        penalty = (preset.lipschitz or LIPSCHITZ) if method.training == "lipschitz" else 0.0
        own = preset.changed(lipschitz=penalty, config=method_config(preset.config, searched))
        bench.made[name] = _observed(bench, unit, own, trained_on if noisy else None, method.training)
    stores, curvatures = bench.made[name]
    if unit.method != END_TO_END:
        return name, stores, curvatures
    joint = (END_TO_END, unit.trained_for)
    if joint not in bench.made:
        bench.made[joint] = _jointly(bench, unit, stores, trained_on)
    return joint, bench.made[joint], curvatures


def _observed(
    bench: _Bench, unit: Unit, preset: Preset, trained_on: devices.Device | None, training: str
) -> tuple[tuple[Store, ...], tuple[jax.Array, ...]]:
    """Return the stores after every block, and the second derivatives of their prompts, zeros where none asks."""
    key, stream, lm = _keys(bench)[0], bench.stream, bench.lm
    probed = any(m.mitigation == "swv" and m.training == training for m in bench.design.methods.values())
    store = pipeline.init(jax.random.key(0), lm, config=preset.config).store  # for its structure

    def keep(t: int, key: Key, tune: Callable[[], Any]) -> Any:
        """Rows are shared by all stores that differ in how they are found, coded and held."""
        about = {"rows": preset.for_tuning(trained_on), "records": records_digest(stream.blocks[t].records)}
        met = None if preset.noise == "none" else trained_on
        what = f"{training} {unit.trained_for}".rstrip() + f", block {t + 1}"
        return _kept(bench, key, about, _said(bench, what, unit, tune), jax.eval_shape(tune), met)

    def make() -> Any:
        own: Any = {"preset": preset, "with_curvature": probed, "keep": keep}
        observed = observe_stream(key, stream, lm, bench.text, trained_on, **own)
        return observed.stores, observed.curvatures

    like = ((store,) * len(stream.blocks), (jnp.zeros_like(store.prompts),) * len(stream.blocks))
    about = {"training": preset, "curvature": probed, "blocks": _digests(bench)}
    return _kept(bench, key, about, make, like, trained_on)


def _jointly(bench: _Bench, unit: Unit, stores: tuple[Store, ...], trained_on: devices.Device) -> tuple[Store, ...]:
    """Train prompts, codec and scale weights through the noisy pipeline, on all records that came so far."""
    preset, design = bench.preset, bench.design
    options = design.end_to_end
    assert options is not None
    config = method_config(preset.config, SEARCHED).changed(pick="straight_through")
    every = [record for block in bench.stream.blocks for record in block.records]
    buffer = pipeline.make_buffer(every, bench.lm, bench.text, config=config)
    sizes = np.cumsum([len(block.records) for block in bench.stream.blocks])
    rate = 0.1 * preset.learning_rate if design.end_to_end_rate is None else design.end_to_end_rate
    key = _keys(bench)[2]

    def make() -> tuple[Store, ...]:
        bench.session.advance(0, f"stream {unit.stream}: training end to end, {unit.trained_for}")
        trained = list(stores)
        for block in _blocks(bench):
            # Records that have not come yet weigh nothing: one compilation for all blocks.
            weights = (jnp.arange(len(every)) < int(sizes[block])).astype(jnp.float32)
            trained[block], _ = pipeline.train(
                jax.random.fold_in(key, block),
                pipeline.Batch(buffer.examples, buffer.features, stores[block], weights),
                bench.lm,
                preset.memory(trained_on),
                config=config,
                options=options,
                optimiser=tuning.adam(rate, preset.clip_norm, tuning.Schedule(warmup=0.0)),
                project=tuning.bounded(preset.bound, config.adapter()),
            )
        return tuple(trained)

    about = {"end to end": preset, "options": options, "rate": rate, "after": list(_blocks(bench))}
    about |= {"blocks": _digests(bench)}
    return _kept(bench, key, about, make, stores, trained_on)


def _on_chip(
    key: Key, own: Trial, store: Store, diagonal: Any, calibration: Any, questions: Questions, device: Any
) -> dict[str, jax.Array]:
    """Return slots found and prompts read on one chip, without the language model."""
    slots, prompts = retrieve_on_chip(key, own, store, diagonal, calibration, questions, device)
    return {"slots": slots, "prompts": prompts}


def _method(bench: _Bench, unit: Unit, device: devices.Device | None, trained_on: devices.Device) -> Iterator[Record]:
    """Yield the records of a method on all chips of a device, or in exact memory."""
    method = trainings(bench.design)[unit.method]
    name, stores, curvatures = _stores(bench, unit, method, trained_on)
    own = trial(bench.preset.fitted(device), method)
    # Texts and labels are not looked at on the chip: without them streams share one compilation.
    blind = bench.questions.queries._replace(ids=jnp.zeros((0, 0)), mask=jnp.zeros((0, 0)), answers=None)
    questions = bench.questions._replace(queries=blind)
    num = 1 if device is None else bench.design.num_instances
    for block in _blocks(bench):
        store = stores[block]
        records = bench.stream.blocks[block].records
        features = pipeline.make_buffer(records, bench.lm, bench.text, config=own.config).features
        parts = montecarlo.stream(
            _on_chip,
            _keys(bench)[1],
            range(num),
            placement=montecarlo.Placement(chunk=min(num, _CHIPS)),
            args=(own, store, curvatures[block], features, questions, device),
        )
        mitigation = "none" if device is None else own.mitigation  # nothing to mitigate
        known = bench.made.setdefault((name, block, unit.device, unit.sigma, mitigation), {})
        # The prompts of all chips together would fill the memory: each part is answered before the next is read.
        found = [(part.values["slots"], _answered(bench, part.first, known=known, **part.values)) for part in parts]
        slots, right = (np.concatenate(rows) for rows in zip(*found, strict=True))
        owner = np.asarray(questions.domain_of_block)[np.maximum(np.asarray(store.block)[slots], 0)]
        yield from _records(bench, unit, block, right, owner == np.asarray(questions.domain)[None, :])


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
