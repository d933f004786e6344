"""Choose the next token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.types import Key

__all__ = ["Sampling", "keep_top", "sample"]


@checks.frozen_config
class Sampling:
    """Describe how a token is chosen; the numbers that may be swept without a new compilation are not in here.

    Attributes:
        greedy: Whether the likeliest token is taken; the rest then has no effect.
        top_k: Only this many likeliest tokens are drawn from; None: all.
        nucleus: Whether `top_p` is looked at.

    Example:
        >>> Sampling(top_k=40).greedy
        False
    """

    greedy: bool = False
    top_k: int | None = None
    nucleus: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.top_k is not None:
            checks.integer("top_k", self.top_k, fix="Use None to draw from all tokens.")


def keep_top(
    logits: Float[Array, "*batch vocab"],
    top_k: int | None = None,
    top_p: Float[Array, ""] | float | None = None,
) -> Float[Array, "*batch vocab"]:
    """Set the logits of all but the likeliest tokens to minus infinity.

    Top-k keeps the k largest. Top-p keeps the smallest set of likeliest tokens whose probabilities add up to p or more,
    and at least one; of equals at the border all stay.

    Args:
        logits: (..., vocab_size).
        top_k: How many to keep; None: all.
        top_p: Probability to keep, in (0, 1]; None: 1.

    Returns:
        The logits, filtered.

    References:
        Holtzman et al., The curious case of neural text degeneration, arXiv 1904.09751, section 3.1.

    Example:
        >>> keep_top(jnp.log(jnp.array([0.5, 0.3, 0.2])), top_p=0.6) > -jnp.inf  # 0.5 < 0.6 <= 0.5 + 0.3
        Array([ True,  True, False], dtype=bool)
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p is not None:
        falling = -jnp.sort(-logits, axis=-1)
        share = jax.nn.softmax(falling.astype(jnp.float32), axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        kept = jnp.where(before < top_p, falling, jnp.inf)
        logits = jnp.where(logits < kept.min(-1, keepdims=True), -jnp.inf, logits)
    return logits


def sample(
    key: Key,
    logits: Float[Array, " vocab"],
    temperature: Float[Array, ""] | float = 1.0,
    top_p: Float[Array, ""] | float = 1.0,
    *,
    sampling: Sampling,
) -> Int[Array, ""]:
    """Draw one token from `softmax(logits / temperature)`, kept to the likeliest, or take the likeliest.

    Args:
        key: A key.
        logits: (vocab_size,).
        temperature: > 0.
        top_p: In (0, 1].
        sampling: How to choose.

    Returns:
        The token, int32.

    Example:
        >>> sample(jax.random.key(0), jnp.array([0.0, 3.0, 1.0]), sampling=Sampling(greedy=True))
        Array(1, dtype=int32)
    """
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    warm = keep_top(logits.astype(jnp.float32) / temperature, sampling.top_k, top_p if sampling.nucleus else None)
    return jax.random.categorical(key, warm).astype(jnp.int32)
