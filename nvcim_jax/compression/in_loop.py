"""Quantisers in the loop: weights, activations, keys and values rounded where they are used, gradients let through."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.compression.policy import Policy, check_policy
from nvcim_jax.compression.quantise import quantise
from nvcim_jax.models import LM, is_block_matrix
from nvcim_jax.ops import Weight, refuse, register_weight, understand
from nvcim_jax.signature import checked

__all__ = ["PARTS", "Quantised", "in_loop"]

PARTS = ("weights", "activations", "keys and values")


class Quantised(Weight):
    """A matrix around whose products something is rounded to b bits, each layer its own b.

    Attributes:
        w: The matrix, or a weight of any class where its floats are not rounded ([layers,] inputs, outputs).
        bits: float32 ([layers]).
        rounds: What is rounded: "weights", "inputs" and "outputs", the last two token by token.
        clip: Where the gradient ends, see `quantise`.
    """

    w: Any
    bits: Any
    rounds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    clip: float | None = dataclasses.field(default=None, metadata={"static": True})

    def aval(self) -> Any:
        """Return shape and dtype of the matrix."""
        return ShapedArray(self.w.shape, self.w.dtype)

    @property
    def label(self) -> str:
        """Name of the weight inside."""
        return getattr(self.w, "label", "")

    @property
    def num_stacked(self) -> int:
        """How many leading axes count matrices."""
        return self.w.num_stacked if isinstance(self.w, Weight) else max(self.w.ndim - 2, 0)


def _times(w: Quantised, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if axes != (0,):
        refuse(w, "multiplied along its outputs", "What is rounded are its inputs, token by token.")
    seen = quantise(x, w.bits, clip=w.clip) if "inputs" in w.rounds else x
    # The backward pass rounds weights again: kept, they would be a second model in floats.
    y = (jax.checkpoint(_product) if "weights" in w.rounds else _product)(w, seen)
    return quantise(y, w.bits, clip=w.clip) if "outputs" in w.rounds else y


def _product(w: Quantised, x: jax.Array) -> jax.Array:
    def product(inside: jax.Array) -> jax.Array:
        return lax.dot_general(x, inside.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))

    return understand(product)(quantise(w.w, w.bits, axis=0, clip=w.clip) if "weights" in w.rounds else w.w)


def _cast(w: Quantised, dtype: Any) -> Quantised:
    inside = understand(lambda a: lax.convert_element_type(a, dtype))(w.w)
    return Quantised(inside, w.bits, w.rounds, w.clip)


register_weight(Quantised, _times, _cast)


@checked
def in_loop(lm: LM, policy: Policy, *, parts: Sequence[str] = PARTS, clip: float | None = None) -> LM:
    """Return a model that rounds to the bits of a policy wherever its blocks multiply, and lets gradients through.

    Weights are rounded output by output; the inputs of every matrix of a block token by token; keys and values, all
    heads of a token together, as they leave their matrices: before a bias, a norm and the rotary embedding. So a model
    is tuned with its quantisers in the loop, and one whose weights are codes (`apply`) has its activations rounded.
    An adapter that is put around such a model sees inputs as they are.

    Args:
        lm: The model.
        policy: Of which the bits count.
        parts: What is rounded, out of "weights", "activations", "keys and values". The first wants arrays.
        clip: Where the size of what is rounded reaches this, its gradient is 0 (2 in LLM-QAT); None: nowhere.

    Raises:
        ValueError: If weights that are codes already are to be rounded, or the policy does not fit.

    Example:
        >>> from nvcim_jax import models
        >>> from nvcim_jax.compression import uniform
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(lm, jnp.array([[1, 2, 3]]))
        >>> exact = models.forward(lm, x)[0]
        >>> far, near = (
        ...     jnp.abs(models.forward(in_loop(lm, uniform(2, bits=b)), x)[0] - exact).max() for b in (3, 8)
        ... )
        >>> bool(near < far / 10)
        True

    References:
        Liu et al., LLM-QAT, arXiv:2305.17888, section 2.3.
    """
    for part in parts:
        checks.choice("parts", part, PARTS)
    own = check_policy(policy, lm.config.num_layers)
    bits, layers = jnp.asarray(own.bits, jnp.float32), dict(lm.params["layers"])
    for name, leaf in layers.items():
        if not is_block_matrix(f"layers/{name}", leaf):
            continue
        if "weights" in parts and isinstance(leaf, Weight):
            found, fix = f"is a {type(leaf).__name__}", 'Leave "weights" out of `parts`.'
            checks.fail(f"lm.params: layers.{name}", "be an array whose values are rounded", found, fix)
        kept = name in ("k", "v") and "keys and values" in parts
        rounds = [("weights", "weights" in parts), ("inputs", "activations" in parts), ("outputs", kept)]
        chosen = tuple(kind for kind, wanted in rounds if wanted)
        layers[name] = Quantised(leaf, bits, chosen, clip) if chosen else leaf
    return lm.replace(params={**lm.params, "layers": layers})
