"""A soft prompt that a small network makes while it is tuned: P-tuning."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.prompt import check_virtual
from nvcim_jax.types import Key

__all__ = ["Encoder", "PTuningOptions", "p_tuning"]


class Encoder(NamedTuple):
    """Hold what makes a prompt: `relu(relu(embedding w_0 + b_0) w_1 + b_1) w_2 + b_2`.

    Attributes:
        embedding: (virtual tokens, width).
        weights: Three matrices (inputs, outputs): width -> hidden -> hidden -> width.
        biases: Three vectors.
    """

    embedding: jax.Array
    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]


@checks.frozen_config
class PTuningOptions:
    """Static options of `p_tuning`, under the same names."""

    kind: ClassVar[str] = "p_tuning"
    num_virtual: int = 8
    hidden: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        checks.integer("num_virtual", self.num_virtual)
        if self.hidden is not None:
            checks.integer("hidden", self.hidden)


def _init(options: PTuningOptions, key: Key, lm: LM, examples: Examples, weights: Any = None) -> Encoder:
    del examples, weights
    width, hidden = lm.config.width, options.hidden or lm.config.width
    sizes = ((width, hidden), (hidden, hidden), (hidden, width))
    embedding_key, *keys = jax.random.split(key, 7)

    def uniform(key: Key, shape: tuple[int, ...], inputs: int) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -(inputs**-0.5), inputs**-0.5)

    return Encoder(
        jax.random.normal(embedding_key, (options.num_virtual, width)),
        tuple(uniform(key, size, size[0]) for key, size in zip(keys[:3], sizes, strict=True)),
        tuple(uniform(key, size[1:], size[0]) for key, size in zip(keys[3:], sizes, strict=True)),
    )


def _rows(state: Encoder | jax.Array) -> jax.Array:
    """Return the prompt; one that was read from a memory is a prompt already."""
    if not isinstance(state, Encoder):
        return state
    y = state.embedding
    for i, (weight, bias) in enumerate(zip(state.weights, state.biases, strict=True)):
        y = (jax.nn.relu(y) if i else y) @ weight + bias[None]
    return y


def _apply(options: PTuningOptions, state: Encoder | jax.Array, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    rows = _rows(state)
    check_virtual(options.num_virtual, rows)
    return lm, models.prepend(rows, inputs)


def _as_prompt(rows: jax.Array) -> jax.Array:
    return rows


@checked
def p_tuning(num_virtual: int = 8, hidden: int | None = None) -> Adapter:
    """Return the adapter of P-tuning: a prompt that an embedding and a network of three layers make while it is tuned.

    Its rows are the prompt: the network is dropped when they are stored, and what is read back is a prompt, which may
    be tuned on as one. It starts as in PEFT: an embedding from N(0, 1), layers from U(+-1/sqrt(inputs)).

    Args:
        num_virtual: Virtual tokens.
        hidden: Units of the hidden layers; None: the model's width.

    Returns:
        The adapter; two with the same arguments are equal to `jax.jit`.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.p_tuning(4, 16)
        >>> state = adapter.init(jax.random.key(1), lm, tuning.examples([[1, 5, 6]], [[8, 2]]), None)
        >>> state.weights[1].shape, adapter.rows(state).shape
        ((16, 16), (4, 32))

    References:
        X. Liu et al., "GPT understands, too", arXiv:2103.10385, with the network of PEFT's `PromptEncoder`.
    """
    options = PTuningOptions(num_virtual=num_virtual, hidden=hidden)
    return Adapter(Partial(_init, options), Partial(_apply, options), Partial(_rows), Partial(_as_prompt))
