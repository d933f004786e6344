"""Write-verify against closed forms for every mapping and slicing; column factors against least squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

SHAPE = (60, 20)
SIGMA, RESIDUAL = 0.1, 0.02


def config_of(mapping: str, slices: str, bits: int = 6) -> crossbar.Config:
    """Return options with one data column an array where a reference is shared, so that errors are independent."""
    num = crossbar.geometry((1, 1), crossbar.Config(mapping=mapping, weight_bits=bits, cell_bits=2)).num_slices
    cols = None if mapping != "offset" else 2 * num if slices == "columns" else 2
    rows = 25 * (num if slices == "rows" else 1)
    return crossbar.Config(rows=rows, cols=cols, mapping=mapping, weight_bits=bits, cell_bits=2, slices=slices)


CASES = [(m, s) for m in ("differential", "offset", "offset_digital") for s in ("arrays", "rows", "columns")]


@pytest.fixture(scope="module")
def weights():
    return jax.random.uniform(jax.random.key(0), SHAPE, minval=-1.0)


@pytest.fixture(scope="module")
def mask():
    return jax.random.bernoulli(jax.random.key(1), 0.4, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "slices"), CASES)
def test_errors_have_the_variance_of_their_closed_form(weights, mask, mapping, slices):
    config, device = config_of(mapping, slices), devices.get("Gaussian", sigma=SIGMA)
    target = crossbar.encode(weights, device, config=config)
    mean, variance = crossbar.product_moments(jnp.eye(SHAPE[0]), target)
    chip = crossbar.program_verified(jax.random.key(2), weights, mask, device, RESIDUAL, config=config)
    error = np.asarray(crossbar.read_back(jax.random.key(3), chip) - mean, np.float64)
    # a pair is verified in both cells; a reference column is not verified, and is half of what a weight is made of
    left = (RESIDUAL / SIGMA) ** 2
    shrink = (1 + left) / 2 if mapping == "offset" else left
    expected = np.asarray(variance, np.float64) * np.where(np.asarray(mask), shrink, 1.0)
    squares = np.square(error) / expected
    for part in (squares[np.asarray(mask)], squares[~np.asarray(mask)]):
        assert abs(part.mean() - 1.0) < 5 * np.sqrt(2 / part.size)


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "slices"), CASES)
def test_cells_outside_the_mask_are_those_of_a_plain_chip(weights, mask, mapping, slices):
    config, device = config_of(mapping, slices), devices.get("FeFET3", sigma=SIGMA)

    def read(chip):
        return crossbar.read_back(jax.random.key(5), chip)

    plain = read(crossbar.program(jax.random.key(4), weights, device, config=config))
    chosen = read(crossbar.program_verified(jax.random.key(4), weights, mask, device, RESIDUAL, config=config))
    every = read(
        crossbar.program_verified(jax.random.key(4), weights, jnp.ones(SHAPE, bool), device, RESIDUAL, config=config)
    )
    np.testing.assert_array_equal(chosen[~mask], plain[~mask])
    np.testing.assert_array_equal(chosen[mask], every[mask])
    assert float(jnp.abs(every - plain).min()) > 0
    assert float(jnp.square(every - weights).mean()) < 0.7 * float(jnp.square(plain - weights).mean())


def test_a_verified_chip_drifts_and_compensates_as_any_other(weights, mask):
    config, device = config_of("differential", "arrays"), devices.get("PCM").replace(read=None)
    chip = crossbar.program_verified(jax.random.key(6), weights, mask, device, 0.1, config=config)
    used = np.minimum(25, 60 - 25 * np.arange(3)).repeat(len(chip.baseline) // 3)  # rows of each array
    sums = [float(g[:, :rows].sum()) for g, rows in zip(chip.cells.g, used, strict=True)]
    np.testing.assert_allclose(chip.baseline, sums, rtol=1e-6)
    later = crossbar.compensate(jax.random.key(7), crossbar.drift(chip, 1e5))
    assert bool((later.gain > 1.1).all())


def test_the_share_is_selected_by_importance_the_first_of_equals_first():
    importance = jax.random.permutation(jax.random.key(8), jnp.arange(40.0)).reshape(8, 5)
    for share, num in ((0.0, 0), (0.1, 4), (0.26, 10), (1.0, 40)):
        np.testing.assert_array_equal(crossbar.selected(importance, share), importance >= 40 - num)
    assert crossbar.selected(jnp.zeros((2, 3)), 0.5).tolist() == [[True, True, True], [False, False, False]]
    traced = jax.jit(crossbar.selected)(importance, 0.1)
    np.testing.assert_array_equal(traced, crossbar.selected(importance, 0.1))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32, jnp.float32, jnp.bfloat16])
def test_importance_of_every_dtype_is_selected_alike(dtype):
    importance = jnp.asarray([[0, 3], [2, 1]], dtype)
    assert crossbar.selected(importance, 0.5).tolist() == [[False, True], [True, False]]
    if jnp.issubdtype(dtype, jnp.signedinteger):
        least = importance.at[0, 0].set(jnp.iinfo(dtype).min)
        assert crossbar.selected(least, 0.75).tolist() == [[False, True], [True, True]]


def test_column_factors_are_the_least_squares_of_each_column():
    exact = jax.random.normal(jax.random.key(9), (30, 6))
    outputs = exact * jnp.linspace(0.4, 2.0, 6)[None, :] + 0.1 * jax.random.normal(jax.random.key(10), (30, 6))
    found = crossbar.column_factors(outputs, exact, ridge=0.0)
    truth = [np.linalg.lstsq(np.asarray(outputs)[:, [j]], np.asarray(exact)[:, j])[0][0] for j in range(6)]
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    np.testing.assert_allclose(crossbar.column_factors(outputs, exact), truth, rtol=1e-5)
    silent = crossbar.column_factors(outputs.at[:, 2].set(0.0), exact)
    assert float(silent[2]) == 1.0


def test_bad_input_is_named(weights, mask):
    # a wrong shape is named by the run-time check of types in the tests, by the function's own without it
    device = devices.get("FeFET3")
    with pytest.raises(Exception, match="verified"):
        crossbar.program_verified(jax.random.key(0), weights, mask[:3], device, 0.1, config=crossbar.Config())
    config = crossbar.Config(noise="value")
    with pytest.raises(ValueError, match="noise"):
        crossbar.program_verified(jax.random.key(0), weights, mask, device, 0.1, config=config)
    with pytest.raises(ValueError, match="share"):
        crossbar.selected(weights, 1.5)
    with pytest.raises(Exception, match="reference"):
        crossbar.column_factors(weights, weights[:3])
