"""The parameters of a decoder as one tree, every layer's weights stacked along a leading axis."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.models.lm import LM
from nvcim_jax.ops import understand
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["embed", "init", "look_up"]


def _is_scale(name: str) -> bool:
    return name.endswith("_norm")


@checked
def init(key: Key, *, config: Config, scale: float = 0.02, dtype: jnp.dtype | type = jnp.float32) -> LM:
    """Return a random model: weights from N(0, scale^2), those before a residual sum smaller, norms at one.

    The two products that write to the residual stream ("o", "down") get `scale / sqrt(2 num_layers)`, as in GPT-2.

    Args:
        key: A key.
        config: The model.
        scale: Standard deviation of the weights, > 0.
        dtype: dtype of the arrays.

    Returns:
        The model; its parameters are the tree that `config.shapes` describes.

    References:
        Radford et al., Language models are unsupervised multitask learners, 2019, section 2.3.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> lm = init(jax.random.key(0), config=config)
        >>> lm.params["layers"]["q"].shape, round(float(lm.params["embedding"].std()), 3)  # asked for: 0.02
        ((2, 64, 64), 0.02)
    """
    checks.key("key", key)
    checks.number("scale", scale, low=0.0, low_open=True)
    leaves, treedef = jax.tree.flatten_with_path(config.shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(key, len(leaves))
    residual = scale / math.sqrt(2 * config.num_layers)
    made = []
    for leaf_key, (path, size) in zip(keys, leaves, strict=True):
        name = str(path[-1].key)
        if name.endswith("_bias") or (_is_scale(name) and config.norm_offset):
            made.append(jnp.zeros(size, dtype))
        elif _is_scale(name):
            made.append(jnp.ones(size, dtype))
        else:
            deviation = residual if name in {"o", "down"} else scale
            made.append((jax.random.normal(leaf_key, size) * deviation).astype(dtype))
    return LM(treedef.unflatten(made), config)


@checked
def embed(lm: LM, token_ids: Int[Array, "*batch tokens"]) -> Float[Array, "*batch tokens width"]:
    """Look up token embeddings, scaled as the family does: what `forward` takes as its input.

    Gemma multiplies them by sqrt(width). The factor is applied here, so a soft prompt that is put before the
    result lives on the scaled side and is not multiplied again.

    Args:
        lm: The model.
        token_ids: Tokens (..., tokens), each in [0, vocab_size). While tracing, the row of any other is NaN.

    Returns:
        Embeddings (..., tokens, width), in the embedding's dtype.

    Raises:
        ValueError: If a token has no row.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> embed(init(jax.random.key(0), config=config), jnp.array([[1, 2, 3]])).shape
        (1, 3, 64)
    """
    lm.config.check_tokens("token_ids", token_ids)
    return _rows(lm.params["embedding"], token_ids, config=lm.config)


@partial(jax.jit, static_argnames="config")
def _rows(table: PyTree, token_ids: jax.Array, *, config: Config) -> jax.Array:
    return understand(partial(_embed, config=config))(table, token_ids)


def look_up(table: jax.Array, index: jax.Array) -> jax.Array:
    """Return rows of a table; NaN where there is no such row."""
    index = jnp.where(index < 0, len(table), index)  # a negative one would count from the end
    return jnp.take(table, index, axis=0, mode="fill")


def _embed(table: jax.Array, token_ids: jax.Array, *, config: Config) -> jax.Array:
    checks.shape("lm.params['embedding']", table, (config.vocab_size, config.width), "(vocab_size, width)")
    found = look_up(table, token_ids)
    if config.embedding_scale == 1.0:
        return found
    # Rounded to the embedding's dtype first, as the published checkpoints were trained.
    return found * jnp.asarray(config.embedding_scale, table.dtype)
