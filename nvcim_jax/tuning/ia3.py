"""Factors on activations: (IA)3."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks
from nvcim_jax.models import LM, Config, Inputs
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.rows import pack, unpack
from nvcim_jax.tuning.targets import changed_layers, check_targets, matrices
from nvcim_jax.tuning.weights import Scaled
from nvcim_jax.types import Key

__all__ = ["Ia3Options", "ia3"]


@checks.frozen_config
class Ia3Options:
    """Static options of `ia3`, under the same names."""

    kind: ClassVar[str] = "ia3"
    targets: tuple[str, ...] = ("k", "v", "down")
    inputs: tuple[str, ...] = ("down",)

    def __post_init__(self) -> None:
        """Check that what has factors is a target."""
        for name in self.inputs:
            checks.choice("inputs", name, self.targets)

    def shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of a state: the factors of each target."""
        known = matrices(config)
        targets = check_targets(self.targets, config, groups=False)
        return {name: (known[name][0], known[name][1 if name in self.inputs else 2]) for name in targets}

    def parts(self, state: jax.Array, config: Config) -> dict[str, jax.Array]:
        """Return the arrays of a state by name."""
        return unpack(state, self.shapes(config), config)

    def pack(self, parts: Mapping[str, Any], config: Config) -> jax.Array:
        """Return the state that holds some arrays."""
        return pack(parts, self.shapes(config), config, fill=1.0)


def _init(options: Ia3Options, key: Key, lm: LM, examples: Examples, weights: Any = None) -> jax.Array:
    del key, examples, weights
    ones = {name: jnp.ones(shape, jnp.float32) for name, shape in options.shapes(lm.config).items()}
    return options.pack(ones, lm.config)


def _rows(state: jax.Array) -> jax.Array:
    return state - 1.0  # the noise of a memory grows with the largest entry: the ones are no part of it


def _from_rows(rows: jax.Array) -> jax.Array:
    return rows + 1.0


def _apply(options: Ia3Options, state: jax.Array, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    layers, changed = lm.params["layers"], {}
    for name, factor in options.parts(state, lm.config).items():
        if name in options.inputs:
            changed[name] = Scaled(layers[name], inputs=factor)
            continue
        changed[name] = Scaled(layers[name], outputs=factor)
        bias = f"{name}_bias"
        if bias in layers:  # it is part of the activation that is scaled
            changed[bias] = layers[bias] * factor.astype(layers[bias].dtype)
    return lm.replace(params=changed_layers(lm.params, changed)), inputs


@checked
def ia3(targets: Sequence[str] = ("k", "v", "down"), *, inputs: Sequence[str] = ("down",)) -> Adapter:
    """Return the adapter of (IA)3: keys, values and the hidden units of the feed-forward part times a factor each.

    Factors of outputs scale `x W + bias`, those of inputs x; all are one at the start. W may be any weight. A state
    holds the factors one after the other in rows of the model's width, filled up with ones; `adapter.parts(state, lm)`
    gives them by name. What a memory stores is what they differ from one by.

    Args:
        targets: Matrices of the blocks: out of q, k, v, o, gate, up, down.
        inputs: Those of them whose inputs are scaled instead of their outputs.

    Returns:
        The adapter; two with the same arguments are equal to `jax.jit`.

    Raises:
        ValueError: If `inputs` are no targets, or (when it is used) a model has no such matrix.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> tuning.ia3().rows_shape(models.init(jax.random.key(0), config=config))  # 2 (32 + 32 + 64) / 32
        (8, 32)

    References:
        H. Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning",
        arXiv:2205.05638, section 3.3.
    """
    options = Ia3Options(targets=tuple(targets), inputs=tuple(inputs))
    return Adapter(Partial(_init, options), Partial(_apply, options), Partial(_rows), Partial(_from_rows))
