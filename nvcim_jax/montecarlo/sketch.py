"""Quantiles of values that are not kept: an exact histogram over rounded float32 numbers.

The bit pattern of a float32 grows with its value, so its leading bits are a bucket of fixed relative width. Counts
are integers: the sketch does not depend on chunks or their order, and merges exactly. A quantile is the centre of the
bucket that holds its rank; its relative error is at most 2^-12 (0.025 %).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Sketch", "add", "empty", "quantile"]

_DROPPED_BITS = 12


class Sketch(NamedTuple):
    """Sorted buckets, `element << 32 | bucket`, and how many values fell into each."""

    shape: tuple[int, ...]
    buckets: np.ndarray
    counts: np.ndarray


def _ordered(values: np.ndarray) -> np.ndarray:
    """Map float32 to uint32 so that the order is kept."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _value(ordered: np.ndarray) -> np.ndarray:
    bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
    return bits.astype(np.uint32).view(np.float32)


def empty(shape: tuple[int, ...]) -> Sketch:
    """Return a sketch of nothing for values of `shape` an instance."""
    return Sketch(shape, np.zeros(0, np.uint64), np.zeros(0, np.int64))


def add(sketch: Sketch, values: np.ndarray) -> Sketch:
    """Return the sketch with further instances (leading axis) counted in."""
    flat = values.reshape(len(values), -1)
    element = np.arange(flat.shape[1], dtype=np.uint64) << np.uint64(32)
    buckets = (element + (_ordered(flat) >> np.uint32(_DROPPED_BITS)).astype(np.uint64)).ravel()
    together = np.concatenate([sketch.buckets, buckets])
    weights = np.concatenate([sketch.counts, np.ones(len(buckets), np.int64)])
    unique, where = np.unique(together, return_inverse=True)
    return Sketch(sketch.shape, unique, np.bincount(where, weights, len(unique)).astype(np.int64))


def quantile(sketch: Sketch, levels: tuple[float, ...]) -> np.ndarray:
    """Return the quantiles, leading axis `levels`, each within 2^-12 of the value of its rank.

    Example:
        >>> values = np.linspace(1, 2, 1001)
        >>> float(quantile(add(empty(()), values), (0.5,))[0])  # exactly 1.5
        1.50...
    """
    size = int(np.prod(sketch.shape, dtype=np.int64))
    out = np.full((len(levels), size), np.nan)
    element = (sketch.buckets >> np.uint64(32)).astype(np.int64)
    edges = np.searchsorted(element, np.arange(size + 1))
    for e in range(size):
        inside = slice(edges[e], edges[e + 1])
        cumulative = np.cumsum(sketch.counts[inside])
        if len(cumulative):
            ranks = np.asarray(levels) * (cumulative[-1] - 1)
            found = sketch.buckets[inside][np.searchsorted(cumulative, np.rint(ranks), side="right")]
            low = (found & np.uint64(0xFFFFFFFF)).astype(np.uint32) << np.uint32(_DROPPED_BITS)
            out[:, e] = _value(low + np.uint32(1 << (_DROPPED_BITS - 1))).astype(np.float64)
    return out.reshape(len(levels), *sketch.shape)
