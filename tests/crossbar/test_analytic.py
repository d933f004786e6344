"""The product against closed forms: the digital quantised product, and the variance that noise must have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import crossbar, devices

MAPPINGS = ("differential", "offset", "offset_digital")
IDEAL = devices.get("ideal")


def _data(rows: int = 70, cols: int = 9, batch: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.uniform(-1, 1, (rows, cols)).astype("f4"), rng.standard_normal((batch, rows)).astype("f4")


def _quantised(values: np.ndarray, bits: int, largest: np.ndarray) -> np.ndarray:
    steps = 2 ** (bits - 1) - 1
    return np.round(values.astype("f8") / largest * steps) / steps * largest


def _run(x: np.ndarray, w: np.ndarray, device: devices.Device, config: crossbar.Config, seed: int = 0) -> np.ndarray:
    write, read = jax.random.split(jax.random.key(seed))
    chip = crossbar.program(write, w, device, config=config)
    return np.asarray(crossbar.matmul(read, x, chip)[0])


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize(
    ("weight_bits", "cell_bits", "on_off_ratio"),
    [(None, None, 20.0), (8, None, np.inf), (8, 2, np.inf), (5, 1, 20.0), (16, 4, np.inf), (7, 3, 20.0), (4, 8, 20.0)],
)
def test_ideal_hardware_is_the_digital_quantised_product(
    mapping: str, weight_bits: int | None, cell_bits: int | None, on_off_ratio: float
) -> None:
    w, x = _data()
    config = crossbar.Config(
        rows=32,
        cols=7,
        mapping=mapping,
        weight_bits=weight_bits,
        cell_bits=cell_bits,
        dac_bits=6,
        weight_scale="column",
    )
    device = devices.get("ideal", on_off_ratio=on_off_ratio)
    digital = w if weight_bits is None else _quantised(w, weight_bits, np.abs(w).max(axis=0))
    # every row tile has its own full scale
    parts = [
        _quantised(x[:, s], 6, np.abs(x[:, s]).max(axis=1, keepdims=True)) for s in np.split(np.arange(70), [32, 64])
    ]
    truth = np.concatenate(parts, axis=1) @ digital
    np.testing.assert_allclose(_run(x, w, device, config), truth, atol=2e-4)


def test_the_integer_product_of_ideal_hardware_is_exact() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (50, 6))
    w[0] = 127
    x = rng.integers(-7, 8, (4, 50))
    x[:, 0] = 7
    config = crossbar.Config(rows=64, weight_bits=8, cell_bits=2, weight_scale="column")
    np.testing.assert_array_equal(np.round(_run(x, w, IDEAL, config), 2), x @ w)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("bits_per_cycle", [1, 2, 3])
def test_bit_serial_inputs_change_nothing_without_a_converter(mapping: str, bits_per_cycle: int) -> None:
    w, x = _data()
    whole = crossbar.Config(rows=40, mapping=mapping, weight_bits=6, cell_bits=2, dac_bits=8)
    serial = crossbar.Config(
        rows=40, mapping=mapping, weight_bits=6, cell_bits=2, dac_bits=8, dac_bits_per_cycle=bits_per_cycle
    )
    np.testing.assert_allclose(_run(x, w, IDEAL, serial), _run(x, w, IDEAL, whole), atol=2e-5)


def test_a_converter_rounds_to_the_nearest_code_of_its_range() -> None:
    w, x = np.eye(3, dtype="f4"), np.array([[0.31, -0.9, 0.02]], "f4")
    for code, grid in (("symmetric", np.arange(-7, 8) / 7), ("uniform", np.linspace(-1, 1, 16))):
        config = crossbar.Config(adc_bits=4, adc_range="fixed", adc_code=code)
        chip = crossbar.program(jax.random.key(0), w, IDEAL, config=config, adc_max=1.0)
        y, _ = crossbar.matmul(jax.random.key(1), x, chip)
        unit = x / np.abs(x).max()
        nearest = grid[np.abs(unit[..., None] - grid).argmin(axis=-1)] * np.abs(x).max()
        np.testing.assert_allclose(y, nearest, atol=1e-6)


def test_saturation_and_clipping_are_counted() -> None:
    w, x = np.ones((4, 1), "f4"), np.array([[1.0, 1, 1, 1], [0.1, 0, 0, 0]], "f4")
    config = crossbar.Config(dac_bits=8, dac_range="calibrated", adc_bits=8, adc_range="fixed")
    chip = crossbar.program(jax.random.key(0), w, IDEAL, config=config, adc_max=2.0)
    chip = crossbar.calibrate(jax.random.key(1), 0.5 * x, chip, quantile=1.0)
    y, info = crossbar.matmul(jax.random.key(2), x, chip)
    assert float(info.dac_clipped) == pytest.approx(4 / 8)
    assert float(info.adc_saturated) == pytest.approx(1 / 2)
    assert float(y[0, 0]) == pytest.approx(0.5 * 2.0)


def test_the_largest_range_never_saturates_and_calibration_finds_quantiles() -> None:
    w, x = _data(batch=40)
    config = crossbar.Config(rows=35, adc_bits=10, adc_range="max")
    chip = crossbar.program(jax.random.key(0), np.ones_like(w), IDEAL, config=config)
    _, info = crossbar.matmul(jax.random.key(1), np.ones_like(x), chip)
    assert float(info.adc_saturated) == 0.0
    config = crossbar.Config(rows=35, adc_bits=10, adc_range="calibrated")
    chip = crossbar.program(jax.random.key(0), w, IDEAL, config=config)
    chip = crossbar.calibrate(jax.random.key(1), x, chip, quantile=0.9)
    scaled = x[:, :35] / np.abs(x[:, :35]).max(axis=1, keepdims=True)
    expected = np.quantile(np.abs(scaled @ w[:35] / np.abs(w).max()), 0.9)
    assert float(chip.adc_range[0, 0, 1]) == pytest.approx(expected, rel=1e-4)
    _, info = crossbar.matmul(jax.random.key(2), x, chip)
    assert float(info.adc_saturated) == pytest.approx(0.1, abs=0.01)


def _closed_form_variance(x: np.ndarray, w: np.ndarray, device: devices.Device, config: crossbar.Config) -> np.ndarray:
    """Return Var(y) by hand: sum over cells of (input x digital weight of the cell)^2 x variance of the cell."""
    g_min = float(device.g_min)
    unit = w / np.abs(w).max()
    bits, cell = config.weight_bits, config.cell_bits
    differential = config.mapping == "differential"
    if bits is None:
        steps, code, zero, base, top, slices = 1.0, unit, 0.5, 1.0, 1.0, 1
        code = unit if differential else 0.5 + 0.5 * unit
        largest = 1.0 if differential else 0.5
    else:
        largest = 2.0 ** (bits - 1) - 1
        code_bits = bits - 1 if differential else bits
        slices = -(-code_bits // cell)
        base, top = 2.0**cell, 2.0**cell - 1
        zero = 2.0 ** (bits - 1)
        code = np.round(unit * largest) + (0 if differential else zero)
    halves = [np.maximum(code, 0), np.maximum(-code, 0)] if differential else [code]
    if config.mapping == "offset":
        halves.append(np.full_like(code, zero))
    variance = np.zeros((x.shape[0], w.shape[1]))
    for half in halves:
        for s in range(slices):
            digit = half if bits is None else np.floor(half / base**s) % base
            g = g_min + (1 - g_min) * digit / top
            cell_variance = np.asarray(devices.program_moments(jnp.asarray(g, jnp.float32), device)[1], "f8")
            variance += x.astype("f8") ** 2 @ cell_variance * base ** (2 * s)
    steps = top / (largest * (1 - g_min))
    return variance * (steps * np.abs(w).max()) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("name", mostly_slow(devices.names(), "FeFET3", "RRAM1", "PCM", "Gaussian"))
def test_variance_has_its_closed_form_for_every_device_and_mapping(name: str, mapping: str) -> None:
    device = dataclasses.replace(devices.get(name), drift=None, read=None)
    bits = {"RRAM1": 1}.get(name, 2)
    config = crossbar.Config(rows=24, mapping=mapping, weight_bits=4, cell_bits=bits)
    w, x = _data(rows=40, cols=3, batch=2)
    num = 3000
    target = crossbar.encode(w, device, config=config)

    @jax.jit
    def outputs(key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        return jax.lax.map(lambda k: crossbar.sample(k, x, target)[0], keys)

    y = np.asarray(outputs(jax.random.key(11)), "f8")
    truth = _closed_form_variance(x, w, device, config)
    sample = y.var(axis=0, ddof=1)
    if name == "ideal":
        assert (sample < 1e-9).all()
        return
    fourth = ((y - y.mean(axis=0)) ** 4).mean(axis=0)
    error = np.sqrt((fourth - sample**2) / num)
    assert (np.abs(sample - truth) < 5 * error).all()


@pytest.mark.parametrize("differential", [True, False])
def test_gaussian_noise_gives_sigma_squared_times_the_sum_of_squares(differential: bool) -> None:
    """Var(y) = sigma^2 sum x^2 for single cells, twice that for pairs: exact, no moments of ours involved."""
    config = crossbar.Config(mapping="differential" if differential else "offset_digital")
    device = devices.get("Gaussian", sigma=0.07)
    x = np.linspace(-1, 2, 30, dtype="f4")
    w = np.ones((30, 20_000), "f4")
    y = _run(x, w, device, config)
    factor = 2 * 0.07**2 if differential else (2 * 0.07) ** 2  # one cell spans the range of both signs
    truth = factor * (x**2).sum()
    assert abs(y.var() - truth) < 5 * truth * (2 / y.size) ** 0.5
