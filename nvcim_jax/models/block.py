"""One block of a decoder: norms, attention, feed-forward part."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from nvcim_jax.models.config import Config
from nvcim_jax.models.positions import rotate

__all__ = ["Context", "KeysValues", "apply_block", "attend", "normalise", "product", "rows_at"]


class KeysValues(NamedTuple):
    """Keys (after the rotary embedding) and values: of one layer, or stacked over layers.

    Attributes:
        keys: ([layers, batch,] kv_heads, tokens, head_dim).
        values: Alike.
    """

    keys: jax.Array
    values: jax.Array


class Context(NamedTuple):
    """What is the same for every layer of one call.

    Attributes:
        allowed: Which keys each query sees in layers with full attention: bool (batch or 1, queries, keys).
        allowed_local: The same for sliding layers.
        rotary: Cosines and sines of layers with full attention, each (batch or 1, queries, pairs), or None.
        rotary_local: The same for sliding layers.
    """

    allowed: jax.Array
    allowed_local: jax.Array | None
    rotary: tuple[jax.Array, jax.Array] | None
    rotary_local: tuple[jax.Array, jax.Array] | None


def normalise(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"] | None = None,
    *,
    config: Config,
) -> Float[Array, "*batch channels"]:
    """Divide by the root mean square (norm "rms") or standardise (norm "layer"), in float32.

    Args:
        x: (..., channels).
        scale: (channels,); with `config.norm_offset`, one is added to it.
        bias: (channels,), or None.
        config: Gives the kind and `norm_eps`.

    Returns:
        The normalised array, in the dtype of `x`.

    Example:
        >>> config = Config(vocab_size=8, width=2, num_layers=1, num_heads=1, mlp_width=2, norm_eps=0.0)
        >>> normalise(jnp.array([3.0, 4.0]), jnp.ones(2), config=config)  # 3 and 4 over sqrt(12.5)
        Array([0.84852815, 1.1313709 ], dtype=float32)
    """
    wide = x.astype(jnp.float32)
    if config.norm == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + config.norm_eps)
    factor = scale.astype(jnp.float32) + (1.0 if config.norm_offset else 0.0)
    wide = wide * jnp.expand_dims(factor, range(x.ndim - 1))
    if bias is not None:
        wide = wide + jnp.expand_dims(bias.astype(jnp.float32), range(x.ndim - 1))
    return wide.astype(x.dtype)


def product(layer: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
    """Return `x @ w + bias`, the weight brought to the dtype of `x`.

    Args:
        layer: Arrays of one layer.
        name: Name of the weight; its bias, if any, is `name + "_bias"`.
        x: (..., inputs).

    Returns:
        (..., outputs).

    Example:
        >>> product({"up": jnp.ones((2, 3))}, "up", jnp.ones((1, 2)))
        Array([[2., 2., 2.]], dtype=float32)
    """
    y = jnp.einsum("...i,io->...o", x, layer[name].astype(x.dtype))
    bias = layer.get(f"{name}_bias")
    return y if bias is None else y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))


def rows_at(x: Shaped[Array, "#batch tokens rest"], at: Int[Array, "batch positions"] | None) -> jax.Array:
    """Return the rows of x at some positions of each sequence; x as it is where there are none named.

    Args:
        x: (batch or 1, tokens, anything).
        at: Positions (batch, positions), or None for all.

    Returns:
        (batch, positions, anything).

    Example:
        >>> rows_at(jnp.arange(6).reshape(1, 3, 2), jnp.array([[2], [0]]))[:, 0]
        Array([[4, 5],
               [0, 1]], dtype=int32)
    """
    if at is None:
        return x
    whole = jnp.broadcast_to(x, (len(at), *x.shape[1:]))
    return jnp.take_along_axis(whole, at[..., None], axis=1)


def attend(
    q: Float[Array, "batch queries heads channels"],
    own: KeysValues,
    past: KeysValues | None,
    allowed: jax.Array,
    *,
    config: Config,
) -> Float[Array, "batch queries out"]:
    """Return softmax(scale q k^T) v over the past keys and the call's own, the softmax in float32.

    Scores of past and own keys are computed apart and only they are joined, so that a cache is never copied.

    Args:
        q: Queries.
        own: Keys and values of the call's own tokens (batch, kv_heads, tokens, channels).
        past: Keys and values from before (batch or 1, kv_heads, past tokens, channels), or None.
        allowed: Bool (batch or 1, queries, past + own keys).
        config: Gives the scale and the cap.

    Returns:
        (batch, queries, heads x channels).
    """
    batch, queries, heads, channels = q.shape
    groups = heads // config.kv_heads
    # (batch, kv heads, groups x queries, channels): one product for all queries that share a key head
    q = q.reshape(batch, queries, config.kv_heads, groups, channels).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, config.kv_heads, groups * queries, channels)
    parts = [own] if past is None else [_broadcast(past, batch), own]
    scores = [jnp.einsum("bkqc,bksc->bkqs", q, p.keys, preferred_element_type=jnp.float32) for p in parts]
    score = jnp.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0]
    score = score.reshape(batch, config.kv_heads, groups, queries, -1) * config.score_scale
    if config.attention_softcap is not None:
        score = config.attention_softcap * jnp.tanh(score / config.attention_softcap)
    # The lowest finite number, not -inf: a padded query that sees nothing must not become NaN.
    score = jnp.where(allowed[:, None, None], score, jnp.finfo(jnp.float32).min)
    weight = jax.nn.softmax(score, axis=-1).astype(q.dtype)
    weight = weight.reshape(batch, config.kv_heads, groups * queries, -1)
    mixed = _mix(weight, parts)
    mixed = mixed.reshape(batch, config.kv_heads, groups, queries, channels)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads * channels)


def _broadcast(past: KeysValues, batch: int) -> KeysValues:
    return KeysValues(*(jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in past))


def _mix(weight: jax.Array, parts: list[KeysValues]) -> jax.Array:
    first = parts[0].values
    if len(parts) == 1:
        return jnp.einsum("bkqs,bksc->bkqc", weight, first)
    split = first.shape[2]
    old = jnp.einsum("bkqs,bksc->bkqc", weight[..., :split], first)
    return old + jnp.einsum("bkqs,bksc->bkqc", weight[..., split:], parts[1].values)


def _attention(
    layer: dict[str, Any],
    x: jax.Array,
    past: KeysValues | None,
    allowed: jax.Array,
    rotary: tuple[jax.Array, jax.Array] | None,
    at: jax.Array | None,
    *,
    config: Config,
) -> tuple[jax.Array, KeysValues]:
    seen = {"q": rows_at(x, at), "k": x, "v": x}
    q, k, v = (product(layer, name, y).reshape(*y.shape[:2], -1, config.head_width) for name, y in seen.items())
    if config.qk_norm:
        q = normalise(q, layer["q_norm"], config=config)
        k = normalise(k, layer["k_norm"], config=config)
    if rotary is not None:
        q, k = rotate(q, *(rows_at(a, at) for a in rotary)), rotate(k, *rotary)
    own = KeysValues(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))
    return product(layer, "o", attend(q, own, past, rows_at(allowed, at), config=config)), own


def _activate(name: str, x: jax.Array) -> jax.Array:
    if name == "silu":
        return jax.nn.silu(x)
    if name == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=name == "gelu_tanh")


def _mlp(layer: dict[str, Any], x: jax.Array, *, config: Config) -> jax.Array:
    up = product(layer, "up", x)
    if config.gated:
        hidden = _activate(config.activation, product(layer, "gate", x)) * up
    else:
        hidden = _activate(config.activation, up)
    return product(layer, "down", hidden)


def _norm(layer: dict[str, Any], name: str, x: jax.Array, config: Config) -> jax.Array:
    return normalise(x, layer[name], layer.get(f"{name}_bias"), config=config)


def _select(slides: jax.Array | None, context: Context, config: Config) -> tuple[jax.Array, Any]:
    """Return the mask and rotary table of this layer."""
    if not any(config.sliding):
        return context.allowed, context.rotary
    if slides is None:
        return context.allowed_local, context.rotary_local  # type: ignore[return-value]
    pick = lambda local, full: jnp.where(slides, local, full)  # noqa: E731
    same = context.rotary_local is context.rotary
    rotary = context.rotary if same else jax.tree.map(pick, context.rotary_local, context.rotary)
    return pick(context.allowed_local, context.allowed), rotary


def apply_block(
    layer: dict[str, Any],
    x: Float[Array, "batch tokens width"],
    context: Context,
    past: KeysValues | None = None,
    slides: jax.Array | None = None,
    at: Int[Array, "batch positions"] | None = None,
    *,
    config: Config,
) -> tuple[Float[Array, "batch out width"], KeysValues]:
    """Apply one block to the residual stream.

    Sequential: `x += attention(norm(x)); x += mlp(norm(x))`. Parallel: `x += attention(norm(x)) + mlp(norm(x))`.

    Args:
        layer: Arrays of one layer, by the names of `config.shapes["layers"]`.
        x: Residual stream.
        context: Masks and rotary tables.
        past: Keys and values from before the call's own tokens.
        slides: Whether this layer has the sliding window (a traced bool), where only some have it.
        at: Positions whose rows are wanted; of the others only keys and values are computed. None: all.
        config: The model.

    Returns:
        The residual stream after the block (at those positions), and the keys and values of its own tokens.
    """
    allowed, rotary = _select(slides, context, config)
    attended = _norm(layer, "attention_norm", x, config)
    y, own = _attention(layer, attended, past, allowed, rotary, at, config=config)
    x, attended = rows_at(x, at), rows_at(attended, at)
    if config.post_norms:
        y = _norm(layer, "attention_post_norm", y, config)
    if config.parallel:
        fed = attended if config.shared_norm else _norm(layer, "mlp_norm", x, config)
        return x + y + _mlp(layer, fed, config=config), own
    x = x + y
    y = _mlp(layer, _norm(layer, "mlp_norm", x, config), config=config)
    if config.post_norms:
        y = _norm(layer, "mlp_post_norm", y, config)
    return x + y, own
