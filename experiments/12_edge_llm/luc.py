"""Layer-wise compression: how sensitive each block is, and what LUC's policy is worth. See run.py beside this file.

Command:  python -m experiments.12_edge_llm.run luc [--tiny] [--also FILE.gguf] [--out FOLDER]
Expect:   - sensitivity (`results/luc/sensitivity.png`): a few blocks bear nearly all of it. SmolLM2: blocks 11, 28 and
            29 (from 0) are above the mean at 4 and 5 bits (mean 4.1 and 5.1 bits), two more at 3 bits (3.17); the last
            block loses most to pruning and keeps all its weights, 25 of 30 blocks get a sparsity of .51 to .53.
            Gemma-3-270M: 5 to 7 of 18 blocks, all in the upper half. Two draws of text agree within 15 %. The error
            is absolute, and the residual stream grows with depth: that alone makes late blocks sensitive.
          - perplexity (`results/luc/summary.json`, perplexity.png), 64 windows; as it is 51.2; SparseGPT, nearest
            code, weights alone; uniform / uniform with LUC's mean bits / random / LUC, mean of two draws: 5 bits
            100.2 / 102.6 / 108.8 / 100.8, 4 bits 164.3 / 168.6 / 171.6 / 152.4, 3 bits 19,059 / 10,396 / 4,006 /
            2,066 (no language model is left). LUC over uniform with its mean bits, 95 % over windows: .98 [.95,
            1.01], .90 [.86, .95], .20 [.18, .22]; by draw .96 and 1.00, .80 and 1.02, .18 and .22. Over random .93,
            .89, .52. So LUC is ahead of random everywhere, of uniform for certain at 3 bits alone: two draws at 4
            bits differ by more than it gains.
          - much of it is the last block. An even spread whose last extra bit falls on it gives 96.3 at 5 bits and
            131.6 at 4, where LUC gives 100.5 and 141.6 (first draw); at 3 bits 2,796 and 1,872. Errors relative to
            the size of the output: 94.9, 142.2, 2,212.
          - each alone (first draw; uniform with the same bits 104.3, 176.4, 10,351; LUC 100.5, 141.6, 1,872): bits
            96.3, 148.7, 2,543; sparsity 99.9, 163.3, 11,080.
          - the quantiser matters more: with GPTQ at 4 bits uniform gives 110.8, LUC 116.9 (1.05 [1.02, 1.09]). With
            Wanda 165.8 and 162.4 (.98 [.95, 1.01]).
          - activations, keys and values rounded too, untuned: at 5 bits 734 and 560, at 4 25,845 and 9,500 (first
            draw).
          - memory: 405 MiB in float32, 63.3 as the file packs it; LUC at 4 bits 102.4 as bytes, 63.9 side by side,
            38.7 by the policy's own count: what a machine without sparsity holds is no smaller than the file.

What is compressed are the floats of files of about 4 bits a weight (SmolLM2 Q4_1; Gemma 3), each group of 32 or 256
weights with a scale of its own: "as it is" is that model, not the one in 16 bits behind it. Calibrated on windows of
WikiText-2 `valid`, measured on windows of `test` (tokenised release).
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wikitext
from experiments.records import lines
from experiments.shift import settings
from nvcim_jax import checks, compression, data, files, models

__all__ = ["CONFIGS", "Config", "measure", "summarise"]

Record = dict[str, Any]

MAIN = ("sparsegpt", "absmax")
RELATIVE = "LUC, relative errors"
LAST = "uniform, same bits, last block too"
ALONE = ("LUC, bits alone", "LUC, sparsity alone")
POLICIES = ("uniform", "uniform, same bits", "random", "LUC")


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        model: The model: a name of `settings.MODELS`, or "bundled".
        bits: B.
        sparsity: P.
        draws: Draws of the text for calibration and of the random policy.
        calibration: Windows of a draw.
        windows: Windows of the test.
        tokens: Tokens of a window.
        ways: Ways of compressing besides SparseGPT with the nearest code, as (pruner, quantiser): at the first draw and
            the middle B.
    """

    name: str = "full"
    model: str = "smollm2"
    bits: tuple[int, ...] = (5, 4, 3)
    sparsity: float = 0.5
    draws: int = 2
    calibration: int = 16
    windows: int = 64
    tokens: int = 128
    ways: tuple[tuple[str, str], ...] = (("sparsegpt", "gptq"), ("wanda", "absmax"))


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        model="bundled",
        bits=(4,),
        draws=1,
        calibration=4,
        windows=4,
        tokens=32,
        ways=(),
    ),
}


def _load(name: str) -> tuple[models.LM, models.Text]:
    known = {**settings.MODELS, "bundled": models.BUNDLED}
    return models.load(known.get(name, name))


def _windows(config: Config, text: models.Text, split: str, num: int, start: int = 0) -> jax.Array:
    """Return windows spread evenly over a split, those of different starts apart."""
    if config.name == "tiny":
        words = " ".join(f"{row.input} {row.output}." for row in data.builtin_records(0)[0])
        found = np.asarray(text.encode(words), np.int32)
        found = found[: len(found) // config.tokens * config.tokens].reshape(-1, config.tokens)
        found = found[::2] if split == "valid" else found[1::2]
    else:
        found = wikitext.windows(text, split, tokens=config.tokens)
    at = (np.arange(num) * len(found)) // num
    return jnp.asarray(found[(at + start) % len(found)])


def _known(path: Path, *names: str) -> set[tuple[Any, ...]]:
    """Return which records are there, by some of their entries."""
    return {tuple(record[name] for name in names) for record in lines(path)}


def _add(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps(record) + "\n")
    shown = {key: value for key, value in record.items() if isinstance(value, str | int | float)}
    print(path.stem, shown, flush=True)


def _sensitivity(config: Config, name: str, path: Path) -> None:
    label, done = Path(name).stem, _known(path, "model", "draw", "bits")
    wanted = [(d, b) for d in range(config.draws) for b in config.bits if (label, d, b) not in done]
    if not wanted:
        return
    lm, text = _load(name)
    for draw, bits in wanted:
        tokens = _windows(config, text, "valid", config.calibration, draw)
        table = compression.sensitivity(lm, tokens, bits=bits, sparsity=config.sparsity)
        policy = compression.luc(table, bits=bits, sparsity=config.sparsity)
        record: Record = {"model": label, "draw": draw, "bits": bits, "pruned": config.sparsity}
        for part in ("quantisation", "pruning"):
            record[part] = [float(f"{s:.5g}") for s in np.asarray(getattr(table, part))]
        record |= {"luc_bits": policy.bits.tolist(), "luc_sparsity": policy.sparsity.round(5).tolist()}
        _add(path, record)


def _policy(name: str, own: Record, relative: Callable[[], compression.Table]) -> compression.Policy:
    """Return a policy for one line of the table."""
    num, bits, sparsity = len(own["pruning"]), own["bits"], own["pruned"]
    found = [np.asarray(own[part]) for part in ("quantisation", "pruning")]
    best = compression.luc(compression.Table(*found, bits=bits, sparsity=sparsity), bits=bits, sparsity=sparsity)
    even = compression.uniform(num, bits=float(best.bits.mean()), sparsity=sparsity)
    if name == "random":
        return compression.random(jax.random.fold_in(jax.random.key(bits), own["draw"]), best)
    if name == RELATIVE:
        # as many blocks with a bit more as in LUC
        table, more = relative(), int((best.bits - bits).sum())
        most = np.argsort(-np.asarray(table.quantisation), kind="stable")[:more]
        chosen = np.full(num, bits)
        chosen[most] += 1
        return compression.Policy(chosen, compression.luc(table, bits=bits, sparsity=sparsity).sparsity)
    if name == LAST:
        steps = np.arange(num + 1) * int((best.bits - bits).sum()) // num
        return compression.Policy(bits + np.diff(steps), even.sparsity)
    return {
        "uniform": compression.uniform(num, bits=bits, sparsity=sparsity),
        "uniform, same bits": even,
        "LUC": best,
        "LUC, bits alone": compression.Policy(best.bits, even.sparsity),
        "LUC, sparsity alone": compression.Policy(even.bits, best.sparsity),
    }[name]


@jax.jit
def _losses(lm: models.LM, windows: jax.Array) -> jax.Array:
    """Return the mean loss of each window (windows,), in nats a token."""
    one = lambda ids: models.loss(lm, models.embed(lm, ids), ids)[0]  # noqa: E731
    return jax.lax.map(one, windows, batch_size=8)


def _measured(lm: models.LM, windows: jax.Array) -> Record:
    losses = np.asarray(_losses(lm, windows), np.float64)
    return {"perplexity": round(float(np.exp(losses.mean())), 3), "losses": losses.round(5).tolist()}


def _plan(config: Config) -> Iterator[tuple[int, tuple[str, str], int, tuple[str, ...]]]:
    """Give draw, way, B and policies, what is needed most first."""
    for draw in range(config.draws):
        names = (*POLICIES, *((*ALONE, LAST) if draw == 0 else ()))
        yield from ((draw, MAIN, bits, names) for bits in config.bits)
        if draw == 0:
            middle = config.bits[len(config.bits) // 2]
            yield from ((0, way, middle, ("uniform, same bits", "LUC")) for way in config.ways)
    yield from ((0, MAIN, bits, (RELATIVE,)) for bits in config.bits)


KEYS = ("draw", "bits", "policy", "pruner", "quantiser", "activations")


def _perplexity(config: Config, out: Path) -> None:
    lm, text = _load(config.model)
    test, path = _windows(config, text, "test", config.windows), out / "perplexity.jsonl"
    done = _known(path, *KEYS)
    tables = {(r["draw"], r["bits"]): r for r in lines(out / "sensitivity.jsonl") if r["model"] == config.model}

    def add(entry: tuple[Any, ...], small: models.LM, **more: Any) -> None:
        if entry not in done:
            _add(path, {**dict(zip(KEYS, entry, strict=True)), **more, **_measured(small, test)})

    add((0, 0, "as it is", "", "", False), lm)
    for draw, way, bits, names in _plan(config):
        calibration = _windows(config, text, "valid", config.calibration, draw)
        relative = partial(compression.sensitivity, lm, calibration, bits=bits, sparsity=config.sparsity, relative=True)
        for name in names:
            entry = (draw, bits, name, *way)
            wanted = [(*entry, rounded) for rounded in (False, *((True,) if draw == 0 and name in POLICIES else ()))]
            if all(own in done for own in wanted):
                continue
            policy = _policy(name, tables[draw, bits], relative)
            small = compression.apply(lm, policy, calibration, method=way[0], quantiser=way[1])
            about = {"mean_bits": float(policy.bits.mean()), "mean_sparsity": float(policy.sparsity.mean())}
            for own in wanted:
                parts = ("activations", "keys and values") if own[-1] else ()
                add(own, compression.in_loop(small, policy, parts=parts), **about)


def _memory(config: Config, out: Path) -> None:
    """Count what the matrices of all blocks take by LUC's policy: as bytes, side by side, and as the policy says."""
    path = out / "memory.jsonl"
    done = {bits for (bits,) in _known(path, "bits")}
    tables = {r["bits"]: r for r in lines(out / "sensitivity.jsonl") if (r["model"], r["draw"]) == (config.model, 0)}
    lm, _ = _load(config.model)
    for bits in (b for b in config.bits if b not in done):
        policy = compression.Policy(np.asarray(tables[bits]["luc_bits"]), np.asarray(tables[bits]["luc_sparsity"]))
        small = compression.apply(lm, policy, method="magnitude")
        found = compression.memory(small, policy)
        sizes = {
            "float32": found.float32,
            "as loaded": compression.memory(lm, policy).held,
            "a byte a code": found.held,
            "side by side": compression.memory(compression.pack(small), policy).held,
            "policy": found.policy,
        }
        _add(path, {"bits": bits, **{f"{name}, MiB": round(float(s.sum()) / 2**20, 2) for name, s in sizes.items()}})


def _interval(differences: np.ndarray, num: int = 10_000) -> list[float]:
    """Return the mean and its 95 % interval over windows drawn again."""
    rng = np.random.default_rng(0)
    drawn = differences[rng.integers(0, len(differences), (num, len(differences)))].mean(axis=1)
    return [float(differences.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist()]


def summarise(records: list[Record]) -> list[Record]:
    """Return one row for each setting: perplexity, and that of LUC over it, with intervals over windows, paired.

    Draws are averaged first; what they differ by is not in the intervals, so each is given too.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Record]]] = {}
    for r in records:
        groups.setdefault((r["bits"], r["pruner"], r["quantiser"], r["activations"]), {}).setdefault(
            r["policy"], []
        ).append(r)
    rows = []
    for (bits, pruner, quantiser, activations), found in sorted(groups.items(), key=lambda item: str(item[0])):
        by_draw = {name: {r["draw"]: np.asarray(r["losses"]) for r in own} for name, own in found.items()}
        for name, own in by_draw.items():
            row = {"bits": bits, "pruner": pruner, "quantiser": quantiser, "activations": activations, "policy": name}
            mean = _interval(np.mean(list(own.values()), axis=0))
            row |= {"draws": len(own), "mean_bits": found[name][0].get("mean_bits")}
            row |= {"perplexity": [round(float(np.exp(v)), 2) for v in mean]}
            row |= {"of_draws": [round(float(np.exp(v.mean())), 2) for v in own.values()]}
            if name != "LUC" and "LUC" in by_draw:
                shared = sorted(set(own) & set(by_draw["LUC"]))
                ratio = _interval(np.mean([by_draw["LUC"][d] - own[d] for d in shared], axis=0))
                row["luc_over_it"] = [round(float(np.exp(v)), 4) for v in ratio]
                by_luc = [float(np.exp((by_draw["LUC"][d] - own[d]).mean())) for d in shared]
                row["luc_over_it_of_draws"] = [round(v, 4) for v in by_luc]
            rows.append(row)
    return rows


def measure(options: argparse.Namespace, out: Path) -> Record:
    """Measure what is not there yet."""
    config = CONFIGS["tiny" if options.tiny else "full"]
    for name in (config.model, *options.also):
        _sensitivity(config, name, out / "sensitivity.jsonl")
    _memory(config, out)
    _perplexity(config, out)
    files.write_json(out / "summary.json", summarise(lines(out / "perplexity.jsonl")))
    return dataclasses.asdict(config)  # type: ignore[call-overload]
