"""Weights of a few bits as int8 codes and scales, and how GPTQ and AWQ checkpoints pack them."""

import flax.struct
import jax
import jax.numpy as jnp

from nvcim_jax import checks

__all__ = ["Quantised", "dequantise"]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of the eight packed nibbles holds each output column (AWQ's "gemm" layout)."""


@flax.struct.dataclass
class Quantised:
    """Hold a weight as integers: `w[i, o] = codes[i, o] * scales[groups[i], o]`.

    Attributes:
        codes: int8 ([layers,] inputs, outputs), the zero point already taken off.
        scales: ([layers,] groups, outputs), float16 or wider.
        groups: int32 ([layers,] inputs): which group each input belongs to; any order (GPTQ "act-order").
    """

    codes: jax.Array
    scales: jax.Array
    groups: jax.Array


def dequantise(weight: Quantised, dtype: jnp.dtype | type = jnp.float32) -> jax.Array:
    """Return the weight of one layer as floats.

    Args:
        weight: Codes (inputs, outputs), scales (groups, outputs), groups (inputs,).
        dtype: dtype of the result.

    Returns:
        (inputs, outputs).

    Example:
        >>> w = Quantised(jnp.array([[1], [-8]], jnp.int8), jnp.array([[0.5], [0.25]]), jnp.array([0, 1]))
        >>> dequantise(w)[:, 0]  # 1 * 0.5, -8 * 0.25
        Array([ 0.5, -2. ], dtype=float32)
    """
    checks.rank("weight.codes", weight.codes, 2, "(inputs, outputs)")
    scales = jnp.take(weight.scales, weight.groups, axis=0, mode="clip")
    return (weight.codes.astype(jnp.float32) * scales.astype(jnp.float32)).astype(dtype)
