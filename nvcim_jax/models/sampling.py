"""Choose the next token from logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.types import Key

__all__ = ["Sampling", "check_sampling", "keep_top", "sample"]


@struct.dataclass
class Sampling:
    """Say how a token is chosen; temperature and `top_p` may be swept without a new compilation.

    Attributes:
        greedy: Whether the likeliest token is taken; the rest then has no effect.
        top_k: Only this many likeliest tokens are drawn from; None: all.
        temperature: > 0; the logits are divided by it.
        top_p: Only the likeliest tokens that hold this probability are drawn from, in (0, 1]; None: all.

    Example:
        >>> Sampling(top_k=40).greedy
        False
    """

    greedy: bool = struct.field(pytree_node=False, default=False)
    top_k: int | None = struct.field(pytree_node=False, default=None)
    temperature: Any = 1.0
    top_p: Any = None


def check_sampling(sampling: Sampling) -> None:
    """Check the values.

    Raises:
        ValueError: If one is out of range.
    """
    if sampling.top_k is not None:
        checks.integer("top_k", sampling.top_k, fix="Use None to draw from all tokens.")
    checks.number(
        "temperature", sampling.temperature, low=0.0, low_open=True, fix="Take the likeliest with greedy=True."
    )
    if sampling.top_p is not None:
        checks.number("top_p", sampling.top_p, low=0.0, high=1.0, low_open=True)


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


def sample(key: Key, logits: Float[Array, " vocab"], *, sampling: Sampling) -> Int[Array, ""]:
    """Draw one token from `softmax(logits / temperature)`, kept to the likeliest, or take the likeliest.

    Args:
        key: A key.
        logits: (vocab_size,).
        sampling: How to choose.

    Returns:
        The token, int32.

    Example:
        >>> sample(jax.random.key(0), jnp.array([0.0, 3.0, 1.0]), sampling=Sampling(greedy=True))
        Array(1, dtype=int32)
    """
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    warm = keep_top(logits.astype(jnp.float32) / sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.random.categorical(key, warm).astype(jnp.int32)
