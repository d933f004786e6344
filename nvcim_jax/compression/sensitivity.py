"""How much the output of each block changes when it is quantised, and when it is pruned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from nvcim_jax import checks
from nvcim_jax.compression.blocks import Layer, check_tokens, floats, in_parts, matrices, run, stream
from nvcim_jax.compression.prune import magnitude_mask, shares
from nvcim_jax.compression.quantise import check_bits, quantise
from nvcim_jax.models import LM
from nvcim_jax.signature import checked

__all__ = ["Table", "sensitivity"]


class Table(NamedTuple):
    """Hold the mean squared error of each block's output.

    Attributes:
        quantisation: With its weights quantised (blocks,).
        pruning: With its smallest weights at zero (blocks,).
        bits: Bits of the weights of the one.
        sparsity: Share of zeros of the other.
    """

    quantisation: Any
    pruning: Any
    bits: Any
    sparsity: Any


def _size(y: jax.Array) -> jax.Array:
    return jnp.square(y.astype(jnp.float32)).mean()


@jax.jit
def _sensitivity(lm: LM, tokens: jax.Array, bits: jax.Array, counts: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    def body(x: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        layer = floats(lm, i)
        fewer_bits = {name: quantise(layer[name], bits, axis=0) for name in counts}
        fewer = {name: jnp.where(magnitude_mask(layer[name], k), 0.0, layer[name]) for name, k in counts.items()}

        def one(x: jax.Array) -> tuple[jax.Array, ...]:
            y = run(lm, layer, i, x)
            ways: list[Layer] = [{**layer, **fewer_bits}, {**layer, **fewer}]
            return y, *(_size(run(lm, way, i, x) - y) for way in ways), _size(y)

        y, *sizes = in_parts(one, x)
        return y.reshape(x.shape), tuple(size.mean() for size in sizes)

    x = stream(lm, tokens).astype(jnp.float32)  # the rounding of a narrower stream would be measured along
    return lax.scan(body, x, jnp.arange(lm.config.num_layers))[1]


@checked
def sensitivity(
    lm: LM, tokens: Int[Array, "sequences tokens"], *, bits: int = 4, sparsity: float = 0.5, relative: bool = False
) -> Table:
    """Return how sensitive each block is, to quantisation and to pruning apart.

    `s_j(c) = mean (f_j(x; c(W_j)) - f_j(x; W_j))^2` over sequences, tokens and channels: the output of block j on the
    inputs that it has in the model as it is, the stream in float32 whatever the dtype of the weights. Quantised: all
    its matrices to b bits, one scale an output. Pruned: the smallest weights of each matrix set to zero.

    Args:
        lm: The model; its matrices are arrays, or packed.
        tokens: Plain text, sequences of one length.
        bits: b, from 2 to 8.
        sparsity: In [0, 1].
        relative: Whether errors are divided by the mean square of the block's output (not in the paper): the residual
            stream grows with depth, and the norm of the next block divides by it.

    Returns:
        The table.

    Raises:
        ValueError: If a number is out of range, or a matrix has no floats.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=3, num_heads=4, mlp_width=48)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> layers = lm.params["layers"]
        >>> lm = lm.replace(params={**lm.params, "layers": {**layers, "up": layers["up"].at[1].set(0.0)}})
        >>> table = sensitivity(lm, jnp.arange(24).reshape(2, 12))
        >>> int(table.quantisation.argmin()), table.pruning.shape  # a block without a feed-forward part
        (1, (3,))

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, section 3.1.
    """
    check_tokens(lm, tokens)
    check_bits("bits", bits)
    checks.number("sparsity", sparsity, low=0.0, high=1.0)
    layers = lm.params["layers"]
    sizes = {name: layers[name].shape[1] * layers[name].shape[2] for name in matrices(lm)}
    counts = {name: jnp.int32(shares([size], sparsity)[0]) for name, size in sizes.items()}
    quantised, pruned, size = _sensitivity(lm, tokens, jnp.float32(bits), counts)
    if relative:
        quantised, pruned = quantised / size, pruned / size
    return Table(quantised, pruned, bits, sparsity)
