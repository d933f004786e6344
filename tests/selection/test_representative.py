"""Representatives: inertia against scikit-learn, cosine against NumPy, duplicates, contracts and relaxed twins."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import selection


def _blobs(num_clusters: int = 5, each: int = 8, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, 6)) * 2 + 3
    return (np.repeat(centres, each, axis=0) + spread * rng.normal(size=(num_clusters * each, 6))).astype(np.float32)


_kmeans = functools.partial(functools.partial, selection.kmeans)


def test_number_of_representatives() -> None:
    assert [selection.num_representatives(b) for b in (1, 2, 3, 25, 50, 100)] == [1, 1, 2, 5, 7, 10]


@pytest.mark.parametrize("num", [1, 5])
def test_inertia_is_that_of_scikit_learn(num: int, key: jax.Array) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = _blobs(spread=0.3)
    _, clusters = selection.representative(key, jnp.asarray(x), num=num)
    reference = cluster.KMeans(num, n_init=10, random_state=0).fit(x).inertia_
    assert float(clusters.inertia) == pytest.approx(reference, rel=1e-4)


def test_local_minima_are_as_good_as_those_of_scikit_learn(key: jax.Array) -> None:
    # without clusters to find, a start is a draw from many local minima: the mean over starts is compared
    cluster = pytest.importorskip("sklearn.cluster")
    x = _blobs(spread=2.0)

    @jax.jit
    @jax.vmap
    def inertia(key: jax.Array) -> jax.Array:
        return selection.representative(key, jnp.asarray(x), num=9, cluster=_kmeans(num_restarts=1))[1].inertia

    ours = np.asarray(inertia(jax.random.split(key, 200)))
    theirs = np.array([cluster.KMeans(9, n_init=1, random_state=i).fit(x).inertia_ for i in range(200)])
    error = np.sqrt((ours.var() + theirs.var()) / 200)
    assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert ours.min() == pytest.approx(theirs.min(), rel=0.03)


def test_clusters_are_a_fixed_point_and_describe_themselves(key: jax.Array) -> None:
    x = _blobs()
    indices, clusters = selection.representative(key, jnp.asarray(x), num=5)
    assignment = np.asarray(clusters.assignment)
    centroids = np.stack([x[assignment == j].mean(axis=0) for j in range(5)])
    np.testing.assert_allclose(clusters.centroids, centroids, rtol=1e-5, atol=1e-5)
    distances = ((x[:, None] - centroids[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(assignment, distances.argmin(axis=1))
    assert float(clusters.inertia) == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
    assert int(clusters.num_empty) == 0
    cosine = (x @ centroids.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(centroids, axis=1)[None]
    expected = [np.where(assignment == j, cosine[:, j], -np.inf).argmax() for j in range(5)]
    np.testing.assert_array_equal(indices, expected)
    # well separated blobs: one representative each
    assert sorted(i // 8 for i in indices.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_duplicates_give_distinct_representatives(distinct: int, key: jax.Array) -> None:
    x = jnp.asarray(np.repeat(_blobs(distinct, 1), 6, axis=0)[: 2 * 3])
    for num in (2, 5):
        indices, clusters = selection.representative(key, x, num=num)
        assert len(set(indices.tolist())) == num
        assert set(clusters.assignment.tolist()) == set(range(num))
        kinds = len(np.unique(np.asarray(x), axis=0))
        if num >= kinds:
            assert float(clusters.inertia) < 1e-8
            assert int(clusters.num_empty) == num - kinds


@pytest.mark.slow
def test_all_samples_can_be_representatives_and_zeros_are_harmless(key: jax.Array) -> None:
    indices, clusters = selection.representative(key, jnp.zeros((4, 3)), num=4)
    assert sorted(indices.tolist()) == [0, 1, 2, 3]
    assert bool(jnp.isfinite(clusters.centroids).all())
    indices, _ = selection.representative(key, jnp.asarray(_blobs(1, 7)), num=7)
    assert sorted(indices.tolist()) == list(range(7))


def test_a_far_origin_does_not_blur_the_clusters(key: jax.Array) -> None:
    x = _blobs(spread=0.05)
    near = selection.representative(key, jnp.asarray(x), num=5)[1]
    far = selection.representative(key, jnp.asarray(x + np.float32(1000)), num=5)[1]
    np.testing.assert_array_equal(near.assignment, far.assignment)


def test_more_restarts_never_do_worse(key: jax.Array) -> None:
    x = jnp.asarray(_blobs(spread=2.0))
    inertias = [
        float(selection.representative(key, x, num=9, cluster=_kmeans(num_restarts=n))[1].inertia) for n in (1, 12)
    ]
    assert inertias[0] >= inertias[1]


def test_more_rounds_never_do_worse(key: jax.Array) -> None:
    x = jnp.asarray(_blobs(spread=2.0))
    inertias = [
        float(selection.representative(key, x, num=9, cluster=_kmeans(num_restarts=1, num_rounds=n))[1].inertia)
        for n in (1, 3, 50)
    ]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(inertias))


@pytest.mark.slow
def test_soft_twins_become_hard_as_the_temperature_goes_to_zero(key: jax.Array) -> None:
    x = jnp.asarray(_blobs(spread=1.0))
    indices, clusters = selection.representative(key, x, num=5)
    hard = jax.nn.one_hot(clusters.assignment, 5)
    assignments = [
        float(jnp.abs(selection.assignment_soft(x, clusters.centroids, temperature=t) - hard).max())
        for t in (10.0, 1.0, 1e-3)
    ]
    means = [
        float(jnp.abs(selection.representative_soft(x, clusters, temperature=t) - x[indices]).max())
        for t in (1.0, 1e-3, 1e-6)
    ]
    for distances in (assignments, means):
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 1e-4
    # and as it grows, the average of the cluster
    flat = selection.representative_soft(x, clusters, temperature=1e6)
    np.testing.assert_allclose(flat, clusters.centroids, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_soft_assignment_is_the_same_far_from_the_origin() -> None:
    x = jnp.array([[10_000.0], [10_001.0]])
    near = 1.0 / (1.0 + np.exp(-1.0 / 0.1))  # squared distances of 0 and 1
    np.testing.assert_allclose(selection.assignment_soft(x, x, temperature=0.1), [[near, 1 - near], [1 - near, near]])
    slope = jax.grad(lambda x, c: selection.assignment_soft(x, c, temperature=1.0)[0, 0], argnums=(0, 1))
    for far, here in zip(slope(x, x), slope(x - 10_000.0, x - 10_000.0), strict=True):
        np.testing.assert_allclose(far, here, rtol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_at_the_assignment_found(key: jax.Array) -> None:
    x = jnp.asarray(_blobs())
    clusters = selection.representative(key, x, num=5)[1]
    slope = jax.grad(lambda x: selection.representative(key, x, num=5)[1].inertia)(x)
    # the envelope: d inertia / d x_i = 2 (x_i - centroid of i)
    np.testing.assert_allclose(slope, 2 * (x - clusters.centroids[clusters.assignment]), rtol=1e-4, atol=1e-4)
    soft = jax.grad(lambda x: selection.representative_soft(x, clusters, temperature=0.1)[:, 0].sum())(x)
    assert bool(jnp.isfinite(soft).all())
    assert float(jnp.abs(soft).max()) > 0


@pytest.mark.slow
def test_contracts_of_the_representatives(key: jax.Array) -> None:
    buffers = jnp.stack([jnp.asarray(_blobs(seed=seed)) for seed in range(3)])
    keys = [jax.random.fold_in(key, i) for i in range(3)]
    traces = []

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        traces.append(1)
        return selection.representative(key, x, num=5)[0]

    eager = jnp.stack([one(jax.random.clone(keys[i]), buffers[i]) for i in range(3)])
    traces.clear()
    jitted = jax.jit(one)
    np.testing.assert_array_equal(jnp.stack([jitted(jax.random.clone(keys[i]), buffers[i]) for i in range(3)]), eager)
    assert len(traces) == 1
    np.testing.assert_array_equal(jax.vmap(one)(jnp.stack(keys), buffers), eager)


def test_bad_input_is_named(key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"`num` must be an integer of at least 1 and at most 3, but is 4"):
        selection.representative(key, jnp.ones((3, 2)), num=4)
    with pytest.raises(ValueError, match=r"`x` must be finite"):
        selection.representative(key, jnp.full((3, 2), jnp.nan))
    with pytest.raises(ValueError, match=r"`num` must be .* at most 3, but is 4\. There are no more clusters"):
        selection.kmeans(key, jnp.ones((3, 2)), 4)
    with pytest.raises(ValueError, match=r"`cluster` must have shape of its result \(samples,\) = \(3,\)"):
        selection.representative(key, jnp.ones((3, 2)), num=2, cluster=lambda key, x, num: jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="`cluster` must return whole numbers, but returns float32"):
        selection.representative(key, jnp.ones((3, 2)), num=2, cluster=lambda key, x, num: jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`cluster` must lie in \[0, 1\], but is 2"):
        selection.representative(key, jnp.ones((3, 2)), num=2, cluster=lambda key, x, num: jnp.arange(3))


def test_a_clustering_of_ones_own(key: jax.Array) -> None:
    x = jnp.asarray(_blobs(num_clusters=3, spread=0.1))

    def every_third(key: jax.Array, x: jax.Array, num: int) -> jax.Array:
        return jnp.arange(x.shape[0]) % num

    for choose in (selection.representative, jax.jit(selection.representative, static_argnames=("num", "cluster"))):
        indices, clusters = choose(jax.random.clone(key), x, num=3, cluster=every_third)
        np.testing.assert_array_equal(clusters.assignment, np.arange(24) % 3)
        np.testing.assert_array_equal(indices % 3, np.arange(3))
        np.testing.assert_allclose(clusters.centroids, [x[i::3].mean(axis=0) for i in range(3)], rtol=1e-5)
        assert int(clusters.num_empty) == 0


def test_the_default_is_kmeans_of_scikit_learns_kind(key: jax.Array) -> None:
    x = jnp.asarray(_blobs(spread=0.3))
    found = selection.representative(jax.random.clone(key), x, num=5)[1].assignment
    np.testing.assert_array_equal(found, selection.kmeans(key, x, 5)[0])


def test_empty_clusters_of_ones_own_clustering_are_filled(key: jax.Array) -> None:
    x = jnp.asarray([[0.0], [1.0], [5.0], [7.0]])
    indices, clusters = selection.representative(key, x, num=3, cluster=lambda key, x, num: jnp.zeros(4, jnp.int32))
    assert int(clusters.num_empty) == 2
    assert sorted(set(clusters.assignment.tolist())) == [0, 1, 2]
    assert len(set(indices.tolist())) == 3
