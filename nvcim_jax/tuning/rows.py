"""Arrays of several shapes as rows of one width, which a memory stores, and back."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.models import Config
from nvcim_jax.types import PyTree

__all__ = ["Shapes", "itself", "pack", "packed_shape", "unpack"]

Shapes = Mapping[str, tuple[int, ...]]
"""Name of an array -> its shape, in the order in which the arrays are stored."""


def packed_shape(shapes: Shapes, config: Config) -> tuple[int, int]:
    """Return the shape of the rows that hold some arrays: the last one is filled up with zeros."""
    return -(-sum(map(math.prod, shapes.values())) // config.width), config.width


def pack(parts: Mapping[str, Any], shapes: Shapes, config: Config, fill: float = 0.0) -> jax.Array:
    """Return arrays one after the other as rows of the model's width, float32; `fill` fills the last one up.

    Example:
        >>> config = Config(vocab_size=8, width=4, num_layers=1, num_heads=1, mlp_width=4)
        >>> pack({"a": jnp.ones((2, 3))}, {"a": (2, 3)}, config).tolist()
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    """
    for name, shape in shapes.items():
        checks.shape(f"parts[{name!r}]", parts[name], shape)
    num, width = packed_shape(shapes, config)
    flat = jnp.concatenate([jnp.ravel(parts[name]).astype(jnp.float32) for name in shapes])
    return jnp.pad(flat, (0, num * width - flat.size), constant_values=fill).reshape(num, width)


def unpack(rows: PyTree, shapes: Shapes, config: Config) -> dict[str, jax.Array]:
    """Return the arrays that `pack` put into rows.

    Raises:
        ValueError: If the rows are those of another adapter or another model.
    """
    checks.shape(
        "state", rows, packed_shape(shapes, config), "(rows, width)", "It belongs to another adapter or another model."
    )
    flat, found, at = jnp.ravel(rows), {}, 0
    for name, shape in shapes.items():
        found[name] = jax.lax.slice_in_dim(flat, at, at + math.prod(shape)).reshape(shape)
        at += math.prod(shape)
    return found


def itself(rows: Any) -> Any:
    """Return rows as they are: of most adapters the state is what a memory stores."""
    return rows
