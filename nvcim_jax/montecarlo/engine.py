"""Map one function over device instances in compiled chunks: the only place where instances are computed.

Instance i is `fn(fold_in(key, i), *args)`. One chunk is one call of one compiled function, in which every device of
the mesh works on its own range of instance ids:

- `loop` (CPU): a compiled loop with a *traced* number of turns. The loop's body is the same program whatever the
  chunk, so the values are equal bit for bit, no turn is wasted, and a short run costs no further compile.
- `vmap` (GPU, TPU): all instances of the chunk at once; a short last chunk is padded and the padding thrown away.
  A batched product may sum in another order, so chunks agree to float rounding.

No value crosses between devices inside the map: its HLO has no collective.

The map is compiled with XLA's own options. Those that change the order of a sum, such as the vector width of a CPU
(`XLA_FLAGS=--xla_cpu_prefer_vector_width=512`: sums of matrix-vector products), are the user's to set: values then
change by float rounding.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nvcim_jax import checks
from nvcim_jax.montecarlo.placement import CHOSEN, Placement
from nvcim_jax.montecarlo.program import program
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree, Work

__all__ = ["Chunk", "compiled_map", "instance_mesh", "stream", "structure", "work"]

_MOST_IN_LOOP = 4096
_MOST_IN_VMAP = 256
_TARGET_CALL_S = 0.25
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory allocating")  # the latter in an INTERNAL error of JAX 0.8


class Chunk(NamedTuple):
    """Values of the instances first, first + 1, ..., as host arrays with a leading instance axis."""

    first: int
    num: int
    values: PyTree


@checked
def instance_mesh(devices: list[Any] | None = None) -> Mesh:
    """Return the mesh that `run` spreads over: one axis, "instance", of all devices (or of those given).

    Args:
        devices: Devices of JAX; None: all.

    Example:
        >>> instance_mesh().axis_names
        ('instance',)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("instance",), axis_types=(AxisType.Auto,))


@functools.lru_cache(maxsize=32)
def compiled_map(fn: Callable[..., PyTree], chunk: int, mapping: str, mesh: Mesh) -> Any:
    """Return the jitted map of `fn` over one chunk of instances a device.

    The last 32 maps are kept, so that a second run with the same `fn` compiles nothing.

    Args:
        fn: The metric of one instance, `fn(key, *args)`.
        chunk: Instances that a device holds at most in one call.
        mapping: "loop" or "vmap".
        mesh: Mesh with an axis "instance".

    Returns:
        Jitted `(key, starts, counts, args) -> values`: `starts` and `counts` (uint32, one a device) are the ranges of
        ids; values have a leading axis of `chunk` times the number of devices.
    """

    def on_one_device(key: jax.Array, starts: jax.Array, counts: jax.Array, args: tuple[Any, ...]) -> PyTree:
        @functools.partial(jax.jit, inline=True)
        def one(instance: jax.Array) -> PyTree:
            return fn(jax.random.fold_in(key, instance), *args)

        shapes = jax.eval_shape(one, starts[0])
        if mapping == "vmap":
            return jax.vmap(one)(starts[0] + jnp.arange(chunk, dtype=jnp.uint32))

        def turn(i: jax.Array, buffers: PyTree) -> PyTree:
            value = one(starts[0] + i)
            return jax.tree.map(
                lambda b, v: jax.lax.dynamic_update_index_in_dim(b, jnp.asarray(v, b.dtype), i, 0), buffers, value
            )

        empty = jax.tree.map(lambda s: jnp.zeros((chunk, *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(jnp.uint32(0), counts[0], turn, empty)

    spread = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(P(), P("instance"), P("instance"), P()),
        out_specs=P("instance"),
        check_vma=False,
    )
    return jax.jit(spread)


def _ranges(first: int, count: int, num_devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the ids first .. first + count into one contiguous range a device, sizes equal within one."""
    sizes = np.full(num_devices, count // num_devices)
    sizes[: count % num_devices] += 1
    starts = first + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return starts.astype(np.uint32), sizes.astype(np.uint32)


def _place(tree: PyTree, mesh: Mesh, spec: P) -> PyTree:
    """Put a tree on the mesh; with several processes every one gives the same values and holds its part."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(jax.random.clone(leaf)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf) if isinstance(leaf, jax.Array) else np.asarray(jnp.asarray(leaf))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def _to_host(values: PyTree, sizes: np.ndarray, chunk: int) -> PyTree:
    """Bring one chunk to the host and drop what no instance wrote."""
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(values)):
        from jax.experimental import multihost_utils

        values = multihost_utils.process_allgather(values, tiled=True)
    keep = (np.arange(chunk) < sizes[:, None]).ravel()
    whole = bool(keep.all())  # then nothing is copied
    return jax.tree.map(lambda leaf: np.asarray(leaf) if whole else np.asarray(leaf)[keep], values)


class _Plan(NamedTuple):
    """How the instances of one run are computed: everything that never changes a value."""

    mapping: str
    mesh: Mesh
    chunk: int
    adapt: bool


def _needed_bytes(fn: Callable[..., PyTree], plan: _Plan, key: jax.Array, args: tuple[Any, ...], budget: float) -> int:
    """Return the bytes that one call takes on a device besides the arguments."""
    size = plan.mesh.shape["instance"]
    ids = np.zeros(size, np.uint32)
    if jax.process_count() > 1:
        ids = _place(ids, plan.mesh, P("instance"))
    call = compiled_map(fn, plan.chunk, plan.mapping, plan.mesh).lower(key, ids, ids, args)
    outputs = sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(call.out_info)) // size
    if outputs > budget and plan.chunk > 1:  # known without a compile
        return outputs
    analysis = call.compile().memory_analysis()
    if analysis is None:  # a backend without the analysis: the outputs are all that is known
        return outputs
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _fit(fn: Callable[..., PyTree], plan: _Plan, key: jax.Array, args: tuple[Any, ...], budget_mb: float) -> _Plan:
    """Shrink the chunk until the compiled call's own memory analysis is inside the budget."""
    budget = budget_mb * 2**20
    while True:
        needed = _needed_bytes(fn, plan, key, args, budget)
        if needed <= budget:
            return plan
        if plan.chunk == 1:
            least = math.ceil(needed / 2**20)
            checks.fail(
                "memory_budget_mb",
                f"be at least {least}, what one instance needs",
                f"is {budget_mb:g}",
                f"Give memory_budget_mb={least}.",
            )
        plan = plan._replace(chunk=max(1, min(plan.chunk // 2, int(plan.chunk * budget / needed))))


def _platform(key: jax.Array, mesh: Mesh | None) -> str:
    device = next(iter(key.devices())) if mesh is None else mesh.devices.flat[0]
    return device.platform


def _plan(key: jax.Array, placement: Placement) -> _Plan:
    mesh, mapping, chunk = placement.mesh, placement.mapping, placement.chunk
    if mapping == "auto":
        mapping = "loop" if _platform(key, mesh) == "cpu" else "vmap"
    if mesh is None:
        grid = instance_mesh(sorted(key.devices(), key=lambda d: d.id)[:1])
    else:  # the same devices; how a caller types the axes for other work does not matter here
        grid = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    most = _MOST_IN_LOOP if mapping == "loop" else _MOST_IN_VMAP
    adapt = chunk is None and mapping == "loop" and jax.process_count() == 1
    return _Plan(mapping, grid, chunk or (most if adapt or mapping == "vmap" else 64), adapt)


def structure(fn: Callable[..., PyTree], key: jax.Array, args: tuple[Any, ...], placement: Placement) -> PyTree:
    """Return the tree of one chunk's shapes, from the trace that the run itself uses."""
    fn, plan = _identified(fn), _plan(key, placement)
    ids = np.zeros(plan.mesh.shape["instance"], np.uint32)
    if placement.mesh is not None:
        key, args = _place((key, args), plan.mesh, P())
    if jax.process_count() > 1:
        ids = _place(ids, plan.mesh, P("instance"))
    return compiled_map(fn, plan.chunk, plan.mapping, plan.mesh).eval_shape(key, ids, ids, args)


def work(fn: Callable[..., PyTree], key: jax.Array, args: tuple[Any, ...]) -> Work:
    """Return what a run computes, for a store to compare with what it holds."""
    return Work(program(_identified(fn), key, args), key, args)


class _Bound(NamedTuple):
    """A partial function that equals another one of the same function and settings.

    `said` is how Python writes what is bound: 1, 1.0 and True are equal, and so are 0.0 and -0.0, and differ in it.
    """

    fn: Callable[..., PyTree]
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    said: str

    def __call__(self, *args: Any) -> PyTree:
        return self.fn(*self.args, *args, **dict(self.options))


def _identified(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Return `fn` as something by which its compiled map is found again.

    A `functools.partial` is told apart by what it binds where that can be compared, so that it may be made anew for
    every run; a function is itself, and what cannot be hashed (a specification that is used as a function) gets an
    identity of its own.
    """
    if isinstance(fn, functools.partial):
        options = tuple(sorted(fn.keywords.items()))
        bound = _Bound(fn.func, fn.args, options, repr((fn.args, options)))
        fn = bound if _hashable(bound) else fn
    return fn if _hashable(fn) else functools.partial(fn)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _next_count(count: int, elapsed_s: float, plan: _Plan) -> int:
    """Choose the next call's number of instances so that a call takes about a quarter of a second."""
    if not plan.adapt:
        return count
    devices = plan.mesh.shape["instance"]
    wanted = int(count * min(8.0, _TARGET_CALL_S / max(elapsed_s, 1e-6)))
    return int(np.clip(wanted, devices, plan.chunk * devices))


def _call(
    fn: Callable[..., PyTree], plan: _Plan, key: jax.Array, args: tuple[Any, ...], first: int, count: int
) -> PyTree:
    starts, sizes = _ranges(first, count, plan.mesh.shape["instance"])
    ids = (starts, sizes) if jax.process_count() == 1 else _place((starts, sizes), plan.mesh, P("instance"))
    values = compiled_map(fn, plan.chunk, plan.mapping, plan.mesh)(key, *ids, args)
    # Waited for first: where the memory of an output was refused, the wait raises, while a CPU's buffer read by NumPy
    # would end the process.
    jax.block_until_ready(values)
    return _to_host(values, sizes, plan.chunk)


def _halved(plan: _Plan, error: RuntimeError | MemoryError) -> _Plan:
    """Halve the chunk after an out-of-memory error and say so; any other error, and a chunk of one, is raised."""
    told = any(words in str(error) for words in _OUT_OF_MEMORY)
    refused = isinstance(error, MemoryError) or told  # NumPy's, for the host's copy, or XLA's
    if not refused or plan.chunk == 1:
        raise error
    smaller = plan._replace(chunk=plan.chunk // 2)
    warnings.warn(
        f"Out of device memory with {plan.chunk} instances a device; going on with {smaller.chunk}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return smaller


@checked
def stream(
    fn: Callable[..., PyTree],
    key: Key,
    ids: range,
    *,
    args: tuple[Any, ...] = (),
    placement: Placement = CHOSEN,
) -> Iterator[Chunk]:
    """Compute the instances `ids` in order and yield them chunk by chunk; the arguments are those of `run`.

    A device (or, for the copy of a chunk, the host) that runs out of memory halves the chunk, says so with a
    `RuntimeWarning`, and goes on. A system that promises more memory than it has, as Linux does by default, ends the
    process instead of refusing: `memory_budget_mb` is what prevents that.

    Args:
        fn: The metric of one instance, `fn(key, *args)`.
        key: Key of the run.
        ids: Ids of the instances.
        args: Arrays and numbers passed on to `fn`.
        placement: Where, and in what portions.

    Yields:
        `Chunk` of host arrays.

    Raises:
        ValueError: If one instance exceeds the memory budget, or the metric draws while it is traced.

    Example:
        >>> parts = list(stream(jax.random.normal, jax.random.key(0), range(3, 8), placement=Placement(chunk=2)))
        >>> [(part.first, part.num) for part in parts]
        [(3, 2), (5, 2), (7, 1)]
    """
    key = checks.key("key", key)
    fn, plan = _identified(fn), _plan(key, placement)
    program(fn, key, args)  # refuses what is drawn while the metric is traced
    if placement.mesh is not None:
        key, args = _place((key, args), plan.mesh, P())
    plan = _fit(fn, plan, key, args, placement.memory_budget_mb)
    devices = plan.mesh.shape["instance"]
    count = devices * (min(plan.chunk, 4) if plan.adapt else plan.chunk)
    first = ids.start
    while first < ids.stop:
        count = min(count, devices * plan.chunk)
        now = min(count, ids.stop - first)
        started = time.perf_counter()
        try:
            values = _call(fn, plan, key, args, first, now)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            plan = _halved(plan, error)
            continue
        yield Chunk(first, now, values)
        count = _next_count(now, time.perf_counter() - started, plan)
        first += now
