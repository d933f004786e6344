"""One block of a model by itself: its matrices as floats, what it makes of its inputs, and what its matrices see."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.models import LM, embed, hidden, is_block_matrix
from nvcim_jax.ops import Weight, register_weight

__all__ = ["check_tokens", "floats", "in_parts", "matrices", "run", "second_moments", "stream"]

Layer = dict[str, Any]

TOGETHER = 8
"""Sequences that are computed at a time, at most."""

SHARED = {"k": "q", "v": "q", "gate": "up"}
"""Matrices that see the inputs of another one."""


def matrices(lm: LM) -> list[str]:
    """Return the names of the matrices of the blocks.

    Raises:
        ValueError: If one has no floats: it is neither an array nor packed.
    """
    found = [name for name, leaf in lm.params["layers"].items() if is_block_matrix(f"layers/{name}", leaf)]
    for name in found:
        leaf = lm.params["layers"][name]
        if isinstance(leaf, Weight) and not hasattr(leaf, "dense"):
            kind = f"is a {type(leaf).__name__}"
            fix = "Put its floats there: tuning.merge for an adapter."
            checks.fail(f"lm.params: layers.{name}", "be an array or packed codes to be compressed", kind, fix)
    return found


def check_tokens(lm: LM, tokens: Any) -> None:
    """Refuse tokens that are not sequences of one length, that are none, or that the model does not have."""
    checks.rank("tokens", tokens, 2, "(sequences, tokens)")
    if 0 in tokens.shape:
        checks.fail("tokens", "hold a sequence and a token at least", f"have shape {tokens.shape}", "Give more text.")
    lm.config.check_tokens("tokens", tokens)


def stream(lm: LM, tokens: jax.Array) -> jax.Array:
    """Return the residual stream before the first block (sequences, tokens, width), learned positions added."""
    return hidden(lm, embed(lm, tokens), stop=0)[0]


def floats(lm: LM, i: jax.Array | int) -> Layer:
    """Return the parameters of one block, its matrices as floats in float32."""
    own = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), lm.params["layers"])
    dense = {name: own[name].dense() if isinstance(own[name], Weight) else own[name] for name in matrices(lm)}
    return {**own, **{name: w.astype(jnp.float32) for name, w in dense.items()}}


def run(lm: LM, layer: Layer, i: jax.Array | int, x: jax.Array) -> jax.Array:
    """Return the residual stream after block i with these parameters, of the stream before it."""
    params = {**lm.params, "layers": jax.tree.map(lambda a: a[None], layer)}
    if "position_embedding" in params:  # they are in the stream already
        params["position_embedding"] = jnp.zeros_like(params["position_embedding"])

    def alone(slides: tuple[bool, ...], x: jax.Array) -> jax.Array:
        config = dataclasses.replace(lm.config, num_layers=1, sliding=slides)
        return hidden(LM(params, config), x)[0]

    if not lm.config.mixes_windows:
        return alone(lm.config.sliding[:1], x)
    return lax.cond(jnp.asarray(lm.config.sliding)[i], partial(alone, (True,)), partial(alone, (False,)), x)


def in_parts(fn: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """Return `fn(some sequences)` for all of them, a few at a time, stacked (parts, ...)."""
    size = math.gcd(len(x), TOGETHER)
    return lax.map(fn, x.reshape(-1, size, *x.shape[1:]))


class Watched(Weight):
    """A matrix whose products are as always; the gradient to `seen` is the second moment of its inputs, x^T x.

    Attributes:
        w: ([layers,] inputs, outputs).
        seen: Zeros ([layers,] inputs, inputs).
    """

    w: Any
    seen: Any

    def aval(self) -> Any:
        """Return shape and dtype of the matrix."""
        return ShapedArray(self.w.shape, self.w.dtype)


@jax.custom_vjp
def _watch(x: jax.Array, seen: jax.Array) -> jax.Array:
    del seen
    return x


def _watch_forward(x: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    del seen
    return x, x


def _watch_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return g, jnp.matmul(rows.T, rows, precision="highest")


_watch.defvjp(_watch_forward, _watch_backward)


def _times_watched(w: Watched, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    assert axes == (0,)
    return lax.dot_general(_watch(x, w.seen), w.w.astype(x.dtype), (((x.ndim - 1,), axes), ((), ())))


register_weight(Watched, _times_watched)


def second_moments(lm: LM, layer: Layer, i: jax.Array | int, x: jax.Array) -> Layer:
    """Return x^T x of the inputs of each matrix of a block (inputs, inputs), summed over all tokens.

    There is no hook in the model: the sums are gradients to what `Watched` leaves carry, which a backward pass gives
    without any other part of it.
    """
    names = [name for name in matrices(lm) if name not in SHARED]

    def total(seen: Layer, x: jax.Array) -> jax.Array:
        return run(lm, {**layer, **{name: Watched(layer[name], seen[name]) for name in names}}, i, x).sum()

    zeros = {name: jnp.zeros((layer[name].shape[0],) * 2, jnp.float32) for name in names}

    def add(seen: Layer, x: jax.Array) -> tuple[Layer, None]:
        return jax.tree.map(jnp.add, seen, jax.grad(total)(zeros, x)), None

    size = math.gcd(len(x), TOGETHER)
    found, _ = lax.scan(add, zeros, x.reshape(-1, size, *x.shape[1:]))
    return {name: found[SHARED.get(name, name)] for name in matrices(lm)}
