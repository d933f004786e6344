"""What an analog-to-digital converter takes: time, energy of one conversion, and area, from bits and rate."""

import math
from typing import Any

import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.cost.machines import Leaf
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked

__all__ = ["MOST_BITS", "conversion_time", "converter_area", "converter_energy", "dac_scale", "lossless_bits"]

LEAST_BITS, MOST_BITS = 4, 16
"""Bits for which the law below stands."""


def _check_bits(bits: Any) -> None:
    checks.number("bits", bits, low=float(LEAST_BITS), high=float(MOST_BITS))
    checks.shape("bits", bits, (), fix="Use jax.vmap for many.")


@checked
def conversion_time(bits: Any, on: Technology) -> Leaf:
    """Return the seconds of one conversion by successive approximation: (b + 1) steps.

    Args:
        bits: Bits of the converter, 4 to 16; a real number too.
        on: The technology.

    Raises:
        ValueError: If the bits are out of range.

    Example:
        >>> from nvcim_jax import cost
        >>> print(f"{conversion_time(8, cost.technology('RRAM-22nm')):.1e} s")
        9.0e-09 s
    """
    _check_bits(bits)
    return (bits + 1.0) * on.values["converter_bit_time"]


@checked
def converter_energy(bits: Any, on: Technology, *, sample_time: Any = None) -> Leaf:
    """Return the joules of one conversion, an optimistic fit to Murmann's survey.

    F = min(213.78 - 2.872 ln f, 128.31 + 3.2205 ceil(b)) dB,
    E = 0.5 pJ 10^((6.02 b + 1.76 - F) / 10) exp(24.58 + 1.880 ln t - 2.829 ln b), t the node in nm, f in Hz, times
    `converter_energy_factor`.

    Args:
        bits: Bits of the converter, 4 to 16; a real number too.
        on: The technology.
        sample_time: Seconds from one conversion to the next; `conversion_time` when None.

    Raises:
        ValueError: If the bits are out of range.

    Example:
        >>> from nvcim_jax import cost
        >>> found = [float(converter_energy(b, cost.technology("RRAM-22nm"), sample_time=1e-8)) for b in (4, 6, 8, 10)]
        >>> print([f"{1e12 * energy:.2f}" for energy in found])  # 22 nm, 100 MS/s, pJ
        ['0.46', '0.53', '0.85', '1.63']

    References:
        hwcomponents-adc (MIT), after B. Murmann, ADC Performance Survey.
    """
    _check_bits(bits)
    if sample_time is not None:
        checks.number("sample_time", sample_time, low=0.0, low_open=True, unit="s")
        checks.shape("sample_time", sample_time, (), fix="Use jax.vmap for many.")
    time = conversion_time(bits, on) if sample_time is None else sample_time
    merit = jnp.minimum(213.78 + 2.872 * jnp.log(time), 128.31 + 3.2205 * jnp.ceil(jnp.asarray(bits, jnp.float32)))
    decades = (6.02 * bits + 1.76 - merit) / 10.0
    technology = 24.58 + 1.880 * jnp.log(on.values["node"] * 1e9) - 2.829 * jnp.log(jnp.asarray(bits, jnp.float32))
    return 0.5e-12 * jnp.exp(math.log(10.0) * decades + technology) * on.values["converter_energy_factor"]


@checked
def converter_area(bits: Any, on: Technology) -> Leaf:
    """Return the area of one converter, square metres.

    exp(1.346 + 0.9933 ln t + 0.1807 ln f + 0.2991 ln E) um2, t the node in nm, f in Hz, E in pJ, times
    `converter_area_factor`.

    Args:
        bits: Bits of the converter, 4 to 16; a real number too.
        on: The technology.

    Example:
        >>> from nvcim_jax import cost
        >>> print(f"{converter_area(8, cost.technology('RRAM-22nm')) * 1e12:.2g} um2")
        2.2e+03 um2

    References:
        hwcomponents-adc (MIT).
    """
    # the fit of the area knows the fitted energy, not what a user believes of it
    fitted = converter_energy(bits, on) / on.values["converter_energy_factor"]
    logs = 0.9933 * jnp.log(on.values["node"] * 1e9) - 0.1807 * jnp.log(conversion_time(bits, on))
    return jnp.exp(1.346 + logs + 0.2991 * jnp.log(fitted * 1e12)) * 1e-12 * on.values["converter_area_factor"]


def dac_scale(bits: int, one_bit: Leaf, eight_bits: Leaf) -> Leaf:
    """Return a number of a word line's driver of so many bits, geometric between one and eight (inferred)."""
    return one_bit * (eight_bits / one_bit) ** ((bits - 1) / 7.0)


@checked
def lossless_bits(rows: int, input_bits: int, cell_bits: int, *, signed: bool = False) -> int:
    """Return the bits that hold every sum of one bit line: ceil(log2(r (2^k - 1)(2^c - 1) + 1)), one more with a sign.

    Args:
        rows: Word lines r that are driven together.
        input_bits: Bits k of an input applied at a time, its sign not counted.
        cell_bits: Bits c of a cell.
        signed: Whether sums may be negative, by signed inputs or a pair of cells.

    Example:
        >>> lossless_bits(48, 1, 2), lossless_bits(384, 1, 2), lossless_bits(48, 8, 2)
        (8, 11, 16)
    """
    checks.integer("rows", rows, high=10**9)
    for name, value in (("input_bits", input_bits), ("cell_bits", cell_bits)):
        checks.integer(name, value, high=24)
    return (rows * (2**input_bits - 1) * (2**cell_bits - 1)).bit_length() + signed
