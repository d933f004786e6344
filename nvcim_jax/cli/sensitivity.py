"""`nvcim sensitivity`: which device property limits the product."""

import dataclasses

import jax
import tyro

from nvcim_jax import checks, montecarlo
from nvcim_jax.cli import product
from nvcim_jax.cli.spec import read_grid
from nvcim_jax.cli.tables import print_table

__all__ = ["Options", "main"]

_DIFFERENTIABLE = ("sigma", "d2d_sigma", "drift_time_s", "on_off_ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Differentiate the mean and the quantiles of the product's error with respect to device properties.

    Rounding passes gradients straight through; stuck cells are a hard step and have none.
    """

    of: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A property and its value, such as sigma=0.1 or drift_time_s=3600; may be repeated (default: sigma=0.1)."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting, name=value, such as device=PCM or adc_bits=8; may be repeated."""
    num_instances: int = 2000
    """Chips."""
    seed: int = 0
    """Seed of the chips."""


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    properties = options.of or ("sigma=0.1",)
    settings = read_grid(None, (), [*options.set, *properties], options.num_instances, options.seed).settings()[0]
    names = [word.partition("=")[0] for word in properties]
    for name in names:
        checks.choice("--of", name, _DIFFERENTIABLE)
    metric = product.build({name: value for name, value in settings.items() if name not in names})

    def error(key: jax.Array, numbers: dict, weights: jax.Array, x: jax.Array) -> jax.Array:
        return metric(key, numbers, weights, x)["error"]

    found = montecarlo.sensitivity(
        error,
        jax.random.key(options.seed),
        options.num_instances,
        {name: settings[name] for name in names},
        args=product.operands(settings, options.seed),
        quantiles=(0.5, 0.99),
    )
    rows = [
        {
            "property": name,
            "value": settings[name],
            "d mean": float(found.mean[name]),
            "s.e.": float(found.mean_error[name]),
            "d median": float(found.quantiles[name][0]),
            "d worst 1 %": float(found.quantiles[name][1]),
            "% of mean for 1 %": float(found.elasticity[name]),
        }
        for name in sorted(names, key=lambda n: -abs(float(found.elasticity[n])))
    ]
    print_table(rows, title=f"mean error {found.stats.mean:.4g}, worst 1 % {found.stats.quantiles[1]:.4g}")
    return 0
