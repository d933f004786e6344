"""Every pair of options works or is refused with a reason, before anything is traced."""

import contextlib
import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices

VALUES: dict[str, tuple] = {
    "rows": (None, 9),
    "cols": (None, 12),
    "mapping": ("differential", "offset", "offset_digital"),
    "weight_bits": (None, 5),
    "cell_bits": (None, 1, 2),
    "weight_scale": ("tensor", "column"),
    "slices": ("arrays", "rows", "columns"),
    "dac_bits": (None, 6),
    "dac_range": ("absmax", "fixed", "calibrated"),
    "dac_bits_per_cycle": (None, 1),
    "adc_bits": (None, 8),
    "adc_range": ("absmax", "max", "fixed", "calibrated"),
    "adc_code": ("symmetric", "uniform"),
    "adc_before_subtraction": (False, True),
    "noise": ("cell", "value"),
}
SAMPLINGS = ("device", "pair", "output_joint", "output_marginal", "moment_matched")
EFFECTS = {
    "plain": {},
    "clip": {"clip": True},
    "d2d": {"d2d_sigma": 0.02},
    "faults": {"stuck_on": 0.1, "stuck_off": 0.1},
    "drift": {"drift": devices.Drift(mean=0.05, std=0.01)},
    "read": {"read": devices.Read(sigma=0.02)},
    "on_off": {"on_off_ratio": 10.0},
}
PAIRS = list(itertools.combinations(VALUES, 2))
# All pairs of options that are refused; every other pair is accepted.
REFUSED: tuple[dict, ...] = (
    {"mapping": "offset", "cell_bits": 1},  # two levels leave none for zero
    {"mapping": "offset_digital", "cell_bits": 1},
    {"mapping": "offset", "noise": "value"},  # no single cells
    {"mapping": "offset_digital", "noise": "value"},
    {"adc_before_subtraction": True, "noise": "value"},
)
# All options that a sampling other than "device" refuses, on unclipped Gaussian cells.
REFUSED_BY: dict[str, tuple[dict, ...]] = {
    "device": (),
    "pair": (
        {"noise": "value"},
        {"mapping": "offset"},
        {"mapping": "offset_digital"},
        {"adc_before_subtraction": True},
    ),
    "output_joint": ({"noise": "value"},),
    "output_marginal": ({"noise": "value"}, {"dac_bits_per_cycle": 1}),
    "moment_matched": ({"noise": "value"}, {"dac_bits_per_cycle": 1}),
}
RNG = np.random.default_rng(1)
W = RNG.uniform(-1, 1, (20, 5)).astype("f4")
X = RNG.uniform(-1, 1, (3, 20)).astype("f4")


def _product(
    options: dict, device: devices.Device, wires: crossbar.Wires | None = None, sampling: str | None = None
) -> np.ndarray:
    """Return a product, by a chip, or by a sample where one is named; ranges are given where they must be."""
    config = crossbar.Config(**options)
    ranges = {f"{kind}_max": 8.0 for kind in ("dac", "adc") if getattr(config, f"{kind}_range") == "fixed"}
    target = crossbar.encode(W, device, config=config, **ranges)
    calibrated = "calibrated" in (config.dac_range, config.adc_range)
    write, read, calibrate = jax.random.split(jax.random.key(0), 3)
    if sampling is not None:
        return np.asarray(crossbar.sample(write, X, target, sampling=sampling)[0])
    chip = crossbar.write(write, target, wires=wires)
    if calibrated:
        chip = crossbar.calibrate(calibrate, X, chip)
    return np.asarray(crossbar.matmul(read, X, chip)[0])


def _works_or_is_refused(
    options: dict, device: devices.Device, wires: crossbar.Wires | None = None, sampling: str | None = None
) -> bool:
    try:
        y = _product(options, device, wires, sampling)
    except ValueError as error:
        if not re.match(r"Argument `.*` must .*, but ", str(error)):
            raise
        return False
    assert np.isfinite(y).all()
    # noise is small everywhere here, so a wrong wiring of options shows as a wrong product; weights of two or three
    # levels are coarse, and calibrated ranges clip
    coarse = options.get("weight_bits") is None and options.get("cell_bits") is not None
    if not coarse and "calibrated" not in options.values():
        assert np.abs(y - X @ W).max() < 1.5, options
    return True


def _combinations(pair: tuple[str, str]) -> list[dict]:
    """Return all ways to set both options away from their defaults (the first values), with what they need."""
    found = []
    for values in itertools.product(*(VALUES[name][1:] for name in pair)):
        options = dict(zip(pair, values, strict=True))
        if options.get("dac_range", "absmax") != "absmax" or options.get("dac_bits_per_cycle"):
            options.setdefault("dac_bits", 6)
        if options.get("adc_range", "absmax") != "absmax" or options.get("adc_code") == "uniform":
            options.setdefault("adc_bits", 8)
        found.append(options)
    return found


def _is_a_config(options: dict) -> bool:
    try:
        crossbar.Config(**options)
    except ValueError as error:
        if not re.match(r"Argument `.*` must .*, but ", str(error)):
            raise
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PAIRS)), ids=["-".join(pair) for pair in PAIRS])
def test_every_pair_of_options_works_or_is_refused(index: int) -> None:
    """Every combination is accepted, or is in the table and refused with a reason; one of the accepted is also run."""
    accepted = []
    for options in _combinations(PAIRS[index]):
        assert _is_a_config(options) != _is_in(REFUSED, options), options
        accepted += [options] if _is_a_config(options) else []
    if accepted:
        _works_or_is_refused(accepted[index % len(accepted)], devices.get("Gaussian", sigma=1e-3))


def _is_in(table: tuple[dict, ...], options: dict) -> bool:
    return any(refused.items() <= options.items() for refused in table)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_option_goes_with_every_sampling_or_is_in_the_table(sampling: str) -> None:
    device = devices.get("Gaussian", sigma=1e-3)
    for name, values in VALUES.items():
        for value in values[1:]:
            options = _combinations((name, "weight_scale"))[values.index(value) - 1] | {"weight_scale": "tensor"}
            if "calibrated" in options.values():
                continue  # a sample has no chip to calibrate: its ranges come with the target
            config = crossbar.Config(**options)
            ranges = {f"{kind}_max": 8.0 for kind in ("dac", "adc") if getattr(config, f"{kind}_range") == "fixed"}
            target = crossbar.encode(W, device, config=config, **ranges)
            expected: Any = contextlib.nullcontext()
            if _is_in(REFUSED_BY[sampling], options):
                expected = pytest.raises(ValueError, match=r"Argument `sampling` must be 'device' .*, but ")
            with expected:
                jax.eval_shape(functools.partial(crossbar.sample, sampling=sampling), jax.random.key(0), X, target)


@pytest.mark.slow
@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("noise", VALUES["noise"])
def test_every_effect_works_or_is_refused_with_every_sampling(effect: str, sampling: str, noise: str) -> None:
    device = devices.get("Gaussian", sigma=1e-3, **EFFECTS[effect])
    if effect == "faults" and (sampling, noise) == ("device", "cell"):
        return  # a stuck cell is no small noise; test_statistics has it
    worked = _works_or_is_refused({"noise": noise}, device, sampling=sampling)
    exact = (
        sampling == "device" or effect in ("plain", "on_off", "d2d") or (sampling, effect) == ("moment_matched", "clip")
    )
    assert worked == (exact if noise == "cell" else sampling == "device" and effect in ("plain", "clip", "on_off"))


@pytest.mark.slow
@pytest.mark.parametrize("slices", VALUES["slices"])
@pytest.mark.parametrize("mapping", VALUES["mapping"])
@pytest.mark.parametrize("effect", ["plain", "read", "drift"])
def test_wires_go_with_every_layout_mapping_and_clock(slices: str, mapping: str, effect: str) -> None:
    device = devices.get("Gaussian", sigma=1e-3, on_off_ratio=50.0, **EFFECTS[effect])
    wires = crossbar.Wires(row_ohm=0.5, col_ohm=0.5)
    options = {"rows": 12, "cols": 12, "weight_bits": 4, "cell_bits": 2, "mapping": mapping, "slices": slices}
    assert _works_or_is_refused(options, device, wires)


def test_wires_are_refused_where_there_are_no_cells() -> None:
    wires = crossbar.Wires(row_ohm=1.0, col_ohm=1.0)
    with pytest.raises(ValueError, match="`wires` must be None with noise='value'"):
        _product({"noise": "value"}, devices.get("Gaussian", sigma=0.1), wires)


def test_jnp_is_not_needed_by_the_caller() -> None:
    """NumPy arrays, integers and lists of Python floats are inputs as good as any."""
    device, config = devices.get("ideal"), crossbar.Config()
    chip = crossbar.program(jax.random.key(0), np.eye(2, dtype=np.int64), device, config=config)
    y, _ = crossbar.matmul(jax.random.key(1), np.array([2, 3]), chip)
    np.testing.assert_array_equal(y, jnp.array([2.0, 3.0]))


def test_the_converters_of_a_config_are_all_converters_with_their_defaults() -> None:
    own = {field.name: field.default for field in dataclasses.fields(crossbar.Converters)}
    of_config = {field.name: field.default for field in dataclasses.fields(crossbar.Config) if field.name in own}
    assert of_config == own
    assert crossbar.Config().converters == crossbar.Converters()
