"""The soft prompt: virtual tokens before every text. The first member of the adapters."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import as_partial
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.rows import itself
from nvcim_jax.tuning.starts import STARTS
from nvcim_jax.types import Key

__all__ = ["check_virtual", "prompt"]


@checks.frozen_config
class _Size:
    """Virtual tokens of a prompt."""

    kind: ClassVar[str] = "prompt"
    num_virtual: int

    def __post_init__(self) -> None:
        """Check the number."""
        checks.integer("num_virtual", self.num_virtual)


def check_virtual(num_virtual: int, prompt: jax.Array) -> None:
    """Refuse rows of something else, such as another adapter's, which would pass for virtual tokens."""
    if prompt.shape[-2] != num_virtual:
        found = f"has {prompt.shape[-2]}"
        checks.fail("state", f"have {num_virtual} virtual tokens", found, "Is it the adapter that it was tuned with?")


def _init(size: _Size, start: Any, key: Key, lm: LM, examples: Examples, weights: Any = None) -> jax.Array:
    counts = jnp.ones(len(examples.ids), jnp.float32) if weights is None else weights
    return start(key, lm, examples, counts, size.num_virtual).astype(jnp.float32)


def _apply(size: _Size, state: jax.Array, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    check_virtual(size.num_virtual, state)
    return lm, models.prepend(state, inputs)


@checked
def prompt(num_virtual: int = 8, start: str | Callable[..., jax.Array] = "text") -> Adapter:
    """Return the adapter of prompt tuning: a state is the prompt S (virtual tokens, width), its rows are its tokens.

    Args:
        num_virtual: Virtual tokens.
        start: Where a prompt starts: a function, see `nvcim_jax.tuning.starts`, or a name out of `STARTS`.

    Returns:
        The adapter; two with the same arguments are equal to `jax.jit`.

    Raises:
        ValueError: If there is no such start, or the number is not positive.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.prompt(4)
        >>> state = adapter.init(jax.random.key(1), lm, tuning.examples([[1, 5, 6]], [[8, 2]]))
        >>> _, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, jnp.array([[1, 5, 6]]))))
        >>> state.shape, inputs.x.shape
        ((4, 32), (1, 7, 32))

    References:
        B. Lester et al., "The power of scale for parameter-efficient prompt tuning", arXiv:2104.08691.
    """
    if isinstance(start, str):
        checks.choice("start", start, STARTS)
        start = STARTS[start]
    size = _Size(num_virtual=num_virtual)
    return Adapter(Partial(_init, size, as_partial(start)), Partial(_apply, size), Partial(itself), Partial(itself))
