"""Run a metric over many device instances and return its statistics."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.montecarlo import sketch
from nvcim_jax.montecarlo.columns import columns
from nvcim_jax.montecarlo.engine import Chunk
from nvcim_jax.montecarlo.placement import CHOSEN, Placement
from nvcim_jax.montecarlo.statistics import (
    Moments,
    Stats,
    finite_instances,
    merge,
    moments,
    stats_of_moments,
    stats_of_values,
)
from nvcim_jax.montecarlo.stored import instances
from nvcim_jax.progress import Advance, progress_bar
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree, Store

__all__ = ["QUANTILES", "check_run", "run"]

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
_MOST_IDS = 2**32


def check_run(
    fn: Any, key: Any, num_instances: Any, *, args: Any = (), quantiles: Any = QUANTILES, placement: Any = CHOSEN
) -> range:
    """Check the arguments of a run before anything is traced, and return the ids that it asks for.

    Raises:
        ValueError: If one is wrong; the message names it, what it must be, and the fix.
    """
    if not callable(fn):
        checks.fail("fn", "be a function of (key, *args)", f"is {type(fn).__name__}")
    checks.key("key", key)
    ids = _ids(num_instances)
    for level in quantiles:
        checks.number("quantiles", level, low=0.0, high=1.0)
    if not isinstance(args, tuple):
        checks.fail("args", "be a tuple", f"is {type(args).__name__}", "For one argument write args=(x,).")
    for leaf in jax.tree.leaves(args):
        if not isinstance(leaf, int | float | complex | np.ndarray | np.generic | jax.Array):
            fix = "Bind other things to `fn` with functools.partial."
            checks.fail("args", "hold arrays and numbers only", f"holds a {type(leaf).__name__}", fix)
    if not isinstance(placement, Placement):
        fix = "Write montecarlo.Placement(chunk=..., mesh=...)."
        checks.fail("placement", "be a Placement", f"is {type(placement).__name__}", fix)
    return ids


def _ids(num_instances: Any) -> range:
    if not isinstance(num_instances, range):
        checks.integer("num_instances", num_instances, high=_MOST_IDS)
        return range(num_instances)
    if not len(num_instances) or num_instances.step != 1 or not 0 <= num_instances.start < num_instances.stop:
        checks.fail("num_instances", "be a range of ids that rise by 1", f"is {num_instances}")
    if num_instances.stop > _MOST_IDS:
        checks.fail("num_instances", f"hold ids below {_MOST_IDS}", f"is {num_instances}")
    return num_instances


class _Collector(NamedTuple):
    """Takes chunks in instance order and gives the statistics of all of them."""

    add: Callable[[Chunk], None]
    stats: Callable[[tuple[float, ...]], Stats]


def _keep_values(num_instances: int) -> _Collector:
    """Collect all values in one host array a leaf, filled chunk by chunk."""
    values: PyTree = None
    done = 0

    def add(chunk: Chunk) -> None:
        nonlocal values, done
        if values is None:
            values = jax.tree.map(lambda v: np.empty((num_instances, *v.shape[1:]), v.dtype), chunk.values)
        here = slice(done, done + chunk.num)
        for target, value in zip(jax.tree.leaves(values), jax.tree.leaves(chunk.values), strict=True):
            target[here] = value
        done += chunk.num

    return _Collector(add, lambda levels: stats_of_values(values, levels))


def _keep_moments(num_instances: int) -> _Collector:
    """Collect moments and a sketch, nothing that grows with the number of instances."""
    total: Moments | None = None
    sketches: list[sketch.Sketch] = []

    def add(chunk: Chunk) -> None:
        nonlocal total, sketches
        good = finite_instances(chunk.values)
        kept = jax.tree.map(lambda v: np.asarray(v)[good], chunk.values)
        new = moments(kept)
        total = new if total is None else merge(total, new)
        leaves = jax.tree.leaves(kept)
        sketches = sketches or [sketch.empty(leaf.shape[1:]) for leaf in leaves]
        sketches = [sketch.add(s, leaf) for s, leaf in zip(sketches, leaves, strict=True)]

    def stats(levels: tuple[float, ...]) -> Stats:
        assert total is not None
        found = [sketch.quantile(s, levels) for s in sketches]
        quantiles = jax.tree.unflatten(jax.tree.structure(total.mean), found)
        return stats_of_moments(total, quantiles, None, num_instances, levels)

    return _Collector(add, stats)


@checked
def run(
    fn: Callable[..., PyTree],
    key: Key,
    num_instances: int | range,
    *,
    args: tuple[Any, ...] = (),
    quantiles: tuple[float, ...] = QUANTILES,
    keep_values: bool = True,
    placement: Placement = CHOSEN,
    progress: bool | Advance | None = None,
    store: Store | None = None,
) -> Stats:
    """Run a metric over device instances: instance i is `fn(fold_in(key, i), *args)`.

    Its value does not depend on how many instances are asked for, on the chunk, or on the mesh: bit for bit with
    mapping "loop" (a CPU's default), within float rounding with "vmap", whose products are batched.

    `fn` is compiled once for a shape of `args`, whatever the key, the number of instances and the numbers in `args`.
    The compiled function is found again by the identity of `fn` (a `functools.partial` by what it binds): define it
    once, outside a loop, and pass what changes, and every large array, in `args` (a closed-over array becomes a
    constant of the program).

    Args:
        fn: Metric of one instance, `fn(key, *args)`, returning a number or any tree of real arrays. May be jitted.
        key: One JAX random key.
        num_instances: Number of instances, at least 1, with the ids from 0 on; or the range of ids itself.
        args: Arrays and numbers passed on to `fn`, traced.
        quantiles: Levels in [0, 1].
        keep_values: Whether all values are kept; without them quantiles come from a sketch (relative error 2^-12)
            and memory does not grow with `num_instances`.
        placement: Chunk, mapping, mesh and memory budget: what never changes a value.
        progress: True shows a progress bar on stderr, None only when it is a terminal; never in the first 2 s.
            A function is called with the number of instances done and a note.
        store: Where instances are kept, such as `nvcim_jax.io.folder("runs/x")`: a run that was killed goes on from
            there, with the same values as without a break. What is there of another run is refused.

    Returns:
        `Stats`, in float64 on the host.

    Raises:
        ValueError: If an argument is wrong, `fn` returns no real array, one instance exceeds the memory budget, or
            `store` holds another run or is in use.
        OSError: If the disk refuses to keep instances; those kept before stay.

    Example:
        >>> stats = run(lambda key, sigma: sigma * jax.random.normal(key) ** 2, jax.random.key(0), 10_000, args=(2.0,))
        >>> abs(float(stats.mean) - 2.0) < 5 * float(stats.standard_error)  # E[sigma N^2] = sigma
        True
        >>> stats.values.shape, stats.num_nonfinite
        ((10000,), 0)
    """
    key = checks.key("key", key)
    ids = check_run(fn, key, num_instances, args=args, quantiles=quantiles, placement=placement)
    collected = _keep_values(len(ids)) if keep_values else _keep_moments(len(ids))
    seen: dict[str, Moments] = {}
    parts = instances(fn, key, ids, args=args, placement=placement, store=store)
    with contextlib.closing(parts), progress_bar(len(ids), progress) as advance:
        for part in parts:
            collected.add(part)
            seen = _running(seen, part)
            advance(part.num, _note(seen))
    return collected.stats(tuple(quantiles))


def _running(seen: dict[str, Moments], part: Chunk) -> dict[str, Moments]:
    """Follow the means of the values that are numbers, for the progress bar."""
    found = {}
    for name, column in columns(part.values).items():
        if column.ndim == 1:
            wide = column.astype(np.float64)
            new = moments(wide[np.isfinite(wide)])
            found[name] = merge(seen[name], new) if name in seen else new
    return found


def _note(seen: dict[str, Moments]) -> str:
    """Return the mean of the first value that varies, by its name where it has one."""
    for name in sorted(seen, key=lambda name: name != "value"):
        found = seen[name]
        if found.num >= 2 and float(found.squares) > 0:
            error = math.sqrt(float(found.squares) / (found.num - 1) / found.num)
            what = "mean" if name == "value" else f"mean {name}"
            return f"{what} {float(found.mean):.4g} ± {error:.2g}"
    return ""
