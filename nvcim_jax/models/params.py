"""The parameters of a decoder as one tree, every layer's weights stacked along a leading axis."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.types import Key, PyTree

__all__ = ["embed", "init", "num_params", "shapes"]


def _layer_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one layer's arrays; every product is `x @ w`, so a weight is (inputs, outputs)."""
    width, hidden = config.width, config.mlp_width
    queries, pairs = config.num_heads * config.head_width, config.kv_heads * config.head_width
    found: dict[str, tuple[int, ...]] = {
        "q": (width, queries),
        "k": (width, pairs),
        "v": (width, pairs),
        "o": (queries, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    if config.gated:
        found["gate"] = (width, hidden)
    biased = (
        "qkv" * config.qkv_bias,
        "o" * config.output_bias,
        ("up", "down", "gate") if config.mlp_bias else (),
    )
    for group in biased:
        found |= {f"{name}_bias": found[name][1:] for name in group if name in found}
    norms = ["attention_norm"]
    if not config.shared_norm:
        norms.append("mlp_norm")
    if config.post_norms:
        norms += ["attention_post_norm", "mlp_post_norm"]
    for name in norms:
        found[name] = (width,)
        if config.norm == "layer":
            found[f"{name}_bias"] = (width,)
    if config.qk_norm:
        found |= {"q_norm": (config.head_width,), "k_norm": (config.head_width,)}
    return found


def shapes(config: Config) -> PyTree:
    """Return the tree of parameter shapes.

    Args:
        config: The model.

    Returns:
        A dict of shapes: "embedding" (vocab_size, width), "final_norm" (width,), "layers", a dict of shapes that all
        begin with num_layers, and, where the model has them, "head" (width, vocab_size), "head_bias",
        "final_norm_bias" and "position_embedding".

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> shapes(config)["layers"]["up"]  # layers, inputs, outputs
        (2, 64, 128)
    """
    found: dict[str, Any] = {
        "embedding": (config.vocab_size, config.width),
        "layers": {name: (config.num_layers, *size) for name, size in _layer_shapes(config).items()},
        "final_norm": (config.width,),
    }
    if config.norm == "layer":
        found["final_norm_bias"] = (config.width,)
    if config.positions == "learned":
        found["position_embedding"] = (config.max_tokens + config.position_offset, config.width)
    if not config.tied:
        found["head"] = (config.width, config.vocab_size)
    if config.head_bias:
        found["head_bias"] = (config.vocab_size,)
    return found


def num_params(config: Config) -> int:
    """Return the number of parameters.

    Example:
        >>> config = Config(vocab_size=10, width=4, num_layers=1, num_heads=1, mlp_width=3)
        >>> num_params(config)  # 40 embedding + 64 attention + 36 feed-forward + 12 norms
        152
    """
    sizes = jax.tree.leaves(shapes(config), is_leaf=lambda node: isinstance(node, tuple))
    return sum(math.prod(size) for size in sizes)


def _is_scale(name: str) -> bool:
    return name.endswith("_norm")


def init(key: Key, *, config: Config, scale: float = 0.02, dtype: jnp.dtype | type = jnp.float32) -> PyTree:
    """Draw random parameters: weights from N(0, scale^2), those before a residual sum smaller, norms at one.

    The two products that write to the residual stream ("o", "down") get `scale / sqrt(2 num_layers)`, as in GPT-2.

    Args:
        key: A key.
        config: The model.
        scale: Standard deviation of the weights, > 0.
        dtype: dtype of the arrays.

    Returns:
        The tree that `shapes` describes.

    References:
        Radford et al., Language models are unsupervised multitask learners, 2019, section 2.3.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> params = init(jax.random.key(0), config=config)
        >>> params["layers"]["q"].shape, round(float(params["embedding"].std()), 3)  # asked for: 0.02
        ((2, 64, 64), 0.02)
    """
    checks.number("scale", scale, low=0.0, low_open=True)
    tree = shapes(config)
    leaves, treedef = jax.tree.flatten_with_path(tree, is_leaf=lambda node: isinstance(node, tuple))
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
    return treedef.unflatten(made)


def embed(
    params: PyTree, token_ids: Int[Array, "*batch tokens"], *, config: Config
) -> Float[Array, "*batch tokens width"]:
    """Look up token embeddings, scaled as the family does: what `forward` takes as its input.

    Gemma multiplies them by sqrt(width). The factor is applied here, so a soft prompt that is put before the
    result lives on the scaled side and is not multiplied again.

    Args:
        params: Parameters.
        token_ids: Tokens (..., tokens), each in [0, vocab_size); JAX clamps what lies outside.
        config: The model.

    Returns:
        Embeddings (..., tokens, width), in the embedding's dtype.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> params = init(jax.random.key(0), config=config)
        >>> embed(params, jnp.array([[1, 2, 3]]), config=config).shape
        (1, 3, 64)
    """
    table = params["embedding"]
    checks.shape("params['embedding']", table, (config.vocab_size, config.width), "(vocab_size, width)")
    found = jnp.take(table, token_ids, axis=0, mode="clip")
    if config.embedding_scale == 1.0:
        return found
    # Rounded to the embedding's dtype first, as the published checkpoints were trained.
    return found * jnp.asarray(config.embedding_scale, table.dtype)
