"""`nvcim sensitivity`: which device property limits the product."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from nvcim_jax import checks, montecarlo
from nvcim_jax.cli import matrix
from nvcim_jax.cli.spec import also_set, check_free, pair, read_grid, value_of
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["Options", "main"]

_DIFFERENTIABLE = ("sigma", "level_sigma", "d2d_sigma", "drift_time_s", "on_off_ratio", *matrix.BITS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Differentiate the mean and the quantiles of the product's error with respect to device properties.

    The properties are sigma, level_sigma (each level's own, relative to sigma), d2d_sigma, drift_time_s, on_off_ratio,
    and adc_bits and dac_bits: converters with bits as real numbers, whose rounding is replaced by noise of the same
    size. Other rounding passes gradients straight through; stuck cells are a hard step and have none.
    """

    of: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A property and its value, such as sigma=0.1, drift_time_s=3600 or adc_bits=6.5, or level_sigma alone for the
    device's own; may be repeated (default: sigma=0.1)."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting, name=value, such as device=PCM or mapping=offset; may be repeated."""
    device: str | None = None
    """Memory cell, as --set device=...: a name, a file of nvcim device, or FILE@G_MAX_US of a table of
    measurements (default: FeFET3)."""
    instances: int = 2000
    """Chips."""
    seed: int = 0
    """Seed of the chips."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    properties = options.of or ("sigma=0.1",)
    names = [word.partition("=")[0] for word in properties]
    for name in names:
        checks.choice("--of", name, _DIFFERENTIABLE)
        check_free(name, options.set, f"For example --of {name}=VALUE.")
    settings, params = _parameters(properties, options)
    relaxed = tuple(name for name in names if name in matrix.BITS)
    metric = matrix.build({name: value for name, value in settings.items() if name not in names}, relaxed)

    def error(key: jax.Array, numbers: dict, weights: jax.Array, x: jax.Array) -> jax.Array:
        return metric(key, numbers, weights, x)["error"]

    found = montecarlo.sensitivity(
        error,
        jax.random.key(options.seed),
        options.instances,
        params,
        args=matrix.operands(settings, options.seed),
        quantiles=(0.5, 0.99),
        progress=options.said.progress,
    )
    rows = [row for name in names for row in _rows(name, params[name], found, settings)]
    rows.sort(key=lambda row: -abs(row["% of mean for 1 %"]))
    errors = f"mean error {found.stats.mean:.4g}, worst 1 % {found.stats.quantiles[1]:.4g}"
    print_table(rows, title=f"{matrix.named(settings)}: {errors}")
    print_result(options, rows)
    return 0


def _parameters(properties: Sequence[str], options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checked settings, and the value of each property."""
    words, bits = [], {}
    for word in properties:
        name, _, text = word.partition("=")
        if name == "level_sigma":
            if text:
                checks.fail("--of", "be level_sigma alone, for the device's own table", f"is {word!r}")
        elif name in matrix.BITS:
            bits[name] = _bits(name, text)
            words.append(f"{name}={math.ceil(bits[name])}")
        else:
            words.append("=".join(pair(word, "--of")))
    settings = read_grid(
        None, (), [*also_set(options.set, options.device, None), *words], options.instances, options.seed
    ).settings()[0]
    params: dict[str, Any] = {word.partition("=")[0]: None for word in properties}
    for name in params:
        params[name] = matrix.level_sigma(settings)[1] if name == "level_sigma" else bits.get(name, settings.get(name))
    return settings, params


def _bits(name: str, text: str) -> float:
    value = value_of(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        checks.fail(name, "be a number", f"is {text!r}")
    checks.number(name, value, low=2.0, high=24.0)
    return float(value)


def _rows(name: str, value: Any, found: montecarlo.Sensitivity, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for a number, and one for each level of a table."""
    labels = [name]
    if name == "level_sigma":
        labels = [f"{name} at g = {g:.3g}" for g in matrix.level_sigma(settings)[0].tolist()]
    parts = (value, found.mean[name], found.mean_error[name], *found.quantiles[name], found.elasticity[name])
    columns = ("value", "d mean", "s.e.", "d median", "d worst 1 %", "% of mean for 1 %")
    return [
        {"property": label} | {c: float(np.ravel(p)[i]) for c, p in zip(columns, parts, strict=True)}
        for i, label in enumerate(labels)
    ]
