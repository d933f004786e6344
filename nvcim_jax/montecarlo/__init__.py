"""One function over many device instances: keys, chunks, meshes, statistics, stopping, sensitivity."""

from nvcim_jax.montecarlo.bisection import Good, Tolerance, tolerance
from nvcim_jax.montecarlo.engine import instance_mesh, stream
from nvcim_jax.montecarlo.gradients import Sensitivity, sensitivity
from nvcim_jax.montecarlo.intervals import (
    Interval,
    mean_interval,
    quantile_interval,
    yield_interval,
)
from nvcim_jax.montecarlo.placement import Placement
from nvcim_jax.montecarlo.runner import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats, stats_of_values
from nvcim_jax.montecarlo.stopping import Precision, Reached, paired, run_until
from nvcim_jax.montecarlo.sweeps import Point, Sweep, grid, shard_range, sweep
from nvcim_jax.montecarlo.variance import (
    Reduced,
    antithetic,
    antithetic_mean,
    control_variate,
    linearised,
)

__all__ = [
    "QUANTILES",
    "Good",
    "Interval",
    "Placement",
    "Point",
    "Precision",
    "Reached",
    "Reduced",
    "Sensitivity",
    "Stats",
    "Sweep",
    "Tolerance",
    "antithetic",
    "antithetic_mean",
    "control_variate",
    "grid",
    "instance_mesh",
    "linearised",
    "mean_interval",
    "paired",
    "quantile_interval",
    "run",
    "run_until",
    "sensitivity",
    "shard_range",
    "stats_of_values",
    "stream",
    "sweep",
    "tolerance",
    "yield_interval",
]
