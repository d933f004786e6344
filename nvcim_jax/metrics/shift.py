"""What domain shift costs: numbers from a matrix R[t, i], the score on domain i after block t.

An entry that was not measured is NaN. `current[t]` is the domain (column) of block t; by default block t is domain t.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Real

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["forgetting", "hit_rate", "previously_seen", "previously_seen_mean"]


def _columns(R: np.ndarray, current: np.ndarray | Sequence[int] | None) -> np.ndarray:
    """Return the column of each block, checked."""
    checks.real("R", R, "Use NaN where a score was not measured.")
    checks.rank("R", R, 2, "(blocks, domains)")
    blocks, domains = R.shape
    if current is None:
        if blocks > domains:
            fix = "Give `current` where a domain comes back."
            checks.fail("R", "have a column for every block", f"has shape {R.shape}", fix)
        return np.arange(blocks)
    found = np.asarray(current)
    checks.shape("current", found, (blocks,), "(blocks,)")
    for column in found:
        checks.integer("current", column, low=0, high=domains - 1)
    return found


@checked
def previously_seen(
    R: Real[np.ndarray, "blocks domains"], current: Integer[np.ndarray, " blocks"] | Sequence[int] | None = None
) -> Bool[np.ndarray, "blocks domains"]:
    """Return which entries of R are of a domain that came in an earlier block and is not the current one.

    Args:
        R: (blocks, domains); only its shape counts.
        current: Column of each block's own domain.

    Example:
        >>> previously_seen(np.zeros((3, 2)), [0, 1, 0]).tolist()
        [[False, False], [True, False], [False, True]]
    """
    columns = _columns(R, current)
    mask = np.zeros(R.shape, bool)
    for t, column in enumerate(columns):
        mask[t, columns[:t]] = True
        mask[t, column] = False
    return mask


@checked
def previously_seen_mean(
    R: Real[np.ndarray, "blocks domains"], current: Integer[np.ndarray, " blocks"] | Sequence[int] | None = None
) -> float:
    """Return the mean score on previously seen domains, each block with one counting the same.

    mean over t of (mean over i previously seen at t of R[t, i]); entries that are NaN are left out.

    Args:
        R: (blocks, domains), scores; NaN where not measured.
        current: Column of each block's own domain (`Stream.current`).

    Returns:
        The mean; NaN where nothing was measured.

    Example:
        >>> R = np.array([[1.0, np.nan, np.nan], [0.5, 1.0, np.nan], [0.2, 0.4, 1.0]])
        >>> round(previously_seen_mean(R), 6)  # (.5 + (.2 + .4) / 2) / 2
        0.4
    """
    mask = previously_seen(R, current) & ~np.isnan(R)
    means = [float(R[t, mask[t]].mean()) for t in range(len(R)) if mask[t].any()]
    return float(np.mean(means)) if means else float("nan")


@checked
def forgetting(
    R: Real[np.ndarray, "blocks domains"], current: Integer[np.ndarray, " blocks"] | Sequence[int] | None = None
) -> float:
    """Return how far the domains seen before the last block have fallen from their best.

    F = mean over i seen before the last block T of (max over t < T, i seen by t, of R[t, i]) - R[T, i].
    Negative where later blocks helped. Entries that are NaN are left out.

    Args:
        R: (blocks, domains), scores of which more is better; NaN where not measured.
        current: Column of each block's own domain (`Stream.current`).

    Returns:
        The mean fall; NaN where nothing was measured.

    Example:
        >>> R = np.array([[1.0, np.nan, np.nan], [0.5, 1.0, np.nan], [0.2, 0.4, 1.0]])
        >>> round(forgetting(R), 6)  # ((1 - .2) + (1 - .4)) / 2
        0.7

    References:
        Chaudhry et al. (2018), Riemannian walk for incremental learning, section 3 (the forgetting measure); a domain
        that the last block brings back is counted here too.
    """
    columns = _columns(R, current)
    falls = []
    for domain in dict.fromkeys(columns[:-1].tolist()):
        first = int(np.argmax(columns == domain))
        earlier = R[first:-1, domain]
        if np.isnan(R[-1, domain]) or np.isnan(earlier).all():
            continue
        falls.append(float(np.nanmax(earlier) - R[-1, domain]))
    return float(np.mean(falls)) if falls else float("nan")


@checked
def hit_rate(found: np.ndarray | Sequence[Any], truth: np.ndarray | Sequence[Any]) -> float:
    """Return the share of queries for which the right domain is among those found (hit@k).

    Args:
        found: (queries,) the domain of the prompt that was picked, or (queries, k) of the k best.
        truth: (queries,) the query's own domain, as numbers or names like `found`.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: If the shapes do not fit, or one holds names and the other numbers.

    Example:
        >>> hit_rate([0, 1, 2, 2], [0, 1, 1, 2]), hit_rate(["a"], ["b"])  # 3 of 4; 0 of 1
        (0.75, 0.0)
    """
    right = np.asarray(truth)
    checks.rank("truth", right, 1, "(queries,)")
    if not len(right):
        checks.fail("truth", "hold one query at least", "is empty")
    picked = np.asarray(found)
    checks.rank("found", picked, (1, 2), "(queries,) or (queries, k)")
    checks.shape("found", picked[..., 0] if picked.ndim == 2 else picked, right.shape, "(queries,)")
    kinds = ["names" if array.dtype.kind == "U" else "numbers" for array in (picked, right) if array.dtype != object]
    if len(set(kinds)) > 1:
        checks.fail("found", f"hold {kinds[1]} as `truth` does", f"holds {kinds[0]}", "Write both alike.")
    picked = picked.reshape(len(picked), -1)
    return float((picked == right[:, None]).any(1).mean())
