"""Normal numbers: distribution, independence between positions and keys, and purity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nvcim_jax import ops

NUM_KEYS = 64
PER_KEY = 40_001  # odd: the last pair is cut


@pytest.fixture(scope="module", params=ops.RNGS)
def samples(request: pytest.FixtureRequest) -> np.ndarray:
    """Return (keys, positions) numbers; the keys are consecutive folds, as Monte Carlo uses them."""
    key = jax.random.key(7)

    def draw(i: jax.Array) -> jax.Array:
        return ops.normal(jax.random.fold_in(key, i), (PER_KEY,), rng=request.param)

    return np.asarray(jax.lax.map(draw, jnp.arange(NUM_KEYS)), dtype=np.float64)


def test_moments_are_those_of_a_standard_normal(samples: np.ndarray) -> None:
    n = samples.size
    # standard errors of the first four standardised moments and of the sixth about 15
    for value, truth, error in [
        (samples.mean(), 0, n**-0.5),
        (samples.var(), 1, (2 / n) ** 0.5),
        ((samples**3).mean(), 0, (15 / n) ** 0.5),
        ((samples**4).mean(), 3, (96 / n) ** 0.5),
        ((samples**6).mean(), 15, (10170 / n) ** 0.5),
    ]:
        assert abs(value - truth) < 5 * error


def test_means_of_single_keys_spread_as_they_should(samples: np.ndarray) -> None:
    z = samples.mean(axis=1) * PER_KEY**0.5
    assert abs(z.var(ddof=1) - 1) < 5 * (2 / (NUM_KEYS - 1)) ** 0.5


def test_distribution_function_and_tails(samples: np.ndarray) -> None:
    assert stats.kstest(samples.ravel(), "norm").pvalue > 1e-6
    for threshold in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(threshold)
        share = (np.abs(samples) > threshold).mean()
        assert abs(share - expected) < 5 * (expected / samples.size) ** 0.5


def test_far_tail_is_reached() -> None:
    n = 2**26
    key = jax.random.key(1)
    draw = jax.jit(lambda i: jnp.sum(jnp.abs(ops.normal(jax.random.fold_in(key, i), (2**22,))) > 5.0))
    count = sum(int(draw(i)) for i in range(n // 2**22))
    expected = 2 * stats.norm.sf(5.0) * n
    assert abs(count - expected) < 5 * expected**0.5


@pytest.mark.parametrize("lag", [1, 2, 127, 20_001])
def test_positions_are_uncorrelated_in_value_and_in_size(samples: np.ndarray, lag: int) -> None:
    n = NUM_KEYS * (PER_KEY - lag)
    for x in (samples, samples**2 - 1, np.abs(samples) - (2 / np.pi) ** 0.5):
        product = (x[:, lag:] * x[:, :-lag]).mean() / x.var()
        assert abs(product) < 5 * n**-0.5


def test_keys_are_uncorrelated_in_value_and_in_size(samples: np.ndarray) -> None:
    for x in (samples, samples**2 - 1):
        between = np.corrcoef(x)[np.triu_indices(NUM_KEYS, 1)]
        z = between * PER_KEY**0.5
        assert np.abs(z).max() < 5
        assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


def test_the_two_halves_of_a_pair_are_jointly_normal(key: jax.Array) -> None:
    first, second = ops.normal_pair(key, (400_000,))
    angle = np.arctan2(np.asarray(second), np.asarray(first)) / (2 * np.pi) + 0.5
    radius = np.exp(-(np.asarray(first) ** 2 + np.asarray(second) ** 2) / 2)
    counts = np.histogram2d(angle, radius, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-6


@pytest.mark.parametrize("rng", ops.RNGS)
def test_pair_equals_the_stacked_draw(key: jax.Array, rng: str) -> None:
    first, second = ops.normal_pair(key, (3, 5), rng=rng)
    np.testing.assert_array_equal(jnp.stack([first, second]), ops.normal(jax.random.clone(key), (2, 3, 5), rng=rng))


@pytest.mark.parametrize("rng", ops.RNGS)
def test_jit_and_vmap_change_nothing(key: jax.Array, rng: str) -> None:
    keys = jax.random.split(key, 3)
    one_by_one = jnp.stack([ops.normal(k, (4, 9), rng=rng) for k in keys])
    mapped = jax.jit(jax.vmap(lambda k: ops.normal(k, (4, 9), rng=rng)))(jax.random.clone(keys))
    np.testing.assert_allclose(mapped, one_by_one, rtol=2e-6, atol=1e-7)


def _fold_and_split(key: jax.Array) -> jax.Array:
    return jax.random.split(jax.random.fold_in(key, 3))[1]


DRAWS = {
    "normal": lambda key, rng: ops.normal(key, (7, 33), rng=rng),
    "two halves": lambda key, rng: ops.normal(key, (2, 33), rng=rng),
    "pair": lambda key, rng: jnp.stack(ops.normal_pair(key, (5, 4), rng=rng)),
    "uniform": lambda key, rng: ops.centred_uniform(key, (1000,), rng=rng),
}


@pytest.mark.slow
@pytest.mark.parametrize("rng", ops.RNGS)
@pytest.mark.parametrize("name", DRAWS)
def test_a_mirrored_key_gives_the_negated_numbers_bit_for_bit(name: str, rng: str) -> None:
    def draw(key: jax.Array) -> jax.Array:
        return DRAWS[name](key, rng)

    for lead in (lambda key: key, _fold_and_split):
        one, other = (lead(key) for key in (jax.random.key(11), ops.mirror(jax.random.key(11))))
        np.testing.assert_array_equal(draw(one), -draw(other))
        both = [jax.jit(jax.vmap(draw))(key[None]) for key in map(jax.random.clone, (one, other))]
        np.testing.assert_array_equal(both[0], -both[1])


def test_mirroring_twice_is_the_key_itself(key: jax.Array) -> None:
    again = ops.mirror(ops.mirror(key))
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))
    assert jax.random.key_impl(again) == jax.random.key_impl(key)
    other = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(ops.normal(ops.mirror(other), (5,)), -ops.normal(other, (5,)))


@pytest.mark.parametrize("rng", ops.RNGS)
def test_centred_uniform_numbers_are_uniform_and_independent_of_the_normal_ones(rng: str) -> None:
    keys = jax.random.split(jax.random.key(3), 32)
    u = np.asarray(jax.vmap(lambda k: ops.centred_uniform(k, (20_000,), rng=rng))(keys), np.float64)
    assert np.abs(u).max() < 0.5
    assert stats.kstest(u.ravel() + 0.5, "uniform").pvalue > 1e-6
    n = u.size
    assert abs(u.mean()) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5  # Var u^2 = 1/80 - 1/144 = 1/180
    for x in (u, u**2 - 1 / 12):
        between = np.corrcoef(x)[np.triu_indices(len(u), 1)]
        assert np.abs(between * 20_000**0.5).max() < 5
        assert abs((x[:, 1:] * x[:, :-1]).mean() / x.var()) < 5 * n**-0.5


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_what_a_key_draws_does_not_depend_on_what_else_is_mapped(impl: str) -> None:
    keys = jax.random.split(jax.random.key(1, impl=impl), 3)
    for draw in (ops.normal, ops.centred_uniform):
        alone = jnp.stack([draw(key, (4,)) for key in keys])
        np.testing.assert_array_equal(jax.vmap(lambda key, draw=draw: draw(key, (4,)))(keys), alone)
    assert not np.allclose(ops.normal(keys[0], (4,)), ops.normal(keys[1], (4,)))


def test_any_key_implementation_serves() -> None:
    assert ops.normal(jax.random.key(0, impl="rbg"), (5,)).shape == (5,)
    assert ops.normal(jax.random.key(0), (0, 3)).shape == (0, 3)


def test_an_unknown_generator_is_named(key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"`rng` must be one of counter, threefry.*Did you mean 'threefry'"):
        ops.normal(key, (3,), rng="threefri")
