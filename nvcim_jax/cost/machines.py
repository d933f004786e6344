"""Digital machines: what they move and multiply in a second, and what that takes.

A machine is a row of memories, from the nearest to the farthest, and a rate of products by width. Numbers are traced
leaves with a record each (`nvcim_jax.cost.Constant`); names of the memories, native widths and what the machine can
make use of are static. `get("this-host")` measures the machine that runs it.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

from nvcim_jax import checks
from nvcim_jax.cost import host, machine_table
from nvcim_jax.cost.constants import Constant, changed, leaves_of
from nvcim_jax.signature import checked

__all__ = [
    "Level",
    "Machine",
    "get",
    "level_holding",
    "level_of",
    "levels_of",
    "mac_energy",
    "macs_per_s",
    "names",
    "native_width",
]

# A leaf of a specification, which JAX may also replace by an axis or a batch.
Leaf: TypeAlias = jax.Array | Any

THIS_HOST = "this-host"


class Level(NamedTuple):
    """One memory of a machine.

    Attributes:
        name: Its name, such as "dram".
        size_bytes: What it holds, of all cores together.
        bandwidth: Bytes a second that it delivers, of all cores together.
        energy: Joules for a byte that it delivers.
    """

    name: str
    size_bytes: Leaf
    bandwidth: Leaf
    energy: Leaf


@struct.dataclass
class Machine:
    """A digital machine.

    Attributes:
        values: Name -> number in SI units, traced: `{level}_size`, `{level}_bandwidth`, `{level}_energy` of each level;
            `macs_{width}`, multiply-accumulates a second at a native width at its peak; `mac_energy`, joules of one of
            8 by 8 bits; `efficiency`, reachable share of the peak, in (0, 1]; `call`, seconds to start anything;
            `static_power`, watts besides; `mode_power`, watts that it never exceeds.
        records: (name, `Constant`) of each.
        name: Name of the machine.
        levels: Names of its memories, nearest first.
        widths: Bits of the operands that it multiplies natively, in order; others run as the next of them.
        scales_with_bits: Whether the rate grows as 64 / (bits of weight x bits of activation) instead.
        exploits_sparsity: Whether weights of zero, in no pattern, take no time.
        storage: Whether the last memory is storage, from which nothing is multiplied.
    """

    values: dict[str, Leaf]
    records: tuple[tuple[str, Constant], ...] = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    levels: tuple[str, ...] = struct.field(pytree_node=False)
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    scales_with_bits: bool = struct.field(pytree_node=False, default=False)
    exploits_sparsity: bool = struct.field(pytree_node=False, default=False)
    storage: bool = struct.field(pytree_node=False, default=True)

    def replace(self, **changes: Any) -> "Machine":
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)


def names() -> tuple[str, ...]:
    """Return the names of the known machines.

    Example:
        >>> "orin-agx-30W" in names()
        True
    """
    return (*machine_table.MACHINES, THIS_HOST)


@checked
def get(name: str, **constants: Any) -> Machine:
    """Return a machine, with some of its numbers replaced.

    Args:
        name: One of `names()`. "this-host" is measured now, in about a second: bandwidth against size, and the rate of
            a float32 product; its energies are not measured, and marked so.
        **constants: Any of its constants by name, a number in SI units or a `Constant`.

    Returns:
        The machine.

    Raises:
        ValueError: If the name is unknown, or a number is out of range.
        TypeError: If it has no such constant.

    Example:
        >>> machine = get("orin-agx-30W", dram_bandwidth=120e9)
        >>> print(f"{level_of(machine, 'dram').bandwidth:.3g} B/s")
        1.2e+11 B/s
        >>> get("orin-agx30W")
        Traceback (most recent call last):
        ...
        ValueError: Argument `name` must be one of ..., but is 'orin-agx30W'. Did you mean 'orin-agx-30W'?
    """
    checks.choice("name", name, names())
    made = host.measured() if name == THIS_HOST else machine_table.MACHINES[name]()
    found = changed("machines.get", leaves_of(made.constants), constants)
    return Machine(found.values, found.records, name, *made[1:])


@checked
def levels_of(machine: Machine) -> tuple[Level, ...]:
    """Return the memories of a machine, nearest first.

    Example:
        >>> [level.name for level in levels_of(get("edge-8GB"))]
        ['sram', 'dram', 'ssd']
    """
    return tuple(level_of(machine, name) for name in machine.levels)


@checked
def level_of(machine: Machine, name: str) -> Level:
    """Return one memory of a machine by name.

    Raises:
        ValueError: If it has none of that name.
    """
    checks.choice("name", name, machine.levels)
    return Level(name, *(machine.values[f"{name}_{part}"] for part in ("size", "bandwidth", "energy")))


@checked
def level_holding(machine: Machine, size_bytes: int | float) -> Level:
    """Return the nearest memory that holds so many bytes.

    Args:
        machine: The machine; its sizes must be known numbers, not traced.
        size_bytes: Bytes, at least 0.

    Raises:
        ValueError: If none holds them.

    Example:
        >>> level_holding(get("edge-8GB"), 2e6).name  # more than 1 MB of SRAM
        'dram'
    """
    checks.number("size_bytes", size_bytes, low=0.0)
    sizes = {name: record.value for name, record in machine.records}
    for name in machine.levels:
        if size_bytes <= sizes[f"{name}_size"]:
            return level_of(machine, name)
    last = machine.levels[-1]
    return checks.fail(
        "size_bytes", f"fit into the {last} of {machine.name}, {sizes[f'{last}_size']:.3g} B", f"is {size_bytes:.3g}"
    )


@checked
def native_width(machine: Machine, weight_bits: int, activation_bits: int) -> int:
    """Return the native width at which a machine multiplies operands of so many bits.

    Raises:
        ValueError: If they are wider than anything it multiplies.

    Example:
        >>> native_width(get("orin-agx-30W"), 5, 8)  # a CPU runs 5 bits as 8
        8
    """
    for argument, bits in (("weight_bits", weight_bits), ("activation_bits", activation_bits)):
        checks.integer(argument, bits, high=machine.widths[-1])
    return next(width for width in machine.widths if width >= max(weight_bits, activation_bits))


@checked
def macs_per_s(machine: Machine, weight_bits: int, activation_bits: int) -> Leaf:
    """Return the multiply-accumulates a second that a machine reaches: efficiency x peak.

    Args:
        machine: The machine.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.

    Raises:
        ValueError: If the operands are wider than anything it multiplies.

    Example:
        >>> machine = get("edge-8GB")  # the rate grows as bits fall
        >>> print(f"{macs_per_s(machine, 4, 8) / macs_per_s(machine, 8, 8):.1f}")
        2.0
    """
    width = native_width(machine, weight_bits, activation_bits)
    rate = machine.values["efficiency"] * machine.values[f"macs_{width}"]
    if not machine.scales_with_bits:
        return rate
    return rate * (width * width / (weight_bits * activation_bits))


@checked
def mac_energy(machine: Machine, weight_bits: int, activation_bits: int) -> Leaf:
    """Return the joules of one multiply-accumulate.

    That of 8 by 8 bits times (0.2 a b / 64 + 0.03) / 0.23, a b the product of the widths that run: multiplier and adder
    of an integer unit at 45 nm (inferred from M. Horowitz, ISSCC 2014: add of 8 bits 0.03 pJ, product 0.2 pJ).

    Example:
        >>> machine = get("edge-8GB")
        >>> print(f"{mac_energy(machine, 8, 8) / machine.values['mac_energy']:.2f}")
        1.00
    """
    width = native_width(machine, weight_bits, activation_bits)
    product = weight_bits * activation_bits if machine.scales_with_bits else width * width
    return machine.values["mac_energy"] * jnp.float32((0.2 * product / 64 + 0.03) / 0.23)
