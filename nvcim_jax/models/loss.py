"""Next-token cross-entropy without the logits of the whole batch."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.forward import head, head_params, hidden
from nvcim_jax.models.inputs import Inputs, as_inputs
from nvcim_jax.models.lm import LM
from nvcim_jax.ops import Weight
from nvcim_jax.signature import checked
from nvcim_jax.types import Scalar

__all__ = ["IGNORE", "LossInfo", "loss", "token_losses"]

IGNORE = -100
"""Label of a token on which no loss is taken (the convention of transformers)."""


class LossInfo(NamedTuple):
    """What a loss was taken over.

    Attributes:
        num_labels: Number of tokens with a label, int32.
        total: Sum of their losses in nats, float32.
    """

    num_labels: jax.Array
    total: jax.Array


@checked
def token_losses(logits: Float[Array, "*batch vocab"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the cross-entropy of each row, in float32; 0 where the label is `IGNORE` (or negative).

    `-log softmax(logits)[label]`

    Args:
        logits: (..., vocab_size).
        labels: (...,), each in [0, vocab_size), or negative. The loss of one above is NaN.

    Returns:
        Nats (...,).

    Example:
        >>> token_losses(jnp.zeros((2, 4)), jnp.array([1, IGNORE]))  # log 4 = 1.386, and nothing
        Array([1.3862944, 0.       ], dtype=float32)
    """
    wide = logits.astype(jnp.float32)
    # A comparison instead of a gather: its gradient is elementwise, where a scatter would be slow.
    hit = jax.lax.broadcasted_iota(labels.dtype, wide.shape, wide.ndim - 1) == labels[..., None]
    chosen = jnp.where(hit, wide, 0.0).sum(-1)
    chosen = jnp.where(labels < wide.shape[-1], chosen, jnp.nan)  # there is no such token
    return jnp.where(labels >= 0, jax.nn.logsumexp(wide, axis=-1) - chosen, 0.0)


def _chunk_total(y: jax.Array, top: LM, labels: jax.Array) -> jax.Array:
    return token_losses(head(top, y), labels).sum()


def _sorted_rows(y: jax.Array, labels: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return rows with a label first, padded to whole chunks, their order, and the number of chunks that matter."""
    order = jnp.argsort(labels < 0, stable=True)
    spare = -y.shape[0] % chunk
    rows = jnp.pad(jnp.take(y, order, axis=0), ((0, spare), (0, 0)))
    found = jnp.pad(jnp.take(labels, order), (0, spare), constant_values=IGNORE)
    return rows, found, order, -(-(labels >= 0).sum() // chunk)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _fused_total(y: jax.Array, top: LM, labels: jax.Array, chunk: int) -> jax.Array:
    """Return the summed loss of rows (rows, width), one chunk's logits at a time, only for rows with a label."""
    rows, found, _, count = _sorted_rows(y, labels, chunk)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        return total + _chunk_total(part, top, jax.lax.dynamic_slice_in_dim(found, i * chunk, chunk))

    return jax.lax.fori_loop(0, count, add, jnp.float32(0.0))


def _fused_forward(y: Any, top: LM, labels: Any, chunk: int) -> tuple[jax.Array, Any]:
    """Take gradients chunk by chunk while the logits are there, of the weights only where they are asked for."""
    trains = any(leaf.perturbed for leaf in jax.tree.leaves(top))
    y, labels, top = y.value, labels.value, jax.tree.map(lambda leaf: leaf.value, top)
    rows, found, order, count = _sorted_rows(y, labels, chunk)

    def add(i: jax.Array, carry: Any) -> Any:
        total, d_rows, d_top = carry
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        label = jax.lax.dynamic_slice_in_dim(found, i * chunk, chunk)
        if trains:
            value, (d_part, d_new) = jax.value_and_grad(_chunk_total, (0, 1))(part, top, label)
            d_top = jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_top, d_new)
        else:
            value, d_part = jax.value_and_grad(_chunk_total)(part, top, label)
        return total + value, jax.lax.dynamic_update_slice_in_dim(d_rows, d_part, i * chunk, axis=0), d_top

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), top) if trains else None
    total, d_rows, d_top = jax.lax.fori_loop(0, count, add, (jnp.float32(0.0), jnp.zeros_like(rows), zeros))
    d_y = jnp.zeros_like(y).at[order].set(d_rows[: y.shape[0]], unique_indices=True)
    if trains:
        d_top = jax.tree.map(lambda d, a: d.astype(a.dtype), d_top, top)
    return total, (d_y, d_top)


def _fused_backward(chunk: int, kept: Any, g: Any) -> tuple[Any, Any, None]:
    d_y, d_top = kept
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        g = jnp.zeros(g.shape, jnp.float32)
    return *jax.tree.map(lambda d: d * g.astype(d.dtype), (d_y, d_top)), None


_fused_total.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)


def _mapped_total(y: jax.Array, top: LM, labels: jax.Array, chunk: int) -> jax.Array:
    """Return the summed loss whatever the head is: each chunk's logits are computed again in the backward pass."""
    rows, found, _, _ = _sorted_rows(y, labels, chunk)
    parts = rows.reshape(-1, chunk, rows.shape[-1]), found.reshape(-1, chunk)

    @jax.checkpoint
    def one(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _chunk_total(item[0], top, item[1])

    return jax.lax.map(one, parts).sum()


@checked
def loss(
    lm: LM,
    x: Inputs | Float[Array, "*batch tokens width"],
    labels: Int[Array, "..."],
    *,
    chunk: int = 256,
    start: int = 0,
    stop: int | None = None,
    remat: bool = False,
) -> tuple[Scalar, LossInfo]:
    """Return the mean next-token cross-entropy; the logits exist for one chunk of rows at a time.

    `loss = mean over t with labels[t + 1] >= 0 of -log softmax(logits[t])[labels[t + 1]]`. Tokens without a label
    cost no logits. The gradient is taken while the logits are there; where the head is a `Weight`, they are computed
    again in the backward pass.

    Args:
        lm: The model.
        x: Input embeddings (..., tokens, width), with soft prompts before the text, or `Inputs`.
        labels: The tokens themselves (..., tokens); `IGNORE` (any negative number) on prompts and padding. The shift by
            one happens inside: the last soft token predicts the first token of the text.
        chunk: Rows whose logits exist at a time.
        start: First block to run, as in `forward`.
        stop: One past the last.
        remat: Whether the backward pass computes each block again.

    Returns:
        The loss in nats a label, float32 (0 where there is no label), and the info.

    Raises:
        ValueError: If `labels` and `x` differ in shape, or as `forward`.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> lm = models.init(jax.random.key(0), config=config, scale=1e-4)
        >>> ids = jnp.arange(12).reshape(2, 6)
        >>> value, info = loss(lm, models.embed(lm, ids), ids)
        >>> round(float(value), 2), int(info.num_labels)  # an untrained model: log 512 = 6.24; 2 x 5 labels
        (6.24, 10)
    """
    inputs = as_inputs(x)
    checks.shape(
        "labels", labels, inputs.x.shape[:-1], "(..., tokens)", "Give one label a row of `x`, IGNORE on prompts."
    )
    checks.integer("chunk", chunk)
    checks.number("labels", labels, high=lm.config.vocab_size - 1.0, fix="Is the tokenizer that of the model?")
    y, _ = hidden(lm, inputs, start=start, stop=stop, remat=remat)
    top = lm.replace(params=head_params(lm.params, lm.config))
    return _mean(y, top, labels, chunk=min(chunk, labels.size))


@partial(jax.jit, static_argnames="chunk")
def _mean(y: jax.Array, top: LM, labels: jax.Array, *, chunk: int) -> tuple[jax.Array, LossInfo]:
    """Return the loss of a residual stream; of the model, what the head looks at."""
    target = jnp.concatenate([labels[..., 1:], jnp.full_like(labels[..., :1], IGNORE)], axis=-1).reshape(-1)
    rows = y.reshape(-1, y.shape[-1])
    plain = not any(isinstance(leaf, Weight) for leaf in top.params.values())
    total = cast(
        jax.Array, _fused_total(rows, top, target, chunk) if plain else _mapped_total(rows, top, target, chunk)
    )
    count = (target >= 0).sum(dtype=jnp.int32)
    return total / jnp.maximum(count, 1).astype(jnp.float32), LossInfo(count, total)
