"""Signed weights to the target conductances of cells, and back: pairs, offsets, slices, tiles.

Cells are kept as (arrays, halves, rows, columns). Array a = t * slices + s holds slice s of row tile t: everything that
meets one read of one group of physical arrays. Halves are the two cells of a pair, or one; columns are those of the
matrix, followed by the reference columns. How they lie on the silicon (`Config.slices`) matters only to wires.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices, ops
from nvcim_jax.crossbar.config import (
    MAX_BITS,
    Config,
    Geometry,
    cell_steps,
    code_bits,
    geometry,
    layout,
    magnitude_steps,
    slice_base,
    stored_slices,
    zero_code,
)
from nvcim_jax.signature import checked

__all__ = ["Target", "encode"]


Leaf: TypeAlias = jax.Array | Any

# Below the smallest normal number a weight is zero.
_SMALLEST = float(np.finfo(np.float32).tiny)
# Stands for the scale of a column of zeros in gradients: what it is divided by, it is multiplied by again.
_LEAST = 2.0**-40


@struct.dataclass
class Target:
    """What the cells of a crossbar are to hold, before any noise. Nothing of it is random.

    Attributes:
        conductance: Target conductances, normalised, (arrays, halves, rows, columns); signed values where the noise is
            on values.
        scale: Weight that a full-scale cell pair stands for, (cols,); 0 for a column of zeros.
        dac_max: Full scale of the inputs where it is fixed or calibrated, else None.
        adc_range: Lowest and highest output of each array and column tile (arrays, column tiles, 2), or (arrays, 1, 2)
            where it is that of all tiles, in units of full-scale input x g_max; None where it is not fixed or not
            calibrated yet.
        device: The memory cells.
        config: Options of the crossbar; static.
        num_rows: Rows of the matrix; static, since a shape follows from it.
    """

    # The shapes stand above, not in the types: JAX rebuilds a spec with axes, shapes or None in place of its arrays.
    conductance: Leaf
    scale: Leaf
    dac_max: Leaf | None
    adc_range: Leaf | None
    device: devices.Device | Any
    config: Config = struct.field(pytree_node=False)
    num_rows: int = struct.field(pytree_node=False)


@checked
def encode(
    weights: Num[ArrayLike, "..."],
    device: devices.Device,
    *,
    config: Config,
    dac_max: Num[ArrayLike, "..."] | None = None,
    adc_max: Num[ArrayLike, "..."] | None = None,
    adc_min: Num[ArrayLike, "..."] | None = None,
) -> Target:
    """Turn weights into target conductances; the deterministic part of `program`.

    With w_max the largest |w| (of the tensor or column) and M the code of the largest weight:

    - `differential`: code round(M |w| / w_max) in the cell of the weight's sign, 0 in the other;
    - `offset`: code z + round(M w / w_max), z = 2**(bits - 1) the code of zero;

    a code of several slices is split into digits of base 2**cell_bits, and digit d of a cell with L + 1 levels becomes
    g_min + (1 - g_min) d / L. The gradient to the weights passes straight through rounding and slicing. A column whose
    weights are all zero (the whole tensor, where it has one scale) is erased and has the scale 0: its outputs are
    exactly 0, whatever the noise, and its weights have the gradient of any others.

    Args:
        weights: Finite weights (rows, cols).
        device: The memory cells; only their levels and their on/off ratio matter here.
        config: Options of the crossbar.
        dac_max: Full scale of the inputs, in the unit of the inputs; needed where `dac_range` is "fixed".
        adc_max: Full scale of the conversions, in units of a full-scale input times g_max: a scalar, one for each array
            (arrays,), or one for each of its column tiles (arrays, column tiles); needed where `adc_range` is "fixed".
        adc_min: Lower end of a "uniform" converter; -adc_max by default.

    Returns:
        The target.

    Raises:
        ValueError: If the weights have the wrong rank or are not finite, if a cell has more levels than the device, or
            if a fixed range is missing, not positive, or given where it is not used.

    Example:
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> config = crossbar.Config(weight_bits=4, cell_bits=2)
        >>> target = crossbar.encode(jnp.array([[7.0], [-3.0]]), devices.get("ideal"), config=config)
        >>> print(3 * target.conductance[:, 0, :, 0])  # digits of 7 = 1 3 in base 4, low slice first; 0 for -3
        [[3. 0.]
         [1. 0.]]
    """
    _check_weights(weights)
    _check_device(device, config)
    fixed_dac = _fixed("dac_max", dac_max, config.dac_range, ())
    weights = jnp.asarray(weights, jnp.float32)
    sizes = geometry((weights.shape[0], weights.shape[1]), config)
    tiles = sizes.num_row_tiles * stored_slices(config), sizes.num_col_tiles
    fixed_adc = _fixed_adc_range(adc_max, adc_min, config, tiles)
    conductance, scale = _encoded(weights, device, layout(config))
    return Target(conductance, scale, fixed_dac, fixed_adc, device, config, sizes.num_rows)


def zero_conductance(device: devices.Device, config: Config) -> Float[Array, " slices"]:
    """Return the conductance that stands for a zero weight in each slice."""
    steps = cell_steps(config)
    digit = _slices(jnp.asarray(zero_code(config), jnp.float32), config)
    return device.g_min + (1.0 - device.g_min) * digit / steps


def output_factor(device: devices.Device, config: Config) -> Float[Array, ""]:
    """Return the weight, in units of the scale, of one unit of signed conductance in the lowest slice."""
    if config.noise == "value":
        return jnp.ones((), jnp.float32)
    return cell_steps(config) / (magnitude_steps(config) * (1.0 - device.g_min))


def slice_weights(config: Config) -> Float[Array, " slices"]:
    """Return the digital weights of the slices, base**s."""
    return jnp.asarray([float(slice_base(config)) ** s for s in range(stored_slices(config))], jnp.float32)


# Compiled once for a shape and a configuration; inside another jit it is inlined.
@functools.partial(jax.jit, inline=True)
def _encoded(
    weights: Float[Array, "rows cols"], device: devices.Device, config: Config
) -> tuple[Float[Array, "arrays halves tile_rows lines"], Float[Array, " cols"]]:
    """Return target conductances and scales."""
    sizes = geometry((weights.shape[0], weights.shape[1]), config)
    largest = jnp.max(jnp.abs(weights), axis=0 if config.weight_scale == "column" else None, keepdims=True)
    silent = largest < _SMALLEST
    unit = weights / jnp.where(silent, _LEAST, largest)
    if config.noise == "value":
        conductance = _tiles((_codes(unit, config) / magnitude_steps(config))[None], sizes)[:, None]
    else:
        conductance = _cells(unit, sizes, device, config)
    return conductance, jnp.broadcast_to(jnp.where(silent, 0.0, largest)[0], (sizes.num_cols,))


@jax.custom_jvp
def scaled(
    values: Float[Array, "vectors cols"], factor: Float[Array, ""], scale: Float[Array, " cols"]
) -> Float[Array, "vectors cols"]:
    """Give outputs or cells, `factor` a unit, the weight of their column: exactly 0 where the scale is 0.

    The weights of such a column were divided by `_LEAST`. Multiplied by it again in the gradient, they keep it, while
    that to the inputs, through noise that counts for nothing, stays below rounding.
    """
    return values * (factor * scale)[None, :]


@scaled.defjvp
def _slope_of_scaled(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    values, factor, scale = primals
    to_values, to_factor, to_scale = tangents
    weight = factor * jnp.where(scale == 0.0, _LEAST, scale)
    slope = to_values * weight[None, :] + values * (to_factor * scale + factor * to_scale)[None, :]
    return scaled(values, factor, scale), slope


def _cells(unit: Float[Array, "rows cols"], sizes: Geometry, device: devices.Device, config: Config) -> jax.Array:
    """Return the conductances of weights in [-1, 1]."""
    code = _codes(unit, config)
    if config.mapping == "differential":
        halves = jnp.stack([jnp.maximum(code, 0.0), jnp.maximum(-code, 0.0)])
    else:
        halves = (zero_code(config) + code)[None]
    digit = jnp.moveaxis(_slices(halves, config), 0, 1)  # (halves, slices, rows, cols)
    conductance = device.g_min + (1.0 - device.g_min) * digit / cell_steps(config)
    # Unused rows of the last array are erased cells: at the lowest level.
    tiled = jnp.stack([_tiles(half, sizes, fill=device.g_min) for half in conductance], axis=1)
    if config.mapping != "offset":
        return tiled
    zero = jnp.tile(zero_conductance(device, config), sizes.num_row_tiles)
    references = jnp.broadcast_to(zero[:, None, None, None], (*tiled.shape[:-1], sizes.num_references))
    return jnp.concatenate([tiled, references], axis=-1)


def _codes(unit: Float[Array, "rows cols"], config: Config) -> Float[Array, "rows cols"]:
    """Return the codes of weights in [-1, 1], less that of zero: whole numbers, where weights are not analog."""
    code = unit * magnitude_steps(config)
    return code if config.weight_bits is None and config.cell_bits is None else ops.round_straight_through(code)


def _slices(code: Float[Array, "..."], config: Config) -> Float[Array, "slices ..."]:
    """Split codes into the digits of their slices, the lowest first."""
    num = stored_slices(config)
    return code[None] if num == 1 else ops.digits(code, base=slice_base(config), num_digits=num)


def _tiles(
    slices: Float[Array, "slices rows cols"], sizes: Geometry, fill: float | Float[Array, ""] = 0.0
) -> Float[Array, "arrays tile_rows cols"]:
    """Cut rows into tiles and put tile and slice on one axis of arrays."""
    missing = sizes.num_row_tiles * sizes.tile_rows - sizes.num_rows
    padding = jnp.broadcast_to(jnp.asarray(fill, slices.dtype), (slices.shape[0], missing, slices.shape[2]))
    whole = jnp.concatenate([slices, padding], axis=1)
    split = whole.reshape(slices.shape[0], sizes.num_row_tiles, sizes.tile_rows, slices.shape[2])
    return jnp.swapaxes(split, 0, 1).reshape(-1, sizes.tile_rows, slices.shape[2])


def _check_weights(weights: ArrayLike) -> None:
    checks.rank("weights", weights, 2, "(rows, cols)")
    checks.finite("weights", weights)
    if 0 in np.shape(weights):
        checks.fail("weights", "have at least one row and one column", f"has shape {np.shape(weights)}")


def _check_device(device: devices.Device, config: Config) -> None:
    """Refuse more levels than the device has, and value-level noise with effects of cells."""
    levels = 1 if config.cell_bits is None else 2 ** min(config.cell_bits, code_bits(config) or MAX_BITS)
    if device.num_levels is not None and levels > device.num_levels:
        checks.fail(
            "cell_bits",
            f"ask for at most the {device.num_levels} levels of device {device.name!r}",
            f"{config.cell_bits} bits are {levels} levels",
            f"Use cell_bits={device.num_levels.bit_length() - 1}, and weight_bits to slice a weight over cells.",
        )
    checks.number("device.on_off_ratio", device.on_off_ratio, low=1.0, low_open=True)
    if config.noise == "value":
        effects = (device.d2d_sigma, device.stuck_on, device.stuck_off, device.drift, device.read)
        shifted = device.programming is not None and device.programming.mean is not None
        if shifted or any(effect is not None for effect in effects):
            checks.fail(
                "config.noise",
                "be 'cell' for a device whose cells drift, fail, differ, miss their targets or are read noisily",
                "is 'value'",
            )


def _fixed(name: str, value: Any, chosen: str, shape: tuple[int, ...]) -> Float[Array, "..."] | None:
    """Return a range that is given exactly where it is used, as float32; of one axis where it is the same on others."""
    option = name.split("_")[0] + "_range"
    if value is None:
        if chosen == "fixed":
            checks.fail(name, f"be given with {option}='fixed'", "is missing", f"Pass {name}=... to program or encode.")
        return None
    if chosen != "fixed":
        checks.fail(name, f"be left out unless {option}='fixed'", f"{option} is {chosen!r}", "It would have no effect.")
    checks.finite(name, value)
    given = np.shape(value)
    if given not in ((), shape[:1], shape):
        accepted = " or ".join(str(s) for s in dict.fromkeys(((), shape[:1], shape)))
        checks.fail(name, f"have shape {accepted}", f"has shape {given}")
    array = jnp.asarray(value, jnp.float32).reshape(given + (1,) * (len(shape) - len(given)))
    return jnp.broadcast_to(array, (*shape[:1], *array.shape[1:]))


def _fixed_adc_range(
    high: object, low: object, config: Config, tiles: tuple[int, int]
) -> Float[Array, "arrays col_tiles 2"] | None:
    """Return (lowest, highest) of the converters of each array and column tile, or of all column tiles."""
    if low is not None and config.adc_code == "symmetric":
        checks.fail("adc_min", "be left out with adc_code='symmetric'", "is given", "Its range is [-adc_max, adc_max].")
    if low is not None and high is None:
        checks.fail("adc_max", "be given with adc_min", "is missing")
    top = _fixed("adc_max", high, config.adc_range, tiles)
    if top is None:
        return None
    bottom = -top if low is None else _fixed("adc_min", low, config.adc_range, tiles)
    assert bottom is not None
    bottom, top = jnp.broadcast_arrays(bottom, top)
    if checks.is_concrete(top) and checks.is_concrete(bottom) and bool((np.asarray(top) <= np.asarray(bottom)).any()):
        checks.fail("adc_max", "lie above adc_min (by default -adc_max)", f"is {float(np.min(top)):g}")
    return jnp.stack([bottom, top], axis=2)
