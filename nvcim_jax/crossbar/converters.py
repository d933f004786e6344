"""Digital to analog and back: inputs to the voltages of word lines, currents of bit lines to codes."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, ops
from nvcim_jax.crossbar.config import Config

__all__ = ["Drive", "adc", "check_inputs", "dac"]


class Drive(NamedTuple):
    """Inputs as the word lines see them.

    Attributes:
        voltages: In units of the full scale, in [-1, 1], (row tiles, planes, batch, tile rows); a plane is what is
            applied in one cycle.
        plane_weights: Digital weight of each plane, (planes,).
        scale: Full scale of each vector and row tile, (row tiles, batch), in the unit of the inputs.
        clipped: Share of the inputs beyond the full scale.
    """

    voltages: Float[Array, "row_tiles planes batch tile_rows"]
    plane_weights: Float[Array, " planes"]
    scale: Float[Array, "row_tiles batch"]
    clipped: Float[Array, ""]


def check_inputs(x: ArrayLike, num_rows: int, dac_max: Float[Array, ""] | None, config: Config) -> None:
    """Check rank, rows and range of the inputs before anything is traced.

    Raises:
        ValueError: If one is wrong.
    """
    checks.rank("x", x, (1, 2), "(rows,) or (batch, rows)")
    if np.shape(x)[-1] != num_rows:
        checks.fail("x", f"have {num_rows} rows, as the programmed weights", f"has shape {np.shape(x)}")
    checks.finite("x", x)
    if config.dac_range == "fixed" and dac_max is not None and checks.is_concrete(dac_max):
        checks.number("x", x, low=-float(dac_max), high=float(dac_max), fix="Scale x, or raise dac_max.")


def dac(
    x: Float[Array, "batch rows"], num_tiles: int, tile_rows: int, max_: Float[Array, ""] | None, config: Config
) -> Drive:
    """Convert inputs to voltages, x / scale rounded to 2**dac_bits - 1 codes, one for zero.

    A vector is scaled by the absmax of the part that meets an array, or by a fixed full scale, beyond which it is
    clipped. With `dac_bits_per_cycle` the magnitude of the code is applied digit by digit, the lowest first.

    Args:
        x: Inputs.
        num_tiles: Row tiles of the matrix.
        tile_rows: Rows of a tile; missing rows are driven with zero.
        max_: Full scale; None for absmax.
        config: Options of the crossbar.

    Returns:
        The voltages and how to put outputs together again.
    """
    padded = jnp.pad(x, ((0, 0), (0, num_tiles * tile_rows - x.shape[1])))
    parts = jnp.swapaxes(padded.reshape(x.shape[0], num_tiles, tile_rows), 0, 1)
    clipped = jnp.zeros((), x.dtype)
    if config.dac_bits is None and config.adc_bits is None:
        scale = jnp.ones(parts.shape[:2], x.dtype)
    elif max_ is None:
        scale = lax.stop_gradient(jnp.max(jnp.abs(parts), axis=2))
        scale = jnp.where(scale > 0, scale, 1.0)
    else:
        scale = jnp.broadcast_to(max_, parts.shape[:2])
        clipped = jnp.mean(jnp.abs(x) > max_, dtype=x.dtype)
    unit = parts / scale[:, :, None]
    if max_ is not None:
        one = jnp.ones((), x.dtype)
        unit = ops.clip_inclusive(unit, -one, one)
    planes, weights = _planes(unit, config)
    return Drive(planes, weights, scale, clipped)


def adc(
    v: Float[Array, "batch lines"], bounds: Float[Array, " 2"] | None, config: Config
) -> tuple[Float[Array, "batch lines"], Float[Array, ""]]:
    """Convert the outputs of one array; codes come back in the unit of the outputs.

    Args:
        v: Outputs of the bit lines, in units of a full-scale input times g_max.
        bounds: Lowest and highest output; None for the absmax of each read.
        config: Options of the crossbar.

    Returns:
        Converted outputs, and the share of them that was beyond the range.
    """
    none = jnp.zeros((), v.dtype)
    if config.adc_bits is None:
        return v, none
    symmetric = config.adc_code == "symmetric"
    if bounds is None:
        high = lax.stop_gradient(jnp.max(jnp.abs(v), axis=1, keepdims=True))
        high = jnp.where(high > 0, high, 1.0)
        low, saturated = -high, none
    else:
        low, high = bounds[0], bounds[1]
        saturated = jnp.mean((v > high) | (v < low), dtype=v.dtype)
    if symmetric:
        step = high / (2 ** (config.adc_bits - 1) - 1)
        return ops.round_straight_through(ops.clip_inclusive(v, low, high) / step) * step, saturated
    return ops.uniform_steps(v, low, high, num_steps=2**config.adc_bits - 1), saturated


def _planes(
    unit: Float[Array, "row_tiles batch tile_rows"], config: Config
) -> tuple[Float[Array, "row_tiles planes batch tile_rows"], Float[Array, " planes"]]:
    """Round inputs in [-1, 1] and split them into what is applied in each cycle."""
    whole = jnp.ones((1,), unit.dtype)
    if config.dac_bits is None:
        return unit[:, None], whole
    steps = float(2 ** (config.dac_bits - 1) - 1)
    code = ops.round_straight_through(unit * steps)
    if config.dac_bits_per_cycle is None:
        return code[:, None] / steps, whole
    base = 2**config.dac_bits_per_cycle
    num_planes = -(-(config.dac_bits - 1) // config.dac_bits_per_cycle)
    sign = jnp.where(lax.stop_gradient(code) < 0, -1.0, 1.0)  # not 0 at 0, where the gradient would be lost
    digits = sign[None] * ops.digits(sign * code, base=base, num_digits=num_planes)
    weights = jnp.asarray([float(base) ** p * (base - 1) / steps for p in range(num_planes)], unit.dtype)
    return jnp.moveaxis(digits, 0, 1) / (base - 1), weights
