"""The product that every tool computes: one batch on freshly programmed chips.

Cells are programmed with Gaussian noise of 5 % of g_max on both cells of a pair, cut at 0; inputs have 8 bits, every
array of at most 256 rows is converted by 8 bits over [-12, 12], and the arrays are added up digitally.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["ADC_MAX", "BITS", "SHAPES", "SIGMA", "Shape", "inputs_and_weights"]

SIGMA = 0.05
ADC_MAX = 12.0
BITS = 8


class Shape(NamedTuple):
    """Sizes of one product.

    Attributes:
        rows: Inputs of the matrix.
        cols: Outputs.
        tile_rows: Rows of one array.
        batch: Vectors that share a chip.
        chips: Chips made in one sample of the clock.
    """

    rows: int
    cols: int
    tile_rows: int
    batch: int
    chips: int


SHAPES = {
    "1024x1024": Shape(1024, 1024, 256, 64, 16),
    "384x128": Shape(384, 128, 192, 64, 128),
    "tiny": Shape(64, 16, 32, 8, 2),
}


def inputs_and_weights(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs (batch, rows) in [-1, 1] and weights (rows, cols), float32, always the same."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((shape.rows, shape.cols)) / np.sqrt(shape.rows)
    inputs = np.clip(random.standard_normal((shape.batch, shape.rows)) / 3.0, -1.0, 1.0)
    return inputs.astype(np.float32), weights.astype(np.float32)
