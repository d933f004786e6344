"""One function over many device instances: keys, chunks, meshes, statistics, resume, stopping, sensitivity."""

from nvcim_jax.montecarlo.engine import Chunk, instance_mesh, stream
from nvcim_jax.montecarlo.intervals import Interval, mean_interval, quantile_interval, yield_interval
from nvcim_jax.montecarlo.run import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats, stats_of_values
from nvcim_jax.montecarlo.stopping import Precision, Reached, paired, run_until
from nvcim_jax.montecarlo.variance import (
    Reduced,
    antithetic,
    antithetic_mean,
    control_variate,
    linearised,
    mirror,
)

__all__ = [
    "QUANTILES",
    "Chunk",
    "Interval",
    "Precision",
    "Reached",
    "Reduced",
    "Stats",
    "antithetic",
    "antithetic_mean",
    "control_variate",
    "instance_mesh",
    "linearised",
    "mean_interval",
    "mirror",
    "paired",
    "quantile_interval",
    "run",
    "run_until",
    "stats_of_values",
    "stream",
    "yield_interval",
]
