"""Where a soft prompt starts: a text, the vocabulary, hidden states, or labelled examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nvcim_jax import checks, models
from nvcim_jax.models import embed, hidden
from nvcim_jax.types import Key, Scalar

__all__ = ["INITS", "deal_examples", "init_activations", "init_examples", "init_text", "init_vocabulary"]

INITS = ("text", "vocabulary", "activations", "examples")
"""Rows of a text's tokens, rows drawn from the vocabulary, hidden states of a text, or several examples a token."""


def init_text(lm: models.LM, ids: Int[Array, " tokens"], num: int) -> Float[Array, "num width"]:
    """Return the embeddings of a text's tokens, repeated or cut to `num`.

    Args:
        lm: The model.
        ids: Tokens of the text.
        num: Virtual tokens.
    """
    checks.integer("num", num)
    return embed(lm, jnp.resize(ids, (num,)))


def init_vocabulary(key: Key, lm: models.LM, num: int) -> Float[Array, "num width"]:
    """Return the embeddings of `num` different tokens drawn from the vocabulary.

    Args:
        key: A key.
        lm: The model.
        num: Virtual tokens, at most the vocabulary.
    """
    checks.integer("num", num, high=lm.config.vocab_size)
    return embed(lm, jax.random.permutation(key, lm.config.vocab_size)[:num])


def init_activations(lm: models.LM, ids: Int[Array, " tokens"], num: int, *, stop: int) -> Float[Array, "num width"]:
    """Return the residual stream of a text's first `num` tokens after `stop` blocks, at the size of its embeddings.

    Args:
        lm: The model.
        ids: Tokens of the text, repeated if there are fewer than `num`.
        num: Virtual tokens.
        stop: Blocks to run.
    """
    rows = init_text(lm, ids, num)
    states, _ = hidden(lm, rows, stop=stop)
    size = jnp.linalg.norm(rows, axis=-1).mean() / jnp.linalg.norm(states, axis=-1).mean()
    return states * size


def deal_examples(answers: Sequence[str], num: int) -> np.ndarray:
    """Deal examples out over virtual tokens, those of one answer to tokens of their own where there is room.

    Token j holds answer j modulo the number of answers, in alphabetical order, and its examples in turn; one that gets
    none holds all examples of its answer. With more answers than tokens, a token holds several.

    Args:
        answers: Answer of each example, at least one.
        num: Virtual tokens.

    Returns:
        1 where a token holds an example (num, examples), float32.

    Example:
        >>> deal_examples(["b", "a", "b"], 3).astype(int).tolist()  # tokens of "a", of "b", and again of "a"
        [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    """
    checks.integer("num", num)
    if not answers:
        checks.fail("answers", "hold at least one answer", "is empty")
    names = {name: i for i, name in enumerate(sorted(set(answers)))}
    held = np.zeros((num, len(answers)), np.float32)
    for name, i in names.items():
        tokens = range(i % num, num, len(names)) if i < num else [i % num]
        own = [j for j, answer in enumerate(answers) if answer == name]
        for turn, token in enumerate(tokens):
            held[token, own[turn :: len(tokens)] or own] = 1.0
    return held


def init_examples(
    inputs: Float[Array, "examples width"],
    answers: Float[Array, "examples width"],
    held: Float[Array, "num examples"],
    *,
    layout: models.SoftTokens,
    size: Scalar | float = 1.0,
) -> Float[Array, "num width"]:
    """Return virtual tokens that hold several labelled examples each, see `models.soft_tokens`.

    Args:
        inputs: Sum of the embeddings of each input's tokens.
        answers: Sum of the embeddings of each answer's tokens, later ones weighted down as the layout says.
        held: Which token holds which examples, see `deal_examples`.
        layout: How the model was taught to read soft tokens.
        size: Root mean square of the entries, where the layout names none.
    """
    return models.soft_tokens(held @ inputs, held @ answers, layout=layout, size=size)
