"""Weights of a few bits as int8 codes and scales, and how GPTQ and AWQ checkpoints pack them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.ops import Weight, register_weight

__all__ = ["Packed", "unpack_awq", "unpack_gptq"]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of the eight packed nibbles holds each output column (AWQ's "gemm" layout)."""


class Packed(Weight):
    """Hold a weight as integers: `w[i, o] = codes[i, o] * scales[groups[i], o]`.

    The floats of one block exist while that block multiplies.

    Attributes:
        codes: int8 ([layers,] inputs, outputs), the zero point already taken off.
        scales: ([layers,] groups, outputs), float16 or wider.
        groups: int32 ([layers,] inputs): which group each input belongs to; any order (GPTQ "act-order").
        dtype_name: dtype that it shows to the outside; a product is made in that of the inputs.

    Example:
        >>> w = Packed(jnp.array([[1], [-8]], jnp.int8), jnp.array([[0.5], [0.25]]), jnp.array([0, 1]))
        >>> w.dense()[:, 0]  # 1 * 0.5, -8 * 0.25
        Array([ 0.5, -2. ], dtype=float32)
    """

    codes: Any
    scales: Any
    groups: Any
    dtype_name: str = dataclasses.field(default="float32", metadata={"static": True})

    def aval(self) -> Any:
        """Return shape and dtype as a model sees them."""
        return ShapedArray(self.codes.shape, jnp.dtype(self.dtype_name))

    def dense(self, dtype: Any = jnp.float32) -> jax.Array:
        """Return the weight of one block as floats (inputs, outputs)."""
        checks.rank("weight.codes", self.codes, 2, "(inputs, outputs)")
        scales = jnp.take(self.scales, self.groups, axis=0, mode="clip")
        return (self.codes.astype(jnp.float32) * scales.astype(jnp.float32)).astype(dtype)


def _times(w: Packed, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    ends = tuple(range(x.ndim - len(axes), x.ndim))

    def product(w: Packed, x: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, w.dense(x.dtype), ((ends, axes), ((), ())))

    # The backward pass makes the floats again: kept, they would be the whole model in floats.
    return jax.checkpoint(product)(w, x)


def _cast(w: Packed, dtype: Any) -> Packed:
    return Packed(w.codes, w.scales, w.groups, jnp.dtype(dtype).name)


register_weight(Packed, _times, _cast)


def _fields(packed: np.ndarray, bits: int) -> np.ndarray:
    """Split every 32-bit word into its fields, lowest bits first: (..., 32 / bits), uint8."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((packed.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)).astype(np.uint8)


def _codes(values: np.ndarray, zeros: np.ndarray, groups: np.ndarray, name: str) -> np.ndarray:
    """Return values less their zero points as int8 (inputs, outputs)."""
    codes = values.astype(np.int16) - zeros.astype(np.int16)[groups]
    if codes.size and not (codes.min() >= -128 and codes.max() <= 127):
        checks.fail(
            name,
            "fit into int8 once its zero points are taken off",
            f"spans {codes.min()} to {codes.max()}",
            "Quantise symmetrically, or to 4 bits.",
        )
    return codes.astype(np.int8)


def unpack_gptq(
    qweight: np.ndarray,
    qzeros: np.ndarray,
    groups: np.ndarray,
    *,
    bits: int,
    version: int,
    name: str = "qweight",
) -> np.ndarray:
    """Unpack a GPTQ weight to codes.

    `w = scale * (value - zero)`, values packed along the inputs, zero points along the outputs, low bits first.
    Version 1 of the format stores `zero - 1`, in the same bits: all ones stand for 0.

    Args:
        qweight: int32 (inputs x bits / 32, outputs).
        qzeros: int32 (groups, outputs x bits / 32).
        groups: int32 (inputs,): the group of each input ("g_idx"; in any order where act-order was on).
        bits: 2, 4 or 8.
        version: 1 ("gptq") or 2 ("gptq_v2").
        name: The weight, for the message.

    Returns:
        int8 codes (inputs, outputs).

    Raises:
        ValueError: If the codes do not fit into int8.

    References:
        Frantar et al., GPTQ, arXiv 2210.17323. The packing is that of the AutoGPTQ and GPTQModel formats.

    Example:
        >>> values, zero = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.uint32), 0x77777777  # all zero points are 7 + 1
        >>> word = int((values << np.arange(0, 32, 4, dtype=np.uint32)).sum())
        >>> packed = np.full((1, 8), word, np.uint32).view(np.int32)
        >>> zeros = np.array([[zero]], np.uint32).view(np.int32)
        >>> unpack_gptq(packed, zeros, np.zeros(8, np.int32), bits=4, version=1)[:, 0]
        array([-7, -6, -5, -4, -3, -2, -1,  0], dtype=int8)
    """
    columns = qweight.shape[1]
    values = _fields(qweight, bits).transpose(0, 2, 1).reshape(-1, columns)
    zeros = _fields(qzeros, bits).reshape(qzeros.shape[0], -1)[:, :columns].astype(np.int16)
    if version == 1:
        # Kept to their bits: a stored zero point of all ones stands for 0.
        zeros = (zeros + np.int16(1)) & np.int16((1 << bits) - 1)
    return _codes(values, zeros, groups, name)


def unpack_awq(qweight: np.ndarray, qzeros: np.ndarray, groups: np.ndarray, *, name: str = "qweight") -> np.ndarray:
    """Unpack an AWQ weight (4 bits, "gemm" layout) to codes.

    `w = scale * (value - zero)`; both are packed along the outputs, eight to a word in the order 0 2 4 6 1 3 5 7.

    Args:
        qweight: int32 (inputs, outputs / 8).
        qzeros: int32 (groups, outputs / 8).
        groups: int32 (inputs,): the group of each input.
        name: The weight, for the message.

    Returns:
        int8 codes (inputs, outputs).

    References:
        Lin et al., AWQ, arXiv 2306.00978. The packing is that of the AutoAWQ format.

    Example:
        >>> word = np.array([[0x75316420]], np.uint32).view(np.int32)  # nibbles 0 2 4 6 1 3 5 7, the lowest first
        >>> unpack_awq(word, np.zeros((1, 1), np.int32), np.zeros(1, np.int32))[0]
        array([0, 1, 2, 3, 4, 5, 6, 7], dtype=int8)
    """
    values, zeros = (_fields(a, 4)[..., list(AWQ_ORDER)].reshape(a.shape[0], -1) for a in (qweight, qzeros))
    return _codes(values, zeros, groups, name)
