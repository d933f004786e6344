"""Where a soft prompt starts: a text, the vocabulary, hidden states, or labelled examples.

A start is a function `start(key, lm, examples, weights, num) -> (num, width)`; `weights` (examples,) say how much each
example counts, and the one that counts most (the first of them) is the one whose text a start takes.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax import checks, models
from nvcim_jax.models import LM
from nvcim_jax.signature import checked
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.types import Key

__all__ = [
    "STARTS",
    "assign_examples",
    "start_activations",
    "start_examples",
    "start_text",
    "start_vocabulary",
]


def _text_tokens(examples: Examples, weights: jax.Array, num: int) -> jax.Array:
    """Return `num` tokens of the example that counts most, its answer first, repeated if there are fewer.

    The answer first: it is the part that a prompt must not lose when the text is longer than the prompt.
    """
    ids, where, targets = (a[jnp.argmax(weights)] for a in (examples.ids, examples.where, examples.targets))
    # The token that ends a text is predicted, but stands nowhere.
    text, answer = where[0] + 1, (targets >= 0).sum(dtype=jnp.int32) - 1
    place = jnp.arange(num, dtype=jnp.int32) % jnp.maximum(text + answer, 1)
    return ids[jnp.where(place < answer, text + place, place - answer)]


@checked
def start_text(
    key: Key, lm: LM, examples: Examples, weights: Float[Array, " examples"], num: int
) -> Float[Array, "num width"]:
    """Return the embeddings of the tokens of the example that counts most, answer first, repeated or cut to `num`."""
    del key
    checks.integer("num", num)
    return models.embed(lm, _text_tokens(examples, weights, num))


@checked
def start_vocabulary(
    key: Key, lm: LM, examples: Examples, weights: Float[Array, " examples"], num: int
) -> Float[Array, "num width"]:
    """Return the embeddings of `num` different tokens drawn from the vocabulary.

    Raises:
        ValueError: If there are fewer.
    """
    del examples, weights
    checks.integer("num", num, high=lm.config.vocab_size)
    return models.embed(lm, jax.random.permutation(key, lm.config.vocab_size)[:num])


@checks.frozen_config
class _Blocks:
    """Blocks to run; None is all of them."""

    stop: int | None = None


def _activations(
    blocks: _Blocks, key: Key, lm: LM, examples: Examples, weights: jax.Array, num: int
) -> Float[Array, "num width"]:
    rows = start_text(key, lm, examples, weights, num)
    states, _ = models.hidden(lm, rows, stop=lm.config.num_layers if blocks.stop is None else blocks.stop)
    size = jnp.linalg.norm(rows, axis=-1).mean() / jnp.linalg.norm(states, axis=-1).mean()
    return states * size


@checked
def start_activations(stop: int | None = None) -> Partial:
    """Return a start: the residual stream of `start_text` after `stop` blocks, at the size of its embeddings.

    Args:
        stop: Number of blocks to run; None: all.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, examples = models.init(jax.random.key(0), config=config), tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> jax.eval_shape(lambda: start_activations()(jax.random.key(1), lm, examples, jnp.ones(1), 4)).shape
        (4, 32)
    """
    return Partial(_activations, _Blocks(stop=stop))


@checked
def assign_examples(
    label: Int[Array, " examples"], chosen: Bool[Array, " examples"], num: int
) -> Float[Array, "num examples"]:
    """Assign examples to virtual tokens, those of one answer to tokens of their own where there is room.

    Token j holds answer j modulo the number of answers, in the order of their labels, and its examples in turn; one
    that gets none holds all examples of its answer. With more answers than tokens, a token holds several.

    Args:
        label: Number of each example's answer, 0 to examples - 1.
        chosen: Examples that take part.
        num: Virtual tokens.

    Returns:
        1 where a token holds an example (num, examples), float32.

    Example:
        >>> held = assign_examples(jnp.array([1, 0, 1]), jnp.ones(3, bool), 3)
        >>> held.astype(int).tolist()  # a token of answer 0, one of 1, and again one of 0
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    checks.integer("num", num)
    size = label.shape[0]
    same = (label[:, None] == label[None, :]) & chosen[None, :]  # examples of the same answer
    present = jnp.zeros(size, bool).at[label].max(chosen)
    rank = (jnp.cumsum(present) - 1)[label][None, :]
    answers = jnp.maximum(present.sum(), 1)
    before = jnp.tril(same, -1).sum(axis=1)[None, :]
    count = same.sum(axis=1)[None, :]
    token = jnp.arange(num)[:, None]
    tokens = jnp.where(rank < num, (num - 1 - rank) // answers + 1, 1)  # of the example's answer
    own = jnp.where(rank < num, (token >= rank) & ((token - rank) % answers == 0), token == rank % num)
    turn = jnp.where(rank < num, (token - rank) // answers, 0)
    held = own & ((before % tokens == turn) | (turn >= count)) & chosen[None, :]
    return held.astype(jnp.float32)


@checked
def start_examples(
    key: Key, lm: LM, examples: Examples, weights: Float[Array, " examples"], num: int
) -> Float[Array, "num width"]:
    """Return virtual tokens that hold the examples of positive weight, see `models.soft_tokens`.

    Raises:
        ValueError: If `examples.words` is missing.
    """
    del key
    words = examples.words
    if words is None:
        checks.fail("examples.words", "hold sums of embeddings for `start_examples`", "is None", "See `tuning.Words`.")
    held = assign_examples(words.label, weights > 0, num)
    return models.soft_tokens(held @ words.inputs, held @ words.answers, layout=lm.soft_tokens, size=words.size)


STARTS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "text": start_text,
        "vocabulary": start_vocabulary,
        "activations": start_activations(),
        "examples": start_examples,
    }
)
"""Rows of a text's tokens, rows drawn from the vocabulary, hidden states of a text, or several examples a token."""
