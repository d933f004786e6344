"""Keys and products of one chip, for tests that look at what comes out of it."""

from typing import Any

import jax
import numpy as np

from nvcim_jax import crossbar


def make_key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


def product(x: Any, chip: crossbar.Chip) -> np.ndarray:
    """Return the product of a chip, always with the same key."""
    return np.asarray(crossbar.matmul(make_key(1), x, chip)[0])
