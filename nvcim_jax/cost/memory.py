"""Memory that tuning and answering take, before either is done: no weight is loaded, nothing is computed.

The numbers follow from shapes alone. With R = prompts x batch x (virtual + text tokens) rows, L layers, width d and b
bytes a number, one block keeps for its backward pass, for each row,

    B = a m + 4 d + 2 q + 2 k + 2 h T    numbers

(m hidden channels, a = 5.7 for a gated SiLU, 7.6 for a gated GELU, one product less without a gate; q channels of all
query heads, k of all key and value heads, h heads, T tokens): R L B b bytes in all, or R (L d + B) b where blocks are
computed again (`tuning.Options.remat`). The factors a are fits to the compiler's own memory analysis on a CPU, and the
test holds the sum against that analysis within a factor of 1.5.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from nvcim_jax import checks, models
from nvcim_jax.signature import checked

__all__ = ["PUBLISHED", "Memory", "Work", "memory"]

PUBLISHED: Mapping[str, models.Config] = {
    "Gemma-2B": models.Config(
        family="gemma",
        vocab_size=256_000,
        width=2048,
        num_layers=18,
        num_heads=8,
        num_kv_heads=1,
        head_dim=256,
        mlp_width=16_384,
        max_tokens=8192,
        norm_eps=1e-6,
        norm_offset=True,
        activation="gelu_tanh",
        embedding_scale=2048**0.5,
        bos_id=2,
        eos_ids=(1,),
    ),
    "Phi-2": models.Config(
        family="phi",
        vocab_size=51_200,
        width=2560,
        num_layers=32,
        num_heads=32,
        mlp_width=10_240,
        norm="layer",
        parallel=True,
        shared_norm=True,
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        head_bias=True,
        tied=False,
        rotary_dim=32,
        bos_id=50_256,
        eos_ids=(50_256,),
    ),
    "Mistral-7B-GPTQ": models.Config(
        family="mistral",
        vocab_size=32_000,
        width=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        mlp_width=14_336,
        max_tokens=32_768,
        window=4096,
        tied=False,
        bos_id=1,
        eos_ids=(2,),
    ),
}
"""The models of NVCiM-PT, from the config.json of google/gemma-2b, microsoft/phi-2 and mistralai/Mistral-7B-v0.1 on the
Hugging Face hub: 2,506,172,416, 2,779,683,840 and 7,241,732,096 parameters. GPTQ: one scale for 128 inputs."""

GROUP = 128
KEPT = {"silu": 5.7, "gelu": 7.6, "gelu_tanh": 7.6, "relu": 4.0}
"""Numbers that a gated block keeps for each hidden channel, fitted to the compiler's analysis."""


@checks.frozen_config
class Work:
    """How much is tuned and answered at a time.

    Attributes:
        prompts: Prompts tuned side by side.
        batch: Examples of each in a step.
        virtual: Virtual tokens.
        text: Tokens of a text with its answer.
        answer: Tokens of an answer.
        queries: Queries answered at a time.
        new_tokens: Tokens written for an answer.
        remat: Whether blocks are computed again in the backward pass.
        dtype: dtype of weights and activations.
        on_cpu: Whether products run in float32 whatever the dtype, as they do on a CPU.
    """

    prompts: int = 5
    batch: int = 5
    virtual: int = 8
    text: int = 48
    answer: int = 4
    queries: int = 1
    new_tokens: int = 16
    remat: bool = False
    dtype: str = "float32"
    on_cpu: bool = True


class Memory(NamedTuple):
    """Bytes by what they hold.

    Attributes:
        weights: The model.
        prompts: Prompts, their gradients and Adam's two moments, in float32.
        activations: What a step of tuning keeps beside them.
        cache: Keys and values of a query and its answer.
        answering: What answering needs beside weights and cache.
        tuning_peak: Weights, prompts and activations.
        answering_peak: Weights, cache and the rest.
    """

    weights: int
    prompts: int
    activations: int
    cache: int
    answering: int
    tuning_peak: int
    answering_peak: int


def _layer_weights(config: models.Config) -> int:
    sizes = config.shapes["layers"].values()
    return sum(_product(size[1:]) for size in sizes)


def _product(size: tuple[int, ...]) -> int:
    total = 1
    for part in size:
        total *= part
    return total


def _weight_bytes(config: models.Config, packed: bool, size: int) -> int:
    """Return the bytes of all parameters; packed ones are int8 with a float16 scale for 128 inputs."""
    total = config.num_params * size
    if packed:
        for name, (layers, *rest) in config.shapes["layers"].items():
            if len(rest) == 2 and not name.endswith("_bias"):
                inputs, outputs = rest
                codes = inputs * outputs + 2 * -(-inputs // GROUP) * outputs + 4 * inputs
                total += layers * (codes - inputs * outputs * size)
    return total


def kept_numbers(config: models.Config, tokens: int) -> float:
    """Return the numbers that a block keeps for one row."""
    factor = KEPT[config.activation] - (0 if config.gated else 1.5)
    queries, pairs = config.num_heads * config.head_width, config.kv_heads * config.head_width
    return factor * config.mlp_width + 4 * config.width + 2 * queries + 2 * pairs + 2 * config.num_heads * tokens


@checked
def memory(config: models.Config, work: Work, *, packed: bool = False) -> Memory:
    """Return the memory that tuning and answering take, from shapes alone.

    Args:
        config: The model.
        work: How much is done at a time.
        packed: Whether the weights of the blocks are int8 codes (GPTQ, AWQ), as `models.load` keeps them.

    Returns:
        The bytes.

    Example:
        >>> found = memory(PUBLISHED["Gemma-2B"], Work())
        >>> found.weights == 4 * PUBLISHED["Gemma-2B"].num_params
        True
    """
    size = jnp.dtype(work.dtype).itemsize
    wide = 4 if work.on_cpu else size
    layers, tokens = config.num_layers, work.virtual + work.text
    weights, layer = _weight_bytes(config, packed, size), _layer_weights(config)
    # On a CPU a narrower weight becomes float32 before its product; a packed one becomes floats anywhere.
    widened = config.vocab_size * config.width * 4 if work.on_cpu and size < 4 else 0
    floats = layer * (4 + wide) if packed else layer * 4 if work.on_cpu and size < 4 else 0
    prompts = 4 * work.prompts * work.virtual * config.width * 4
    rows, block = work.prompts * work.batch * tokens, kept_numbers(config, tokens)
    per_row = layers * config.width + block if work.remat else layers * block
    logits = 3 * work.prompts * work.batch * work.answer * config.vocab_size * 4
    unpacked = layers * layer * wide if packed and not work.remat else 0
    activations = int(rows * per_row * wide) + logits + widened + floats + unpacked
    length = tokens + work.new_tokens
    cache = 2 * layers * config.kv_heads * config.head_width * length * work.queries * size
    once = work.queries * tokens * int(3 * config.mlp_width + 6 * config.width + config.num_heads * tokens) * wide
    answering = once + 2 * work.queries * config.vocab_size * 4 + widened + (floats or layer * size)
    total = (weights + prompts + activations, weights + cache + answering)
    return Memory(weights, prompts, activations, cache, answering, *total)
