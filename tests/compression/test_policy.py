"""Policies keep to their budget, whatever the sensitivities are."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nvcim_jax import compression

SIZES = st.floats(0.0, 1e6, allow_subnormal=False)
TABLES = st.integers(1, 40).flatmap(lambda n: st.tuples(*(hnp.arrays(np.float64, n, elements=SIZES) for _ in range(2))))


def _table(first: np.ndarray, second: np.ndarray) -> compression.Table:
    return compression.Table(first, second, bits=4, sparsity=0.5)


@settings(deadline=None, max_examples=60)
@given(tables=TABLES, bits=st.integers(2, 7), sparsity=st.floats(0.0, 1.0), cap=st.floats(0.0, 1.0))
def test_the_budget_is_kept_exactly(tables, bits, sparsity, cap) -> None:
    cap = max(cap, sparsity, 1e-3)
    policy = compression.luc(_table(*tables), bits=bits, sparsity=sparsity, cap=cap)
    assert abs(policy.sparsity.mean() - sparsity) < 1e-12
    assert policy.sparsity.min() >= 0
    assert policy.sparsity.max() <= cap
    # a more sensitive block never has fewer bits or more zeros than another
    for s, own, sign in ((tables[0], policy.bits, 1), (tables[1], policy.sparsity, -1)):
        order = np.argsort(s, kind="stable")
        assert (sign * np.diff(own[order]) >= -1e-9).all()
    assert set(policy.bits.tolist()) <= {bits, bits + 1}
    assert (bits + 1) in policy.bits  # one block at least is as sensitive as the mean


@settings(deadline=None, max_examples=40)
@given(num=st.sampled_from([1, 2, 7, 30]), data=st.data())
def test_policies_of_the_same_budget_have_the_same_means(num, data) -> None:
    share = data.draw(st.integers(0, num)) / num
    even = compression.uniform(num, bits=3 + share, sparsity=0.37)
    assert abs(even.bits.mean() - (3 + share)) < 1e-12
    assert np.ptp(even.bits) <= 1
    assert np.allclose(even.sparsity, 0.37, atol=1e-15)
    own = compression.Policy(np.arange(num) % 3 + 3, np.linspace(0, 1, num))
    mixed = compression.random(jax.random.key(num), own)
    for part in ("bits", "sparsity"):
        np.testing.assert_array_equal(np.sort(getattr(mixed, part)), np.sort(getattr(own, part)))


def test_the_equations_by_hand() -> None:
    table = _table(np.array([1.0, 2.0, 3.0, 10.0]), np.array([0.0, 1.0, 2.0, 4.0]))
    policy = compression.luc(table, bits=3, sparsity=0.4)
    np.testing.assert_array_equal(policy.bits, [3, 3, 3, 4])  # the mean is 4
    g = np.array([1.0, 0.75, 0.5, 0.0])
    np.testing.assert_allclose(policy.sparsity, 0.4 * 4 * g / g.sum())
    # at .6 the first would be beyond 1: what is over goes to the others in proportion
    np.testing.assert_allclose(compression.luc(table, sparsity=0.6).sparsity, [1.0, 0.84, 0.56, 0.0])
    # at .8 three are full, and the rest is left for the one that has no share
    np.testing.assert_allclose(compression.luc(table, sparsity=0.8).sparsity, [1.0, 1.0, 1.0, 0.2])


def test_the_printed_form_prunes_what_is_sensitive_and_is_refused_beyond_one() -> None:
    table = _table(np.ones(4), np.array([1.0, 1.0, 2.0, 4.0]))
    printed = compression.luc(table, sparsity=0.5, form="printed").sparsity
    np.testing.assert_allclose(printed, [0.25, 0.25, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"`form` must keep .* the block 3 a sparsity of 1.2\. Use form="):
        compression.luc(table, sparsity=0.6, form="printed")
    with pytest.raises(ValueError, match=r"at most the cap, 0.75, but gives the block 3 a sparsity of 1\. "):
        compression.luc(table, sparsity=0.5, form="printed", cap=0.75)
    assert compression.luc(table, sparsity=0.6, form="insensitivity").sparsity.max() <= 1.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"form": "paper"}, "`form` must be one of insensitivity, printed"),
        ({"bits": 8}, "`bits` must"),
        ({"sparsity": 1.1}, "`sparsity` must"),
        ({"sparsity": 0.5, "cap": 0.4}, "`sparsity` must"),
    ],
)
def test_wrong_use_is_refused(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        compression.luc(_table(np.ones(3), np.ones(3)), **given)


@pytest.mark.parametrize("pruning", [np.ones(4), np.array([1.0, np.inf, 2.0]), np.array([1.0, np.nan, 2.0])])
def test_a_table_that_is_no_table_is_refused(pruning) -> None:
    with pytest.raises(ValueError, match=r"`table\.pruning` must"):
        compression.luc(_table(np.ones(3), pruning))


def test_what_has_no_blocks_or_parts_of_unlike_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`table\.quantisation` must have shape"):
        compression.luc(_table(np.ones(0), np.ones(0)))
    with pytest.raises(ValueError, match=r"`policy\.sparsity` must have shape"):
        compression.random(jax.random.key(0), compression.Policy(np.full(3, 4), np.full(4, 0.5)))


@pytest.mark.parametrize("num", range(3, 40))
def test_equal_blocks_reach_the_cap_and_not_beyond(num) -> None:
    equal = np.full(num, 1.0 / 3.0)
    assert compression.luc(_table(equal, equal), sparsity=1.0, form="printed").sparsity.max() <= 1.0
