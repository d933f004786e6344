"""Which weights go: the smallest ones, or those whose products are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["magnitude", "shares", "smallest", "wanda"]


def shares(sizes: np.ndarray | list[int], sparsity: float) -> np.ndarray:
    """Return how many of each part go (parts,), so that of all together it is floor(sparsity x their number)."""
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return np.diff(np.floor(ends * sparsity + 1e-9)).astype(np.int32)  # 0.29 x 100 is 28.999...


@jax.jit
def smallest(scores: jax.Array, count: jax.Array | int) -> jax.Array:
    """Return which of the scores (number,), >= 0, are the `count` smallest; of equal ones the first.

    The limit is found bit by bit: floats that are not negative are in the order of their bits, and 31 passes over
    a million of them take a tenth of the time of sorting them.
    """
    order = lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)

    def settle(i: jax.Array | int, limit: jax.Array) -> jax.Array:
        higher = limit | (jnp.int32(1) << (30 - i))
        return jnp.where((order < higher).sum(dtype=jnp.int32) >= count, limit, higher)

    limit = lax.fori_loop(jnp.int32(0), jnp.int32(31), settle, jnp.int32(0))
    below, equal = order < limit, order == limit
    return below | (equal & (jnp.cumsum(equal, dtype=jnp.int32) <= count - below.sum(dtype=jnp.int32)))


def magnitude_mask(w: jax.Array, count: jax.Array | int) -> jax.Array:
    """Return which weights go: the `count` smallest of the matrix."""
    return smallest(jnp.abs(w).ravel(), count).reshape(w.shape)


def wanda_mask(w: jax.Array, second: jax.Array, counts: jax.Array) -> jax.Array:
    """Return which weights go: of each output o the counts[o] with the smallest |w| |x|."""
    scores = jnp.abs(w) * jnp.sqrt(jnp.diagonal(second))[:, None]
    pick: Callable[..., jax.Array] = jax.vmap(smallest, in_axes=(1, 0), out_axes=1)
    return pick(scores, counts)


def check_matrix(w: jax.Array, second: jax.Array | None, sparsity: float) -> None:
    """Check what a pruner is given."""
    checks.rank("w", w, 2, "(inputs, outputs)")
    checks.number("sparsity", sparsity, low=0.0, high=1.0)
    if second is not None:
        checks.shape("second", second, (w.shape[0],) * 2, "(inputs, inputs)", "It is x.T @ x of the inputs x.")


@checked
def magnitude(
    w: Float[Array, "inputs outputs"], sparsity: float
) -> tuple[Float[Array, "inputs outputs"], Bool[Array, "inputs outputs"]]:
    """Set the smallest weights of a matrix to zero.

    Args:
        w: The matrix.
        sparsity: Share of all its weights, in [0, 1]; floor(sparsity x number) go.

    Returns:
        The matrix, and which weights went.

    Example:
        >>> magnitude(jnp.array([[1.0, -4.0], [2.0, 3.0]]), 0.5)[0]
        Array([[ 0., -4.],
               [ 0.,  3.]], dtype=float32)
    """
    check_matrix(w, None, sparsity)
    gone = magnitude_mask(w, int(shares([w.size], sparsity)[0]))
    return jnp.where(gone, 0.0, w), gone


@checked
def wanda(
    w: Float[Array, "inputs outputs"], second: Float[Array, "..."], sparsity: float
) -> tuple[Float[Array, "inputs outputs"], Bool[Array, "inputs outputs"]]:
    """Set the weights of each output to zero whose products with their inputs are smallest: |w| |x|.

    Args:
        w: The matrix.
        second: Second moment of its inputs, x^T x, of which the diagonal counts.
        sparsity: Share of the weights, in [0, 1].

    Returns:
        The matrix, and which weights went.

    Example:
        >>> wanda(jnp.array([[1.0], [2.0]]), jnp.diag(jnp.array([100.0, 1.0])), 0.5)[0].ravel()  # 1 x 10 > 2 x 1
        Array([1., 0.], dtype=float32)

    References:
        Sun et al., "A simple and effective pruning approach for large language models", arXiv:2306.11695, eq. 1.
    """
    check_matrix(w, second, sparsity)
    counts = shares([w.shape[0]] * w.shape[1], sparsity)
    gone = wanda_mask(w, second, jnp.asarray(counts))
    return jnp.where(gone, 0.0, w), gone
