"""Arrays, cells and operations against counts made by hand, and against the arrays that the simulation lays out."""

import itertools
from typing import Any

import jax
import pytest

from nvcim_jax import crossbar, devices
from nvcim_jax.crossbar.report import report

# (config, shape) and by hand: arrays, weight cells, reference cells, available, cycles, DAC operations, ADC conversions
BY_HAND: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, ...]]] = {
    "the code of 48 values fills one pair of arrays": (
        {"rows": 384, "cols": 128, "weight_bits": 16, "cell_bits": 2, "slices": "rows"},
        (48, 128),
        # 15 bits are 8 slices; two arrays of 384 x 128; 8 reads of 48 rows in each; 128 outputs a read
        (2, 2 * 8 * 48 * 128, 0, 2 * 384 * 128, 8, 2 * 384, 8 * 128),
    ),
    "one value more takes another pair": (
        {"rows": 384, "cols": 128, "weight_bits": 16, "cell_bits": 2, "slices": "rows"},
        (49, 128),
        (4, 2 * 8 * 49 * 128, 0, 4 * 384 * 128, 8, 2 * 8 * 49, 2 * 8 * 128),
    ),
    "slices in arrays of their own": (
        {"rows": 384, "cols": 128, "weight_bits": 16, "cell_bits": 2, "slices": "arrays"},
        (48, 128),
        (16, 2 * 8 * 48 * 128, 0, 16 * 384 * 128, 1, 16 * 48, 8 * 128),
    ),
    "slices and pairs on columns: 16 bit lines a weight, 8 weights an array": (
        {"rows": 384, "cols": 128, "weight_bits": 16, "cell_bits": 2, "slices": "columns"},
        (48, 128),
        (16, 2 * 8 * 48 * 128, 0, 16 * 384 * 128, 1, 16 * 48, 8 * 128),
    ),
    "offset: a reference column in each of 2 x 2 tiles": (
        {"rows": 64, "cols": 64, "weight_bits": 8, "cell_bits": 4, "mapping": "offset"},
        (100, 70),
        # 2 slices; 63 columns of weights an array, so 2 column tiles; 2 row tiles of 64
        (8, 2 * 100 * 70, 2 * 100 * 2, 8 * 64 * 64, 1, 2 * 2 * 100, 2 * 2 * 70),
    ),
    "offset, slices on columns: every slice has its reference": (
        {"rows": 64, "cols": 64, "weight_bits": 8, "cell_bits": 4, "mapping": "offset", "slices": "columns"},
        (64, 62),
        # 64 / 2 - 1 = 31 weights and a reference in 64 bit lines
        (2, 2 * 64 * 62, 2 * 64 * 2, 2 * 64 * 64, 1, 2 * 64, 2 * 62),
    ),
    "digital offset, bit-serial inputs": (
        {
            "rows": 32,
            "cols": 16,
            "weight_bits": 4,
            "cell_bits": 2,
            "mapping": "offset_digital",
            "slices": "rows",
            "dac_bits": 5,
            "dac_bits_per_cycle": 1,
        },
        (40, 20),
        # 2 slices, 16 rows of weights an array: 3 row tiles, 2 column tiles; 4 parts of an input
        (6, 2 * 40 * 20, 0, 6 * 32 * 16, 8, 2 * 4 * 2 * 40, 3 * 2 * 4 * 20),
    ),
    "converters on both halves of a pair": (
        {"adc_bits": 8, "adc_before_subtraction": True},
        (10, 6),
        (2, 2 * 10 * 6, 0, 2 * 10 * 6, 1, 2 * 10, 12),
    ),
    "converters on the reference column too": (
        {"cols": 4, "mapping": "offset", "adc_bits": 8, "adc_before_subtraction": True},
        (10, 6),
        (2, 10 * 6, 2 * 10, 2 * 10 * 4, 1, 2 * 10, 6 + 2),
    ),
    "arrays larger than the matrix": (
        {"rows": 256, "cols": 256, "cell_bits": 2, "mapping": "offset_digital"},
        (3, 5),
        (1, 15, 0, 256 * 256, 1, 3, 5),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_made_by_hand(name: str) -> None:
    options, shape, expected = BY_HAND[name]
    found = report(shape, crossbar.Config(**options))
    assert (
        found.num_arrays,
        found.num_weight_cells,
        found.num_reference_cells,
        found.num_cells_available,
        found.num_cycles,
        found.num_dac_operations,
        found.num_adc_conversions,
    ) == expected
    assert found.utilisation == found.num_cells_used / expected[3]


@pytest.mark.parametrize(
    ("mapping", "slices", "sizes"),
    list(
        itertools.product(
            ("differential", "offset", "offset_digital"),
            ("arrays", "rows", "columns"),
            ({}, {"rows": 16, "cols": 20}),
        )
    ),
)
def test_it_counts_the_cells_that_are_simulated_and_never_more_than_there_are(
    mapping: str, slices: str, sizes: dict[str, Any]
) -> None:
    shape, device = (37, 23), devices.get("ideal")
    config = crossbar.Config(mapping=mapping, slices=slices, weight_bits=7, cell_bits=2, **sizes)
    found = report(shape, config)
    target = crossbar.encode(jax.numpy.ones(shape), device, config=config)
    arrays, halves, tile_rows, lines = target.conductance.shape
    row_tiles = crossbar.geometry(shape, config).num_row_tiles
    unused = (row_tiles * tile_rows - shape[0]) * (arrays // row_tiles) * halves * lines
    assert found.num_cells_used == target.conductance.size - unused
    assert found.num_cells_used <= found.num_cells_available
    if not sizes:
        assert found.utilisation == 1.0


def test_more_weights_never_take_fewer_cells_or_arrays() -> None:
    config = crossbar.Config(rows=48, cols=32, weight_bits=8, cell_bits=2, slices="rows")
    counts = [report((rows, 40), config) for rows in range(1, 60)]
    for fewer, more in itertools.pairwise(counts):
        assert more.num_cells_used > fewer.num_cells_used
        assert more.num_arrays >= fewer.num_arrays
        assert 0 < more.utilisation <= 1


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5), (0, 4), (3, -1)])
def test_a_shape_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Argument `shape` must"):
        report(shape, crossbar.Config())
