"""Outputs that CrossSim 3.2.0 and aihwkit 1.2.0 computed, against ours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import crossbar, devices

GOLDEN = Path(__file__).parents[1] / "golden"


def _load(case: str) -> dict[str, np.ndarray]:
    with np.load(next(GOLDEN.glob(f"{case}_*.npz")), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _product(
    data: dict[str, np.ndarray], device: devices.Device, config: crossbar.Config, **ranges: float
) -> np.ndarray:
    write, read = jax.random.split(jax.random.key(0))
    chip = crossbar.program(write, jnp.asarray(data["w"]), device, config=config, **ranges)
    y, _ = crossbar.matmul(read, jnp.asarray(data["x"]), chip)
    return np.asarray(y)


def _assert_close(ours: np.ndarray, theirs: np.ndarray, lsb: float, tolerance: float) -> None:
    """Allow rounding, and one code of difference in at most 0.1 % of the entries."""
    error = np.abs(ours - theirs)
    flipped = error > tolerance
    assert flipped.mean() <= 1e-3
    assert (error[flipped] < 1.01 * lsb).all()


def test_case_01_differential_pair_with_converters_and_two_tiles() -> None:
    data = _load("01")
    w_max = json.loads(str(data["meta"]))["weight_max"]
    config = crossbar.Config(rows=192, dac_bits=8, dac_range="fixed", adc_bits=8, adc_range="fixed", adc_code="uniform")
    y = _product(data, devices.get("ideal"), config, dac_max=1.0, adc_max=6.0)
    _assert_close(y, data["y"], lsb=12 / 255 * w_max, tolerance=1e-5)


def test_case_02_on_off_ratio_and_four_bit_cells() -> None:
    data = _load("02")
    w_max = json.loads(str(data["meta"]))["weight_max"]
    device = devices.get("ideal", on_off_ratio=10.0)
    config = crossbar.Config(cell_bits=4, dac_bits=6, dac_range="fixed", adc_bits=8, adc_range="fixed")
    y = _product(data, device, config, dac_max=1.0, adc_max=4.0)
    _assert_close(y, data["y"], lsb=4 / 127 * w_max / 0.9, tolerance=1e-5)


def test_case_06_clipped_programming_noise_jointly_over_inputs() -> None:
    data = _load("06")
    device = devices.get("Gaussian", sigma=0.05, clip=True)
    config = crossbar.Config()
    target = crossbar.encode(jnp.asarray(data["w"]), device, config=config)
    x = jnp.asarray(data["x"])
    num = 4000
    sample = jax.jit(
        lambda key: jax.lax.map(lambda i: crossbar.sample(jax.random.fold_in(key, i), x, target)[0], jnp.arange(num))
    )
    y = np.asarray(sample(jax.random.key(6)))
    z = (y.mean(axis=0) - data["y_mean"]) / (np.sqrt(2 / num) * data["y_std"])
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(y.std(axis=0), data["y_std"], rtol=0.05)
    for n, theirs in enumerate(data["cov_inputs"]):
        ours = np.corrcoef(y[:, :, n].T)
        spread = np.sqrt(np.diag(theirs))
        np.testing.assert_allclose(ours, theirs / np.outer(spread, spread), atol=0.06)


def test_case_10_absmax_inputs_and_symmetric_converter() -> None:
    data = _load("10")
    config = crossbar.Config(rows=192, dac_bits=8, adc_bits=8, adc_range="fixed")
    w_max = np.abs(data["w"]).max()
    # their converter range is in units of weights, ours in units of the largest weight
    y = _product(data, devices.get("ideal"), config, adc_max=10.0 / w_max)
    scale = np.abs(data["x"].reshape(16, 2, 192)).max(axis=2).sum(axis=1).max()
    _assert_close(y, data["y"], lsb=10 / 127 * scale, tolerance=1e-4)
