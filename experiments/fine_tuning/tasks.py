"""Tasks that a tuned model is measured on: answers to choose, slots to write, text to predict."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as public
from experiments import wikitext
from nvcim_jax import checks, data, models, pipeline, tuning

__all__ = ["Task", "choosing", "predicting", "slots", "snips", "writing"]

_ROWS = 20  # queries that are answered in one call
_WINDOWS = 4  # windows that are measured in one call, at most


class Task(NamedTuple):
    """One task.

    Attributes:
        name: Name.
        examples: What is tuned on.
        score: `score(state, lm, adapter)` -> names and numbers.
    """

    name: str
    examples: tuning.Examples
    score: Callable[[Any, models.LM, tuning.Adapter], dict[str, float]]


def _parts(count: int) -> list[np.ndarray]:
    """Return rows in parts of one size; the last begins again from the front."""
    return [np.arange(start, start + _ROWS) % count for start in range(0, count, _ROWS)]


@jax.jit
def _rank(state: Any, queries: Any, lm: models.LM, adapter: tuning.Adapter) -> jax.Array:
    adapted, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    return models.rank(adapted, inputs, queries.answers)


def choosing(
    name: str, train: Sequence[Any], test: Sequence[Any], labels: Sequence[str], lm: models.LM, text: models.Text
) -> Task:
    """Return the task of choosing the right one of some answers: accuracy, and -log of the right one's share."""
    queries = pipeline.make_queries([row.input for row in test], lm, text, labels=labels)
    truth = np.asarray([labels.index(row.output) for row in test])

    def score(state: Any, lm: models.LM, adapter: tuning.Adapter) -> dict[str, float]:
        own, ranked = tuning.as_adapter(adapter), []
        for rows in _parts(len(truth)):
            part = queries._replace(ids=queries.ids[rows], mask=queries.mask[rows], features=jnp.zeros(0))
            ranked.append(np.asarray(jax.nn.log_softmax(_rank(state, part, lm, own), axis=1)))
        shares = np.concatenate(ranked)[: len(truth)]
        nats = -shares[np.arange(len(truth)), truth].mean()
        return {"accuracy": float((shares.argmax(axis=1) == truth).mean()), "nats": float(nats)}

    return Task(name, pipeline.make_buffer(train, lm, text).examples._replace(words=None), score)


@jax.jit
def _write(
    state: Any, queries: Any, lm: models.LM, adapter: tuning.Adapter, room: "_Room"
) -> tuple[jax.Array, jax.Array]:
    adapted, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    return models.generate_tokens(jax.random.key(0), adapted, inputs, max_new_tokens=room.tokens)


@checks.frozen_config
class _Room:
    """Most tokens of an answer."""

    tokens: int


def _rows_of(answer: str) -> set[tuple[str, str]]:
    """Return the slots of an answer: `name = value | name = value`."""
    pairs = (part.partition("=") for part in answer.split("|"))
    return {(name.strip(), value.strip()) for name, equals, value in pairs if equals}


def writing(
    name: str, train: Sequence[Any], test: Sequence[Any], lm: models.LM, text: models.Text, *, max_new_tokens: int
) -> Task:
    """Return the task of writing slots: the share of exact matches, and F1 of the slots over all rows."""
    queries = pipeline.make_queries([row.input for row in test], lm, text)
    room = _Room(tokens=max_new_tokens)

    def score(state: Any, lm: models.LM, adapter: tuning.Adapter) -> dict[str, float]:
        own, written = tuning.as_adapter(adapter), []
        for rows in _parts(len(test)):
            part = queries._replace(ids=queries.ids[rows], mask=queries.mask[rows], features=jnp.zeros(0))
            tokens, number = (np.asarray(a) for a in _write(state, part, lm, own, room))
            written += [text.decode(row[:n]).strip() for row, n in zip(tokens, number, strict=True)]
        return slots([row.output for row in test], written[: len(test)])

    return Task(name, pipeline.make_buffer(train, lm, text).examples._replace(words=None), score)


def slots(golds: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """Return the share of answers that match exactly, and F1 of single slots, `name = value`, over all answers.

    Example:
        >>> slots(["a = 1 | b = 2", "a = 3"], ["a = 1", "a = 3"])  # 2 slots written, both right, of 3
        {'exact': 0.5, 'slot_f1': 0.8}
    """
    exact = np.mean([gold == answer for gold, answer in zip(golds, written, strict=True)])
    pairs = [(_rows_of(gold), _rows_of(answer)) for gold, answer in zip(golds, written, strict=True)]
    common = sum(len(gold & answer) for gold, answer in pairs)
    total = sum(len(gold) + len(answer) for gold, answer in pairs)
    return {"exact": float(exact), "slot_f1": 2.0 * common / max(total, 1)}


def _as_examples(windows: np.ndarray) -> tuning.Examples:
    """Return windows whose every token but the first is to be predicted."""
    size = windows.shape[1] - 1
    where = np.tile(np.arange(size, dtype=np.int32), (len(windows), 1))
    return tuning.Examples(jnp.asarray(windows[:, :-1]), jnp.asarray(where), jnp.asarray(windows[:, 1:]))


@jax.jit
def _loss(state: Any, lm: models.LM, windows: tuning.Examples, adapter: tuning.Adapter) -> jax.Array:
    return tuning.answer_loss(state, lm, windows, jnp.ones(len(windows.ids)), adapter=adapter)


def predicting(
    name: str, text: models.Text, *, tokens: int, num_train: int, num_test: int, ids: np.ndarray | None = None
) -> Task:
    """Return the task of predicting WikiText-2: perplexity on its test split, tuned on its validation split.

    Args:
        name: Name.
        text: The tokenizer.
        tokens: Tokens of a window.
        num_train: Windows that are tuned on.
        num_test: Windows that are measured on, evenly spread.
        ids: Other windows in their place, those to tune on first.
    """
    if ids is None:
        train = wikitext.windows(text, "valid", tokens=tokens, num=num_train)
        whole = wikitext.windows(text, "test", tokens=tokens)
        test = whole[np.arange(num_test) * len(whole) // num_test]
    else:
        train, test = ids[:num_train], ids[num_train : num_train + num_test]
    measured, size = _as_examples(test), math.gcd(len(test), _WINDOWS)
    parts = [jax.tree.map(lambda a, i=i: a[i : i + size], measured) for i in range(0, len(test), size)]

    def score(state: Any, lm: models.LM, adapter: tuning.Adapter) -> dict[str, float]:
        own = tuning.as_adapter(adapter)
        nats = [float(_loss(state, lm, part, own)) for part in parts]
        return {"nats": float(np.mean(nats)), "perplexity": float(np.exp(np.mean(nats)))}

    return Task(name, _as_examples(train), score)


def snips(domain: str) -> list[data.Record]:
    """Return the rows of one intent of SNIPS.

    Raises:
        ValueError: If the data folder is not there.
    """
    folder = public.folder("snips_slots")
    return [row for row in data.read_jsonl(folder / "snips_slots.jsonl.gz") if row.user_or_domain == domain]
