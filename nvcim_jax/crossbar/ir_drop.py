"""Voltage drops along resistive wires, solved exactly for linear cells.

The array is a network: word line i runs from its driver past columns 0, 1, ..., bit line j past rows 0, 1, ... to its
sense amplifier, a virtual ground; every segment between neighbours, the first of a word line and the last of a bit line
among them, has the wire's resistance. The cells are linear, so the currents are linear in the voltages, I = V T: one
solve for the transfer matrix T serves every input. Without resistance T is the conductances themselves.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.config import Geometry
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
@jax.jit
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
    g: Float[Array, "arrays halves tile_rows lines"], wires: Wires, device: devices.Device, sizes: Geometry
) -> Float[Array, "arrays halves tile_rows lines"]:
    """Return the conductances that the bit lines see, with every cell at its place in a physical array.

    The whole array is solved, all its word and bit lines: what the matrix does not use are erased cells, without noise.

    Args:
        g: Conductances of the cells.
        wires: Resistances.
        device: For g_max, by which resistances are normalised, and for g_min.
        sizes: Sizes of the crossbar.

    Returns:
        Array of the shape of `g`.
    """
    checks.number("wires.row_ohm", wires.row_ohm, low=0.0, unit="ohm")
    checks.number("wires.col_ohm", wires.col_ohm, low=0.0, unit="ohm")
    siemens = device.g_max_us * 1e-6
    row, col = jnp.asarray(wires.row_ohm) * siemens, jnp.asarray(wires.col_ohm) * siemens
    return _transfer_cells(g, row, col, device.g_min, sizes)


@functools.partial(jax.jit, inline=True)
def _transfer_cells(g: jax.Array, row: jax.Array, col: jax.Array, erased: jax.Array, sizes: Geometry) -> jax.Array:
    apart = _apart(g, erased, sizes)
    physical = _merge(apart, sizes)
    unused = ((0, 0), *((0, whole - used) for whole, used in zip(_whole(sizes), physical.shape[1:], strict=True)))
    whole = _padded(physical, unused, erased)
    solved = lax.map(lambda array: transfer_matrix(array, row, col), whole)
    return _together(_split(solved[:, : physical.shape[1], : physical.shape[2]], apart.shape, sizes), g.shape, sizes)


# Axes of the cells taken apart: (row tile, slice, half, row, column tile, column). For each layout, the order in which
# they make up (physical arrays, word lines, bit lines), and how many axes go to each of the three.
_ORDERS = {
    "arrays": ((0, 1, 2, 4, 3, 5), (4, 1, 1)),
    "rows": ((0, 2, 4, 3, 1, 5), (3, 2, 1)),
    "columns": ((0, 4, 3, 5, 1, 2), (2, 1, 3)),
}


def _padded(g: jax.Array, widths: Sequence[tuple[int, int]], erased: jax.Array) -> jax.Array:
    """Fill up with erased cells."""
    return lax.pad(g, erased.astype(g.dtype), [(low, high, 0) for low, high in widths])


def _apart(g: jax.Array, erased: jax.Array, sizes: Geometry) -> jax.Array:
    """Return cells as (row tile, slice, half, row, column tile, column), a reference column last in its tile.

    Rows and columns are those for which an array has room; the unused ones are erased.
    """
    unused = sizes.num_col_tiles * sizes.tile_cols - sizes.num_cols
    data = _padded(g[..., : sizes.num_cols], (*((0, 0),) * 3, (0, unused)), erased)
    data = data.reshape(sizes.num_row_tiles, -1, *g.shape[1:3], sizes.num_col_tiles, sizes.tile_cols)
    more = (0, sizes.rows_per_array - sizes.tile_rows), (0, 0), (0, sizes.cols_per_array - sizes.tile_cols)
    data = _padded(data, (*((0, 0),) * 3, *more), erased)
    if sizes.num_references:
        references = g[..., sizes.num_cols :].reshape(*data.shape[:3], -1, sizes.num_col_tiles, 1)
        references = _padded(references, (*((0, 0),) * 3, more[0], (0, 0), (0, 0)), erased)
        data = jnp.concatenate([data, references], axis=-1)
    row = np.arange(sizes.num_row_tiles)[:, None] * sizes.tile_rows + np.arange(sizes.rows_per_array)[None]
    used = (row < sizes.num_rows) & (np.arange(sizes.rows_per_array) < sizes.tile_rows)[None]
    return jnp.where(used[:, None, None, :, None, None], data, erased)


def _together(apart: jax.Array, shape: tuple[int, ...], sizes: Geometry) -> jax.Array:
    """Undo `_apart`."""
    rows = apart[:, :, :, : sizes.tile_rows]
    data = rows[..., : sizes.tile_cols].reshape(*shape[:3], -1)[..., : sizes.num_cols]
    if not sizes.num_references:
        return data
    return jnp.concatenate([data, rows[..., -1].reshape(*shape[:3], -1)], axis=-1)


def _merge(apart: jax.Array, sizes: Geometry) -> jax.Array:
    """Lay cells out as (physical arrays, word lines, bit lines)."""
    order, counts = _ORDERS[sizes.slices]
    ordered = [apart.shape[axis] for axis in order]
    ends = np.cumsum(counts)
    merged = [math.prod(ordered[end - count : end]) for count, end in zip(counts, ends, strict=True)]
    return apart.transpose(order).reshape(merged)


def _split(physical: jax.Array, shape: tuple[int, ...], sizes: Geometry) -> jax.Array:
    """Undo `_merge`."""
    order, _ = _ORDERS[sizes.slices]
    return physical.reshape([shape[axis] for axis in order]).transpose([order.index(axis) for axis in range(6)])


def _whole(sizes: Geometry) -> tuple[int, int]:
    return sizes.array_rows, sizes.array_cols
