"""Intervals against scipy and in coverage; matrices of domain shift against hand-worked values."""

import numpy as np
import pytest
from scipy import stats

from nvcim_jax import metrics


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 49, 100, 200, 201, 501, 10**6])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_student_quantile_is_scipys(freedom: int, level: float) -> None:
    assert metrics.student_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def test_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 7)
    found = metrics.interval(values, 0.9)
    expected = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.num == 7


@pytest.mark.slow
def test_interval_covers_at_its_level() -> None:
    rng = np.random.default_rng(1)
    runs = 4000
    covered = sum(i.low <= 1.0 <= i.high for i in (metrics.interval(rng.normal(1.0, 3.0, 5)) for _ in range(runs)))
    assert abs(covered / runs - 0.95) < 5 * np.sqrt(0.95 * 0.05 / runs)


def test_hierarchical_interval_covers_where_pooling_does_not() -> None:
    rng = np.random.default_rng(2)
    runs, own, pooled = 1000, 0, 0
    for _ in range(runs):
        values = rng.normal(0.0, 1.0, (5, 1)) + rng.normal(0.0, 0.5, (5, 10))
        found = metrics.hierarchical_interval(values)
        flat = metrics.interval(values.ravel())
        own += found.low <= 0 <= found.high
        pooled += flat.low <= 0 <= flat.high
    assert abs(own / runs - 0.95) < 5 * np.sqrt(0.95 * 0.05 / runs)
    assert pooled / runs < 0.7


def test_paired_interval_is_scipys_paired_test_turned_round() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=8)
    one, two = base + 0.3 + 0.1 * rng.normal(size=8), base
    found = metrics.paired_interval(one, two)
    expected = stats.ttest_rel(one, two).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    grid = metrics.paired_interval(np.stack([one, one + 1]), np.stack([two, two]))
    assert grid.num == 2


def test_single_run_has_no_ends_and_bad_values_are_refused() -> None:
    assert metrics.interval([0.5]).half_width == np.inf
    with pytest.raises(ValueError, match="`values` must be finite"):
        metrics.interval([0.5, float("nan")])
    with pytest.raises(ValueError, match="is empty"):
        metrics.interval([])
    with pytest.raises(ValueError, match="`second` must have shape"):
        metrics.paired_interval([1.0, 2.0], [1.0])


RETURN = np.array([[0.9, 0.1, 0.0], [0.3, 0.8, 0.0], [0.7, 0.2, 0.0], [0.1, 0.1, 0.6], [0.9, 0.3, 0.2]])


def test_a_returning_domain_counts_only_where_it_is_not_current() -> None:
    current = [0, 1, 0, 2, 0]
    assert metrics.previously_seen_mean(RETURN, current) == pytest.approx(
        np.mean([0.3, 0.2, (0.1 + 0.1) / 2, (0.3 + 0.2) / 2])
    )
    # best before the end: .9, .8, .6 (never the value of a domain before it was seen)
    assert metrics.forgetting(RETURN, current) == pytest.approx(np.mean([0.9 - 0.9, 0.8 - 0.3, 0.6 - 0.2]))


def test_scores_before_a_domain_was_seen_do_not_count_as_its_best() -> None:
    R = np.array([[0.5, 0.9], [0.4, 0.2], [0.4, 0.1]])
    assert metrics.forgetting(R, [0, 1, 0]) == pytest.approx(np.mean([0.5 - 0.4, 0.2 - 0.1]))


def test_what_was_not_measured_is_left_out() -> None:
    R = np.full((3, 3), np.nan)
    assert np.isnan(metrics.forgetting(R))
    assert np.isnan(metrics.previously_seen_mean(R))
    R[2, 0], R[0, 0] = 0.25, 0.5
    assert metrics.forgetting(R) == 0.25
    assert metrics.previously_seen_mean(R) == 0.25


def test_a_matrix_with_more_blocks_than_domains_needs_the_domains_named() -> None:
    with pytest.raises(ValueError, match="Give `current`"):
        metrics.forgetting(RETURN)
    with pytest.raises(ValueError, match="`current`"):
        metrics.forgetting(RETURN, [0, 1, 5, 0, 0])


def test_hit_rate_at_k_and_at_chance() -> None:
    assert metrics.hit_rate([[0, 1], [2, 3]], [1, 0]) == 0.5
    rng = np.random.default_rng(4)
    found, truth = rng.integers(0, 4, 10_000), rng.integers(0, 4, 10_000)
    assert abs(metrics.hit_rate(found, truth) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 10_000)
    with pytest.raises(ValueError, match="`found`"):
        metrics.hit_rate([1, 2], [1, 2, 3])
    for found, message in ((["1", "2"], "hold numbers as `truth` does, but holds names"), ([[1], [2]], "hold names")):
        with pytest.raises(ValueError, match=f"`found` must {message}"):
            metrics.hit_rate(found, [1, 2] if found[0] == "1" else ["1", "2"])
