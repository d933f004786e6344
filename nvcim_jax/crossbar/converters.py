"""Digital to analog and back: inputs to the voltages of word lines, currents of bit lines to codes."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from nvcim_jax import checks, ops
from nvcim_jax.crossbar.config import MAX_BITS, Config, Converters, num_planes, reading
from nvcim_jax.crossbar.lines import largest_of_tiles, spread_over_lines
from nvcim_jax.types import Key

__all__ = ["BOUND_TO_RANGE", "Bits", "Dither", "Drive", "adc", "as_read", "check_bits", "check_inputs", "dac", "dither"]

Held = TypeVar("Held")
"""A `Chip` or a `Target`: what holds options and ranges."""

BOUND_TO_RANGE = {"dac": ("dac_range",), "adc": ("adc_range", "adc_code", "adc_before_subtraction")}
"""Options that a fixed or calibrated range is made for; bits may change."""

# Arrays fold in their numbers, 0, 1, ...; this is none of them.
_CONVERTERS = 2**32 - 1


@struct.dataclass
class Bits:
    """Bits of the converters as traced real numbers, in place of those of `Config`: for gradients and fine sweeps.

    A converter with a number here does not round: it adds the noise of one step of that many bits
    (`ops.relaxed_steps`), with the codes and the range that `Config` says. Where it is None the converter is that of
    `Config`. Differentiate `sample` or `matmul` with respect to it; another number is no new program.

    Attributes:
        dac: Bits of an input, its sign included, 2 to 24.
        adc: Bits of a conversion, 2 to 24 (from 1 with `adc_code` "uniform"); not with a code of one's own.

    Example:
        >>> from nvcim_jax import crossbar, devices
        >>> config, device = crossbar.Config(adc_bits=8, adc_range="max"), devices.get("ideal")
        >>> target = crossbar.encode(0.5 * jnp.ones((4, 20_000)), device, config=config)
        >>> def spread(bits):
        ...     x = jnp.array([0.5, -0.2, 0.1, 0.5])
        ...     y, _ = crossbar.sample(jax.random.key(0), x, target, bits=bits)
        ...     return jnp.log2(y.std())
        >>> slope = jax.grad(spread)(crossbar.Bits(adc=8.0)).adc
        >>> print(f"{slope:.3f}")  # one bit more halves the step 2 x 4 x 0.5 / (2^b - 2)
        -1.008
    """

    dac: jax.Array | Any = None
    adc: jax.Array | Any = None

    def __post_init__(self) -> None:
        """Turn Python numbers into strong arrays; an int may be an axis of `jax.vmap`, and stays."""
        for name in ("dac", "adc"):
            if isinstance(getattr(self, name), float | np.floating):
                object.__setattr__(self, name, jnp.asarray(getattr(self, name), jnp.float32))


class Dither(NamedTuple):
    """Relaxed converters of one product.

    Attributes:
        key: Key of their noise.
        bits: Their bits.
        rng: Generator of their noise.
    """

    key: Key
    bits: Bits
    rng: str


def dither(key: Key, bits: Bits | None, rng: str) -> Dither | None:
    """Return the relaxed converters of a product whose read has this key; None where all of them are hard."""
    if bits is None or (bits.dac is None and bits.adc is None):
        return None
    return Dither(jax.random.fold_in(key, _CONVERTERS), bits, rng)


def check_bits(bits: Bits | None, config: Config) -> None:
    """Check relaxed bits against the options, before anything is traced.

    Raises:
        ValueError: If a number is out of range, or stands for a converter that `config` does not have.
    """
    for kind in ("dac", "adc"):
        value = None if bits is None else getattr(bits, kind)
        if value is None:
            continue
        if getattr(config, f"{kind}_bits") is None:
            fix = f"Give config.{kind}_bits, any number: it says that there is a converter."
            checks.fail(f"bits.{kind}", f"be left out without config.{kind}_bits", "is given", fix)
        checks.rank(f"bits.{kind}", value, 0, "()")
        if kind == "adc" and callable(config.adc_code):
            fix = "A code of one's own is called with whole bits."
            checks.fail("bits.adc", "be left out with an adc_code that is a function", "is given", fix)
        low = 1.0 if kind == "adc" and config.adc_code == "uniform" else 2.0
        checks.number(f"bits.{kind}", value, low=low, high=float(MAX_BITS))
        if kind == "dac" and config.dac_bits_per_cycle is not None:
            found = f"is given with dac_bits_per_cycle={config.dac_bits_per_cycle}"
            checks.fail("bits.dac", "be left out for inputs that are applied digit by digit", found)


def as_read(held: Held, converters: Converters | None) -> Held:
    """Return a chip or a target as one read sees it: with the converters of that read, and the ranges that they use.

    The one place where the options of a read are made. A range that was given or calibrated belongs to the converters
    that it was made for; their bits may change.

    Raises:
        ValueError: If the converters do not go together with the layout, or need a range that is not there.
    """
    own: Any = held
    if converters is None:
        return held
    config = reading(own.config, converters)
    for kind, bound_to in BOUND_TO_RANGE.items():
        if getattr(config, f"{kind}_range") not in ("fixed", "calibrated"):
            continue
        for name in bound_to:
            wanted, found = getattr(config, name), getattr(own.config, name)
            if wanted != found:
                range_ = f"a range that is {getattr(config, f'{kind}_range')}"
                fix = f"Such a range is made for one kind of converter: encode or program with {name}={wanted!r}."
                checks.fail("converters", f"have {name}={found!r} for {range_}", f"have {name}={wanted!r}", fix)
    return dataclasses.replace(
        own,
        config=config,
        dac_max=own.dac_max if config.dac_range in ("fixed", "calibrated") else None,
        adc_range=own.adc_range if config.adc_range in ("fixed", "calibrated") else None,
    )


class Drive(NamedTuple):
    """Inputs as the word lines see them.

    Attributes:
        voltages: In units of the full scale, in [-1, 1], (row tiles, planes, batch, tile rows); a plane is what is
            applied in one cycle.
        plane_weights: Digital weight of each plane, (planes,).
        scale: Full scale of each vector and row tile, (row tiles, batch), in the unit of the inputs.
        clipped: Share of the inputs beyond the full scale.
    """

    voltages: Float[Array, "row_tiles planes batch tile_rows"]
    plane_weights: Float[Array, " planes"]
    scale: Float[Array, "row_tiles batch"]
    clipped: Float[Array, ""]


def check_inputs(x: ArrayLike, num_rows: int, dac_max: Float[Array, ""] | None, config: Config) -> None:
    """Check rows and range of the inputs before anything is traced.

    Raises:
        ValueError: If one is wrong.
    """
    if np.ndim(x) == 0 or np.shape(x)[-1] != num_rows:
        checks.fail("x", f"have {num_rows} rows on its last axis, as the weights", f"has shape {np.shape(x)}")
    checks.finite("x", x)
    if config.dac_range == "fixed" and dac_max is not None and checks.is_concrete(dac_max):
        checks.number("x", x, low=-float(dac_max), high=float(dac_max), fix="Scale x, or raise dac_max.")


def dac(
    x: Float[Array, "batch rows"],
    num_tiles: int,
    tile_rows: int,
    max_: Float[Array, ""] | None,
    config: Config,
    relaxed: Dither | None = None,
) -> Drive:
    """Convert inputs to voltages, x / scale rounded to 2**dac_bits - 1 codes, one for zero.

    A vector is scaled by the absmax of the part that meets an array, or by a fixed full scale, beyond which it is
    clipped. With `dac_bits_per_cycle` the magnitude of the code is applied digit by digit, the lowest first.

    Args:
        x: Inputs.
        num_tiles: Row tiles of the matrix.
        tile_rows: Rows of a tile; missing rows are driven with zero.
        max_: Full scale; None for absmax.
        config: Options of the crossbar.
        relaxed: Relaxed converters, whose bits replace `config.dac_bits` where they have any.

    Returns:
        The voltages and how to put outputs together again.
    """
    padded = jnp.pad(x, ((0, 0), (0, num_tiles * tile_rows - x.shape[1])))
    parts = jnp.swapaxes(padded.reshape(x.shape[0], num_tiles, tile_rows), 0, 1)
    clipped = jnp.zeros((), x.dtype)
    if config.dac_bits is None and config.adc_bits is None:
        scale = jnp.ones(parts.shape[:2], x.dtype)
    elif max_ is None:
        scale = lax.stop_gradient(jnp.max(jnp.abs(parts), axis=2))
        scale = jnp.where(scale > 0, scale, 1.0)
    else:
        scale = jnp.broadcast_to(max_, parts.shape[:2])
        clipped = _share(jnp.abs(x) > max_, x.dtype)
    unit = parts / scale[:, :, None]
    if max_ is not None:
        one = jnp.ones((), x.dtype)
        unit = ops.clip_inclusive(unit, -one, one)
    if relaxed is not None and relaxed.bits.dac is not None:
        planes = _relaxed_inputs(unit, relaxed)
        planes, weights = planes[:, None], jnp.ones((1,), x.dtype)
    else:
        planes, weights = _planes(unit, config)
    return Drive(planes, weights, scale, clipped)


def adc(
    v: Float[Array, "batch lines"],
    bounds: Float[Array, "col_tiles 2"] | None,
    config: Config,
    num_cols: int,
    relaxed: Dither | None = None,
    array: jax.Array | int = 0,
) -> tuple[Float[Array, "batch lines"], Float[Array, ""]]:
    """Convert the outputs of one array, each column tile with its own range; codes come back in the unit of outputs.

    Without bounds, outputs that are all zero stay zero, whether or not zero is a code: there is nothing to convert.

    Args:
        v: Outputs of the bit lines, in units of a full-scale input times g_max.
        bounds: Lowest and highest output of each column tile; None for the absmax of each read.
        config: Options of the crossbar.
        num_cols: Columns of the matrix.
        relaxed: Relaxed converters, whose bits replace `config.adc_bits` where they have any.
        array: Number of the array, for their noise.

    Returns:
        Converted outputs, and the share of them that was beyond the range.
    """
    saturated = jnp.zeros((), v.dtype)
    if config.adc_bits is None:
        return v, saturated
    if bounds is None:
        largest = lax.stop_gradient(largest_of_tiles(jnp.abs(v), config, num_cols))
        largest = spread_over_lines(largest, config, num_cols)
        high = jnp.where(largest > 0, largest, 1.0)
        return jnp.where(largest > 0, _coded(v, -high, high, config, relaxed, array), v), saturated
    low, high = (spread_over_lines(bounds[None, :, end], config, num_cols) for end in (0, 1))
    saturated = _share((v > high) | (v < low), v.dtype)
    return _coded(v, low, high, config, relaxed, array), saturated


def _coded(
    v: Float[Array, "batch lines"],
    low: jax.Array,
    high: jax.Array,
    config: Config,
    relaxed: Dither | None,
    array: jax.Array | int,
) -> Float[Array, "batch lines"]:
    """Return the codes of outputs in [low, high], in their unit."""
    if relaxed is not None and relaxed.bits.adc is not None:
        return _relaxed_outputs(jax.random.fold_in(relaxed.key, array), v, low, high, relaxed, config)
    if callable(config.adc_code):
        return _own_outputs(v, low, high, config)
    assert config.adc_bits is not None
    return _CODES[config.adc_code](v, low, high, config.adc_bits)


def _symmetric(v: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    step = high / (2 ** (bits - 1) - 1)
    return ops.round_straight_through(ops.clip_inclusive(v, low, high) / step) * step


def _uniform(v: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    return ops.uniform_steps(v, low, high, num_steps=2**bits - 1)


_CODES = {"symmetric": _symmetric, "uniform": _uniform}


def _own_outputs(v: jax.Array, low: jax.Array, high: jax.Array, config: Config) -> jax.Array:
    """Convert by the user's function, after a check that it returns what it was given, converted."""
    code: Any = config.adc_code
    found = code(v, low, high, config.adc_bits)
    if getattr(found, "shape", None) != v.shape or found.dtype != v.dtype:
        wanted = f"return {checks.shown(v)} for such outputs"
        checks.fail("adc_code", wanted, f"returns {checks.shown(found)}")
    return found


def _share(true: Bool[Array, "..."], dtype: jnp.dtype) -> Float[Array, ""]:
    """Return the share of entries that are true; 0 of none."""
    return jnp.mean(true, dtype=dtype) if true.size else jnp.zeros((), dtype)


def _relaxed_inputs(unit: Float[Array, "row_tiles batch tile_rows"], relaxed: Dither) -> jax.Array:
    key = jax.random.fold_in(relaxed.key, _CONVERTERS)
    return _relaxed_symmetric(key, unit, jnp.ones((1, 1, 1), unit.dtype), relaxed.bits.dac, relaxed.rng)


def _relaxed_outputs(
    key: Key, v: Float[Array, "batch lines"], low: jax.Array, high: jax.Array, relaxed: Dither, config: Config
) -> Float[Array, "batch lines"]:
    bits = relaxed.bits.adc
    if config.adc_code == "symmetric":
        return _relaxed_symmetric(key, v, high, bits, relaxed.rng)
    return ops.relaxed_steps(key, v, low, high, num_steps=(jnp.exp2(bits) - 1.0).reshape(1, 1), rng=relaxed.rng)


def _relaxed_symmetric(
    key: Key, x: Float[Array, "..."], high: Float[Array, "..."], bits: Float[Array, ""], rng: str
) -> Float[Array, "..."]:
    """Relax the 2**bits - 1 codes of [-high, high]; zero is one of them, and stays zero: unused rows carry no noise."""
    steps = (jnp.exp2(bits) - 2.0).reshape((1,) * x.ndim)
    return jnp.where(x == 0.0, x, ops.relaxed_steps(key, x, -high, high, num_steps=steps, rng=rng))


def _planes(
    unit: Float[Array, "row_tiles batch tile_rows"], config: Config
) -> tuple[Float[Array, "row_tiles planes batch tile_rows"], Float[Array, " planes"]]:
    """Round inputs in [-1, 1] and split them into what is applied in each cycle."""
    whole = jnp.ones((1,), unit.dtype)
    if config.dac_bits is None:
        return unit[:, None], whole
    steps = float(2 ** (config.dac_bits - 1) - 1)
    code = ops.round_straight_through(unit * steps)
    if config.dac_bits_per_cycle is None:
        return code[:, None] / steps, whole
    base = 2**config.dac_bits_per_cycle
    num = num_planes(config)
    sign = jnp.where(lax.stop_gradient(code) < 0, -1.0, 1.0)  # not 0 at 0, where the gradient would be lost
    digits = sign[None] * ops.digits(sign * code, base=base, num_digits=num)
    weights = jnp.asarray([float(base) ** p * (base - 1) / steps for p in range(num)], unit.dtype)
    return jnp.moveaxis(digits, 0, 1) / (base - 1), weights
