"""A grid of settings, every point over the same chips; axes that are numbers share one compiled program."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.montecarlo.intervals import Interval
from nvcim_jax.montecarlo.runner import check_run, run
from nvcim_jax.montecarlo.statistics import Stats
from nvcim_jax.montecarlo.stopping import Precision, run_until
from nvcim_jax.progress import progress_bar
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree, Store

__all__ = ["Point", "Sweep", "grid", "shard_range", "sweep"]

Metric = Callable[..., PyTree]
Settings = dict[str, Any]


class Point(NamedTuple):
    """One point of a grid.

    Attributes:
        settings: Its settings, name -> value.
        stats: Its statistics.
        interval: Its interval where a precision was asked for, else None.
    """

    settings: Settings
    stats: Stats
    interval: Interval | None


class Sweep(NamedTuple):
    """What a sweep found.

    Attributes:
        points: All points, in the order of the grid.
        num_programs: How many compiled programs serve them.
    """

    points: tuple[Point, ...]
    num_programs: int


@checked
def grid(axes: Mapping[str, Sequence[Any]]) -> tuple[Settings, ...]:
    """Return every combination of the axes' values; the last axis changes fastest.

    Args:
        axes: Name of each setting -> its values.

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


@checked
def shard_range(num_instances: int, shard: int, num_shards: int) -> range:
    """Return the ids of shard 1 .. num_shards; sizes are equal within one, and together they are all.

    Args:
        num_instances: How many there are together.
        shard: Number of the shard, from 1.
        num_shards: How many shards there are, at most one an instance.

    Example:
        >>> [shard_range(10, k, 3) for k in (1, 2, 3)]
        [range(0, 4), range(4, 7), range(7, 10)]
    """
    checks.integer("num_instances", num_instances)
    checks.integer("num_shards", num_shards, high=num_instances)
    checks.integer("shard", shard, high=num_shards)
    size, rest = divmod(num_instances, num_shards)
    first = (shard - 1) * size + min(shard - 1, rest)
    return range(first, first + size + (shard <= rest))


@checked
def sweep(
    build: Callable[[Settings], Metric],
    key: Key,
    axes: Mapping[str, Sequence[Any]],
    num_instances: int | range,
    *,
    traced: Sequence[str] = (),
    args: tuple[Any, ...] | Callable[[Settings], tuple[Any, ...]] = (),
    precision: Precision | None = None,
    store: Callable[[Settings], Store] | None = None,
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
        num_instances: Instances of each point, or the range of their ids (`shard_range`); the most of them, where
            `precision` is given.
        traced: Names of the axes that are numbers.
        args: Arrays passed on to the metric, or a function that makes them from a point's settings.
        precision: Stop each point when this is known; not with a range of ids.
        store: Where the instances of a point are kept, from its settings, such as `nvcim_jax.io.points("runs/x")`.
        **options: `quantiles`, `placement`, `progress` of `run`.

    Returns:
        `Sweep`: the points and the number of programs that serve them.

    Raises:
        ValueError: If an axis is empty, a traced value is not a finite number, or an argument of `run` is wrong.

    Example:
        >>> found = sweep(lambda settings: lambda key, numbers: numbers["sigma"] * jax.random.normal(key) ** 2,
        ...               jax.random.key(0), {"sigma": [0.1, 0.2, 0.4]}, 2000, traced=("sigma",))
        >>> [f"{p.stats.mean / p.settings['sigma']:.1f}" for p in found.points], found.num_programs  # E[N^2] = 1
        (['1.0', '1.0', '1.0'], 1)
        >>> methods = {"plain": lambda z: z, "clipped": lambda z: jnp.clip(z, -1, 1)}
        >>> found = sweep(lambda s: lambda key, n: jnp.abs(n["sigma"] * methods[s["method"]](jax.random.normal(key))),
        ...               jax.random.key(0), {"method": [*methods], "sigma": [0.1, 0.2]}, 500, traced=("sigma",))
        >>> plain, _, clipped, _ = (point.stats.values for point in found.points)
        >>> found.num_programs, bool((plain >= clipped).all())  # chip by chip
        (2, True)
    """
    points = grid(axes)
    _check_traced(axes, traced)
    if precision is not None and isinstance(num_instances, range):
        checks.fail("precision", "be None with a range of ids", "is given", "A shard does not know the others' values.")
    ids = check_run(build, key, num_instances)
    programs: set[tuple[str, str]] = set()
    metrics: dict[str, Metric] = {}
    done: list[Point] = []
    with progress_bar(len(points) * len(ids), options.pop("progress", None), f"{len(points)} points") as advance:
        for settings in points:
            static = {name: value for name, value in settings.items() if name not in traced}
            name = repr(static)
            if name not in metrics:
                metrics[name] = build(static)
            numbers = {n: jnp.float32(settings[n]) for n in axes if n in traced}
            arrays = args(settings) if callable(args) else args
            programs.add((name, str(jax.eval_shape(lambda *given: given, numbers, arrays))))
            where = None if store is None else store(settings)
            call = {"args": (numbers, *arrays), "store": where, "progress": advance, **options}
            if precision is None:
                done.append(Point(settings, run(metrics[name], key, num_instances, **call), None))
            else:
                found = run_until(metrics[name], key, precision, max_instances=len(ids), **call)
                done.append(Point(settings, found.stats, found.interval))
    return Sweep(tuple(done), len(programs))


def _check_traced(axes: Mapping[str, Sequence[Any]], traced: Sequence[str]) -> None:
    for name in traced:
        checks.choice("traced", name, axes)
        for value in axes.get(name, ()):
            if isinstance(value, bool) or not isinstance(value, int | float):
                checks.fail(f"axes.{name}", "hold numbers", f"holds {value!r}")
            checks.finite(f"axes.{name}", value)
