"""Sampling modes, faults, clocks: distributions over chips against closed forms, within five standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

NUM = 4000
RNG = np.random.default_rng(8)
W = RNG.uniform(-1, 1, (40, 4)).astype("f4")
# two inputs alike, so that their products on one chip are strongly correlated
X = np.stack([RNG.uniform(-1, 1, 40), RNG.uniform(-1, 1, 40)]).astype("f4")
X = np.concatenate([X, 0.8 * X[:1] + 0.2 * X[1:]])


def _samples(
    device: devices.Device, config: crossbar.Config, seed: int = 0, num: int = NUM, sampling: str = "device"
) -> np.ndarray:
    target = crossbar.encode(W, device, config=config)

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        return jax.lax.map(lambda k: crossbar.sample(k, X, target, sampling=sampling)[0], keys)

    return np.asarray(run(jax.random.key(seed)), "f8")


def _assert_covariance(y: np.ndarray, truth: np.ndarray) -> None:
    """Compare the covariance over chips of several outputs (chips, outputs) with the truth."""
    centred = y - y.mean(axis=0)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / len(y) ** 0.5
    assert (np.abs(products.mean(axis=0) - truth) < 5 * error + 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "mapping"),
    [
        ("device", "differential"),
        ("device", "offset"),
        ("pair", "differential"),
        ("output_joint", "differential"),
        ("output_joint", "offset"),
        ("output_joint", "offset_digital"),
    ],
)
def test_exact_samplings_share_one_chip_over_a_batch(sampling: str, mapping: str) -> None:
    config = crossbar.Config(rows=25, mapping=mapping)
    y = _samples(devices.get("Gaussian", sigma=0.1), config, sampling=sampling)
    # one unit of a cell is 2 weights' worth with an offset; a reference column doubles the variance
    factor = {"differential": 2.0, "offset": 8.0, "offset_digital": 4.0}[mapping]
    scale = float(np.abs(W).max())
    truth = factor * (0.1 * scale) ** 2 * X.astype("f8") @ X.T
    for n in range(2):
        _assert_covariance(y[:, :, n], truth)
    # a shared reference column correlates the columns of one input; nothing else does
    between = truth[0, 0] / 2 if mapping == "offset" else 0.0
    _assert_covariance(y[:, 0, :2], np.array([[truth[0, 0], between], [between, truth[0, 0]]]))


def test_joint_sampling_with_more_inputs_than_rows_and_repeated_inputs() -> None:
    device, config = devices.get("Gaussian", sigma=0.1), crossbar.Config(rows=20)
    many = np.repeat(X, 10, axis=0)
    target = crossbar.encode(W, device, config=config)
    y, _ = crossbar.sample(jax.random.key(0), many, target, sampling="output_joint")
    np.testing.assert_allclose(y[0::10], y[9::10], atol=1e-5)  # the same input on the same chip
    y, _ = crossbar.sample(jax.random.key(0), many[:15], target, sampling="output_joint")
    np.testing.assert_allclose(y[0], y[9], atol=1e-5)  # also where the outputs are drawn, not the cells
    zero, _ = crossbar.sample(jax.random.key(0), np.zeros((2, 40)), target, sampling="output_joint")
    np.testing.assert_array_equal(zero, np.zeros((2, 4)))


def test_marginal_sampling_is_right_for_one_input_and_wrong_between_inputs() -> None:
    device = devices.get("FeFET6", sigma=0.1)
    config = crossbar.Config(rows=25, weight_bits=4, cell_bits=2)
    y = _samples(device, config, sampling="output_marginal")
    cells = _samples(device, config, seed=1)
    ratio = y.var(axis=0) / cells.var(axis=0)
    assert (np.abs(ratio - 1) < 5 * 2 * NUM**-0.5).all()
    assert np.corrcoef(cells[:, 0, 0], cells[:, 2, 0])[0, 1] > 0.9
    assert abs(np.corrcoef(y[:, 0, 0], y[:, 2, 0])[0, 1]) < 5 * NUM**-0.5


def test_moment_matched_sampling_has_the_moments_of_clipped_cells() -> None:
    device = devices.get("Gaussian", sigma=0.1, clip=True)
    config = crossbar.Config(rows=20)
    y, cells = _samples(device, config, sampling="moment_matched"), _samples(device, config, seed=1)
    error = ((y.var(axis=0) + cells.var(axis=0)) / NUM) ** 0.5
    assert (np.abs(y.mean(axis=0) - cells.mean(axis=0)) < 5 * error).all()
    assert (np.abs(y.var(axis=0) / cells.var(axis=0) - 1) < 5 * 2 * NUM**-0.5).all()
    plain = np.einsum("br,rn->bn", X, W)
    assert np.abs(cells.mean(axis=0) - plain).max() > 10 * error.max()  # clipping moves the mean


@pytest.mark.parametrize("bits_per_cycle", [None, 1])
def test_joint_sampling_serves_bit_serial_inputs(bits_per_cycle: int | None) -> None:
    device = devices.get("Gaussian", sigma=0.1)
    y = [
        _samples(device, crossbar.Config(dac_bits=6, dac_bits_per_cycle=bits_per_cycle), seed, sampling=s)
        for seed, s in enumerate(("device", "output_joint"))
    ]
    ratio = y[0].var(axis=0) / y[1].var(axis=0)
    assert (np.abs(ratio - 1) < 5 * 2 * NUM**-0.5).all()


def test_stuck_cells_move_mean_and_variance_as_they_must() -> None:
    p_on, p_off = 0.05, 0.1
    device = devices.get("ideal", stuck_on=p_on, stuck_off=p_off)
    y = _samples(device, crossbar.Config(rows=25))
    unit = W.astype("f8") / np.abs(W).max()
    plus, minus = np.maximum(unit, 0), np.maximum(-unit, 0)
    keep = 1 - p_on - p_off
    mean = X @ (keep * (plus - minus)) * np.abs(W).max()

    def variance(g: np.ndarray) -> np.ndarray:
        return keep * g**2 + p_on - (keep * g + p_on) ** 2

    truth = X.astype("f8") ** 2 @ (variance(plus) + variance(minus)) * np.abs(W).max() ** 2
    assert (np.abs(y.mean(axis=0) - mean) < 5 * (truth / NUM) ** 0.5).all()
    fourth = ((y - y.mean(axis=0)) ** 4).mean(axis=0)
    assert (np.abs(y.var(axis=0) - truth) < 5 * ((fourth - truth**2) / NUM) ** 0.5).all()


def test_reads_of_one_chip_differ_by_read_noise_alone() -> None:
    device = devices.get("Gaussian", sigma=0.2, read=devices.Read(sigma=0.05))
    config = crossbar.Config(rows=25)
    chip = crossbar.program(jax.random.key(0), W, device, config=config)
    read = jax.jit(lambda key: crossbar.matmul(key, X[0], chip)[0])
    y = np.asarray(jax.lax.map(read, jax.random.split(jax.random.key(1), NUM)), "f8")
    quiet = chip.replace(device=device.replace(read=None))
    exact, _ = crossbar.matmul(jax.random.key(2), X[0], quiet)
    scale = float(np.abs(W).max())
    truth = 2 * (0.05 * scale) ** 2 * (X[0].astype("f8") ** 2).sum()
    assert (np.abs(y.mean(axis=0) - exact) < 5 * (truth / NUM) ** 0.5).all()
    assert (np.abs(y.var(axis=0) / truth - 1) < 5 * (2 / NUM) ** 0.5).all()
    assert np.abs(exact - X[0] @ W).max() > truth**0.5  # programming noise is there, and the same in every read


def test_value_noise_follows_the_row_of_the_device() -> None:
    device = devices.get("FeFET6", sigma=0.1)
    config = crossbar.Config(rows=25, weight_bits=12, cell_bits=2, noise="value")
    values = np.tile(np.array([[0.1], [0.4], [-0.6], [1.0]], "f4"), (1, 4000))
    chip = crossbar.program(jax.random.key(0), values, device, config=config)
    error = np.asarray(crossbar.read_back(jax.random.key(1), chip)) - values
    row = np.array([0.26, 1.55, 1.55, 0.26]) * 0.1  # sigma .1 times the printed row over .01
    assert (np.abs(error.std(axis=1) / row - 1) < 5 * (2 / 4000) ** 0.5 + 0.01).all()
