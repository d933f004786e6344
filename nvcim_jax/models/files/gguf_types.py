"""The types of GGUF tensors: how a block of weights is packed, and how it becomes floats.

A row is a run of blocks. A block holds codes of a few bits for 32 or 256 weights, a scale in half precision and, by
type, a minimum and the scales of its groups: `w = d s_g (code - zero) - d_m m_g`.

References:
    The blocks are those of ggml (`ggml-common.h`, block_q4_0 to block_q6_K); the `gguf` package, against which the
    tests hold them, restates them in `gguf/quants.py`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["KINDS", "NAMES", "Kind", "Parts", "decode"]


class Parts(NamedTuple):
    """What blocks hold; the weights of a row are (blocks, groups, weights of a group).

    Attributes:
        codes: uint8 (..., blocks, groups, weights).
        scale: float16 (..., blocks): d.
        scales: int8 or uint8 (..., blocks, groups): s; None: all are one.
        least: float16 (..., blocks): d_m; None: there are no minima.
        minima: uint8 (..., blocks, groups): m; None: all are one.
    """

    codes: np.ndarray
    scale: np.ndarray
    scales: np.ndarray | None = None
    least: np.ndarray | None = None
    minima: np.ndarray | None = None


def _half(raw: np.ndarray) -> np.ndarray:
    """Return two bytes as a number."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0]


def _shaped(a: np.ndarray, raw: np.ndarray, *shape: int) -> np.ndarray:
    return a.reshape(*raw.shape[:-1], *shape)


def _fields(a: np.ndarray, bits: int, axis: int = -2) -> np.ndarray:
    """Return the fields of every byte, lowest bits first, along a new axis."""
    return np.stack([(a >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], axis=axis)


def _q4(raw: np.ndarray, at: int) -> np.ndarray:
    return _shaped(_fields(raw[..., at : at + 16], 4), raw, 1, 32)


def _q5(raw: np.ndarray, at: int) -> np.ndarray:
    high = _shaped(_fields(raw[..., at : at + 4], 1, axis=-1), raw, 1, 32)
    return _q4(raw, at + 4) | (high << 4)


def _q4_0(raw: np.ndarray) -> Parts:
    return Parts(_q4(raw, 2), _half(raw[..., :2]))


def _q4_1(raw: np.ndarray) -> Parts:
    return Parts(_q4(raw, 4), _half(raw[..., :2]), least=-_half(raw[..., 2:4]))


def _q5_0(raw: np.ndarray) -> Parts:
    return Parts(_q5(raw, 2), _half(raw[..., :2]))


def _q5_1(raw: np.ndarray) -> Parts:
    return Parts(_q5(raw, 4), _half(raw[..., :2]), least=-_half(raw[..., 2:4]))


def _q8_0(raw: np.ndarray) -> Parts:
    # Signed bytes as unsigned ones: the sign bit turned, and a zero point of 128.
    return Parts(raw[..., None, 2:] ^ 0x80, _half(raw[..., :2]))


def _quarters(raw: np.ndarray, at: int) -> np.ndarray:
    """Return 64 bytes of four fields each, the fields of 32 bytes in turn."""
    return _shaped(_fields(_shaped(raw[..., at : at + 64], raw, 2, 32), 2), raw, 16, 16)


def _q2_k(raw: np.ndarray) -> Parts:
    scales = raw[..., :16]
    return Parts(_quarters(raw, 16), _half(raw[..., 80:82]), scales & 15, _half(raw[..., 82:84]), scales >> 4)


def _q3_k(raw: np.ndarray) -> Parts:
    codes = _quarters(raw, 32) | (_shaped(_fields(raw[..., :32], 1), raw, 16, 16) << 2)
    low, high = _shaped(_fields(raw[..., 96:104], 4), raw, 16), _shaped(_fields(raw[..., 104:108], 2), raw, 16)
    return Parts(codes, _half(raw[..., 108:110]), (low | (high << 4)).view(np.int8) - np.int8(32))


def _six_bits(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and minima of the eight groups of Q4_K and Q5_K, six bits each in twelve bytes."""
    a, b, c = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    return scales, np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)


def _q45_k(raw: np.ndarray, codes: np.ndarray) -> Parts:
    scales, minima = _six_bits(raw)
    return Parts(codes, _half(raw[..., :2]), scales, _half(raw[..., 2:4]), minima)


def _q4_k(raw: np.ndarray) -> Parts:
    return _q45_k(raw, _shaped(_fields(_shaped(raw[..., 16:144], raw, 4, 32), 4), raw, 8, 32))


def _q5_k(raw: np.ndarray) -> Parts:
    low = _shaped(_fields(_shaped(raw[..., 48:176], raw, 4, 32), 4), raw, 8, 32)
    return _q45_k(raw, low | (_fields(raw[..., 16:48], 1) << 4))


def _q6_k(raw: np.ndarray) -> Parts:
    low = _shaped(_fields(_shaped(raw[..., :128], raw, 2, 64), 4), raw, 16, 16)
    codes = low | (_quarters(raw, 128) << 4)
    return Parts(codes, _half(raw[..., 208:210]), np.ascontiguousarray(raw[..., 192:208]).view(np.int8))


class Kind(NamedTuple):
    """Describe a type.

    Attributes:
        number: Its number in the files.
        block: Weights of a block.
        bytes: Bytes of a block.
        dtype: dtype of a weight that is a float; where it is a code, that of bytes.
        parts: Takes blocks (..., blocks, bytes) apart; None where a weight is a float.
        bits: Bits of a code.
        group: Weights that share a scale.
        zero: Code of a weight of zero.
        least: Whether it has minima.
    """

    number: int
    block: int
    bytes: int
    dtype: np.dtype
    parts: Callable[[np.ndarray], Parts] | None = None
    bits: int = 0
    group: int = 1
    zero: int = 0
    least: bool = False


BYTE = np.dtype(np.uint8)

KINDS: Mapping[str, Kind] = {
    "F32": Kind(0, 1, 4, np.dtype("<f4")),
    "F16": Kind(1, 1, 2, np.dtype("<f2")),
    "BF16": Kind(30, 1, 2, np.dtype(ml_dtypes.bfloat16)),
    "Q4_0": Kind(2, 32, 18, BYTE, _q4_0, 4, 32, 8),
    "Q4_1": Kind(3, 32, 20, BYTE, _q4_1, 4, 32, least=True),
    "Q5_0": Kind(6, 32, 22, BYTE, _q5_0, 5, 32, 16),
    "Q5_1": Kind(7, 32, 24, BYTE, _q5_1, 5, 32, least=True),
    "Q8_0": Kind(8, 32, 34, BYTE, _q8_0, 8, 32, 128),
    "Q2_K": Kind(10, 256, 84, BYTE, _q2_k, 2, 16, least=True),
    "Q3_K": Kind(11, 256, 110, BYTE, _q3_k, 3, 16, 4),
    "Q4_K": Kind(12, 256, 144, BYTE, _q4_k, 4, 32, least=True),
    "Q5_K": Kind(13, 256, 176, BYTE, _q5_k, 5, 32, least=True),
    "Q6_K": Kind(14, 256, 210, BYTE, _q6_k, 6, 16, 32),
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


def _products(scale: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    wide = scale.astype(np.float32)[..., None]
    return wide if scales is None else wide * scales.astype(np.float32)


def decode(raw: np.ndarray, kind: str) -> np.ndarray:
    """Return rows of bytes as weights.

    Args:
        raw: uint8 (..., bytes of a row).
        kind: Name of the type.

    Returns:
        float32 (..., weights of a row); a type of floats in its own dtype.

    Example:
        >>> half = np.array([0.5], np.float16).view(np.uint8)
        >>> codes = np.arange(32, dtype=np.int8) - 16
        >>> decode(np.concatenate([half, codes.view(np.uint8)]), "Q8_0")[:3]  # .5 * -16, .5 * -15, .5 * -14
        array([-8. , -7.5, -7. ], dtype=float32)
    """
    known = KINDS[kind]
    if known.parts is None:
        return np.ascontiguousarray(raw).view(known.dtype)
    parts = known.parts(raw.reshape(*raw.shape[:-1], -1, known.bytes))
    codes = parts.codes.astype(np.float32)
    codes -= np.float32(known.zero)
    codes *= _products(parts.scale, parts.scales)[..., None]
    if parts.least is not None:
        codes -= _products(parts.least, parts.minima)[..., None]
    return codes.reshape(*raw.shape[:-1], -1)
