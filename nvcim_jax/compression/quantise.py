"""The symmetric quantiser of b bits: one scale for each row of outputs of a weight, one for each token."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int8

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["check_bits", "levels", "quantise", "rounded", "to_codes"]

MOST_BITS = 8
"""Codes are int8."""


def check_bits(argument: str, bits: jax.typing.ArrayLike, whole: bool = True) -> None:
    """Refuse bits that the quantiser has no levels for, or that codes have no room for; traced ones pass."""
    checks.number(argument, bits, low=2.0, high=float(MOST_BITS), fix="Codes are signed and at most a byte.")
    if whole and checks.is_concrete(bits) and (np.asarray(bits) != np.round(bits)).any():
        checks.fail(argument, "be whole", f"is {checks.shown(bits)}", "compression.uniform spreads a mean over blocks.")


def levels(bits: jax.typing.ArrayLike) -> jax.Array:
    """Return how many values there are on each side of zero: 2^(bits - 1) - 1, in float32."""
    return jnp.exp2(jnp.asarray(bits, jnp.float32) - 1.0) - 1.0


def steps(x: jax.Array, bits: jax.typing.ArrayLike, axis: int) -> jax.Array:
    """Return the distance of two values, with `axis` kept: max|x| / levels, and 1 where all of x is 0."""
    largest = jnp.abs(x.astype(jnp.float32)).max(axis, keepdims=True, initial=0.0)
    step = largest / levels(bits)
    return jnp.where(step > 0, step, 1.0)  # the step of the smallest floats is 0, too


def rounded(x: jax.Array, step: jax.Array, most: jax.Array) -> jax.Array:
    """Return the nearest whole number of steps, at most so many on each side."""
    return jnp.clip(jnp.round(x / step), -most, most)


@checked
def to_codes(
    w: Float[Array, "inputs outputs"], bits: jax.typing.ArrayLike
) -> tuple[Int8[Array, "inputs outputs"], Float[Array, "1 outputs"]]:
    """Return the codes of a matrix and the scale of each output: `w ~ codes * scales`.

    `scale = max|w| / (2^(b-1) - 1)` over the inputs of an output, `code = round(w / scale)`.

    Args:
        w: The matrix.
        bits: b, from 2 to 8; may be traced.

    Returns:
        Codes of at most 2^(b-1) - 1 on each side, and scales in float32.

    Example:
        >>> codes, scales = to_codes(jnp.array([[0.5], [-1.5], [0.6]]), 3)  # three steps to 1.5
        >>> codes.ravel(), scales.ravel()
        (Array([ 1, -3,  1], dtype=int8), Array([0.5], dtype=float32))
    """
    check_bits("bits", bits)
    checks.rank("bits", bits, 0, "()", "Use jax.vmap for several.")
    wide = w.astype(jnp.float32)
    scales = steps(wide, bits, 0)
    return rounded(wide, scales, levels(bits)).astype(jnp.int8), scales


@checked
def quantise(
    x: Float[Array, "..."], bits: jax.typing.ArrayLike, *, axis: int = -1, clip: float | None = None
) -> Float[Array, "..."]:
    """Round to the values of the symmetric quantiser, with the gradient of the identity.

    `y = round(x / step) step`, `step = max|x| / (2^(b-1) - 1)` along an axis: -1 for tokens, 0 for the outputs of a
    weight.

    Args:
        x: Array of any shape.
        bits: b, from 2 to 8; may be traced.
        axis: What shares a step.
        clip: Where |x| is this or more the gradient is 0, > 0 (2 in LLM-QAT); None: it is 1 everywhere.

    Returns:
        Array of the shape and dtype of `x`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> print(quantise(jnp.array([0.5, -1.5, 0.6]), 3))
        [ 0.5 -1.5  0.5]
        >>> print(jax.grad(lambda x: quantise(x, 3, clip=1.0).sum())(jnp.array([0.5, -1.5, 0.6])))
        [1. 0. 1.]

    References:
        Liu et al., LLM-QAT, arXiv:2305.17888, eq. 2 and section 2.3 (weights, activations, keys and values).
    """
    check_bits("bits", bits)
    checks.rank("bits", bits, 0, "()", "Use jax.vmap for several.")
    if clip is not None:
        checks.number("clip", clip, low=0.0, low_open=True)
    wide = x.astype(jnp.float32)
    step = steps(wide, bits, axis)
    hard = lax.stop_gradient(rounded(wide, step, levels(bits)) * step)
    soft = wide if clip is None else jnp.where(jnp.abs(wide) < clip, wide, lax.stop_gradient(wide))
    # `soft - stop(soft)` is zero exactly, so that the value keeps every bit of `hard`
    return (hard + (soft - lax.stop_gradient(soft))).astype(x.dtype)
