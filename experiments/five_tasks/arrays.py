"""Streams as arrays of one size: all streams, and all tasks of a call, share their compilations."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks, data, models, pipeline, study, tuning
from nvcim_jax.pipeline import text as words

__all__ = ["Arrays", "Sizes", "arrays", "sizes"]

_MULTIPLE = 8


class Sizes(NamedTuple):
    """Hold the tokens that arrays have room for: of a query, of a text with its answer, and of an answer."""

    query: int
    example: int
    answer: int

    def both(self, other: "Sizes") -> "Sizes":
        """Return the room that holds either."""
        return Sizes(*map(max, self, other))


class Arrays(NamedTuple):
    """Hold one stream.

    Attributes:
        buffers: All buffers, stacked.
        questions: Its test rows, as `study.make_questions` has them, without texts and labels.
        ids: Tokens of the test rows (queries, tokens), padded on the left.
        mask: Which are real.
        answers: The answers to choose from; None where they are written.
    """

    buffers: Any
    questions: study.Questions
    ids: np.ndarray
    mask: np.ndarray
    answers: models.Candidates | None


def _up(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE


def sizes(streams: Sequence[data.Stream], lm: models.LM, text: models.Text) -> Sizes:
    """Return the room that the texts of some streams of one task take."""
    found = Sizes(0, 0, 0)
    for stream in streams:
        for row in (record for block in stream.blocks for record in block.records):
            query, answer = len(words.query_ids(row.input, lm, text)), len(words.answer_ids(row.output, text)) + 1
            found = found.both(Sizes(max(query, answer), query + answer, answer))
        for row in (record for rows in stream.test.values() for record in rows):
            found = found.both(Sizes(len(words.query_ids(row.input, lm, text)), 0, 0))
    return Sizes(*map(_up, found))


def _left(rows: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    ids, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        ids[i, size - len(row) :], mask[i, size - len(row) :] = row, True
    return ids, mask


def arrays(
    stream: data.Stream, lm: models.LM, text: models.Text, *, config: pipeline.Config, room: Sizes, chosen: bool
) -> Arrays:
    """Return a stream as arrays of the given room: what `make_buffer` and `make_questions` return, but for padding.

    Args:
        stream: The stream.
        lm: The language model.
        text: Its tokenizer, with the task's template.
        config: Options of the pipeline; prompts that start from examples are not known here.
        room: Room for tokens.
        chosen: Whether answers are chosen among the stream's labels.
    """
    if config.start == "examples" or config.search_tokens != 1 or config.cluster_by != "record":
        wanted = "start from something else than examples, and have keys of one token and clusters of records"
        checks.fail("config", wanted, "does not", "Use the preset `pretrained`.")
    records = [record for block in stream.blocks for record in block.records]
    asked = [(i, row) for i, domain in enumerate(stream.domains) for row in stream.test[domain]]
    inputs = [words.query_ids(record.input, lm, text) for record in records]
    outputs = [words.answer_ids(record.output, text) for record in records]
    ids, mask = _left([words.query_ids(row.input, lm, text) for _, row in asked], room.query)
    every, real = _left([*inputs, *outputs], room.query)
    table, shown = jnp.asarray(np.concatenate([every, ids])), jnp.asarray(np.concatenate([real, mask]))
    features: Any = np.asarray(words.text_features(lm, table, shown, config=config))
    ends = [[*row, words.end_id(lm)] for row in outputs]
    examples = tuning.examples(inputs, ends, num_tokens=room.example, num_answer=room.answer)
    num = len(records)
    texts, replies = features[:num, 0], features[num : 2 * num, 0]
    parts = [a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-6) for a in (texts, replies)]
    centres: Any = np.concatenate(parts, axis=1)
    whole = words.Buffer(jax.device_get(examples), features[:num], centres)
    blocks = len(stream.blocks)
    none: Any = np.zeros((0, 0), np.float32)
    labels = list(stream.labels)
    golds = [labels.index(row.output) for _, row in asked] if chosen else [0] * len(asked)
    each: dict[str, Any] = {
        "truth": np.asarray(golds, np.int32),
        "domain": np.asarray([i for i, _ in asked], np.int32),
        "counts": np.asarray([len(stream.test[domain]) for domain in stream.domains], np.float32),
        "domain_of_block": np.asarray([stream.domains.index(block.domain) for block in stream.blocks], np.int32),
    }
    questions = study.Questions(queries=words.Queries(none, none, features[2 * num :]), **each)
    ranked = [words.answer_ids(label, text) for label in labels]
    answers = models.candidates(ranked, end=words.end_id(lm)) if chosen else None
    stacked = jax.tree.map(lambda a: a.reshape(blocks, num // blocks, *a.shape[1:]), whole)
    return Arrays(stacked, questions, ids, mask, answers)
