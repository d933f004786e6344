"""Ranges of the converters of one chip, from a batch of typical inputs."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks
from nvcim_jax.crossbar.chip import Chip
from nvcim_jax.crossbar.converters import check_inputs
from nvcim_jax.crossbar.product import array_outputs, array_voltages, driven, reads
from nvcim_jax.types import Key, PyTree

__all__ = ["calibrate"]


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
    checks.key("key", key)
    config = chip.config
    if "calibrated" not in (config.dac_range, config.adc_range):
        checks.fail("chip", "have dac_range or adc_range 'calibrated'", "has neither", "The call would do nothing.")
    checks.number("quantile", quantile, low=0.5, high=1.0, low_open=True)
    check_inputs(x, chip.num_rows, chip.dac_max, config)
    x = jnp.asarray(x, jnp.float32).reshape(-1, chip.num_rows)
    if config.dac_range == "calibrated":
        largest = jnp.quantile(jnp.abs(x), quantile)
        chip = dataclasses.replace(chip, dac_max=jnp.where(largest > 0, largest, 1.0))
    if config.adc_range == "calibrated":
        chip = dataclasses.replace(chip, adc_range=_calibrated_outputs(key, x, chip, quantile))
    return chip


def _calibrated_outputs(key: Key, x: jax.Array, chip: Chip, quantile: float) -> Float[Array, "arrays 2"]:
    """Return the ranges that hold the wanted share of the outputs of each array."""
    config, num_cols = chip.config, chip.scale.shape[0]
    drive = driven(x, chip, chip.cells.g.shape, None)
    array_lines, arrays = reads(key, chip)

    def bounds(inputs: tuple[jax.Array, PyTree]) -> jax.Array:
        a, cells = inputs
        v = array_outputs(array_lines(a, cells), array_voltages(a, drive, config), config, num_cols)
        if config.adc_code == "symmetric":
            high = jnp.quantile(jnp.abs(v), quantile)
            return jnp.stack([-high, high])
        return jnp.quantile(v, jnp.asarray([1.0 - quantile, quantile]))

    found = lax.map(bounds, (jnp.arange(chip.gain.shape[0]), arrays))
    empty = found[:, 1] <= found[:, 0]
    return jnp.where(empty[:, None], jnp.asarray([-1.0, 1.0]), found)
