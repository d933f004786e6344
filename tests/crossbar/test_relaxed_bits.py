"""Converters with bits as real numbers: noise of one step, gradients, one program for all bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, montecarlo

ROWS, COLS, BATCH = 48, 12, 4
CONFIG = crossbar.Config(rows=16, cols=64, weight_bits=8, cell_bits=2, adc_bits=8, dac_bits=8, adc_range="max")
IDEAL = devices.get("ideal")


def _operands() -> tuple[jax.Array, jax.Array]:
    weights = jax.random.normal(jax.random.key(5), (ROWS, COLS))
    return weights, jax.random.normal(jax.random.key(6), (BATCH, ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("adc_code", ["symmetric", "uniform"])
@pytest.mark.parametrize("mapping", ["differential", "offset", "offset_digital"])
def test_noise_of_the_output_converters_is_the_closed_form(mapping: str, adc_code: str) -> None:
    config = crossbar.Config(
        rows=16, cols=64, weight_bits=4, cell_bits=4, adc_bits=8, adc_range="max", adc_code=adc_code, mapping=mapping
    )
    weights, x = _operands()
    bits = 6.3
    target = crossbar.encode(weights, IDEAL, config=config)
    exact, _ = crossbar.sample(jax.random.key(0), x, target, converters=crossbar.Converters())

    def error(key: jax.Array, x: jax.Array, target: crossbar.Target, bits: crossbar.Bits) -> jax.Array:
        return crossbar.sample(key, x, target, bits=bits)[0] - exact

    values = montecarlo.run(error, jax.random.key(1), 4000, args=(x, target, crossbar.Bits(adc=bits))).values
    # a tile of 16 rows has the range -16 .. 16 in units of a full-scale input; its scale is the absmax of the inputs
    step = 32 / (2**bits - (2 if adc_code == "symmetric" else 1))
    scale = np.abs(np.asarray(x)).reshape(BATCH, 3, 16).max(axis=2)
    # the weight of a cell from g_min to g_max: 7 codes, with an offset 15 codes of which the largest weight is 7
    unit = float(jnp.abs(weights).max()) * (1.0 if mapping == "differential" else 15 / 7)
    truth = step**2 / 12 * np.square(scale).sum(axis=1) * unit**2
    variance = np.square(values.astype(np.float64)).mean(axis=(0, 2))
    # Var(e^2) <= 2 Var(e)^2 for a sum of uniform numbers
    np.testing.assert_allclose(variance, truth, rtol=5 * (2 / (4000 * COLS)) ** 0.5)


def test_noise_of_the_input_converters_is_the_closed_form() -> None:
    config = crossbar.Config(dac_bits=8)
    weights, x = _operands()
    target = crossbar.encode(weights, IDEAL, config=config)

    def error(key: jax.Array, x: jax.Array, target: crossbar.Target, bits: crossbar.Bits) -> jax.Array:
        return crossbar.sample(key, x, target, bits=bits)[0]

    stats = montecarlo.run(error, jax.random.key(1), 20_000, args=(x, target, crossbar.Bits(dac=5.0)))
    size = np.abs(np.asarray(x))
    step = 2 * size.max(axis=1) / (2**5 - 2)
    rounded = np.where(size < size.max(axis=1, keepdims=True), step[:, None], 0.0)  # the largest input is a code
    truth = np.square(rounded) @ np.square(np.asarray(weights)) / 12
    np.testing.assert_allclose(stats.standard_deviation**2, truth, rtol=5 * (2 / 20_000) ** 0.5)
    assert np.all(np.abs(stats.mean - np.asarray(x @ weights)) < 5 * stats.standard_error + 1e-4)


@pytest.mark.parametrize(("kind", "bits"), [("adc", 8), ("dac", 5)])
def test_the_relaxed_error_is_of_the_size_of_the_hard_one(kind: str, bits: int) -> None:
    """The hard twin rounds each input its own way; over many of them its mean square is the relaxed one's."""
    # a step of the outputs is 64 / 254, well below their spread of 0.6
    config = crossbar.Config(**{f"{kind}_bits": bits}, adc_range="max" if kind == "adc" else "absmax")
    weights = jax.random.normal(jax.random.key(5), (32, 64))
    x = jax.random.normal(jax.random.key(6), (500, 32))
    target = crossbar.encode(weights, IDEAL, config=config)
    errors = [
        crossbar.sample(jax.random.key(0), x, target, bits=relaxed)[0] - x @ weights
        for relaxed in (None, crossbar.Bits(**{kind: float(bits)}))
    ]
    hard, relaxed = (float(jnp.mean(jnp.square(e))) for e in errors)
    assert relaxed == pytest.approx(hard, rel=0.05)


def test_hard_converters_and_chips_are_untouched_by_relaxed_ones() -> None:
    weights, x = _operands()
    device = devices.get("FeFET6", sigma=0.1)
    target = crossbar.encode(weights, device, config=CONFIG)

    def product(bits: crossbar.Bits | None) -> np.ndarray:
        return np.asarray(crossbar.sample(jax.random.key(3), x, target, bits=bits)[0])

    np.testing.assert_array_equal(product(crossbar.Bits()), product(None))
    many = crossbar.Bits(adc=24.0, dac=24.0)
    exact, _ = crossbar.sample(jax.random.key(3), x, target, converters=crossbar.Converters())
    np.testing.assert_allclose(product(many), exact, rtol=1e-4, atol=1e-3)  # the same chip, converters of 24 bits


def test_a_product_of_a_kept_chip_has_the_same_relaxed_converters() -> None:
    weights, x = _operands()
    device = devices.get("FeFET6", sigma=0.1)
    bits = crossbar.Bits(adc=6.0, dac=6.0)
    write_key, read_key = jax.random.split(jax.random.key(3))
    chip = crossbar.program(write_key, weights, device, config=CONFIG)
    kept, _ = crossbar.matmul(read_key, x, chip, bits=bits)
    target = crossbar.encode(weights, device, config=CONFIG)
    fresh, _ = crossbar.sample(jax.random.key(3), x, target, bits=bits)
    np.testing.assert_allclose(kept, fresh, rtol=1e-4, atol=1e-4)


def _loss(bits: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    weights, x = _operands()
    target = crossbar.encode(weights, IDEAL, config=CONFIG)
    y, _ = crossbar.sample(key, x, target, bits=crossbar.Bits(**bits))
    return jnp.log(jnp.mean(jnp.square(y - x @ weights)))


def test_gradients_are_those_of_finite_differences_with_common_keys() -> None:
    at = {"adc": jnp.float32(7.0), "dac": jnp.float32(5.0)}
    found = jax.grad(_loss)(at, jax.random.key(2))
    step = 5e-2
    for name in at:
        up, down = (_loss(at | {name: at[name] + s}, jax.random.key(2)) for s in (step, -step))
        assert float(found[name]) < -0.01
        assert float(found[name]) == pytest.approx(float(up - down) / (2 * step), rel=0.01)


def test_sensitivity_to_bits_is_the_closed_form_and_one_program_serves_all_bits() -> None:
    config = crossbar.Config(adc_bits=8, adc_range="max")
    weights, x = _operands()
    target = crossbar.encode(weights, IDEAL, config=config)

    def metric(key: jax.Array, p: dict, x: jax.Array, target: crossbar.Target, exact: jax.Array) -> jax.Array:
        y, _ = crossbar.sample(key, x, target, bits=crossbar.Bits(adc=p["bits"]))
        return jnp.mean(jnp.square(y - exact))

    for bits in (4.0, 6.5, 8.0):
        args = (x, target, x @ weights)
        with count_traces() as made:
            found = montecarlo.sensitivity(metric, jax.random.key(1), 2000, {"bits": bits}, args=args)
        assert made.count("jit(on_one_device)") == (bits == 4.0)
        # mean square = c / (2^b - 2)^2
        truth = -2 * np.log(2) * 2**bits / (2**bits - 2) * found.stats.mean
        assert abs(found.mean["bits"] - truth) < 5 * found.mean_error["bits"]
        assert found.mean["bits"] == pytest.approx(truth, rel=1e-3)  # common chips
        assert found.quantiles["bits"][2] == pytest.approx(truth, rel=0.05)


def test_unused_rows_and_zero_inputs_carry_no_noise() -> None:
    config = crossbar.Config(rows=32, dac_bits=8)
    weights, x = _operands()
    device = devices.get("ideal", on_off_ratio=5.0)
    target = crossbar.encode(weights, device, config=config)
    y, _ = crossbar.sample(jax.random.key(0), jnp.zeros_like(x), target, bits=crossbar.Bits(dac=3.0))
    np.testing.assert_array_equal(y, jnp.zeros((BATCH, COLS)))


@pytest.mark.parametrize(
    ("options", "bits", "message"),
    [
        ({}, {"adc": 8.0}, "`bits.adc` must be left out without config.adc_bits"),
        ({"adc_bits": 8}, {"dac": 8.0}, "`bits.dac` must be left out without config.dac_bits"),
        ({"adc_bits": 8}, {"adc": 1.5}, "`bits.adc` must lie in"),
        ({"adc_bits": 8}, {"adc": 30.0}, "`bits.adc` must lie in"),
        ({"adc_bits": 8}, {"adc": jnp.ones(3)}, "`bits.adc` must have"),
        ({"dac_bits": 8, "dac_bits_per_cycle": 1}, {"dac": 8.0}, "digit by digit"),
    ],
)
def test_bad_bits_are_named(options: dict, bits: dict, message: str) -> None:
    weights, x = _operands()
    config = crossbar.Config(**options)
    target = crossbar.encode(weights, IDEAL, config=config)
    with pytest.raises(ValueError, match=message):
        crossbar.sample(jax.random.key(0), x, target, bits=crossbar.Bits(**bits))
