"""The one optimiser loop: gradient, update, projection, a fixed number of times in one compiled scan."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Gradient", "Loss", "Optimiser", "descend", "reverse_mode"]

T = TypeVar("T")

Loss = Callable[[T, Key, jax.Array], tuple[jax.Array, jax.Array]]
"""`loss(params, key, step)`: the number to make small, and the number to report."""

Gradient = Callable[[Key, Loss, Any, jax.Array], tuple[Any, jax.Array]]
"""`gradient(key, loss, params, step)`: the slope, a tree like `params`, and the number to report."""

Optimiser = optax.GradientTransformation | optax.GradientTransformationExtraArgs


@checked
def reverse_mode(key: Key, loss: Loss, params: T, step: jax.Array) -> tuple[T, jax.Array]:
    """Return the slope of a loss by one backward pass, and the number that it reports.

    Args:
        key: Key of the step, for a loss that draws.
        loss: `loss(params, key, step)` -> the number to lower, and the number to report.
        params: What the slope is by; any tree of float arrays.
        step: Number of the step.

    Returns:
        The slope, a tree like `params`, and the reported number.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda p, key, step: (p**2, jnp.abs(p))
        >>> slope, reported = reverse_mode(jax.random.key(0), loss, jnp.array(-3.0), jnp.array(0))
        >>> print(slope, reported)  # 2 p and |p|
        -6.0 3.0
    """
    return jax.grad(loss, has_aux=True)(params, key, step)


def _as_it_is(params: T) -> T:
    return params


@checked
def descend(
    key: Key,
    params: T,
    loss: Loss,
    optimiser: Optimiser,
    *,
    num_steps: int,
    gradient: Gradient = reverse_mode,
    project: Callable[[T], T] = _as_it_is,
) -> tuple[T, jax.Array]:
    """Make a loss small: `p <- project(p + optimiser(gradient of loss at p))`, `num_steps` times.

    Step t draws from `fold_in(key, t)`. Trace it inside a jitted function: what `loss` closes over is then traced too,
    and a new learning rate compiles nothing.

    Args:
        key: A key; a loss that draws nothing ignores it.
        params: Where to start, any tree of float arrays.
        loss: `loss(params, key, step)`, see `Loss`.
        optimiser: An Optax transformation; its numbers may be traced.
        num_steps: Updates; 0 returns the start.
        gradient: How the slope is found; by default one backward pass.
        project: Applied to the start and after every update, such as a bound on the entries.

    Returns:
        params: The last ones.
        reported: What the loss reported before each update (steps,).

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> loss = lambda p, key, step: (jnp.square(p - 3.0), jnp.abs(p - 3.0))
        >>> p, reported = descend(jax.random.key(0), jnp.zeros(()), loss, optax.sgd(0.25), num_steps=3)
        >>> print(p, reported)  # halves the distance three times
        2.625 [3.   1.5  0.75]
    """

    def update(carry: tuple[T, Any], step: jax.Array) -> tuple[tuple[T, Any], jax.Array]:
        params, memory = carry
        slope, reported = gradient(jax.random.fold_in(key, step), loss, params, step)
        change, memory = optimiser.update(slope, memory, params)  # type: ignore[arg-type]
        return (project(optax.apply_updates(params, change)), memory), reported  # type: ignore[arg-type]

    start = project(params)
    (params, _), reported = jax.lax.scan(update, (start, optimiser.init(start)), jnp.arange(num_steps))  # type: ignore[arg-type]
    return params, reported
