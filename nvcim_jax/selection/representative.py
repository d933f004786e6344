"""Samples that stand for a buffer: clusters of embeddings, and in each the sample nearest the centroid.

The choice is discrete; what is differentiable is what follows from it (centroids and inertia, at a fixed assignment).
The relaxed twins of the hard steps are `assignment_soft` and `representative_soft`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Int32

from nvcim_jax import checks
from nvcim_jax.selection.pick import pick_soft
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = [
    "Cluster",
    "Clusters",
    "assignment_soft",
    "kmeans",
    "num_representatives",
    "representative",
    "representative_soft",
]


class Clusters(NamedTuple):
    """Result of k-means.

    Attributes:
        centroids: Mean of the samples of each cluster, (clusters, features), float32.
        assignment: Cluster of each sample, (samples,). Every cluster has a sample at least.
        inertia: sum_i |x_i - centroid of i|^2.
        num_empty: Clusters that the last round would have left empty and that were given a sample of another cluster;
            more than 0 where there are fewer different samples than clusters.
    """

    centroids: Float[Array, "clusters features"]
    assignment: Int32[Array, " samples"]
    inertia: Float[Array, ""]
    num_empty: Int32[Array, ""]


Cluster: TypeAlias = Callable[[Key, jax.Array, int], Any]
"""`cluster(key, x, num)`: the cluster of each sample of x (samples, features), whole numbers (samples,) in [0, num).

With it, as a pair, the number of clusters that had to be filled; alone, empty ones are filled here."""


@checked
def num_representatives(num_samples: int) -> int:
    """Return how many samples stand for a buffer of that many: k = max(1, round(sqrt(b))).

    A secondary source says that k depends on the size of the buffer; the formula is inferred here.

    Args:
        num_samples: Size b of the buffer, at least 1.

    Returns:
        k.

    Example:
        >>> num_representatives(25)  # the buffer of the paper
        5

    References:
        R. Qin et al., arXiv:2411.08244.
    """
    checks.integer("num_samples", num_samples)
    return max(1, round(math.sqrt(num_samples)))


@checked
def kmeans(
    key: Key, x: Float[Array, "samples features"], num: int, *, num_rounds: int = 50, num_restarts: int = 4
) -> tuple[Int32[Array, " samples"], Int32[Array, ""]]:
    """Cluster samples by k-means: greedy k-means++ seeds, then Lloyd's rounds; the best of several restarts.

    A cluster that would be empty takes the sample that lies farthest from its centroid, so the inertia never rises.

    Args:
        key: Key of the seeds.
        x: Samples (samples, features).
        num: Number k of clusters, 1 to samples.
        num_rounds: Lloyd's rounds, at least 1.
        num_restarts: Independent seeds, at least 1. Restart i draws from `fold_in(key, i)`, so more never do worse.

    Returns:
        assignment: Cluster of each sample (samples,); every cluster has a sample.
        num_empty: Clusters that the last round would have left empty.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> x = jnp.array([[0.0], [0.1], [9.0]])
        >>> assignment, _ = kmeans(jax.random.key(0), x, 2)
        >>> bool(assignment[0] == assignment[1]), bool(assignment[0] == assignment[2])
        (True, False)

    References:
        D. Arthur, S. Vassilvitskii, "k-means++: The advantages of careful seeding", SODA 2007.
    """
    checks.rank("x", x, 2, "(samples, features)")
    checks.integer("num", num, high=x.shape[0], fix="There are no more clusters than samples.")
    checks.integer("num_rounds", num_rounds)
    checks.integer("num_restarts", num_restarts)
    return _best(key, x, num, num_rounds, num_restarts)


@checked
def representative(
    key: Key, x: Float[Array, "samples features"], *, num: int | None = None, cluster: Cluster = kmeans
) -> tuple[Int32[Array, " clusters"], Clusters]:
    """Choose the samples that stand for a buffer.

    The samples are clustered, and in each cluster the sample of the largest cosine with the centroid is taken, the
    first of them in a tie. A cluster that was left empty takes the sample that lies farthest from its centroid, so the
    representatives are always different samples, even where samples are equal.

    That representatives come from k-means and cosine is stated by a secondary source; that the cosine is taken with
    the centroid is inferred.

    Args:
        key: Key of the clustering.
        x: Embeddings (samples, features) of a buffer, of any scale.
        num: Number k of representatives, 1 to samples; None for `num_representatives`.
        cluster: The clustering, see `Cluster`; `functools.partial(kmeans, num_restarts=9)` for other options.

    Returns:
        indices: Which samples, (clusters,), all different.
        clusters: The clusters. The gradients of `centroids` and `inertia` are those at the assignment found.

    Raises:
        ValueError: If a shape is wrong, an embedding is not finite, or a number is out of range.

    Example:
        >>> x = jnp.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [9.0, 0.0], [9.0, 0.1], [9.0, 0.5]])
        >>> indices, clusters = representative(jax.random.key(0), x, num=2)
        >>> print(sorted(indices.tolist()), f"{clusters.inertia:.3f}")  # .1^2 + .1^2 + .2^2 + .1^2 + .3^2
        [1, 4] 0.160
        >>> halves = lambda key, x, num: (x[:, 0] > 1.0).astype(jnp.int32)  # a clustering of one's own
        >>> representative(jax.random.key(0), x, num=2, cluster=halves)[0].tolist()
        [1, 4]

    References:
        R. Qin et al., "NVCiM-PT: An NVCiM-assisted prompt tuning framework for edge LLMs", DATE 2025, arXiv:2411.08244.
    """
    checks.rank("x", x, 2, "(samples, features)")
    checks.finite("x", x, "Drop or repair the samples that are not.")
    checks.integer("the number of samples in x", x.shape[0])
    num = num_representatives(x.shape[0]) if num is None else num
    checks.integer("num", num, high=x.shape[0], fix="A buffer has no more representatives than samples.")
    found = cluster(key, x.astype(jnp.float32), num)
    assignment, num_empty = found if isinstance(found, tuple) else (found, None)
    _check_assignment(assignment, x.shape[0], num)
    return _choose(x, assignment.astype(jnp.int32), num_empty, num)


def _check_assignment(assignment: Any, num_samples: int, num: int) -> None:
    """Check what a clustering returned: one whole number in [0, num) for each sample."""
    checks.shape("cluster", assignment, (num_samples,), "of its result (samples,)")
    if not jnp.issubdtype(assignment.dtype, jnp.integer):
        checks.fail("cluster", "return whole numbers", f"returns {assignment.dtype}")
    checks.number("cluster", assignment, low=0.0, high=float(num - 1))


@checked
def assignment_soft(
    x: Float[Array, "samples features"],
    centroids: Float[Array, "clusters features"],
    *,
    temperature: Float[ArrayLike, ""],
) -> Float[Array, "samples clusters"]:
    """Weigh the clusters of each sample, the relaxed twin of the assignment: softmax_j(-|x - c_j|^2 / temperature).

    As the temperature goes to zero each sample goes to its nearest centroid.

    Args:
        x: Embeddings (samples, features).
        centroids: Centroids (clusters, features).
        temperature: In the unit of squared distances, above 0.

    Returns:
        Weights (samples, clusters); each row adds up to 1.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> centroids = jnp.array([[0.0], [2.0]])
        >>> weights = assignment_soft(jnp.array([[1.0], [0.0]]), centroids, temperature=1.0)
        >>> print(f"{weights[0, 0]:.3f} {weights[1, 0]:.3f}")  # 1/2 and 1 / (1 + e^-4)
        0.500 0.982
    """
    checks.rank("x", x, 2, "(samples, features)")
    checks.shape("centroids", centroids, (centroids.shape[0], x.shape[1]), "(clusters, features)")
    x, centroids = x.astype(jnp.float32), centroids.astype(jnp.float32)
    middle = lax.stop_gradient(centroids.mean(axis=0, keepdims=True))  # far from the origin distances would cancel out
    return jax.vmap(lambda distances: pick_soft(-distances, temperature))(_distances(x - middle, centroids - middle))


@checked
def representative_soft(
    x: Float[Array, "samples features"], clusters: Clusters, *, temperature: Float[ArrayLike, ""]
) -> Float[Array, "clusters features"]:
    """Average the samples of each cluster by their cosine with the centroid: the relaxed twin of `representative`.

    r_j = sum_i softmax_i(cos(x_i, c_j) / temperature) x_i over the samples of cluster j. As the temperature goes to
    zero it becomes the representative itself, wherever one sample is the nearest.

    Args:
        x: Embeddings (samples, features).
        clusters: Clusters of these samples, from `representative`.
        temperature: Of the cosine, above 0.

    Returns:
        One vector for each cluster, (clusters, features), float32.

    Raises:
        ValueError: If the temperature is not positive.

    Example:
        >>> import jax
        >>> x = jnp.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [9.0, 0.0], [9.0, 0.1], [9.0, 0.5]])
        >>> indices, clusters = representative(jax.random.key(0), x, num=2)
        >>> soft = representative_soft(x, clusters, temperature=1e-6)
        >>> print(float(jnp.abs(soft - x[indices]).max()))
        0.0
    """
    checks.rank("x", x, 2, "(samples, features)")
    checks.shape("clusters.assignment", clusters.assignment, (x.shape[0],), "(samples,)")
    x = x.astype(jnp.float32)
    weights = jax.vmap(lambda cosines: pick_soft(cosines, temperature))(_member_cosines(x, clusters))
    return jnp.matmul(weights, x, precision="highest")


# Compiled once for a shape and the numbers, for eager callers; inside another jit it is inlined.
@functools.partial(jax.jit, static_argnames=("num", "num_rounds", "num_restarts"), inline=True)
def _best(
    key: Key, x: Float[Array, "samples features"], num: int, num_rounds: int, num_restarts: int
) -> tuple[Int32[Array, " samples"], Int32[Array, ""]]:
    """Return the best assignment of all restarts; the arguments are checked."""
    middle = _from_the_middle(x.astype(jnp.float32))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_restarts))
    assignments, num_empty = jax.vmap(lambda key: _lloyd(key, middle, num, num_rounds))(keys)
    inertias = jax.vmap(lambda assignment: _inertia(middle, assignment, num))(assignments)
    best = jnp.argmin(inertias)
    return assignments[best], num_empty[best]


def _from_the_middle(x: Float[Array, "samples features"]) -> Float[Array, "samples features"]:
    """Shift the samples to where the rounding of their distances is smallest; without gradient."""
    return lax.stop_gradient(x - x.mean(axis=0, keepdims=True))


@functools.partial(jax.jit, static_argnames="num", inline=True)
def _choose(
    x: Float[Array, "samples features"],
    assignment: Int32[Array, " samples"],
    num_empty: Int32[Array, ""] | None,
    num: int,
) -> tuple[Int32[Array, " clusters"], Clusters]:
    """Return the representatives and the clusters of an assignment; one that may have empty clusters says no number."""
    x = x.astype(jnp.float32)
    if num_empty is None:
        middle = _from_the_middle(x)
        own = jnp.square(middle - _means(middle, assignment, num)[assignment]).sum(axis=1)
        assignment, num_empty = _filled(assignment, own, num)
    clusters = Clusters(_means(x, assignment, num), assignment, _inertia(x, assignment, num), num_empty)
    return jnp.argmax(_member_cosines(x, clusters), axis=1).astype(jnp.int32), clusters


def _lloyd(
    key: Key, x: Float[Array, "samples features"], num: int, num_rounds: int
) -> tuple[Int32[Array, " samples"], Int32[Array, ""]]:
    """Return the assignment after all rounds, and how many clusters were empty in the last one."""

    def one_round(_: Int[ArrayLike, ""], state: tuple) -> tuple:
        return _assign(x, _means(x, state[0], num))

    return lax.fori_loop(0, num_rounds, one_round, _assign(x, _seeds(key, x, num)))


def _seeds(key: Key, x: Float[Array, "samples features"], num: int) -> Float[Array, "clusters features"]:
    """Return seeds by greedy k-means++: of a few candidates drawn by squared distance, the one that helps most."""
    key_first, key_rest = jax.random.split(key)
    first = jax.random.randint(key_first, (), 0, x.shape[0])
    num_trials = 2 + int(math.log(num))

    def add(j: Int[ArrayLike, ""], state: tuple) -> tuple:
        chosen, nearest = state
        logits = jnp.log(nearest)
        trials = jax.random.categorical(jax.random.fold_in(key_rest, j), logits, shape=(num_trials,))
        left = jnp.minimum(nearest[None, :], _distances(x[trials], x))
        best = jnp.argmin(left.sum(axis=1))
        return chosen.at[j].set(trials[best]), left[best]

    chosen = jnp.full((num,), first)
    return x[lax.fori_loop(1, num, add, (chosen, _distances(x[first][None], x)[0]))[0]]


def _assign(
    x: Float[Array, "samples features"], centroids: Float[Array, "clusters features"]
) -> tuple[Int32[Array, " samples"], Int32[Array, ""]]:
    """Return the nearest centroid of each sample, and how many clusters were empty; each of them is given a sample."""
    distances = _distances(x, centroids)
    assignment = jnp.argmin(distances, axis=1).astype(jnp.int32)
    return _filled(assignment, distances.min(axis=1), centroids.shape[0])


def _filled(
    assignment: Int32[Array, " samples"], nearest: Float[Array, " samples"], num: int
) -> tuple[Int32[Array, " samples"], Int32[Array, ""]]:
    """Give every empty cluster the sample farthest from its centroid (`nearest`), and return how many were empty."""
    counts = jnp.bincount(assignment, length=num).astype(jnp.int32)

    def fill(j: Int[ArrayLike, ""], state: tuple) -> tuple:
        assignment, counts = state
        # the last sample of a cluster stays
        farthest = jnp.argmax(jnp.where(counts[assignment] > 1, nearest, -jnp.inf))
        empty = counts[j] == 0
        donor = assignment[farthest]
        moved = empty.astype(jnp.int32)
        counts = counts.at[donor].add(-moved).at[j].add(moved)
        return assignment.at[farthest].set(jnp.where(empty, jnp.asarray(j, jnp.int32), donor)), counts

    num_empty = (counts == 0).sum().astype(jnp.int32)
    return lax.fori_loop(0, num, fill, (assignment, counts))[0], num_empty


def _means(x: Float[Array, "samples features"], assignment: Int32[Array, " samples"], num: int) -> Float[Array, "..."]:
    """Return the mean of each cluster."""
    member = jax.nn.one_hot(assignment, num, dtype=x.dtype, axis=0)
    return jnp.matmul(member / jnp.maximum(member.sum(axis=1, keepdims=True), 1.0), x, precision="highest")


def _inertia(x: Float[Array, "samples features"], assignment: Int32[Array, " samples"], num: int) -> Float[Array, ""]:
    """Return the sum of squared distances to the mean of one's cluster."""
    return jnp.square(x - _means(x, assignment, num)[assignment]).sum()


def _distances(x: Float[Array, "a features"], y: Float[Array, "b features"]) -> Float[Array, "a b"]:
    """Return squared Euclidean distances."""
    cross = jnp.matmul(x, y.T, precision="highest")
    squares = jnp.square(x).sum(axis=1)[:, None] + jnp.square(y).sum(axis=1)[None, :]
    return jnp.maximum(squares - 2.0 * cross, 0.0)


def _member_cosines(x: Float[Array, "samples features"], clusters: Clusters) -> Float[Array, "clusters samples"]:
    """Return cos(sample, centroid), -inf for samples of other clusters."""
    cosines = jnp.matmul(_unit_rows(clusters.centroids), _unit_rows(x).T, precision="highest")
    member = clusters.assignment[None, :] == jnp.arange(clusters.centroids.shape[0], dtype=jnp.int32)[:, None]
    return jnp.where(member, cosines, -jnp.inf)


def _unit_rows(x: Float[Array, "rows features"]) -> Float[Array, "rows features"]:
    """Return x / |x| for each row; rows too short to divide by (1e-10) are left as they are."""
    square = jnp.square(x).sum(axis=1, keepdims=True)
    return x * lax.rsqrt(jnp.where(square > 1e-20, square, 1.0))
