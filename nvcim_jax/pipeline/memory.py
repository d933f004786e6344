"""What holds the stored prompts: a bundle of functions, exact, on crossbars, or the user's own simulator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks, crossbar, devices
from nvcim_jax.ops import as_partial
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = [
    "Memory",
    "as_memory",
    "compensate_state",
    "crossbar_memory",
    "drift_state",
    "exact_memory",
    "through_memory",
]


class Memory(NamedTuple):
    """Say how a matrix is held, multiplied with and read.

    The functions are traced; bind arrays, such as a device, with `jax.tree_util.Partial`.

    Attributes:
        program: `program(key, matrix) -> held`: write a matrix (rows, columns) into a fresh memory, any tree of arrays.
        multiply: `multiply(key, x, held) -> (queries, columns)`: one product of x (queries, rows) with what is held.
        read: `read(key, held) -> (rows, columns)`: one read of what is held.
    """

    program: Callable[[Key, jax.Array], Any]
    multiply: Callable[[Key, jax.Array, Any], jax.Array]
    read: Callable[[Key, Any], jax.Array]


def as_memory(memory: Memory) -> Memory:
    """Return a memory that is an argument of `jax.jit`, whatever functions it is made of."""
    return Memory(*map(as_partial, memory))


def _keep(key: Key, matrix: jax.Array) -> jax.Array:
    del key
    return matrix


def _product(key: Key, x: jax.Array, held: jax.Array) -> jax.Array:
    del key
    return jnp.matmul(x, held, precision="highest")


def exact_memory() -> Memory:
    """Return digital memory: what is held is the matrix.

    Example:
        >>> memory = exact_memory()
        >>> held = memory.program(jax.random.key(0), jnp.array([[1.0, 2.0]]))
        >>> print(memory.multiply(jax.random.key(1), jnp.array([[3.0]]), held))
        [[3. 6.]]
    """
    return Memory(Partial(_keep), Partial(_product), Partial(_keep))


def _program(config: crossbar.Config, device: devices.Device, key: Key, matrix: jax.Array) -> crossbar.Chip:
    return crossbar.program(key, matrix, device, config=config)


def _on_chip(key: Key, x: jax.Array, chip: crossbar.Chip) -> jax.Array:
    return crossbar.matmul(key, x, chip)[0]


@checked
def crossbar_memory(device: devices.Device, config: crossbar.Config) -> Memory:
    """Return memory on crossbars: what is held is a chip, which knows its device and layout.

    Slots of a store lie in columns with a scale of their own, and the noise of a cell depends on the key and its place
    alone, so a store that grew programs its old columns to the same conductances under the same key.

    Args:
        device: The memory cells; its numbers are traced.
        config: Options of the crossbars.

    Example:
        >>> memory = crossbar_memory(devices.get("ideal"), crossbar.Config(weight_bits=16, cell_bits=2))
        >>> chip = memory.program(jax.random.key(0), jnp.array([[1.0, -0.5]]))
        >>> print(memory.read(jax.random.key(1), chip).round(3))
        [[ 1.  -0.5]]
    """
    return Memory(Partial(_program, config, device), Partial(_on_chip), Partial(crossbar.read_back))


@checked
def through_memory(memory: Memory, key: Key, rows: jax.Array) -> jax.Array:
    """Return rows as a freshly programmed memory would give them back, such as every cell with noise of its own level.

    The rows are one column of the matrix; the gradient passes straight through rounding, slicing and noise. Bound to a
    memory it is a `perturb` for `tuning.tune`: `Partial(through_memory, memory)`.

    Args:
        memory: The memory.
        key: Key of the memory and of its one read.
        rows: What is stored, such as a prompt (virtual tokens, width).

    Returns:
        The rows as they were read, of the same shape.

    Example:
        >>> ideal = crossbar_memory(devices.get("ideal"), crossbar.Config(rows=8, cols=8, weight_bits=4, cell_bits=2))
        >>> rows = jnp.array([[1.0, 0.3], [-1.0, -0.1]])
        >>> print(through_memory(ideal, jax.random.key(0), rows).round(2))  # 4 bits: steps of a 7th of the largest
        [[ 1.    0.29]
         [-1.   -0.14]]
    """
    write_key, read_key = jax.random.split(key)
    held = memory.program(write_key, rows.reshape(-1, 1))
    read = memory.read(read_key, held).reshape(rows.shape)
    # Reading multiplies by the scale of the column, which depends on the largest entry: that part is left out.
    return rows + jax.lax.stop_gradient(read - rows)


def _arrays_of(state: Any) -> Any:
    if not hasattr(state, "arrays"):
        checks.fail("state", "be a memory, from pipeline.init or observe", f"is {checks.shown(state)}")
    return state.arrays


def _chips(arrays: Any) -> list[crossbar.Chip]:
    """Return the chips among what is held; there must be one that drifts."""
    is_chip = lambda held: isinstance(held, crossbar.Chip)  # noqa: E731
    found = [held for held in jax.tree.leaves(arrays, is_leaf=is_chip) if is_chip(held)]
    fix = "Use crossbar_memory with a device that drifts, such as devices.get('PCM')."
    if not found:
        checks.fail("state.arrays", "hold chips that drift", "hold none", fix)
    for chip in found:
        if chip.device.drift is None:
            checks.fail("state.arrays", "hold chips that drift", f"are on {chip.device.name!r}, which does not", fix)
    return found


def drift_state(state: Any, t_s: Any) -> Any:
    """Let time pass for all chips of a memory, from the exponents sampled at programming. Draws nothing.

    Args:
        state: The memory, on crossbars of a device that drifts.
        t_s: Seconds since programming (not since the last call), >= 0.

    Returns:
        The same memory at time `t_s`; digital corrections stay as they were set.

    Raises:
        ValueError: If the device does not drift, or the time is negative.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=8, num_layers=1, num_heads=4, mlp_width=16)
        >>> config = pipeline.Config(capacity=1, num_virtual=1, codec="identity")
        >>> device = devices.get("ideal", drift=devices.Drift(mean=0.05, t0_s=20.0))
        >>> memory = crossbar_memory(device, crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=8))
        >>> state = pipeline.init(jax.random.key(0), models.init(jax.random.key(1), config=layout), config=config)
        >>> store = state.store._replace(prompts=jnp.ones((1, 1, 8)), filled=jnp.ones(1, bool))
        >>> state = pipeline.State(store, pipeline.program_store(jax.random.key(2), store, memory, config=config))
        >>> later = drift_state(state, 180.0)
        >>> read = memory.read(jax.random.key(3), later.arrays.values)
        >>> print(f"{read[0, 0]:.4f} {10**-0.05:.4f}")  # (200 / 20) ** -0.05
        0.8913 0.8913
    """
    _chips(_arrays_of(state))
    checks.number("t_s", t_s, low=0.0, unit="s")
    is_chip = lambda held: isinstance(held, crossbar.Chip)  # noqa: E731
    age = lambda held: crossbar.drift(held, t_s) if is_chip(held) else held  # noqa: E731
    return state._replace(arrays=jax.tree.map(age, state.arrays, is_leaf=is_chip))


@checked
def compensate_state(key: Key, state: Any) -> Any:
    """Scale the outputs of each array of all chips by what its summed conductance has lost.

    Args:
        key: Key of the reads that measure it.
        state: The memory, at some time after programming.

    Returns:
        The memory with its gains set.

    Raises:
        ValueError: If the device does not drift.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=8, num_layers=1, num_heads=4, mlp_width=16)
        >>> config = pipeline.Config(capacity=1, num_virtual=1, codec="identity")
        >>> device = devices.get("ideal", drift=devices.Drift(mean=0.05, t0_s=20.0))
        >>> memory = crossbar_memory(device, crossbar.Config(rows=8, cols=8, weight_bits=8, cell_bits=8))
        >>> state = pipeline.init(jax.random.key(0), models.init(jax.random.key(1), config=layout), config=config)
        >>> store = state.store._replace(prompts=jnp.ones((1, 1, 8)), filled=jnp.ones(1, bool))
        >>> state = pipeline.State(store, pipeline.program_store(jax.random.key(2), store, memory, config=config))
        >>> mended = compensate_state(jax.random.key(3), drift_state(state, 180.0))
        >>> print(f"{memory.read(jax.random.key(4), mended.arrays.values)[0, 0]:.4f}")  # what drift took is back
        1.0000

    References:
        V. Joshi et al., Nature Communications 11, 2473 (2020), "Drift compensation".
    """
    chips = _chips(state.arrays)
    keys = iter(jax.random.split(key, max(2, len(chips))))
    is_chip = lambda held: isinstance(held, crossbar.Chip)  # noqa: E731
    mend = lambda held: crossbar.compensate(next(keys), held) if is_chip(held) else held  # noqa: E731
    return state._replace(arrays=jax.tree.map(mend, state.arrays, is_leaf=is_chip))
