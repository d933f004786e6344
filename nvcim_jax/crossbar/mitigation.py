"""Mitigation that is part of the hardware's use: write-verify of chosen weights, and digital factors on columns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Num

from nvcim_jax import checks, devices
from nvcim_jax.crossbar.chip import Chip, fresh, write, write_cells
from nvcim_jax.crossbar.config import Config, geometry
from nvcim_jax.crossbar.mapping import encode
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["column_factors", "program_verified", "selected"]


@checked
def selected(importance: Num[ArrayLike, "rows cols"], share: ArrayLike) -> Bool[Array, "rows cols"]:
    """Return which weights to verify: the given share of them, the most important first.

    Args:
        importance: Importance of each weight, larger is more important.
        share: Share to select, in [0, 1]; a traced number, so that it sweeps.

    Returns:
        A mask of round(share * size) weights; of equals the first.

    Example:
        >>> selected(jnp.array([[0.1, 3.0], [2.0, 0.2]]), 0.5).tolist()
        [[False, True], [True, False]]
    """
    checks.number("share", share, low=0.0, high=1.0)
    importance = jnp.asarray(importance)
    flat = importance.ravel()
    # the complement of an integer falls as it rises, where its negative may wrap
    order = jnp.argsort(~flat if jnp.issubdtype(flat.dtype, jnp.integer) else -flat, stable=True)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return (place < jnp.round(jnp.asarray(share, jnp.float32) * order.size).astype(jnp.int32)).reshape(importance.shape)


@checked
def program_verified(
    key: Key,
    weights: Num[ArrayLike, "rows cols"],
    verified: Bool[ArrayLike, "rows cols"],
    device: devices.Device,
    residual_sigma: ArrayLike,
    *,
    config: Config,
    dac_max: ArrayLike | None = None,
    adc_max: ArrayLike | None = None,
    adc_min: ArrayLike | None = None,
) -> Chip:
    """Program a chip on which chosen weights are written and verified until a smaller error is left.

    The cells of a verified weight, both of a pair and all slices, have the noise of a device with
    `sigma = residual_sigma`; the others are those of `program` under the same key. The residual noise keeps the shape
    of the device's law, which is this library's reading of "selective write-verify" [I].

    Args:
        key: Key of the chip.
        weights: Weights (rows, cols).
        verified: Which of them are verified, from `selected`.
        device: The memory cells.
        residual_sigma: sigma after write-verify, in the unit of `device.sigma`; 0.03 where sigma is 0.1 is usual.
        config: Options of the crossbar.
        dac_max: As in `program`, as the next two.
        adc_max: Full scale of the conversions.
        adc_min: Lower end of a "uniform" converter.

    Returns:
        The chip, at t = 0.

    Raises:
        ValueError: If shapes differ, or the options keep no single cells.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import crossbar, devices
        >>> device, config = devices.get("Gaussian", sigma=0.1), crossbar.Config()
        >>> mask = jnp.arange(20_000).reshape(200, 100) % 2 == 0
        >>> weights = jnp.ones((200, 100))
        >>> chip = program_verified(jax.random.key(0), weights, mask, device, 0.03, config=config)
        >>> error = crossbar.read_back(jax.random.key(1), chip) - weights
        >>> print(f"{error[mask].std():.3f} {0.03 * 2**0.5:.3f}, {error[~mask].std():.3f} {0.1 * 2**0.5:.3f}")
        0.042 0.042, 0.141 0.141

    References:
        Z. Yan et al., "SWIM: Selective write-verify for computing-in-memory neural accelerators", DAC 2022,
        arXiv:2202.08395.
    """
    if config.noise != "cell":
        checks.fail("config", "have noise='cell' to verify cells", "keeps no single cells")
    target = encode(weights, device, config=config, dac_max=dac_max, adc_max=adc_max, adc_min=adc_min)
    checks.shape("verified", verified, (target.num_rows, target.scale.shape[0]), "(rows, cols)")
    plain = write(key, target)
    residual = device.replace(sigma=jnp.asarray(residual_sigma, jnp.float32))
    careful = write_cells(key, dataclasses.replace(target, device=residual))
    mask = _cell_mask(jnp.asarray(verified), plain.cells.g.shape, config)

    def either(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(jnp.broadcast_to(mask, a.shape), b, a) if a.shape == plain.cells.g.shape else a

    return fresh(dataclasses.replace(plain, cells=jax.tree.map(either, plain.cells, careful)))


def _cell_mask(verified: jax.Array, shape: tuple[int, ...], config: Config) -> jax.Array:
    """Spread a mask of weights over slices and halves: (arrays, 1, tile rows, lines); references are not verified."""
    sizes = geometry((verified.shape[0], verified.shape[1]), config)
    num_arrays, _, tile_rows, lines = shape
    rows = sizes.num_row_tiles * tile_rows - verified.shape[0]
    tiles = jnp.pad(verified, ((0, rows), (0, lines - verified.shape[1])))
    tiles = tiles.reshape(sizes.num_row_tiles, 1, 1, tile_rows, lines)
    slices = num_arrays // sizes.num_row_tiles
    return jnp.broadcast_to(tiles, (sizes.num_row_tiles, slices, 1, tile_rows, lines)).reshape(
        num_arrays, 1, tile_rows, lines
    )


@checked
def column_factors(
    outputs: Num[ArrayLike, "batch cols"], reference: Num[ArrayLike, "batch cols"], *, ridge: float = 1e-6
) -> Float[Array, " cols"]:
    """Return the digital factor of each column that brings a chip's outputs nearest to the exact ones.

    f_j = (sum_b y_bj y~_bj + r) / (sum_b y~_bj^2 + r), r = ridge * mean: least squares over a calibration batch, drawn
    to 1 where a column gives next to nothing that could be measured.

    Args:
        outputs: What the chip gives for the calibration batch, y~.
        reference: What it should give, y.
        ridge: Weight of the factor 1, relative to the mean over columns of sum_b y~_bj^2.

    Returns:
        Factors (cols,).

    Example:
        >>> exact = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> print(column_factors(exact * jnp.array([[0.5, 2.0]]), exact).round(3))
        [2.  0.5]

    References:
        S. Jain et al., "CxDNN: Hardware-software compensation methods for deep neural networks on resistive crossbar
        systems", ACM TECS 18(6), 2019, which compensates columns by calibrated factors; the least squares is [I].
    """
    checks.shape("reference", reference, np.shape(outputs), "(batch, cols)")
    outputs, reference = jnp.asarray(outputs, jnp.float32), jnp.asarray(reference, jnp.float32)
    checks.number("ridge", ridge, low=0.0)
    power = jnp.square(outputs).sum(axis=0)
    least = ridge * power.mean()
    silent = power + least <= 0.0
    return jnp.where(silent, 1.0, ((reference * outputs).sum(axis=0) + least) / jnp.where(silent, 1.0, power + least))
