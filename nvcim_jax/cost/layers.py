"""What a matrix costs on a chip: its products, its programming, and reading it back."""

import math
from typing import Any, NamedTuple

import jax

from nvcim_jax import checks, crossbar
from nvcim_jax.cost.bill import Bill, Cells, Number, total
from nvcim_jax.cost.converter import converter_energy
from nvcim_jax.cost.product import PERIPHERY, Periphery, price
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked

__all__ = ["ArrayBill", "ArrayItems", "layer", "program", "read_back"]

VERIFY_BITS = 4
"""Bits of the converter that verifies cells and reads them back: more than a cell holds."""


class ArrayItems(NamedTuple):
    """Seconds, or joules.

    Attributes:
        cells: Current through cells: pulses that write, or reads.
        sensing: Comparisons and conversions.
    """

    cells: Number
    sensing: Number


class ArrayBill(NamedTuple):
    """What writing or reading cells one by one costs.

    Attributes:
        latency: Seconds by item.
        energy: Joules by item.
        cells: Arrays and cells that are written or read.
    """

    latency: ArrayItems
    energy: ArrayItems
    cells: Cells

    @property
    def latency_s(self) -> Number:
        """Seconds in all."""
        return total(self.latency)

    @property
    def energy_j(self) -> Number:
        """Joules in all."""
        return total(self.energy)


@checked
def layer(
    shape: tuple[int, ...],
    config: crossbar.Config,
    *,
    on: Technology,
    tokens: int = 1,
    periphery: Periphery = PERIPHERY,
) -> Bill:
    """Return what the products of one matrix with so many input vectors cost, one after another.

    As `search`, but all sums leave the chip and nothing is selected; sums of row tiles are added.

    Args:
        shape: (inputs, outputs) of the matrix.
        config: Options of the crossbar, with bits of both converters.
        on: The technology.
        tokens: Input vectors.
        periphery: What stands around the arrays.

    Returns:
        The bill; its area is that of the matrix once.

    Raises:
        ValueError: If a converter is ideal, or loses bits where that is refused.

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=8, cell_bits=2, dac_bits=8, adc_bits=8)
        >>> bill = cost.layer((576, 1536), config, on=cost.technology("RRAM-22nm"))
        >>> bill.operations.num_arrays  # 2 row tiles x 12 column tiles x 4 slices x 2 cells of a pair
        192
    """
    checks.integer("tokens", tokens)
    one = price((shape[0], shape[1]), config, on, periphery, search=False)
    if tokens == 1:
        return one
    latency, energy = (jax.tree.map(lambda item: float(tokens) * item, part) for part in (one.latency, one.energy))
    return one._replace(latency=latency, energy=energy)


def _counted(shape: tuple[int, ...], config: crossbar.Config) -> Cells:
    found = crossbar.report(shape, config)
    return Cells(num_cells=found.num_cells_used, num_arrays=found.num_arrays)


def _pulses(config: crossbar.Config, on: Technology, pulses: Any) -> Any:
    """Return the pulses that a cell takes: as given, or as its bits ask for."""
    if pulses is not None:
        checks.number("pulses", pulses, low=1.0)
        return pulses
    bits = [b for b in (config.cell_bits, config.weight_bits) if b is not None]
    if not bits or min(bits) > 3:
        found = "is left out with analog cells" if not bits else f"is left out with {min(bits)} bits a cell"
        checks.fail("pulses", "be given", found, "What is known ends at 3 bits: give pulses=.")
    return on.values[f"write_pulses_{min(bits)}b"]


@checked
def program(shape: tuple[int, ...], config: crossbar.Config, *, on: Technology, pulses: Any = None) -> ArrayBill:
    """Return what writing a matrix costs, cells verified after every pulse.

    E = cells p (V_w^2 g_w t_p + V_r^2 g t_r + E_adc(4 bits)); t = cells / P p (t_p + t_r + sense), P cells written
    together. References are written too.

    Args:
        shape: (rows, cols) of the matrix.
        config: Options of the crossbar.
        on: The technology.
        pulses: Pulses p a cell, at least 1; None: as measured for 1, 2 or 3 bits a cell.

    Returns:
        The bill.

    Raises:
        ValueError: If nothing is known of cells of so many bits and `pulses` is not given.

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows")
        >>> bill = cost.program((48, 128), config, on=cost.technology("RRAM-22nm"), pulses=8)
        >>> print(f"{bill.energy.cells / bill.cells.num_cells * 1e12:.0f} pJ a cell")
        64 pJ a cell
    """
    values, counted = on.values, _counted(shape, config)
    cells = float(counted.num_cells)
    number = _pulses(config, on, pulses)
    pulse = values["write_voltage"] ** 2 * values["write_conductance"] * values["write_time"]
    read = values["read_voltage"] ** 2 * values["conductance"] * values["read_time"]
    rounds = cells / values["write_parallel"]
    return ArrayBill(
        latency=ArrayItems(
            rounds * number * values["write_time"], rounds * number * (values["read_time"] + values["sense_time"])
        ),
        energy=ArrayItems(cells * number * pulse, cells * number * (read + converter_energy(VERIFY_BITS, on))),
        cells=counted,
    )


@checked
def read_back(
    num_codes: int,
    config: crossbar.Config,
    *,
    on: Technology,
    values: int = 48,
    periphery: Periphery = PERIPHERY,
) -> ArrayBill:
    """Return what reading stored codes back costs, a word line at a time.

    With slices on rows: slices x values steps, each ceil(T M / C) conversions long, of t_r + sense;
    E = cells (V_r^2 g t_r + E_adc(4 bits)). With slices on columns or in arrays of their own the steps are the values.

    Args:
        num_codes: Codes T that lie in neighbouring columns: the tokens of one prompt.
        config: Options of the crossbar.
        on: The technology.
        values: Values of a code.
        periphery: What stands around the arrays.

    Returns:
        The bill; decoding what was read is digital (`digital`).

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, mapping="offset_digital",
        ...     slices="rows", dac_bits=9, adc_bits=8)
        >>> bill = cost.read_back(8, config, on=cost.technology("RRAM-22nm"))
        >>> print(f"{bill.latency_s * 1e6:.2f} us")  # 384 rows, 8 of 128 columns at 8 a converter: one turn, 13 ns
        4.99 us
    """
    checks.integer("num_codes", num_codes)
    checks.integer("values", values)
    sizes = crossbar.geometry((values, num_codes), config)
    rows = values * (sizes.num_slices if config.slices == "rows" else 1)
    across = num_codes * (sizes.num_slices if config.slices == "columns" else 1)
    turns = math.ceil(across * periphery.columns_per_adc / sizes.array_cols)
    counted = _counted((values, num_codes), config)
    found, steps, cells = on.values, float(rows * turns), float(counted.num_cells)
    read = found["read_voltage"] ** 2 * found["conductance"] * found["read_time"]
    return ArrayBill(
        latency=ArrayItems(steps * found["read_time"], steps * found["sense_time"]),
        energy=ArrayItems(cells * read, cells * converter_energy(VERIFY_BITS, on)),
        cells=counted,
    )
