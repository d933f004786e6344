"""The bit lines of one array: which columns they carry, what is subtracted, and which physical array they lie in."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvcim_jax.crossbar.config import Config, Geometry, geometry

__all__ = [
    "bit_lines",
    "by_tiles",
    "converts_lines",
    "largest_of_tiles",
    "signed_cells",
    "spread_over_lines",
    "subtract_lines",
]


def converts_lines(config: Config) -> bool:
    """Return whether every bit line is converted by itself, and subtracted after."""
    return config.adc_before_subtraction and config.mapping != "offset_digital"


def subtract_lines(lines: Float[Array, "... lines"], config: Config, num_cols: int) -> Float[Array, "... cols"]:
    """Subtract what a column is measured against: the other half of its pair, or the reference column of its array.

    Works on conductances and on outputs alike; `offset_digital` has nothing to subtract here.
    """
    if config.mapping == "differential":
        return lines[..., :num_cols] - lines[..., num_cols:]
    if config.mapping == "offset":
        tile = np.arange(num_cols) // geometry((1, num_cols), config).tile_cols
        return lines[..., :num_cols] - lines[..., num_cols + tile]
    return lines


def bit_lines(halves: Sequence[Float[Array, "tile_rows lines"]]) -> Float[Array, "tile_rows all_lines"]:
    """Return the conductances of one array side by side, as its bit lines: [plus | minus], or [data | references]."""
    return halves[0] if len(halves) == 1 else jnp.concatenate(list(halves), axis=1)


def signed_cells(
    halves: Sequence[Float[Array, "tile_rows lines"]], config: Config, num_cols: int
) -> Float[Array, "tile_rows cols"]:
    """Return what one array multiplies with after its subtraction."""
    if len(halves) == 2:
        return halves[0] - halves[1]
    if config.mapping == "differential":
        return halves[0]  # already the difference: value-level noise, or one draw a pair
    return subtract_lines(halves[0], config, num_cols)


def by_tiles(v: Float[Array, "vectors lines"], config: Config, num_cols: int) -> Float[Array, "col_tiles n"]:
    """Return the outputs of each column tile, those of both halves of a pair or of its reference column among them.

    NaN fills up the rows of tiles with fewer columns.
    """
    columns = _columns(config, num_cols)
    tiles = columns.num_col_tiles
    if tiles == 1:
        return v.reshape(1, -1)
    missing = tiles * columns.tile_cols - num_cols
    parts = []
    while v.shape[1] >= num_cols:
        data, v = v[:, :num_cols], v[:, num_cols:]
        whole = jnp.pad(data, ((0, 0), (0, missing)), constant_values=jnp.nan)
        parts.append(whole.reshape(-1, tiles, columns.tile_cols))
    if v.shape[1]:  # reference columns, one a tile
        parts.append(v[:, :, None])
    return jnp.moveaxis(jnp.concatenate(parts, axis=2), 1, 0).reshape(tiles, -1)


def largest_of_tiles(
    sizes: Float[Array, "vectors lines"], config: Config, num_cols: int
) -> Float[Array, "vectors col_tiles"]:
    """Return the largest entry, at least 0, of each vector in each column tile, over the lines that are converted."""
    tiles = _columns(config, num_cols).num_col_tiles
    if tiles == 1:
        return jnp.max(sizes, axis=1, keepdims=True)
    parts = by_tiles(sizes, config, num_cols).reshape(tiles, sizes.shape[0], -1)
    return jnp.nanmax(parts, axis=2).T


def spread_over_lines(
    values: Float[Array, "vectors col_tiles"], config: Config, num_cols: int
) -> Float[Array, "vectors ..."]:
    """Return for each line that is converted the value of its column tile; one column where all have one value."""
    columns = _columns(config, num_cols)
    if values.shape[1] == 1:
        return values
    data = jnp.repeat(values, columns.tile_cols, axis=1)[:, :num_cols]
    if not converts_lines(config):
        return data
    return jnp.concatenate([data, data if config.mapping == "differential" else values], axis=1)


def _columns(config: Config, num_cols: int) -> Geometry:
    return geometry((1, num_cols), config)
