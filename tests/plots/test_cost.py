"""Figures of costs: what is drawn is what was given."""

import numpy as np
import pytest

from nvcim_jax import plots


def test_curves_have_bands_and_levels_are_dashed() -> None:
    x = np.array([1.0, 10.0, 100.0])
    curves = [
        plots.CostCurve("chip", x, x, x / 2, 2 * x),
        plots.CostCurve("120 x", x, 120 * x, x, x, dashed=True),
    ]
    axes = plots.cost_curves(curves, xlabel="stored prompts", ylabel="latency (us)").axes[0]
    assert [line.get_label() for line in axes.lines] == ["chip", "120 x"]
    assert len(axes.collections) == 1
    assert axes.get_xscale() == axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="`curves` must hold 1 to"):
        plots.cost_curves([], xlabel="x", ylabel="y")


def test_bars_stack_to_their_totals_and_small_items_join() -> None:
    bills = {"a": {"converters": 3.0, "cells": 1.0, "buffers": 0.001, "select": 0.002}, "b": {"converters": 8.0}}
    axes = plots.cost_bars(bills, xlabel="energy (nJ)").axes[0]
    ends = np.array([[bar.get_x() + bar.get_width() for bar in group] for group in axes.containers])
    np.testing.assert_allclose(ends.max(axis=0), [4.003, 8.0])
    assert [group.get_label() for group in axes.containers] == ["converters", "cells", "rest"]
    with pytest.raises(ValueError, match="`bills` must hold"):
        plots.cost_bars({}, xlabel="x")


def test_sensitivities_are_sorted_by_size() -> None:
    axes = plots.cost_sensitivities({"a": 0.1, "b": -0.9, "c": 0.5}, xlabel="slope", most=2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c"]


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    cost, quality = rng.uniform(size=50), rng.uniform(size=50)
    kept = plots.frontier(cost, quality)
    for i in range(50):
        beaten = bool(np.any((cost < cost[i]) & (quality >= quality[i])))
        assert (i in kept) != beaten
    groups = [plots.Frontier("a", cost, quality, 0 * cost, cost / 2, 2 * cost)]
    axes = plots.cost_frontier(groups, xlabel="energy", ylabel="accuracy", floor=(0.5, "chance")).axes[0]
    joined = next(line for line in axes.lines if line.get_label() == "not beaten")
    np.testing.assert_allclose(joined.get_ydata(), quality[kept])
    bands = next(c for c in axes.collections if c.get_label() == "5-95 % of its cost")
    np.testing.assert_allclose(
        [path.vertices[:, 0] for path in bands.get_paths()], [[c / 2, 2 * c] for c in cost[kept]]
    )
    with pytest.raises(ValueError, match="`groups` must hold 1 to"):
        plots.cost_frontier([], xlabel="x", ylabel="y")
