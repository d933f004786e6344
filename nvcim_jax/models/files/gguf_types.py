"""The types of GGUF tensors: how a block of weights is packed, and how it becomes floats.

A row is a run of blocks. A block holds codes of a few bits for 32 or 256 weights, a scale in half precision and, by
type, a minimum and the scales of its groups: `w = scale_g * code - minimum_g`. The functions take bytes of NumPy or of
JAX alike: a whole file is made floats by the one, the weight of one layer by the other.

References:
    The blocks are those of ggml (`ggml-common.h`, block_q4_0 to block_q6_K); the `gguf` package, against which the
    tests hold them, restates them in `gguf/quants.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

__all__ = ["KINDS", "NAMES", "Kind", "decode"]

Bytes = Any
"""uint8 (..., bytes of a block), of NumPy or of JAX."""

Parts = tuple[Any, Any, Any]
"""Scales (..., groups, 1), codes (..., groups, weights) and minima (..., groups, 1) or None, as float32."""


def _half(raw: Bytes) -> Any:
    """Return two bytes as a number (..., 1, 1)."""
    if isinstance(raw, np.ndarray):
        return np.ascontiguousarray(raw).view("<f2").astype(np.float32)[..., None]
    return jax.lax.bitcast_convert_type(raw, jnp.float16).astype(jnp.float32)[..., None, None]


def _shaped(a: Any, raw: Bytes, *shape: int) -> Any:
    return a.reshape(*raw.shape[:-1], *shape)


def _fields(a: Bytes, bits: int, axis: int = -2) -> Bytes:
    """Return the fields of every byte, lowest bits first, along a new axis."""
    xp = np if isinstance(a, np.ndarray) else jnp
    return xp.stack([(a >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], axis=axis)


def _floats(codes: Bytes, zero: int = 0) -> Any:
    return codes.astype(np.float32) - np.float32(zero) if zero else codes.astype(np.float32)


def _q4(raw: Bytes, at: int) -> Bytes:
    return _shaped(_fields(raw[..., at : at + 16], 4), raw, 1, 32)


def _q5(raw: Bytes, at: int) -> Bytes:
    high = _shaped(_fields(raw[..., at : at + 4], 1, axis=-1), raw, 1, 32)
    return _q4(raw, at + 4) | (high << 4)


def _q4_0(raw: Bytes) -> Parts:
    return _half(raw[..., :2]), _floats(_q4(raw, 2), 8), None


def _q4_1(raw: Bytes) -> Parts:
    return _half(raw[..., :2]), _floats(_q4(raw, 4)), -_half(raw[..., 2:4])


def _q5_0(raw: Bytes) -> Parts:
    return _half(raw[..., :2]), _floats(_q5(raw, 2), 16), None


def _q5_1(raw: Bytes) -> Parts:
    return _half(raw[..., :2]), _floats(_q5(raw, 4)), -_half(raw[..., 2:4])


def _q8_0(raw: Bytes) -> Parts:
    # Signed bytes, read as unsigned ones with the sign bit turned: the same for NumPy and JAX.
    return _half(raw[..., :2]), _floats(raw[..., None, 2:] ^ 0x80, 128), None


def _quarters(raw: Bytes, at: int) -> Bytes:
    """Return 64 bytes of four fields each, the fields of 32 bytes in turn."""
    return _fields(_shaped(raw[..., at : at + 64], raw, 2, 32), 2)


def _q2_k(raw: Bytes) -> Parts:
    scales, codes = raw[..., :16, None], _shaped(_quarters(raw, 16), raw, 16, 16)
    d, least = _half(raw[..., 80:82]), _half(raw[..., 82:84])
    return d * _floats(scales & 15), _floats(codes), least * _floats(scales >> 4)


def _q3_k(raw: Bytes) -> Parts:
    high = _shaped(_fields(raw[..., :32], 1), raw, 16, 16)
    codes = _shaped(_quarters(raw, 32), raw, 16, 16) | (high << 2)
    low = _shaped(_fields(raw[..., 96:104], 4), raw, 16, 1)
    scales = low | (_shaped(_fields(raw[..., 104:108], 2), raw, 16, 1) << 4)
    return _half(raw[..., 108:110]) * _floats(scales, 32), _floats(codes, 4), None


def _six_bits(raw: Bytes) -> tuple[Any, Any]:
    """Return scales and minima of the eight groups of Q4_K and Q5_K, six bits each in twelve bytes."""
    xp = np if isinstance(raw, np.ndarray) else jnp
    a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = xp.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    minima = xp.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return (
        _half(raw[..., :2]) * _floats(scales)[..., None],
        _half(raw[..., 2:4]) * _floats(minima)[..., None],
    )


def _q4_k(raw: Bytes) -> Parts:
    scales, minima = _six_bits(raw)
    codes = _fields(_shaped(raw[..., 16:144], raw, 4, 32), 4)
    return scales, _floats(_shaped(codes, raw, 8, 32)), minima


def _q5_k(raw: Bytes) -> Parts:
    scales, minima = _six_bits(raw)
    codes = _shaped(_fields(_shaped(raw[..., 48:176], raw, 4, 32), 4), raw, 8, 32)
    return scales, _floats(codes | (_fields(raw[..., 16:48], 1) << 4)), minima


def _q6_k(raw: Bytes) -> Parts:
    low = _shaped(_fields(_shaped(raw[..., :128], raw, 2, 64), 4), raw, 16, 16)
    codes = low | (_shaped(_quarters(raw, 128), raw, 16, 16) << 4)
    scales = _floats(raw[..., 192:208, None] ^ 0x80, 128)
    return _half(raw[..., 208:210]) * scales, _floats(codes, 32), None


class Kind(NamedTuple):
    """Describe a type.

    Attributes:
        number: Its number in the files.
        block: Weights of a block.
        bytes: Bytes of a block.
        parts: Makes scales, codes and minima of blocks of bytes; None where a weight is a float.
        dtype: dtype of a weight that is a float.
    """

    number: int
    block: int
    bytes: int
    parts: Callable[[Bytes], Parts] | None
    dtype: np.dtype = np.dtype(np.uint8)  # frozen


KINDS: Mapping[str, Kind] = {
    "F32": Kind(0, 1, 4, None, np.dtype("<f4")),
    "F16": Kind(1, 1, 2, None, np.dtype("<f2")),
    "BF16": Kind(30, 1, 2, None, np.dtype(ml_dtypes.bfloat16)),
    "Q4_0": Kind(2, 32, 18, _q4_0),
    "Q4_1": Kind(3, 32, 20, _q4_1),
    "Q5_0": Kind(6, 32, 22, _q5_0),
    "Q5_1": Kind(7, 32, 24, _q5_1),
    "Q8_0": Kind(8, 32, 34, _q8_0),
    "Q2_K": Kind(10, 256, 84, _q2_k),
    "Q3_K": Kind(11, 256, 110, _q3_k),
    "Q4_K": Kind(12, 256, 144, _q4_k),
    "Q5_K": Kind(13, 256, 176, _q5_k),
    "Q6_K": Kind(14, 256, 210, _q6_k),
}
"""The types that are read."""

OTHERS: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Types that are known by name alone."""

NAMES: Mapping[int, str] = OTHERS | {kind.number: name for name, kind in KINDS.items()}
"""Number of a type in the files -> its name."""


def decode(raw: Any, kind: str) -> Any:
    """Return rows of bytes as weights.

    Args:
        raw: uint8 (..., bytes of a row), of NumPy or of JAX.
        kind: Name of the type.

    Returns:
        float32 (..., weights of a row), of NumPy or of JAX; a type of floats in its own dtype (NumPy only).

    Example:
        >>> half = np.array([0.5], np.float16).view(np.uint8)
        >>> codes = np.arange(32, dtype=np.int8) - 16
        >>> decode(np.concatenate([half, codes.view(np.uint8)]), "Q8_0")[:3]  # .5 * -16, .5 * -15, .5 * -14
        array([-8. , -7.5, -7. ], dtype=float32)
    """
    known = KINDS[kind]
    if known.parts is None:
        return np.ascontiguousarray(raw).view(known.dtype)
    scales, codes, minima = known.parts(raw.reshape(*raw.shape[:-1], -1, known.bytes))
    weights = scales * codes if minima is None else scales * codes - minima
    return weights.reshape(*raw.shape[:-1], -1)
