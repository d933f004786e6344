"""What a folder of records was made with, and what differs from what is asked for now."""

import dataclasses
import functools
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
        Dictionary with `config`, `metric`, `versions`, `key` and `args`.

    Example:
        >>> found = fingerprint({"sigma": 0.1}, Work(None, jax.random.key(7), {"x": np.zeros(2, np.float32)}))
        >>> found["config"], found["key"]["data"], found["args"]
        ({'sigma': 0.1}, [0, 7], {'x': 'float32[2] sha256 af5570f5a1810b7a'})
    """
    data = np.asarray(jax.random.key_data(jax.random.clone(work.key)))
    leaves = jax.tree_util.tree_flatten_with_path(work.args)[0]
    found = {
        "config": config,
        "metric": work.program,
        "versions": {name: _version(name) for name in _PACKAGES},
        "key": {"implementation": str(jax.random.key_impl(work.key)), "data": data},
        "args": {jax.tree_util.keystr(path, simple=True, separator="."): _digest(leaf) for path, leaf in leaves},
    }
    return json.loads(json.dumps(found, default=_plain))


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
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    found = f"holds a {type(value).__name__}"
    return checks.fail("config", "hold plain values, arrays and dataclasses only", found)


@checked
def difference(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return one phrase for everything that is not the same, in words.

    Args:
        there: A fingerprint, as it was kept.
        here: The one of now.

    Example:
        >>> there = {"config": {"sigma": 0.1}, "key": {"data": [0, 4]}, "args": {"0": "float32[2] sha256 ab"}}
        >>> here = {"config": {"sigma": 0.2}, "key": {"data": [0, 5]}, "args": {"0": "float32[2] sha256 cd"}}
        >>> print("; ".join(difference(there, here)))
        the setting sigma (0.1 there, 0.2 here); the seed (4 there, 5 here); argument 0 (other values in a float32[2])
    """
    parts = ("config", "key", "metric", "versions", "args")
    worded = {"config": _settings, "key": _key, "metric": _metric, "versions": _versions, "args": _arguments}
    return [
        phrase
        for name in parts
        if there.get(name) != here.get(name)
        for phrase in worded[name](there.get(name), here.get(name))
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat


def _pairs(there: Any, here: Any) -> list[tuple[str, str, str]]:
    """Return name and both values of every leaf that differs."""
    old, new = _flat(there), _flat(here)
    names = [name for name in {**old, **new} if old.get(name, _pairs) != new.get(name, _pairs)]

    def word(part: dict[str, Any], name: str) -> str:
        return repr(part[name]) if name in part else "nothing"

    return [(name, word(old, name), word(new, name)) for name in names]


def _settings(there: Any, here: Any) -> list[str]:
    plain = ("common.", "settings.")  # of a sweep's point
    found = []
    for name, old, new in _pairs(there, here):
        name = next((name.removeprefix(p) for p in plain if name.startswith(p)), name)
        found.append(f"the setting{f' {name}' if name else 's'} ({old} there, {new} here)")
    return found


def _key(there: Any, here: Any) -> list[str]:
    there, here = there or {}, here or {}
    old, new = there.get("data"), here.get("data")
    if there.get("implementation") != here.get("implementation"):
        return [f"the kind of key ({there.get('implementation')} there, {here.get('implementation')} here)"]
    if len(old) == len(new) == 2:  # threefry: the two halves of the seed, or of what was split off it
        old, new = ((high << 32) + low for high, low in (old, new))
    return [f"the seed ({old} there, {new} here)"]


def _metric(there: Any, here: Any) -> list[str]:
    if not there or not here:
        return ["the metric (not known there)" if here else "the metric (not known here)"]
    if there["operations"] != here["operations"]:
        return ["the metric (it computes something else)"]
    for old, new in zip(there["numbers"], here["numbers"], strict=False):
        if old != new:
            return [f"the metric (a number in it: {old.split()[0]} there, {new.split()[0]} here)"]
    if there["arrays"] != here["arrays"]:
        kinds = [old.split()[0] for old, new in zip(there["arrays"], here["arrays"], strict=False) if old != new]
        return [
            f"the metric (other values in an array that it closes over, {kinds[0] if kinds else 'of another form'})"
        ]
    return ["the metric (a number in it)"]


def _versions(there: Any, here: Any) -> list[str]:
    return [f"the version of {n} ({old} there, {new} here)" for n, old, new in _pairs(there, here)]


_MOST_ARGUMENTS = 3


def _arguments(there: Any, here: Any) -> list[str]:
    there, here = there or {}, here or {}
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(name.split(".")[0], []).append(name)
    found = []
    for group, members in grouped.items():
        if len(members) > _MOST_ARGUMENTS:
            found.append(f"{_argument(group)} ({len(members)} numbers or arrays in it)")
        else:
            found += [f"{_argument(n)} ({_values(there.get(n), here.get(n))})" for n in members]
    return found


def _argument(name: str) -> str:
    return f"argument {name}" if name[:1].isdigit() else name


def _values(old: str | None, new: str | None) -> str:
    kinds = [None if value is None else value.split(" sha256 ")[0] for value in (old, new)]
    if kinds[0] == kinds[1]:
        return f"other values in a {kinds[0]}"
    return f"{kinds[0] or 'nothing'} there, {kinds[1] or 'nothing'} here"
