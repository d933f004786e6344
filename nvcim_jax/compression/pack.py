"""Codes side by side in the bits that they need, for memory that counts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.models import LM, Packed, is_block_matrix
from nvcim_jax.ops import Weight, register_weight
from nvcim_jax.signature import checked

__all__ = ["Planes", "pack"]

WIDTHS: Mapping[int, tuple[int, ...]] = {
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}
"""Bits of a code -> bits of the planes that hold it, the lowest first."""


class Planes(Weight):
    """Hold a matrix as codes of a few bits in planes of 8, 4, 2 or 1, and one scale an output.

    A byte of a plane of p bits holds fields of 8 / p inputs that lie as far apart as the plane has rows, so that taking
    them apart gives runs of inputs.

    Attributes:
        planes: uint8, one for each of `WIDTHS[bits]` ([layers,] rows, outputs).
        scales: ([layers,] 1, outputs).
        bits: Bits of a code: those of the layer that has most.
        width: Inputs.
        dtype_name: dtype that it shows to the outside.
    """

    planes: tuple[Any, ...]
    scales: Any
    bits: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})
    dtype_name: str = dataclasses.field(default="float32", metadata={"static": True})

    def aval(self) -> Any:
        """Return shape and dtype as a model sees them."""
        *stack, _, outputs = self.scales.shape
        return ShapedArray((*stack, self.width, outputs), jnp.dtype(self.dtype_name))

    def codes(self) -> jax.Array:
        """Return the codes of one block, int8 (inputs, outputs)."""
        checks.rank("weight", self, 2, "(inputs, outputs)")
        made, at = jnp.zeros((), jnp.uint8), 0
        for size, plane in zip(WIDTHS[self.bits], self.planes, strict=True):
            fields = [(plane >> (slot * size)) & ((1 << size) - 1) for slot in range(8 // size)]
            made, at = made | (jnp.concatenate(fields) << at), at + size
        return (made[: self.width].astype(jnp.int16) - (1 << (self.bits - 1))).astype(jnp.int8)

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """Return the weight of one block as floats (inputs, outputs)."""
        return (self.codes().astype(jnp.float32) * self.scales.astype(jnp.float32)).astype(dtype)


def _times(w: Planes, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    ends = tuple(range(x.ndim - len(axes), x.ndim))

    def product(w: Planes, x: jax.Array) -> jax.Array:
        return lax.dot_general(x, w.dense(x.dtype), ((ends, axes), ((), ())))

    # The backward pass makes the floats again: kept, they would be the whole model in floats.
    return jax.checkpoint(product)(w, x)


def _cast(w: Planes, dtype: Any) -> Planes:
    return dataclasses.replace(w, dtype_name=jnp.dtype(dtype).name)


register_weight(Planes, _times, _cast)


def _planes(leaf: Packed) -> Planes:
    codes = np.asarray(leaf.codes)
    most = max(int(codes.max(initial=0)), -int(codes.min(initial=0)), 1)
    bits = most.bit_length() + 1  # -128 is no code of the quantiser
    *stack, inputs, outputs = codes.shape
    unsigned = np.zeros((*stack, -(-inputs // 8) * 8, outputs), np.uint8)
    unsigned[..., :inputs, :] = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    planes, at = [], 0
    for size in WIDTHS[bits]:
        fields = ((unsigned >> at) & ((1 << size) - 1)).reshape(*stack, 8 // size, -1, outputs)
        plane = np.zeros((*stack, fields.shape[-2], outputs), np.uint8)
        for slot in range(8 // size):
            plane |= fields[..., slot, :, :] << (slot * size)
        planes.append(jnp.asarray(plane))
        at += size
    return Planes(tuple(planes), leaf.scales, bits, inputs, leaf.dtype_name)


@checked
def pack(lm: LM) -> LM:
    """Return a compressed model whose codes lie side by side in the bits that they need, not in a byte each.

    All blocks of a matrix share one stack, so each takes the bits of the block that has most: 5 for LUC with B = 4.
    Products are the same numbers; taking codes apart costs time. Codes of pruned weights are kept as zeros. Save a
    model before it is packed.

    Args:
        lm: A model that `apply` made.

    Raises:
        ValueError: If a matrix of the blocks is not packed, not with one scale an output, or with a code of -128.

    Example:
        >>> from nvcim_jax import compression, models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48)
        >>> lm, policy = models.init(jax.random.key(0), config=config), compression.uniform(2, bits=4)
        >>> small = compression.apply(lm, policy, method="magnitude")
        >>> small.params["layers"]["up"].codes.nbytes, pack(small).params["layers"]["up"].planes[0].nbytes
        (3072, 1536)
    """
    layers = dict(lm.params["layers"])
    for name, leaf in layers.items():
        if not is_block_matrix(f"layers/{name}", leaf):
            continue
        if not isinstance(leaf, Packed) or leaf.scales.shape[-2] != 1:
            found = f"is a {type(leaf).__name__}"
            checks.fail(f"lm.params: layers.{name}", "be codes with one scale an output", found, "Compress it first.")
        if int(leaf.codes.min()) < -127:
            checks.fail(f"lm.params: layers.{name}", "hold codes from -127 to 127", "holds -128", "Compress it first.")
        layers[name] = _planes(leaf)
    return lm.replace(params={**lm.params, "layers": layers})
