"""Optimal brain surgery, row after row of a matrix: SparseGPT chooses what goes, GPTQ what is rounded to.

What a weight loses is made up for by those of its output that come after it, as far as their inputs are alike. Both
methods are one loop over the inputs, with the same inverse of the second moment of the inputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from nvcim_jax import checks
from nvcim_jax.compression.prune import check_matrix, shares, smallest
from nvcim_jax.compression.quantise import check_bits, levels, rounded, steps
from nvcim_jax.signature import checked

__all__ = ["block_counts", "gptq", "solve", "sparsegpt"]

BLOCK = 128
"""Inputs among which SparseGPT chooses at a time, and after which all later ones are brought up to date."""

DAMP = 0.01
"""What is added to the diagonal of the second moment, as a share of its mean."""


def block_counts(shape: tuple[int, ...], sparsity: float) -> Any:
    """Return how many weights go in each block of inputs."""
    inputs, outputs = shape
    sizes = [outputs * min(BLOCK, inputs - start) for start in range(0, inputs, BLOCK)]
    return shares(sizes, sparsity)


def _factor(second: jax.Array) -> jax.Array:
    """Return the upper triangular U with U^T U = H^-1, H the damped second moment, with 1 for inputs that are all 0.

    With the order of the inputs reversed, H = R R^T for an upper triangular R, and U is its inverse: one Cholesky and
    no inverse of H itself, which single precision would not stand.
    """
    diagonal = jnp.diagonal(second)
    diagonal = (
        jnp.where(diagonal == 0, 1.0, diagonal) - diagonal + DAMP * jnp.where(diagonal == 0, 1.0, diagonal).mean()
    )
    damped = second + jnp.diag(diagonal)
    root = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return solve_triangular(root, jnp.eye(len(second), dtype=second.dtype), lower=False)


def _one_block(part: jax.Array, own: jax.Array, gone: jax.Array, scale: Any, most: Any) -> tuple[jax.Array, jax.Array]:
    """Settle the inputs of a block one after the other; return their weights, and what each lost over its diagonal."""

    def settle(i: jax.Array | int, carry: Any) -> Any:
        part, made, lost = carry
        row = part[i]
        kept = jnp.where(gone[i], 0.0, row)
        kept = kept if scale is None else rounded(kept, scale[0], most) * scale[0]
        error = (row - kept) / own[i, i]
        return part - own[i][:, None] * error[None], made.at[i].set(kept), lost.at[i].set(error)

    _, made, lost = lax.fori_loop(0, len(part), settle, (part, jnp.zeros_like(part), jnp.zeros_like(part)))
    return made, lost


def solve(
    w: jax.Array,
    second: jax.Array,
    gone: jax.Array | None,
    counts: jax.Array | None,
    scale: Any = None,
    most: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Return a matrix without some weights, the others rounded, all chosen so that its products change least.

    Args:
        w: (inputs, outputs), float32.
        second: x^T x (inputs, inputs).
        gone: Which weights go; None: they are chosen block by block.
        counts: How many are chosen in each block of inputs, where `gone` is None.
        scale: (1, outputs): the values that weights are rounded to are its multiples; None: they are not rounded.
        most: How many multiples there are on each side.

    Returns:
        The matrix, and which weights went.
    """
    inputs, outputs = w.shape
    spare = -inputs % BLOCK
    unseen = jnp.pad(jnp.diagonal(second) == 0, (0, spare))
    factor = jnp.pad(_factor(second), ((0, spare), (0, spare))) + jnp.diag(
        (jnp.arange(inputs + spare) >= inputs).astype(w.dtype)
    )
    wide = jnp.pad(w, ((0, spare), (0, 0)))
    known = None if gone is None else jnp.pad(gone, ((0, spare), (0, 0)))

    def step(w: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = j * BLOCK
        part, rows = (lax.dynamic_slice_in_dim(a, start, BLOCK) for a in (w, factor))
        own = lax.dynamic_slice_in_dim(rows, start, BLOCK, axis=1)
        if known is None:
            assert counts is not None
            scores = jnp.square(part / jnp.diagonal(own)[:, None])
            scores = jnp.where(lax.dynamic_slice_in_dim(unseen, start, BLOCK)[:, None], 0.0, scores)
            scores = jnp.where((start + jnp.arange(BLOCK) < inputs)[:, None], scores, jnp.inf)
            chosen = smallest(scores.ravel(), counts[j]).reshape(part.shape)
        else:
            chosen = lax.dynamic_slice_in_dim(known, start, BLOCK)
        made, lost = _one_block(part, own, chosen, scale, most)
        w = w - jnp.matmul(rows.T, lost, precision="highest")
        return lax.dynamic_update_slice_in_dim(w, made, start, 0), chosen

    made, chosen = lax.scan(step, wide, jnp.arange(len(wide) // BLOCK))
    return made[:inputs], chosen.reshape(-1, outputs)[:inputs]


_solve = jax.jit(solve)


def _solved(made: jax.Array, w: jax.Array) -> jax.Array:
    """Return what was solved for; refuse a second moment that has no root."""
    if checks.is_concrete(made) and bool(jnp.isfinite(w).all() & ~jnp.isfinite(made).all()):
        found, fix = "has a negative eigenvalue or is not finite", "It is x.T @ x of the inputs x."
        checks.fail("second", "be a second moment, positive semidefinite", found, fix)
    return made


@checked
def sparsegpt(
    w: Float[Array, "inputs outputs"], second: Float[Array, "..."], sparsity: float
) -> tuple[Float[Array, "inputs outputs"], Bool[Array, "inputs outputs"]]:
    """Set weights to zero whose loss the others make up for best, and let them.

    In each block of 128 inputs those weights go whose `w^2 / [H^-1]_ii` is smallest, given what went before them; the
    rest of each output takes over what they did. H = x^T x + 1 % of its mean diagonal. Weights of inputs that are 0 in
    all of x go first, but no more of them than the share (the published code sets all of them to 0).

    Args:
        w: The matrix.
        second: Second moment of its inputs, x^T x.
        sparsity: Share of the weights, in [0, 1].

    Returns:
        The matrix, and which weights went.

    Raises:
        ValueError: If a number is out of range, or `second` is no second moment.

    Example:
        >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])  # two inputs that are one: the weight that stays does both
        >>> print(sparsegpt(jnp.array([[1.0], [1.1]]), x.T @ x, 0.5)[0].ravel().round())
        [0. 2.]

    References:
        Frantar and Alistarh, "SparseGPT", arXiv:2301.00774, algorithm 1.
    """
    check_matrix(w, second, sparsity)
    made, gone = _solve(w.astype(jnp.float32), second, None, jnp.asarray(block_counts(w.shape, sparsity)))
    return _solved(made, w), gone


@checked
def gptq(w: Float[Array, "inputs outputs"], second: Float[Array, "..."], bits: int) -> Float[Array, "inputs outputs"]:
    """Round the weights of a matrix one input after the other, each rounding made up for by the later ones.

    The values are those of `to_codes`, of the matrix as it is given: one scale an output.

    Args:
        w: The matrix.
        second: Second moment of its inputs, x^T x.
        bits: From 2 to 8.

    Returns:
        The matrix, every value one of those of its codes.

    Raises:
        ValueError: If a number is out of range, or `second` is no second moment.

    References:
        Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1 (without groups or order).

    Example:
        >>> x = jnp.ones((2, 3))  # three inputs that are one: their weights sum to 5.8
        >>> print(gptq(jnp.array([[1.4], [1.4], [3.0]]), x.T @ x, 3).ravel())  # steps of 1; rounded apart they make 5
        [1. 2. 3.]
    """
    check_matrix(w, second, 0.0)
    check_bits("bits", bits)
    checks.rank("bits", bits, 0, "()", "Use jax.vmap for several.")
    wide = w.astype(jnp.float32)
    none = jnp.zeros(w.shape, bool)
    return _solved(_solve(wide, second, none, None, steps(wide, bits, 0), levels(bits))[0], w)
