"""From records to arrays: token ids of queries and answers, and the features by which texts are compared."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax import checks, models, selection, tuning
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline.config import Config

__all__ = [
    "Queries",
    "Words",
    "answer_ids",
    "label_candidates",
    "make_examples",
    "make_queries",
    "make_words",
    "pad_rows",
    "query_ids",
    "text_features",
]


class Queries(NamedTuple):
    """Hold queries, padded on the left so that a prompt can stand right before each.

    Attributes:
        ids: Tokens (queries, tokens), int32.
        mask: Which are real (queries, tokens), bool.
    """

    ids: jax.Array
    mask: jax.Array


def query_ids(words: str, lm: LM, text: Text) -> list[int]:
    """Return the tokens of one query: the start token, if the model has one, prefix, input (cut), suffix."""
    start = [] if lm.config.bos_id is None else [lm.config.bos_id]
    template = text.template
    found = [*start, *text.encode(template.prefix), *text.encode_input(words), *text.encode(template.suffix)]
    lm.config.check_tokens("text.tokenizer", found)
    return found


def answer_ids(words: str, text: Text) -> list[int]:
    """Return the tokens of one answer, without the token that ends it."""
    return text.encode(text.template.answer + words)


def end_id(lm: LM) -> int:
    """Return the token that ends a text."""
    if not lm.config.eos_ids:
        checks.fail("lm", "have a token that ends a text", "has no eos_token_id in its config.json")
    return lm.config.eos_ids[0]


def make_queries(texts: Sequence[str], lm: LM, text: Text, *, multiple: int = 8) -> Queries:
    """Encode queries, padded on the left to a multiple of `multiple` tokens.

    Args:
        texts: One or more inputs.
        lm: The model.
        text: Its tokenizer, and the text form of the task.
        multiple: Lengths are rounded up to it, so that batches share one compilation.

    Returns:
        The batch.

    Raises:
        ValueError: If there is no text, or the model has no tokenizer.
    """
    if isinstance(texts, str) or not texts:
        checks.fail("texts", "be a list of at least one text", f"is {texts!r}", 'Write ["..."].')
    return pad_rows([query_ids(words, lm, text) for words in texts], multiple=multiple)


def pad_rows(rows: Sequence[Sequence[int]], *, multiple: int = 8) -> Queries:
    """Pad token ids on the left to a multiple of `multiple` tokens.

    Args:
        rows: Token ids of each text.
        multiple: Lengths are rounded up to it, so that batches share one compilation.
    """
    size = -(-max(1, *map(len, rows)) // multiple) * multiple
    ids, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :], mask[i, -len(row) :] = row, True
    return Queries(jnp.asarray(ids), jnp.asarray(mask))


def make_examples(records: Sequence[Any], lm: LM, text: Text, *, multiple: int = 16) -> tuning.Examples:
    """Encode records with their answers, for tuning; sizes are rounded up, so that buffers share one compilation.

    Args:
        records: Things with `input` and `output`, such as `nvcim_jax.data.Record`.
        lm: The model.
        text: Its tokenizer, and the text form of the task.
        multiple: Lengths are rounded up to it.

    Returns:
        The batch; the token that ends a text is part of each answer.

    Raises:
        ValueError: If a record has no answer.
    """
    for record in records:
        if not record.output:
            checks.fail("records", "have an output to learn from", f"record {getattr(record, 'id', '?')!r} has none")
    texts = [query_ids(record.input, lm, text) for record in records]
    answers = [[*answer_ids(record.output, text), end_id(lm)] for record in records]
    lm.config.check_tokens("text.tokenizer", np.concatenate(answers))
    longest = max(len(t) + len(a) - 1 for t, a in zip(texts, answers, strict=True))
    room = max(map(len, answers))
    return tuning.examples(texts, answers, num_tokens=-(-longest // multiple) * multiple, num_answer=-(-room // 4) * 4)


class Words(NamedTuple):
    """Hold what the words of records add up to.

    Attributes:
        inputs: Sum of the embeddings of each input's tokens (records, width).
        answers: The same of the answers, later tokens weighted down as the model's soft tokens have it.
        size: Root mean square of the embeddings' entries.
    """

    inputs: jax.Array
    answers: jax.Array
    size: jax.Array


@jax.jit
def _word_sums(lm: LM, ids: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of each row's embeddings, and the root mean square of those that count."""
    x = models.embed(lm, ids).astype(jnp.float32)
    real = (weights > 0).astype(jnp.float32)
    mean = (jnp.square(x).mean(axis=-1) * real).sum() / jnp.maximum(real.sum(), 1.0)
    return (x * weights[..., None]).sum(axis=1), jnp.sqrt(mean)


def make_words(records: Sequence[Any], lm: LM, text: Text, *, multiple: int = 8) -> Words:
    """Add up the embeddings of the words of each record: what `init="examples"` starts from.

    Args:
        records: Things with `input` and `output`.
        lm: The model.
        text: Its tokenizer, and the text form of the task.
        multiple: Lengths are rounded up to it, so that buffers share one compilation.
    """

    def sums(rows: list[list[int]], decay: float) -> tuple[jax.Array, jax.Array]:
        size = -(-max(1, *map(len, rows)) // multiple) * multiple
        ids, weights = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], weights[i, : len(row)] = row, decay ** np.arange(len(row))
        lm.config.check_tokens("text.tokenizer", ids)
        return _word_sums(lm, jnp.asarray(ids), jnp.asarray(weights))

    inputs, size = sums([text.encode_input(record.input) for record in records], 1.0)
    answers, _ = sums([answer_ids(record.output, text) for record in records], lm.soft_tokens.label_decay)
    return Words(inputs, answers, size)


def label_candidates(labels: Sequence[str], lm: LM, text: Text) -> models.Candidates:
    """Lay out the labels among which answers are ranked."""
    rows = [answer_ids(label, text) for label in labels]
    lm.config.check_tokens("text.tokenizer", [token for row in rows for token in row])
    return models.candidates(rows, end=end_id(lm))


@partial(jax.jit, static_argnames="num")
def text_features(
    lm: LM,
    ids: Int[Array, "texts tokens"],
    mask: Bool[Array, "texts tokens"],
    *,
    config: Config,
    num: int | None = None,
) -> Float[Array, "texts num width"]:
    """Return each text as `num` vectors, by which texts are compared.

    Args:
        lm: The model.
        ids: Tokens, padded on either side.
        mask: Which are real.
        config: `features` says what is averaged: token embeddings, hidden states, or the last token's alone.
        num: Vectors a text; `config.search_tokens` by default. More than there are tokens repeats them.

    Returns:
        (texts, num, width).
    """
    num = config.search_tokens if num is None else num
    x = models.embed(lm, ids)
    if config.features != "embedding":
        x, _ = models.hidden(lm, models.Inputs(x, mask), stop=config.feature_layers)
    if config.features == "last":
        last = jnp.argmax(jnp.where(mask, jnp.arange(mask.shape[1])[None, :], -1), axis=1)
        mask = jnp.arange(mask.shape[1])[None, :] == last[:, None]
    return jax.vmap(lambda x, mask: selection.pool_tokens(x, mask, num))(x, mask)
