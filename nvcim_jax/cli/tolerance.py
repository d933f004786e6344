"""`nvcim tolerance`: how much of a non-ideality the product stands."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from nvcim_jax import checks, io, montecarlo
from nvcim_jax.cli import duration, matrix
from nvcim_jax.cli.known import content
from nvcim_jax.cli.spec import also_set, check_free, read_grid
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["Options", "main"]


NAMES = {"between": "--low and --high", "bound": "--max-error", "name": "--device", "path": "--device"}
"""Options of what the library calls otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Find the largest value of a device property at which enough chips are good, by bisection over common chips.

    A chip is good when the relative error of its product is at most --max-error.
    """

    max_error: float
    """Largest relative error of a good chip, up to 1, that of an output of zero."""
    of: str = "sigma"
    """The property: sigma, d2d_sigma, stuck_on, stuck_off or drift_time_s."""
    share: float = 0.99
    """Share of chips that must be good."""
    low: float = 0.0
    """Least value; must be good enough."""
    high: float = 0.5
    """Greatest value to try."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting, name=value, such as device=FeFET6 or adc_bits=8; may be repeated."""
    device: str | None = None
    """Memory cell, as --set device=...: a name, a file of nvcim device, or FILE@G_MAX_US of a table of
    measurements (default: FeFET3)."""
    sigma: float | None = None
    """Programming noise, as --set sigma=... (default: the device's own)."""
    instances: int = 1000
    """Chips, the same at every value."""
    seed: int = 0
    """Seed of the chips."""
    out: Path = Path("runs/tolerance")
    """Folder of the chips at every value that was tried; the same command goes on from there."""
    resolution: float = 1e-3
    """Width of the final bracket as a fraction of high - low."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    checks.choice("--of", options.of, [name for name in matrix.PHYSICS if name != "on_off_ratio"])
    checks.number("--max-error", options.max_error, low=0.0, high=1.0, fix="An output of zero has an error of 1.")
    fix = "Its values lie between --low and --high."
    if options.of == "sigma" and options.sigma is not None:
        checks.fail("--sigma", "be left out with --of sigma", f"is {options.sigma:g}", fix)
    check_free(options.of, options.set, fix)
    words = [*also_set(options.set, options.device, options.sigma), f"{options.of}={options.low}"]
    settings = read_grid(None, (), words, options.instances, options.seed).settings()[0]
    matrix.check({**settings, options.of: options.high})
    fixed = {name: value for name, value in settings.items() if name != options.of}
    metric = matrix.build(fixed)

    def error(key: jax.Array, value: jax.Array, weights: jax.Array, x: jax.Array) -> jax.Array:
        return metric(key, {options.of: jnp.asarray(value)}, weights, x)["error"]

    if options.dry_run:
        return _planned(options, error, matrix.operands(settings, options.seed))
    out = options.out / io.point_name({**fixed, "of": options.of, "seed": options.seed})
    found = montecarlo.tolerance(
        error,
        jax.random.key(options.seed),
        options.instances,
        good=montecarlo.Good(bound=options.max_error, share=options.share),
        between=(options.low, options.high),
        args=matrix.operands(settings, options.seed),
        resolution=options.resolution,
        store=io.points(out, config=fixed | content(fixed.get("device", matrix.DEFAULTS["device"]))),
        progress=options.said.progress,
    )
    rows = [{options.of: x, "share of good chips": share} for x, share in found.curve]
    print_table(rows, title=f"On {matrix.named(fixed)}")
    safe = "more chips are needed to be sure of any" if math.isnan(found.low) else f"sure up to {found.low:.4g}"
    above = "" if math.isinf(found.high) else f", not good enough beyond {found.high:.4g}"
    print(f"{options.of} <= {found.value:.4g} for {100 * options.share:g} % of chips ({safe}{above}; 95 % confidence)")
    result = {"of": options.of, "value": found.value, "low": found.low, "high": found.high, "share": options.share}
    print_result(options, result | {"curve": rows})
    return 0


def _planned(options: Options, error: Any, operands: tuple[jax.Array, jax.Array]) -> int:
    """Say how many chips a bisection takes at most, how long, and where they would lie."""
    values = 2 + math.ceil(math.log2(1.0 / options.resolution))
    line, seconds = duration.chips(error, (jnp.float32(options.low), *operands), values * options.instances)
    print(f"At most {values} values of {options.of}. {line}")
    print(duration.nothing_done(options.out, ["a folder of the chips at every value"]))
    plan = {"values": values, "chips": values * options.instances, "seconds": seconds, "out": str(options.out)}
    print_result(options, plan)
    return 0
