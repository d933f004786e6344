"""What a crossbar is made of: the static options, which of them go together, and the geometry that follows."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import jax

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["Config", "Converters", "Geometry", "geometry"]

MAPPINGS = ("differential", "offset", "offset_digital")
_LAYOUT_CHOICES = {
    "mapping": MAPPINGS,
    "weight_scale": ("tensor", "column"),
    "slices": ("arrays", "rows", "columns"),
    "noise": ("cell", "value"),
}
_CONVERTER_CHOICES = {
    "dac_range": ("absmax", "fixed", "calibrated"),
    "adc_range": ("absmax", "max", "fixed", "calibrated"),
}
CODES = ("symmetric", "uniform")
Code: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
MAX_BITS = 24  # integers of more bits are not exact in float32
_IDEAL = "Use None for the ideal case."


@checks.frozen_config
class Converters:
    """Static options of one read: how inputs become voltages, and outputs codes.

    A chip is read with those of its `Config`, or with others given to `matmul`: they are free from read to read, where
    the layout is fixed by writing.

    Args:
        dac_bits: Bits of an input, its sign included, 2 to 24; None for no rounding.
        dac_range: Full scale of the inputs: `absmax` of the part of a vector that meets an array, `fixed` (given to
            `program` as `dac_max`), or `calibrated` (by `calibrate`).
        dac_bits_per_cycle: Bits of an input applied at a time, each followed by a conversion; 1 is bit-serial,
            None is all at once.
        adc_bits: Bits of a conversion, 2 to 24 (1 where the code is not `symmetric`); None for no rounding and no
            saturation.
        adc_range: Full scale of the conversions of each array (row tile and column tile) and slice: `absmax` of the
            read (an auto-ranging converter: optimistic, needs no number), `max` (the largest output that the array can
            have without noise; with noise look at `info.adc_saturated`), `fixed` (given to `program` as `adc_max`), or
            `calibrated` (a quantile, by `calibrate`).
        adc_code: `symmetric`: 2**adc_bits - 1 codes with one for zero; `uniform`: 2**adc_bits codes, both ends among
            them; or a function `code(v, low, high, adc_bits)` of one's own, which returns the outputs v (batch, lines)
            as the converter gives them, in their unit, when its range is [low, high] (each (1 or batch, lines)).
            Saturation and the gradient through rounding are its own (`ops.clip_inclusive`,
            `ops.round_straight_through`); it is static as every option is: another function is another program.
        adc_before_subtraction: Convert the two halves of a pair (the data and the reference column) apart and subtract
            digitally, instead of subtracting currents. With `offset_digital` it is always so.

    Raises:
        TypeError: If an option does not exist; the message suggests the nearest.
        ValueError: If an option has no such value, or does not go together with another.

    Example:
        >>> Config(rows=64, adc_bits=8).converters == Converters(adc_bits=8)
        True
    """

    dac_bits: int | None = None
    dac_range: str = "absmax"
    dac_bits_per_cycle: int | None = None
    adc_bits: int | None = None
    adc_range: str = "absmax"
    adc_code: str | Code = "symmetric"
    adc_before_subtraction: bool = False

    def __post_init__(self) -> None:
        """Check every option, then those that may not go together."""
        _check_choices(self, _CONVERTER_CHOICES)
        _check_code(self.adc_code)
        least = 2 if self.adc_code == "symmetric" else 1
        _check_integers(self, {"dac_bits": 2, "dac_bits_per_cycle": 1, "adc_bits": least})
        if self.dac_bits_per_cycle is not None and self.dac_bits is None:
            checks.fail("dac_bits", "be given with dac_bits_per_cycle", "is None", "Give the bits of an input.")
        if self.dac_bits is not None and (self.dac_bits_per_cycle or 1) > self.dac_bits - 1:
            checks.fail(
                "dac_bits_per_cycle",
                f"be at most dac_bits - 1 = {self.dac_bits - 1} (the sign is applied with every cycle)",
                f"is {self.dac_bits_per_cycle}",
            )
        for kind in ("dac", "adc"):
            if getattr(self, f"{kind}_range") != "absmax" and getattr(self, f"{kind}_bits") is None:
                checks.fail(
                    f"{kind}_range",
                    f"be left at 'absmax' without {kind}_bits",
                    f"is {getattr(self, f'{kind}_range')!r}",
                    f"An ideal converter has no range: give {kind}_bits.",
                )


@checks.frozen_config
class Config:
    """Static options of a crossbar: its layout, fixed when it is written, and the converters that it is read with.

    Every option that is `None` is ideal.

    Args:
        rows: Word lines of one array; None for as many as the matrix has rows.
        cols: Bit lines of one array; None for as many as are needed.
        mapping: How a signed weight becomes conductances. `differential`: a pair of cells, one of which is at the
            lowest level; `offset`: one cell, and a reference column of cells at the level of zero in every array;
            `offset_digital`: one cell, and the offset subtracted digitally, a known constant times the sum of inputs.
        weight_bits: Bits of a weight, its sign included, 2 to 24; None for analog weights.
        cell_bits: Bits of one cell, 1 to 24; None for analog cells. A weight of more bits is sliced over
            several cells: ceil((weight_bits - 1) / cell_bits) with `differential`, ceil(weight_bits / cell_bits)
            with an offset. Without `weight_bits` there is one cell a weight, of 2**cell_bits levels.
        weight_scale: One scale for the `tensor` or one for each `column`.
        slices: Where the slices of a weight lie: in separate `arrays`, on neighbouring `rows` of one array (read
            one slice at a time), or on neighbouring `columns` of one array, the two cells of a pair among them.
        noise: `cell`: every cell is programmed with the noise of its own level; `value`: the NVCiM-PT group's noise on
            the stored values (`devices.value_noise`), whatever cells hold them.
        dac_bits: Bits of an input, its sign included; this and what follows as in `Converters`.
        dac_range: Full scale of the inputs: `absmax`, `fixed`, `calibrated`.
        dac_bits_per_cycle: Bits of an input applied at a time; None for all at once.
        adc_bits: Bits of a conversion; None for no rounding.
        adc_range: Full scale of the conversions: `absmax`, `max`, `fixed`, `calibrated`.
        adc_code: `symmetric` or `uniform` codes, or a function of one's own.
        adc_before_subtraction: Convert the two halves of a pair apart and subtract digitally.

    Raises:
        TypeError: If an option does not exist; the message suggests the nearest.
        ValueError: If an option has no such value, or does not go together with another.

    Example:
        >>> config = Config(rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows")
        >>> geometry((48, 128), config).num_slices
        8
    """

    rows: int | None = None
    cols: int | None = None
    mapping: str = "differential"
    weight_bits: int | None = None
    cell_bits: int | None = None
    weight_scale: str = "tensor"
    slices: str = "arrays"
    noise: str = "cell"
    dac_bits: int | None = None
    dac_range: str = "absmax"
    dac_bits_per_cycle: int | None = None
    adc_bits: int | None = None
    adc_range: str = "absmax"
    adc_code: str | Code = "symmetric"
    adc_before_subtraction: bool = False

    @property
    def converters(self) -> Converters:
        """The converters that a chip is read with where no others are given."""
        return Converters(**{name: getattr(self, name) for name in _CONVERTERS})

    def __post_init__(self) -> None:
        """Check every option, then every pair of options that may not go together."""
        _check_choices(self, _LAYOUT_CHOICES)
        _check_integers(self, {"rows": 1, "cols": 1, "weight_bits": 2, "cell_bits": 1})
        _ = self.converters  # which checks its own
        self._check_cells()
        self._check_array()
        if self.noise == "value":
            for name, needed in (("mapping", "differential"), ("adc_before_subtraction", False)):
                if getattr(self, name) != needed:
                    fix = "Value-level noise knows no single cells."
                    checks.fail(name, f"be {needed!r} with noise='value'", f"is {getattr(self, name)!r}", fix)

    def _check_cells(self) -> None:
        if self.mapping != "differential" and self.weight_bits is None and self.cell_bits == 1:
            checks.fail(
                "cell_bits",
                f"be at least 2 with mapping {self.mapping!r} and no weight_bits",
                "is 1",
                "Two levels leave none for zero: raise cell_bits, give weight_bits, or use mapping='differential'.",
            )

    def _check_array(self) -> None:
        # every slice that lies in the array has a reference column of its own
        per_value = _lines_per_column(self) + (1 if self.mapping == "offset" else 0)
        per_value *= num_slices(self) if self.slices == "columns" else 1
        if self.cols is not None and self.cols < per_value:
            checks.fail("cols", f"be at least {per_value} to hold one column of weights", f"is {self.cols}")
        if self.rows is not None and self.slices == "rows" and self.rows < num_slices(self):
            checks.fail("rows", f"hold the {num_slices(self)} slices of a weight", f"is {self.rows}")


_CONVERTERS = tuple(field.name for field in dataclasses.fields(Converters))  # type: ignore[arg-type]


def _check_choices(options: Any, known: dict[str, tuple[str, ...]]) -> None:
    for name, values in known.items():
        checks.choice(name, getattr(options, name), values)


def _check_code(code: Any) -> None:
    """Check a code of the converters: a name, or a function that can be part of static options."""
    if isinstance(code, str):
        checks.choice("adc_code", code, CODES)
    elif not callable(code):
        checks.fail("adc_code", f"be one of {', '.join(CODES)}, or a function", f"is {checks.shown(code)}")
    elif not _is_hashable(code):
        fix = "Bind its numbers as Python numbers, by functools.partial."
        checks.fail("adc_code", "be a function that can be hashed", f"a {type(code).__name__} holds arrays", fix)


def _is_hashable(code: Any) -> bool:
    """Return whether options that hold this can be compared and compiled for."""
    try:
        hash(code)
    except TypeError:
        return False
    return isinstance(code, Hashable)


def _check_integers(options: Any, lowest: dict[str, int]) -> None:
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None:
            checks.integer(name, value, low=low, high=MAX_BITS if "bits" in name else None, fix=_IDEAL)


def reading(config: Config, converters: Converters | None) -> Config:
    """Return the options of one read: the layout as it was written, and the converters of this read.

    Raises:
        ValueError: If they do not go together with the layout.
    """
    if converters is None:
        return config
    return replace(config, **{name: getattr(converters, name) for name in _CONVERTERS})


def layout(config: Config) -> Config:
    """Return the options with ideal converters: what reads none of them is compiled once for all of them."""
    return reading(config, Converters())


@checks.frozen_config
class Geometry:
    """Sizes that follow from a matrix and a `Config`.

    Attributes:
        num_rows: Rows K of the matrix.
        num_cols: Columns N of the matrix.
        num_slices: Cells S over which a weight (one half of a pair) is spread.
        slices: Where they lie, as in `Config`.
        tile_rows: Rows R of the matrix that one array holds.
        num_row_tiles: Arrays T needed for all rows; the last may be partly used.
        tile_cols: Columns of the matrix that one array holds.
        num_col_tiles: Arrays needed for all columns.
        num_references: Reference columns (one for each column tile with `offset`, else 0).
        array_rows: Word lines of one physical array, used or not.
        array_cols: Bit lines of one physical array, used or not.
        rows_per_array: Rows of a matrix for which one physical array has room; `tile_rows` of them are used at most.
        cols_per_array: Columns of a matrix for which it has room.
    """

    num_rows: int
    num_cols: int
    num_slices: int
    slices: str
    tile_rows: int
    num_row_tiles: int
    tile_cols: int
    num_col_tiles: int
    num_references: int
    array_rows: int
    array_cols: int
    rows_per_array: int
    cols_per_array: int


@checked
def geometry(shape: tuple[int, int], config: Config) -> Geometry:
    """Return how a matrix is cut into arrays; remainder rows and columns take arrays of their own.

    Args:
        shape: (rows, cols) of the matrix.
        config: Options of the crossbar.

    Returns:
        The sizes.

    Example:
        >>> geometry((300, 40), Config(rows=256, cols=128, weight_bits=8, cell_bits=2)).num_row_tiles
        2
    """
    num_rows, num_cols = shape
    slices = num_slices(config)
    on_rows = slices if config.slices == "rows" else 1  # word lines of one row of weights
    on_cols = _lines_per_column(config) * (slices if config.slices == "columns" else 1)
    references = 1 if config.mapping == "offset" else 0  # one for each slice that lies in the array
    slices_across = slices if config.slices == "columns" else 1
    rows_per_array = num_rows if config.rows is None else config.rows // on_rows
    cols_per_array = num_cols if config.cols is None else config.cols // on_cols - references
    tile_rows, tile_cols = min(rows_per_array, num_rows), min(cols_per_array, num_cols)
    num_col_tiles = -(-num_cols // tile_cols)
    return Geometry(
        num_rows=num_rows,
        num_cols=num_cols,
        num_slices=slices,
        slices=config.slices,
        tile_rows=tile_rows,
        num_row_tiles=-(-num_rows // tile_rows),
        tile_cols=tile_cols,
        num_col_tiles=num_col_tiles,
        num_references=references * num_col_tiles,
        array_rows=config.rows or num_rows * on_rows,
        array_cols=config.cols or num_cols * on_cols + references * slices_across,
        rows_per_array=rows_per_array,
        cols_per_array=cols_per_array,
    )


def code_bits(config: Config) -> int | None:
    """Return the bits of the unsigned code that the cells of a weight hold; None if it is analog."""
    if config.weight_bits is None:
        return config.cell_bits
    return config.weight_bits - 1 if config.mapping == "differential" else config.weight_bits


def num_slices(config: Config) -> int:
    """Return over how many cells the code of a weight is spread."""
    bits = code_bits(config)
    if bits is None or config.cell_bits is None:
        return 1
    return -(-bits // config.cell_bits)


def stored_slices(config: Config) -> int:
    """Return the slices that are kept apart in a simulation: one where the noise is on values."""
    return 1 if config.noise == "value" else num_slices(config)


def num_planes(config: Config) -> int:
    """Return the parts in which an input is applied, one a cycle."""
    if config.dac_bits is None or config.dac_bits_per_cycle is None:
        return 1
    return -(-(config.dac_bits - 1) // config.dac_bits_per_cycle)


def cell_steps(config: Config) -> float:
    """Return the steps between the lowest and the highest level of one cell; 1 for an analog code.

    A cell with more levels than the code has uses as many as the code, over its whole range.
    """
    bits = code_bits(config)
    if config.noise == "value":
        return float(magnitude_steps(config))
    if config.cell_bits is not None and bits is not None:
        bits = min(bits, config.cell_bits)
    return 1.0 if bits is None else float(2**bits - 1)


def slice_base(config: Config) -> int:
    """Return the digital weight of a slice relative to the one below it; 1 where there is one slice."""
    return 1 if stored_slices(config) == 1 else 2 ** int(config.cell_bits or 0)


def magnitude_steps(config: Config) -> float:
    """Return the code of the largest weight less the code of zero; 1 for an analog code."""
    bits = code_bits(config)
    if bits is None:
        return 1.0 if config.mapping == "differential" else 0.5
    return float(2**bits - 1) if config.mapping == "differential" else float(2 ** (bits - 1) - 1)


def zero_code(config: Config) -> float:
    """Return the code of a zero weight."""
    bits = code_bits(config)
    if config.mapping == "differential":
        return 0.0
    return 0.5 if bits is None else float(2 ** (bits - 1))


def _lines_per_column(config: Config) -> int:
    """Return the bit lines that one column of weights takes in an array, of one slice."""
    return 2 if config.mapping == "differential" and config.slices == "columns" else 1


def replace(config: Config, **changes: object) -> Config:
    """Return the configuration with some options changed, checked again."""
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
