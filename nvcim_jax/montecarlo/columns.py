"""Names for the values of an instance: a tree of arrays as columns, and back."""

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.types import PyTree

__all__ = ["columns", "restore"]


def columns(values: PyTree) -> dict[str, np.ndarray]:
    """Name the leaves of a chunk of values: "value" for a lone array, else the path such as "loss" or "layers.0".

    Example:
        >>> list(columns({"loss": np.zeros(2), "parts": [np.zeros(2), np.zeros(2)]}))
        ['loss', 'parts.0', 'parts.1']
    """
    named = {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]}
    if "instance" in named:
        checks.fail("fn", "not name a value `instance`", "does so", "That column holds the instance's id.")
    return {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in named.items()}


def restore(structure: PyTree, named: dict[str, np.ndarray]) -> PyTree:
    """Put named columns back into a tree of the given structure."""
    flat, shape = jax.tree_util.tree_flatten_with_path(structure)
    return jax.tree.unflatten(shape, [named[_name(path)] for path, _ in flat])


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"
