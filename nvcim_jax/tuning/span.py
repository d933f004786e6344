"""A run of consecutive blocks as a model of its own, with an exit: what one step of windowed tuning looks at."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.models import LM, Config, Inputs, KeysValues, is_block_matrix
from nvcim_jax.ops import Part, Weight
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.types import PyTree

__all__ = ["adapt", "cut_state", "inside", "join_states", "window_lm", "with_gain"]


def _window_config(config: Config, start: int, size: int) -> Config:
    # Learned positions stand in the stream already: they are added once, below the first block.
    positions = "rope" if config.positions == "rope" else "none"
    sliding = config.sliding[start : start + size]
    return dataclasses.replace(config, num_layers=size, sliding=sliding, positions=positions)


def window_lm(lm: LM, start: int, size: int) -> LM:
    """Return the blocks `start` to `start + size - 1` as a model; no matrix is copied, and the head is that of `lm`."""
    first = jnp.asarray(start, jnp.int32)

    def part(name: str, leaf: Any) -> Any:
        if isinstance(leaf, Weight) or is_block_matrix(f"layers/{name}", leaf):
            return Part(leaf, first, size)
        return leaf[start : start + size]

    layers = {name: part(name, leaf) for name, leaf in lm.params["layers"].items()}
    return lm.replace(params={**lm.params, "layers": layers}, config=_window_config(lm.config, start, size))


def with_gain(lm: LM, gain: jax.Array | None) -> LM:
    """Return a model whose final norm is followed by a factor a channel: what an exit may learn of its own."""
    if gain is None:
        return lm
    offset = 1.0 if lm.config.norm_offset else 0.0
    scale = lm.params["final_norm"].astype(jnp.float32) + offset
    changed = {"final_norm": scale * gain - offset}
    if "final_norm_bias" in lm.params:
        changed["final_norm_bias"] = lm.params["final_norm_bias"].astype(jnp.float32) * gain
    return lm.replace(params={**lm.params, **changed})


def adapt(adapter: Adapter, state: PyTree, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    """Apply an adapter to a window; keys and values that it puts before the text come before what each token sees."""
    changed, given = adapter.apply(state, lm, inputs)
    if given.prefix is inputs.prefix or given.prefix is None:
        return changed, given
    mask, positions, more = given.mask, given.positions, given.prefix.keys.shape[-2]
    if mask is not None and mask.ndim == given.x.ndim:
        mask = jnp.pad(mask, (*((0, 0),) * (mask.ndim - 1), (more, 0)), constant_values=True)
    return changed, given._replace(mask=mask, positions=None if positions is None else positions + more)


def inside(inputs: Inputs, x: jax.Array, start: int, size: int) -> Inputs:
    """Return what goes into a window: the stream at its entrance, and its own share of a prefix of the whole model."""
    prefix = inputs.prefix
    if prefix is not None:
        prefix = KeysValues(*(a[start : start + size] for a in prefix))
    return inputs._replace(x=x, prefix=prefix)


def _options(adapter: Adapter) -> Any:
    """Return the options of an adapter that has arrays for each block.

    Raises:
        ValueError: If it has none.
    """
    options = adapter.details[0] if adapter.details else None
    if not hasattr(options, "shapes") or not hasattr(options, "pack"):
        kind = "one of your own" if options is None else f"`{options.kind}`"
        checks.fail("adapter", "hold arrays for each block", f"is {kind}", "Use lora, ia3 or prefix.")
    return options


def cut_state(adapter: Adapter, state: PyTree, lm: LM, start: int, size: int) -> PyTree:
    """Return the state of a window out of that of all blocks.

    Raises:
        ValueError: If the adapter has no arrays for each block.
    """
    options = _options(adapter)
    parts = {name: a[start : start + size] for name, a in options.parts(state, lm.config).items()}
    return options.pack(parts, _window_config(lm.config, start, size))


def join_states(adapter: Adapter, states: Sequence[PyTree], lm: LM) -> PyTree:
    """Return the state of all blocks out of those of the windows, in order."""
    options, size = _options(adapter), lm.config.num_layers // len(states)
    parts = [options.parts(s, _window_config(lm.config, i * size, size)) for i, s in enumerate(states)]
    whole = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}
    return options.pack(whole, lm.config)
