"""Adapters that change weights, merged into them and taken out again."""

from typing import Any

import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.models import LM, Inputs
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.targets import changed_layers
from nvcim_jax.tuning.weights import LowRank, Scaled, change, dense
from nvcim_jax.types import PyTree

__all__ = ["merge"]


def _applied(state: PyTree, lm: LM, adapter: Adapter) -> LM:
    x = jnp.zeros((1, 1, lm.config.width), lm.params["final_norm"].dtype)
    adapted, inputs = adapter.apply(state, lm, Inputs(x))
    if inputs.x is not x or inputs.prefix is not None or adapted is lm:
        fix = "Keep it before the texts: a prompt or prefix is no part of the weights."
        checks.fail("adapter", "change weights to be merged into them", "changes the inputs", fix)
    return adapted


@checked
def merge(lm: LM, state: PyTree, adapter: Adapter, *, undo: bool = False) -> LM:
    """Return the model with an adapter's change in its weights: no adapter is needed to use it, or to save it.

    Args:
        lm: The model; what is changed must be arrays.
        state: State of the adapter.
        adapter: One that changes weights: `lora` (also `rs`, `dora`) or `ia3`; of `full`, the weights are those tuned.
        undo: Whether to take out what was merged instead: the model from before, up to rounding.

    Raises:
        ValueError: If the adapter changes inputs, or a weight is packed or lies on a chip; with `undo`, if it scales by
            zero, or is DoRA, which forgets the sizes of the columns, or `full`, which forgets all (the model from
            before is still at hand).

    Example:
        >>> import jax
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.ia3(("up",), inputs=())
        >>> merged = merge(lm, jnp.full((2, 32), 3.0), adapter)
        >>> bool(jnp.allclose(merged.params["layers"]["up"], 3.0 * lm.params["layers"]["up"]))
        True
    """
    adapted = _applied(state, lm, adapter).params
    layers = adapted["layers"]
    if undo:
        _check_kept(lm.params, adapted)
        return _unmerged(lm, layers)
    found = {
        name: dense(leaf, f"lm.params: layers.{name}") if isinstance(leaf, LowRank | Scaled) else leaf
        for name, leaf in layers.items()
    }
    return lm.replace(params=changed_layers(adapted, found))


def _check_kept(before: PyTree, adapted: PyTree) -> None:
    """Refuse weights that are replaced, not changed: what they were before is lost."""
    around = {name for name, leaf in adapted["layers"].items() if isinstance(leaf, LowRank | Scaled)}
    free = around | {f"{name}_bias" for name in around}
    same = all(leaf is before["layers"][name] for name, leaf in adapted["layers"].items() if name not in free)
    same = same and all(leaf is before[name] for name, leaf in adapted.items() if name != "layers")
    if not (around and same):
        fix = "Keep the model from before."
        checks.fail("adapter", "change weights by what can be taken out", "replaces them", fix)


def _unmerged(lm: LM, layers: dict[str, Any]) -> LM:
    before, found = lm.params["layers"], {}
    for name, leaf in layers.items():
        if isinstance(leaf, LowRank):
            found[name] = _without(leaf)
        elif isinstance(leaf, Scaled):
            inverse = Scaled(leaf.w, *(_inverse(factor) for factor in (leaf.inputs, leaf.outputs)))
            found[name] = dense(inverse, f"lm.params: layers.{name}")
            if leaf.outputs is not None and f"{name}_bias" in before:
                bias = before[f"{name}_bias"]
                found[f"{name}_bias"] = bias / leaf.outputs.astype(bias.dtype)
    return lm.replace(params=changed_layers(lm.params, found))


def _without(leaf: LowRank) -> Any:
    if leaf.magnitude is not None:
        checks.fail("adapter", "keep the sizes of columns to be taken out", "is DoRA", "Keep the model from before.")
    return (leaf.w.astype(jnp.float32) - change(leaf)).astype(leaf.w.dtype)


def _inverse(factor: Any) -> Any:
    if factor is None:
        return None
    if checks.is_concrete(factor) and not bool((factor != 0).all()):
        checks.fail("state", "scale by no zero to be taken out", "has a factor of zero", "Keep the model from before.")
    return 1.0 / factor
