"""Figures from saved records: column width, legible in print, safe for colour-blind readers."""

from nvcim_jax.plots.figure import COLOURS, MARKERS, new_figure, png
from nvcim_jax.plots.product import Curve, error_curves, error_distribution, error_groups

__all__ = [
    "COLOURS",
    "MARKERS",
    "Curve",
    "error_curves",
    "error_distribution",
    "error_groups",
    "new_figure",
    "png",
]
