"""From records to arrays, once and on the host: token ids of queries and answers, and what texts are compared by."""

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
from nvcim_jax.signature import checked

__all__ = ["Buffer", "Queries", "make_buffer", "make_queries", "stack_buffers"]

_ANSWER_TOKENS, _QUERY_TOKENS = 4, 8
"""Lengths are rounded up to a multiple of these, so that buffers and batches share one compilation."""


class Buffer(NamedTuple):
    """Hold one buffer of records as arrays: all that `observe` looks at.

    Attributes:
        examples: Texts and answers, and what their words add up to where prompts start from them.
        features: Features by which texts are searched (records, key tokens, width).
        centres: What they are clustered by (records, width), or twice the width with `cluster_by='record'`.
    """

    examples: tuning.Examples
    features: jax.Array
    centres: jax.Array


class Queries(NamedTuple):
    """Hold queries as arrays, padded on the left so that a prompt can stand right before each.

    Attributes:
        ids: Tokens (queries, tokens), int32.
        mask: Which are real (queries, tokens), bool.
        features: Features by which they are searched (queries, key tokens, width).
        answers: The answers to choose from; None where the model writes.
    """

    ids: jax.Array
    mask: jax.Array
    features: jax.Array
    answers: models.Candidates | None = None


def room(longest: int) -> int:
    """Return the tokens of a table of examples: few sizes, so that buffers share a compilation, and little padding.

    16, 24, 32, ..., 128, and from there in steps of a sixteenth to an eighth of the length.
    """
    step = max(8, 2 ** (longest.bit_length() - 4))
    return max(16, -(-longest // step) * step)


def query_ids(words: str, lm: LM, text: Text) -> list[int]:
    """Return the tokens of one query: what the tokenizer puts before every text, prefix, input (cut), suffix."""
    template = text.template
    found = [*text.begin(), *text.encode(template.prefix), *text.encode_input(words), *text.encode(template.suffix)]
    if not found:
        fix = "Leave the text out, or give the template a prefix or a suffix."
        checks.fail("texts", "have at least one token with what stands around them", f"hold {words!r}", fix)
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


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    """Pad token ids on the left to a common length, and say which are real."""
    size = -(-max(1, *map(len, rows)) // _QUERY_TOKENS) * _QUERY_TOKENS
    ids, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :], mask[i, -len(row) :] = row, True
    return jnp.asarray(ids), jnp.asarray(mask)


@checks.frozen_config
class _Look:
    """How texts are looked at: the part of the options that their features depend on."""

    features: str
    layers: int
    num: int


@jax.jit
def _features(lm: LM, ids: jax.Array, mask: jax.Array, look: _Look) -> jax.Array:
    x = models.embed(lm, ids)
    if look.features != "embedding":
        x, _ = models.hidden(lm, models.Inputs(x, mask), stop=look.layers)
    if look.features == "last":
        last = jnp.argmax(jnp.where(mask, jnp.arange(mask.shape[1])[None, :], -1), axis=1)
        mask = jnp.arange(mask.shape[1])[None, :] == last[:, None]
    return jax.vmap(lambda x, mask: selection.pool_tokens(x, mask, look.num))(x, mask)


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
    size = config.search_tokens if num is None else num
    layers = lm.config.num_layers if config.feature_layers is None else config.feature_layers
    look = _Look(features=config.features, layers=min(layers, lm.config.num_layers), num=size)
    return _features(lm, ids, mask, look)


@checked
def make_queries(
    texts: Sequence[str],
    lm: LM,
    text: Text,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    labels: Sequence[str] | None = None,
) -> Queries:
    """Return queries, encoded and padded on the left, with their features and the answers to choose from.

    Args:
        texts: One or more inputs.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        config: Options of the pipeline.
        labels: The answers to choose from; None where the model writes.

    Returns:
        The queries.

    Raises:
        ValueError: If there is no text or one without tokens, no label or two of the same tokens, or the model has no
            tokenizer.

    Example:
        >>> from nvcim_jax import pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> config = pipeline.Config(num_virtual=2)
        >>> queries = pipeline.make_queries(["pay", "loan"], lm, text, config=config, labels=["yes", "no", "maybe"])
        >>> int(jnp.diff(queries.mask.sum(axis=1))[0]), bool(queries.mask[:, -1].all()), len(queries.answers.first)
        (1, True, 3)
    """
    if isinstance(texts, str) or not texts:
        checks.fail("texts", "be a list of at least one text", f"is {texts!r}", 'Write ["..."].')
    ids, mask = pad_rows([query_ids(words, lm, text) for words in texts])
    answers = None
    if labels is not None:
        rows = [answer_ids(label, text) for label in labels]
        lm.config.check_tokens("text.tokenizer", [token for row in rows for token in row])
        _check_different(labels, rows)
        answers = models.candidates(rows, end=end_id(lm))
    return Queries(ids, mask, text_features(lm, ids, mask, config=config), answers)


def _check_different(labels: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Refuse labels that the model cannot tell apart."""
    owners: dict[tuple[int, ...], str] = {}
    for label, row in zip(labels, rows, strict=True):
        if tuple(row) in owners:
            found = f"{owners[tuple(row)]!r} and {label!r} have the same"
            checks.fail("labels", "have tokens of their own each", found, "Merge them or reword one.")
        owners[tuple(row)] = label


def _examples(records: Sequence[Any], lm: LM, text: Text) -> tuning.Examples:
    """Encode records with their answers; the token that ends a text is part of each answer."""
    for record in records:
        if not record.output:
            checks.fail("records", "have an output to learn from", f"record {getattr(record, 'id', '?')!r} has none")
    texts = [query_ids(record.input, lm, text) for record in records]
    answers = [[*answer_ids(record.output, text), end_id(lm)] for record in records]
    lm.config.check_tokens("text.tokenizer", np.concatenate(answers))
    longest = max(len(t) + len(a) - 1 for t, a in zip(texts, answers, strict=True))
    most = max(map(len, answers))
    return tuning.examples(
        texts,
        answers,
        num_tokens=room(longest),
        num_answer=-(-most // _ANSWER_TOKENS) * _ANSWER_TOKENS,
    )


@jax.jit
def _word_sums(lm: LM, ids: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weighted sum of each row's embeddings, and the root mean square of those that count."""
    x = models.embed(lm, ids).astype(jnp.float32)
    real = (weights > 0).astype(jnp.float32)
    mean = (jnp.square(x).mean(axis=-1) * real).sum() / jnp.maximum(real.sum(), 1.0)
    return (x * weights[..., None]).sum(axis=1), jnp.sqrt(mean)


def _words(records: Sequence[Any], lm: LM, text: Text) -> tuning.Words:
    """Add up the embeddings of the words of each record, and number the answers in alphabetical order."""

    def sums(rows: list[list[int]], decay: float) -> tuple[jax.Array, jax.Array]:
        size = -(-max(1, *map(len, rows)) // _QUERY_TOKENS) * _QUERY_TOKENS
        ids, weights = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], weights[i, : len(row)] = row, decay ** np.arange(len(row))
        lm.config.check_tokens("text.tokenizer", ids)
        return _word_sums(lm, jnp.asarray(ids), jnp.asarray(weights))

    inputs, size = sums([text.encode_input(record.input) for record in records], 1.0)
    answers, _ = sums([answer_ids(record.output, text) for record in records], lm.soft_tokens.label_decay)
    names = sorted({record.output for record in records})
    label = jnp.asarray([names.index(record.output) for record in records], jnp.int32)
    return tuning.Words(inputs, answers, size, label)


@checked
def make_buffer(
    records: Sequence[Any],
    lm: LM,
    text: Text,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
) -> Buffer:
    """Return records as arrays.

    Args:
        records: Things with `input` and `output`. Who or what they are about is never looked at.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        config: Options of the pipeline.

    Returns:
        The texts, their features, and what they are clustered by.

    Raises:
        ValueError: If there is no record, one has no answer, or there is no tokenizer.

    Example:
        >>> from nvcim_jax import data, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> rows = [data.Record(str(i), "u", "t", word, "yes", "train") for i, word in enumerate(("pay", "card"))]
        >>> buffer = pipeline.make_buffer(rows, lm, text, config=pipeline.Config(num_virtual=2))
        >>> buffer.features.shape, len(buffer.examples.ids)  # (records, key tokens, width), and the records
        ((2, 1, 32), 2)
    """
    if not records:
        checks.fail("records", "hold at least one record", "is empty")
    ids, mask = pad_rows([query_ids(record.input, lm, text) for record in records])
    look = partial(text_features, lm, ids, mask, config=config)
    examples = _examples(records, lm, text)
    if config.start == "examples":
        examples = examples._replace(words=_words(records, lm, text))
    return Buffer(examples, look(), _grouped_by(records, look(num=1)[:, 0], lm, text, config))


def _grouped_by(records: Sequence[Any], inputs: jax.Array, lm: LM, text: Text, config: Config) -> jax.Array:
    """Return what records are clustered by (records, width or twice the width)."""
    if config.cluster_by == "input":
        return inputs
    ids, mask = pad_rows([answer_ids(record.output, text) for record in records])
    answers = text_features(lm, ids, mask, config=config, num=1)[:, 0]
    parts = [a / jnp.maximum(jnp.linalg.norm(a, axis=1, keepdims=True), 1e-6) for a in (inputs, answers)]
    return jnp.concatenate(parts, axis=1)


@checked
def stack_buffers(buffers: Sequence[Buffer]) -> Buffer:
    """Return the buffers of several users stacked for `jax.vmap`, their texts padded to a common length.

    Args:
        buffers: One or more, of as many records each.

    Returns:
        One buffer whose arrays have a leading axis of users.

    Raises:
        ValueError: If there is none, or they have different numbers of records.

    Example:
        >>> from nvcim_jax import data, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> rows = [[data.Record("0", "u", "t", word, "yes", "train")] for word in ("pay", "a loan of my old bank")]
        >>> buffers = [pipeline.make_buffer(row, lm, text, config=pipeline.Config(num_virtual=2)) for row in rows]
        >>> [buffer.examples.ids.shape for buffer in buffers], pipeline.stack_buffers(buffers).examples.ids.shape
        ([(1, 16), (1, 32)], (2, 1, 32))
    """
    sizes = sorted({len(buffer.examples.ids) for buffer in buffers})
    if len(sizes) != 1:
        checks.fail("buffers", "have as many records each, one or more", f"have {sizes or 'none'}")
    tokens, most = (max(getattr(b.examples, n).shape[1] for b in buffers) for n in ("ids", "targets"))

    def wide(table: jax.Array, size: int, fill: int = 0) -> jax.Array:
        return jnp.pad(table, ((0, 0), (0, size - table.shape[1])), constant_values=fill)

    padded = [
        buffer._replace(
            examples=buffer.examples._replace(
                ids=wide(buffer.examples.ids, tokens),
                where=wide(buffer.examples.where, most),
                targets=wide(buffer.examples.targets, most, models.IGNORE),
            )
        )
        for buffer in buffers
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
