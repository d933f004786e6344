"""Weights that are more than an array: what they share, and how a function comes to understand them.

A leaf of a model's parameters may be a `Weight`: memory cells that hold a matrix, codes and scales, a matrix with a
low-rank change. The model does not know: Quax re-interprets it by the types that it is given, and the few operations
that a weight takes part in, products above all, come here. Whatever a weight has no rule for is refused by name, so
that nothing becomes a dense array unasked.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import quax
from jax import lax

__all__ = ["Weight", "register_weight", "understand"]

W = TypeVar("W", bound="Weight")

_STACK = "Scan over the layers, or index one of them by its number."


class Weight(quax.ArrayValue):
    """A matrix, or a stack of matrices, that multiplies in its own way. A subclass gives `aval` and is registered.

    All arrays inside a stack have the stack's axes first, so that `jax.lax.scan` and indexing take it apart.
    """

    def materialise(self) -> NoReturn:
        """Refuse to become a dense array.

        Raises:
            ValueError: Always.
        """
        _refuse(type(self).__name__, "turned into a dense array")

    @staticmethod
    def default(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> NoReturn:
        """Refuse an operation that no rule was registered for.

        Raises:
            ValueError: Always; the message names the operation and the class.
        """
        del params
        name = next(type(value).__name__ for value in values if isinstance(value, Weight))
        _refuse(name, f"used in the operation `{primitive}`")


def _refuse(name: str, use: str, fix: str = "") -> NoReturn:
    """Raise the error of an operation that a weight does not take part in."""
    fix = fix or "It can be multiplied with; choose which leaves are replaced by `select=`."
    raise ValueError(f"Argument `params` must use a weight of type {name} in products alone, but it is {use}. {fix}")


def understand(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` as a function that takes trees with `Weight` leaves; for plain arrays it stays what it is.

    Every positional argument is a tree of arrays; what is static is closed over.

    Example:
        >>> print(understand(jnp.add)(jnp.ones(2), 1.0))
        [2. 2.]
    """
    return quax.quaxify(fn)


def register_weight(
    cls: type[W],
    times: Callable[[W, jax.Array, tuple[int, ...]], jax.Array],
    cast: Callable[[W, Any], W] = lambda w, dtype: w,
) -> None:
    """Register how a class of weights multiplies; products with the weight on either side come to this one function.

    Args:
        cls: The class.
        times: `times(w, x, axes)`: x (..., *rows) contracted with the `axes` of w, in their order -> (..., *the rest).
        cast: What a conversion to another dtype does; by default nothing, since a weight computes in that of `x`.
    """

    @quax.register(lax.dot_general_p)
    def _(x: jax.Array, w: cls, *, dimension_numbers: Any, **_: Any) -> jax.Array:  # type: ignore[valid-type]
        (of_x, of_w), (batch_x, _unused) = dimension_numbers
        return _product(w, x, of_x, of_w, batch_x, times)

    @quax.register(lax.dot_general_p)
    def _(w: cls, x: jax.Array, *, dimension_numbers: Any, **_: Any) -> jax.Array:  # type: ignore[valid-type]
        (of_w, of_x), (batch_w, _unused) = dimension_numbers
        y = _product(w, x, of_x, of_w, batch_w, times)
        free = w.ndim - len(of_w)
        return jnp.moveaxis(y, range(y.ndim - free, y.ndim), range(free))

    @quax.register(lax.convert_element_type_p)
    def _(w: cls, *, new_dtype: Any, **_: Any) -> Any:  # type: ignore[valid-type]
        return cast(w, new_dtype)

    @quax.register(lax.dynamic_slice_p)
    def _(w: cls, *starts: jax.Array, slice_sizes: tuple[int, ...], **_: Any) -> Any:  # type: ignore[valid-type]
        if tuple(slice_sizes[1:]) != tuple(w.shape[1:]):
            _refuse(cls.__name__, "cut apart", _STACK)
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, starts[0], slice_sizes[0], 0), w)

    @quax.register(lax.slice_p)
    def _(w: cls, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:  # type: ignore[valid-type]
        whole = all(start == 0 for start in start_indices[1:]) and tuple(limit_indices[1:]) == tuple(w.shape[1:])
        if not whole or (strides is not None and any(step != 1 for step in strides)):
            _refuse(cls.__name__, "cut apart", _STACK)
        return jax.tree.map(lambda a: a[start_indices[0] : limit_indices[0]], w)

    @quax.register(lax.squeeze_p)
    def _(w: cls, *, dimensions: tuple[int, ...]) -> Any:  # type: ignore[valid-type]
        if tuple(dimensions) != (0,):
            _refuse(cls.__name__, f"squeezed along the axes {tuple(dimensions)}", _STACK)
        return jax.tree.map(lambda a: lax.squeeze(a, (0,)), w)


def _product(
    w: Weight,
    x: jax.Array,
    of_x: Sequence[int],
    of_w: Sequence[int],
    batch: Sequence[int],
    times: Callable[[Any, jax.Array, tuple[int, ...]], jax.Array],
) -> jax.Array:
    """Bring the contracted axes of the inputs to the end, and multiply."""
    if batch:
        _refuse(type(w).__name__, "multiplied batch by batch", "Map over a stack with jax.lax.scan or jax.vmap.")
    ends = range(x.ndim - len(of_x), x.ndim)
    return times(w, jnp.moveaxis(x, tuple(of_x), tuple(ends)), tuple(of_w))
