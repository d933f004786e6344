"""A grid of settings, every point over the same chips; axes that are numbers share one compiled program."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.montecarlo.intervals import Interval
from nvcim_jax.montecarlo.progress import Advance, progress_bar
from nvcim_jax.montecarlo.runner import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats
from nvcim_jax.montecarlo.stopping import Precision, run_until
from nvcim_jax.types import PyTree

__all__ = ["Point", "Sweep", "grid", "point_name", "shard_range", "sweep"]

Metric = Callable[..., PyTree]
Settings = dict[str, Any]


class Point(NamedTuple):
    """One point of a grid: its settings, its statistics, and its interval where a precision was asked for."""

    settings: Settings
    stats: Stats
    interval: Interval | None


class Sweep(NamedTuple):
    """All points in the order of the grid, and how many programs were compiled for them."""

    points: tuple[Point, ...]
    num_compiles: int


def grid(axes: Mapping[str, Sequence[Any]]) -> tuple[Settings, ...]:
    """Return every combination of the axes' values; the last axis changes fastest.

    Raises:
        ValueError: If an axis is empty or holds a value twice.

    Example:
        >>> grid({"device": ["RRAM1", "FeFET6"], "sigma": [0.1]})
        ({'device': 'RRAM1', 'sigma': 0.1}, {'device': 'FeFET6', 'sigma': 0.1})
    """
    for name, values in axes.items():
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            checks.fail(f"axes.{name}", "be a list of values", f"is {values!r}")
        if len({repr(value) for value in values}) < len(values):
            checks.fail(f"axes.{name}", "hold each value once", f"is {list(values)}")
    return tuple(dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def point_name(settings: Settings) -> str:
    """Return the folder name of a point, from its settings alone, so that a grid may grow.

    Example:
        >>> point_name({"sigma": 0.1, "device": "FeFET6"})
        'device=FeFET6,sigma=0.1'
    """
    parts = (f"{name}={settings[name]}" for name in sorted(settings))
    return re.sub(r"[^\w=.,+-]", "_", ",".join(parts)) or "point"


def shard_range(num_instances: int, shard: int, num_shards: int) -> range:
    """Return the ids of shard 1 .. num_shards; sizes are equal within one, and together they are all.

    Example:
        >>> [shard_range(10, k, 3) for k in (1, 2, 3)]
        [range(0, 4), range(4, 7), range(7, 10)]
    """
    checks.integer("num_shards", num_shards, high=num_instances)
    checks.integer("shard", shard, high=num_shards)
    size, rest = divmod(num_instances, num_shards)
    first = (shard - 1) * size + min(shard - 1, rest)
    return range(first, first + size + (shard <= rest))


def sweep(
    build: Callable[[Settings], Metric],
    key: jax.Array,
    axes: Mapping[str, Sequence[Any]],
    num_instances: int,
    *,
    traced: Sequence[str] = (),
    args: tuple[Any, ...] | Callable[[Settings], tuple[Any, ...]] = (),
    shard: tuple[int, int] = (1, 1),
    precision: Precision | None = None,
    quantiles: tuple[float, ...] = QUANTILES,
    progress: bool | Advance | None = None,
    folder: str | Path | None = None,
    config: Any = None,
    **options: Any,
) -> Sweep:
    """Run a metric over a grid of settings.

    Every point sees the same chips (common random numbers), so that differences between points are far better known
    than the points themselves. Axes named in `traced` are numbers that enter as arguments of the compiled program; the
    others hold any plain values (names of devices, mappings, methods; static numbers) and choose a program: one compile
    for each combination of them, none for the numbers.

    To compare methods, make the method an axis of names, and let `build` return the metric of `settings["method"]`,
    which draws its chip from the key in the same way as the other methods do. Two points that differ in the method only
    then hold the same chips in the same order: `a.stats.values - b.stats.values` is the paired difference (`paired`
    with `run_until` stops when that is known). For a pipeline of several stages, `build` binds the stages of the
    method, and everything large goes through `args`.

    Args:
        build: Called once for each combination of the untraced settings; returns `fn(key, numbers, *args)`, with the
            traced settings in the dictionary `numbers` (float32 scalars).
        key: One JAX random key, the same for every point.
        axes: Name to list of values; the last axis changes fastest.
        num_instances: Instances of each point; the most of them, where `precision` is given.
        traced: Names of the axes that are numbers.
        args: Arrays passed on to the metric, or a function that makes them from a point's settings.
        shard: (k, n): run the k-th of n ranges of instance ids.
        precision: Stop each point when this is known; not with shards.
        quantiles: Levels in [0, 1].
        progress: See `run`.
        folder: Folder for the records: one folder a point under `points/`, resumed as by `run`.
        config: Settings common to all points, kept with each.
        **options: `chunk`, `mapping`, `mesh`, `memory_budget_mb`, `save_every_s` of `run`.

    Returns:
        `Sweep`: the points and the number of programs compiled.

    Raises:
        ValueError: If an axis is empty, a traced value is not a finite number, or an argument of `run` is wrong.

    Example:
        >>> found = sweep(lambda settings: lambda key, numbers: numbers["sigma"] * jax.random.normal(key) ** 2,
        ...               jax.random.key(0), {"sigma": [0.1, 0.2, 0.4]}, 2000, traced=("sigma",))
        >>> [f"{p.stats.mean / p.settings['sigma']:.1f}" for p in found.points], found.num_compiles  # E[N^2] = 1
        (['1.0', '1.0', '1.0'], 1)
        >>> methods = {"plain": lambda z: z, "clipped": lambda z: jnp.clip(z, -1, 1)}
        >>> found = sweep(lambda s: lambda key, n: jnp.abs(n["sigma"] * methods[s["method"]](jax.random.normal(key))),
        ...               jax.random.key(0), {"method": [*methods], "sigma": [0.1, 0.2]}, 500, traced=("sigma",))
        >>> plain, _, clipped, _ = (point.stats.values for point in found.points)
        >>> found.num_compiles, bool((plain >= clipped).all())  # chip by chip
        (2, True)
    """
    points = grid(axes)
    _check_traced(axes, traced)
    ids = shard_range(num_instances, *shard)
    if precision is not None and shard != (1, 1):
        checks.fail("precision", "be None with shards", "is given", "A shard does not know the others' values.")
    traces: list[Settings] = []
    metrics: dict[str, Metric] = {}
    done: list[Point] = []
    common = {"quantiles": quantiles, **options}
    with progress_bar(len(points) * len(ids), progress, f"{len(points)} points") as advance:
        for settings in points:
            static = {name: value for name, value in settings.items() if name not in traced}
            name = point_name(static)
            if name not in metrics:
                metrics[name] = _counted(build(static), static, traces)
            numbers = {n: jnp.float32(settings[n]) for n in axes if n in traced}
            here = None if folder is None else Path(folder) / "points" / point_name(settings)
            about = {"settings": settings, "common": config}
            arrays = args(settings) if callable(args) else args
            call = {"args": (numbers, *arrays), "folder": here, "config": about, "progress": advance, **common}
            if precision is None:
                stats = run(metrics[name], key, len(ids), first_instance=ids.start, **call)
                done.append(Point(settings, stats, None))
            else:
                found = run_until(metrics[name], key, precision, max_instances=num_instances, **call)
                done.append(Point(settings, found.stats, found.interval))
    return Sweep(tuple(done), len(traces))


def _counted(metric: Metric, static: Settings, traces: list[Settings]) -> Metric:
    """Note each trace: a program is traced once, when it is compiled."""

    def counted(key: jax.Array, *args: Any) -> PyTree:
        traces.append(static)
        return metric(key, *args)

    return counted


def _check_traced(axes: Mapping[str, Sequence[Any]], traced: Sequence[str]) -> None:
    for name in traced:
        for value in axes.get(name, ()):
            if isinstance(value, bool) or not isinstance(value, int | float):
                checks.fail(f"axes.{name}", "hold numbers", f"holds {value!r}")
            checks.finite(f"axes.{name}", value)
