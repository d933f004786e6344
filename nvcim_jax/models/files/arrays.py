"""Arrays of NumPy that JAX takes over without a copy."""

import math

import jax
import numpy as np

__all__ = ["aligned", "take_over"]


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that JAX can take over on a CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    store = np.empty(size + 64, np.uint8)
    start = -store.ctypes.data % 64
    return store[start : start + size].view(dtype).reshape(shape)


def take_over(array: np.ndarray) -> jax.Array:
    """Return an array of JAX that, on a CPU, is this one: nothing may write to it any more."""
    return jax.device_put(array, may_alias=True)
