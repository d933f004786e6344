"""SmolLM2-135M on chips with the bits of each block as slices: what bits save, and what the noise takes back.

The bits of LUC's policies are those that `12_edge_llm` recorded (its first draw). Weights lie in differential pairs of
2-bit cells, one scale a column, in arrays of 256 x 256; a chip is every matrix programmed with the noise of its cells
and read back, so converters are left out of the loss (not of the cost). Costs: one token at 512 tokens of context,
inputs of 8 bits a bit at a time, converters of 8 bits, FeFET-22nm beside the CPU of an Orin Nano at 15 W.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wikitext
from experiments.shift.settings import MODELS
from nvcim_jax import cost, crossbar, devices, models

__all__ = ["CONTEXT", "LAYOUT", "bits_of", "measure", "name_of"]

Record = dict[str, Any]
LAYOUT = crossbar.Config(
    rows=256,
    cols=256,
    weight_scale="column",
    weight_bits=8,
    cell_bits=2,
    dac_bits=8,
    dac_bits_per_cycle=1,
    adc_bits=8,
)
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
WINDOW, CONTEXT = 128, 512
POLICIES = Path(__file__).parent.parent / "12_edge_llm/results/luc/sensitivity.jsonl"


def bits_of(policy: Any, num_layers: int) -> tuple[int, ...]:
    """Return the bits of each block."""
    if isinstance(policy, int):
        return (policy,) * num_layers
    rows = [json.loads(line) for line in POLICIES.read_text(encoding="utf-8").splitlines()]
    found = next(r for r in rows if (r["model"], r["draw"], r["bits"]) == ("smollm2", 0, policy[1]))["luc_bits"]
    return tuple(found) if len(found) == num_layers else tuple(found[:num_layers])


def name_of(policy: Any) -> str:
    """Return the name of a policy."""
    return f"uniform {policy}" if isinstance(policy, int) else f"LUC {policy[1]}"


@functools.partial(jax.jit, static_argnames="config")
def _held(key: jax.Array, w: jax.Array, device: devices.Device, config: crossbar.Config) -> jax.Array:
    """Return a matrix as a fresh chip holds it."""
    write_key, read_key = jax.random.split(key)
    return crossbar.read_back(read_key, crossbar.program(write_key, w, device, config=config))


def _on_chips(key: jax.Array, lm: models.LM, bits: Sequence[int], device: devices.Device) -> models.LM:
    """Return the model with every matrix of its blocks as chips hold it, block after block."""
    layers = dict(lm.params["layers"])
    for number, name in enumerate(n for n in MATRICES if n in layers):
        own = jax.random.fold_in(key, number)
        made = [_held(jax.random.fold_in(own, i), layers[name][i], device, _layout(b)) for i, b in enumerate(bits)]
        layers[name] = jnp.stack(made)
    return lm.replace(params={**lm.params, "layers": layers})


def _layout(bits: int) -> crossbar.Config:
    return dataclasses.replace(LAYOUT, weight_bits=bits)


@jax.jit
def _loss(lm: models.LM, ids: jax.Array) -> jax.Array:
    x, _ = models.hidden(lm, models.embed(lm, ids))
    return models.loss(lm, x, ids, start=lm.config.num_layers)[0]


def _loaded(config: Any) -> tuple[models.LM, jax.Array]:
    name = MODELS["smollm2"] if config.real else models.BUNDLED
    lm, text = models.load(name, dtype=jnp.float32)
    if config.real:
        return lm, jnp.asarray(wikitext.windows(text, "test", tokens=WINDOW, num=config.num_tokens // WINDOW))
    ids = np.asarray(text.encode(f"{__doc__} {__doc__}")[: config.num_tokens // 32 * 32], np.int32)
    return lm, jnp.asarray(ids.reshape(-1, 32))


def measure(config: Any, out: Path) -> Iterator[Record]:
    """Measure the loss of each policy, without noise and on chips, and price a token."""
    del out
    lm, ids = _loaded(config)
    host, chip = cost.machines.get("orin-nano-15W"), cost.technology("FeFET-22nm")
    yield {"kind": "exact", "nats": float(_loss(lm, ids)), "tokens": int(ids.size), "sigma": config.sigma}
    noisy, plain = devices.get("FeFET3", sigma=config.sigma), devices.get("ideal")
    for policy in config.policies:
        bits = bits_of(policy, lm.config.num_layers)
        keys = jax.random.split(jax.random.key(config.seed), config.num_model_chips + 1)
        rounded = float(_loss(_on_chips(keys[0], lm, bits, plain), ids))
        losses = [float(_loss(_on_chips(key, lm, bits, noisy), ids)) for key in keys[1:]]
        bill = cost.model(lm, LAYOUT, on=chip, host=host, bits=bits, context=CONTEXT)
        digital = cost.model_digital(lm, on=host, bits=bits, context=CONTEXT)
        yield {
            "kind": "policy",
            "policy": name_of(policy),
            "mean_bits": float(np.mean(bits)),
            "slices": float(np.mean([-(-(b - 1) // 2) for b in bits])),
            "rounded_nats": rounded,
            "chip_nats": losses,
            "cells": bill.cells.num_cells,
            "block_cells": sum(block.cells.num_cells for block in bill.blocks),
            "energy_j": float(bill.energy_j),
            "block_energy_j": float(sum(block.energy_j for block in bill.blocks)),
            "area_m2": float(bill.area_m2),
            "tokens_per_s": float(bill.tokens_per_s),
            "latency": {k: float(v) for k, v in bill.latency._asdict().items()},
            "energy": {k: float(v) for k, v in bill.energy._asdict().items()},
            "digital_energy_j": float(digital.energy_j),
            "digital_tokens_per_s": 1.0 / float(digital.latency_s),
        }
