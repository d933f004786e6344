"""What goes into a model: embeddings with their mask, positions, and the keys and values before them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.block import KeysValues
from nvcim_jax.models.config import Config
from nvcim_jax.models.positions import causal_mask
from nvcim_jax.signature import checked

__all__ = [
    "Inputs",
    "as_inputs",
    "check_inputs",
    "check_length",
    "check_real",
    "last_real",
    "num_past",
    "positions_of",
    "prepend",
    "visible",
]


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
        num_text: How many tokens of each are text (batch,), before an answer whose tokens are predicted; for adapters
            that change the text alone. None: all.

    All without the batch axis for one sequence.
    """

    x: jax.Array
    mask: jax.Array | None = None
    positions: jax.Array | None = None
    prefix: KeysValues | None = None
    num_text: jax.Array | None = None


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
    x, mask, positions, prefix, _ = inputs
    checks.rank("x", x, (2, 3), "(tokens, width) or (batch, tokens, width)")
    if x.shape[-1] != config.width:
        checks.fail("x", f"have width {config.width}", f"has shape {x.shape}", "Call models.embed on token ids first.")
    if x.ndim == 2:
        x = x[None]
        mask, positions = (None if a is None else a[None] for a in (mask, positions))
    if prefix is not None:
        prefix = KeysValues(*(a.astype(x.dtype) for a in _check_prefix(prefix, config)))
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


def check_length(inputs: Inputs, config: Config, *, new: int = 0) -> None:
    """Check that checked inputs, and new tokens behind them, fit the learned positions, where the model has them.

    Lengths are those of the mask where it can be looked at, and of the array otherwise.

    Raises:
        ValueError: If they do not.
    """
    if config.positions != "learned":
        return
    mask, positions, past = inputs.mask, inputs.positions, num_past(inputs.prefix)
    if positions is not None:
        if not checks.is_concrete(positions):
            return  # a traced position without a row gives NaN
        longest = int(np.max(np.asarray(positions), initial=-1)) + 1
    elif mask is not None and mask.ndim == 2 and checks.is_concrete(mask):
        longest = past + int(np.asarray(mask).sum(-1).max(initial=0))
    else:
        longest = past + inputs.x.shape[1]
    if longest + new > config.max_tokens:
        behind = f" with {new} new ones" if new else ""
        checks.fail(
            "x",
            f"stay within the {config.max_tokens} learned positions of the model, prompt and prefix included",
            f"takes {longest + new}{behind}",
            "Cut the texts.",
        )


def check_real(mask: jax.Array) -> None:
    """Check that each row of a mask has a real token, where it can be looked at.

    Raises:
        ValueError: If one has none.
    """
    if checks.is_concrete(mask) and not np.asarray(mask).any(-1).all():
        checks.fail("mask", "have a real token in each row", "has a row without one", "Put a prompt before it.")


def num_past(prefix: KeysValues | None) -> int:
    """Return the number of tokens of a prefix."""
    return 0 if prefix is None else prefix.keys.shape[-2]


def last_real(mask: jax.Array) -> jax.Array:
    """Return the place of the last real token of each row: int32 (batch,)."""
    places = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(mask, places, jnp.int32(-1)).max(axis=1)


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
    """Put a soft prompt right before each text of a batch.

    Args:
        prompt: (virtual tokens, width), or one for each text (batch, virtual tokens, width).
        inputs: The texts (batch, tokens, width), padded on either side.

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
    mask = mask.astype(bool)
    # Before the first real token; of a text without any, at the end.
    padding = jnp.where(mask.any(-1), jnp.argmax(mask, axis=-1).astype(jnp.int32), jnp.int32(tokens))[:, None]
    place = jnp.arange(virtual + tokens, dtype=jnp.int32)[None, :] - padding
    own = (place >= 0) & (place < virtual)
    # In [x; prompt]: the prompt's rows follow the text's.
    source = jnp.where(place < 0, place + padding, jnp.where(own, tokens + place, place + padding - virtual))
    both = jnp.take_along_axis(jnp.concatenate([x, prompt], axis=1), source[..., None], axis=1)
    real = jnp.take_along_axis(mask, jnp.minimum(source, jnp.int32(tokens - 1)), axis=1)
    return inputs._replace(x=both, mask=own | real)
