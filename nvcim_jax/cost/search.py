"""The search for a stored prompt: on a chip, and on a digital machine."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from nvcim_jax import checks, crossbar
from nvcim_jax.cost.bill import Bill, Number, total
from nvcim_jax.cost.machines import (
    Level,
    Machine,
    level_holding,
    level_of,
    mac_energy,
    macs_per_s,
)
from nvcim_jax.cost.product import PERIPHERY, Periphery, price
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked

__all__ = ["DigitalBill", "DigitalEnergy", "DigitalLatency", "digital", "search", "search_digital"]


class DigitalLatency(NamedTuple):
    """Seconds.

    Attributes:
        call: Until anything starts.
        products: Multiplications.
        waiting: For bytes that the multiplications do not hide.
    """

    call: Number
    products: Number
    waiting: Number


class DigitalEnergy(NamedTuple):
    """Joules.

    Attributes:
        movement: Bytes from the memory that holds them.
        products: Multiplications.
        static: What the machine takes besides, while it takes.
    """

    movement: Number
    products: Number
    static: Number


class DigitalBill(NamedTuple):
    """What a piece of work costs on a digital machine.

    Attributes:
        latency: Seconds by item.
        energy: Joules by item.
        bound_j: Joules that its power mode allows in that time.
    """

    latency: DigitalLatency
    energy: DigitalEnergy
    bound_j: Number

    @property
    def latency_s(self) -> Number:
        """Seconds in all."""
        return total(self.latency)

    @property
    def energy_j(self) -> Number:
        """Joules in all."""
        return total(self.energy)


@checked
def search(
    config: crossbar.Config,
    num_stored: int,
    *,
    on: Technology,
    values: int = 48,
    periphery: Periphery = PERIPHERY,
) -> Bill:
    """Return what one search among stored prompts costs on a chip.

    t = buffer + steps (b t_r + M t_adc) + merge + select. With slices on the rows of one array the steps are slices x
    parts of an input, else the parts alone; all arrays are read together unless `periphery` says otherwise.
    E = z [conversions (E_adc + E_sa) + cell reads V_r^2 g t_r + drives E_drv] + bits E_buf + bits hops E_noc + compares
    E_cmp + P_leak t. Columns that hold nothing are neither read nor converted.

    Args:
        config: Options of the crossbar, with bits of both converters.
        num_stored: Stored prompts: columns.
        on: The technology.
        values: Rows of a key: 48 of a code; with pooled copies stored apart `selection.num_key_rows`.
        periphery: What stands around the arrays.

    Returns:
        The bill.

    Raises:
        ValueError: If a converter is ideal, or loses bits where that is refused.

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, mapping="offset_digital",
        ...     slices="rows", dac_bits=17, dac_bits_per_cycle=1, adc_bits=8)
        >>> bill = cost.search(config, 1024, on=cost.technology("RRAM-22nm", sense_factor=1.0, layout_factor=1.0))
        >>> print(f"{bill.latency_s * 1e6:.1f} us, converters {bill.energy.converters * 1e9:.1f} nJ")
        10.5 us, converters 110.9 nJ
    """
    checks.integer("num_stored", num_stored)
    checks.integer("values", values)
    return price((values, num_stored), config, on, periphery, search=True)


@checked
def digital(
    *,
    macs: Any,
    moved_bytes: Any,
    level: Level,
    on: Machine,
    weight_bits: int = 16,
    activation_bits: int = 16,
) -> DigitalBill:
    """Return what a piece of work costs on a digital machine: a roofline.

    T = T_call + max(MAC / rate, bytes / bandwidth); E = bytes E_level + MAC E_mac + P_static T.

    Args:
        macs: Multiply-accumulates.
        moved_bytes: Bytes that come from the memory.
        level: The memory.
        on: The machine.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an activation.

    Returns:
        The bill.

    Example:
        >>> from nvcim_jax import cost
        >>> edge = cost.machines.get("edge-8GB")
        >>> dram = cost.machines.level_of(edge, "dram")
        >>> bill = cost.digital(macs=1e6, moved_bytes=25.6e6, level=dram, on=edge, weight_bits=8, activation_bits=8)
        >>> print(f"{bill.latency_s * 1e3:.3f} ms")  # 25.6 MB at 25.6 GB/s, and 1 us to start
        1.001 ms
    """
    for name, given in (("macs", macs), ("moved_bytes", moved_bytes)):
        checks.number(name, given, low=0.0)
    products = macs / macs_per_s(on, weight_bits, activation_bits)
    waiting = jnp.maximum(moved_bytes / level.bandwidth - products, 0.0)
    latency = DigitalLatency(on.values["call"], products, waiting)
    taken = total(latency)
    energy = DigitalEnergy(
        movement=moved_bytes * level.energy,
        products=macs * mac_energy(on, weight_bits, activation_bits),
        static=on.values["static_power"] * taken,
    )
    return DigitalBill(latency, energy, on.values["mode_power"] * taken)


@checked
def search_digital(
    num_stored: int,
    *,
    on: Machine,
    values: int = 48,
    bits: int = 16,
    level: str | None = None,
) -> DigitalBill:
    """Return what one search costs on a digital machine: every stored value is read and multiplied once.

    Args:
        num_stored: Stored prompts.
        on: The machine.
        values: Values of a key.
        bits: Bits of a value, as it is stored and multiplied.
        level: Memory that holds the store; None: the nearest that has room. A language model that runs between two
            searches leaves nothing of the store in the caches: then give "dram".

    Returns:
        The bill.

    Raises:
        ValueError: If no memory holds the store, that one does not, or there is none of that name.

    Example:
        >>> from nvcim_jax import cost
        >>> bill = cost.search_digital(1000, on=cost.machines.get("orin-agx-30W"), level="dram")
        >>> print(f"{bill.latency_s * 1e6:.1f} us")  # 96 kB at 60 GB/s, and 1 us to start
        2.6 us
    """
    for name, given in (("num_stored", num_stored), ("values", values)):
        checks.integer(name, given)
    held = num_stored * values * bits / 8
    found = level_holding(on, held) if level is None else level_of(on, level)
    room = dict(on.records)[f"{found.name}_size"].value
    if held > room:
        fix = "Give a memory farther from the machine, or none."
        checks.fail("level", f"hold the store, {held:.3g} B", f"the {level} of {on.name} has {room:.3g} B", fix)
    macs = float(num_stored * values)
    return digital(macs=macs, moved_bytes=held, level=found, on=on, weight_bits=bits, activation_bits=bits)
