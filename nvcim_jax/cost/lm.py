"""A whole language model: its matrices on chips, attention and cache digital; or all of it on a digital machine."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from nvcim_jax import checks, crossbar, models
from nvcim_jax.cost.bill import Area, Bill, Cells, Number, total
from nvcim_jax.cost.machines import Machine, get, level_holding
from nvcim_jax.cost.product import PERIPHERY, Periphery, price
from nvcim_jax.cost.search import DigitalBill, digital
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked

__all__ = ["BlockCost", "ModelBill", "ModelEnergy", "ModelLatency", "model", "model_digital"]

TOGETHER = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""Matrices of a block that have the same input, in the order of a Llama's block; each has arrays of its own."""

HOST = "orin-nano-15W"
CACHE_BITS = 16
ACTIVATION_BITS = 16


class ModelLatency(NamedTuple):
    """Seconds of one token.

    Attributes:
        matrices: Products of the blocks, on chips, those of one input side by side.
        attention: Scores and sums over the cache, digital.
        elementwise: Norms, activations, softmax, digital.
        head: The product with the head, on a chip.
    """

    matrices: Number
    attention: Number
    elementwise: Number
    head: Number


class ModelEnergy(NamedTuple):
    """Joules of one token.

    Attributes:
        converters: Analog-to-digital conversions.
        cells: Current through cells.
        drivers: Word lines.
        shift_add: Sums.
        buffers: Bits in buffers.
        network: Bits that move.
        attention: Scores and sums over the cache.
        elementwise: Norms, activations, softmax.
        leakage: All arrays' periphery during the whole token.
    """

    converters: Number
    cells: Number
    drivers: Number
    shift_add: Number
    buffers: Number
    network: Number
    attention: Number
    elementwise: Number
    leakage: Number


class BlockCost(NamedTuple):
    """What one block takes on chips.

    Attributes:
        cells: Its cells and arrays.
        energy_j: Joules of a token in its arrays, leakage apart.
        area_m2: Square metres.
    """

    cells: Cells
    energy_j: Number
    area_m2: Number


class ModelBill(NamedTuple):
    """What a model on chips costs, one token of one sequence at a time.

    Attributes:
        latency: Seconds of a token by item.
        energy: Joules of a token by item.
        area: Square metres by item, of all matrices.
        blocks: What each block takes.
        cells: Cells and arrays of all matrices.
        idle_power: Watts that leak while nothing happens.
    """

    latency: ModelLatency
    energy: ModelEnergy
    area: Area
    blocks: tuple[BlockCost, ...]
    cells: Cells
    idle_power: Number

    @property
    def latency_s(self) -> Number:
        """Seconds of a token."""
        return total(self.latency)

    @property
    def tokens_per_s(self) -> Number:
        """Tokens a second."""
        return 1.0 / total(self.latency)

    @property
    def energy_j(self) -> Number:
        """Joules of a token."""
        return total(self.energy)

    @property
    def area_m2(self) -> Number:
        """Square metres in all."""
        return total(self.area)


def _config(lm: Any) -> models.Config:
    found = lm.config if isinstance(lm, models.LM) else lm
    checks.instance("lm", found, models.Config, "Give a models.LM or its models.Config.")
    return found


def block_bits(
    bits: float | int | Sequence[float | int] | None, num_layers: int, default: int | None
) -> tuple[int, ...]:
    """Return the bits of each block.

    Raises:
        ValueError: If there are none, not one for each block, or one is not whole.
    """
    if bits is None:
        if default is None:
            checks.fail("bits", "be given where config has no weight_bits", "is None")
        bits = default
    each: tuple[Any, ...] = (bits,) * num_layers if isinstance(bits, int | float | numbers.Number) else tuple(bits)
    if len(each) != num_layers:
        checks.fail("bits", f"be one for each of {num_layers} blocks", f"are {len(each)}")
    for one in each:
        checks.number("bits", one)
        checks.integer("bits", int(one) if int(one) == one else float(one), low=2, high=24)
    return tuple(int(one) for one in each)


@checked
def model(
    lm: Any,
    config: crossbar.Config,
    *,
    on: Technology,
    host: Machine | None = None,
    bits: float | int | Sequence[float | int] | None = None,
    context: int = 512,
    periphery: Periphery = PERIPHERY,
) -> ModelBill:
    """Return what one token costs with every matrix on chips, attention and cache on a digital machine.

    Matrices of one input (queries, keys and values; gate and up) work side by side, all others one after another; every
    matrix has arrays of its own, so nothing is written while it runs. A block of b bits takes as many slices as b asks
    for: fewer bits are fewer cells, conversions and square metres. All arrays leak during the whole token. Scores and
    sums over the cache are 2 x context x channels products and as many bytes as keys and values have, at 16 bits; norms
    and activations are counted as 8 width + 3 hidden + 2 context heads operations a block (inferred).

    Args:
        lm: A model, or its `models.Config`; only shapes count.
        config: Options of the crossbars, with bits of both converters.
        on: The technology.
        host: The digital machine beside the chips; None: the CPU of an Orin Nano at 15 W.
        bits: Bits of the weights, of all blocks or one for each; None: those of `config`. The head has those of
            `config`, or else the most of any block.
        context: Tokens in the cache.
        periphery: What stands around the arrays.

    Returns:
        The bill.

    Raises:
        ValueError: If bits and blocks do not match, or something cannot be priced.

    Example:
        >>> from nvcim_jax import cost, models
        >>> lm = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> config = crossbar.Config(rows=384, cols=128, cell_bits=2, weight_bits=8, dac_bits=8, adc_bits=8)
        >>> chip, host = cost.technology("RRAM-22nm"), cost.machines.get("orin-nano-15W")
        >>> full, half = (cost.model(lm, config, on=chip, host=host, bits=b) for b in (8, 5))
        >>> full.blocks[0].cells.num_cells // half.blocks[0].cells.num_cells  # 4 slices of a pair, and 2
        2
    """
    shapes = _config(lm)
    checks.integer("context", context)
    each = block_bits(bits, shapes.num_layers, config.weight_bits)
    priced: dict[tuple[tuple[int, int], int], Bill] = {}

    def bill(shape: tuple[int, int], wanted: int) -> Bill:
        if (shape, wanted) not in priced:
            own = dataclasses.replace(config, weight_bits=wanted)  # type: ignore[type-var]
            priced[shape, wanted] = price(shape, own, on, periphery, search=False)
        return priced[shape, wanted]

    sizes = {name: size[1:] for name, size in shapes.shapes["layers"].items()}
    groups = [[name for name in group if name in sizes] for group in TOGETHER]
    blocks = [[[bill(sizes[name], b) for name in group] for group in groups] for b in each]
    head = bill((shapes.width, shapes.vocab_size), config.weight_bits or max(each))
    chips = [one for block in blocks for group in block for one in group] + [head]
    beside = get(HOST) if host is None else host
    return _assembled(blocks, chips, head, _digital(shapes, context, beside))


def _digital(shapes: models.Config, context: int, host: Machine) -> tuple[DigitalBill, DigitalBill]:
    """Return attention over the cache, and what is done element by element, of all blocks for one token."""
    queries, pairs = shapes.num_heads * shapes.head_width, shapes.kv_heads * shapes.head_width
    cache = 2.0 * context * pairs * CACHE_BITS / 8
    where = level_holding(host, cache * shapes.num_layers)
    both = {"level": where, "on": host, "weight_bits": CACHE_BITS, "activation_bits": ACTIVATION_BITS}
    attention = digital(macs=2.0 * context * queries, moved_bytes=cache, **both)
    operations = 8.0 * shapes.width + 3.0 * shapes.mlp_width + 2.0 * context * shapes.num_heads
    elementwise = digital(macs=operations, moved_bytes=0.0, **both)
    scaled = jax.tree.map(lambda item: shapes.num_layers * item, (attention, elementwise))
    return scaled[0], scaled[1]


def _assembled(
    blocks: list[list[list[Bill]]],
    chips: list[Bill],
    head: Bill,
    beside: tuple[DigitalBill, DigitalBill],
) -> ModelBill:
    """Return the bill of a model from those of its matrices and of what is digital."""
    attention, elementwise = beside
    latency = ModelLatency(
        matrices=sum(_longest([one.latency_s for one in group]) for block in blocks for group in block),
        attention=attention.latency_s,
        elementwise=elementwise.latency_s,
        head=head.latency_s,
    )
    idle = sum(one.idle_power for one in chips)
    items = {
        name: sum(getattr(one.energy, name) for one in chips)
        for name in ("converters", "cells", "drivers", "shift_add", "buffers", "network")
    }
    energy = ModelEnergy(
        **items, attention=attention.energy_j, elementwise=elementwise.energy_j, leakage=idle * total(latency)
    )
    area = Area(*(sum(getattr(one.area, name) for one in chips) for name in Area._fields))
    return ModelBill(
        latency=latency,
        energy=energy,
        area=area,
        blocks=tuple(_block(block) for block in blocks),
        cells=_counted(chips),
        idle_power=idle,
    )


def _longest(times: list[Number]) -> Number:
    longest = times[0]
    for time in times[1:]:
        longest = jax.numpy.maximum(longest, time)
    return longest


def _counted(chips: list[Bill]) -> Cells:
    done = [one.operations for one in chips]
    return Cells(num_cells=sum(d.num_cells for d in done), num_arrays=sum(d.num_arrays for d in done))


def _block(block: list[list[Bill]]) -> BlockCost:
    own = [one for group in block for one in group]
    return BlockCost(
        cells=_counted(own),
        energy_j=sum(one.energy_j - one.energy.leakage for one in own),
        area_m2=sum(one.area_m2 for one in own),
    )


@checked
def model_digital(
    lm: Any,
    *,
    on: Machine,
    bits: float | int | Sequence[float | int] = 8,
    activation_bits: int = 8,
    context: int = 512,
    density: float = 1.0,
) -> DigitalBill:
    """Return what one token costs on a digital machine: every weight moves once, a block after another.

    Weights of b bits move as b bits and multiply at the width that the machine has. Weights of zero are not moved, but
    then each weight has a bit that says whether it is; their products take time unless the machine makes use of them.

    Args:
        lm: A model, or its `models.Config`; only shapes count.
        on: The machine.
        bits: Bits of the weights, of all blocks or one for each; the head has the most of them.
        activation_bits: Bits of the activations.
        context: Tokens in the cache.
        density: Share of the blocks' weights that are not zero, in (0, 1].

    Returns:
        The bill.

    Example:
        >>> from nvcim_jax import cost
        >>> lm = cost.PUBLISHED["Gemma-2B"]
        >>> bill = cost.model_digital(lm, on=cost.machines.get("orin-agx-30W-gpu"))
        >>> print(f"{1 / bill.latency_s:.0f} tokens/s")  # 2.5 GB of weights at 156 GB/s, and a call a block
        60 tokens/s
    """
    shapes = _config(lm)
    checks.number("density", density, low=0.0, high=1.0, low_open=True)
    each = block_bits(bits, shapes.num_layers, None)
    matrices = [size[1:] for size in shapes.shapes["layers"].values() if len(size) == 3]
    weights = sum(rows * cols for rows, cols in matrices)
    head = shapes.width * shapes.vocab_size
    mask = float(density < 1.0)
    moved = [weights * (density * b + mask) / 8 for b in each] + [head * max(each) / 8]
    held = level_holding(on, float(sum(moved)))
    share = density if on.exploits_sparsity else 1.0
    wide = {"level": held, "on": on, "activation_bits": activation_bits}
    blocks = zip(moved[:-1], each, strict=True)
    parts = [digital(macs=weights * share, moved_bytes=m, weight_bits=b, **wide) for m, b in blocks]
    parts.append(digital(macs=float(head), moved_bytes=moved[-1], weight_bits=max(each), **wide))
    parts += _digital(shapes, context, on)
    return jax.tree.map(lambda *items: sum(items), *parts)
