"""5-95 % bands of everything that the other parts price, over the ranges of all constants: no chip is simulated here.

One set of draws serves all bills of a technology: differences between bills are free of the noise of drawing.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from nvcim_jax import cost, crossbar

__all__ = ["measure"]

Record = dict[str, Any]


def _spread(many: Any, numbers_of: Callable[[Any], dict[str, Any]]) -> dict[str, float]:
    """Return low and high of every number over the draws."""
    found = {}
    for name, values in jax.vmap(numbers_of)(many).items():
        low, high = jnp.quantile(values, jnp.asarray([0.05, 0.95], jnp.float32))
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _of_bill(bill: Any) -> dict[str, Any]:
    return {"energy_j": bill.energy_j, "latency_s": bill.latency_s}


def measure(config: Any, out: Path) -> Iterator[Record]:
    """Return the bands of the parts `items`, `space` and `model`."""
    del out
    keys = jax.random.split(jax.random.key(config.seed + 2), 2)
    names = ("RRAM-22nm", "FeFET-22nm")
    rram, fefet = (cost.draw(k, cost.technology(n), config.num_draws) for k, n in zip(keys, names, strict=True))
    yield from _items(config, rram)
    yield from _space(config, fefet)
    yield from _model(config, fefet)


def _items(config: Any, many: Any) -> Iterator[Record]:
    run = importlib.import_module("experiments.13_cost.run")
    for name, values in run.STORED.items():
        for layout_name, layout in run.LAYOUTS.items():
            price = lambda on, v=values, own=layout: _of_bill(cost.search(own, 1000, on=on, values=v))  # noqa: E731
            yield {"kind": "search", "of": name, "layout": layout_name} | _spread(many, price)
    for name, codec, numbers in run.adapters():

        def both(on: Any, numbers: int = numbers) -> dict[str, Any]:
            layout = run.LAYOUTS["stacked, bit by bit"]
            written = cost.program((numbers, 1), layout, on=on).energy_j
            return {"total_j": written + 100 * cost.read_back(1, layout, on=on, values=numbers).energy_j}

        yield {"kind": "adapter", "of": name, "codec": codec} | _spread(many, both)


def _space(config: Any, many: Any) -> Iterator[Record]:
    space = importlib.import_module("experiments.13_cost.space")
    for chosen, layout in space.layouts(config):
        for columns in space.COLUMNS_PER_ADC:

            def price(on: Any, layout: crossbar.Config = layout, columns: int = columns) -> dict[str, Any]:
                beside = cost.Periphery(columns_per_adc=columns)
                return _of_bill(cost.search(layout, config.num_stored, on=on, periphery=beside))

            yield {"kind": "space", **chosen, "columns_per_adc": columns} | _spread(many, price)


def _model(config: Any, many: Any) -> Iterator[Record]:
    run, model = (importlib.import_module(f"experiments.13_cost.{name}") for name in ("run", "model"))
    host = cost.machines.get("orin-nano-15W")
    shapes = run.SMOLLM2 if config.real else dataclasses.replace(run.SMOLLM2, num_layers=4)
    for policy in config.policies:
        bits = model.bits_of(policy, shapes.num_layers)

        def price(on: Any, bits: tuple[int, ...] = bits) -> dict[str, Any]:
            bill = cost.model(shapes, model.LAYOUT, on=on, host=host, bits=bits, context=model.CONTEXT)
            return {"block_energy_j": sum(block.energy_j for block in bill.blocks), "area_m2": bill.area_m2}

        yield {"kind": "model", "policy": model.name_of(policy)} | _spread(many, price)
