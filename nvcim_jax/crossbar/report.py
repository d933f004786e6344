"""What a matrix takes on silicon: arrays, cells, and the operations of one product, counted from the options alone."""

from typing import NamedTuple

from nvcim_jax import checks
from nvcim_jax.crossbar.config import Config, Geometry, geometry, num_planes
from nvcim_jax.signature import checked

__all__ = ["Report", "report"]


class Report(NamedTuple):
    """Hardware that one matrix takes, and the operations of its product with one input vector.

    Attributes:
        num_arrays: Physical arrays, those of remainder rows and columns among them.
        array_rows: Word lines of one array.
        array_cols: Bit lines of one array.
        num_weight_cells: Cells that hold weights: every slice, and both cells of a pair.
        num_reference_cells: Cells of the reference columns.
        num_cells_available: Cells of all arrays.
        utilisation: Share of the available cells that hold weights or references, in (0, 1].
        num_cycles: Reads of one array after another: one for each part of an input, and with `slices="rows"` for each
            slice.
        num_dac_operations: Word lines driven, over all arrays and cycles; an input that meets several arrays is
            counted in each.
        num_adc_conversions: Outputs converted, over all arrays and cycles; counted for an ideal converter too.
    """

    num_arrays: int
    array_rows: int
    array_cols: int
    num_weight_cells: int
    num_reference_cells: int
    num_cells_available: int
    utilisation: float
    num_cycles: int
    num_dac_operations: int
    num_adc_conversions: int

    @property
    def num_cells_used(self) -> int:
        """Cells that hold weights or references."""
        return self.num_weight_cells + self.num_reference_cells


@checked
def report(shape: tuple[int, ...], config: Config) -> Report:
    """Count the arrays, the cells and the operations that a matrix takes.

    With S slices and H cells of a pair (1 for an offset), the weights take K N S H cells. Arrays hold the halves of a
    pair apart, and with `slices="arrays"` each slice apart: T_rows T_cols S H of them; `rows` puts the slices in one
    array, `columns` the slices and halves.

    Args:
        shape: (rows, cols) of the matrix, each at least 1.
        config: Options of the crossbar.

    Returns:
        The counts.

    Raises:
        ValueError: If the shape is not two positive integers.

    Example:
        >>> config = Config(rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows")
        >>> found = report((48, 128), config)  # 48 values x 8 slices are the 384 rows, of a plus and a minus array
        >>> print(found.num_arrays, found.num_cells_used, 2 * 384 * 128, found.utilisation)
        2 98304 98304 1.0
    """
    _check_shape(shape)
    sizes = geometry((shape[0], shape[1]), config)
    halves = 2 if config.mapping == "differential" else 1
    slices = sizes.num_slices
    apart = {"arrays": slices * halves, "rows": halves, "columns": 1}[config.slices]
    num_arrays = sizes.num_row_tiles * sizes.num_col_tiles * apart
    available = num_arrays * sizes.array_rows * sizes.array_cols
    weight_cells = sizes.num_rows * sizes.num_cols * slices * halves
    reference_cells = sizes.num_rows * sizes.num_references * slices
    planes = num_planes(config)
    drives = {"arrays": slices * halves, "rows": slices * halves, "columns": 1}[config.slices]
    return Report(
        num_arrays=num_arrays,
        array_rows=sizes.array_rows,
        array_cols=sizes.array_cols,
        num_weight_cells=weight_cells,
        num_reference_cells=reference_cells,
        num_cells_available=available,
        utilisation=(weight_cells + reference_cells) / available,
        num_cycles=planes * (slices if config.slices == "rows" else 1),
        num_dac_operations=sizes.num_rows * sizes.num_col_tiles * drives * planes,
        num_adc_conversions=sizes.num_row_tiles * slices * planes * _converted_lines(sizes, config),
    )


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        checks.fail("shape", "be (rows, cols) of a matrix", f"is {tuple(shape)}")
    for size in shape:
        checks.integer("shape", size)


def _converted_lines(sizes: Geometry, config: Config) -> int:
    """Return the outputs that are converted for one row tile, slice and part of an input."""
    if not config.adc_before_subtraction or config.mapping == "offset_digital":
        return sizes.num_cols
    return 2 * sizes.num_cols if config.mapping == "differential" else sizes.num_cols + sizes.num_references
