"""jit, vmap, grad and sweeps: the transformations that users compose the product with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices, montecarlo

CONFIG = crossbar.Config(rows=16, weight_bits=6, cell_bits=2, dac_bits=7, adc_bits=9)


def _key() -> jax.Array:
    """Return the one key of these tests, fresh: comparing two computations of one draw is the point."""
    return jax.random.key(5)


W = np.random.default_rng(0).uniform(-1, 1, (30, 6)).astype("f4")
X = np.random.default_rng(1).standard_normal((4, 30)).astype("f4")


def _noisy(sigma: float | jax.Array = 0.05, **changes: object) -> devices.Device:
    return devices.get("FeFET6", sigma=sigma, **changes)


def _product(key: jax.Array, x: jax.Array, w: jax.Array, device: devices.Device, config: crossbar.Config) -> jax.Array:
    write, read = jax.random.split(key)
    chip = crossbar.program(write, w, device, config=config)
    return crossbar.matmul(read, x, chip)[0]


def test_jit_equals_eager_and_sample_equals_write_and_matmul() -> None:
    device = _noisy()
    eager = _product(_key(), X, W, device, CONFIG)
    jitted = jax.jit(_product, static_argnums=4)(_key(), X, W, device, CONFIG)
    np.testing.assert_allclose(jitted, eager, atol=1e-4)
    target = crossbar.encode(W, device, config=CONFIG)
    np.testing.assert_allclose(crossbar.sample(_key(), X, target)[0], eager, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "effects",
    [
        {"read": devices.Read(sigma=0.03)},
        {"d2d_sigma": 0.03},
        {"stuck_on": 0.1},
        {"clip": True},
        {"rng": "threefry"},
    ],
    ids=lambda effects: next(iter(effects)),
)
def test_sample_equals_write_and_matmul_with_every_effect(effects: dict) -> None:
    device = _noisy(**effects)
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2)
    target = crossbar.encode(W, device, config=config)
    sampled = crossbar.sample(_key(), X, target)[0]
    np.testing.assert_allclose(sampled, _product(_key(), X, W, device, config), atol=2e-5)


def test_vmap_over_instances_equals_a_loop_and_lax_map() -> None:
    device = _noisy()
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2)
    keys = jax.random.split(_key(), 3)

    def one(key: jax.Array) -> jax.Array:
        return _product(key, X, W, device, config)

    loop = np.stack([one(key) for key in keys])
    np.testing.assert_allclose(jax.vmap(one)(jax.random.clone(keys)), loop, atol=2e-5)
    np.testing.assert_allclose(jax.lax.map(one, jax.random.clone(keys)), loop, atol=2e-5)


def test_a_vector_is_a_batch_of_one() -> None:
    device = _noisy()
    batch = _product(_key(), X, W, device, CONFIG)
    single = _product(_key(), X[2], W, device, CONFIG)
    assert single.shape == (6,)
    np.testing.assert_allclose(single, batch[2], atol=1e-4)


def test_sweeps_of_sigma_g_max_time_and_wires_are_one_trace() -> None:
    traces = 0
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2)

    @jax.jit
    def run(key: jax.Array, device: devices.Device, t_s: jax.Array, wires: crossbar.Wires) -> jax.Array:
        nonlocal traces
        traces += 1
        write, read = jax.random.split(key)
        chip = crossbar.program(write, W, device, config=config, wires=wires)
        chip = crossbar.drift(chip, t_s)
        return crossbar.matmul(read, X, chip)[0]

    results = []
    for sigma, g_max, t, ohm in [(0.5, 25.0, 1.0, 0.0), (1.0, 25.0, 1e3, 1.0), (2.0, 50.0, 1e6, 2.0)]:
        device = devices.get("PCM", sigma=sigma, g_max_us=g_max)
        results.append(
            run(_key(), device, jnp.asarray(t), crossbar.Wires(row_ohm=jnp.asarray(ohm), col_ohm=jnp.asarray(ohm)))
        )
    assert traces == 1
    assert np.abs(results[0] - results[1]).max() > 1e-3


def test_sigma_can_be_vmapped() -> None:
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2)
    sigmas = jnp.asarray([0.0, 0.1, 0.2])
    y = jax.vmap(lambda sigma: _product(_key(), X, W, _noisy(sigma), config))(sigmas)
    exact = _product(_key(), X, W, devices.get("ideal"), config)
    np.testing.assert_allclose(y[0], exact, atol=1e-5)
    np.testing.assert_allclose(y[2] - y[0], 2 * (y[1] - y[0]), atol=1e-4)


@pytest.mark.slow
def test_gradients_of_an_analog_product_are_the_closed_form() -> None:
    """With y = x (w + noise), dy/dx is what the chip stores, and dy/dw is x, whatever the noise."""
    config = crossbar.Config()
    device = devices.get("Gaussian", sigma=0.05)
    write, read, again = jax.random.split(_key(), 3)
    chip = crossbar.program(write, W, device, config=config)
    stored = crossbar.read_back(read, chip)
    v = np.random.default_rng(2).standard_normal((4, 6)).astype("f4")
    grad_x = jax.grad(lambda x: (crossbar.matmul(again, x, chip)[0] * v).sum())(jnp.asarray(X))
    np.testing.assert_allclose(grad_x, v @ np.asarray(stored).T, atol=1e-4)
    # all but the largest weight, which also sets the scale of the noise
    grad_w = jax.grad(lambda w: (_product(_key(), X, w, device, config) * v).sum())(jnp.asarray(W))
    rest = np.abs(W) < np.abs(W).max()
    np.testing.assert_allclose(np.asarray(grad_w)[rest], (X.T @ v)[rest], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["differential", "offset", "offset_digital"])
def test_straight_through_gradients_are_those_of_the_relaxed_twin(mapping: str) -> None:
    """Every hard step at once: rounding, slicing, both converters. The twin has none of them."""
    hard = crossbar.Config(
        rows=16, mapping=mapping, weight_bits=8, cell_bits=2, dac_bits=8, dac_bits_per_cycle=1, adc_bits=12
    )
    soft = crossbar.Config(rows=16, mapping=mapping)
    device = devices.get("ideal")
    v = np.random.default_rng(2).standard_normal((4, 6)).astype("f4")

    def loss(config: crossbar.Config) -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda x, w: (_product(_key(), x, w, device, config) * v).sum(), argnums=(0, 1))(
            jnp.asarray(X), jnp.asarray(W)
        )

    (hard_x, hard_w), (soft_x, soft_w) = loss(hard), loss(soft)
    np.testing.assert_allclose(soft_x, v @ W.T, atol=1e-4)
    np.testing.assert_allclose(soft_w, X.T @ v, atol=1e-4)
    # the quantised weights and inputs differ from the real ones by half a step
    np.testing.assert_allclose(hard_x, soft_x, atol=0.05)
    # the largest weight also sets the scale, by which the rounding errors of all others change
    rest = np.abs(W) < np.abs(W).max()
    np.testing.assert_allclose(np.asarray(hard_w)[rest], np.asarray(soft_w)[rest], atol=0.15)


def test_the_gradient_to_sigma_agrees_with_finite_differences() -> None:
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2)

    def loss(sigma: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(_product(_key(), X, W, _noisy(sigma), config)))

    slope = jax.grad(loss)(jnp.asarray(0.1))
    difference = (loss(jnp.asarray(0.11)) - loss(jnp.asarray(0.09))) / 0.02
    assert float(slope) == pytest.approx(
        float(difference), rel=1e-2
    )  # a parabola: the difference is exact but rounding


def test_ranges_can_be_learned() -> None:
    """The gradient to a converter's range agrees with that of the clipped, unrounded output where it saturates."""
    config = crossbar.Config(adc_bits=6, adc_range="fixed")
    device = devices.get("ideal")

    def output(adc_max: jax.Array) -> jax.Array:
        chip = crossbar.program(_key(), np.ones((3, 1), "f4"), device, config=config, adc_max=adc_max)
        return crossbar.matmul(_key(), np.ones(3, "f4"), chip)[0].sum()

    assert float(jax.grad(output)(jnp.asarray(2.0))) == pytest.approx(1.0)


def test_a_target_and_a_chip_are_arguments_like_any_other() -> None:
    """Specs pass through everything that rebuilds trees: shapes, lowering, axes of vmap, Monte Carlo's arguments."""
    device = _noisy()
    target = crossbar.encode(W, device, config=CONFIG)
    chip = crossbar.write(_key(), target, wires=crossbar.Wires(row_ohm=0.1, col_ohm=0.1))
    assert jax.eval_shape(lambda c: c, chip).scale.shape == (6,)
    jax.jit(lambda t, c: (t, c)).lower(target, chip)

    def error(key: jax.Array, target: crossbar.Target) -> jax.Array:
        return jnp.mean(jnp.square(crossbar.sample(key, X, target)[0] - X @ W))

    stats = montecarlo.run(error, jax.random.key(0), 5, args=(target,))
    assert stats.num_nonfinite == 0
    assert stats.standard_error > 0
