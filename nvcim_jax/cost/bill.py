"""Itemised bills: every total is the sum of its items, in seconds, joules and square metres."""

import functools
import operator
from typing import Any, NamedTuple, TypeAlias

import jax

from nvcim_jax import checks

__all__ = ["Area", "Bill", "Cells", "Energy", "Latency", "Operations", "total"]

Number: TypeAlias = jax.Array | Any


def total(items: Any) -> Number:
    """Return the sum of the items of a bill."""
    return functools.reduce(operator.add, items)


class Latency(NamedTuple):
    """Seconds, one after another.

    Attributes:
        buffer: Inputs leave the buffer.
        read: Bit lines settle.
        convert: Converters take their columns in turn.
        merge: Partial sums of row tiles are added.
        select: The best of all columns is found.
    """

    buffer: Number
    read: Number
    convert: Number
    merge: Number
    select: Number


class Energy(NamedTuple):
    """Joules.

    Attributes:
        converters: Analog-to-digital conversions.
        cells: Current through cells.
        drivers: Word lines.
        shift_add: Sums of slices, of parts of an input, and of row tiles.
        buffers: Bits written to and read from buffers.
        network: Bits that move between buffer and arrays.
        select: Comparisons.
        leakage: Leakage while it takes.
    """

    converters: Number
    cells: Number
    drivers: Number
    shift_add: Number
    buffers: Number
    network: Number
    select: Number
    leakage: Number


class Area(NamedTuple):
    """Square metres.

    Attributes:
        cells: Arrays.
        converters: Analog-to-digital converters.
        drivers: Drivers of word lines.
        shift_add: Shift-and-add units.
        buffers: Buffers.
    """

    cells: Number
    converters: Number
    drivers: Number
    shift_add: Number
    buffers: Number


@checks.frozen_config
class Cells:
    """What is counted of matrices, a static fact of a bill.

    Attributes:
        num_cells: Cells that hold something.
        num_arrays: Physical arrays.
    """

    num_cells: int
    num_arrays: int


@checks.frozen_config
class Operations:
    """What is counted of one product, or of one search: static, and too large for 32 bits in a large model.

    Attributes:
        num_arrays: Physical arrays.
        num_cells: Cells that hold something.
        num_converters: Converters of all arrays.
        num_steps: Reads of one array after another.
        num_conversions: Conversions.
        conversions_in_turn: Conversions that one converter makes in a step.
        num_drives: Word lines driven, over all steps.
        num_cell_reads: Cells read, over all steps.
        num_row_tiles: Arrays that a column is spread over.
        lossless_bits: Bits of a converter that would lose nothing; None where cells are analog.
    """

    num_arrays: int
    num_cells: int
    num_converters: int
    num_steps: int
    num_conversions: int
    conversions_in_turn: int
    num_drives: int
    num_cell_reads: int
    num_row_tiles: int
    lossless_bits: int | None


class Bill(NamedTuple):
    """What one search or one product costs on a chip.

    Attributes:
        latency: Seconds by item.
        energy: Joules by item.
        area: Square metres by item.
        operations: What was counted.
        idle_power: Watts that leak while nothing happens; cells that are not read keep what they hold for nothing.
    """

    latency: Latency
    energy: Energy
    area: Area
    operations: Operations
    idle_power: Number

    @property
    def latency_s(self) -> Number:
        """Seconds in all."""
        return total(self.latency)

    @property
    def energy_j(self) -> Number:
        """Joules in all."""
        return total(self.energy)

    @property
    def area_m2(self) -> Number:
        """Square metres in all."""
        return total(self.area)
