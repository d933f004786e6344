"""Bad input gets one clear line that names the argument, what was expected, and the fix."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

KEY = jax.random.key(0)
IDEAL = devices.get("ideal")
PLAIN = crossbar.Config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell_bits": 0}, r"`cell_bits` must be an integer of at least 1.*is 0\. Use None for the ideal case"),
        ({"adc_bits": 0}, r"`adc_bits` must be an integer of at least 2"),
        ({"dac_bits": 8.0}, r"`dac_bits` must be an integer"),
        ({"rows": -1}, r"`rows` must be an integer of at least 1"),
        ({"weight_bits": 40}, r"`weight_bits` .* at most 24"),
        ({"mapping": "diferential"}, r"`mapping` must be one of .*Did you mean 'differential'"),
        ({"mapping": "offset", "cell_bits": 1}, r"`cell_bits` must be at least 2 with mapping 'offset'"),
        ({"dac_bits_per_cycle": 1}, r"`dac_bits` must be given with dac_bits_per_cycle"),
        ({"adc_range": "fixed"}, r"`adc_range` must be left at 'absmax' without adc_bits"),
        ({"cols": 3, "weight_bits": 8, "cell_bits": 2, "slices": "columns"}, r"`cols` must be at least 8"),
        (
            {"cols": 7, "mapping": "offset", "weight_bits": 8, "cell_bits": 2, "slices": "columns"},
            r"`cols` must be at least 8",
        ),
        ({"cols": 1, "mapping": "offset"}, r"`cols` must be at least 2"),
        ({"rows": 3, "weight_bits": 8, "cell_bits": 2, "slices": "rows"}, r"`rows` must hold the 4 slices"),
        ({"noise": "value", "mapping": "offset"}, r"`mapping` must be 'differential' with noise='value'"),
    ],
    ids=str,
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossbar.Config(**options)


@pytest.mark.parametrize(
    ("least", "mapping", "slices"),
    [
        (1, "differential", "arrays"),
        (8, "differential", "columns"),
        (2, "offset", "rows"),
        (8, "offset", "columns"),  # a reference column for each of the four slices
        (4, "offset_digital", "columns"),
    ],
)
def test_the_fewest_columns_that_are_accepted_hold_a_column(least: int, mapping: str, slices: str) -> None:
    def config(cols: int) -> crossbar.Config:
        return crossbar.Config(rows=8, cols=cols, mapping=mapping, slices=slices, weight_bits=8, cell_bits=2)

    assert crossbar.encode(np.eye(3, 2), IDEAL, config=config(least)).num_rows == 3
    assert crossbar.geometry((3, 2), config(least)).tile_cols == 1
    with pytest.raises(ValueError, match="`cols` must be"):
        config(least - 1)


def test_a_misspelt_option_suggests_the_right_one() -> None:
    with pytest.raises(TypeError, match=r"Config has no option `adc_bit`\. Did you mean 'adc_bits'\?"):
        crossbar.Config(adc_bit=8)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(3, "f4"), r"`weights` must have shape \(rows, cols\), but has shape \(3,\)"),
        (np.ones((2, 3, 4), "f4"), r"`weights` .* Use jax\.vmap"),
        (np.array([[np.nan, 1.0]]), r"`weights` must be finite, but has 1 NaN or infinite"),
        (np.array([[np.inf, 1.0]]), r"`weights` must be finite"),
        (np.ones((0, 3), "f4"), r"`weights` must have at least one row"),
    ],
    ids=str,
)
def test_wrong_weights(weights: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossbar.program(KEY, weights, IDEAL, config=PLAIN)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(4, "f4"), r"`x` must have 3 rows"),
        (np.ones((2, 3, 2), "f4"), r"`x` must have 3 rows on its last axis, as the weights, but has shape \(2, 3, 2\)"),
        (np.float32(1.0), r"`x` must have 3 rows .* has shape \(\)"),
        (np.array([np.nan, 0, 0]), r"`x` must be finite"),
        (np.array([1.5, 0, 0]), r"`x` must lie in \[-1, 1\], but is 1.5\. Scale x, or raise dac_max"),
    ],
    ids=str,
)
def test_wrong_inputs(x: np.ndarray, message: str) -> None:
    config = crossbar.Config(dac_bits=8, dac_range="fixed")
    chip = crossbar.program(KEY, np.eye(3, dtype="f4"), IDEAL, config=config, dac_max=1.0)
    with pytest.raises(ValueError, match=message):
        crossbar.matmul(jax.random.key(1), x, chip)


def test_more_levels_than_the_device_has() -> None:
    device = devices.get("FeFET6")
    config = crossbar.Config(weight_bits=8, cell_bits=4)
    with pytest.raises(ValueError, match=r"at most the 4 levels of device 'FeFET6', but 4 bits are 16.*cell_bits=2"):
        crossbar.program(KEY, np.eye(3, dtype="f4"), device, config=config)


def test_ranges_are_given_where_and_only_where_they_are_used() -> None:
    fixed = crossbar.Config(adc_bits=8, adc_range="fixed")
    w = np.eye(3, dtype="f4")
    with pytest.raises(ValueError, match=r"`adc_max` must be given with adc_range='fixed'"):
        crossbar.program(KEY, w, IDEAL, config=fixed)
    with pytest.raises(ValueError, match=r"`adc_max` must be left out unless adc_range='fixed'"):
        crossbar.program(KEY, w, IDEAL, config=crossbar.Config(adc_bits=8), adc_max=1.0)
    with pytest.raises(ValueError, match=r"`adc_max` must lie above adc_min"):
        crossbar.program(KEY, w, IDEAL, config=fixed, adc_max=-1.0)
    calibrated = crossbar.Config(adc_bits=8, adc_range="calibrated")
    chip = crossbar.program(KEY, w, IDEAL, config=calibrated)
    with pytest.raises(ValueError, match=r"`chip` must be calibrated.*Call crossbar.calibrate first"):
        crossbar.matmul(jax.random.key(1), w, chip)
    chip = crossbar.program(KEY, w, IDEAL, config=PLAIN)
    with pytest.raises(ValueError, match=r"`chip` must have dac_range or adc_range 'calibrated'"):
        crossbar.calibrate(jax.random.key(1), w, chip)


def test_calls_without_an_effect_raise() -> None:
    chip = crossbar.program(KEY, np.eye(3, dtype="f4"), IDEAL, config=PLAIN)
    with pytest.raises(ValueError, match="drift"):
        crossbar.drift(chip, 1.0)
    with pytest.raises(ValueError, match="drift"):
        crossbar.compensate(jax.random.key(1), chip)


@pytest.mark.slow
def test_samplings_that_are_not_exact_are_refused_with_the_reason() -> None:
    w = np.eye(3, dtype="f4")
    for sampling, device, reason in [
        ("pair", devices.get("Gaussian", sigma=0.1, clip=True), "clipping at 0"),
        ("output_joint", devices.get("FeFET6"), "differs between levels"),
        ("output_marginal", devices.get("Gaussian", sigma=0.1, stuck_on=0.1), "stuck cells"),
        ("output_joint", devices.get("Gaussian", sigma=0.1, read=devices.Read(sigma=0.1)), "read noise"),
        ("moment_matched", devices.get("PCM"), "drift"),
    ]:
        with pytest.raises(ValueError, match=reason):
            crossbar.sample(KEY, jnp.ones(3), crossbar.encode(w, device, config=PLAIN), sampling=sampling)
    clipped = crossbar.encode(w, devices.get("Gaussian", sigma=0.1, clip=True), config=PLAIN)
    with pytest.raises(ValueError, match="fewer than 16 used rows"):
        crossbar.sample(KEY, jnp.ones(3), clipped, sampling="moment_matched")
    for num_rows, fits in ((16, True), (17, False), (31, False), (32, True)):  # the last array has the remainder
        target = crossbar.encode(np.ones((num_rows, 2), "f4"), clipped.device, config=crossbar.Config(rows=16))
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="fewer than 16 used rows"):
            crossbar.sample(jax.random.key(num_rows), jnp.ones(num_rows), target, sampling="moment_matched")
    whole = crossbar.encode(w, devices.get("Gaussian", sigma=0.1), config=PLAIN)  # sums of what is not cut are Gaussian
    crossbar.sample(KEY, jnp.ones(3), whole, sampling="moment_matched")
    with pytest.raises(ValueError, match=r"`sampling` must be one of .*Did you mean 'output_joint'"):
        crossbar.sample(KEY, jnp.ones(3), clipped, sampling="output_join")
    offset = crossbar.encode(w, devices.get("Gaussian", sigma=0.1), config=crossbar.Config(mapping="offset"))
    with pytest.raises(ValueError, match="do not meet before the converter"):
        crossbar.sample(KEY, jnp.ones(3), offset, sampling="pair")


def test_nothing_is_compiled_before_an_error() -> None:
    traced = 0

    def count(x: jax.Array) -> jax.Array:
        nonlocal traced
        traced += 1
        return x

    with pytest.raises(ValueError, match="rows"):
        jax.jit(lambda x: count(crossbar.matmul(KEY, x, chip)[0]))(jnp.ones(4)) if (
            chip := crossbar.program(jax.random.key(1), np.eye(3, dtype="f4"), IDEAL, config=PLAIN)
        ) else None
    assert traced == 0
