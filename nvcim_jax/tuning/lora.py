"""Low-rank changes of a model's matrices: LoRA, rsLoRA and DoRA."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.models import LM, Config, Inputs
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.rows import itself, pack, unpack
from nvcim_jax.tuning.targets import changed_layers, check_targets, default_groups, matrices
from nvcim_jax.tuning.weights import LowRank, column_sizes
from nvcim_jax.types import Key

__all__ = ["LoraOptions", "lora"]


@checks.frozen_config
class LoraOptions:
    """Static options of `lora`, under the same names."""

    kind: ClassVar[str] = "lora"
    rank: int = 8
    targets: tuple[str, ...] | None = None
    rs: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        """Check the rank."""
        checks.integer("rank", self.rank)

    def groups(self, config: Config) -> tuple[str, ...]:
        """Return the targets in a model, those of a group joined by "+"."""
        return default_groups(config) if self.targets is None else check_targets(self.targets, config, groups=True)

    def shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of a state: `a`, `b` and (DoRA) `magnitude` of each group."""
        known, found = matrices(config), {}
        for group in self.groups(config):
            names = group.split("+")
            layers, inputs, _ = known[names[0]]
            outputs = sum(known[name][2] for name in names)
            found[f"{group}.a"] = (layers, inputs, self.rank)
            found[f"{group}.b"] = (layers, self.rank, outputs)
            if self.dora:
                found[f"{group}.magnitude"] = (layers, outputs)
        return found

    def parts(self, state: jax.Array, config: Config) -> dict[str, jax.Array]:
        """Return the arrays of a state by name."""
        return unpack(state, self.shapes(config), config)

    def pack(self, parts: Mapping[str, Any], config: Config) -> jax.Array:
        """Return the state that holds some arrays."""
        return pack(parts, self.shapes(config), config)


def _pieces(group: str, config: Config) -> dict[str, slice]:
    """Return where the outputs of each matrix of a group lie."""
    names, known = group.split("+"), matrices(config)
    ends = np.cumsum([0, *(known[name][2] for name in names)]).tolist()
    return {name: slice(low, high) for name, (low, high) in zip(names, pairwise(ends), strict=True)}


def _sizes(leaf: Any) -> jax.Array:
    """Return the norms of all columns of a stack (layers, outputs), one layer at a time."""
    return jax.lax.scan(lambda none, w: (none, column_sizes(w)), None, leaf)[1]


def _init(
    options: LoraOptions, alpha: jax.Array, key: Key, lm: LM, examples: Examples, weights: Any = None
) -> jax.Array:
    del alpha, examples, weights
    shapes, parts = options.shapes(lm.config), {}
    for i, (name, shape) in enumerate(shapes.items()):
        group, part = name.rsplit(".", 1)
        if part == "a":
            bound = shape[1] ** -0.5
            parts[name] = jax.random.uniform(jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound)
        elif part == "b":
            parts[name] = jnp.zeros(shape, jnp.float32)
        else:
            parts[name] = jnp.concatenate([_sizes(lm.params["layers"][n]) for n in group.split("+")], axis=-1)
    return options.pack(parts, lm.config)


def _apply(options: LoraOptions, alpha: jax.Array, state: jax.Array, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    parts, layers, changed = options.parts(state, lm.config), lm.params["layers"], {}
    scale = alpha / (options.rank**0.5 if options.rs else options.rank)
    scales = jnp.broadcast_to(scale, (lm.config.num_layers,))
    for group in options.groups(lm.config):
        a, b, m = (parts.get(f"{group}.{part}") for part in ("a", "b", "magnitude"))
        assert a is not None
        assert b is not None
        for name, at in _pieces(group, lm.config).items():
            own = None if m is None else m[..., at]
            changed[name] = LowRank(layers[name], a, b[..., at], scales, own)
    return lm.replace(params=changed_layers(lm.params, changed)), inputs


@checked
def lora(
    rank: int = 8,
    alpha: ArrayLike | None = None,
    *,
    targets: Sequence[str] | None = None,
    rs: bool = False,
    dora: bool = False,
) -> Adapter:
    """Return the adapter of LoRA: `W + s A B`, A ~ U(+-1/sqrt(inputs)) and B = 0 at the start.

    `s = alpha / rank`, with `rs` (rsLoRA) `alpha / sqrt(rank)`. With `dora`, each column of the sum is brought to a
    length of its own, which is tuned too: `m (W + s A B) / |W + s A B|`; gradients take the lengths as constants, and
    what has none stays as it is. W may be any weight: floats, packed codes, memory cells. A state holds A, B and m one
    after the other as rows of the model's width: what a memory stores; `adapter.parts(state, lm)` gives them by name.
    There is no dropout.

    Args:
        rank: Rank of the changes.
        alpha: See above, >= 0; the rank by default, so that s = 1 without `rs`. Traced.
        targets: Matrices of the blocks: out of q, k, v, o, gate, up, down. Names joined by "+" share one A, as where a
            family keeps them in one tensor. None: q and v, with all that the family keeps in one tensor with them.
        rs: Whether the scale is that of rsLoRA.
        dora: Whether columns have lengths of their own.

    Returns:
        The adapter; two with the same static arguments are equal to `jax.jit`.

    Raises:
        ValueError: If a number is out of range, or (when it is used) a model has no such matrix.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.lora(4)
        >>> state = adapter.init(jax.random.key(1), lm, tuning.examples([[1, 5, 6]], [[8, 2]]), None)
        >>> state.shape, {name: part.shape for name, part in adapter.parts(state, lm).items()}["q.a"]
        ((32, 32), (2, 32, 4))

    References:
        E. Hu et al., "LoRA", arXiv:2106.09685; D. Kalajdzievski, "A rank stabilization scaling factor",
        arXiv:2312.03732; S.-Y. Liu et al., "DoRA", arXiv:2402.09353, eq. 5 and section 4.3 (constant lengths).
    """
    options = LoraOptions(rank=rank, targets=None if targets is None else tuple(targets), rs=rs, dora=dora)
    checks.number("alpha", options.rank if alpha is None else alpha, low=0.0)
    number = jnp.asarray(options.rank if alpha is None else alpha, jnp.float32)
    return Adapter(Partial(_init, options, number), Partial(_apply, options, number), Partial(itself), Partial(itself))
