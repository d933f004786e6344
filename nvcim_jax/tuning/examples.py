"""Labelled texts as arrays: what a prompt is tuned on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.models import IGNORE
from nvcim_jax.signature import checked

__all__ = ["Examples", "Words", "examples"]


class Words(NamedTuple):
    """Hold what the words of examples add up to, for prompts that start from them (`start_examples`).

    Attributes:
        inputs: Sum of the embeddings of each input's tokens (examples, width).
        answers: The same of the answers, later tokens weighted down as the model's soft tokens have it.
        size: Root mean square of the embeddings' entries.
        label: Number of each example's answer (examples,), int32.
    """

    inputs: jax.Array
    answers: jax.Array
    size: jax.Array
    label: jax.Array


class Examples(NamedTuple):
    """Hold texts with their answers, padded on the right.

    Attributes:
        ids: Tokens of text and answer (examples, tokens), int32; what pads is never looked at.
        where: Positions that predict the answer's tokens (examples, answer tokens), int32.
        targets: The tokens they predict (examples, answer tokens), int32; negative for padding.
        words: What their words add up to; None where nothing starts from it.
    """

    ids: jax.Array
    where: jax.Array
    targets: jax.Array
    words: Words | None = None


@checked
def examples(
    texts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    num_tokens: int | None = None,
    num_answer: int | None = None,
) -> Examples:
    """Lay out token ids of texts and answers as one batch.

    Args:
        texts: Tokens before each answer, at least one each.
        answers: Tokens of each answer, at least one each; the ending token among them, if one is wanted.
        num_tokens: Width of the table; the longest row by default. Fix it to share one compilation.
        num_answer: Room for answer tokens; the longest answer by default.

    Returns:
        The batch.

    Raises:
        ValueError: If there is nothing to lay out, the numbers differ, a row is empty, an answer has only negative
            tokens, which are ignored, or one does not fit.

    Example:
        >>> batch = examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
        >>> batch.ids.tolist(), batch.where.tolist(), batch.targets.tolist()
        ([[1, 5, 6, 8], [1, 7, 9, 0]], [[2, 3], [1, 2]], [[8, 2], [9, 2]])
    """
    if len(texts) != len(answers) or not texts:
        checks.fail("answers", "have one answer for each text", f"has {len(answers)} for {len(texts)} texts")
    if not all(map(len, texts)) or not all(map(len, answers)):
        checks.fail("texts", "have at least one token each, as the answers must", "hold an empty row")
    ignored = [i for i, answer in enumerate(answers) if max(answer) < 0]
    if ignored:
        checks.fail("answers", "have a token of 0 or more each, to be learned", f"answer {ignored[0]} has none")
    longest, most = max(len(t) + len(a) - 1 for t, a in zip(texts, answers, strict=True)), max(map(len, answers))
    width, room = num_tokens or longest, num_answer or most
    if longest > width or most > room:
        checks.fail(
            "num_tokens",
            f"be at least {longest}, and num_answer at least {most}",
            f"they are {width} and {room}",
            "Cut the texts before.",
        )
    ids = np.zeros((len(texts), width), np.int32)
    where = np.zeros((len(texts), room), np.int32)
    targets = np.full((len(texts), room), IGNORE, np.int32)
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        row = [*text, *answer[:-1]]
        ids[i, : len(row)] = row
        where[i, : len(answer)] = len(text) - 1 + np.arange(len(answer))
        targets[i, : len(answer)] = answer
    return Examples(jnp.asarray(ids), jnp.asarray(where), jnp.asarray(targets))
