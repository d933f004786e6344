"""Windows that are tuned apart and vote, against LoRA at full depth and one window alone. See run.py beside this file.

Command:  python -m experiments.12_edge_llm.run tuning [--tiny] [--out FOLDER]
Time:     about 30 minutes of one core (--tiny: two).
Expect:   - `results/tuning/summary.json`, two domains of clinc5, 20 texts each, 60 updates: LoRA at full depth 80 %
            right (loss .30), the last window alone 65 % (.82), five windows of 12 updates each 35 % by vote of the
            largest (.96), 48 % by the mean (.68), their last exit alone 68 % (.49), the others 20 to 53 %. In as many
            updates a vote of windows is worse than LoRA, by 45 points [27, 63] and .70 nats [.45, .92], and worse than
            its own last exit: exits that have learned little vote too.
          - with as many updates for each window as LoRA has, five times as many of a fifth of the blocks: 85 % (.30),
            no different from LoRA ([-10, +20] points; [-.19, +.19] nats). A prefix in windows learned nothing in 60
            updates at the rate of `nvcim tune` (28 %, as without tuning).
          - `results/tuning/cost.json`, 5 texts of 48 tokens, floats: temporaries 759 MB for LoRA, 222 MB for a window;
            with `remat` 153 and 60 MB. An update is 2.8 times as fast as LoRA's (1.5 to 5.0 over seven rounds, beside
            other processes), 4.4 times with `remat`, 6.6 where streams are stored; in codes of 4 bits with half of the
            weights gone, stored and with `remat`, 5.5 times, in 4.5 times less memory, weights included. LoRA with
            `remat` takes 1.9 times less than without, at .87 of its speed. Five windows with LoRA's updates each take
            five times the time of one: then little is left (1.3 times as fast with stored streams) but the memory.
          - `results/tuning/schedule.json`: on Edge-LLM's accelerator 2.4 times as fast by depth alone, 5.3 by 4 bits
            and half of the weights alone, 11.8 by both, 18.8 with activations of 8 bits; memory 1.5, 1.6, 3.4 and 4.0
            times less. On a CPU that gains nothing from zeros and odd widths 2.4, 1.0 and 2.4, and 4.6.

`quality`: a user's records tune LoRA of rank 8 on all matrices of the blocks, in the same number of updates each: at
full depth (`lora`), in the last window alone (`partial`), in five windows of six blocks in turn, whose exits vote
(`windows`); and a prefix of 8 in the five windows (`windowed prefix`). `windows, as many each` gives each window the
updates of LoRA: five times as many, of a fifth of the blocks. Users are domains of a stream of clinc5: 25 records,
right answers among 20 labels, and the loss of the right one. Rates were chosen on a domain of clinc5's intents 6 to 10
(`rates.jsonl`), which no table reports; that of the prefix is `nvcim tune`'s.

`cost`: the time of an update on this machine, every variant after every other, round after round; and the temporaries
of its program by XLA's account. `schedule`: the same by `cost.schedule` on two machines, one that gains from few bits
and zeros in products, and one that does not.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.shift.settings import SMOLLM2, TINY, Settings, changed, language_model, streams
from nvcim_jax import checks, compression, cost, files, models, pipeline, tuning

__all__ = ["CONFIGS", "Config", "measure", "summarise"]

Record = dict[str, Any]
Predict = Callable[[models.LM, models.Inputs, jax.Array], jax.Array]


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        settings: The model, and the records of clinc5.
        window: Blocks of a window.
        rank: Rank of LoRA.
        steps: Updates.
        batch: Texts of an update.
        rates: Learning rates that are chosen among.
        users: How many domains are measured.
        rounds: Times that the time of an update is taken.
        text: Tokens of the texts whose updates are timed.
    """

    name: str = "full"
    settings: Settings = changed(SMOLLM2, num_test=20)
    window: int = 6
    rank: int = 8
    steps: int = 60
    batch: int = 5
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    users: int = 2
    rounds: int = 7
    text: int = 48


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        settings=changed(TINY, language_model="bundled"),
        window=2,
        rank=2,
        steps=4,
        batch=2,
        rates=(1e-3, 3e-3),
        users=1,
        rounds=1,
        text=8,
    ),
}

MACHINES = ("edge-8GB", "orin-nano-15W")
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
PREFIX_RATE = 1e-2
"""That of `nvcim tune`; nothing was chosen."""
METHODS = ("lora", "partial", "windows", "windows, as many each", "windowed prefix")


class User(NamedTuple):
    """Hold one user's records: what tunes, what tests, and labels to choose among."""

    name: str
    train: tuning.Examples
    test: tuning.Examples
    queries: Any
    truth: np.ndarray | None


def _users(config: Config, lm: models.LM, text: models.Text, first: int = 0) -> list[User]:
    """Return the domains of a stream of clinc5, or of what stands in for it."""
    (stream,) = streams(changed(config.settings, first_intent=first), [0])
    labels, found = list(stream.labels), []
    for block in stream.blocks:
        rows = stream.test[block.domain]
        make = partial(pipeline.make_buffer, lm=lm, text=text)
        queries = pipeline.make_queries([r.input for r in rows], lm, text, labels=labels)
        truth = np.array([labels.index(r.output) for r in rows])
        found.append(User(block.domain, make(block.records).examples, make(rows).examples, queries, truth))
    return found


def _adapter(method: str, config: Config) -> tuning.Adapter:
    if method.endswith("prefix"):
        return tuning.prefix(8)
    return tuning.lora(config.rank, 2.0 * config.rank, targets=TARGETS)


def _exits(lm: models.LM, config: Config) -> int:
    return lm.config.num_layers // config.window


def _tuned(method: str, config: Config, lm: models.LM, user: User, rate: float) -> Any:
    """Return what one method has learned: a state at full depth, or windows."""
    adapter, key = _adapter(method, config), jax.random.key(config.settings.seed)
    schedule = tuning.Schedule(kind="constant", warmup=0.0)  # as Edge-LLM trains
    given = {"adapter": adapter, "optimiser": tuning.adam(rate, schedule=schedule)}
    if method == "lora":
        init_key, tune_key = jax.random.split(key)
        start = adapter.init(init_key, lm, user.train, None)
        options = tuning.Options(num_steps=config.steps, batch=config.batch)
        return tuning.tune(tune_key, start, lm, user.train, options=options, **given)[0]
    order = [_exits(lm, config) - 1] * config.steps if method == "partial" else "cyclic"
    steps = config.steps * (_exits(lm, config) if method == "windows, as many each" else 1)
    options = tuning.WindowOptions(num_steps=steps, batch=config.batch)
    return tuning.tune_windows(key, lm, user.train, window=config.window, schedule=order, options=options, **given)[0]


def _whole(adapter: tuning.Adapter, state: Any, lm: models.LM, inputs: models.Inputs, at: jax.Array) -> jax.Array:
    adapted, given = adapter.apply(state, lm, inputs)
    return models.head(adapted, models.hidden(adapted, given, at=at)[0])


@cache
def _predictors(method: str, config: Config, last: int) -> dict[str, Callable[..., jax.Array]]:
    """Return ways to read what a method has learned: name -> predict(tuned, lm, inputs, at), each compiled once."""
    if method == "lora":
        return {"": partial(_whole, _adapter(method, config))}

    def voted(tuned: Any, lm: models.LM, x: Any, at: jax.Array, **how: Any) -> jax.Array:
        return tuning.vote(tuned, lm, x, at=at, **how)[0]

    if method == "partial":
        return {"": partial(voted, exits=(last,))}
    if method in ("windowed prefix", "windows, as many each"):
        return {"max": voted}
    alone = {f"exit {e}": partial(voted, exits=(e,)) for e in range(last + 1)}
    return {"max": partial(voted, how="max"), "mean": partial(voted, how="mean"), **alone}


@partial(jax.jit, static_argnames="predict")
def _ranked(predict: Any, tuned: Any, lm: models.LM, ids: jax.Array, mask: jax.Array, answers: Any) -> jax.Array:
    inputs = models.Inputs(models.embed(lm, ids), mask)
    return models.rank(lm, inputs, answers, predict=partial(predict, tuned))


@partial(jax.jit, static_argnames="predict")
def _losses(predict: Any, tuned: Any, lm: models.LM, test: tuning.Examples) -> tuple[jax.Array, jax.Array]:
    """Return the loss of each test text's answer, summed, and how many of its tokens are the likeliest."""
    logits = predict(tuned, lm, models.Inputs(models.embed(lm, test.ids)), test.where)
    right = (logits.argmax(axis=-1) == test.targets) & (test.targets >= 0)
    return models.token_losses(logits, test.targets).sum(axis=1), right.sum(axis=1)


def _parts(tree: Any, size: int = 5) -> list[Any]:
    num = len(jax.tree.leaves(tree)[0])
    return [jax.tree.map(lambda a, i=i: a[i : i + size], tree) for i in range(0, num, size)]


def _read(predict: Any, tuned: Any, lm: models.LM, user: User) -> Record:
    """Return one record's numbers: loss a token, right tokens, and right answers where there are labels."""
    test = user.test._replace(words=None)
    each = [_losses(predict, tuned, lm, part) for part in _parts(test)]
    losses, right = (np.concatenate(a) for a in zip(*each, strict=True))
    count = np.asarray(test.targets >= 0).sum(axis=1)
    record: Record = {"loss": float(losses.sum() / count.sum()), "right_tokens": float(right.sum() / count.sum())}
    record["losses"] = [float(f"{v:.5g}") for v in losses / count]
    if user.truth is not None:
        asked = [(user.queries.ids, user.queries.mask)]
        found = [_ranked(predict, tuned, lm, *q, user.queries.answers) for part in asked for q in _parts(part)]
        hits = np.concatenate(found).argmax(axis=1) == user.truth
        record |= {"accuracy": float(hits.mean()), "hits": hits.astype(int).tolist()}
    return record


def read(path: Path) -> list[Record]:
    """Return the records of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _add(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps(record) + "\n")
    shown = {name: value for name, value in record.items() if not isinstance(value, list)}
    print(path.stem, shown, flush=True)


def _done(path: Path, *names: str) -> set[tuple[Any, ...]]:
    return {tuple(record.get(name) for name in names) for record in read(path)}


def _choose(config: Config, lm: models.LM, text: models.Text, out: Path) -> dict[str, float]:
    """Return the rate of each method with the lowest loss on other intents than those that are reported."""
    path = out / "rates.jsonl"
    done = _done(path, "method", "rate")
    user, *_ = _users(config, lm, text, first=5)
    for method in METHODS:
        (name, predict), *_ = _predictors(method, config, _exits(lm, config) - 1).items()
        for rate in config.rates if method != "windowed prefix" else ():
            if (method, rate) in done:
                continue
            tuned = _tuned(method, config, lm, user, rate)
            found = _read(predict, tuned, lm, user._replace(truth=None))
            _add(path, {"method": method, "rate": rate, "read": name, "loss": found["loss"]})
    records = read(path)
    best = {m: min((r for r in records if r["method"] == m), key=lambda r: r["loss"])["rate"] for m in METHODS[:-1]}
    return best | {"windowed prefix": PREFIX_RATE}


def _quality(config: Config, lm: models.LM, text: models.Text, rates: dict[str, float], out: Path) -> None:
    path = out / "quality.jsonl"
    done = _done(path, "task", "user", "method")
    task = config.settings.data
    for user in _users(config, lm, text)[: config.users]:
        if (task, user.name, "none") not in done:
            found = _read(partial(_whole, tuning.frozen()), (), lm, user)
            _add(path, {"task": task, "user": user.name, "method": "none", "read": ""} | found)
        for method in METHODS:
            if (task, user.name, method) in done:
                continue
            started = time.perf_counter()
            tuned = jax.block_until_ready(_tuned(method, config, lm, user, rates[method]))
            seconds = round(time.perf_counter() - started, 1)
            for name, predict in _predictors(method, config, _exits(lm, config) - 1).items():
                about = {"task": task, "user": user.name, "method": method, "read": name, "seconds": seconds}
                _add(path, about | _read(predict, tuned, lm, user))


def _compressed(lm: models.LM) -> models.LM:
    """Return the model in codes of 4 bits, half of the weights gone: what a step costs does not depend on which."""
    policy = compression.uniform(lm.config.num_layers, bits=4, sparsity=0.5)
    return compression.apply(lm, policy, method="magnitude")


def _programs(config: Config, lm: models.LM) -> dict[str, list[tuple[Callable[..., Any], models.LM]]]:
    """Return what is timed: name -> programs of one update each (of key, model, examples), and their model.

    Of windows three are taken, the lowest, the middle and the highest: the time grows evenly from one to the next. A
    window whose stream is stored takes the same wherever it lies: the lowest, which has nothing below it.
    """
    lora, small, last = _adapter("lora", config), _compressed(lm), _exits(lm, config) - 1
    some = sorted({0, last // 2, last})

    def whole(key: Any, lm: models.LM, batch: tuning.Examples, remat: bool) -> Any:
        start = lora.init(key, lm, batch, None)
        options = tuning.Options(num_steps=1, remat=remat)
        return tuning.tune(jax.random.fold_in(key, 1), start, lm, batch, adapter=lora, options=options)[0]

    def window(key: Any, lm: models.LM, batch: tuning.Examples, w: int, remat: bool) -> Any:
        options = tuning.WindowOptions(num_steps=1, stored=False, remat=remat)
        return tuning.tune_windows(key, lm, batch, adapter=lora, window=config.window, options=options, schedule=[w])[
            0
        ].tuned

    return {
        "lora": [(partial(whole, remat=False), lm)],
        "lora, remat": [(partial(whole, remat=True), lm)],
        "windows": [(partial(window, w=w, remat=False), lm) for w in some],
        "windows, remat": [(partial(window, w=w, remat=True), lm) for w in some],
        "windows, stored": [(partial(window, w=0, remat=False), lm)],
        "windows, stored, 4 bits": [(partial(window, w=0, remat=True), small)],
    }


def _cost(config: Config, lm: models.LM, out: Path) -> None:
    """Time an update of each variant, in rounds over all of them, and ask XLA for their temporaries."""
    path = out / "cost.json"
    if path.is_file():
        return
    rows = np.random.default_rng(0).integers(3, 1000, (config.batch, config.text))
    batch = tuning.examples([row[:-4].tolist() for row in rows], [row[-4:].tolist() for row in rows])
    ready, found = {}, {}
    for name, programs in _programs(config, lm).items():
        own = programs[0][1]
        compiled = [jax.jit(fn).lower(jax.random.key(0), own, batch).compile() for fn, _ in programs]
        temporaries = [one.memory_analysis().temp_size_in_bytes for one in compiled]  # type: ignore[union-attr]
        weights = sum(a.nbytes for a in jax.tree.leaves(own.params))
        found[name] = {"temporaries_mb": max(temporaries) / 1e6, "weights_mb": weights / 1e6, "seconds": []}
        ready[name] = (compiled, own)
        for one in compiled:
            jax.block_until_ready(one(jax.random.key(0), own, batch))
        print("compiled", name, [round(t / 1e6) for t in temporaries], "MB", flush=True)
    for _ in range(config.rounds):
        for name, (compiled, own) in ready.items():
            started = time.perf_counter()
            for one in compiled:
                jax.block_until_ready(one(jax.random.key(0), own, batch))
            found[name]["seconds"].append(round((time.perf_counter() - started) / len(compiled), 4))
    base = found["lora"]
    for record in found.values():
        ratios = np.array(base["seconds"]) / np.array(record["seconds"])
        record |= {
            "seconds_of_an_update": float(np.median(record["seconds"])),
            "faster_than_lora": [float(np.median(ratios)), float(ratios.min()), float(ratios.max())],
            "temporaries_of_lora_over_it": base["temporaries_mb"] / record["temporaries_mb"],
            "memory_of_lora_over_it": (base["temporaries_mb"] + base["weights_mb"])
            / (record["temporaries_mb"] + record["weights_mb"]),
        }
    files.write_json(path, {"tokens": config.text, "texts": config.batch, "variants": found})


def _schedule(config: Config, lm: models.LM, out: Path) -> None:
    """Ask the schedule for an update of each variant on machines that do and do not gain from bits and zeros."""
    layers, found = lm.config.num_layers, {}
    variants: dict[str, tuple[int, dict[str, Any]]] = {
        "lora": (layers, {}),
        "windows": (config.window, {}),
        "lora, 4 bits": (layers, {"bits": 4, "sparsity": 0.5}),
        "windows, 4 bits": (config.window, {"bits": 4, "sparsity": 0.5}),
        "windows, 4 bits, activations of 8": (config.window, {"bits": 4, "sparsity": 0.5, "activation_bits": 8}),
    }
    for name in MACHINES:
        on = cost.machines.get(name)
        given = {"batch": config.batch, "tokens": config.text, "on": on, "predicted": 4}
        rows = {}
        for variant, (size, how) in variants.items():
            plans = [cost.schedule(lm, window=(at, at + size), **how, **given) for at in range(0, layers, size)]
            rows[variant] = {
                "ms": 1e3 * float(np.mean([plan.time_s for plan in plans])),
                "mj": 1e3 * float(np.mean([plan.energy_j for plan in plans])),
                "mb": max(sum(plan.stores) for plan in plans) / 1e6,
            }
        base = rows["lora"]
        found[name] = {
            variant: {**row, "faster": base["ms"] / row["ms"], "smaller": base["mb"] / row["mb"]}
            for variant, row in rows.items()
        }
    files.write_json(out / "schedule.json", {"tokens": config.text, "texts": config.batch, "machines": found})


def _interval(values: Sequence[float], num: int = 10_000) -> list[float]:
    """Return the mean of paired differences and its 95 % interval over texts drawn again."""
    rng, own = np.random.default_rng(0), np.asarray(values, float)
    drawn = own[rng.integers(0, len(own), (num, len(own)))].mean(axis=1)
    return [round(float(v), 4) for v in (own.mean(), *np.quantile(drawn, [0.025, 0.975]))]


def summarise(records: Sequence[Record]) -> list[Record]:
    """Return one row for each task, method and way of reading: means over users, and differences to LoRA over texts."""
    rows = []
    for task in dict.fromkeys(r["task"] for r in records):
        own = [r for r in records if r["task"] == task]
        base = {r["user"]: r for r in own if r["method"] == "lora"}
        for method, name in dict.fromkeys((r["method"], r["read"]) for r in own):
            found = [r for r in own if (r["method"], r["read"]) == (method, name)]
            row: Record = {"task": task, "method": method, "read": name, "users": len(found)}
            for number in ("accuracy", "loss", "right_tokens"):
                if number in found[0]:
                    row[number] = round(float(np.mean([r[number] for r in found])), 4)
            pairs = [(r, base[r["user"]]) for r in found if r["user"] in base]
            if pairs:
                for each, shown in (("hits", "accuracy_over_lora"), ("losses", "loss_over_lora")):
                    if each in found[0]:
                        row[shown] = _interval([a - b for r, s in pairs for a, b in zip(r[each], s[each], strict=True)])
            rows.append(row)
    return rows


def measure(options: argparse.Namespace, out: Path) -> Record:
    """Measure what is not there yet."""
    config = CONFIGS["tiny" if options.tiny else "full"]
    lm, text = language_model(config.settings)
    rates = _choose(config, lm, text, out)
    _schedule(config, lm, out)
    _cost(config, lm, out)
    _quality(config, lm, text, rates, out)
    files.write_json(out / "summary.json", {"rates": rates, "rows": summarise(read(out / "quality.jsonl"))})
    return dataclasses.asdict(config)  # type: ignore[call-overload]
