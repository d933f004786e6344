"""What a folder of records was made with, and what differs from what is asked for now."""

import dataclasses
import hashlib
import importlib.metadata
import json
from typing import Any

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.signature import checked
from nvcim_jax.types import Work

__all__ = ["difference", "fingerprint"]

_PACKAGES = ("nvcim-jax", "jax", "jaxlib")


@checked
def fingerprint(config: Any, work: Work) -> dict[str, Any]:
    """Return everything that a value depends on, as plain JSON values.

    Args:
        config: The run's settings: a dataclass, a dictionary, or any nesting of them with arrays and plain values.
        work: What is computed; arrays enter by a SHA-256 of their bytes.

    Returns:
        Dictionary with `config`, `versions`, `key` and `args`.
    """
    data = np.asarray(jax.random.key_data(jax.random.clone(work.key)))
    leaves = jax.tree_util.tree_flatten_with_path(work.args)[0]
    found = {
        "config": config,
        "versions": {name: _version(name) for name in _PACKAGES},
        "key": {"implementation": str(jax.random.key_impl(work.key)), "data": data},
        "args": {jax.tree_util.keystr(path, simple=True, separator="."): _digest(leaf) for path, leaf in leaves},
    }
    return json.loads(json.dumps(found, default=_plain, sort_keys=True))


def _version(name: str) -> str:
    if name == "nvcim-jax":  # the code that runs, not what an older installation left in the metadata
        from nvcim_jax import __version__

        return __version__
    return importlib.metadata.version(name)


def _digest(leaf: Any) -> Any:
    if isinstance(leaf, int | float | complex):
        return repr(leaf)
    array = np.asarray(leaf)
    if array.ndim == 0:
        return f"{array.item()!r} {array.dtype}"
    sha = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} sha256 {sha}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    found = f"holds a {type(value).__name__}"
    return checks.fail("config", "hold plain values, arrays and dataclasses only", found)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


@checked
def difference(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return one phrase for each setting that is not the same.

    Example:
        >>> difference({"config": {"sigma": 0.1, "rows": 8}}, {"config": {"sigma": 0.2, "rows": 8}})
        ['config.sigma (0.1 there, 0.2 here)']
    """
    old, new = _flat(there), _flat(here)
    missing = "nothing"
    return [
        f"{name} ({old.get(name, missing)!r} there, {new.get(name, missing)!r} here)"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]
