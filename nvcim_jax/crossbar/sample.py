"""One product on a freshly programmed chip, drawn cell by cell or directly in the space of outputs."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks, devices, ops
from nvcim_jax.crossbar.chip import write_cells
from nvcim_jax.crossbar.config import Converters, num_planes, stored_slices
from nvcim_jax.crossbar.converters import Bits, Drive, as_read, dither
from nvcim_jax.crossbar.mapping import Target
from nvcim_jax.crossbar.product import (
    Info,
    Lines,
    array_voltages,
    check_read,
    converts_lines,
    driven,
    known_lines,
    lines_of,
    lines_through,
    product,
)
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["sample"]

_Read = tuple[Callable[[jax.Array, PyTree], Lines], PyTree]
"""How each array is multiplied with, and what it is made from, with a leading axis of arrays."""

MIN_ROWS_FOR_MOMENTS = 16
# Least share of a vector's square that lies beyond the vectors before it, for which float32 knows X X^T well enough.
_INDEPENDENT = 0.05


@checked
def sample(
    key: Key,
    x: Num[ArrayLike, "..."],
    target: Target,
    *,
    sampling: str = "device",
    converters: Converters | None = None,
    bits: Bits | None = None,
) -> tuple[Float[Array, "..."], Info]:
    """Draw one product on a fresh chip: `write` and `matmul` in one, keeping no cells.

    `sampling` says what is drawn:

    - `device`: every cell. The reference: equal to `matmul(read_key, x, write(write_key, target))` with
      `write_key, read_key = jax.random.split(key)`.
    - `pair`: one normal number a differential pair, of variance sigma_plus^2 + sigma_minus^2. Exact for Gaussian
      noise.
    - `output_joint`: outputs of a row tile as X W + sigma L Z, L L^T = X X^T. Exact jointly over the batch, for
      Gaussian noise of one size at every level. With more vectors than rows it draws cells, then the smaller number.
    - `output_marginal`: X W + sqrt(X^2 S) Z with Z drawn for each vector apart. Exact for each vector by itself, and so
      for means over a batch; wrong for the spread between chips, and for whatever compares vectors of one chip.
    - `moment_matched`: the same with mean and variance of cells clipped at 0. Right in those two moments, and close to
      Gaussian from 16 rows on, of the last array too.

    None but `device` knows stuck cells, drift, read noise or wires, and they are refused there. The output samplings
    pass gradients to the inputs as if there were no noise.

    Args:
        key: Key of the chip and its one read.
        x: Inputs (..., rows), all of which meet the same chip.
        target: What the chip is to hold, from `encode`.
        sampling: What is drawn, one of the five above.
        converters: Converters of the read; None for those of the target.
        bits: Bits of relaxed converters, in place of those of the converters; None rounds.

    Returns:
        y: Products (..., cols).
        info: Shares of clipped inputs and saturated conversions.

    Raises:
        ValueError: If the sampling is not exact for this device or these options; the message says why.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("Gaussian", sigma=0.1)
        >>> target = crossbar.encode(jnp.ones((50, 4000)), device, config=crossbar.Config())
        >>> y, _ = crossbar.sample(jax.random.key(0), jnp.ones((2, 50)), target, sampling="output_joint")
        >>> print(f"{y[0].std():.2f}, sigma sqrt(2 sum x^2) = {0.1 * 100 ** 0.5:.2f}")
        1.00, sigma sqrt(2 sum x^2) = 1.00
        >>> print(bool(jnp.abs(y[0] - y[1]).max() < 0.05))  # equal inputs, one chip
        True
    """
    checks.choice("sampling", sampling, SAMPLINGS)
    target = as_read(target, converters)
    check_read(x, target, bits)
    _check_sampling(sampling, target)
    return _sampled(key, jnp.asarray(x, jnp.float32), target, Partial(SAMPLINGS[sampling]), bits)


@functools.partial(jax.jit, inline=True)
def _sampled(
    key: Key, x: Float[Array, "..."], target: Target, draw: Callable[..., _Read], bits: Bits | None
) -> tuple[Float[Array, "..."], Info]:
    """Return the product on a fresh chip; the arguments are checked."""
    write_key, read_key = jax.random.split(key)
    relaxed = dither(read_key, bits, target.device.rng)
    drive = driven(x, target, target.conductance.shape, relaxed)
    read = draw(write_key, read_key, target, drive)
    gain = jnp.ones(target.conductance.shape[0], jnp.float32)
    return product(read, drive, target, gain, x.shape[:-1], relaxed)


def _draw_pairs(write_key: Key, read_key: Key, target: Target, drive: Drive) -> _Read:
    """Draw the differences of one array with one number each: the difference of two Gaussians is a Gaussian."""
    del read_key, drive
    device, config = target.device, target.config

    def lines(a: jax.Array, moments: tuple[jax.Array, jax.Array]) -> Lines:
        mean, sigma = moments
        z = ops.normal(jax.random.fold_in(write_key, a), mean.shape, rng=device.rng)
        return lines_through(mean + sigma * z, config)

    mean, unit, relative = _pair_moments(_halves(target.conductance), device)
    return lines, (mean, unit * root(relative))


def _draw_cells(write_key: Key, read_key: Key, target: Target, drive: Drive) -> _Read:
    """Draw the cells of one array, and multiply with them."""
    del drive
    device, config, num_cols = target.device, target.config, target.scale.shape[0]
    if config.noise == "value":
        return known_lines(write_cells(write_key, target).g, config, num_cols)
    # what changes only later draws nothing of its own: power laws do
    drift = device.drift if isinstance(device.drift, devices.Drift) else None
    others = (device.d2d_sigma, device.stuck_on, device.stuck_off, drift, device.read)
    only_cycle_noise = all(effect is None for effect in others)
    if only_cycle_noise and device.programming is None:
        # nothing is drawn: each array is its target
        return lambda _, g: lines_of(
            (*devices.programmed(g, jnp.zeros_like(g), device),), config, num_cols
        ), target.conductance

    def lines(a: jax.Array, halves: tuple[jax.Array, ...]) -> Lines:
        array_key = jax.random.fold_in(write_key, a)
        if only_cycle_noise:
            return lines_of(_programmed(array_key, halves, device), config, num_cols)
        cells = devices.program(array_key, jnp.stack(halves), device)
        seen = cells.g if device.read is None else devices.read(jax.random.fold_in(read_key, a), cells, device)
        return lines_of((*seen,), config, num_cols)

    return lines, _halves(target.conductance)


_Moments = tuple[jax.Array, jax.Array, jax.Array]
"""Mean, unit of the noise, and variance in units of its square; see `devices.cell_moments`."""


def _halves(conductance: Float[Array, "arrays halves tile_rows lines"]) -> tuple[jax.Array, ...]:
    """Split the halves of all arrays: a slice of a slice inside the loop keeps XLA from vectorising it on a CPU."""
    return tuple(conductance[:, half] for half in range(conductance.shape[1]))


def _programmed(key: Key, halves: tuple[jax.Array, ...], device: devices.Device) -> tuple[jax.Array, ...]:
    """Return what `devices.program` gives for a device with no other effect, half by half, so that it is one loop."""
    cycle_key = devices.cycle_key(key)
    if len(halves) == 1:
        z = (ops.normal(cycle_key, halves[0].shape, rng=device.rng),)
    else:
        z = ops.normal_pair(cycle_key, halves[0].shape, rng=device.rng)
    return tuple(devices.programmed(g, noise, device) for g, noise in zip(halves, z, strict=True))


def _pair_moments(halves: tuple[jax.Array, ...], device: devices.Device) -> _Moments:
    """Return the moments of the difference of two independent cells."""
    plus, minus = (devices.cell_moments(g, device) for g in halves)
    return plus.mean - minus.mean, plus.unit, plus.relative_variance + minus.relative_variance


def _line_moments(target: Target) -> _Moments:
    """Return the moments of the cells on each line: of a pair's difference where its halves meet on one line."""
    halves = _halves(target.conductance)
    if len(halves) == 2 and not converts_lines(target.config):
        return _pair_moments(halves, target.device)
    parts = [devices.cell_moments(g, target.device) for g in halves]
    means, variances = ([getattr(p, name) for p in parts] for name in ("mean", "relative_variance"))
    return jnp.concatenate(means, axis=-1), parts[0].unit, jnp.concatenate(variances, axis=-1)


def _draw_joint(write_key: Key, read_key: Key, target: Target, drive: Drive) -> _Read:
    """Draw the outputs of one array jointly over all vectors, L Z with L L^T = X X^T."""
    del read_key
    rng = target.device.rng
    mean, unit, relative = _line_moments(target)
    # the noise is the same in every cell, as `_check_sampling` has made sure
    sigma = unit * root(relative[:, 0, 0])
    num_tiles, _, _, tile_rows = drive.voltages.shape
    voltages = lax.stop_gradient(drive.voltages).reshape(num_tiles, -1, tile_rows)
    factors = voltages if voltages.shape[1] > tile_rows else _factors(voltages)

    def spread(a: jax.Array, voltages: jax.Array, sigma: jax.Array) -> jax.Array:
        del voltages
        return sigma * factors[a // stored_slices(target.config)]

    def noise(key: Key, outputs: jax.Array, scale: jax.Array) -> jax.Array:
        z = ops.normal(key, (scale.shape[1], outputs.shape[1]), rng=rng)
        return lax.dot(scale, z, precision=lax.Precision.HIGHEST)

    return _output_lines(write_key, target, drive, (mean, sigma), spread, noise)


def _draw_marginal(write_key: Key, read_key: Key, target: Target, drive: Drive) -> _Read:
    """Draw the outputs of one array for each vector apart, sqrt(X^2 S) Z."""
    del read_key
    rng = target.device.rng
    mean, unit, relative = _line_moments(target)

    def spread(a: jax.Array, voltages: jax.Array, relative: jax.Array) -> jax.Array:
        del a
        return unit * root(lax.dot(jnp.square(voltages), relative, precision=lax.Precision.HIGHEST))

    def noise(key: Key, outputs: jax.Array, scale: jax.Array) -> jax.Array:
        del outputs
        return scale * ops.normal(key, scale.shape, rng=rng)

    return _output_lines(write_key, target, drive, (mean, relative), spread, noise)


def _output_lines(
    key: Key,
    target: Target,
    drive: Drive,
    moments: tuple[jax.Array, jax.Array],
    spread: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    noise: Callable[[Key, jax.Array, jax.Array], jax.Array],
) -> _Read:
    """Return how the outputs of one array are drawn, and what from: its outputs without noise, and their spread."""
    config = target.config
    together = config.mapping == "differential" and not converts_lines(config)
    subtracted = together or config.mapping == "offset_digital"

    def exact(a: jax.Array, mean: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
        voltages = array_voltages(a, drive, config)
        outputs = lax.dot(voltages, mean, precision=lax.Precision.HIGHEST)
        return outputs, spread(a, lax.stop_gradient(voltages), size)

    def lines(a: jax.Array, outputs: tuple[jax.Array, jax.Array]) -> Lines:
        drawn = noise(jax.random.fold_in(key, a), *outputs)
        return Lines(lambda _: outputs[0] + drawn, subtracted)

    if math.prod(drive.voltages.shape[1:3]) <= drive.voltages.shape[3]:
        # The key has no part in them: computed for all arrays here, they are computed once in a loop over chips.
        return lines, jax.vmap(exact)(jnp.arange(moments[0].shape[0]), *moments)
    # More vectors than rows: outputs are larger than weights, so those of one array are held at a time.
    return lambda a, cells: lines(a, exact(a, *cells)), moments


def _factors(voltages: Float[Array, "row_tiles vectors tile_rows"]) -> Float[Array, "row_tiles vectors vectors"]:
    """Return L with L L^T = X X^T for each tile: L Z is then X E, jointly over the vectors X, for cells of variance 1.

    By Cholesky's factor where the vectors are far from dependent. Where they are not, X X^T has lost in rounding what
    sets them apart: then L = R^T of X^T = Q R, with which inputs that repeat, or nearly, differ by what they should.
    """
    gram = jnp.einsum("tvr,twr->tvw", voltages, voltages, precision=lax.Precision.HIGHEST)
    lower = jnp.linalg.cholesky(gram, symmetrize_input=False)
    own, square = (jnp.diagonal(part, axis1=1, axis2=2) for part in (lower, gram))
    sound = jnp.all(jnp.square(own) > _INDEPENDENT * square)  # not where it is NaN
    return lax.cond(
        sound, lambda: lower, lambda: jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(voltages, 1, 2), mode="r"), 1, 2)
    )


@jax.custom_jvp
def root(variance: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, with the slope 0 at 0: where nothing varies, nothing that it is made of changes that."""
    return jnp.sqrt(variance)


@root.defjvp
def _root_slope(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    found = root(primals[0])
    varies = found > 0
    return found, jnp.where(varies, tangents[0] / jnp.where(varies, 2.0 * found, 1.0), 0.0)


SAMPLINGS: dict[str, Callable[..., _Read]] = {
    "device": _draw_cells,
    "pair": _draw_pairs,
    "output_joint": _draw_joint,
    "output_marginal": _draw_marginal,
    "moment_matched": _draw_marginal,
}
"""What `sample` draws, by name."""


def _check_sampling(sampling: str, target: Target) -> None:
    """Refuse a sampling that is not exact for the device or the options, and say why.

    Raises:
        ValueError: If it is not.
    """
    if sampling == "device":
        return
    device, config = target.device, target.config
    tile_rows = target.conductance.shape[2]
    last_rows = target.num_rows % tile_rows or tile_rows
    reasons = {
        "noise='value', which knows no single cells": config.noise == "value",
        "stuck cells": device.stuck_on is not None or device.stuck_off is not None,
        "noise that is not Gaussian": device.programming is not None and not device.programming.gaussian,
        "drift, whose exponents belong to single cells": device.drift is not None,
        "read noise, which belongs to single cells": device.read is not None,
        "clipping at 0, which makes the noise of a cell not Gaussian": device.clip and sampling != "moment_matched",
        "a noise that differs between levels, so that outputs of one chip are not separable": (
            sampling == "output_joint" and not _same_at_every_level(device)
        ),
        "cells of a pair that do not meet before the converter": sampling == "pair"
        and (config.mapping != "differential" or config.adc_before_subtraction),
        "dac_bits_per_cycle: the cycles of one input meet the same cells, so their noise is not independent": (
            sampling in ("output_marginal", "moment_matched") and num_planes(config) > 1
        ),
        f"arrays of fewer than {MIN_ROWS_FOR_MOMENTS} used rows, whose clipped cells do not sum to a Gaussian": (
            sampling == "moment_matched" and device.clip and last_rows < MIN_ROWS_FOR_MOMENTS
        ),
    }
    for reason, present in reasons.items():
        if present:
            found = f"is {sampling!r}, which is not exact with {reason}"
            checks.fail("sampling", f"be 'device' for device {device.name!r}", found, _other_sampling(reason))


def _other_sampling(reason: str) -> str:
    if reason.startswith("noise that is not Gaussian"):
        return "Use sampling='device'; product_moments has the exact mean and variance."
    if reason.startswith("clipping"):
        return "Use sampling='device', or 'moment_matched', which knows the cut."
    return "Use sampling='device'."


def _same_at_every_level(device: devices.Device) -> bool:
    law = device.programming
    return law is None or law.constant
