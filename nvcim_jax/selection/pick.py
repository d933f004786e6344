"""Choosing among scored prompts: the best one, a softmax over all, and the best one with the softmax's gradient.

`pick_soft` is the relaxed twin of `pick_hard`: as the temperature goes to zero it becomes the hard pick, wherever one
score is the largest.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["PICKS", "Pick", "pick", "pick_hard", "pick_soft", "pick_straight_through"]

PICKS = ("hard", "soft", "straight_through")

Pick: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""`pick(scores, temperature)`: weights of the slots (slots,); a score of -inf marks an empty slot."""


@checked
def pick_hard(scores: Float[Array, " slots"]) -> Float[Array, " slots"]:
    """Give the weight 1 to the largest score, the first of them in a tie, and 0 to all others: argmax, as in the paper.

    Args:
        scores: Scores (slots,); -inf marks an empty slot.

    Returns:
        One-hot weights (slots,); all zero where every slot is empty. The gradient is zero: see `pick_soft` and
        `pick_straight_through`.

    Example:
        >>> print(pick_hard(jnp.array([0.1, 0.7, 0.7])))
        [0. 1. 0.]
    """
    checks.rank("scores", scores, 1, "(slots,)")
    checks.integer("scores.size", scores.size, fix="A memory has one slot at least.")
    best = jnp.arange(scores.shape[0]) == jnp.argmax(scores)
    return (best & (scores != -jnp.inf)).astype(scores.dtype)


@checked
def pick_soft(scores: Float[Array, " slots"], temperature: Float[ArrayLike, ""]) -> Float[Array, " slots"]:
    """Weigh all slots by softmax(scores / temperature), the relaxed twin of `pick_hard`.

    Args:
        scores: Scores (slots,); -inf marks an empty slot, which gets the weight 0 and no gradient.
        temperature: In the unit of the scores, above 0.

    Returns:
        Weights (slots,) that add up to 1; all zero where every slot is empty.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> weights = pick_soft(jnp.array([0.0, jnp.log(3.0), -jnp.inf]), 1.0)
        >>> print(weights.round(4))  # 1 to 3
        [0.25 0.75 0.  ]
    """
    checks.rank("scores", scores, 1, "(slots,)")
    checks.number("temperature", temperature, low=0.0, low_open=True)
    filled = scores != -jnp.inf
    largest = lax.stop_gradient(jnp.max(scores, initial=-jnp.inf))
    # an empty slot is taken out before the exponential, so that no gradient meets inf - inf
    above = jnp.where(filled, scores, largest) - largest
    above = jnp.where(filled, above, 0.0) / jnp.asarray(temperature, scores.dtype)
    weights = jnp.where(filled, jnp.exp(above), 0.0)
    return weights / jnp.maximum(weights.sum(), jnp.finfo(scores.dtype).tiny)


@checked
def pick_straight_through(scores: Float[Array, " slots"], temperature: Float[ArrayLike, ""]) -> Float[Array, " slots"]:
    """Choose as `pick_hard` does, with the gradient of `pick_soft`.

    Args:
        scores: Scores (slots,); -inf marks an empty slot.
        temperature: Of the gradient, in the unit of the scores, above 0.

    Returns:
        One-hot weights (slots,), exactly those of `pick_hard`.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> import jax
        >>> first = lambda s: pick_straight_through(s, 1.0)[0]
        >>> value, slope = jax.value_and_grad(first)(jnp.array([0.0, 0.0]))
        >>> print(value, slope)  # p (1 - p) with p = 1/2
        1.0 [ 0.25 -0.25]

    References:
        Y. Bengio, N. Leonard, A. Courville, "Estimating or propagating gradients through stochastic neurons for
        conditional computation", arXiv:1308.3432, 2013.
    """
    soft = pick_soft(scores, temperature)
    return lax.stop_gradient(pick_hard(scores)) + (soft - lax.stop_gradient(soft))


@checked
def pick(
    scores: Float[Array, " slots"], *, kind: str | Pick = "hard", temperature: Float[ArrayLike, ""] = 1.0
) -> Float[Array, " slots"]:
    """Choose among scored prompts by the named rule, or by one's own.

    Args:
        scores: Scores (slots,); -inf marks an empty slot.
        kind: One of `PICKS`, or a function of scores and temperature, see `Pick`.
        temperature: For `soft` and `straight_through`, in the unit of the scores, above 0.

    Returns:
        Weights (slots,).

    Raises:
        ValueError: If the kind is unknown or the temperature is not positive.

    Example:
        >>> print(pick(jnp.array([0.1, 0.7]), kind="hard"))
        [0. 1.]
    """
    if callable(kind):
        weights = kind(scores, jnp.asarray(temperature, scores.dtype))
        checks.shape("kind", weights, scores.shape, "of its result (slots,)")
        return weights
    checks.choice("kind", kind, PICKS)
    if kind == "hard":
        return pick_hard(scores)
    return pick_soft(scores, temperature) if kind == "soft" else pick_straight_through(scores, temperature)
