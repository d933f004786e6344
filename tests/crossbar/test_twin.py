"""The whole read against a float64 twin in NumPy: every option with every other, on generated hardware and matrices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import crossbar, devices
from tests.support.twin import Hardware, Read, cell_variance, read

ROWS, COLS, VECTORS = 13, 5, 3
NUM, GROUPS = 200, 10
G_MAX_US, TIME_S, SIGMA, CHIPS = 100.0, 1e4, 0.05, 2000
OPTIONS: dict[str, tuple] = {
    "rows": (None, 6, 16),
    "cols": (None, 10, 24),
    "mapping": ("differential", "offset", "offset_digital"),
    "weight_bits": (None, 3, 5),
    "cell_bits": (None, 1, 2, 3),
    "weight_scale": ("tensor", "column"),
    "slices": ("arrays", "rows", "columns"),
    "dac_bits": (None, 4, 6),
    "dac_range": ("absmax", "absmax", "fixed", "calibrated"),
    "dac_bits_per_cycle": (None, None, 1, 2),
    "adc_bits": (None, 5, 8),
    "adc_range": ("absmax", "max", "fixed", "calibrated"),
    "adc_code": ("symmetric", "uniform"),
    "adc_before_subtraction": (False, True),
}


def _config(rng: np.random.Generator) -> crossbar.Config:
    """Return random options that go together."""
    while True:
        options: dict[str, Any] = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
        for kind in ("dac", "adc"):
            if options[f"{kind}_bits"] is None:
                options[f"{kind}_range"] = "absmax"
        if options["dac_bits"] is None:
            options["dac_bits_per_cycle"] = None
        try:
            return crossbar.Config(**options)
        except ValueError:
            continue


def _codes(rng: np.random.Generator, shape: tuple[int, int], steps: float, axis: int) -> np.ndarray:
    """Return numbers in [-1, 1] away from the middle between two codes, one of them 1 or -1 along `axis`."""
    whole = rng.integers(-steps, steps + 1, shape) if steps > 1 else rng.choice([-1.0, 0.0, 1.0], shape)
    values = np.clip((whole + rng.uniform(-0.3, 0.3, shape)) / steps, -1, 1)
    first = rng.integers(shape[axis])
    values[(first, slice(None)) if axis == 0 else (slice(None), first)] = rng.choice([-1.0, 1.0])
    return values


def _weights(rng: np.random.Generator, c: crossbar.Config) -> np.ndarray:
    steps = 50.0
    if c.weight_bits is not None or c.cell_bits is not None:
        bits = c.weight_bits - 1 if c.weight_bits else c.cell_bits
        steps = 2.0 ** (bits - (1 if c.mapping != "differential" and not c.weight_bits else 0)) - 1
    w = 0.7 * _codes(rng, (ROWS, COLS), steps, 0)
    if c.weight_scale == "column":
        w = w * 10 ** rng.uniform(-1, 1, COLS)
        w[:, rng.random(COLS) < 0.1] = 0.0
    if rng.random() < 0.15:  # a whole row tile of zeros: arrays with nothing in them
        w[6:] = 0.0
        w[0] = 0.7
    return w.astype(np.float32)


def _inputs(rng: np.random.Generator, c: crossbar.Config, tile_rows: int) -> np.ndarray:
    if c.dac_bits is None:
        return rng.standard_normal((VECTORS, ROWS)).astype(np.float32)
    steps = 2.0 ** (c.dac_bits - 1) - 1
    if c.dac_range != "absmax":
        return (1.5 * _codes(rng, (VECTORS, ROWS), steps, 1)).astype(np.float32)
    parts = []
    for top in range(0, ROWS, tile_rows):
        part = _codes(rng, (VECTORS, min(tile_rows, ROWS - top)), steps, 1)
        parts.append(part * 2.0 ** rng.integers(-2, 3))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _ranges(seen: Read, c: crossbar.Config) -> dict[tuple[int, int, int], tuple[float, float]]:
    """Return what `calibrate` finds with all outputs within the range."""
    found = {}
    for place, values in seen.seen.items():
        top = np.abs(values).max()
        low, high = (-top, top) if c.adc_code == "symmetric" else (values.min(), values.max())
        if high <= low:
            high = top if top > 0 else 1.0
            low = -high
        found[place] = (low, high)
    return found


def _hardware(rng: np.random.Generator, *, drifts: bool, compensated: bool, wired: bool) -> Hardware:
    return Hardware(
        on_off_ratio=(np.inf, 8.0)[rng.integers(2)],
        kept=((TIME_S + 20.0) / 20.0) ** -rng.uniform(0.03, 0.1) if drifts else 1.0,
        compensated=compensated,
        ohm=rng.uniform(5.0, 40.0) * G_MAX_US * 1e-6 if wired else None,
    )


def _device(hardware: Hardware) -> devices.Device:
    drift = None
    if hardware.kept != 1.0:
        exponent = -np.log(hardware.kept) / np.log((TIME_S + 20.0) / 20.0)
        drift = devices.Drift(mean=float(exponent), t0_s=20.0)
    return devices.get("ideal", on_off_ratio=hardware.on_off_ratio, drift=drift, g_max_us=G_MAX_US)


def _program(c: crossbar.Config, *, compensated: bool) -> Callable[..., jax.Array]:
    """Return the compiled product: programmed, drifted, compensated, calibrated, read."""

    def run(
        x: jax.Array, w: jax.Array, device: devices.Device, wires: crossbar.Wires | None, ranges: dict[str, Any]
    ) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), 4)
        chip = crossbar.program(keys[0], w, device, config=c, wires=wires, **ranges)
        if device.drift is not None:
            chip = crossbar.drift(chip, TIME_S)
        if compensated:
            chip = crossbar.compensate(keys[1], chip)
        if "calibrated" in (c.dac_range, c.adc_range):
            chip = crossbar.calibrate(keys[2], x, chip, quantile=1.0)
        return crossbar.matmul(keys[3], x, chip)[0]

    return jax.jit(run)


def _case(rng: np.random.Generator, c: crossbar.Config, run: Callable[..., jax.Array], hardware: Hardware) -> float:
    """Compare one product on one hardware; return the share of outputs where rounding decides nothing."""
    w, sizes = _weights(rng, c), crossbar.geometry((ROWS, COLS), c)
    x = _inputs(rng, c, sizes.tile_rows)
    dac_max = {"fixed": 1.75, "calibrated": float(np.abs(x).max())}.get(c.dac_range)
    given: dict[str, float] = {}
    if c.dac_range == "fixed":
        x, given["dac_max"] = x * np.float32(1.75 / 1.5), 1.75
    bounds = None
    if c.adc_range == "fixed":
        given |= {"adc_max": 1.5} | ({"adc_min": -1.0} if c.adc_code == "uniform" else {})
        places = np.ndindex(sizes.num_row_tiles, sizes.num_slices, sizes.num_col_tiles)
        bounds = dict.fromkeys(places, (given.get("adc_min", -1.5), 1.5))
    exact = x.astype(np.float64), w.astype(np.float64)
    if c.adc_range == "calibrated":
        bounds = _ranges(read(*exact, dataclasses.replace(c, adc_range="absmax"), hardware, dac_max), c)
    truth = read(*exact, c, hardware, dac_max, bounds)
    ohm = None if hardware.ohm is None else jnp.float32(hardware.ohm / (G_MAX_US * 1e-6))
    wires = None if ohm is None else crossbar.Wires(row_ohm=ohm, col_ohm=ohm)
    numbers = {name: jnp.float32(value) for name, value in given.items()}
    y = np.asarray(run(jnp.asarray(x), jnp.asarray(w), _device(hardware), wires, numbers), np.float64)
    error = np.abs(y - truth.y) / (np.abs(truth.y).max(axis=0) + 1e-3 * np.abs(w).max())
    assert np.all(error[truth.sure] < 3e-4), (c, hardware, error.round(5), truth.sure)
    return float(truth.sure.mean())


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_every_read_is_that_of_the_twin(group: int) -> None:
    """100 sets of options, each on two matrices and hardwares: 200 configurations in 100 compilations."""
    sure = []
    for i in range(NUM // 2 // GROUPS):
        rng = np.random.default_rng([group, i])
        c, drifts, wired = _config(rng), rng.random() < 0.5, rng.random() < 0.4
        compensated = bool(drifts and rng.random() < 0.7)
        run = _program(c, compensated=compensated)
        for _ in range(2):
            hardware = _hardware(rng, drifts=drifts, compensated=compensated, wired=wired)
            sure.append(_case(rng, c, run, hardware))
    assert np.mean(sure) > 0.75


def _law(g: np.ndarray) -> np.ndarray:
    return np.square(SIGMA * (0.5 + 2.0 * g * (1.0 - g)))


@pytest.mark.parametrize("index", mostly_slow(range(8), 0, 1, 2, 3))
def test_mean_and_variance_over_chips_are_those_of_the_twin(index: int) -> None:
    """Noise that differs from level to level, ideal converters: closed forms in float64 against moments and samples."""
    rng = np.random.default_rng([99, index])
    c = crossbar.Config(**dataclasses.asdict(_config(rng)) | dataclasses.asdict(crossbar.Converters()))
    hardware = _hardware(rng, drifts=False, compensated=False, wired=False)
    law = devices.Law(sigma=lambda g: 0.5 + 2.0 * g * (1.0 - g))
    device = devices.get("Gaussian", sigma=SIGMA, on_off_ratio=hardware.on_off_ratio).replace(programming=law)
    w, x = _weights(rng, c), rng.standard_normal((VECTORS, ROWS)).astype(np.float32)
    exact = x.astype(np.float64), w.astype(np.float64)
    mean = read(*exact, c, hardware).y
    variance = cell_variance(exact[1], exact[0], c, hardware.on_off_ratio, _law)
    target = crossbar.encode(w, device, config=c)
    found_mean, found_variance = crossbar.product_moments(x, target)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-4, atol=1e-4 * np.abs(mean).max())
    np.testing.assert_allclose(found_variance, variance, rtol=1e-4)
    draw = jax.jit(lambda keys: jax.lax.map(lambda k: crossbar.sample(k, x, target)[0], keys))
    y = np.asarray(draw(jax.random.split(jax.random.key(index), CHIPS)), np.float64)
    assert np.all(np.abs(y.mean(axis=0) - mean) <= 5 * np.sqrt(variance / CHIPS) + 1e-5 * np.abs(mean).max())
    squares = np.square(y - mean)
    assert np.all(np.abs(squares.mean(axis=0) - variance) <= 5 * squares.std(axis=0) / np.sqrt(CHIPS) + 1e-12)
