"""The metric that `sweep`, `tolerance` and `sensitivity` run: the output error of one product on a fresh chip."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nvcim_jax import checks, crossbar, devices

__all__ = ["CHOICES", "DEFAULTS", "NUMBERS", "build", "check", "check_all", "operands"]

NUMBERS = ("sigma", "d2d_sigma", "stuck_on", "stuck_off", "on_off_ratio", "drift_time_s")
"""Settings that are numbers of physics: they enter the compiled program as arguments."""

_CONFIG = {field.name: field.default for field in dataclasses.fields(crossbar.Config)}  # type: ignore[arg-type]
_PROBLEM = {"device": "FeFET6", "rng": "counter", "matrix_rows": 128, "matrix_cols": 64, "batch": 8}
CHOICES = (*_PROBLEM, *_CONFIG)
"""Settings that choose a program: each combination is compiled once."""

DEFAULTS: dict[str, Any] = {**_PROBLEM, **_CONFIG}

Settings = dict[str, Any]


def check(settings: Mapping[str, Any]) -> None:
    """Check the settings of one point before anything is compiled.

    Raises:
        ValueError: If a name or a value is wrong; the message names it.
    """
    for name in settings:
        if name not in NUMBERS and name not in DEFAULTS:
            known = [*NUMBERS, *DEFAULTS]
            checks.fail(name, "be a setting of a product", "is not one", checks.suggestion(name, known))
    for name in ("matrix_rows", "matrix_cols", "batch"):
        checks.integer(name, {**DEFAULTS, **settings}[name])
    _check_numbers(settings)
    device = _device(settings, settings)
    config = _config(settings)
    if "drift_time_s" in settings and device.drift is None:
        fix = "Choose a device that drifts, such as PCM, or leave drift_time_s out."
        checks.fail("drift_time_s", "be left out for a device without drift", f"is given for {device.name}", fix)
    metric = build({**settings})
    jax.eval_shape(metric, jax.random.key(0), _numbers(settings), *operands(settings))
    crossbar.geometry((settings.get("matrix_rows", 128), settings.get("matrix_cols", 64)), config)


def _check_numbers(settings: Mapping[str, Any]) -> None:
    for name in NUMBERS:
        value = settings.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            checks.fail(name, "be a number", f"is {value!r}")
    checks.number("drift_time_s", settings.get("drift_time_s", 0.0), low=0.0, unit="s")


def _numbers(settings: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {name: jnp.float32(settings[name]) for name in NUMBERS if name in settings}


def _device(settings: Mapping[str, Any], numbers: Mapping[str, Any]) -> devices.Device:
    given = {name: numbers[name] for name in NUMBERS if name in numbers and name != "drift_time_s"}
    chosen = {**DEFAULTS, **settings}
    return devices.get(chosen["device"], rng=chosen["rng"], **given)


def _config(settings: Mapping[str, Any]) -> crossbar.Config:
    return crossbar.Config(**{name: settings[name] for name in _CONFIG if name in settings})


def operands(settings: Mapping[str, Any], seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Return the matrix (matrix_rows, matrix_cols) and the inputs (batch, matrix_rows), standard normal from `seed`."""
    chosen = {**DEFAULTS, **settings}
    rows, cols, batch = chosen["matrix_rows"], chosen["matrix_cols"], chosen["batch"]
    weight_key, input_key = jax.random.split(jax.random.key(seed))
    return jax.random.normal(weight_key, (rows, cols)), jax.random.normal(input_key, (batch, rows))


def build(settings: Settings) -> Callable[..., dict[str, jax.Array]]:
    """Return the metric `fn(key, numbers, weights, x)` for the settings that choose a program.

    Its value "error" is the relative root mean square error |Y - X W| / |X W| of one product on a freshly programmed
    chip, over batch and columns; converters, slicing and noise all count.

    Args:
        settings: Any of `CHOICES` (and `NUMBERS`, which are used where `numbers` does not hold them).

    Example:
        >>> metric = build({"device": "Gaussian", "batch": 64})
        >>> weights, x = operands({"batch": 64})
        >>> error = metric(jax.random.key(1), {"sigma": jnp.float32(0.02)}, weights, x)["error"]
        >>> print(f"{error:.2f}, {2 ** 0.5 * 0.02 * jnp.abs(weights).max():.2f}")  # sigma sqrt(2) w_max / w_rms
        0.1..., 0.1...
    """
    config = _config(settings)

    def metric(key: jax.Array, numbers: dict[str, jax.Array], weights: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        given = {**{name: settings[name] for name in NUMBERS if name in settings}, **numbers}
        device = _device(settings, given)
        if "drift_time_s" in given:
            write_key, read_key = jax.random.split(key)
            chip = crossbar.program(write_key, weights, device, config=config)
            chip = crossbar.drift(chip, jnp.float32(given["drift_time_s"]), device, config=config)
            y, _ = crossbar.matmul(read_key, x, chip, device, config=config)
        else:
            target = crossbar.encode(weights, device, config=config)
            y, _ = crossbar.sample(key, x, target, device, config=config)
        exact = jnp.matmul(x, weights, precision=jax.lax.Precision.HIGHEST)
        return {"error": jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)}

    return metric


def check_all(points: Sequence[Mapping[str, Any]]) -> None:
    """Check every point of a grid; those that differ in numbers only are traced once."""
    seen = set()
    for settings in points:
        program = tuple(sorted((n, str(v)) for n, v in settings.items() if n not in NUMBERS))
        if program not in seen:
            check(settings)
            seen.add(program)
        else:
            _check_numbers(settings)
            _device(settings, settings)
