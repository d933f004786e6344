"""Weights that stay packed as a GGUF file has them, and become floats where they multiply.

The codes are kept in planes of 8, 4, 2 or 1 bits: a code of five bits has its lower four in one plane and the fifth in
another. The outputs of a matrix lie side by side in memory, so that one instruction takes many of them apart, and the
fields of a byte belong to different inputs of one group: they are never put together, each field multiplies its own
share of the inputs.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import quax
from jax import lax
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.models.files.gguf_types import KINDS, Kind
from nvcim_jax.ops import Weight, refuse, register_weight

__all__ = ["Blocks", "pack_rows"]

PLANES: Mapping[int, tuple[int, ...]] = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}
"""Bits of a code -> bits of the planes that hold it, the lowest bits first."""


CACHE_BYTES = 1 << 20
"""Bytes of floats that are made at a time where a matrix has more than eight times as many."""


def _key(name: str, kind: Kind) -> str:
    """Return the name of a field; types of one stack share those that are alike."""
    return f"{name} by {kind.group if name in {'scales', 'minima'} else kind.block}"


def pack_rows(raw: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Return the fields of rows of a file, outputs last: what `Blocks` holds for one layer.

    Args:
        raw: uint8 (outputs, bytes of a row).
        kind: Name of the type.

    Returns:
        Name -> (share of the inputs, outputs).
    """
    known = KINDS[kind]
    assert known.parts is not None
    parts = known.parts(raw.reshape(len(raw), -1, known.bytes))
    codes, at, found = parts.codes.reshape(len(raw), -1, known.group), 0, {}
    for bits in PLANES[known.bits]:
        fields = ((codes >> at) & ((1 << bits) - 1)).reshape(*codes.shape[:2], 8 // bits, -1)
        packed = fields[:, :, 0].copy()
        for slot in range(1, 8 // bits):
            packed |= fields[:, :, slot] << (slot * bits)
        found[f"codes of {bits}"] = packed
        at += bits
    for name in ("scale", "scales", "least", "minima"):
        part = getattr(parts, name)
        if part is not None:
            found[_key(name, known)] = part
    return {name: np.ascontiguousarray(part.reshape(len(raw), -1).T) for name, part in found.items()}


class Blocks(Weight):
    """Hold a matrix as the codes, scales and minima of a GGUF file: `w = d s_g (code - zero) - d_m m_g`.

    Layers of several types share one stack: each finds the fields of its own type in it.

    Attributes:
        fields: Name -> ([layers,] share of the inputs, outputs), as `pack_rows` makes them.
        which: int32 ([layers]): of which of the `kinds` it is.
        kinds: Names of the types.
        width: Number of inputs.
        table: Whether the weight is shown as (outputs, inputs), rows that are looked up, not as (inputs, outputs).
        dtype_name: dtype that it shows to the outside; a product is made in that of the inputs.

    Example:
        >>> row = np.concatenate([np.array([0.5], np.float16).view(np.uint8), np.arange(32, dtype=np.uint8)])
        >>> fields = {name: jnp.asarray(field) for name, field in pack_rows(row[None], "Q8_0").items()}
        >>> w = Blocks(fields, jnp.int32(0), kinds=("Q8_0",), width=32)
        >>> w.shape, w.dense()[:3, 0]  # .5 * 0, .5 * 1, .5 * 2
        ((32, 1), Array([0. , 0.5, 1. ], dtype=float32))
    """

    fields: dict[str, Any]
    which: Any
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})
    table: bool = dataclasses.field(default=False, metadata={"static": True})
    dtype_name: str = dataclasses.field(default="float32", metadata={"static": True})

    def aval(self) -> Any:
        """Return shape and dtype as a model sees them."""
        *stack, _, outputs = next(iter(self.fields.values())).shape
        shape = (*stack, outputs, self.width) if self.table else (*stack, self.width, outputs)
        return ShapedArray(shape, jnp.dtype(self.dtype_name))

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """Return the weight of one layer as floats."""
        checks.rank("weight", self, 2, "(inputs, outputs)")
        found = self.choose(_joined, self.fields).astype(dtype)
        return found.T if self.table else found

    def choose(self, fn: Any, *args: Any) -> Any:
        """Return `fn(*args, kind)` with the type of this layer."""
        ways = [lambda *args, kind=kind: fn(*args, KINDS[kind]) for kind in self.kinds]
        return ways[0](*args) if len(ways) == 1 else lax.switch(self.which, ways, *args)


def _slots(kind: Kind) -> int:
    """Return into how many shares the inputs of a group fall: fields of a byte in the thinnest plane."""
    return 8 // min(PLANES[kind.bits])


def _scales(fields: Mapping[str, jax.Array], kind: Kind, names: tuple[str, str]) -> jax.Array:
    """Return the scales or minima of all groups (groups, 1, outputs)."""
    whole = fields[_key(names[0], kind)].astype(jnp.float32)[:, None]
    if kind.group == kind.block:
        return whole
    each = fields[_key(names[1], kind)].reshape(len(whole), -1, whole.shape[-1]).astype(jnp.float32)
    return (whole * each).reshape(-1, 1, whole.shape[-1])


def _shares(fields: Mapping[str, jax.Array], kind: Kind) -> Iterator[jax.Array]:
    """Give the weights of each share of the inputs (groups, inputs of a share and group, outputs), in float32."""
    scales = _scales(fields, kind, ("scale", "scales"))
    minima = _scales(fields, kind, ("least", "minima")) if kind.least else None
    size = kind.group // _slots(kind)
    for slot in range(_slots(kind)):
        codes, at = None, 0
        for bits in PLANES[kind.bits]:
            plane = fields[f"codes of {bits}"].reshape(len(scales), -1, scales.shape[-1])
            place, low = divmod(slot * size, plane.shape[1])
            field = (plane[:, low : low + size] >> (place * bits)) & ((1 << bits) - 1)
            codes, at = field if codes is None else codes | (field << at), at + bits
        assert codes is not None
        floats = (codes.astype(jnp.float32) - kind.zero) * scales
        yield floats if minima is None else floats - minima


def _joined(fields: Mapping[str, jax.Array], kind: Kind) -> jax.Array:
    """Return the matrix (inputs, outputs) in float32."""
    shares = jnp.stack(list(_shares(fields, kind)), axis=1)
    return shares.reshape(-1, shares.shape[-1])


def _product(fields: Mapping[str, jax.Array], x: jax.Array, kind: Kind) -> jax.Array:
    """Return x @ w, each share of the inputs with its own weights."""
    inputs = x.reshape(*x.shape[:-1], -1, _slots(kind), kind.group // _slots(kind))
    made = None
    for slot, share in enumerate(_shares(fields, kind)):
        part = inputs[..., slot, :].reshape(*x.shape[:-1], -1)
        y = part @ share.reshape(-1, share.shape[-1]).astype(x.dtype)
        made = y if made is None else made + y
    assert made is not None
    return made


def _in_parts(w: Blocks, x: jax.Array) -> jax.Array:
    """Return x @ w, as many outputs at a time as have floats that a processor's cache holds."""
    outputs = w.shape[0 if w.table else 1]
    step = max(1, CACHE_BYTES // (4 * w.width))
    count = outputs // step if outputs > 8 * step else 0

    def some(start: jax.Array | int, size: int) -> jax.Array:
        part = {name: lax.dynamic_slice_in_dim(field, start, size, 1) for name, field in w.fields.items()}
        return w.choose(_product, part, x)

    made = [] if outputs == count * step else [some(count * step, outputs - count * step)]
    if count:
        several = lax.map(lambda i: some(i * step, step), jnp.arange(count))
        made.insert(0, jnp.moveaxis(several, 0, -2).reshape(*x.shape[:-1], -1))
    return made[0] if len(made) == 1 else jnp.concatenate(made, axis=-1)


def _times(w: Blocks, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if axes == (w.ndim - 1 if w.table else 0,):
        # The backward pass makes the floats again: kept, they would be the whole model in floats.
        return jax.checkpoint(_in_parts)(w, x)
    first = x.ndim - len(axes)
    return lax.dot_general(x, w.dense(x.dtype), ((tuple(range(first, x.ndim)), axes), ((), ())))


def _cast(w: Blocks, dtype: Any) -> Blocks:
    return dataclasses.replace(w, dtype_name=jnp.dtype(dtype).name)


register_weight(Blocks, _times, _cast)


@quax.register(lax.gather_p)
def _look_up(w: Blocks, index: Any, *, dimension_numbers: Any, slice_sizes: Any, mode: Any, **_: Any) -> Any:
    """Look whole rows of a table up; NaN where there is no such row and the caller asked for that."""
    numbers = dimension_numbers
    whole = (numbers.start_index_map, numbers.collapsed_slice_dims, tuple(slice_sizes)) == ((0,), (0,), (1, w.width))
    if not w.table or w.num_stacked or not whole or numbers.offset_dims != (index.ndim - 1,):
        refuse(w, "used in the operation `gather`", "Look whole rows of a table up: table[ids].")
    ids = jnp.asarray(index)[..., 0]
    flat = {name: jnp.take(field, ids.reshape(-1), axis=1, mode="clip") for name, field in w.fields.items()}
    rows = w.choose(_joined, flat).T.reshape(*ids.shape, w.width).astype(w.dtype_name)
    if mode != lax.GatherScatterMode.FILL_OR_DROP:
        return rows
    inside = (ids >= 0) & (ids < w.shape[0])
    return jnp.where(inside[..., None], rows, jnp.asarray(jnp.nan, rows.dtype))
