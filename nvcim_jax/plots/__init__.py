"""Figures from saved records: column width, legible in print, safe for colour-blind readers."""

from nvcim_jax.plots import chips
from nvcim_jax.plots.cells import cell_levels, cell_quantiles, cell_spread, shown_time
from nvcim_jax.plots.cost import (
    CostCurve,
    Frontier,
    cost_bars,
    cost_curves,
    cost_frontier,
    cost_sensitivities,
    frontier,
)
from nvcim_jax.plots.figure import COLOURS, MARKERS, new_figure, png, style, svg
from nvcim_jax.plots.product import Curve, error_curves, error_distribution, error_groups
from nvcim_jax.plots.shift import Panel, accuracy_bars, accuracy_curves, shift_heatmaps

__all__ = [
    "COLOURS",
    "MARKERS",
    "CostCurve",
    "Curve",
    "Frontier",
    "Panel",
    "accuracy_bars",
    "accuracy_curves",
    "cell_levels",
    "cell_quantiles",
    "cell_spread",
    "chips",
    "cost_bars",
    "cost_curves",
    "cost_frontier",
    "cost_sensitivities",
    "error_curves",
    "error_distribution",
    "error_groups",
    "frontier",
    "new_figure",
    "png",
    "shift_heatmaps",
    "shown_time",
    "style",
    "svg",
]
