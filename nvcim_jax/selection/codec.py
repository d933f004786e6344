"""The codec: per-token maps from the model's width to the short code that an array stores, and back.

A codec starts as the identity, at random, or at the principal components of its data (`codec_pca`), which for a linear
codec is the optimum; `fit` and `fit_contrastive` train it.
"""

import dataclasses
import itertools
import math
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Codec", "codec_identity", "codec_init", "codec_pca", "decode", "encode"]

Layers: TypeAlias = tuple[tuple[jax.Array, jax.Array], ...]
"""Layers (w, b) of shapes (in, out) and (out,), in the order they are applied."""


@flax.struct.dataclass
class Codec:
    """A per-token autoencoder; every leaf can be trained, swept or mapped.

    Attributes:
        encoder: Layers (w, b) from the width to the code; empty for the identity.
        decoder: Layers (w, b) from the code to the width; empty for the identity.
        shift: What is taken from a token first, (width,); of no use to the identity.
        scale: What a token is divided by next, ().
    """

    # not checked at run time: a transformation may put masks or axes where the leaves are
    encoder: Any
    decoder: Any
    shift: Any
    scale: Any


def codec_identity() -> Codec:
    """Return the codec that changes nothing: codes are tokens.

    Example:
        >>> print(encode(codec_identity(), jnp.array([1.0, 2.0])))
        [1. 2.]
    """
    return Codec(encoder=(), decoder=(), shift=jnp.zeros(()), scale=jnp.ones(()))


@checked
def codec_init(key: Key, width: int, *, code: int = 48, hidden: tuple[int, ...] = ()) -> Codec:
    """Return a codec with random weights, N(0, 1 / inputs), and biases 0.

    A code of 48 is consistent with the arrays of the paper (16 bit in 2-bit cells: 48 x 8 = 384 rows), which does not
    confirm it: it is inferred, as is the per-token form. That prompts are reshaped by an autoencoder is stated by a
    secondary source.

    Args:
        key: Key of the weights.
        width: Width of a token.
        code: Features of a code, at most `width`.
        hidden: Widths between them, in the order of the encoder; the decoder has them in reverse. Empty for a linear
            codec.

    Returns:
        The codec, with shift 0 and scale 1.

    Raises:
        ValueError: If a size is not positive, or the code is wider than a token.

    Example:
        >>> import jax
        >>> codec = codec_init(jax.random.key(0), 256, code=48, hidden=(128,))
        >>> print(encode(codec, jnp.ones((8, 256))).shape)
        (8, 48)

    References:
        R. Qin et al., "NVCiM-PT: An NVCiM-assisted prompt tuning framework for edge LLMs", DATE 2025, arXiv:2411.08244.
    """
    checks.integer("width", width)
    checks.integer("code", code, high=width, fix="Use codec_identity() for no compression.")
    for size in hidden:
        checks.integer("hidden", size)
    key_encoder, key_decoder = jax.random.split(key)
    return Codec(
        encoder=_random_layers(key_encoder, (width, *hidden, code)),
        decoder=_random_layers(key_decoder, (code, *reversed(hidden), width)),
        shift=jnp.zeros((width,)),
        scale=jnp.ones(()),
    )


@checked
def codec_pca(
    key: Key, codec: Codec, tokens: Float[Array, "tokens width"], real: Bool[Array, " tokens"] | None = None
) -> Codec:
    """Set a codec to the principal components of its tokens: code = V^T (x - mean) / scale.

    V holds the leading eigenvectors of the covariance. This is the linear codec of least squared error. It is exact
    with hidden layers too: gelu(u) - gelu(-u) = u, so two units carry one component; units beyond that start at random
    and do not yet count.

    Args:
        key: Key of the units beyond.
        codec: Codec of the wanted sizes; hidden layers of at least twice the code. The identity is returned as it is.
        tokens: Tokens (tokens, width), at least 1.
        real: Which of them count; None: all.

    Returns:
        The codec, with the tokens' mean as shift and their root-mean-square distance from it as scale.

    Raises:
        ValueError: If the width differs, or a hidden layer is too narrow.

    Example:
        >>> import jax
        >>> tokens = jnp.array([[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]])  # on one line
        >>> codec = codec_pca(jax.random.key(1), codec_init(jax.random.key(0), 2, code=1, hidden=(4,)), tokens)
        >>> print(decode(codec, encode(codec, tokens)).round(4).tolist())
        [[1.0, 2.0], [2.0, 4.0], [4.0, 8.0]]
    """
    if not codec.encoder:
        return codec
    check_tokens(codec, "tokens", tokens)
    codec = standardised(codec, tokens, real)
    z = (tokens - codec.shift[None, :]) / codec.scale
    z = z if real is None else jnp.where(real[:, None], z, 0.0)
    components = jnp.linalg.eigh(jnp.matmul(z.T, z, precision="highest"))[1][:, ::-1]
    components = components[:, : codec.encoder[-1][0].shape[1]]
    key_encoder, key_decoder = jax.random.split(key)
    return dataclasses.replace(
        codec,
        encoder=_carry(key_encoder, components, codec.encoder, at_end=False),
        decoder=_carry(key_decoder, components.T, codec.decoder, at_end=True),
    )


@checked
def encode(codec: Codec, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Map tokens to codes, each by itself: layers of (x - shift) / scale, gelu between two layers.

    Args:
        codec: The codec.
        x: Tokens (..., width).

    Returns:
        Codes (..., code), in the dtype of `x`.

    Raises:
        ValueError: If the width differs.

    Example:
        >>> import jax
        >>> print(encode(codec_init(jax.random.key(0), 6, code=2), jnp.ones((3, 4, 6))).shape)
        (3, 4, 2)
    """
    if not codec.encoder:
        return x
    check_tokens(codec, "x", x)
    shift = codec.shift.reshape((1,) * (x.ndim - 1) + (-1,))
    return _apply(codec.encoder, (x.astype(shift.dtype) - shift) / codec.scale).astype(x.dtype)


@checked
def decode(codec: Codec, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Map codes back to tokens, each by itself: scale times the layers of z, plus shift.

    Args:
        codec: The codec.
        z: Codes (..., code).

    Returns:
        Tokens (..., width), in the dtype of `z`.

    Raises:
        ValueError: If the size of the code differs.

    Example:
        >>> import jax
        >>> print(decode(codec_init(jax.random.key(0), 6, code=2), jnp.ones((3, 2))).shape)
        (3, 6)
    """
    if not codec.decoder:
        return z
    check_last_axis("z", z, codec.decoder[0][0].shape[0], "code")
    shift = codec.shift.reshape((1,) * (z.ndim - 1) + (-1,))
    return (_apply(codec.decoder, z.astype(shift.dtype)) * codec.scale + shift).astype(z.dtype)


def standardised(codec: Codec, tokens: Float[Array, "tokens width"], real: Bool[Array, " tokens"] | None) -> Codec:
    """Return the codec with the shift and the scale of the tokens that count; the identity as it is."""
    if not codec.encoder:
        return codec
    mean = row_mean(tokens, real)
    scale = jnp.sqrt(row_mean(jnp.square(tokens - mean[None, :]), real).mean())
    return dataclasses.replace(codec, shift=mean, scale=jnp.where(scale > 0, scale, 1.0))


def row_mean(rows: Float[Array, "rows ..."], real: Array | None) -> Float[Array, "..."]:
    """Return the mean of the rows that count, or by how much each counts; None: all alike."""
    if real is None:
        return rows.mean(axis=0)
    weights = real.astype(rows.dtype)
    return jnp.tensordot(weights, rows, axes=(0, 0), precision="highest") / jnp.maximum(weights.sum(), 1.0)


def check_tokens(codec: Codec, name: str, x: Any) -> None:
    """Check that an array holds tokens of the codec's width."""
    if codec.encoder:
        check_last_axis(name, x, codec.encoder[0][0].shape[0], "width")


def check_last_axis(name: str, x: Any, size: int, word: str) -> None:
    """Check the last axis of an array of any rank from 1."""
    if x.ndim < 1 or x.shape[-1] != size:
        checks.fail(name, f"have shape (..., {word}) = (..., {size})", f"has shape {x.shape}")


def _apply(layers: Layers, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the layers' output; gelu between two layers, none after the last."""
    for i, (w, b) in enumerate(layers):
        x = jax.nn.gelu(x) if i else x
        x = jnp.matmul(x, w, precision="highest") + b.reshape((1,) * (x.ndim - 1) + (-1,))
    return x


def _random_layers(key: Key, sizes: tuple[int, ...]) -> Layers:
    """Return layers between the sizes, N(0, 1 / inputs), biases 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(
        (jax.random.normal(keys[i], (a, b)) / math.sqrt(a), jnp.zeros((b,)))
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    )


def _carry(key: Key, linear: Float[Array, "inputs outputs"], layers: Layers, *, at_end: bool) -> Layers:
    """Return layers of the same sizes that compute x @ linear exactly.

    The narrow side of `linear` (its outputs, or its inputs with `at_end`) travels as pairs (gelu(u), gelu(-u)).
    """
    sizes = (layers[0][0].shape[0], *(w.shape[1] for w, _ in layers))
    num = linear.shape[0] if at_end else linear.shape[1]
    for size in sizes[1:-1]:
        if size < 2 * num:
            checks.fail(
                "hidden",
                f"be at least twice the code ({2 * num}) to start at the principal components",
                f"is {size}",
                "Widen the layer, or start at random.",
            )
    eye = jnp.eye(num)
    last = len(layers) - 1
    made = []
    for i, (w, b) in enumerate(_random_layers(key, sizes)):
        step = (linear if i == last else eye) if at_end else (linear if i == 0 else eye)
        if i < last:
            step = jnp.concatenate([step, -step], axis=1)  # u goes on as the pair u, -u
        if i > 0:
            step = jnp.concatenate([step, -step], axis=0)  # and comes back as gelu(u) - gelu(-u)
        # units beyond the pairs read the inputs at random, and nothing reads them yet
        outputs = jnp.zeros((w.shape[0], step.shape[1])).at[: step.shape[0]].set(step)
        made.append((jnp.concatenate([outputs, w[:, step.shape[1] :]], axis=1), b))
    return tuple(made)
