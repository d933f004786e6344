"""One function over many device instances: keys, chunks, meshes, statistics."""

from nvcim_jax.montecarlo.engine import Chunk, instance_mesh, stream
from nvcim_jax.montecarlo.run import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats, stats_of_values

__all__ = ["QUANTILES", "Chunk", "Stats", "instance_mesh", "run", "stats_of_values", "stream"]
