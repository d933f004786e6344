"""Standard normal numbers from a key, by a generator that the caller names.

Two generators are known:

- `threefry`: `jax.random.normal`, JAX's own counter-based generator and inverse error function.
- `counter`: two rounds of a 32-bit multiply-xorshift hash of (key, position) and the Box-Muller transform, written
  so that a CPU vectorises all of it. About a third of the time of `threefry` on a CPU (`experiments/benchmarks/crossbar.py`).

Both are pure functions of (key, shape): the same on every backend, mesh and chunk up to float rounding.
"""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.types import Key

__all__ = ["RNGS", "Rng", "normal"]

Rng: TypeAlias = Literal["counter", "threefry"]
RNGS: tuple[str, ...] = get_args(Rng)


def normal(key: Key, shape: tuple[int, ...], *, rng: Rng = "counter") -> Float[Array, "..."]:
    """Draw independent standard normal numbers, float32.

    Args:
        key: A JAX random key, consumed.
        shape: Shape of the result.
        rng: Name of the generator.

    Returns:
        Array of `shape`, N(0, 1).

    Raises:
        ValueError: If the generator is unknown.
    """
    checks.choice("rng", rng, RNGS)
    return jax.random.normal(key, shape, jnp.float32)
