"""The decoder as a pure function of its parameters and input embeddings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.block import WEIGHT, Context, Contract, KeysValues, apply_block, normalise, rows_at
from nvcim_jax.models.config import Config
from nvcim_jax.models.positions import causal_mask, rotary_table, sliding_mask
from nvcim_jax.models.quantised import Quantised, dequantise
from nvcim_jax.types import PyTree

__all__ = ["Info", "forward", "head", "hidden", "run_layers"]


class Info(NamedTuple):
    """What a call saw on its way.

    Attributes:
        hidden: The residual stream after each of the `exits` (exits, ..., tokens, width), before the final norm; None
            where no exit was asked for.
        keys_values: Keys and values of the call's own tokens, stacked over the layers that ran; None unless kept.
    """

    hidden: jax.Array | None
    keys_values: KeysValues | None


def unpack(layer: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Return the arrays of one layer with its quantised weights as floats."""
    return {name: dequantise(w, dtype) if isinstance(w, Quantised) else w for name, w in layer.items()}


def run_layers(
    layers: dict[str, Any],
    x: Float[Array, "batch tokens width"],
    context: Context,
    past: KeysValues | None = None,
    *,
    config: Config,
    start: int = 0,
    stop: int | None = None,
    exits: Sequence[int] = (),
    keep: bool = False,
    at: Int[Array, "batch positions"] | None = None,
    contract: Contract = jnp.einsum,
    remat: bool = False,
    unroll: int = 1,
) -> tuple[Float[Array, "batch out width"], Info]:
    """Scan the blocks `start` to `stop` over the residual stream; the blocks outside are not computed.

    Args:
        layers: Arrays of all layers, stacked.
        x: Residual stream before block `start`.
        context: Masks and rotary tables.
        past: Keys and values from before, stacked over all layers.
        config: The model.
        start: First block.
        stop: One past the last block; None: all.
        exits: Layer counts in [start, stop] after which the residual stream is kept.
        keep: Whether to return the keys and values of the call's tokens.
        at: Positions whose rows are wanted (batch, positions), without `exits` and `keep`; None: all.
        contract: The product with a weight.
        remat: Whether to compute each block again in the backward pass instead of keeping what is inside it.
        unroll: Blocks that are compiled as one piece: less is copied from block to block, but the compile takes longer.

    Returns:
        The residual stream after block `stop - 1`, and the info.
    """
    stop = config.num_layers if stop is None else stop
    # Of positions that nobody asks for, the last block has to give keys and values alone: it runs apart.
    alone = at is not None and stop > start
    slides = jnp.asarray(config.sliding) if config.mixes_windows else None
    stacked = (layers, past, slides)

    def body(x: jax.Array, item: Any, at: jax.Array | None = None) -> tuple[jax.Array, Any]:
        layer, past, slides = item
        y, own = apply_block(unpack(layer, x.dtype), x, context, past, slides, at, config=config, contract=contract)
        return y, (y if exits else None, own if keep else None)

    def indexed(x: jax.Array, i: jax.Array | int, at: jax.Array | None = None) -> tuple[jax.Array, Any]:
        # Slicing the stack would copy every weight of the range; one layer at a time is what the scan reads anyway.
        return body(x, jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), stacked), at)

    whole = start == 0 and stop == config.num_layers and not alone
    step: Any = body if whole else indexed
    items: Any = stacked if whole else jnp.arange(start, stop - alone)
    step = jax.checkpoint(step) if remat else step
    y, (states, own) = jax.lax.scan(step, x, items, unroll=unroll)
    if at is not None:
        return step(y, stop - 1, at)[0] if alone else rows_at(y, at), Info(None, None)
    if not exits:
        return y, Info(None, own)
    kept = [x if e == start else states[e - start - 1] for e in exits]
    return y, Info(jnp.stack(kept), own)


def _check(x: jax.Array, config: Config, start: int, stop: int | None, exits: Sequence[int]) -> int:
    checks.rank("x", x, (2, 3), "(tokens, width) or (batch, tokens, width)")
    if x.shape[-1] != config.width:
        checks.fail("x", f"have width {config.width}", f"has shape {x.shape}", "Call models.embed on token ids first.")
    stop = config.num_layers if stop is None else stop
    checks.integer("stop", stop, low=0, high=config.num_layers)
    checks.integer("start", start, low=0, high=stop)
    for e in exits:
        checks.integer("exits", e, low=start, high=stop, fix="An exit counts the layers below it.")
    return stop


def check_prefix(prefix: KeysValues | None, config: Config) -> KeysValues | None:
    """Return the prefix with a batch axis, checked."""
    if prefix is None:
        return None
    if prefix.keys.ndim == 4:
        prefix = KeysValues(*(a[:, None] for a in prefix))
    for name, a in prefix._asdict().items():
        checks.rank(f"prefix.{name}", a, 5, "(layers, [batch,] kv_heads, tokens, head_dim)")
        expected = (config.num_layers, a.shape[1], config.kv_heads, a.shape[3], config.head_width)
        checks.shape(f"prefix.{name}", a, expected, "(layers, batch, kv_heads, tokens, head_dim)")
    return prefix


def _allowed(mask: jax.Array | None, tokens: int, past: int) -> jax.Array:
    """Return which keys each query sees: bool (batch or 1, tokens, past + tokens)."""
    causal = causal_mask(tokens, past + tokens)
    if mask is None:
        return causal
    mask = mask.astype(bool)
    if mask.ndim == 3:
        checks.shape("mask", mask, (mask.shape[0], tokens, past + tokens), "(batch, queries, prefix + tokens)")
        return mask
    checks.shape("mask", mask, (mask.shape[0], tokens), "(batch, tokens)")
    real = jnp.pad(mask, ((0, 0), (past, 0)), constant_values=True)
    return causal & real[:, None, :]


def _positions(positions: jax.Array | None, mask: jax.Array | None, batch: int, tokens: int, past: int) -> jax.Array:
    if positions is not None:
        checks.shape("positions", positions, (positions.shape[0], tokens), "(batch, tokens)")
        return positions
    if mask is not None and mask.ndim == 2:
        # Padding on the left takes no position; what padding itself gets does not matter.
        return jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=-1) - 1, 0) + past
    return (jnp.arange(tokens) + past)[None]


def make_context(positions: jax.Array, allowed: jax.Array, local: jax.Array | None, config: Config) -> Context:
    """Return masks and rotary tables for tokens at the given positions.

    Args:
        positions: (batch or 1, tokens).
        allowed: Bool (batch or 1, tokens, keys).
        local: Which keys lie inside the window (batch or 1, tokens, keys), where layers slide.
        config: The model.
    """
    window = allowed & local if local is not None else None
    if config.positions != "rope":
        return Context(allowed, window, None, None)
    table = rotary_table(positions, config.rope, config.rotary)
    other = table if config.rope_local is None else rotary_table(positions, config.rope_local, config.rotary)
    return Context(allowed, window, table, other)


def add_positions(params: PyTree, x: jax.Array, positions: jax.Array, config: Config) -> jax.Array:
    """Add learned position embeddings, where the model has them."""
    if config.positions != "learned":
        return x
    rows = jnp.take(params["position_embedding"], positions + config.position_offset, axis=0, mode="clip")
    return x + jnp.broadcast_to(rows.astype(x.dtype), x.shape)


def hidden(
    params: PyTree,
    x: Float[Array, "*batch tokens width"],
    *,
    config: Config,
    mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
    positions: Int[Array, "..."] | None = None,
    prefix: KeysValues | None = None,
    start: int = 0,
    stop: int | None = None,
    exits: Sequence[int] = (),
    keep_keys_values: bool = False,
    at: Int[Array, "..."] | None = None,
    contract: Contract = jnp.einsum,
    remat: bool = False,
    unroll: int = 1,
) -> tuple[Float[Array, "*batch out width"], Info]:
    """Return the residual stream after block `stop - 1`, before the final norm and the head.

    Args: as `forward`, and:
        at: The positions whose states are wanted (..., positions), which spares the last block all else; without
            `exits` and `keep_keys_values`.
        unroll: Blocks that are compiled as one piece: less is copied from block to block, but the compile takes longer.

    Returns:
        The residual stream (..., tokens or positions, width), and the info.

    Raises:
        ValueError: As `forward`, or if `at` has the wrong shape or does not go together with what else is asked for.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=4, num_heads=4, mlp_width=128)
        >>> params = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(params, jnp.array([[1, 2, 3]]), config=config)
        >>> below, _ = models.hidden(params, x, config=config, stop=2)
        >>> above, _ = models.hidden(params, below, config=config, start=2)
        >>> whole, _ = models.hidden(params, x, config=config)
        >>> bool(jnp.allclose(above, whole, atol=1e-6))  # two halves are the whole
        True
    """
    stop = _check(x, config, start, stop, exits)
    single = x.ndim == 2
    if single:
        x = x[None]
        mask = None if mask is None else mask[None]
        positions = None if positions is None else positions[None]
    batch, tokens = x.shape[:2]
    if at is not None:
        if exits or keep_keys_values:
            checks.fail("at", "be None with exits or keep_keys_values", "names positions", "Those need all of them.")
        at = at[None] if single else at
        checks.shape("at", at, (batch, at.shape[-1]), "(batch, positions)")
    prefix = check_prefix(prefix, config)
    past = 0 if prefix is None else prefix.keys.shape[3]
    if mask is not None:
        checks.rank("mask", mask, (2, 3), "(batch, tokens) or (batch, queries, keys)")
    places = _positions(positions, mask, batch, tokens, past)
    if start == 0:
        x = add_positions(params, x, places, config)
    local = sliding_mask(tokens, past + tokens, config.window) if config.window and any(config.sliding) else None
    context = make_context(places, _allowed(mask, tokens, past), local, config)
    y, info = run_layers(
        params["layers"],
        x,
        context,
        prefix,
        config=config,
        start=start,
        stop=stop,
        exits=tuple(exits),
        keep=keep_keys_values,
        at=at,
        contract=contract,
        remat=remat,
        unroll=unroll,
    )
    if not single:
        return y, info
    states = None if info.hidden is None else info.hidden[:, 0]
    own = None if info.keys_values is None else KeysValues(*(a[:, 0] for a in info.keys_values))
    return y[0], Info(states, own)


def head(
    params: PyTree,
    x: Float[Array, "*batch width"],
    *,
    config: Config,
    contract: Contract = jnp.einsum,
) -> Float[Array, "*batch vocab"]:
    """Return the logits of a residual stream: final norm, product with the head, cap.

    Args:
        params: Parameters.
        x: Residual stream (..., width) after any layer.
        config: The model.
        contract: The product with a weight; a tied head is asked for as `...i,oi->...o`.

    Returns:
        Logits (..., vocab_size), in the dtype of `x`.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=1, num_heads=4, mlp_width=128)
        >>> params = models.init(jax.random.key(0), config=config)
        >>> head(params, jnp.ones((3, 64)), config=config).shape
        (3, 512)
    """
    y = normalise(x, params["final_norm"], params.get("final_norm_bias"), config=config)
    weight = params["embedding"] if config.tied else params["head"]
    if isinstance(weight, jax.Array):
        weight = weight.astype(y.dtype)
    logits = contract("...i,oi->...o" if config.tied else WEIGHT, y, weight)
    if config.head_bias:
        logits = logits + jnp.expand_dims(params["head_bias"].astype(logits.dtype), range(logits.ndim - 1))
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


def forward(
    params: PyTree,
    x: Float[Array, "*batch tokens width"],
    *,
    config: Config,
    mask: Bool[Array, "..."] | Int[Array, "..."] | None = None,
    positions: Int[Array, "..."] | None = None,
    prefix: KeysValues | None = None,
    start: int = 0,
    stop: int | None = None,
    exits: Sequence[int] = (),
    keep_keys_values: bool = False,
    contract: Contract = jnp.einsum,
    remat: bool = False,
) -> tuple[Float[Array, "*batch tokens vocab"], Info]:
    """Map input embeddings to next-token logits.

    `logits = head(norm(block_L(... block_1(x))))`; the input is embeddings, so a soft prompt is put before them by
    `jnp.concatenate`. Computation runs in the dtype of `x`, norms and softmax in float32; parameters of another
    dtype are converted one layer at a time. The two products inside attention have no weight and are not made
    by `contract`.

    Args:
        params: Parameters, see `shapes`; a leaf may be any pytree with a layer axis that `contract` understands.
        x: Input embeddings (batch, tokens, width), or (tokens, width) for one sequence.
        config: The model.
        mask: Which tokens are real (batch, tokens), padding left or right; or which keys each query sees
            (batch, tokens, prefix + tokens), which then replaces causality. Without the batch axis for one sequence.
        positions: Position of each token. None: counted from the first real token, after the prefix.
        prefix: Keys and values that stand before the first token, per layer: (layers, [batch,] kv_heads, prefix
            tokens, head_dim), the keys as after their rotary embedding (`past_key_values` of transformers).
        start: First block to run; `x` is then the residual stream before it.
        stop: One past the last block to run; those above are not computed. The head reads what there is.
        exits: Numbers of layers, in [start, stop], after which the residual stream is returned in the info.
        keep_keys_values: Whether to return the tokens' own keys and values in the info.
        contract: The product with a weight, `jnp.einsum` by default.
        remat: Whether the backward pass computes each block again: less memory, more time.

    Returns:
        Logits (..., tokens, vocab_size), and the info.

    Raises:
        ValueError: If a shape does not fit, before anything is traced.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> params = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(params, jnp.array([[1, 2, 3]]), config=config)
        >>> logits, info = forward(params, x, config=config, exits=(1,))
        >>> logits.shape, info.hidden.shape
        ((1, 3, 512), (1, 1, 3, 64))
    """
    y, info = hidden(
        params,
        x,
        config=config,
        mask=mask,
        positions=positions,
        prefix=prefix,
        start=start,
        stop=stop,
        exits=exits,
        keep_keys_values=keep_keys_values,
        contract=contract,
        remat=remat,
    )
    return head(params, y, config=config, contract=contract), info
