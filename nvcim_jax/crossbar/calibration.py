"""Ranges of the converters of one chip, or of all chips of a network, from a batch of typical inputs."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks
from nvcim_jax.crossbar.chip import Chip
from nvcim_jax.crossbar.config import Converters
from nvcim_jax.crossbar.converters import check_inputs
from nvcim_jax.crossbar.lines import by_tiles
from nvcim_jax.crossbar.network import OnChip, key_bits, leaves_on_chips, map_on_chips, path_number
from nvcim_jax.crossbar.product import array_outputs, array_voltages, driven, reads
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["calibrate", "calibrate_network"]


@checked
def calibrate(
    key: Key,
    x: Num[ArrayLike, "..."],
    chip: Chip,
    *,
    quantile: float = 0.9995,
) -> Chip:
    """Set the ranges of the converters from a batch of typical inputs.

    The full scale of the inputs becomes that quantile of |x|; of the conversions of each array and slice, that
    quantile of |output| (`symmetric`), or the quantiles 1 - q and q of the outputs (`uniform`), over the batch, the
    cycles and the columns, on this chip with its noise.

    Args:
        key: Key of the read.
        x: Typical inputs (..., rows).
        chip: The chip, whose `dac_range` or `adc_range` is "calibrated".
        quantile: Share of values within the range, in (0.5, 1].

    Returns:
        The chip with its ranges set.

    Raises:
        ValueError: If nothing is to be calibrated, or an argument is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("ideal"), crossbar.Config(dac_bits=8, dac_range="calibrated")
        >>> chip = crossbar.program(jax.random.key(0), jnp.eye(4), device, config=config)
        >>> x = jnp.array([[0.5, -2.0, 1.0, 0.0]])
        >>> print(crossbar.calibrate(jax.random.key(1), x, chip, quantile=1.0).dac_max)
        2.0
    """
    config = chip.config
    if "calibrated" not in (config.dac_range, config.adc_range):
        checks.fail("chip", "have dac_range or adc_range 'calibrated'", "has neither", "The call would do nothing.")
    checks.number("quantile", quantile, low=0.5, high=1.0, low_open=True)
    check_inputs(x, chip.num_rows, chip.dac_max, config)
    x = jnp.asarray(x, jnp.float32).reshape(-1, chip.num_rows)
    if config.dac_range == "calibrated":
        largest = jnp.quantile(jnp.abs(x), jnp.asarray(quantile, x.dtype))
        chip = dataclasses.replace(chip, dac_max=jnp.where(largest > 0, largest, 1.0))
    if config.adc_range == "calibrated":
        chip = dataclasses.replace(chip, adc_range=_calibrated_outputs(key, x, chip, quantile))
    return chip


def _calibrated_outputs(key: Key, x: jax.Array, chip: Chip, quantile: float) -> Float[Array, "arrays col_tiles 2"]:
    """Return the ranges that hold the wanted share of the outputs of each array and column tile."""
    config, num_cols = chip.config, chip.scale.shape[0]
    drive = driven(x, chip, chip.cells.g.shape, None)
    array_lines, arrays = reads(key, chip)

    def bounds(inputs: tuple[jax.Array, PyTree]) -> jax.Array:
        a, cells = inputs
        v = array_outputs(array_lines(a, cells), array_voltages(a, drive, config), config, num_cols)
        tiles = by_tiles(v, config, num_cols)
        if config.adc_code == "symmetric":
            high = _quantiles(jnp.abs(tiles), [quantile])[0]
            return jnp.stack([-high, high], axis=1)
        return _quantiles(tiles, [1.0 - quantile, quantile]).T

    return _with_extent(lax.map(bounds, (jnp.arange(chip.gain.shape[0]), arrays)))


def _quantiles(values: Float[Array, "tiles n"], at: list[float]) -> Float[Array, "q tiles"]:
    """Return quantiles of the entries of each tile; entries that are NaN only fill its row."""
    return jnp.nanquantile(values, jnp.asarray(at, values.dtype), axis=1)


def _with_extent(found: Float[Array, "arrays col_tiles 2"]) -> Float[Array, "arrays col_tiles 2"]:
    """Widen ranges without extent: to [-|v|, |v|] around one value, to [-1, 1] where there is nothing to measure."""
    size = jnp.max(jnp.abs(found), axis=-1, keepdims=True)
    size = jnp.where(size > 0, size, 1.0)
    empty = found[..., 1:] <= found[..., :1]
    return jnp.where(empty, jnp.concatenate([-size, size], axis=-1), found)


@checked
def calibrate_network(key: Key, run: Callable[[PyTree], Any], params: PyTree, *, quantile: float = 0.9995) -> PyTree:
    """Set the converter ranges of all chips of a network from what they see of a batch of typical inputs.

    The network runs once on the chips, with converters that neither round nor clip, and the inputs of every product are
    noted; then each chip is calibrated as `calibrate` says. It works with values, so it cannot stand inside jit; for
    many chips, calibrate one set and hand it on: `on_chip(..., ranges=calibrated)`.

    Args:
        key: Key of the reads.
        run: Runs the network, such as `lambda params: quax.quaxify(model.apply)(params, x)`.
        params: A tree from `on_chip`, with `dac_range` or `adc_range` "calibrated".
        quantile: Share of values within a range, in (0.5, 1].

    Returns:
        The tree, with the ranges of its chips set.

    Raises:
        ValueError: If no leaf is on a chip, or `run` does not multiply with one of them.

    Example:
        >>> import jax, jax.numpy as jnp, quax
        >>> from nvcim_jax import crossbar, devices
        >>> config = crossbar.Config(dac_bits=8, dac_range="calibrated")
        >>> params = {"w": jnp.eye(4)}
        >>> chips = crossbar.on_chip(jax.random.key(0), params, devices.get("ideal"), config=config)
        >>> run = quax.quaxify(lambda params: jnp.array([[0.5, -2.0, 1.0, 0.0]]) @ params["w"])
        >>> print(crossbar.calibrate_network(jax.random.key(1), run, chips, quantile=1.0)["w"].chip.dac_max)
        2.0
    """
    seen: dict[tuple[str, bytes], list[np.ndarray]] = {}

    def watch(path: str, read: jax.Array, x: jax.Array) -> None:
        # a copy, since the memory of what is seen is used again
        seen.setdefault((path, np.asarray(read).tobytes()), []).append(np.array(x).reshape(-1, x.shape[-1]))

    leaves_on_chips(params)
    ideal = Converters()
    jax.block_until_ready(
        run(map_on_chips(lambda leaf: dataclasses.replace(leaf, converters=ideal, watch=watch), params))
    )
    jax.effects_barrier()

    def one(leaf: OnChip) -> OnChip:
        own = jax.random.fold_in(key, path_number(leaf.path))
        chips = []
        for layer, (read, chip) in enumerate(
            zip(_parts(key_bits(leaf.key), leaf), _parts(leaf.chip, leaf), strict=True)
        ):
            x = seen.get((leaf.path, np.asarray(read).tobytes()))
            if x is None:
                checks.fail("run", "multiply with every weight that is on a chip", f"leaves out {leaf.path!r}")
            chips.append(calibrate(jax.random.fold_in(own, layer), np.concatenate(x), chip, quantile=quantile))
        chip = jax.tree.map(lambda *parts: jnp.stack(parts), *chips) if leaf.num_stacked else chips[0]
        return dataclasses.replace(leaf, chip=chip)

    return map_on_chips(one, params)


def _parts(tree: PyTree, leaf: OnChip) -> list[PyTree]:
    """Return the parts of a stack, one by one."""
    if not leaf.num_stacked:
        return [tree]
    return [jax.tree.map(operator.itemgetter(layer), tree) for layer in range(leaf.shape[0])]
