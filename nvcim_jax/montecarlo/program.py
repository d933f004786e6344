"""What a metric computes, as something that can be compared: between two traces, two processes, two days.

A metric is traced to a jaxpr; what it computes is described by its operations with their settings, the numbers
written into it, and the arrays that it closes over. Names, source lines, addresses, meshes and layouts are left out:
they change no value.
"""

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import AxisType

from nvcim_jax import checks
from nvcim_jax.types import PyTree

__all__ = ["description", "program"]

_FREE = re.compile(
    r"name|.*mesh|.*shardings?|.*layouts?|donated_invars|keep_unused|inline|compiler_options_kvs|debug_info|policy"
    r"|prevent_cse"
)
"""Settings of operations that change no value."""

_SHOWN = 200
"""Numbers that are kept as they are, to be shown where they differ; the others enter a hash."""


def program(fn: Callable[..., PyTree], key: jax.Array, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return what one instance computes, `fn(fold_in(key, id), *args)`, as plain values.

    The metric is traced twice. Where the two traces differ, something in it is drawn or counted while it is traced
    (by NumPy, by `random`, from the time): every instance would get the same draw.

    Args:
        fn: Metric of one instance.
        key: The run's key; its kind counts, not its value.
        args: Arguments; their shapes and dtypes count, not their values.

    Returns:
        See `description`.

    Raises:
        ValueError: If the two traces differ.

    Example:
        >>> def metric(key, x):
        ...     return 0.5 * x * jax.random.normal(key)
        >>> found = program(metric, jax.random.key(0), (1.0,))
        >>> found == program(metric, jax.random.key(1), (2.0,)), "0.5 float32" in found["numbers"]
        (True, True)
    """
    leaves, tree = jax.tree.flatten((key, args))
    return _program(fn, tree, tuple(jax.eval_shape(lambda x: x, leaf) for leaf in leaves))


@functools.lru_cache(maxsize=32)  # traces cost as much as small runs: a second run of the same metric makes none
def _program(fn: Callable[..., PyTree], tree: Any, forms: tuple[Any, ...]) -> dict[str, Any]:
    key, args = jax.tree.unflatten(tree, forms)
    instance = jax.ShapeDtypeStruct((), jnp.uint32)

    def trace(name: str) -> dict[str, Any]:
        def one(key: jax.Array, instance: jax.Array, args: tuple[Any, ...]) -> PyTree:
            value = fn(jax.random.fold_in(key, instance), *args)
            _check_value(value)
            return value

        # Each under a mesh of its own, which the metric does not see: nothing is taken from JAX's caches of traces.
        mesh = jax.sharding.AbstractMesh((1,), (name,), axis_types=(AxisType.Auto,))
        with jax.sharding.use_abstract_mesh(mesh):
            return description(jax.make_jaxpr(one)(key, instance, args))

    first, second = trace("first"), trace("second")
    if first != second:
        fix = "Draw with jax.random from the key that it is given."
        checks.fail("fn", "compute the same whenever it is traced", f"does not: {_changed(first, second)}", fix)
    return first


def _check_value(value: PyTree) -> None:
    leaves = jax.tree.leaves(value)
    if not leaves:
        checks.fail("fn", "return a number, an array or a tree of arrays", "returns none", "Return the metric.")
    for leaf in leaves:
        if not isinstance(leaf, bool | int | float | complex | np.ndarray | np.generic | jax.Array):
            found = f"returns {leaf!r}" if isinstance(leaf, str) else f"returns a {type(leaf).__name__}"
            checks.fail("fn", "return a number, an array or a tree of arrays", found, "Return a number instead.")
        dtype = jax.dtypes.result_type(leaf)
        if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_):
            checks.fail("fn", "return real numbers", f"returns {dtype}", "Return e.g. its absolute value.")


def _changed(first: dict[str, Any], second: dict[str, Any]) -> str:
    for a, b in zip(first["numbers"], second["numbers"], strict=False):
        if a != b:
            return f"a number in it is {a.split()[0]}, then {b.split()[0]} (NumPy's random numbers, or the time?)"
    if first["operations"] == second["operations"]:
        return "an array in it changes (NumPy's random numbers?)"
    return "its operations change"


def description(closed: Any) -> dict[str, Any]:
    """Return a closed jaxpr as plain values that are equal where it computes the same.

    Args:
        closed: The jaxpr with its constants.

    Returns:
        `operations`: a hash of all operations, their settings, shapes and how they are connected; `numbers`: the
        numbers written into it, in order; `more_numbers`: a hash of those beyond the first 200; `arrays`: shape, dtype
        and hash of every array that it closes over.
    """
    found = _Found(hashlib.sha256(), [], [])
    _walk(closed.jaxpr, closed.consts, found)
    rest = hashlib.sha256("\n".join(found.numbers[_SHOWN:]).encode()).hexdigest()[:16]
    return {
        "operations": found.operations.hexdigest()[:16],
        "numbers": found.numbers[:_SHOWN],
        "more_numbers": rest if len(found.numbers) > _SHOWN else "",
        "arrays": found.arrays,
    }


class _Found(NamedTuple):
    """What is gathered on the way through a jaxpr."""

    operations: Any
    numbers: list[str]
    arrays: list[str]

    def say(self, *words: Any) -> None:
        self.operations.update((" ".join(map(str, words)) + "\n").encode())

    def value(self, value: Any) -> None:
        """Note a constant: a number by itself, an array by a hash."""
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(jax.random.clone(value))
        array = np.asarray(value)
        if array.ndim == 0:
            self.numbers.append(f"{array.item()!r} {array.dtype}")
            return
        sha = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
        self.arrays.append(f"{array.dtype}{list(array.shape)} sha256 {sha}")


def _walk(jaxpr: Any, consts: Any, found: _Found) -> None:
    names: dict[Any, int] = {}

    def name(variable: Any) -> str:
        if isinstance(variable, core.Literal):
            found.value(np.asarray(variable.val, getattr(variable.aval, "dtype", None)))
            return f"number {variable.aval.str_short()}"
        number = names.setdefault(variable, len(names))
        return f"{number} {variable.aval.str_short()}"

    for variable, value in zip(jaxpr.constvars, consts, strict=True):
        found.say("constant", name(variable))
        found.value(value)
    found.say("takes", *map(name, jaxpr.invars))
    for equation in jaxpr.eqns:
        found.say(equation.primitive.name, *map(name, equation.invars))
        for setting in sorted(equation.params):
            if not _FREE.fullmatch(setting):
                found.say(setting)
                _setting(equation.params[setting], found)
        found.say("gives", *map(name, equation.outvars))
    found.say("returns", *map(name, jaxpr.outvars))


def _setting(value: Any, found: _Found) -> None:
    """Note one setting of an operation."""
    if isinstance(value, jax.sharding.Sharding | jax.sharding.Mesh | jax.sharding.AbstractMesh):
        return
    if hasattr(value, "jaxpr") and hasattr(value, "consts"):
        _walk(value.jaxpr, value.consts, found)
    elif hasattr(value, "eqns"):
        _walk(value, (), found)
    elif isinstance(value, np.ndarray | jax.Array):
        found.value(value)
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            found.say(name)
            _setting(value[name], found)
    elif isinstance(value, tuple | list):
        found.say("several", len(value))
        for part in value:
            _setting(part, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found.say(type(value).__name__)
        for field in dataclasses.fields(value):
            if not _FREE.fullmatch(field.name):
                _setting(getattr(value, field.name), found)
    elif isinstance(value, enum.Enum):
        found.say(value.name)
    elif callable(value) and not isinstance(value, type):
        found.say(getattr(value, "__module__", ""), getattr(value, "__qualname__", type(value).__qualname__))
    else:
        found.say(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
