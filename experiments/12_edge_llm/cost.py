"""What an update costs: time and temporaries on this machine, and by the schedule. See run.py beside this file.

Command:  python -m experiments.12_edge_llm.run cost [--tiny] [--out FOLDER]
Time:     about five minutes of two cores (--tiny: half a minute).
Expect:   - `results/cost/cost.json`, 5 texts of 48 tokens, floats: temporaries 759 MB for LoRA, 222 for a window of 6,
            300 of 10, 419 of 15; with `remat` 153 MB for LoRA and 60 for a window of 6.
          - an update of a window of 6 is 3.2 times as fast as LoRA's (3.1 to 3.4 over eleven rounds, in time of
            processors; by the clock 2.9, 2.1 to 5.9, other processes beside it), 3.7 with `remat`, 4.7 where streams
            are stored (4.4 to 5.0; by the clock 4.6, 2.0 to 9.5); stored, of 10 blocks 2.7, of 15 blocks 1.8. In codes
            of 4 bits with half of the weights gone, stored and with `remat`, 4.6 times, in 4.5 times less memory,
            weights included. LoRA with `remat` takes 1.9 times less memory at .91 of its speed, in such codes 3.5
            times less at .95: most of the memory is saved without windows, the speed is theirs.
          - the streams of 25 texts, once, take as long as four updates of a window (by the clock, six).
          - `results/cost/schedule.json`: on Edge-LLM's accelerator 2.4 times as fast by depth alone, 6.1 by 4 bits
            and half of the weights alone, 12.9 by both, 22.2 with activations of 8 bits; memory 1.5, 1.6, 3.3 and 4.0
            times less. On a CPU that gains nothing from zeros and odd widths 2.4, 1.0 and 2.4, and 4.6.

Every variant is timed after every other, round after round, by the clock and by the time of its processors, which other
processes change less; temporaries are those of its program by XLA's account.
`schedule` asks `cost.schedule` for the same on two machines, one that gains from few bits and zeros in products, and
one that does not.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shift.settings import SMOLLM2, TINY, Settings, changed, language_model
from nvcim_jax import checks, compression, cost, files, models, tuning

__all__ = ["CONFIGS", "Config", "measure"]

Record = dict[str, Any]


@checks.frozen_config
class Config:
    """What is timed.

    Attributes:
        name: Name of this configuration.
        settings: The model.
        windows: Blocks of a window: Edge-LLM's, and others.
        rank: Rank of LoRA.
        batch: Texts of an update.
        texts: Texts of a user, whose streams are computed once.
        rounds: Times that the time of an update is taken.
        text: Tokens of a text.
    """

    name: str = "full"
    settings: Settings = SMOLLM2
    windows: tuple[int, ...] = (6, 10, 15)
    rank: int = 8
    batch: int = 5
    texts: int = 25
    rounds: int = 11
    text: int = 48


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        settings=changed(TINY, language_model="bundled"),
        windows=(2, 1),
        rank=2,
        batch=2,
        texts=4,
        rounds=1,
        text=8,
    ),
}

MACHINES = ("edge-8GB", "orin-nano-15W")
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def _compressed(lm: models.LM) -> models.LM:
    """Return the model in codes of 4 bits, half of the weights gone: what a step costs does not depend on which."""
    policy = compression.uniform(lm.config.num_layers, bits=4, sparsity=0.5)
    return compression.apply(lm, policy, method="magnitude")


def _programs(config: Config, lm: models.LM) -> dict[str, list[tuple[Callable[..., Any], models.LM]]]:
    """Return what is timed: name -> programs of one update each (of key, model, examples), and their model.

    Of windows three are taken, the lowest, the middle and the highest: the time grows evenly from one to the next. A
    window whose stream is stored takes the same wherever it lies: the lowest, which has nothing below it.
    """
    small, first, layers = _compressed(lm), config.windows[0], lm.config.num_layers
    lora = tuning.lora(config.rank, 2.0 * config.rank, targets=TARGETS)
    some = sorted({0, (layers // first - 1) // 2, layers // first - 1})

    def whole(key: Any, lm: models.LM, batch: tuning.Examples, remat: bool) -> Any:
        start = lora.init(key, lm, batch, None)
        options = tuning.Options(num_steps=1, remat=remat)
        return tuning.tune(jax.random.fold_in(key, 1), start, lm, batch, adapter=lora, options=options)[0]

    def window(
        key: Any, lm: models.LM, batch: tuning.Examples, w: int = 0, size: int = first, remat: bool = False
    ) -> Any:
        options = tuning.WindowOptions(num_steps=1, stored=False, remat=remat)
        given = {"adapter": lora, "window": size, "options": options, "schedule": [w]}
        return tuning.tune_windows(key, lm, batch, **given)[0].tuned

    return {
        "lora": [(partial(whole, remat=False), lm)],
        "lora, remat": [(partial(whole, remat=True), lm)],
        "windows": [(partial(window, w=w), lm) for w in some],
        "windows, remat": [(partial(window, w=w, remat=True), lm) for w in some],
        "windows, stored": [(window, lm)],
        **{f"windows of {size}, stored": [(partial(window, size=size), lm)] for size in config.windows[1:]},
        "lora, 4 bits": [(partial(whole, remat=True), small)],
        "windows, stored, 4 bits": [(partial(window, remat=True), small)],
    }


def _stream(config: Config, lm: models.LM) -> dict[str, list[float]]:
    """Return the time that the streams of a user's texts take, up to the entrance of the last window."""
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (config.texts, config.text)), jnp.int32)
    stop = lm.config.num_layers - config.windows[0]
    run = jax.jit(lambda lm, ids: models.hidden(lm, models.embed(lm, ids), stop=stop)[0])
    jax.block_until_ready(run(lm, ids))
    found: dict[str, list[float]] = {"seconds": [], "processor_seconds": []}
    for _ in range(config.rounds):
        started, worked = time.perf_counter(), time.process_time()
        jax.block_until_ready(run(lm, ids))
        found["seconds"].append(round(time.perf_counter() - started, 4))
        found["processor_seconds"].append(round(time.process_time() - worked, 4))
    return found


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
        found[name] = {"temporaries_mb": max(temporaries) / 1e6, "weights_mb": weights / 1e6}
        found[name] |= {"seconds": [], "processor_seconds": []}
        ready[name] = (compiled, own)
        for one in compiled:
            jax.block_until_ready(one(jax.random.key(0), own, batch))
        print("compiled", name, [round(t / 1e6) for t in temporaries], "MB", flush=True)
    for _ in range(config.rounds):
        for name, (compiled, own) in ready.items():
            started, worked = time.perf_counter(), time.process_time()
            for one in compiled:
                jax.block_until_ready(one(jax.random.key(0), own, batch))
            found[name]["seconds"].append(round((time.perf_counter() - started) / len(compiled), 4))
            found[name]["processor_seconds"].append(round((time.process_time() - worked) / len(compiled), 4))
    base = found["lora"]
    for record in found.values():
        ratios = np.array(base["seconds"]) / np.array(record["seconds"])
        worked = np.array(base["processor_seconds"]) / np.array(record["processor_seconds"])
        record |= {
            "seconds_of_an_update": float(np.median(record["seconds"])),
            "faster_than_lora": [float(np.median(ratios)), float(ratios.min()), float(ratios.max())],
            "faster_in_processor_time": [float(np.median(worked)), float(worked.min()), float(worked.max())],
            "temporaries_of_lora_over_it": base["temporaries_mb"] / record["temporaries_mb"],
            "memory_of_lora_over_it": (base["temporaries_mb"] + base["weights_mb"])
            / (record["temporaries_mb"] + record["weights_mb"]),
        }
    about = {"tokens": config.text, "texts": config.batch, "device": jax.devices()[0].device_kind}
    files.write_json(path, {**about, "stream_of": config.texts, "stream": _stream(config, lm), "variants": found})


def _schedule(config: Config, lm: models.LM, out: Path) -> None:
    """Ask the schedule for an update of each variant on machines that do and do not gain from bits and zeros."""
    layers, found, first = lm.config.num_layers, {}, config.windows[0]
    variants: dict[str, tuple[int, dict[str, Any]]] = {
        "lora": (layers, {}),
        "windows": (first, {}),
        **{f"windows of {size}": (size, {}) for size in config.windows[1:]},
        "lora, 4 bits": (layers, {"bits": 4, "sparsity": 0.5}),
        "windows, 4 bits": (first, {"bits": 4, "sparsity": 0.5}),
        "windows, 4 bits, activations of 8": (first, {"bits": 4, "sparsity": 0.5, "activation_bits": 8}),
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


def measure(options: argparse.Namespace, out: Path) -> Record:
    """Measure what is not there yet."""
    config = CONFIGS["tiny" if options.tiny else "full"]
    out.mkdir(parents=True, exist_ok=True)
    lm, _ = language_model(config.settings)
    _schedule(config, lm, out)
    _cost(config, lm, out)
    return dataclasses.asdict(config)  # type: ignore[call-overload]
