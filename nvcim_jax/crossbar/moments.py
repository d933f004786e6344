"""Mean and variance of a product over chips in closed form: what a simulation must agree with, and what needs none."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.config import Config, stored_slices
from nvcim_jax.crossbar.lines import signed_cells, subtract_lines
from nvcim_jax.crossbar.mapping import Target, output_factor, scaled, slice_weights, zero_conductance
from nvcim_jax.signature import checked

__all__ = ["ArrayMoments", "array_moments", "product_moments"]


class ArrayMoments(NamedTuple):
    """What each array multiplies its inputs with: independent numbers, one a cell pair (or cell and reference).

    Attributes:
        mean: In units of g_max.
        variance: In units of g_max squared.
        weight: What one unit of an array's output stands for, in units of `Target.scale`.
    """

    mean: Float[Array, "arrays tile_rows cols"]
    variance: Float[Array, "arrays tile_rows cols"]
    weight: Float[Array, " arrays"]


@checked
def product_moments(x: Num[ArrayLike, "..."], target: Target) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return mean and variance of a product over freshly programmed chips, with ideal converters and wires.

    Cells are independent, so with c the weight of a full-scale pair, b**s the digital weight of slice s, and m and v
    the mean and variance of one cell (`devices.program_moments`: noise, clipping at 0, stuck cells):

    E y = c sum_s b**s sum_r x_r (m+ - m-),    Var y = c**2 sum_s b**(2 s) sum_r x_r**2 (v+ + v-)

    For analog weights in an unclipped Gaussian pair: Var y = 2 (w_max sigma)**2 sum x**2. With an offset the reference
    column takes the place of the minus cell; an offset subtracted digitally has no noise. Rounded weights are in the
    target already, and so in the mean.

    Args:
        x: Inputs (..., rows).
        target: What the cells are to hold, from `encode`, on a device without read noise. Converters are taken as ideal
            whatever its options say of them.

    Returns:
        Mean and variance (..., cols).

    Raises:
        ValueError: If the device has read noise, or the noise is on values.

    Example:
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("Gaussian", sigma=0.1), crossbar.Config()
        >>> target = crossbar.encode(jnp.full((3, 1), 2.0), device, config=config)
        >>> mean, variance = product_moments(jnp.array([1.0, 2.0, 2.0]), target)
        >>> print(f"{mean[0]:.1f} {variance[0]:.2f} = {2 * (2 * 0.1) ** 2 * (1 + 4 + 4):.2f}")
        10.0 0.72 = 0.72
    """
    checks.shape("x", x, (*np.shape(x)[:-1], target.num_rows), "(..., rows of the target)")
    x = jnp.asarray(x, jnp.float32)
    rows = x.reshape(-1, target.num_rows)
    arrays = array_moments(target)
    weight = arrays.weight[:, None, None]
    scale = target.scale[None]
    means = lax.dot(rows, _rows(weight * arrays.mean, target), precision=lax.Precision.HIGHEST)
    means = scaled(means, jnp.ones((), jnp.float32), target.scale)
    spread = _rows(weight**2 * arrays.variance, target)
    squares = lax.dot(rows**2, spread, precision=lax.Precision.HIGHEST) * scale**2
    shape = (*x.shape[:-1], scale.shape[1])
    return means.reshape(shape), squares.reshape(shape)


def array_moments(target: Target) -> ArrayMoments:
    """Return mean and variance of what each array multiplies with, over freshly programmed chips.

    Args:
        target: What the cells are to hold, from `encode`, on a device without read noise.

    Returns:
        The moments, after the subtraction of pairs, reference columns or offsets.

    Raises:
        ValueError: If the device has read noise, or the noise is on values.
    """
    device, config = target.device, target.config
    if device.read is not None:
        found = f"is of {device.name!r}, which has"
        checks.fail("target", "be of a device without read noise", found, "Encode for device.replace(read=None).")
    if config.noise == "value":
        checks.fail("target", "have noise='cell'", "has 'value'", "Its variance is that of devices.value_noise.")
    num_cols = target.scale.shape[0]
    mean, variance = devices.program_moments(target.conductance, device)
    signed = jax.vmap(lambda cells: signed_cells((*cells,), config, num_cols))(mean)
    num_tiles = mean.shape[0] // stored_slices(config)
    if config.mapping == "offset_digital":
        signed = signed - jnp.tile(zero_conductance(device, config), num_tiles)[:, None, None]
    spread = jax.vmap(lambda cells: _both_halves(cells, config, num_cols))(variance)
    return ArrayMoments(signed, spread, jnp.tile(slice_weights(config), num_tiles) * output_factor(device, config))


def _both_halves(cells: Float[Array, "halves tile_rows lines"], config: Config, num_cols: int) -> jax.Array:
    """Return the variance of a cell less the one that it is measured against: of both together."""
    if config.mapping == "differential":
        return cells[0] + cells[1]
    # subtract_lines knows which reference belongs to a column; it subtracts, so the data go in with the sign turned
    return -subtract_lines(jnp.concatenate([-cells[0, :, :num_cols], cells[0, :, num_cols:]], axis=1), config, num_cols)


def _rows(cells: Float[Array, "arrays tile_rows cols"], target: Target) -> Float[Array, "rows cols"]:
    """Add up the slices of each value, with the rows of all tiles one after another."""
    tiles = cells.reshape(-1, stored_slices(target.config), *cells.shape[1:])
    return jnp.sum(tiles, axis=1).reshape(-1, cells.shape[-1])[: target.num_rows]
