"""A weight moved along a random direction, which is made where it multiplies and never stored."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import quax
from jax import lax
from jax.core import ShapedArray
from jax.typing import ArrayLike

from nvcim_jax.ops import Weight, normal_at, refuse, register_weight
from nvcim_jax.types import Key

__all__ = ["Shifted", "direction"]

PIECE = 1 << 19
"""Most entries of a direction that exist at a time; a larger matrix is multiplied in pieces."""


class Shifted(Weight):
    """w + by z, with z ~ N(0, 1) drawn from a key and the place of each entry; zero where |w| exceeds a limit.

    Attributes:
        w: ([layers,] rows, columns), an array.
        key: ([layers]): of the direction.
        by: ([layers]).
        limit: ([layers]), or None.
    """

    w: Any
    key: Any
    by: Any
    limit: Any = None

    def aval(self) -> Any:
        """Return the shape and dtype of the array inside."""
        return ShapedArray(self.w.shape, self.w.dtype)


def direction(key: Key, w: jax.Array, limit: jax.Array | None, first: ArrayLike = 0) -> jax.Array:
    """Return the direction at some rows of a matrix (or entries of a vector), float32.

    Args:
        key: Key of the direction.
        w: These rows.
        limit: Largest |w| that is moved; None: all are.
        first: Number of the first of them.
    """
    columns = math.prod(w.shape[1:])
    rows = (jnp.asarray(first, jnp.uint32) + lax.iota(jnp.uint32, len(w))) * jnp.uint32(columns)
    z = normal_at(jax.random.clone(key), rows[:, None], lax.iota(jnp.uint32, columns)[None])
    return _kept(z.reshape(w.shape), w, limit)


def _kept(z: jax.Array, w: jax.Array, limit: jax.Array | None) -> jax.Array:
    return z if limit is None else jnp.where(jnp.abs(w.astype(jnp.float32)) <= limit, z, 0.0)


def _moved(w: Shifted, rows: jax.Array, first: ArrayLike, dtype: Any) -> jax.Array:
    z = direction(w.key, rows, w.limit, first)
    return (rows.astype(jnp.float32) + w.by * z).astype(dtype)


def _times(w: Shifted, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if w.w.ndim != 2 or axes not in ((0,), (1,)):
        refuse(w, f"summed over the axes {axes}", "Multiply it along its inputs or along its outputs.")
    num_rows, columns = w.w.shape
    last = x.ndim - 1
    if w.w.size <= PIECE:
        return lax.dot_general(x, _moved(w, w.w, 0, x.dtype), (((last,), axes), ((), ())))
    rows = -(-num_rows // -(-w.w.size // PIECE))
    outputs = columns if axes == (0,) else num_rows

    def add(i: jax.Array, y: jax.Array) -> jax.Array:
        # The last piece begins early enough to be whole; what it has in common with the one before counts once.
        first = jnp.minimum(i * rows, num_rows - rows)
        piece = _moved(w, lax.dynamic_slice_in_dim(w.w, first, rows), first, x.dtype)
        if axes == (1,):
            part = lax.dot_general(x, piece, (((last,), (1,)), ((), ())))
            return lax.dynamic_update_slice_in_dim(y, part, first, axis=last)
        fresh = first + lax.broadcasted_iota(jnp.int32, piece.shape, 0) >= i * rows
        part = lax.dynamic_slice_in_dim(x, first, rows, axis=last)
        return y + lax.dot_general(part, jnp.where(fresh, piece, jnp.zeros_like(piece)), (((last,), (0,)), ((), ())))

    return lax.fori_loop(0, -(-num_rows // rows), add, jnp.zeros((*x.shape[:-1], outputs), x.dtype))


register_weight(Shifted, _times)


@quax.register(lax.gather_p)
def _(w: Shifted, index: ArrayLike, *, dimension_numbers: Any, slice_sizes: Any, **how: Any) -> Any:
    """Look up whole rows, as in a table of embeddings."""
    whole = w.w.ndim == 2 and tuple(slice_sizes) == (1, w.w.shape[1])
    if not whole or dimension_numbers.collapsed_slice_dims != (0,) or dimension_numbers.operand_batching_dims:
        refuse(w, "looked up in another way than row by row")
    found = lax.gather_p.bind(w.w, index, dimension_numbers=dimension_numbers, slice_sizes=slice_sizes, **how)
    rows = jnp.asarray(index).astype(jnp.uint32) * jnp.uint32(w.w.shape[1])  # (..., 1)
    columns = lax.broadcasted_iota(jnp.uint32, (1,) * (found.ndim - 1) + found.shape[-1:], found.ndim - 1)
    z = _kept(normal_at(jax.random.clone(w.key), rows, columns), found, w.limit)
    return (found.astype(jnp.float32) + w.by * z).astype(found.dtype)
