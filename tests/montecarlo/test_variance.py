"""Variance reduction is unbiased, and its reported gain is the true one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, montecarlo, ops


def test_mirrored_draws_are_negated_through_splits_and_folds(key: jax.Array) -> None:
    def draws(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(jax.random.fold_in(key, 3))
        return jax.random.normal(first, (500,)), jax.random.uniform(second, (500,))

    (z, u), (mirrored_z, mirrored_u) = draws(jax.random.key(1)), draws(ops.mirror(jax.random.key(1)))
    # u -> 1 - 2^-23 - u: the last bit of the uniform number is all that is not mirrored
    np.testing.assert_allclose(mirrored_u, 1 - u, atol=2**-22)
    np.testing.assert_allclose(mirrored_z, -z, rtol=1e-3, atol=1e-6)


def quadratic(key: jax.Array, curve: jax.Array) -> jax.Array:
    z = jax.random.normal(key, (3,))
    return jnp.sum(z + curve * z**2)


def test_antithetic_mean_is_unbiased_and_its_gain_is_the_closed_form() -> None:
    curve = 0.1
    stats = montecarlo.run(montecarlo.antithetic(quadratic), jax.random.key(0), 20_000, args=(jnp.float32(curve),))
    found = montecarlo.antithetic_mean(stats.values)
    assert abs(found.mean - 3 * curve) < 5 * found.standard_error
    # Var f = 3 (1 + 2 c^2); the pair mean is c z^2 summed, variance 6 c^2
    truth = 3 * (1 + 2 * curve**2) / (6 * curve**2)
    assert found.effective_instances / 20_000 == pytest.approx(truth, rel=0.06)
    assert found.num_evaluations == 40_000


def test_antithetic_of_an_even_metric_gains_nothing_and_says_so() -> None:
    metric = montecarlo.antithetic(lambda key: jax.random.normal(key) ** 2)
    found = montecarlo.antithetic_mean(montecarlo.run(metric, jax.random.key(0), 5000).values)
    assert found.effective_instances == pytest.approx(5000, rel=1e-3)
    assert abs(found.mean - 1) < 5 * found.standard_error


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_antithetic_works_on_trees_and_keys_of_any_kind(impl: str) -> None:
    metric = montecarlo.antithetic(lambda key: {"loss": jax.random.normal(key)})
    stats = montecarlo.run(metric, jax.random.key(0, impl=impl), 100)
    found = montecarlo.antithetic_mean(stats.values, lambda tree: tree["loss"])
    assert abs(found.mean) < 1e-5


ROWS, COLS = 32, 8


def _device(name: str, rng: str) -> devices.Device:
    return devices.get(name, rng=rng, **({"sigma": 0.1} if name == "Gaussian" else {}))


def _antithetic_product(
    device: devices.Device, config: crossbar.Config, num: int, sampling: str = "device"
) -> montecarlo.Reduced:
    """Return the reduced mean of one output of a product on fresh chips, less the output without noise."""
    weights = jax.random.normal(jax.random.key(5), (ROWS, COLS))
    x = jax.random.normal(jax.random.key(6), (ROWS,))

    def metric(key: jax.Array, weights: jax.Array, x: jax.Array) -> jax.Array:
        target = crossbar.encode(weights, device, config=config)
        return crossbar.sample(key, x, target, sampling=sampling)[0][0] - x @ weights[:, 0]

    stats = montecarlo.run(montecarlo.antithetic(metric), jax.random.key(0), num, args=(weights, x))
    return montecarlo.antithetic_mean(stats.values)


@pytest.mark.slow
@pytest.mark.parametrize("rng", mostly_slow(ops.RNGS, "counter"))
@pytest.mark.parametrize("sampling", ["device", "pair", "output_joint", "output_marginal"])
def test_antithetic_chips_cancel_the_noise_of_a_linear_product(rng: str, sampling: str) -> None:
    found = _antithetic_product(_device("Gaussian", rng), crossbar.Config(), 200, sampling)
    assert found.effective_instances > 1e6 * found.num_evaluations
    assert abs(found.mean) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("rng", ops.RNGS)
def test_antithetic_chips_gain_through_converters_and_tiles(rng: str) -> None:
    config = crossbar.Config(rows=16, cols=8, weight_bits=8, cell_bits=2, dac_bits=8, adc_bits=8, adc_range="max")
    plain = _antithetic_product(_device("FeFET6", rng), config, 1000)
    assert plain.effective_instances > 5 * plain.num_evaluations
    # rounding of weights and inputs: half a step a row each; of a converter: half a step an array and slice
    assert abs(plain.mean) < 5 * plain.standard_error + 0.2


def test_control_variate_is_unbiased_over_repetitions_at_a_small_size() -> None:
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(4000):
        z = rng.normal(size=12)
        errors.append(montecarlo.control_variate(np.exp(z), z, 0.0).mean - np.exp(0.5))
    errors = np.asarray(errors)
    assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(len(errors))


def test_control_from_the_linearised_output_gains_what_theory_says() -> None:
    scale = 0.2

    def metric(key: jax.Array) -> dict[str, jax.Array]:
        noise = scale * jax.random.normal(key, (4,))
        return montecarlo.linearised(lambda n: jnp.exp(n).sum())(noise)

    stats = montecarlo.run(metric, jax.random.key(0), 20_000)
    found = montecarlo.control_variate(stats.values["value"], stats.values["control"], 0.0)
    assert abs(found.mean - 4 * np.exp(scale**2 / 2)) < 5 * found.standard_error
    total = np.exp(2 * scale**2) - np.exp(scale**2)
    explained = scale**2 * np.exp(scale**2)  # cov(e^n, n)^2 / var(n)
    truth = total / (total - explained)
    assert found.effective_instances / 20_000 == pytest.approx(truth, rel=0.1)
    assert found.coefficient == pytest.approx(np.exp(scale**2 / 2), rel=0.02)


def test_control_variate_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="`control` must have shape"):
        montecarlo.control_variate(np.zeros(20), np.zeros(3), 0.0)
    with pytest.raises(ValueError, match="`values` must hold at least 10 finite instances"):
        montecarlo.control_variate(np.full(20, np.nan), np.zeros(20), 0.0)


def test_pairs_of_truth_values_and_small_integers_are_averaged_as_numbers() -> None:
    for value, keep in ((True, True), (True, False), (jnp.uint8(200), True)):
        metric = montecarlo.antithetic(lambda key, value=value: jnp.asarray(value))
        found = montecarlo.run(metric, jax.random.key(0), 5, keep_values=keep, progress=False)
        assert found.mean["mean"] == float(value)
