"""Hold the arguments of a public function against its own signature, so that no raw error comes from within.

What is annotated is what is checked: keys, arrays (and their number of axes), this library's classes, numbers,
functions, paths, sequences and mappings. Shapes that must agree, ranges and names stay with the function, which knows
them; text too, since a function that takes a name lists the known ones.
"""

import collections.abc
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from nvcim_jax import checks

__all__ = ["checked"]

P = ParamSpec("P")
R = TypeVar("R")


class _Kind(NamedTuple):
    """What an argument must be, in words, and whether a value is that.

    Attributes:
        words: In a message, behind "must be".
        holds: Whether a value is that.
        axes: Names of the axes of an array that must have so many.
        part: What each part of a sequence must be.
        fix: What to do instead of giving a value that is not.
    """

    words: str
    holds: Callable[[Any], bool]
    axes: tuple[str, ...] | None = None
    part: Callable[[Any], bool] | None = None
    fix: Callable[[Any], str] = lambda _: ""


def checked(fn: Callable[P, R]) -> Callable[P, R]:
    """Return `fn` with its arguments checked against their annotations before it runs.

    The checks look at kinds and numbers of axes alone, which tracers have too, so the function may be jitted, mapped
    and differentiated as before; they take about a microsecond an argument. Keys come as `checks.key` returns them.

    Raises:
        ValueError: By the returned function, in the library's one grammar, where an argument is of another kind.

    Example:
        >>> @checked
        ... def double(x: jax.Array) -> jax.Array:
        ...     return x + x
        >>> double("text")
        Traceback (most recent call last):
        ...
        ValueError: Argument `x` must be an array of real numbers, but is 'text'.
    """
    known: dict[str, list[_Kind]] = {}
    order: list[str] = []
    keys: set[str] = set()

    def prepare() -> None:
        for name, parameter in inspect.signature(fn).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                order.append(name)
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                kinds = _kinds(parameter.annotation)
                if kinds is not None:
                    known[name] = kinds + ([_NONE] if parameter.default is None else [])
                    keys.update([name] if _KEY in kinds else [])

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not order and not known:
            prepare()
        for name, value in (*zip(order, args, strict=False), *kwargs.items()):
            if name in known:
                _check(name, value, known[name])
            if name in keys and checks.draws_by_batch(getattr(value, "dtype", None)):
                return call(*(_steady(one) for one in args), **{name: _steady(one) for name, one in kwargs.items()})  # type: ignore[arg-type]
        return fn(*args, **kwargs)

    return call


def _steady(value: Any) -> Any:
    """Return a key of rbg as `checks.key` does, and anything else as it is."""
    return checks.key("key", value) if checks.draws_by_batch(getattr(value, "dtype", None)) else value


def _check(name: str, value: Any, kinds: list[_Kind]) -> None:
    if any(kind.holds(value) for kind in kinds):
        return
    if any(kind is _KEY for kind in kinds):
        checks.key(name, value)
    arrays = [kind for kind in kinds if kind.axes is not None]
    if arrays and _is_array(value):
        axes = arrays[0].axes or ()
        many = len(np.shape(value)) > len(axes)
        fix = "Use jax.vmap for further axes." if many else ""
        checks.fail(name, f"have shape ({', '.join(axes)})", f"has shape {np.shape(value)}", fix)
    found = f"is {checks.shown(value)}"
    for kind in kinds:
        if kind.part is not None and isinstance(value, list | tuple):
            i, part = next((i, part) for i, part in enumerate(value) if not kind.part(part))
            found = f"row {i} is {checks.shown(part)}"
    words = list(dict.fromkeys(kind.words for kind in kinds))
    fix = next((fix for fix in (kind.fix(value) for kind in kinds) if fix), "")
    checks.fail(name, "be " + " or ".join(words), found, fix)


def _kinds(annotation: Any) -> list[_Kind] | None:
    """Return what an annotation admits; None where that is anything, or not known here."""
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, str | TypeVar):
        return None
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = typing.get_args(annotation)
        if _is_key(parts):
            return [_KEY]
        found = [_kinds(part) for part in parts]
        return None if None in found else [kind for part in found if part is not None for kind in part]
    found = _kind(annotation)
    return None if found is None else [found]


def _kind(annotation: Any) -> _Kind | None:
    origin = typing.get_origin(annotation) or annotation
    if annotation is None or annotation is type(None):
        return _NONE
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if hasattr(annotation, "dim_str"):  # jaxtyping
        return _array(annotation)
    if origin in (collections.abc.Callable, type):
        return _FUNCTION
    if origin is collections.abc.Sequence:
        return _sequence(typing.get_args(annotation))
    if not inspect.isclass(origin) or origin is object:
        return None
    if getattr(origin, "_is_protocol", False):
        return _FUNCTION if "__call__" in vars(origin) else None
    return _instance(origin)


def _sequence(of: tuple[Any, ...]) -> _Kind:
    """Return the kind of a sequence: its parts are held against what they must be, those of an array are numbers."""
    parts = _kinds(of[0]) if of else None
    numbers = parts is None or any(kind.holds(1) for kind in parts)

    def good(part: Any) -> bool:
        return parts is None or any(kind.holds(part) for kind in parts)

    def holds(value: Any) -> bool:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return numbers and _is_array(value) and np.ndim(value) > 0
        return all(good(part) for part in value)

    words = "" if parts is None else " of which each is " + " or ".join(dict.fromkeys(kind.words for kind in parts))
    return _Kind(f"a sequence{words}", holds, part=good)


def _is_key(parts: Sequence[Any]) -> bool:
    """Return whether a union is that of all kinds of JAX keys."""
    return any(getattr(getattr(part, "dtype", None), "__name__", "") == "Key" for part in parts)


def _array(annotation: Any) -> _Kind:
    """Return the kind of a jaxtyping annotation: how many axes, where that is fixed, and whether truth values pass."""
    names, bools = tuple(annotation.dim_str.split()), "bool" in getattr(annotation, "dtypes", ("bool",))

    def holds(value: Any) -> bool:
        return hasattr(value, "shape") and _is_array(value) and (bools or not _is_bool(value))

    if any(name.startswith(("*", "...")) for name in names):
        return _Kind(_ARRAY.words, holds)
    words = f"an array of shape ({', '.join(names)})" if names else "a number"
    return _Kind(words, lambda value: holds(value) and len(value.shape) == len(names), names)


@functools.cache
def _dtype_kind(dtype: Any) -> str:
    """Return the letter of a dtype's kind, b for truth values and k for random keys."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return "k"
    return "O" if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype).kind


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or _dtype_kind(value.dtype) == "b"


def _is_array(value: Any) -> bool:
    """Return whether a value is real or holds such: a JAX or NumPy array, traced or not, or what stands for one."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return hasattr(value, "shape") and _dtype_kind(dtype) not in "kOSUMmc"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (_is_array(value) and np.shape(value) == ())


def _is_key_value(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    return len(value.shape) == 0 if _dtype_kind(dtype) == "k" else dtype == np.uint32 and len(value.shape) == 1


def _instance(kind: type) -> _Kind:
    fix = getattr(kind, "instead_of", None)
    words = checks.name_of(kind)
    return _Kind(words, lambda value: isinstance(value, kind), fix=fix or (lambda _: ""))


_NONE = _Kind("None", lambda value: value is None)
_KEY = _Kind("one JAX random key", _is_key_value)
_ARRAY = _Kind("an array of real numbers", _is_array)
_TEXT = _Kind("text", lambda value: isinstance(value, str))
_FUNCTION = _Kind("a function", callable)
_SIMPLE: Mapping[Any, _Kind] = {
    str: _TEXT,
    jax.Array: _ARRAY,
    np.ndarray: _Kind("an array", lambda value: _is_array(value) and np.ndim(value) > 0),
    int: _Kind("an integer", _is_number),
    float: _Kind("a real number", _is_number),
    complex: _Kind("a number", _is_number),
    bool: _Kind("True or False", lambda value: isinstance(value, bool | np.bool)),
    np.bool: _Kind("True or False", lambda value: isinstance(value, bool | np.bool)),
    np.number: _Kind("a number", _is_number),
    Path: _Kind("a path", lambda value: isinstance(value, os.PathLike)),
}
