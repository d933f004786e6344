"""One physical chip: programmed once, drifting, programmed again, read back."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.config import Config, Converters, geometry, layout, stored_slices
from nvcim_jax.crossbar.converters import as_read
from nvcim_jax.crossbar.ir_drop import Wires, transfer_cells
from nvcim_jax.crossbar.lines import signed_cells
from nvcim_jax.crossbar.mapping import (
    Leaf,
    Target,
    encode,
    output_factor,
    scaled,
    slice_weights,
    zero_conductance,
)
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Chip", "chip_axes", "compensate", "drift", "program", "read_back", "reprogram", "write"]

# An array whose conductances sum to less than this share of their absolute values holds nothing but noise.
_LEAST_SHARE = 0.1


@struct.dataclass
class Chip:
    """A programmed chip: its cells are kept, so that every read is one of the same chip.

    Attributes:
        cells: State of every cell, arrays of shape (arrays, halves, tile rows, lines); see `Target` for the axes.
        scale: Weight of a full-scale pair, (cols,).
        dac_max: Full scale of the inputs; None where each vector sets its own or it is not calibrated yet.
        adc_range: Range of the converters (arrays, column tiles, 2), or (arrays, 1, 2); None likewise.
        gain: Digital factor on the outputs of each array, 1 until `compensate` is called, (arrays,).
        baseline: Sum of the conductances of each array just after programming, as the bit lines see them through the
            wires, (arrays,); None without drift.
        wires: Wire resistances; None for ideal wires.
        transfer: Conductances as the bit lines see them through the wires, of the shape of the cells' conductances;
            None for ideal wires.
        device: The memory cells that it is made of.
        config: Options that it was written with; static.
        num_rows: Rows of the matrix; static.
    """

    cells: devices.Cells | Any
    scale: Leaf
    dac_max: Leaf | None
    adc_range: Leaf | None
    gain: Leaf
    baseline: Leaf | None
    wires: Wires | Any
    transfer: Leaf | None
    device: devices.Device | Any
    config: Config = struct.field(pytree_node=False)
    num_rows: int = struct.field(pytree_node=False)


@checked
def program(
    key: Key,
    weights: Num[ArrayLike, "..."],
    device: devices.Device,
    *,
    config: Config,
    dac_max: Num[ArrayLike, "..."] | None = None,
    adc_max: Num[ArrayLike, "..."] | None = None,
    adc_min: Num[ArrayLike, "..."] | None = None,
    wires: Wires | None = None,
) -> Chip:
    """Program weights on one physical chip: clock 1 of the noise, drawn once and kept.

    `encode` says which conductances are aimed at; `devices.program` which are reached. Array a uses `fold_in(key, a)`.

    Args:
        key: Key of the chip; another key is another chip.
        weights: Finite weights (rows, cols).
        device: The memory cells.
        config: Options of the crossbar.
        dac_max: Full scale of the inputs where `dac_range` is "fixed".
        adc_max: Full scale of the conversions where `adc_range` is "fixed", in units of a full-scale input times g_max.
        adc_min: Lower end of a "uniform" converter; -adc_max by default.
        wires: Resistances of the wires; None for ideal ones.

    Returns:
        The chip, at t = 0.

    Raises:
        ValueError: If an argument is wrong by itself or together with another; the message says which and why.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> config = crossbar.Config(rows=64, cols=64, weight_bits=8, cell_bits=2)
        >>> weights = jax.random.uniform(jax.random.key(0), (100, 20), minval=-1, maxval=1)
        >>> chip = crossbar.program(jax.random.key(1), weights, devices.get("ideal"), config=config)
        >>> y, info = crossbar.matmul(jax.random.key(2), jnp.ones(100), chip)
        >>> print(f"{jnp.abs(y - weights.sum(axis=0)).max() < 100 * 0.5 / 127}")  # half a step a weight
        True
    """
    target = encode(weights, device, config=config, dac_max=dac_max, adc_max=adc_max, adc_min=adc_min)
    return write(key, target, wires=wires)


@checked
def write(key: Key, target: Target, *, wires: Wires | None = None) -> Chip:
    """Program an encoded target on one physical chip; the random part of `program`.

    Args:
        key: Key of the chip.
        target: What the cells are to hold.
        wires: Resistances of the wires; None for ideal ones.

    Returns:
        The chip, at t = 0.

    Raises:
        ValueError: If the key is none, or the noise does not go with the wires.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("RRAM4"), crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=2)
        >>> target = crossbar.encode(jnp.ones((8, 1)), device, config=config)
        >>> chips = [crossbar.write(jax.random.key(seed), target) for seed in (1, 2)]
        >>> spread = jnp.std(chips[0].cells.g - chips[1].cells.g)  # one target, two chips
        >>> print(bool(spread > 0), chips[0].cells.g.shape)  # (arrays, halves, tile rows, lines): 4 slices a weight
        True (4, 2, 8, 1)
    """
    if wires is not None and target.config.noise == "value":
        fix = "Voltage drops belong to single cells: use noise='cell'."
        checks.fail("wires", "be None with noise='value'", "is given", fix)
    chip = Chip(
        cells=write_cells(key, target),
        scale=target.scale,
        dac_max=target.dac_max,
        adc_range=target.adc_range,
        gain=jnp.ones(target.conductance.shape[0], jnp.float32),
        baseline=None,
        wires=wires,
        transfer=None,
        device=target.device,
        config=target.config,
        num_rows=target.num_rows,
    )
    return fresh(chip)


def write_cells(key: Key, target: Target) -> devices.Cells:
    """Program all arrays, each with a key of its own."""
    write = _write_values if target.config.noise == "value" else _write_arrays
    return write(key, target.conductance, target.device)


# What draws is compiled once for a shape and a device, for eager callers; inside another jit it is inlined.
@functools.partial(jax.jit, inline=True)
def _write_arrays(key: Key, conductance: jax.Array, device: devices.Device) -> devices.Cells:
    arrays, shape = jnp.arange(conductance.shape[0]), conductance.shape[1:]

    def write(a: jax.Array, g: jax.Array) -> devices.Cells:
        # The cells in one long row: XLA's loops on a CPU run along the last axis, and an array may have few columns.
        cells = devices.program(jax.random.fold_in(key, a), g.reshape(shape[0], -1), device)
        return jax.tree.map(lambda value: value.reshape(shape) if value.ndim else value, cells)

    return jax.vmap(write, out_axes=CELL_AXES)(arrays, conductance)


@functools.partial(jax.jit, inline=True)
def _write_values(key: Key, conductance: jax.Array, device: devices.Device) -> devices.Cells:
    # one tensor with one largest value, so one draw over all of it
    g = devices.value_noise(key, conductance, device)
    return devices.Cells(g=g, g_programmed=None, nu=None, d2d=None, fault=None, t_s=jnp.zeros((), jnp.float32))


@checked
def reprogram(key: Key, chip: Chip, weights: Num[ArrayLike, "..."]) -> Chip:
    """Program other weights on the same physical chip: its faults and device-to-device offsets stay.

    Args:
        key: Key of this programming.
        chip: The chip; its converter ranges and wires are kept.
        weights: New weights of the shape of the old.

    Returns:
        The chip, at t = 0.

    Raises:
        ValueError: If the shape differs, or the chip keeps no single cells.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("RRAM4", stuck_off=0.2)
        >>> config = crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=2)
        >>> chip = crossbar.program(jax.random.key(1), jnp.ones((8, 1)), device, config=config)
        >>> again = crossbar.reprogram(jax.random.key(2), chip, -jnp.ones((8, 1)))
        >>> bool((again.cells.fault == chip.cells.fault).all())  # the same cells are stuck
        True
    """
    if chip.config.noise != "cell":
        checks.fail("chip", "have noise='cell' to be programmed again", "keeps no single cells")
    checks.shape("weights", weights, (chip.num_rows, chip.scale.shape[0]), "(rows, cols) of the chip")
    target = encode(weights, chip.device, config=layout(chip.config))
    cells = _rewrite_cells(key, chip.cells, target.conductance, chip.device)
    return fresh(dataclasses.replace(chip, cells=cells, scale=target.scale, gain=jnp.ones_like(chip.gain)))


@functools.partial(jax.jit, inline=True)
def _rewrite_cells(
    key: Key, cells: devices.Cells, conductance: Float[Array, "arrays halves tile_rows lines"], device: devices.Device
) -> devices.Cells:
    """Program the cells of all arrays again, each array with a key of its own."""
    keys = jax.vmap(lambda a: jax.random.fold_in(key, a))(jnp.arange(conductance.shape[0]))
    return jax.vmap(lambda k, c, g: devices.reprogram(k, c, g, device), in_axes=(0, CELL_AXES, 0), out_axes=CELL_AXES)(
        keys, cells, conductance
    )


@checked
def drift(chip: Chip, t_s: Num[ArrayLike, ""]) -> Chip:
    """Let time pass: clock 2 of the noise, from what was drawn at programming. Draws nothing.

    Args:
        chip: The chip.
        t_s: Seconds since programming (not since the last call).

    Returns:
        The same chip at time `t_s`.

    Raises:
        ValueError: If the device does not drift, or the time is negative or beyond the last that was measured.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("ideal", drift=devices.Drift(mean=0.05, t0_s=20.0))
        >>> config = crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=8)
        >>> chip = crossbar.program(jax.random.key(1), jnp.ones((8, 1)), device, config=config)
        >>> later = crossbar.read_back(jax.random.key(2), crossbar.drift(chip, 180.0))
        >>> print(f"{later[0, 0]:.4f} {10**-0.05:.4f}")  # (200 / 20) ** -0.05
        0.8913 0.8913
    """
    cells = jax.vmap(lambda c: devices.drift(c, t_s, chip.device), in_axes=(CELL_AXES,), out_axes=CELL_AXES)(chip.cells)
    return _with_transfer(dataclasses.replace(chip, cells=cells))


@checked
def compensate(key: Key, chip: Chip) -> Chip:
    """Compensate drift globally: scale the outputs of each array by what its summed conductance has lost.

    gain_a = sum g_a(0) / sum g_a(t), from one read of array a with all inputs on, both through its wires. Where there
    is nothing to measure (no conductance, or a sum that is mere noise around zero), the gain is 1.

    Args:
        key: Key of that read; used where the device has read noise.
        chip: The chip, at some time after programming.

    Returns:
        The chip with its gains set.

    Raises:
        ValueError: If the device does not drift.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("ideal", drift=devices.Drift(mean=0.05, t0_s=20.0))
        >>> config = crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=8)
        >>> chip = crossbar.program(jax.random.key(1), jnp.ones((8, 1)), device, config=config)
        >>> mended = crossbar.compensate(jax.random.key(2), crossbar.drift(chip, 180.0))
        >>> print(f"{mended.gain[0]:.4f} {10**0.05:.4f}, {crossbar.read_back(jax.random.key(3), mended)[0, 0]:.4f}")
        1.1220 1.1220, 1.0000

    References:
        V. Joshi et al., "Accurate deep neural network inference using computational phase-change memory", Nature
        Communications 11, 2473 (2020), "Drift compensation".
    """
    if chip.baseline is None:
        found = f"is of {chip.device.name!r}, which does not"
        checks.fail("chip", "be of a device that drifts, to compensate drift", found, "Leave the call out.")
    now = conductances(key, chip)
    total = _sums(now, chip.num_rows, chip.config)
    noise = _LEAST_SHARE * _sums(jnp.abs(now), chip.num_rows, chip.config)
    measured = (chip.baseline > 0) & (total > noise)
    return dataclasses.replace(chip, gain=jnp.where(measured, chip.baseline / jnp.where(measured, total, 1.0), 1.0))


def _sums(g: Float[Array, "arrays halves tile_rows lines"], num_rows: int, config: Config) -> Float[Array, " arrays"]:
    """Return the sum over the cells of each array whose rows are used."""
    num_arrays, _, tile_rows, _ = g.shape
    first = np.arange(num_arrays)[:, None] // stored_slices(config) * tile_rows
    used = first + np.arange(tile_rows)[None] < num_rows
    return jnp.sum(g if used.all() else jnp.where(used[:, None, :, None], g, 0.0), axis=(1, 2, 3))


@checked
def read_back(key: Key, chip: Chip) -> Float[Array, "rows cols"]:
    """Read the stored weights cell by cell, without converters: the values as the chip holds them now.

    Args:
        key: Key of this read; used where the device has read noise.
        chip: The chip.

    Returns:
        Noisy weights (rows, cols).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("ideal"), crossbar.Config(weight_bits=16, cell_bits=2)
        >>> weights = jax.random.normal(jax.random.key(0), (30, 4))
        >>> chip = crossbar.program(jax.random.key(1), weights, device, config=config)
        >>> error = jnp.abs(crossbar.read_back(jax.random.key(2), chip) - weights).max()
        >>> print(bool(error <= 0.5 * jnp.abs(weights).max() / 32767 * 1.01))  # half a step
        True
    """
    return _stored(key, as_read(chip, Converters()))


@functools.partial(jax.jit, inline=True)
def _stored(key: Key, chip: Chip) -> Float[Array, "rows cols"]:
    """Return what the cells of one read say, put together again."""
    num_cols, config = chip.scale.shape[0], chip.config
    sizes = geometry((chip.num_rows, num_cols), config)
    cells = conductances(key, chip)
    signed = jax.vmap(lambda g: signed_cells((*g,), config, num_cols))(cells) * chip.gain[:, None, None]
    weights = slice_weights(config)
    sliced = signed.reshape(sizes.num_row_tiles, weights.shape[0], sizes.tile_rows, num_cols)
    if config.mapping == "offset_digital":
        sliced = sliced - zero_conductance(chip.device, config)[None, :, None, None]
    values = jnp.tensordot(weights, sliced, axes=(0, 1)).reshape(-1, num_cols)[: chip.num_rows]
    return scaled(values, output_factor(chip.device, config), chip.scale)


def conductances(key: Key, chip: Chip) -> Float[Array, "arrays halves tile_rows lines"]:
    """Return the conductances that one read of the whole chip sees, through its wires."""
    if chip.device.read is None:
        return chip.cells.g if chip.transfer is None else chip.transfer
    arrays = jnp.arange(chip.gain.shape[0])
    g = jax.vmap(lambda a, c: devices.read(jax.random.fold_in(key, a), c, chip.device), in_axes=(0, CELL_AXES))(
        arrays, chip.cells
    )
    return g if chip.wires is None else _through_wires(g, chip)


def fresh(chip: Chip) -> Chip:
    """Return a chip whose cells were just written, with its wires solved and its sums before any drift."""
    chip = _with_transfer(chip)
    if chip.device.drift is None:
        return chip
    seen = chip.cells.g if chip.wires is None else chip.transfer
    seen = _through_wires(chip.cells.g, chip) if seen is None else seen
    return dataclasses.replace(chip, baseline=_sums(seen, chip.num_rows, chip.config))


def _with_transfer(chip: Chip) -> Chip:
    """Solve the wires for the conductances of now; where every read differs, each read solves its own."""
    if chip.wires is None or chip.device.read is not None:
        return chip
    return dataclasses.replace(chip, transfer=_through_wires(chip.cells.g, chip))


def _through_wires(g: jax.Array, chip: Chip) -> jax.Array:
    sizes = geometry((chip.num_rows, chip.scale.shape[0]), chip.config)
    assert chip.wires is not None
    return transfer_cells(g, chip.wires, chip.device, sizes)


CELL_AXES = devices.Cells(g=0, g_programmed=0, nu=0, d2d=0, fault=0, t_s=None, target=0, z=0)  # type: ignore[arg-type]


@checked
def chip_axes(chip: Chip) -> Any:
    """Return `out_axes` for `jax.vmap` over chips like this one: an axis for what each has, the device in common.

    A device of measured cells is a table, which chips need not hold once each.

    Args:
        chip: One such chip, or its shapes from `jax.eval_shape`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> make = lambda key: crossbar.program(key, jnp.ones((3, 2)), devices.get("PCM"), config=crossbar.Config())
        >>> axes = crossbar.chip_axes(make(jax.random.key(0)))
        >>> chips = jax.vmap(make, out_axes=axes)(jax.random.split(jax.random.key(1), 5))
        >>> chips.cells.g.shape, chips.device.sigma.shape
        ((5, 1, 2, 3, 2), ())
    """
    return dataclasses.replace(jax.tree.map(lambda _: 0, chip), device=None)
