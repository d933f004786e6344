"""Array aliases and protocols that two rooms or more share."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Contract", "Key", "Perturb", "PyTree", "Scalar"]

Key: TypeAlias = PRNGKeyArray
"""A JAX random key (`jax.random.key`), consumed once by whatever receives it."""

Scalar: TypeAlias = Float[Array, ""]
"""A float array without axes."""

PyTree: TypeAlias = Any
"""Any nesting of containers whose leaves are arrays."""


@runtime_checkable
class Contract(Protocol):
    """A matrix product with the signature of `jnp.einsum`: the seam for read-time hardware effects."""

    def __call__(self, subscripts: str, x: jax.Array, w: Any, /) -> jax.Array:
        """Return the contraction of `x` with the (possibly compressed or analog) weight `w`."""
        ...


@runtime_checkable
class Perturb(Protocol):
    """A random transform of a parameter tree: the seam for write-time hardware effects."""

    def __call__(self, key: Key, params: PyTree, /) -> PyTree:
        """Return a tree of the same structure, as the hardware would hold it."""
        ...
