"""Wording of errors: every check of an argument in the library is made here, in one grammar.

"Argument `x` must have shape (rows, cols), but has shape (3,). <the fix>"

A check looks at static facts (names, shapes, types) always, and at values only where they are concrete:
a traced array passes, because its values do not exist yet. `ValueError` is raised for a value, `TypeError`
for a keyword that does not exist.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = [
    "broadcast",
    "choice",
    "draws_by_batch",
    "fail",
    "file",
    "finite",
    "frozen_config",
    "instance",
    "integer",
    "is_concrete",
    "key",
    "name_of",
    "number",
    "options",
    "rank",
    "real",
    "shape",
    "shown",
    "suggestion",
]

T = TypeVar("T")
_LONGEST = 300


def fail(argument: str, expected: str, found: str, fix: str = "") -> NoReturn:
    """Raise a `ValueError` in the library's one grammar.

    Args:
        argument: Name of the argument, as the caller wrote it.
        expected: What it must be, continuing "must ".
        found: What it is, continuing "but ".
        fix: What to do about it, a sentence.

    Raises:
        ValueError: Always.

    Example:
        >>> fail("cell_bits", "be a positive integer", "is 0", "Use None for analog cells.")
        Traceback (most recent call last):
        ...
        ValueError: Argument `cell_bits` must be a positive integer, but is 0. Use None for analog cells.
    """
    raise ValueError(f"Argument `{argument}` must {expected}, but {_in_a_line(found)}." + (f" {fix}" if fix else ""))


def _in_a_line(text: str) -> str:
    """Return a text without line ends, cut where it is long: the `repr` of an array, say."""
    line = " ".join(text.split()) if "\n" in text else text
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def shown(value: Any) -> str:
    """Return what a value is, for a message: a plain one itself, any other by its kind.

    Example:
        >>> shown("text"), shown({}), shown(np.zeros((2, 3)))
        ("'text'", 'a dict', 'an array of float64 of shape (2, 3)')
    """
    if value is None or isinstance(value, str | bool | int | float | complex | Path):
        return repr(str(value)) if isinstance(value, Path) else repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype} of shape {np.shape(value)}"
    return "a function" if callable(value) and hasattr(value, "__name__") else f"a {type(value).__name__}"


def name_of(kind: type) -> str:
    """Return the name of a class with its article and, for one of this library, its room.

    Example:
        >>> name_of(dict), name_of(int)
        ('a dict', 'an int')
    """
    parts = kind.__module__.split(".")
    name = f"{parts[1]}.{kind.__name__}" if parts[0] == __package__ and len(parts) > 1 else kind.__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def suggestion(value: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the nearest known name, or the list of all of them.

    Example:
        >>> suggestion("FeFET7", ["FeFET6", "RRAM1"])
        "Did you mean 'FeFET6'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(value.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    if close:
        return f"Did you mean {next(n for n in known if n.lower() == close[0])!r}?"
    return f"Known: {', '.join(known)}."


def choice(argument: str, value: Any, known: Iterable[str]) -> None:
    """Check that `value` is one of the `known` names.

    Raises:
        ValueError: If it is not; the message suggests the nearest one.
    """
    known = sorted(known)
    if not isinstance(value, str) or value not in known:
        near = suggestion(str(value), known)
        # the list stands there already
        fail(argument, f"be one of {', '.join(known)}", f"is {value!r}", near if near.startswith("Did") else "")


def is_concrete(value: Any) -> bool:
    """Return whether the values of an array can be looked at now (not traced by a JAX transformation)."""
    return not isinstance(value, Tracer)


def instance(argument: str, value: Any, kind: type, fix: str = "") -> None:
    """Check that `value` is of a class of this library.

    Raises:
        ValueError: If it is not.

    Example:
        >>> instance("converters", {"adc_bits": 8}, int, "Use an int.")
        Traceback (most recent call last):
        ...
        ValueError: Argument `converters` must be an int, but is a dict. Use an int.
    """
    if not isinstance(value, kind):
        fail(argument, f"be {name_of(kind)}", f"is a {type(value).__name__}", fix)


def key(argument: str, value: Any) -> jax.Array:
    """Return one JAX random key, typed: an old uint32 array is wrapped, with the same numbers.

    A key of `rbg` or `unsafe_rbg` becomes a threefry key: what those draw under `jax.vmap` depends on what else is
    mapped, so that a chip would not be the same chip in another batch.

    Raises:
        ValueError: If it is not, such as a seed.

    Example:
        >>> key("key", 0)
        Traceback (most recent call last):
        ...
        ValueError: Argument `key` must be one JAX random key, but is the int 0. Use jax.random.key(0).
    """
    dtype = getattr(value, "dtype", None)
    if isinstance(value, int | np.integer):
        fail(argument, "be one JAX random key", f"is the int {value}", f"Use jax.random.key({value}).")
    if dtype is None:
        fail(argument, "be one JAX random key", f"is a {type(value).__name__}", "Use jax.random.key(0).")
    typed = jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != np.uint32:
        fail(argument, "be one JAX random key", f"is an array of {dtype}", "Use jax.random.key(0).")
    if np.ndim(value) != (0 if typed else 1):
        fail(argument, "be one JAX random key", f"has shape {np.shape(value)}", "Use jax.vmap for many.")
    if not typed:
        value = jax.random.wrap_key_data(jnp.asarray(value), impl="rbg" if value.shape == (4,) else "threefry2x32")
    if not draws_by_batch(value.dtype):
        return value
    data = jax.random.key_data(value)
    steady = jax.random.wrap_key_data(data[:2], impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(steady, data[2]), data[3])


@functools.cache
def draws_by_batch(dtype: Any) -> bool:
    """Return whether a dtype is that of keys whose numbers under `jax.vmap` depend on what else is mapped.

    Example:
        >>> draws_by_batch(jax.random.key(0, impl="rbg").dtype), draws_by_batch(jax.random.key(0).dtype)
        (True, False)
    """
    return str(dtype) in ("key<rbg>", "key<urbg>")


def rank(argument: str, value: Any, ranks: int | tuple[int, ...], axes: str, fix: str = "") -> None:
    """Check the number of axes of an array.

    Args:
        argument: Name of the argument.
        value: Anything with a shape.
        ranks: Accepted numbers of axes.
        axes: The axes in words, for the message, such as "(rows, cols)".
        fix: A sentence; by default, to map with `jax.vmap` where there are too many axes.

    Raises:
        ValueError: If the rank differs.
    """
    accepted = (ranks,) if isinstance(ranks, int) else ranks
    found = np.shape(value)
    if len(found) not in accepted:
        too_many = len(found) > max(accepted)
        fail(
            argument,
            f"have shape {axes}",
            f"has shape {found}",
            fix or ("Use jax.vmap for further axes." if too_many else ""),
        )


def shape(argument: str, value: Any, expected: tuple[int, ...], axes: str = "", fix: str = "") -> None:
    """Check the shape of an array.

    Raises:
        ValueError: If it differs from `expected`; `axes` names the axes in the message.
    """
    found = np.shape(value)
    if found != expected:
        fail(argument, f"have shape {axes + ' = ' if axes else ''}{expected}", f"has shape {found}", fix)


def broadcast(argument: str, value: Any, against: tuple[int, ...]) -> None:
    """Check that an array fits one of shape `against` by broadcasting, without making that any larger.

    Raises:
        ValueError: If it does not.
    """
    found = np.shape(value)
    fits = len(found) <= len(against) and all(a in (1, b) for a, b in zip(found[::-1], against[::-1], strict=False))
    if not fits:
        fail(argument, f"broadcast against {against}", f"has shape {found}")


def real(argument: str, value: Any, fix: str = "") -> None:
    """Check that a value is a real number or an array of them: no text, no truth values, nothing complex, not None.

    Raises:
        ValueError: If it is not; a traced array is known by its dtype.

    Example:
        >>> real("sigma", 0.1j)
        Traceback (most recent call last):
        ...
        ValueError: Argument `sigma` must be a real number, but is 0.1j.
    """
    plain = not hasattr(value, "dtype")
    try:
        dtype = np.asarray(value).dtype if plain else value.dtype
    except (ValueError, TypeError):  # rows of unlike lengths, lists of tracers
        dtype = jnp.result_type(*value) if plain and any(isinstance(v, Tracer) for v in value) else np.dtype(object)
    kinds = (jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        array = np.ndim(value) if not plain else isinstance(value, list | tuple)
        found = f"has the dtype {dtype}" if array else f"is {value!r}"
        fail(argument, "be a real number" if not array else "hold real numbers", found, fix)


def finite(argument: str, value: Any, fix: str = "") -> None:
    """Check that an array of real numbers has no NaN and no infinity; the values of a traced one pass.

    Raises:
        ValueError: If it has one; the message counts them.
    """
    real(argument, value, fix)
    if is_concrete(value):
        bad = int(np.size(value) - np.isfinite(np.asarray(value, dtype=np.float32)).sum())
        if bad:
            fail(argument, "be finite", f"has {bad} NaN or infinite values of {np.size(value)}", fix)


def number(
    argument: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    unit: str = "",
    fix: str = "",
) -> None:
    """Check that every element of a concrete number or array lies in [low, high] ((low, high] if `low_open`).

    Raises:
        ValueError: If one does not, or is NaN, or is no real number.
    """
    real(argument, value, fix)
    if not is_concrete(value):
        return
    values = np.asarray(value, dtype=np.float64)
    inside = (values > low if low_open else values >= low) & (values <= high)
    if not inside.all():
        unit = f" {unit}" if unit else ""
        bracket = "(" if low_open else "["
        wrong = values[~inside].ravel()[0] if values.ndim else values
        fail(argument, f"lie in {bracket}{low:g}, {high:g}]{unit}", f"is {float(wrong):g}{unit}", fix)


def integer(argument: str, value: Any, *, low: int = 1, high: int | None = None, fix: str = "") -> None:
    """Check that `value` is an integer (not a bool) of at least `low` and at most `high`.

    Raises:
        ValueError: If it is not.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        fail(argument, f"be an integer of at least {low}{upper}", f"is {value!r}", fix)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def frozen_config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass whose misspelt keywords are named, with the nearest right one.

    It is a tree without leaves: `jax.jit`, `jax.vmap` and `jax.tree_util.Partial` take it as they take arrays, and
    equal configurations share a compilation.

    Example:
        >>> @frozen_config
        ... class Config:
        ...     adc_bits: int | None = None
        >>> Config(adc_bit=8)
        Traceback (most recent call last):
        ...
        TypeError: Config has no option `adc_bit`. Did you mean 'adc_bits'?
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    names = [field.name for field in dataclasses.fields(made)]  # type: ignore[arg-type]
    original: Callable[..., None] = made.__init__

    @functools.wraps(original)
    def init(self: Any, **options: Any) -> None:
        for name in options:
            if name not in names:
                raise TypeError(f"{cls.__name__} has no option `{name}`. {suggestion(name, names)}")
        original(self, **options)

    made.__init__ = init  # type: ignore[method-assign]
    return jax.tree_util.register_static(made)


def options(owner: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Check that a function got no keyword besides the `known` ones.

    Raises:
        TypeError: If it did; the message suggests the nearest right one.

    Example:
        >>> options("get", {"sgima": 0.1}, ["sigma", "clip"])
        Traceback (most recent call last):
        ...
        TypeError: get has no option `sgima`. Did you mean 'sigma'?
    """
    for name in unknown:
        raise TypeError(f"{owner} has no option `{name}`. {suggestion(name, known)}")


def file(argument: str, value: str | Path, *, folder: bool = False) -> Path:
    """Return the path of an existing file (a folder if `folder`), or say what lies near it.

    Raises:
        FileNotFoundError: If there is none; the message names the nearest entry of the nearest existing folder.
    """
    path = Path(value).expanduser()
    if path.is_dir() if folder else path.is_file():
        return path
    kind = "folder" if folder else "file"
    if path.exists():
        raise FileNotFoundError(f"Argument `{argument}` must name a {kind}, but {path} is not one.")
    parent = path.parent
    while not parent.is_dir():
        parent = parent.parent
    missing = path.relative_to(parent).parts[0]
    known = sorted(entry.name for entry in parent.iterdir())
    near = suggestion(missing, known) if known else "The folder is empty."
    if len(near) > 200:
        near = f"{near[:200]} ..."
    raise FileNotFoundError(
        f"Argument `{argument}` must name a {kind}, but there is none: {path}. {parent} has no {missing!r}. {near}"
    )
