"""Next-token cross-entropy without the logits of the whole batch."""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.block import Contract
from nvcim_jax.models.config import Config
from nvcim_jax.models.forward import head, hidden
from nvcim_jax.types import PyTree, Scalar

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


def _head_params(params: PyTree, config: Config) -> dict[str, Any]:
    names = ["final_norm", "final_norm_bias", "head_bias", "embedding" if config.tied else "head"]
    return {name: params[name] for name in names if name in params}


def token_losses(logits: Float[Array, "*batch vocab"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the cross-entropy of each row, in float32; 0 where the label is `IGNORE` (or negative).

    `-log softmax(logits)[label]`

    Args:
        logits: (..., vocab_size).
        labels: (...,), each in [0, vocab_size), or negative.

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
    return jnp.where(labels >= 0, jax.nn.logsumexp(wide, axis=-1) - chosen, 0.0)


def _chunk_total(
    y: jax.Array, weights: dict[str, Any], labels: jax.Array, config: Config, contract: Contract = jnp.einsum
) -> jax.Array:
    return token_losses(head(weights, y, config=config, contract=contract), labels).sum()


def _sorted_rows(y: jax.Array, labels: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return rows with a label first, padded to whole chunks, their order, and the number of chunks that matter."""
    order = jnp.argsort(labels < 0, stable=True)
    spare = -y.shape[0] % chunk
    rows = jnp.pad(jnp.take(y, order, axis=0), ((0, spare), (0, 0)))
    found = jnp.pad(jnp.take(labels, order), (0, spare), constant_values=IGNORE)
    return rows, found, order, -(-(labels >= 0).sum() // chunk)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused_total(y: jax.Array, weights: dict[str, Any], labels: jax.Array, config: Config, chunk: int) -> jax.Array:
    """Return the summed loss of rows (rows, width), one chunk's logits at a time, only for rows with a label."""
    rows, found, _, count = _sorted_rows(y, labels, chunk)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        return total + _chunk_total(part, weights, jax.lax.dynamic_slice_in_dim(found, i * chunk, chunk), config)

    return jax.lax.fori_loop(0, count, add, jnp.float32(0.0))


def _fused_forward(y: Any, weights: dict[str, Any], labels: Any, config: Config, chunk: int) -> tuple[jax.Array, Any]:
    """Take gradients chunk by chunk while the logits are there, of the weights only where they are asked for."""
    trains = any(leaf.perturbed for leaf in weights.values())
    y, labels = y.value, labels.value
    weights = {name: leaf.value for name, leaf in weights.items()}
    rows, found, order, count = _sorted_rows(y, labels, chunk)

    def add(i: jax.Array, carry: Any) -> Any:
        total, d_rows, d_weights = carry
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        label = jax.lax.dynamic_slice_in_dim(found, i * chunk, chunk)
        if trains:
            value, (d_part, d_new) = jax.value_and_grad(_chunk_total, (0, 1))(part, weights, label, config)
            d_weights = jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_weights, d_new)
        else:
            value, d_part = jax.value_and_grad(_chunk_total)(part, weights, label, config)
        return total + value, jax.lax.dynamic_update_slice_in_dim(d_rows, d_part, i * chunk, axis=0), d_weights

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), weights) if trains else None
    total, d_rows, d_weights = jax.lax.fori_loop(0, count, add, (jnp.float32(0.0), jnp.zeros_like(rows), zeros))
    d_y = jnp.zeros_like(y).at[order].set(d_rows[: y.shape[0]], unique_indices=True)
    if trains:
        d_weights = {name: d.astype(weights[name].dtype) for name, d in d_weights.items()}
    return total, (d_y, d_weights)


def _fused_backward(config: Config, chunk: int, kept: Any, g: Any) -> tuple[Any, Any, None]:
    d_y, d_weights = kept
    if isinstance(g, jax.custom_derivatives.SymbolicZero):
        g = jnp.zeros(g.shape, jnp.float32)
    return *jax.tree.map(lambda d: d * g.astype(d.dtype), (d_y, d_weights)), None


_fused_total.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)


def _mapped_total(
    y: jax.Array, weights: dict[str, Any], labels: jax.Array, config: Config, chunk: int, contract: Contract
) -> jax.Array:
    """Return the summed loss through any contraction: each chunk's logits are computed again in the backward pass."""
    rows, found, _, _ = _sorted_rows(y, labels, chunk)
    parts = rows.reshape(-1, chunk, rows.shape[-1]), found.reshape(-1, chunk)

    @jax.checkpoint
    def one(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _chunk_total(item[0], weights, item[1], config, contract)

    return jax.lax.map(one, parts).sum()


def loss(
    params: PyTree,
    x: Float[Array, "*batch tokens width"],
    labels: Int[Array, "..."],
    *,
    config: Config,
    chunk: int = 256,
    contract: Contract = jnp.einsum,
    stop: int | None = None,
    **options: Any,
) -> tuple[Scalar, LossInfo]:
    """Return the mean next-token cross-entropy; the logits exist for one chunk of rows at a time.

    `loss = mean over t with labels[t + 1] >= 0 of -log softmax(logits[t])[labels[t + 1]]`. Tokens without a label
    cost no logits. With the default `contract` the gradient is taken while the logits are there; with another one,
    they are computed again in the backward pass.

    Args:
        params: Parameters.
        x: Input embeddings (..., tokens, width), with soft prompts before the text.
        labels: The tokens themselves (..., tokens); `IGNORE` (any negative number) on prompts and padding. The shift by
            one happens inside: the last soft token predicts the first token of the text.
        config: The model.
        chunk: Rows whose logits exist at a time.
        contract: The product with a weight.
        stop: Blocks to run, as in `forward`.
        **options: As in `forward`: mask, positions, prefix, start, remat.

    Returns:
        The loss in nats a label, float32 (0 where there is no label), and the info.

    Raises:
        ValueError: If `labels` and `x` differ in shape.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> params = models.init(jax.random.key(0), config=config, scale=1e-4)
        >>> ids = jnp.arange(12).reshape(2, 6)
        >>> value, info = loss(params, models.embed(params, ids, config=config), ids, config=config)
        >>> round(float(value), 2), int(info.num_labels)  # an untrained model: log 512 = 6.24; 2 x 5 labels
        (6.24, 10)
    """
    checks.shape("labels", labels, x.shape[:-1], "(..., tokens)", "Give one label a row of `x`, IGNORE on prompts.")
    checks.integer("chunk", chunk)
    y, _ = hidden(params, x, config=config, contract=contract, stop=stop, **options)
    target = jnp.concatenate([labels[..., 1:], jnp.full_like(labels[..., :1], IGNORE)], axis=-1).reshape(-1)
    rows, weights = y.reshape(-1, y.shape[-1]), _head_params(params, config)
    chunk = min(chunk, rows.shape[0])
    if contract is jnp.einsum:
        total = cast(jax.Array, _fused_total(rows, weights, target, config, chunk))
    else:
        total = _mapped_total(rows, weights, target, config, chunk, contract)
    count = (target >= 0).sum(dtype=jnp.int32)
    return total / jnp.maximum(count, 1).astype(jnp.float32), LossInfo(count, total)
