"""What goes into a model: embeddings with their mask, positions, and the keys and values before them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.models.block import KeysValues
from nvcim_jax.models.config import Config
from nvcim_jax.models.positions import causal_mask
from nvcim_jax.signature import checked

__all__ = ["Inputs", "as_inputs", "check_inputs", "num_past", "positions_of", "prepend", "visible"]


class Inputs(NamedTuple):
    """Hold the input of a model; where one is taken, embeddings alone are taken too.

    Attributes:
        x: Input embeddings (batch, tokens, width), or (tokens, width) for one sequence, as `embed` makes them.
        mask: Which tokens are real (batch, tokens), padding left or right; or which keys each query sees
            (batch, tokens, prefix + tokens), which then replaces causality. None: all real.
        positions: Position of each token (batch, tokens). None: counted from the first real token, after the prefix.
        prefix: Keys and values that stand before the first token, per layer, at positions 0, 1, ...: (layers, [batch,]
            kv_heads, prefix tokens, head_dim), the keys as after their rotary embedding (transformers'
            `past_key_values`).

    All without the batch axis for one sequence.
    """

    x: jax.Array
    mask: jax.Array | None = None
    positions: jax.Array | None = None
    prefix: KeysValues | None = None


def as_inputs(x: Inputs | jax.Array) -> Inputs:
    """Return embeddings alone as inputs, and inputs as they are."""
    return x if isinstance(x, Inputs) else Inputs(x)


def _check_prefix(prefix: KeysValues, config: Config) -> KeysValues:
    """Return the prefix with a batch axis, checked."""
    if prefix.keys.ndim == 4:
        prefix = KeysValues(*(a[:, None] for a in prefix))
    for name, a in prefix._asdict().items():
        checks.rank(f"prefix.{name}", a, 5, "(layers, [batch,] kv_heads, tokens, head_dim)")
        expected = (config.num_layers, a.shape[1], config.kv_heads, a.shape[3], config.head_width)
        checks.shape(f"prefix.{name}", a, expected, "(layers, batch, kv_heads, tokens, head_dim)")
    return prefix


def check_inputs(inputs: Inputs, config: Config) -> Inputs:
    """Return inputs with a batch axis, their shapes checked against the model.

    Raises:
        ValueError: If a shape does not fit.
    """
    x, mask, positions, prefix = inputs
    checks.rank("x", x, (2, 3), "(tokens, width) or (batch, tokens, width)")
    if x.shape[-1] != config.width:
        checks.fail("x", f"have width {config.width}", f"has shape {x.shape}", "Call models.embed on token ids first.")
    if x.ndim == 2:
        x = x[None]
        mask, positions = (None if a is None else a[None] for a in (mask, positions))
    prefix = None if prefix is None else _check_prefix(prefix, config)
    tokens, past = x.shape[1], num_past(prefix)
    if mask is not None:
        checks.rank("mask", mask, (2, 3), "(batch, tokens) or (batch, queries, keys)")
        if mask.ndim == 3:
            checks.shape("mask", mask, (mask.shape[0], tokens, past + tokens), "(batch, queries, prefix + tokens)")
        else:
            checks.shape("mask", mask, (mask.shape[0], tokens), "(batch, tokens)")
        mask = mask.astype(bool)
    if positions is not None:
        checks.shape("positions", positions, (positions.shape[0], tokens), "(batch, tokens)")
    return Inputs(x, mask, positions, prefix)


def num_past(prefix: KeysValues | None) -> int:
    """Return the number of tokens of a prefix."""
    return 0 if prefix is None else prefix.keys.shape[3]


def visible(inputs: Inputs) -> jax.Array:
    """Return which keys each query of checked inputs sees: bool (batch or 1, tokens, prefix + tokens)."""
    tokens, past = inputs.x.shape[1], num_past(inputs.prefix)
    if inputs.mask is None:
        return causal_mask(tokens, past + tokens)
    if inputs.mask.ndim == 3:
        return inputs.mask
    real = jnp.pad(inputs.mask, ((0, 0), (past, 0)), constant_values=True)
    return causal_mask(tokens, past + tokens) & real[:, None, :]


def positions_of(inputs: Inputs) -> jax.Array:
    """Return the position of each token of checked inputs: int32 (batch or 1, tokens)."""
    if inputs.positions is not None:
        return inputs.positions
    past = num_past(inputs.prefix)
    if inputs.mask is not None and inputs.mask.ndim == 2:
        # Padding on the left takes no position; what padding itself gets does not matter.
        return jnp.maximum(jnp.cumsum(inputs.mask.astype(jnp.int32), axis=-1) - 1, 0) + past
    return (jnp.arange(inputs.x.shape[1], dtype=jnp.int32) + past)[None]


@checked
def prepend(prompt: jax.Array, inputs: Inputs | jax.Array) -> Inputs:
    """Put a soft prompt right before each text of a batch that is padded on the left.

    Args:
        prompt: (virtual tokens, width), or one for each text (batch, virtual tokens, width).
        inputs: The texts (batch, tokens, width), each row's real tokens its last.

    Returns:
        Padding, prompt, text: embeddings (batch, virtual + tokens, width) and their mask.

    Raises:
        ValueError: If the prompt has another width or another batch, or the texts have positions of their own.

    Example:
        >>> texts = Inputs(jnp.arange(3.0).reshape(1, 3, 1), jnp.array([[False, True, True]]))
        >>> prepend(jnp.array([[9.0]]), texts).x.ravel()  # padding, prompt, text
        Array([0., 9., 1., 2.], dtype=float32)
    """
    inputs = as_inputs(inputs)
    x, mask = inputs.x, inputs.mask
    checks.rank("inputs.x", x, 3, "(batch, tokens, width)")
    batch, tokens, width = x.shape
    checks.rank("prompt", prompt, (2, 3), "(virtual tokens, width) or (batch, virtual tokens, width)")
    virtual = prompt.shape[-2]
    if prompt.ndim == 2:
        checks.shape("prompt", prompt, (virtual, width), "(virtual tokens, width)")
    else:
        checks.shape("prompt", prompt, (batch, virtual, width), "(batch, virtual tokens, width)")
    if inputs.positions is not None:
        checks.fail("inputs.positions", "be None before a prompt", "are given", "They are counted behind it.")
    prompt = jnp.broadcast_to(prompt, (batch, virtual, width)).astype(x.dtype)
    if mask is None:
        return inputs._replace(x=jnp.concatenate([prompt, x], axis=1))
    checks.shape("inputs.mask", mask, (batch, tokens), "(batch, tokens)")
    padding = tokens - mask.sum(-1, dtype=jnp.int32)[:, None]
    place = jnp.arange(virtual + tokens, dtype=jnp.int32)[None, :] - padding
    # In [x; prompt]: the prompt's rows follow the text's.
    source = jnp.where(
        place < 0, place + padding, jnp.where(place < virtual, tokens + place, place + padding - virtual)
    )
    both = jnp.take_along_axis(jnp.concatenate([x, prompt], axis=1), source[..., None], axis=1)
    return inputs._replace(x=both, mask=place >= 0)
