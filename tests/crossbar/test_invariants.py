"""What other simulators got wrong, and drift and reprogramming of one chip: each an invariant here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

RNG = np.random.default_rng(2)
W = RNG.uniform(-1, 1, (30, 5)).astype("f4")
X = RNG.uniform(-1, 1, (3, 30)).astype("f4")
CONFIG = crossbar.Config(rows=16)


def _chip(device: devices.Device, config: crossbar.Config = CONFIG, seed: int = 0) -> crossbar.Chip:
    return crossbar.program(jax.random.key(seed), W, device, config=config)


@pytest.mark.parametrize("name", ["RRAMWan2022-1d", "PCM", "RRAMMilo2021", "FeFET6"])
def test_1_sigma_scales_with_g_max(name: str) -> None:
    """Normalised noise does not depend on g_max, so the noise in microsiemens is proportional to it."""
    small, large = devices.get(name, g_max_us=20.0), devices.get(name, g_max_us=40.0)
    noise = [np.asarray(_chip(device).cells.g) * float(device.g_max_us) for device in (small, large)]
    np.testing.assert_allclose(noise[1], 2 * noise[0], rtol=1e-5)


def test_2_drift_acts_on_the_stored_pair() -> None:
    """Both cells of a pair drift from what was programmed, the noise of an empty cell included."""
    device = devices.get("Gaussian", sigma=0.1, drift=devices.Drift(mean=0.05))
    chip = _chip(device)
    later = crossbar.drift(chip, 980.0)
    np.testing.assert_allclose(later.cells.g, chip.cells.g * (1000 / 20) ** -0.05, rtol=1e-5)
    assert (np.asarray(chip.cells.g).min(axis=1) != 0).all()


def test_4_integer_inputs_and_weights_keep_their_noise() -> None:
    device = devices.get("Gaussian", sigma=0.1)
    whole = np.array([[3, -1], [2, 4]])
    chip = crossbar.program(jax.random.key(0), whole, device, config=CONFIG)
    y, _ = crossbar.matmul(jax.random.key(1), np.array([1, 2]), chip)
    assert np.abs(y - np.round(y)).max() > 1e-3


def test_5_remainder_rows_and_columns_have_an_effect() -> None:
    config = crossbar.Config(rows=16, cols=2)
    device = devices.get("ideal")
    chip = crossbar.program(jax.random.key(0), W, device, config=config)
    y, _ = crossbar.matmul(jax.random.key(1), np.eye(30, dtype="f4"), chip)
    np.testing.assert_allclose(y, W, atol=1e-6)


def test_6_the_chip_is_the_same_from_read_to_read() -> None:
    device = devices.get("Gaussian", sigma=0.2)
    chip = _chip(device)
    reads = [crossbar.matmul(jax.random.key(seed), X, chip)[0] for seed in (1, 2)]
    np.testing.assert_array_equal(reads[0], reads[1])
    other, _ = crossbar.matmul(jax.random.key(1), X, _chip(device, seed=9))
    assert np.abs(other - reads[0]).max() > 0.01


def test_7_cells_of_one_level_have_independent_noise() -> None:
    device = devices.get("FeFET3", sigma=0.1)
    config = crossbar.Config(rows=128, cell_bits=2)
    chip = crossbar.program(jax.random.key(0), np.ones((200, 50)), device, config=config)
    noise = np.asarray(chip.cells.g)[:, 0] - 1.0  # all at the highest level
    used = np.concatenate([noise[0], noise[1, :72]])
    assert len(np.unique(used)) > 0.99 * used.size
    products = (used[:, 1:] * used[:, :-1]).mean() / used.var()
    assert abs(products) < 5 / used.size**0.5


def test_drift_is_absolute_in_time_and_keeps_the_programmed_state() -> None:
    device = devices.get("PCM")
    chip = _chip(device)
    once = crossbar.drift(chip, 1e4)
    twice = crossbar.drift(crossbar.drift(chip, 10.0), 1e4)
    np.testing.assert_array_equal(once.cells.g, twice.cells.g)
    back = crossbar.drift(twice, 0.0)
    np.testing.assert_allclose(back.cells.g, chip.cells.g, rtol=1e-6)


def test_compensation_restores_a_drift_that_is_the_same_everywhere() -> None:
    device = devices.get("Gaussian", sigma=0.05, drift=devices.Drift(mean=0.06))
    chip = _chip(device)
    fresh, _ = crossbar.matmul(jax.random.key(1), X, chip)
    later = crossbar.drift(chip, 1e6)
    fallen, _ = crossbar.matmul(jax.random.key(1), X, later)
    np.testing.assert_allclose(fallen, fresh * ((1e6 + 20) / 20) ** -0.06, rtol=1e-4)
    mended = crossbar.compensate(jax.random.key(2), later)
    restored, _ = crossbar.matmul(jax.random.key(1), X, mended)
    np.testing.assert_allclose(restored, fresh, rtol=1e-4)


def test_reprogramming_keeps_what_belongs_to_the_hardware() -> None:
    """Faults stay; the covariance of two programmings of one cell is that of its lasting offset."""
    device = devices.get("Gaussian", sigma=0.05, d2d_sigma=0.1, stuck_on=0.1)
    weights = np.full((100, 60), 0.5, "f4")
    weights[0, 0] = 1.0
    config = crossbar.Config(rows=64)
    chip = crossbar.program(jax.random.key(0), weights, device, config=config)
    again = crossbar.reprogram(jax.random.key(1), chip, weights)
    np.testing.assert_array_equal(chip.cells.fault, again.cells.fault)
    healthy = np.asarray(chip.cells.fault)[:, 1] == 0  # the minus cells, all aimed at 0
    first, second = (np.asarray(c.cells.g)[:, 1][healthy] for c in (chip, again))
    product = first * second
    assert abs(product.mean() - 0.1**2) < 5 * product.std() / product.size**0.5
    assert abs(first.var() - 0.1**2 - 0.05**2) < 5 * first.var() * (2 / first.size) ** 0.5


def test_a_chip_can_be_saved_as_arrays_and_config_apart() -> None:
    chip = _chip(devices.get("PCM"))
    leaves, structure = jax.tree.flatten(chip)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert jax.tree.unflatten(structure, leaves).num_rows == 30
    assert hash(CONFIG) == hash(crossbar.Config(rows=16))


def test_an_instance_does_not_depend_on_how_many_are_asked_for() -> None:
    device = devices.get("FeFET2", sigma=0.1)
    config = crossbar.Config(rows=16, weight_bits=4, cell_bits=2)
    target = crossbar.encode(W, device, config=config)
    key = jax.random.key(3)

    def instance(i: jax.Array) -> jax.Array:
        return crossbar.sample(jax.random.fold_in(key, i), X, target)[0]

    few, many = (jax.jit(lambda ids: jax.lax.map(instance, ids))(jnp.arange(n)) for n in (3, 8))
    np.testing.assert_array_equal(few, many[:3])
