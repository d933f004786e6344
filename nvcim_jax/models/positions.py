"""Where a token stands and what it may see: rotary tables and attention masks."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax.models.config import Rope

__all__ = ["causal_mask", "frequencies", "rotary_table", "rotate", "sliding_mask"]


def frequencies(rope: Rope, rotary_dim: int) -> np.ndarray:
    """Return the angle a position adds to each channel pair.

    `f_j = theta ** (-2 j / rotary_dim)`, scaled as `rope` says.

    Args:
        rope: The rotary embedding.
        rotary_dim: Channels that turn, even.

    Returns:
        Radians a position, shape (rotary_dim / 2,), float64.

    References:
        Su et al., RoFormer, arXiv 2104.09864, eq. 15. Scaling "llama3": Llama 3.1, arXiv 2407.21783, section 3.2, with
        the wavelengths of the released code.

    Example:
        >>> frequencies(Rope(theta=100.0), 4)  # 100 ** -0, 100 ** -(1/2)
        array([1. , 0.1])
    """
    found = rope.theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if rope.scaling == "linear":
        return found / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original_max_tokens * found / (2 * math.pi)
        span = rope.high_frequency_factor - rope.low_frequency_factor
        kept = np.clip((turns - rope.low_frequency_factor) / span, 0.0, 1.0)
        return found * (kept + (1 - kept) / rope.factor)
    return found


def rotary_table(
    positions: Int[Array, "batch tokens"], rope: Rope, rotary_dim: int
) -> tuple[Float[Array, "batch tokens pairs"], Float[Array, "batch tokens pairs"]]:
    """Return cosine and sine of every angle, in float32.

    Args:
        positions: Position of each token (batch, tokens).
        rope: The rotary embedding.
        rotary_dim: Channels that turn.

    Returns:
        Cosines and sines, each (batch, tokens, rotary_dim / 2).

    Example:
        >>> cos, sin = rotary_table(jnp.array([[0, 1]]), Rope(), 2)
        >>> round(float(sin[0, 1, 0]), 4)  # sin(1) = 0.8415
        0.8415
    """
    turn = jnp.asarray(frequencies(rope, rotary_dim), jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * turn[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch tokens heads channels"],
    cos: Float[Array, "#batch tokens pairs"],
    sin: Float[Array, "#batch tokens pairs"],
) -> Float[Array, "batch tokens heads channels"]:
    """Turn the first channels of every head by its position: pairs (j, j + half), the rest passes.

    Args:
        x: Queries or keys (batch, tokens, heads, channels).
        cos: Cosines (batch, tokens, pairs), 2 pairs <= channels.
        sin: Sines, alike.

    Returns:
        The turned array, of the same shape and dtype.

    Example:
        >>> x = jnp.array([[[[1.0, 0.0]]]])
        >>> rotate(x, jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)))[0, 0, 0]  # a quarter turn: (0, 1)
        Array([0., 1.], dtype=float32)
    """
    half = cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    wide = x.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1).astype(x.dtype)


def causal_mask(num_queries: int, num_keys: int) -> Bool[Array, "1 queries keys"]:
    """Return which keys each query sees when the queries are the last of the keys.

    Example:
        >>> causal_mask(2, 3)[0].astype(int)
        Array([[1, 1, 0],
               [1, 1, 1]], dtype=int32)
    """
    query = jnp.arange(num_queries)[:, None] + (num_keys - num_queries)
    return (jnp.arange(num_keys)[None, :] <= query)[None]


def sliding_mask(
    queries: Int[Array, "#batch queries"], keys: Int[Array, "#batch keys"], window: int
) -> Bool[Array, "#batch queries keys"]:
    """Return which keys stand at most `window - 1` positions before each query; causality is another mask.

    Args:
        queries: Position of each query (batch or 1, queries).
        keys: Position of each key (batch or 1, keys), wherever it lies in memory.
        window: Positions that a query reaches, its own included.

    Example:
        >>> sliding_mask(jnp.array([[2, 3]]), jnp.arange(4)[None], 2)[0].astype(int)
        Array([[0, 1, 1, 1],
               [0, 0, 1, 1]], dtype=int32)
    """
    return keys[:, None, :] > queries[:, :, None] - window
