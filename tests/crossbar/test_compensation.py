"""Factors against drift at the edge of what makes sense: wires, arrays with nothing to measure, noise around zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.chips import make_key, product

from nvcim_jax import crossbar, devices

W = np.random.default_rng(12).uniform(-1, 1, (30, 6)).astype("f4")
X = np.random.default_rng(13).standard_normal((4, 30)).astype("f4")
MAPPINGS = ("differential", "offset", "offset_digital")
DRIFTS = devices.Drift(mean=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("wires", [None, 2.0])
def test_compensation_makes_up_for_drift_that_is_the_same_everywhere(mapping: str, wires: float | None) -> None:
    """Without wires exactly; with them at t = 0, where there is nothing to make up for."""
    device = devices.get("ideal", drift=DRIFTS, on_off_ratio=10.0)
    config = crossbar.Config(rows=16, mapping=mapping, weight_bits=6, cell_bits=3)
    ohm = None if wires is None else crossbar.Wires(row_ohm=wires, col_ohm=wires)
    chip = crossbar.program(make_key(), W, device, config=config, wires=ohm)
    fresh = crossbar.compensate(make_key(2), chip)
    np.testing.assert_array_equal(fresh.gain, 1.0)
    if wires is None:
        later = crossbar.compensate(make_key(2), crossbar.drift(chip, 1e5))
        for read in (lambda c: product(X, c), lambda c: crossbar.read_back(make_key(3), c)):
            np.testing.assert_allclose(read(later), read(chip), atol=2e-5)


@pytest.mark.parametrize("ohm", [0.5, 2.0, 5.0])
def test_compensation_at_the_start_is_one_through_wires(rng: np.random.Generator, ohm: float) -> None:
    device = devices.get("ideal", drift=DRIFTS, on_off_ratio=10.0)
    w = rng.uniform(-1, 1, (64, 32)).astype("f4")
    wires = crossbar.Wires(row_ohm=ohm, col_ohm=ohm)
    chip = crossbar.program(make_key(), w, device, config=crossbar.Config(), wires=wires)
    np.testing.assert_array_equal(crossbar.compensate(make_key(2), chip).gain, 1.0)
    later = crossbar.reprogram(make_key(3), crossbar.compensate(make_key(2), crossbar.drift(chip, 1e5)), w)
    np.testing.assert_array_equal(crossbar.compensate(make_key(4), later).gain, 1.0)


@pytest.mark.slow
def test_arrays_with_nothing_to_measure_keep_their_gain() -> None:
    device = devices.get("ideal", drift=DRIFTS)
    w = np.concatenate([np.ones((8, 3)), np.zeros((8, 3))]).astype("f4")
    chip = crossbar.program(make_key(), w, device, config=crossbar.Config(rows=8))
    later = crossbar.compensate(make_key(2), crossbar.drift(chip, 1e5))
    np.testing.assert_allclose(product(np.ones(16, "f4"), later), 8.0, rtol=1e-5)
    assert float(later.gain[1]) == 1.0
    outlier = (0.02 * W).astype("f4")
    outlier[0, 0] = 1.0
    config = crossbar.Config(rows=8, weight_bits=8, cell_bits=2)
    chip = crossbar.program(make_key(), outlier, device, config=config)
    later = crossbar.compensate(make_key(2), crossbar.drift(chip, 1e5))
    np.testing.assert_allclose(product(X, later), product(X, chip), atol=1e-5)
    slope = jax.grad(lambda t: crossbar.compensate(make_key(2), crossbar.drift(chip, t)).gain.sum())(jnp.float32(1e3))
    assert bool(jnp.isfinite(slope))
    assert slope != 0


def test_an_array_of_noise_around_zero_is_not_compensated() -> None:
    device = devices.get("Gaussian", sigma=0.1, drift=devices.Drift(mean=0.05, std=0.02))
    w = np.concatenate([np.ones((8, 4)), np.zeros((200, 4))]).astype("f4")
    chip = crossbar.program(make_key(), w, device, config=crossbar.Config(rows=8))
    gain = np.asarray(crossbar.compensate(make_key(2), crossbar.drift(chip, 1e5)).gain)
    assert 1.2 < gain[0] < 1.9  # (1e5 / 20) ** 0.05 = 1.53
    assert np.all((gain > 0.3) & (gain < 5.0))
