"""Rounding to a grid and to digits, each with a straight-through gradient.

The relaxed twin of `round_straight_through` is the identity; of `uniform_steps`, clipping to the range, or
`relaxed_steps` where the number of steps is to have a gradient; of `digits`,
the split of a real number over the digits that `from_digits` puts together again.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["clip_inclusive", "digits", "from_digits", "round_straight_through", "uniform_steps"]


@jax.custom_jvp
def round_straight_through(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Round to the nearest integer (halves to even); the gradient is that of the identity.

    Args:
        x: Array of any shape.

    Returns:
        round(x), with d/dx = 1.

    Example:
        >>> import jax
        >>> value, slope = jax.value_and_grad(round_straight_through)(1.4)
        >>> print(float(value), float(slope))
        1.0 1.0

    References:
        Y. Bengio, N. Leonard, A. Courville, "Estimating or propagating gradients through stochastic neurons for
        conditional computation", arXiv:1308.3432, 2013.
    """
    return jnp.round(x)


@round_straight_through.defjvp
def _pass_tangent(primals: tuple, tangents: tuple) -> tuple:
    return jnp.round(primals[0]), tangents[0]


@checked
def clip_inclusive(x: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]) -> Float[Array, "..."]:
    """Clip to [low, high]; a value that lies on an end keeps the gradient 1 (`jnp.clip` halves it there).

    Args:
        x: Array of any shape.
        low: Lower end, broadcasting against `x`.
        high: Upper end.

    Returns:
        Array of the shape of `x`.

    Example:
        >>> import jax
        >>> slope = jax.grad(clip_inclusive)
        >>> print([float(slope(x, jnp.array(-1.0), jnp.array(1.0))) for x in (0.5, 1.0, 1.5)])
        [1.0, 1.0, 0.0]
    """
    return jnp.where(x > high, high, jnp.where(x < low, low, x))


@checked
def uniform_steps(
    x: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."], *, num_steps: int
) -> Float[Array, "..."]:
    """Clip to [low, high] and round to one of `num_steps + 1` equally spaced values, both ends among them.

    y = low + round((clip(x) - low) / step) step, step = (high - low) / num_steps. The gradient to x is 1 inside the
    range and 0 outside; to the range it is the derivative with the rounding error held fixed, so that a range can be
    learned.

    Args:
        x: Array of any shape.
        low: Lower end, broadcasting against `x`.
        high: Upper end, above `low`.
        num_steps: Number of steps, at least 1.

    Returns:
        Array of the shape of `x`.

    Example:
        >>> print(uniform_steps(jnp.array([-9.0, 0.2, 0.8]), jnp.array([-1.0]), jnp.array([1.0]), num_steps=4))
        [-1.  0.  1.]

    References:
        S. K. Esser et al., "Learned step size quantization", ICLR 2020 (the gradient to the range).
    """
    for name, end in (("low", low), ("high", high)):
        checks.broadcast(name, end, np.shape(x))
    checks.integer("num_steps", num_steps)
    step = (high - low) / num_steps
    return low + round_straight_through((clip_inclusive(x, low, high) - low) / step) * step


@checked
def digits(code: Float[Array, "..."], *, base: int, num_digits: int) -> Float[Array, "digits ..."]:
    """Split non-negative integer codes into digits, the least significant first.

    code = sum_i base**i digit_i. The gradient of digit i is base**i / sum_j base**(2 j), the smallest one for which the
    gradient of `from_digits(digits(code))` is 1.

    Args:
        code: Integers in [0, base**num_digits), as floats.
        base: Base of the digits, at least 2.
        num_digits: Number of digits, at least 1.

    Returns:
        Array (num_digits, *code.shape) of integers in [0, base).

    Example:
        >>> print(digits(jnp.array([11.0]), base=4, num_digits=2).ravel())
        [3. 2.]
    """
    power = 1.0
    norm = sum(float(base) ** (2 * i) for i in range(num_digits))
    split = []
    rest = lax.stop_gradient(code)
    for _ in range(num_digits):
        higher = jnp.floor(rest / base)
        split.append(_straight_through(code * (power / norm), rest - higher * base))
        rest, power = higher, power * base
    return jnp.stack(split)


@checked
def from_digits(split: Float[Array, "digits ..."], *, base: int) -> Float[Array, "..."]:
    """Put digits together again: sum_i base**i split_i.

    Args:
        split: Digits, the least significant first, not necessarily integers.
        base: Base of the digits.

    Returns:
        Array of shape `split.shape[1:]`.

    Example:
        >>> print(from_digits(jnp.array([[3.0], [2.0]]), base=4))
        [11.]
    """
    weights = jnp.asarray([float(base) ** i for i in range(split.shape[0])], split.dtype)
    return jnp.tensordot(weights, split, axes=1)


def _straight_through(soft: Float[Array, "..."], hard: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `hard` exactly, with the gradient of `soft`."""
    # `soft - stop(soft)` is zero exactly, so that the value keeps every bit of `hard`
    return lax.stop_gradient(hard) + (soft - lax.stop_gradient(soft))
