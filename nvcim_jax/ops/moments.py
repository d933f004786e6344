"""Running mean and spread of what was seen, one number a dimension."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["Moments", "moments_add", "moments_init", "moments_spread"]

FLOOR = 1e-3
"""Least spread of a dimension, as a part of the root mean square over all: what differs less is rounding."""


class Moments(NamedTuple):
    """Hold the mean and the spread of samples seen so far.

    Attributes:
        number: Samples, float32.
        mean: Their mean (*shape).
        squares: Sum of their squared distances from it (*shape).
    """

    number: jax.Array
    mean: jax.Array
    squares: jax.Array


@checked
def moments_init(shape: tuple[int, ...]) -> Moments:
    """Return the moments of no sample.

    Args:
        shape: Of one sample.

    Example:
        >>> found = moments_init((2,))
        >>> print(found.number, found.mean, moments_spread(found))  # no sample differs from another
        0.0 [0. 0.] [1. 1.]
    """
    return Moments(jnp.zeros((), jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


@checked
def moments_add(seen: Moments, samples: Float[Array, "..."]) -> Moments:
    """Return the moments with more samples in them.

    Chan's update: means are compared with means, so a mean that is large beside the spread cancels nothing.

    Args:
        seen: The moments so far.
        samples: Samples, of the shape of the first; none changes nothing.

    Raises:
        ValueError: If they have another shape.

    Example:
        >>> parts = moments_add(moments_add(moments_init((1,)), jnp.array([[1.0], [2.0]])), jnp.array([[6.0]]))
        >>> print(parts.mean, parts.squares)  # mean 3; 4 + 1 + 9
        [3.] [14.]

    References:
        T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample variance", The American Statistician 37
        (1983).
    """
    checks.shape("samples", samples, (len(samples), *seen.mean.shape), "(samples, *shape)")
    if not len(samples):
        return seen
    new, samples = jnp.float32(len(samples)), samples.astype(jnp.float32)
    mean = samples.mean(axis=0)
    apart, count = mean - seen.mean, seen.number + new
    squares = jnp.square(samples - mean[None]).sum(axis=0)
    squares = seen.squares + squares + jnp.square(apart) * (seen.number * new / count)
    return Moments(count, seen.mean + apart * (new / count), squares)


@checked
def moments_spread(seen: Moments) -> Float[Array, "..."]:
    """Return the standard deviation of each dimension, `sqrt(squares / count)`, at least `FLOOR` of that of all.

    Args:
        seen: The samples so far, each of `shape`.

    Returns:
        (*shape); 1 everywhere where no sample differs from another.

    Example:
        >>> print(moments_spread(moments_add(moments_init((2,)), jnp.array([[1.0, 0.0], [5.0, 0.2]]))))
        [2.  0.1]
    """
    found = jnp.sqrt(seen.squares / jnp.maximum(seen.number, 1.0))
    least = FLOOR * jnp.sqrt(jnp.square(found).mean())
    return jnp.where(least > 0.0, jnp.maximum(found, least), 1.0)
