"""All weights of a model as what is tuned."""

from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import Weight
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.types import Key, PyTree

__all__ = ["Whole", "full"]


class Whole(NamedTuple):
    """Hold the weights of a model while they are tuned.

    Attributes:
        params: As in `LM.params`.
    """

    params: PyTree


@checks.frozen_config
class _Full:
    """Nothing is chosen."""

    kind: ClassVar[str] = "full"


def _init(key: Key, lm: LM, examples: Examples, weights: Any = None) -> Whole:
    del key, examples, weights
    for path, leaf in jax.tree.flatten_with_path(lm.params, is_leaf=lambda leaf: isinstance(leaf, Weight))[0]:
        if isinstance(leaf, Weight):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            found = f"is a {type(leaf).__name__}"
            checks.fail(f"lm.params: {name}", "be an array to be tuned", found, "Tune an adapter around it.")
    return Whole(lm.params)


def _apply(options: _Full, state: Whole, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    del options
    return lm.replace(params=state.params), inputs


def _no_rows(state: Whole) -> jax.Array:
    del state
    return jnp.zeros((0, 0), jnp.float32)


def _not_from_rows(rows: jax.Array) -> NoReturn:
    del rows
    checks.fail("adapter", "have rows that a memory stores", "is that of all weights", "Use crossbar.on_chip.")


def full() -> Adapter:
    """Return the adapter that is the whole model: a state holds all of its weights, and a memory stores none of them.

    With `zeroth_order` they are tuned in about the memory of a forward pass.

    Returns:
        The adapter.

    Raises:
        ValueError: By its functions: if a weight is no array, or rows are asked for.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.full()
        >>> batch = tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> state = adapter.init(jax.random.key(1), lm, batch, None)
        >>> _, info = tuning.tune(jax.random.key(2), state, lm, batch, adapter=adapter)
        >>> bool(info.losses[-1] < 0.1 * info.losses[0])
        True
    """
    return Adapter(Partial(_init), Partial(_apply, _Full()), Partial(_no_rows), Partial(_not_from_rows))
