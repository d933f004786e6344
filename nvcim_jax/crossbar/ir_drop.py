"""Voltage drops along resistive wires, solved exactly for linear cells.

The array is a network: word line i runs from its driver past columns 0, 1, ..., bit line j past rows 0, 1, ... to its
sense amplifier, a virtual ground; every segment between neighbours, the first of a word line and the last of a bit line
among them, has the wire's resistance. The cells are linear, so the currents are linear in the voltages, I = V T: one
solve for the transfer matrix T serves every input. Without resistance T is the conductances themselves.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.config import Config, Geometry
from nvcim_jax.signature import checked

__all__ = ["Wires", "transfer_matrix"]


@struct.dataclass
class Wires:
    """Resistance of one segment of wire between neighbouring cells.

    Attributes:
        row_ohm: Of a word line, ohm, at least 0.
        col_ohm: Of a bit line, ohm, at least 0.
    """

    row_ohm: jax.Array | Any
    col_ohm: jax.Array | Any


@checked
def transfer_matrix(
    conductance: Float[Array, "rows cols"], row_resistance: Float[Array, ""], col_resistance: Float[Array, ""]
) -> Float[Array, "rows cols"]:
    """Return T with I = V T for an array with resistive wires.

    Column by column from the far end of the word lines. Y is the admittance of a column and its bit line seen from the
    word lines, Y = (1 + G R)^-1 G, R_ik = r_col min(n_i, n_k), n_i the segments from row i to the amplifier. With D the
    admittance of all columns beyond and A = Y + D, one column more is D' = A (1 + r_row A)^-1, and voltages follow as
    v_j = (1 + r_row A)^-1 v_(j-1). No step subtracts large numbers, so float32 serves down to no resistance at all.

    Args:
        conductance: Conductances of the cells, in any unit.
        row_resistance: Of one segment of a word line, in the inverse of that unit.
        col_resistance: Of one segment of a bit line, likewise.

    Returns:
        Transfer matrix, in the unit of the conductances.

    Example:
        >>> import jax.numpy as jnp
        >>> one = transfer_matrix(jnp.array([[0.5]]), jnp.array(0.1), jnp.array(0.1))
        >>> print(f"{one[0, 0]:.4f} {1 / (1 / 0.5 + 0.1 + 0.1):.4f}")  # cell and two segments in series
        0.4545 0.4545
    """
    num_rows, num_cols = conductance.shape
    segments = jnp.arange(num_rows, 0, -1, dtype=conductance.dtype)
    shared = col_resistance * jnp.minimum(segments[:, None], segments[None, :])
    identity = jnp.eye(num_rows, dtype=conductance.dtype)

    def add_column(carry: tuple[jax.Array, jax.Array], column: tuple[jax.Array, jax.Array]) -> tuple:
        beyond, outputs = carry
        g, place = column
        own = jnp.linalg.solve(identity + g[:, None] * shared, jnp.diag(g))
        admittance = own + beyond
        outputs = outputs + jnp.sum(own, axis=0)[:, None] * place[None, :]
        solved = jax.scipy.linalg.solve(
            identity + row_resistance * admittance, jnp.concatenate([admittance, outputs], axis=1), assume_a="pos"
        )
        return (solved[:, :num_rows], solved[:, num_rows:]), None

    start = (jnp.zeros_like(identity), jnp.zeros_like(conductance))
    places = jnp.eye(num_cols, dtype=conductance.dtype)
    (_, outputs), _ = lax.scan(add_column, start, (conductance.T, places), reverse=True)
    return outputs


def transfer_cells(
    g: Float[Array, "arrays halves tile_rows lines"],
    wires: Wires,
    device: devices.Device,
    config: Config,
    sizes: Geometry,
) -> Float[Array, "arrays halves tile_rows lines"]:
    """Return the conductances that the bit lines see, with every cell at its place in a physical array.

    Args:
        g: Conductances of the cells.
        wires: Resistances.
        device: For g_max, by which resistances are normalised.
        config: For `slices`.
        sizes: Sizes of the crossbar.

    Returns:
        Array of the shape of `g`.
    """
    checks.number("wires.row_ohm", wires.row_ohm, low=0.0, unit="ohm")
    checks.number("wires.col_ohm", wires.col_ohm, low=0.0, unit="ohm")
    siemens = device.g_max_us * 1e-6
    row, col = jnp.asarray(wires.row_ohm) * siemens, jnp.asarray(wires.col_ohm) * siemens
    return _transfer_cells(g, row, col, device.g_min, config, sizes)


@functools.partial(jax.jit, inline=True)
def _transfer_cells(
    g: jax.Array, row: jax.Array, col: jax.Array, erased: jax.Array, config: Config, sizes: Geometry
) -> jax.Array:
    physical = _to_physical(g, erased, config, sizes)
    solved = lax.map(lambda array: transfer_matrix(array, row, col), physical)
    return _from_physical(solved, g.shape, config, sizes)


# Axes of the cells taken apart: (row tile, slice, half, row, column tile, column). For each layout, the order in which
# they make up (physical arrays, word lines, bit lines), and how many axes go to each of the three.
_ORDERS = {
    "arrays": ((0, 1, 2, 4, 3, 5), (4, 1, 1)),
    "rows": ((0, 2, 4, 3, 1, 5), (3, 2, 1)),
    "columns": ((0, 4, 3, 5, 1, 2), (2, 1, 3)),
}


def _to_physical(g: jax.Array, erased: jax.Array, config: Config, sizes: Geometry) -> jax.Array:
    """Lay cells out as (physical arrays, word lines, bit lines); columns that are not used are erased cells."""
    apart = _split_columns(g, erased, sizes)
    order, counts = _ORDERS[config.slices]
    return apart.transpose(order).reshape(_merged_shape([apart.shape[axis] for axis in order], counts))


def _from_physical(physical: jax.Array, shape: tuple[int, ...], config: Config, sizes: Geometry) -> jax.Array:
    """Undo `_to_physical`."""
    per_tile = sizes.tile_cols + (1 if sizes.num_references else 0)
    tiles = shape[0] // sizes.num_row_tiles
    full = (sizes.num_row_tiles, tiles, shape[1], shape[2], sizes.num_col_tiles, per_tile)
    order, _ = _ORDERS[config.slices]
    inverse = [order.index(axis) for axis in range(6)]
    apart = physical.reshape([full[axis] for axis in order]).transpose(inverse)
    data = apart[..., : sizes.tile_cols].reshape(*shape[:3], -1)[..., : sizes.num_cols]
    if not sizes.num_references:
        return data
    return jnp.concatenate([data, apart[..., -1].reshape(*shape[:3], -1)], axis=-1)


def _split_columns(g: jax.Array, erased: jax.Array, sizes: Geometry) -> jax.Array:
    """Return cells as (row tile, slice, half, row, column tile, column), a reference column last in its tile."""
    missing = sizes.num_col_tiles * sizes.tile_cols - sizes.num_cols
    padding = jnp.broadcast_to(erased, (*g.shape[:3], missing))
    data = jnp.concatenate([g[..., : sizes.num_cols], padding], axis=-1)
    data = data.reshape(*g.shape[:3], sizes.num_col_tiles, sizes.tile_cols)
    if sizes.num_references:
        data = jnp.concatenate([data, g[..., sizes.num_cols :, None]], axis=-1)
    return data.reshape(sizes.num_row_tiles, -1, *data.shape[1:])


def _merged_shape(sizes: list[int], counts: tuple[int, int, int]) -> tuple[int, ...]:
    merged, start = [], 0
    for count in counts:
        size = 1
        for axis_size in sizes[start : start + count]:
            size *= axis_size
        merged.append(size)
        start += count
    return tuple(merged)
