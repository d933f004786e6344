"""A short prompt and a low-rank change of the embeddings behind it: DePT."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import as_partial
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.starts import STARTS
from nvcim_jax.types import Key

__all__ = ["DeptOptions", "DeptState", "dept"]


class DeptState(NamedTuple):
    """Hold what DePT tunes; the two parts have learning rates of their own, see `dept`.

    Attributes:
        prompt: (virtual tokens, width).
        a: (most tokens, rank).
        b: (rank, width).
    """

    prompt: jax.Array
    a: jax.Array
    b: jax.Array


@checks.frozen_config
class DeptOptions:
    """Static options of `dept`, under the same names."""

    kind: ClassVar[str] = "dept"
    num_virtual: int = 8
    rank: int = 4
    max_tokens: int = 256

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_virtual", "rank", "max_tokens"):
            checks.integer(name, getattr(self, name))


def _init(options: DeptOptions, start: Any, key: Key, lm: LM, examples: Examples, weights: Any = None) -> DeptState:
    prompt_key, a_key = jax.random.split(key)
    counts = jnp.ones(len(examples.ids), jnp.float32) if weights is None else weights
    rows = start(prompt_key, lm, examples, counts, options.num_virtual).astype(jnp.float32)
    a = jax.random.normal(a_key, (options.max_tokens, options.rank)) * 0.02
    return DeptState(rows, a, jnp.zeros((options.rank, lm.config.width), jnp.float32))


def _apply(options: DeptOptions, alpha: jax.Array, state: DeptState, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    x = inputs.x
    tokens = x.shape[-2]
    if tokens > options.max_tokens:
        checks.fail("max_tokens", f"be at least {tokens}, the length of the texts", f"is {options.max_tokens}")
    change = (state.a @ state.b) * (alpha / options.rank**0.5)
    if inputs.mask is None:
        added = change[None, :tokens]
    else:
        added = change[jnp.maximum(jnp.cumsum(inputs.mask.astype(jnp.int32), axis=-1) - 1, 0)]
    if inputs.num_text is not None:
        text = jnp.arange(tokens)[None] < inputs.num_text[:, None]
        added = jnp.where(text[..., None], added, 0.0)
    return lm, models.prepend(state.prompt, inputs._replace(x=x + added.astype(x.dtype)))


def _rows(state: DeptState) -> jax.Array:
    width = state.prompt.shape[-1]
    flat = jnp.ravel(state.a)
    a = jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)
    return jnp.concatenate([state.prompt, state.b, a])


def _from_rows(options: DeptOptions, rows: jax.Array) -> DeptState:
    prompt, b, a = jnp.split(rows, [options.num_virtual, options.num_virtual + options.rank])
    size = options.max_tokens * options.rank
    return DeptState(prompt, jnp.ravel(a)[:size].reshape(options.max_tokens, options.rank), b)


@checked
def dept(
    num_virtual: int = 8,
    rank: int = 4,
    max_tokens: int = 256,
    *,
    alpha: ArrayLike | None = None,
    start: str | Callable[..., jax.Array] = "text",
) -> Adapter:
    """Return the adapter of DePT: a short prompt, and a low-rank change of the embeddings by their place.

    `[S; emb(x)_i + alpha / sqrt(rank) (A B)_i]`, i counted from a text's first token; A ~ N(0, 0.02^2) and B = 0 at the
    start. It stores `num_virtual x width + rank (max_tokens + width)` values, less than a prompt of more tokens. The
    published form has two learning rates: `optax.multi_transform` over a `DeptState` of labels. The change covers the
    text alone, as an encoder's input in the paper: tokens of an answer have none, whether `answer_loss`, `rank` or
    `generate` put them behind it. Of plain text, every token of which is predicted, that is the first one.

    Args:
        num_virtual: Virtual tokens.
        rank: Rank of the change.
        max_tokens: Longest text; a longer one is refused.
        alpha: See above, >= 0; sqrt(rank) by default. Traced.
        start: Where the prompt starts, as in `prompt`.

    Returns:
        The adapter; two with the same static arguments are equal to `jax.jit`.

    Raises:
        ValueError: If a number is out of range, or there is no such start.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.dept(4, 2, 24)
        >>> adapter.rows_shape(lm)  # 4 + 2 + 24 x 2 / 32, rounded up
        (8, 32)

    References:
        Z. Shi and A. Lipani, "DePT: decomposed prompt tuning for parameter-efficient fine-tuning", arXiv:2309.05173,
        section 2.2; the scale alpha / sqrt(rank), and where A starts, are inferred [I].
    """
    options = DeptOptions(num_virtual=num_virtual, rank=rank, max_tokens=max_tokens)
    if isinstance(start, str):
        checks.choice("start", start, STARTS)
        start = STARTS[start]
    size = options.rank**0.5 if alpha is None else alpha
    checks.number("alpha", size, low=0.0)
    return Adapter(
        Partial(_init, options, as_partial(start)),
        Partial(_apply, options, jnp.asarray(size, jnp.float32)),
        Partial(_rows),
        Partial(_from_rows, options),
    )
