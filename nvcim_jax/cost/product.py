"""One product on a chip: what is counted, and what each of the counts costs."""

import math

from nvcim_jax import checks, crossbar
from nvcim_jax.cost.bill import Area, Bill, Energy, Latency, Operations
from nvcim_jax.cost.converter import (
    LEAST_BITS,
    MOST_BITS,
    conversion_time,
    converter_area,
    converter_energy,
    dac_scale,
    lossless_bits,
)
from nvcim_jax.cost.machines import Leaf
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked

__all__ = ["PARTIAL_SUM_BITS", "PERIPHERY", "Periphery", "count", "price", "step_bits"]

PARTIAL_SUM_BITS = 32
"""Bits of a sum or of a score with its index, as it moves on a chip."""


@checks.frozen_config
class Periphery:
    """What stands around the arrays, beyond what the simulation of a chip asks for.

    Attributes:
        columns_per_adc: Columns M that share a converter and are converted in turn.
        arrays_at_once: Arrays that are read together; None: all of them.
        lossless: Refuse converters that cannot hold every sum of a bit line.
    """

    columns_per_adc: int = 8
    arrays_at_once: int | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        checks.integer("columns_per_adc", self.columns_per_adc)
        if self.arrays_at_once is not None:
            checks.integer("arrays_at_once", self.arrays_at_once)


PERIPHERY = Periphery()
"""Eight columns a converter, all arrays together."""


def step_bits(config: crossbar.Config) -> int:
    """Return the bits of an input that one step applies, the sign not counted."""
    return config.dac_bits_per_cycle or (config.dac_bits or 2) - 1


def _check(config: crossbar.Config) -> None:
    fix = "Ideal converters cost nothing that can be known."
    if config.dac_bits is None:
        checks.fail("config", "have dac_bits, the bits of an input", "has None", fix)
    if config.adc_bits is None or not LEAST_BITS <= config.adc_bits <= MOST_BITS:
        checks.fail("config", f"have adc_bits from {LEAST_BITS} to {MOST_BITS}", f"has {config.adc_bits}", fix)


def _needed_bits(config: crossbar.Config, rows: int) -> int | None:
    """Return the bits that hold every sum of a column; inputs carry their sign, so sums do too."""
    bits = [b for b in (config.cell_bits, config.weight_bits) if b is not None]
    return lossless_bits(rows, step_bits(config), min(bits), signed=True) if bits else None


@checked
def count(shape: tuple[int, ...], config: crossbar.Config, *, periphery: Periphery = PERIPHERY) -> Operations:
    """Count the operations of one product with one input vector.

    Arrays, cells, steps, drives and conversions are those of `crossbar.report`. A pair of arrays whose currents are
    subtracted shares its converters. Every cell that holds something is read in each of the parts of an input.

    Args:
        shape: (rows, cols) of the matrix.
        config: Options of the crossbar, with bits of both converters.
        periphery: What stands around the arrays.

    Returns:
        The counts.

    Raises:
        ValueError: If a converter is ideal, or loses bits where that is refused.

    Example:
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, mapping="offset_digital",
        ...     slices="rows", dac_bits=17, dac_bits_per_cycle=1, adc_bits=8)
        >>> found = count((48, 1024), config)
        >>> found.num_arrays, found.num_conversions, found.num_steps
        (8, 131072, 128)
    """
    _check(config)
    found, sizes = crossbar.report(shape, config), crossbar.geometry((shape[0], shape[1]), config)
    in_turn = sizes.num_slices if config.slices == "rows" else 1
    pairs = config.mapping == "differential" and not config.adc_before_subtraction
    lines = found.array_cols // 2 if pairs and config.slices == "columns" else found.array_cols
    with_converters = found.num_arrays // 2 if pairs and config.slices != "columns" else found.num_arrays
    needed = _needed_bits(config, sizes.tile_rows)
    if periphery.lossless and needed is not None and needed > (config.adc_bits or 0):
        fix = f"Use adc_bits={needed}, fewer rows, fewer bits a cell, or dac_bits_per_cycle=1."
        what = f"hold every sum of {sizes.tile_rows} rows, {needed} bits, to lose nothing"
        checks.fail("config", what, f"has adc_bits={config.adc_bits}", fix)
    return Operations(
        num_arrays=found.num_arrays,
        num_cells=found.num_cells_used,
        num_converters=with_converters * -(-lines // periphery.columns_per_adc),
        num_steps=found.num_cycles,
        num_conversions=found.num_adc_conversions,
        conversions_in_turn=min(periphery.columns_per_adc, lines),
        num_drives=found.num_dac_operations,
        num_cell_reads=found.num_cells_used * (found.num_cycles // in_turn),
        num_row_tiles=sizes.num_row_tiles,
        lossless_bits=needed,
    )


def price(
    shape: tuple[int, ...], config: crossbar.Config, on: Technology, periphery: Periphery, *, search: bool
) -> Bill:
    """Return the bill of one product with one input vector.

    Args:
        shape: (rows, cols) of the matrix.
        config: Options of the crossbar.
        on: The technology.
        periphery: What stands around the arrays.
        search: Whether only the best column leaves the chip, or all sums do.
    """
    done = count(shape, config, periphery=periphery)
    area = _area(shape, config, on, done)
    latency = _latency(shape, config, on, done, periphery, search)
    idle = on.values["leakage_density"] * (sum(area) - area.cells)
    taken = sum(latency)
    return Bill(latency, _energy(shape, config, on, done, search, idle * taken), area, done, idle)


def _latency(
    shape: tuple[int, ...],
    config: crossbar.Config,
    on: Technology,
    done: Operations,
    periphery: Periphery,
    search: bool,
) -> Latency:
    values = on.values
    turns = 1 if periphery.arrays_at_once is None else -(-done.num_arrays // periphery.arrays_at_once)
    steps = float(done.num_steps * turns)
    one = conversion_time(config.adc_bits, on)
    return Latency(
        buffer=float(shape[0] * (config.dac_bits or 1)) / values["bus_bits"] * values["clock_time"],
        read=steps * values["sense_factor"] * values["read_time"],
        convert=steps * done.conversions_in_turn * one,
        merge=math.ceil(math.log2(done.num_row_tiles)) * values["clock_time"],
        select=(math.ceil(math.log2(shape[1])) if search else 0) * values["clock_time"],
    )


def _energy(
    shape: tuple[int, ...], config: crossbar.Config, on: Technology, done: Operations, search: bool, leakage: Leaf
) -> Energy:
    values, layout = on.values, on.values["layout_factor"]
    input_bits = float(shape[0] * (config.dac_bits or 1))
    # all sums leave, or the best of each array with its index; they cross half of a square of arrays (inferred)
    output_bits = float(PARTIAL_SUM_BITS * (done.num_arrays if search else shape[1]))
    delivered = input_bits * done.num_arrays / done.num_row_tiles
    moved = delivered + output_bits * (0.5 * math.sqrt(done.num_arrays))
    per_read = values["read_voltage"] ** 2 * values["conductance"] * values["read_time"]
    per_drive = dac_scale(step_bits(config), values["driver_energy"], values["dac_energy"])
    additions = float(done.num_conversions + (done.num_row_tiles - 1) * shape[1])
    return Energy(
        converters=layout * float(done.num_conversions) * converter_energy(config.adc_bits, on),
        cells=layout * (float(done.num_cell_reads) * per_read),
        drivers=layout * (float(done.num_drives) * per_drive),
        shift_add=layout * (additions * values["shift_add_energy"]),
        buffers=(input_bits + output_bits) * values["buffer_energy"],
        network=moved * values["network_energy"],
        select=float(shape[1] if search else 0) * values["compare_energy"],
        leakage=leakage,
    )


def _area(shape: tuple[int, ...], config: crossbar.Config, on: Technology, done: Operations) -> Area:
    values = on.values
    found = crossbar.report(shape, config)
    held = float(shape[0] * (config.dac_bits or 1) + PARTIAL_SUM_BITS * shape[1])
    each = dac_scale(step_bits(config), values["driver_area"], values["dac_area"])
    return Area(
        cells=float(found.num_cells_available) * values["cell_area"],
        converters=float(done.num_converters) * converter_area(config.adc_bits, on),
        drivers=float(done.num_arrays * found.array_rows) * each,
        shift_add=float(done.num_converters) * values["shift_add_area"],
        buffers=held * values["buffer_area"],
    )
