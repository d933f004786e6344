"""Functions as trees: what holds arrays, so that a new number compiles nothing."""

from collections.abc import Callable
from typing import Any

from jax.tree_util import Partial

from nvcim_jax.signature import checked

__all__ = ["as_partial"]


@checked
def as_partial(function: Callable[..., Any]) -> Partial:
    """Return a function as a tree whose leaves are the arrays it holds, so that it is an argument of `jax.jit`.

    Args:
        function: Any function; a `Partial` is returned as it is.

    Example:
        >>> import jax
        >>> shift = Partial(jax.numpy.add, 2.0)
        >>> print(as_partial(shift) is shift, jax.jit(lambda f, x: f(x))(as_partial(jax.numpy.sqrt), 9.0))
        True 3.0
    """
    return function if isinstance(function, Partial) else Partial(function)
