"""The static description of a decoder language model: everything in which the families differ, as data."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.families import family
from nvcim_jax.types import PyTree

if TYPE_CHECKING:
    from nvcim_jax.models.layout import Place

__all__ = ["ACTIVATIONS", "Config", "Rope"]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
"""Names of the activation functions of the feed-forward part."""

NORMS = ("layer", "rms")
POSITIONS = ("learned", "none", "rope")
SCALINGS = ("linear", "llama3", "none")


@checks.frozen_config
class Rope:
    """Describe a rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15).

    Channel pair j of `d` rotated channels turns by `position * theta ** (-2 j / d)`. With scaling "linear" every
    frequency is divided by `factor`; with "llama3" only those whose wavelength exceeds
    `original_max_tokens / low_frequency_factor`, with a smooth passage down to `/ high_frequency_factor`.

    Attributes:
        theta: Base of the frequencies, > 0.
        scaling: "none", "linear" or "llama3".
        factor: What the frequencies are divided by, >= 1.
        low_frequency_factor: Of the scaling "llama3".
        high_frequency_factor: Of the scaling "llama3".
        original_max_tokens: Of the scaling "llama3": the context the model was first trained with.

    Example:
        >>> Rope().theta
        10000.0
    """

    theta: float = 10_000.0
    scaling: str = "none"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_tokens: int = 8192

    def __post_init__(self) -> None:
        """Check the values."""
        checks.choice("scaling", self.scaling, SCALINGS)
        checks.number("theta", self.theta, low=0.0, low_open=True)
        checks.number("factor", self.factor, low=0.0, low_open=True)


@checks.frozen_config
class Config:
    """Describe a decoder language model; hashable, so that it can be a static argument of `jax.jit`.

    The defaults are those of a Llama: RMS norms before each half of a block, a gated SiLU feed-forward part,
    rotary positions, grouped queries, no biases.

    Attributes:
        vocab_size: Rows of the embedding.
        width: Channels of the residual stream.
        num_layers: Number of blocks.
        num_heads: Query heads of a block.
        num_kv_heads: Key and value heads; divides `num_heads`. None: as many as query heads.
        head_dim: Channels of a head. None: `width / num_heads`.
        mlp_width: Hidden channels of the feed-forward part.
        max_tokens: Longest sequence the positions were made for.
        family: Name of the Hugging Face family that the checkpoint belongs to (`model_type`).
        norm: "rms" (no mean, no bias) or "layer".
        norm_eps: Added to the variance.
        norm_offset: Whether a norm multiplies by `1 + scale` (Gemma) instead of `scale`.
        post_norms: Whether each half of a block is normalised again before it is added (Gemma 2 and 3).
        qk_norm: Whether queries and keys are normalised over the channels of a head (Qwen 3, Gemma 3).
        parallel: Whether attention and feed-forward part both start from the block's input (Phi-2, GPT-NeoX).
        shared_norm: Whether a parallel block has one norm for both of its halves (Phi-2).
        activation: One of `ACTIVATIONS`.
        gated: Whether the feed-forward part is `down(act(gate(x)) * up(x))` instead of `down(act(up(x)))`.
        qkv_bias: Whether queries, keys and values have biases.
        output_bias: Whether the product after attention has a bias.
        mlp_bias: Whether the products of the feed-forward part have biases.
        head_bias: Whether the head has a bias.
        tied: Whether the head is the embedding.
        embedding_scale: What token embeddings are multiplied by (Gemma: sqrt(width)).
        positions: "rope", "learned" (added to the embeddings), or "none" (a part of a model with learned ones, whose
            input has them already).
        position_offset: Rows of the learned positions before position 0 (OPT: 2).
        rope: The rotary embedding of layers with full attention.
        rope_local: The rotary embedding of layers with a sliding window; None: the same.
        rotary_dim: Channels of a head that turn. None: all of them.
        window: Keys a query of a sliding layer sees, itself included. None: no layer slides.
        sliding: One bool a layer: whether it has the window. Empty: all have it, if there is one.
        attention_scale: What scores are multiplied by. None: `head_dim ** -0.5`.
        attention_softcap: c of `c tanh(score / c)`; None: no cap.
        logit_softcap: The same for the logits.
        bos_id: Token that starts a text, if any.
        eos_ids: Tokens that end a text.
        pad_id: Token that fills up a batch, if any.

    Raises:
        ValueError: If sizes contradict each other, or a name is unknown.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=128)
        >>> config.head_dim, config.attention_scale  # width / num_heads, head_dim ** -0.5
        (16, 0.25)
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int
    max_tokens: int = 2048
    family: str = "llama"
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = True
    embedding_scale: float = 1.0
    positions: str = "rope"
    position_offset: int = 0
    rope: Rope = Rope()
    rope_local: Rope | None = None
    rotary_dim: int | None = None
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        """Fill in what follows from the rest, and check the values."""
        for name in ("vocab_size", "width", "num_layers", "num_heads", "mlp_width", "max_tokens"):
            checks.integer(name, getattr(self, name))
        self._default("num_kv_heads", self.num_heads)
        self._default("head_dim", self.width // self.num_heads)
        self._default("rotary_dim", self.head_dim)
        self._default("attention_scale", float(self.head_dim) ** -0.5)  # type: ignore[arg-type]
        if self.window is not None and not self.sliding:
            object.__setattr__(self, "sliding", (True,) * self.num_layers)
        self._check_names()
        self._check_sizes()

    def _default(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check_names(self) -> None:
        checks.choice("norm", self.norm, NORMS)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("positions", self.positions, POSITIONS)

    def _check_sizes(self) -> None:
        for name in ("num_kv_heads", "head_dim"):
            checks.integer(name, getattr(self, name))
        if self.num_heads % self.kv_heads:
            checks.fail("num_kv_heads", f"divide num_heads = {self.num_heads}", f"is {self.num_kv_heads}")
        checks.integer("rotary_dim", self.rotary_dim, low=2, high=self.head_dim)
        if self.rotary % 2:
            checks.fail("rotary_dim", "be even", f"is {self.rotary_dim}", "Channels turn in pairs.")
        if self.window is not None:
            checks.integer("window", self.window)
        if self.sliding and len(self.sliding) != self.num_layers:
            checks.fail("sliding", f"have one bool for each of {self.num_layers} layers", f"has {len(self.sliding)}")
        if any(self.sliding) and self.window is None:
            checks.fail("window", "be an integer where layers slide", "is None")
        if self.shared_norm and not self.parallel:
            checks.fail("shared_norm", "be False unless the block is parallel", "is True")

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def rotary(self) -> int:
        """Channels of a head that turn with the position."""
        return self.rotary_dim or self.head_width

    @property
    def score_scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_width**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def mixes_windows(self) -> bool:
        """Whether some layers slide and others do not."""
        return len(set(self.sliding)) > 1

    @property
    def shapes(self) -> PyTree:
        """The tree of parameter shapes.

        A dict of shapes: "embedding" (vocab_size, width), "final_norm" (width,), "layers", a dict of shapes that all
        begin with num_layers, and, where the model has them, "head" (width, vocab_size), "head_bias",
        "final_norm_bias" and "position_embedding".

        Example:
            >>> Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128).shapes["layers"]["up"]
            (2, 64, 128)
        """
        found: dict[str, Any] = {
            "embedding": (self.vocab_size, self.width),
            "layers": {name: (self.num_layers, *size) for name, size in _layer_shapes(self).items()},
            "final_norm": (self.width,),
        }
        if self.norm == "layer":
            found["final_norm_bias"] = (self.width,)
        if self.positions == "learned":
            found["position_embedding"] = (self.max_tokens + self.position_offset, self.width)
        if not self.tied:
            found["head"] = (self.width, self.vocab_size)
        if self.head_bias:
            found["head_bias"] = (self.vocab_size,)
        return found

    @property
    def stems(self) -> Mapping[str, str]:
        """What the family calls the tensor of each parameter: name, such as "q" -> tensor, `{i}` for the layer."""
        return family(self.family).stems

    @property
    def places(self) -> "dict[str, Place]":
        """Where each parameter lies in a checkpoint of the family: path, such as "layers.q" -> its place."""
        from nvcim_jax.models.layout import places  # which describes a config

        return places(self)

    @property
    def num_params(self) -> int:
        """Number of parameters.

        Example:
            >>> config = Config(vocab_size=10, width=4, num_layers=1, num_heads=1, mlp_width=3)
            >>> config.num_params  # 40 embedding + 64 attention + 36 feed-forward + 12 norms
            152
        """
        sizes = jax.tree.leaves(self.shapes, is_leaf=lambda node: isinstance(node, tuple))
        return sum(math.prod(size) for size in sizes)

    def check_tokens(self, argument: str, ids: Any) -> None:
        """Check that token ids have a row in the embedding; traced ones pass.

        Raises:
            ValueError: If one has none.
        """
        if not checks.is_concrete(ids):
            return
        values = np.asarray(ids)
        outside = values[(values < 0) | (values >= self.vocab_size)]
        if outside.size:
            checks.fail(
                argument,
                f"lie in [0, {self.vocab_size}), the rows of the embedding",
                f"holds {outside[0]}",
                "Is the tokenizer that of the model?",
            )


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
