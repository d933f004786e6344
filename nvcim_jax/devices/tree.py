"""How the physics of a device becomes a tree: checked when a user makes it, rebuilt as it is by JAX."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, Partial

from nvcim_jax import checks
from nvcim_jax.devices.curves import everywhere

__all__ = ["function_of", "replaced", "spec", "strong"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def spec(cls: type[T]) -> type[T]:
    """Make a frozen dataclass a tree of its fields, those of `metadata={"static": True}` apart.

    JAX puts axes, batches and None in place of leaves: it rebuilds a spec without `__post_init__`, which is left to
    check what users write; `replaced` is a constructor too.
    """
    made = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    static = [field.name for field in fields if field.metadata.get("static")]
    leaves = [field.name for field in fields if not field.metadata.get("static")]

    def parts(one: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(one, name) for name in leaves], tuple(getattr(one, name) for name in static)

    def parts_with_keys(one: Any) -> tuple[list[Any], tuple[Any, ...]]:
        children, facts = parts(one)
        return [(GetAttrKey(name), child) for name, child in zip(leaves, children, strict=True)], facts

    def rebuild(facts: tuple[Any, ...], children: Any) -> Any:
        one = object.__new__(made)
        for name, value in zip([*leaves, *static], [*children, *facts], strict=True):
            object.__setattr__(one, name, value)
        return one

    jax.tree_util.register_pytree_with_keys(made, parts_with_keys, rebuild, parts)
    return made


def replaced(one: T, changes: dict[str, Any]) -> T:
    """Return a spec with some fields changed, checked as when it is made.

    Raises:
        TypeError: If there is no such field; the message suggests the nearest one.
    """
    known = [field.name for field in dataclasses.fields(one)]  # type: ignore[arg-type]
    unknown = [name for name in changes if name not in known]
    checks.options(f"{type(one).__name__}.replace", unknown, known)
    return dataclasses.replace(one, **changes)  # type: ignore[type-var]


def strong(argument: str, value: Any, **limits: Any) -> jax.Array:
    """Check a number, and return it as a strong float32 array.

    Args:
        argument: Its name.
        value: A number, an array, or a list of numbers.
        **limits: Those of `checks.number`.

    Raises:
        ValueError: If it is no real number, or out of its limits.
    """
    checks.number(argument, value, **limits)
    return jnp.asarray(value, jnp.float32)


def function_of(argument: str, value: Any) -> Partial:
    """Return a function of the conductance whose bound numbers are strong leaves; a number is one everywhere.

    Raises:
        ValueError: If it is neither a function nor a number of at least 0.
    """
    if isinstance(value, Partial):
        return jax.tree.map(lambda leaf: _strong_leaf(argument, leaf), value)
    if callable(value):
        return Partial(value)
    if isinstance(value, str) or value is None:
        checks.fail(argument, "be a number or a function of the conductance", f"is {value!r}")
    checks.shape(argument, value, (), fix="Give a function of the conductance, or devices.level_table.")
    return Partial(everywhere, strong(argument, value, low=0.0, high=float("inf")))


def _strong_leaf(argument: str, leaf: Any) -> Any:
    if isinstance(leaf, str | bytes):
        fix = "Bind what is no number with functools.partial."
        checks.fail(argument, "bind numbers alone by jax.tree_util.Partial", f"binds {leaf!r}", fix)
    return jnp.asarray(leaf, jnp.float32) if isinstance(leaf, float) else leaf
