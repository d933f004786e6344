"""One function over many device instances: keys, chunks, meshes, statistics, resume, stopping, sensitivity."""

from nvcim_jax.montecarlo.bisection import Tolerance, tolerance
from nvcim_jax.montecarlo.engine import Chunk, instance_mesh, stream
from nvcim_jax.montecarlo.gradients import Sensitivity, sensitivity
from nvcim_jax.montecarlo.intervals import Interval, mean_interval, quantile_interval, yield_interval
from nvcim_jax.montecarlo.merging import Merged, merge, merge_points
from nvcim_jax.montecarlo.records import Table, read
from nvcim_jax.montecarlo.runner import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats, stats_of_values
from nvcim_jax.montecarlo.stopping import Precision, Reached, paired, run_until
from nvcim_jax.montecarlo.sweeps import Point, Sweep, grid, shard_range, sweep
from nvcim_jax.montecarlo.tables import export, read_points, summary
from nvcim_jax.montecarlo.variance import (
    Reduced,
    antithetic,
    antithetic_mean,
    control_variate,
    linearised,
)

__all__ = [
    "QUANTILES",
    "Chunk",
    "Interval",
    "Merged",
    "Point",
    "Precision",
    "Reached",
    "Reduced",
    "Sensitivity",
    "Stats",
    "Sweep",
    "Table",
    "Tolerance",
    "antithetic",
    "antithetic_mean",
    "control_variate",
    "export",
    "grid",
    "instance_mesh",
    "linearised",
    "mean_interval",
    "merge",
    "merge_points",
    "paired",
    "quantile_interval",
    "read",
    "read_points",
    "run",
    "run_until",
    "sensitivity",
    "shard_range",
    "stats_of_values",
    "stream",
    "summary",
    "sweep",
    "tolerance",
    "yield_interval",
]
