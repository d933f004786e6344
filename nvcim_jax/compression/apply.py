"""A policy applied to a model, block after block, each calibrated on what the compressed ones before it make."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from nvcim_jax import checks
from nvcim_jax.compression.blocks import Layer, check_tokens, floats, in_parts, matrices, run, second_moments, stream
from nvcim_jax.compression.policy import Policy, check_policy
from nvcim_jax.compression.prune import magnitude_mask, shares, wanda_mask
from nvcim_jax.compression.quantise import levels, rounded, steps
from nvcim_jax.compression.solve import block_counts, solve
from nvcim_jax.models import LM, Packed
from nvcim_jax.signature import checked

__all__ = ["METHODS", "QUANTISERS", "apply"]

METHODS = ("sparsegpt", "wanda", "magnitude")
QUANTISERS = ("absmax", "gptq")


def _counts(shape: tuple[int, ...], sparsity: float, method: str) -> np.ndarray:
    """Return how many weights of a matrix go, in the parts that the method chooses among."""
    if method == "sparsegpt":
        return block_counts(shape, sparsity)
    parts = [shape[0]] * shape[1] if method == "wanda" else [shape[0] * shape[1]]
    return shares(parts, sparsity)


def _matrix(w: jax.Array, second: Any, counts: jax.Array, bits: jax.Array, how: tuple[str, str | None]) -> Any:
    """Return one matrix pruned and quantised: codes and scales, or floats where there is no quantiser."""
    method, quantiser = how
    gone, scale, most = None, None, levels(bits)
    if method == "wanda":
        gone = wanda_mask(w, second, counts)
    elif method == "magnitude":
        gone = magnitude_mask(w, counts[0])
    if quantiser == "gptq":
        scale = steps(w, bits, 0)
    if method == "sparsegpt" or quantiser == "gptq":
        made, _ = solve(w, second, gone, counts, scale, most if quantiser == "gptq" else None)
    else:
        assert gone is not None
        made = jnp.where(gone, 0.0, w)
    if quantiser is None:
        return made
    scale = steps(made, bits, 0) if scale is None else scale
    return rounded(made, scale, most).astype(jnp.int8), scale


@partial(jax.jit, static_argnames=("how",))
def _block(
    lm: LM, i: jax.Array, x: jax.Array | None, counts: Layer, bits: jax.Array, how: tuple[str, str | None]
) -> tuple[Layer, jax.Array | None]:
    """Return the matrices of block i as they become, and what the block then makes of its inputs."""
    layer = floats(lm, i)
    needs = how != ("magnitude", "absmax") and how != ("magnitude", None)
    second = second_moments(lm, layer, i, x) if needs and x is not None else dict.fromkeys(counts)
    made = {name: _matrix(layer[name], second[name], counts[name], bits, how) for name in counts}
    if x is None:
        return made, None
    after = {**layer, **{name: _floats(own) for name, own in made.items()}}
    return made, in_parts(lambda x: run(lm, after, i, x), x).reshape(x.shape)


def _floats(made: Any) -> jax.Array:
    return made[0].astype(jnp.float32) * made[1] if isinstance(made, tuple) else made


def _packed(parts: list[Any], dtype: Any) -> Any:
    """Stack what the blocks have become, floats in the dtype that the matrix had."""
    if not isinstance(parts[0], tuple):
        return jnp.stack(parts).astype(dtype)
    codes, scales = (jnp.stack(own) for own in zip(*parts, strict=True))
    return Packed(codes, scales, jnp.zeros(codes.shape[:2], jnp.int32))


def _unheard(done: int) -> None:
    """Say nothing."""


@checked
def apply(
    lm: LM,
    policy: Policy,
    tokens: Int[Array, "sequences tokens"] | None = None,
    *,
    method: str = "sparsegpt",
    quantiser: str | None = "absmax",
    advance: Callable[[int], None] = _unheard,
) -> LM:
    """Return the model with its blocks' matrices pruned and quantised: codes that become floats where they multiply.

    The blocks are done in order; each is calibrated on what the compressed ones before it make of the tokens. In a
    block, all matrices have its sparsity and its bits. Codes are int8 whatever the bits, since one stack holds blocks
    of all bits; a pruned weight is code 0, and each output has one scale. `memory` counts what that takes.

    Args:
        lm: The model; its matrices are arrays, or packed.
        policy: Bits and sparsity of each block: `luc`, `uniform`, or your own.
        tokens: Plain text to calibrate with, sequences of one length; None for "magnitude" without "gptq".
        method: What goes: "sparsegpt", "wanda" or "magnitude".
        quantiser: "absmax" rounds to the nearest code; "gptq" makes up for what it rounds, in one loop with SparseGPT;
            None: weights stay floats, the bits do not count.
        advance: Is told of every block that is done: `advance(1)`.

    Returns:
        The model. Its other parameters are those of `lm`.

    Raises:
        ValueError: If a name is unknown, tokens are missing, the policy does not fit, or a matrix has no floats.

    Example:
        >>> from nvcim_jax import models
        >>> from nvcim_jax.compression import uniform
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> small = apply(lm, uniform(2, bits=4, sparsity=0.5), jnp.arange(48).reshape(4, 12))
        >>> codes = small.params["layers"]["up"].codes
        >>> int(codes.max()), bool((codes == 0).mean() >= 0.5)
        (7, True)

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, section 3.1; Frantar and Alistarh, "SparseGPT", arXiv:2301.00774.
    """
    checks.choice("method", method, METHODS)
    if quantiser is not None:
        checks.choice("quantiser", quantiser, QUANTISERS)
    own, names, x = check_policy(policy, lm.config.num_layers), matrices(lm), None
    if tokens is not None:
        check_tokens(lm, tokens)
        x = stream(lm, tokens)
    elif method != "magnitude" or quantiser == "gptq":
        checks.fail("tokens", f"be given for {method} and {quantiser}", "is None", "Give some plain text.")
    shapes = {name: lm.params["layers"][name].shape[1:] for name in names}
    made: dict[str, list[Any]] = {name: [] for name in names}
    for i in range(lm.config.num_layers):
        counts = {name: jnp.asarray(_counts(shape, float(own.sparsity[i]), method)) for name, shape in shapes.items()}
        parts, x = _block(lm, jnp.int32(i), x, counts, jnp.float32(own.bits[i]), (method, quantiser))
        for name in names:
            made[name].append(parts[name])
        advance(1)
    stacked = {name: _packed(parts, lm.params["layers"][name].dtype) for name, parts in made.items()}
    return lm.replace(params={**lm.params, "layers": {**lm.params["layers"], **stacked}})
