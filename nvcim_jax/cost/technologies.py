"""Technologies: the numbers of cells, converters, drivers and logic of a chip, each with its source.

Every number is a leaf that can be replaced, swept and differentiated; nothing is fitted to the headline figure of a
published chip. Sources that many numbers share: hwcomponents-adc and hwcomponents-library (MIT) with the values of
ISAAC (ISCA 2016), TIMELY and Aladdin (ISCA 2014); DNN+NeuroSim V1.4 `Param`; NVMExplorer's cells; Stillmaker and Baas
for scaling.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flax import struct

from nvcim_jax import checks
from nvcim_jax.cost.constants import Constant, changed, leaves_of, stated
from nvcim_jax.cost.machines import Leaf
from nvcim_jax.signature import checked

__all__ = ["SCALING", "Technology", "node_factors", "technology", "technology_names"]

SCALING: Mapping[float, tuple[float, float]] = {
    130.0: (0.096, 0.039),
    65.0: (0.237, 0.168),
    45.0: (0.294, 0.252),
    40.0: (0.338, 0.366),
    32.0: (0.446, 0.55),
    22.0: (1.0, 1.0),
    14.0: (2.12, 1.45),
}
"""Node in nm -> what energy and area of logic there are multiplied by to be those at 22 nm, at an equal 0.8 V."""

_SCALED = "Stillmaker-Baas to 22 nm"
_ISAAC = "ISAAC at 32 nm (hwcomponents-library)"
_ALADDIN = "Aladdin at 40 nm (hwcomponents-library)"
_NEUROSIM = "DNN+NeuroSim V1.4 Param"
_WAYS = {"energy": 0, "area": 1}


@struct.dataclass
class Technology:
    """The numbers of a chip.

    Attributes:
        values: Name -> number in SI units, traced; `constant_table` lists them with units, ranges and sources.
        records: (name, `Constant`) of each.
        name: Name of the technology.
        node_nm: Feature size of its logic, nanometres.
    """

    values: dict[str, Leaf]
    records: tuple[tuple[str, Constant], ...] = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    node_nm: float = struct.field(pytree_node=False)

    def replace(self, **changes: Any) -> "Technology":
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)


@checked
def node_factors(from_nm: float, to_nm: float) -> tuple[float, float]:
    """Return what energy and area of digital logic are multiplied by from one node to another, at 0.8 V.

    Between the nodes of `SCALING` the logarithm of a factor is linear in that of the node (inferred).

    Args:
        from_nm: Node in nanometres, 14 to 130.
        to_nm: Another.

    Returns:
        (factor of the energy, factor of the area).

    Raises:
        ValueError: If a node lies outside the table.

    Example:
        >>> node_factors(32.0, 22.0)
        (0.446, 0.55)

    References:
        A. Stillmaker, B. Baas, Integration 58 (2017); the values as hwcomponents-library holds them.
    """
    energy, area = (_to_22(from_nm, way) / _to_22(to_nm, way) for way in ("energy", "area"))
    return energy, area


def _to_22(node_nm: float, way: str) -> float:
    nodes = sorted(SCALING)
    checks.number("node_nm", node_nm, low=nodes[0], high=nodes[-1], unit="nm")
    above = next(i for i, node in enumerate(nodes) if node >= node_nm)
    low, high = nodes[max(above - 1, 0)], nodes[above]
    at_low, at_high = (math.log(SCALING[node][_WAYS[way]]) for node in (low, high))
    if low == high or node_nm == high:
        return SCALING[high][_WAYS[way]]
    share = (math.log(node_nm) - math.log(low)) / (math.log(high) - math.log(low))
    return math.exp(at_low + share * (at_high - at_low))


def _logic(value: float, unit: str, source: str, at_nm: float, *, low: float, high: float) -> Constant:
    """Return a digital number at 22 nm from one at another node; the range is a factor below and above."""
    factor = SCALING[at_nm][1 if unit == "m2" else 0]
    scaled = value * factor
    return stated(scaled, unit, f"{source}, {_SCALED}", "P", low=scaled * low, high=scaled * high)


_PERIPHERY: Mapping[str, Constant] = {
    "node": stated(22e-9, "m", "the node that NVCiM-PT's cost is given at", "P"),
    "converter_energy_factor": stated(1.0, "1", "hwcomponents-adc's fit is optimistic", "D", low=0.25, high=4.0),
    "converter_area_factor": stated(1.0, "1", f"the fit is five times {_ISAAC}", "D", low=1 / 3, high=3.0),
    "converter_bit_time": stated(1e-9, "s", f"SAR, (b + 1) steps ({_NEUROSIM})", "P", low=0.3e-9, high=3e-9),
    "driver_energy": stated(0.15e-12, "J", f"one bit; .42 pJ, {_ISAAC}", "D", low=0.03e-12, high=0.4e-12),
    "dac_energy": stated(0.5e-12, "J", "8 bits; .04 pJ by time (TIMELY) to 5", "P", low=0.04e-12, high=5e-12),
    "shift_add_energy": stated(0.05e-12, "J", f".021 pJ for 16 bits, {_ISAAC}", "D", low=0.01e-12, high=0.1e-12),
    "compare_energy": _logic(0.03e-12, "J", _ALADDIN, 40.0, low=0.5, high=2.0),
    "buffer_energy": _logic(0.08e-12, "J", f"a bit; 20.45 pJ for 256 bits of eDRAM, {_ISAAC}", 32.0, low=0.3, high=3.0),
    "network_energy": _logic(0.08e-12, "J", f"a bit and hop; 20.7 pJ for 256 bits, {_ISAAC}", 32.0, low=0.3, high=3.0),
    "driver_area": _logic(0.17e-12, "m2", f"one bit, {_ISAAC}", 32.0, low=1.0, high=10.0),
    "dac_area": stated(21e-12, "m2", "8 bits (MNSIM 2.0)", "P", low=7e-12, high=63e-12),
    "shift_add_area": _logic(60e-12, "m2", _ISAAC, 32.0, low=1 / 3, high=3.0),
    "buffer_area": _logic(0.158e-12, "m2", f"a bit; 83,000 um2 for 64 kB, {_ISAAC}", 32.0, low=1 / 3, high=3.0),
    "leakage_density": stated(650.0, "W/m2", f"of periphery; a counter, {_ALADDIN}", "P", low=350.0, high=8600.0),
    "clock_time": stated(1e-9, "s", "logic at 1 GHz, as ISAAC's", "D", low=0.5e-9, high=2e-9),
    "bus_bits": stated(256.0, "1", f"bits a cycle, {_ISAAC}", "P", low=64.0, high=512.0),
    "sense_time": stated(3e-9, "s", "a comparison after a read, when cells are verified or read back", "D", high=10e-9),
    "sense_factor": stated(1.4, "1", f"post-layout sense time ({_NEUROSIM})", "P", low=1.0, high=1.4),
    "layout_factor": stated(1.22, "1", f"post-layout energy ({_NEUROSIM})", "P", low=1.0, high=1.5),
    "read_time": stated(10e-9, "s", _NEUROSIM, "P", low=3.3e-9, high=30e-9),
    "read_voltage": stated(0.2, "V", "CiMLoop's cell, from PRIME; NeuroSim's examples to .55", "P", low=0.1, high=0.55),
    "write_parallel": stated(128.0, "1", "cells written at a time: one word line", "D", low=1.0, high=1024.0),
}

_CELL_AREA = stated(
    0.077e-12, "m2", f"48 F2 with F = 40 nm, called 22 nm ({_NEUROSIM})", "P", low=0.026e-12, high=0.23e-12
)
_RADAR = "14-44 set and reset pulses of a cell with 2 bits, two schemes on two chips (RRAM-RADAR-Tuning)"
_RADAR_3 = "set and reset pulses of a cell with 3 bits, means over 32,768 cells and more (RRAM-RADAR-Tuning)"
_FEW = "a few pulses"


def _cell(**given: Constant) -> dict[str, Constant]:
    return {**_PERIPHERY, "cell_area": _CELL_AREA, **given}


_CELLS: Mapping[str, dict[str, Constant]] = {
    "RRAM-22nm": _cell(
        conductance=stated(
            5e-6, "S", f"mean of 1/100k and 1/1.7M ohm ({_NEUROSIM}); others 1.3k-250k on", "P", low=1.7e-6, high=15e-6
        ),
        write_voltage=stated(2.0, "V", "NVMExplorer's RRAM", "P", low=1.5, high=3.0),
        write_time=stated(100e-9, "s", "10 ns (NVMExplorer) to 1 us (NeuRRAM)", "D", low=10e-9, high=1e-6),
        write_conductance=stated(20e-6, "S", "while it switches", "D", low=5e-6, high=100e-6),
        write_pulses_1b=stated(8.0, "1", "between one and what 2 bits take", "D", low=1.0, high=14.0),
        write_pulses_2b=stated(25.0, "1", _RADAR, "P", low=14.0, high=44.0),
        write_pulses_3b=stated(137.0, "1", _RADAR_3, "P"),
    ),
    "FeFET-22nm": _cell(
        conductance=stated(7.3e-6, "S", "70k ohm on (NVMExplorer), 45x (Jerry 2017)", "A", low=2.4e-6, high=22e-6),
        write_voltage=stated(2.0, "V", "NVMExplorer's modelled FeFET", "P", low=2.0, high=4.0),
        write_time=stated(20e-9, "s", "NVMExplorer; 75 ns measured (Jerry 2017)", "P", low=20e-9, high=1e-6),
        write_conductance=stated(36e-9, "S", "that makes 2.9 fJ a set (NVMExplorer)", "D", low=12e-9, high=1.1e-6),
        write_pulses_1b=stated(1.0, "1", "one", "R", high=4.0),
        write_pulses_2b=stated(5.0, "1", _FEW, "R", low=1.0, high=25.0),
        write_pulses_3b=stated(20.0, "1", _FEW, "R", low=5.0, high=100.0),
    ),
    "PCM-22nm": _cell(
        conductance=stated(5e-4, "S", "mean of 1/1k and 1/1M ohm (NVSim, 90 nm)", "P", low=5e-6, high=5e-4),
        write_voltage=stated(0.15, "V", "SET, 150 uA through 1k (NVSim, 90 nm)", "D", high=0.6),
        write_time=stated(150e-9, "s", "SET, 150 ns to 30 us (NVSim, 90 nm)", "P", high=30e-6),
        write_conductance=stated(1e-3, "S", "1k ohm (NVSim, 90 nm)", "P", low=3e-4),
        write_pulses_1b=stated(1.0, "1", "one", "R", high=4.0),
        write_pulses_2b=stated(10.0, "1", _FEW, "R", low=3.0, high=30.0),
        write_pulses_3b=stated(30.0, "1", _FEW, "R", low=10.0, high=100.0),
    ),
}


def technology_names() -> tuple[str, ...]:
    """Return the names of the known technologies.

    Example:
        >>> technology_names()
        ('RRAM-22nm', 'FeFET-22nm', 'PCM-22nm')
    """
    return tuple(_CELLS)


@checked
def technology(name: str, *, node_nm: float = 22.0, **constants: Any) -> Technology:
    """Return a technology, with some of its numbers replaced.

    Every number has a unit, a range, a source and a mark (`constant_table`). At another node the energies and areas
    of logic follow `node_factors`, cells the square of the node, converters their own law; times stay as they are.

    Args:
        name: One of `technology_names()`.
        node_nm: Node, nanometres, 14 to 130.
        **constants: Any of its constants by name, a number in SI units or a `Constant`; counts at the node asked for.

    Returns:
        The technology.

    Raises:
        ValueError: If the name is unknown, or a number is out of range.
        TypeError: If it has no such constant.

    Example:
        >>> chip = technology("RRAM-22nm", read_voltage=0.1)
        >>> rows = {row["constant"]: row for row in __import__("nvcim_jax").cost.constant_table(chip)}
        >>> rows["read_voltage"]["mark"], rows["conductance"]["mark"]
        ('U', 'P')
    """
    checks.choice("name", name, _CELLS)
    table = {key: _at_node(key, one, node_nm) for key, one in _CELLS[name].items()}
    found = changed("technology", leaves_of(table), constants)
    return Technology(found.values, found.records, name, node_nm)


_LOGIC_ENERGY = ("driver", "dac", "shift_add", "compare", "buffer", "network")
_LOGIC_AREA = ("driver", "dac", "shift_add", "buffer")


def _at_node(name: str, one: Constant, node_nm: float) -> Constant:
    """Return a constant at another node than 22 nm."""
    if node_nm == 22.0:
        return one
    energy, area = node_factors(22.0, node_nm)
    factors = {f"{part}_energy": energy for part in _LOGIC_ENERGY} | {f"{part}_area": area for part in _LOGIC_AREA}
    factor = (factors | {"cell_area": (node_nm / 22.0) ** 2, "node": node_nm / 22.0}).get(name, 1.0)
    if factor == 1.0:
        return one
    scaled = (one.value * factor, one.low * factor, one.high * factor)
    return Constant(*scaled, one.unit, f"{one.source}; 22 to {node_nm:g} nm", one.mark)
