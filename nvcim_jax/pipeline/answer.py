"""A query becomes an answer: the prompt that the memory finds, the model adapted by it, a label or text."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvcim_jax import checks, models, tuning
from nvcim_jax.models import LM, Inputs, Text
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.observe import Chosen, Parts, State, complete
from nvcim_jax.pipeline.retrieval import Retrieved, retrieve
from nvcim_jax.pipeline.store import check_rows
from nvcim_jax.pipeline.text import Queries, make_queries
from nvcim_jax.signature import checked
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import Key

__all__ = ["AnswerInfo", "answer", "choose", "rank", "write"]


class AnswerInfo(NamedTuple):
    """Say how queries were answered.

    Attributes:
        found: What the search found.
        log_probabilities: Of every label (queries, labels), nats; None where text was generated.
        state: The state with these uses counted.
    """

    found: Retrieved
    log_probabilities: jax.Array | None
    state: State


def _adapted(rows: jax.Array, queries: Queries, lm: LM, adapter: Adapter) -> tuple[LM | None, Inputs]:
    """Return the inputs of every query as its own rows adapt them, and the models where those are changed too.

    The models have a leading axis of queries; None: all queries share the model as it is.
    """

    def one(rows: jax.Array, x: jax.Array, mask: jax.Array) -> tuple[LM | None, Inputs]:
        found, inputs = adapter.apply(adapter.from_rows(rows), lm, Inputs(x[None], mask[None]))
        return (None if found is lm else found), inputs

    return jax.vmap(one)(rows, models.embed(lm, queries.ids), queries.mask)


def _as_batch(inputs: Inputs) -> Inputs:
    """Turn inputs of one text each, stacked, into one batch."""
    x, mask, positions = (None if a is None else a[:, 0] for a in inputs[:3])
    prefix = None if inputs.prefix is None else jax.tree.map(lambda a: jnp.moveaxis(a[:, :, 0], 0, 1), inputs.prefix)
    assert x is not None
    return Inputs(x, mask, positions, prefix)


@jax.jit
def _rank(rows: jax.Array, queries: Queries, lm: LM, adapter: Adapter) -> jax.Array:
    answers: Any = queries.answers
    found, inputs = _adapted(rows, queries, lm, adapter)
    if found is None:
        return models.rank(lm, _as_batch(inputs), answers)
    return jax.vmap(lambda lm, inputs: models.rank(lm, inputs, answers)[0])(found, inputs)


@checked
def rank(
    rows: Float[Array, "queries rows width"], queries: Queries, lm: LM, *, adapter: Adapter
) -> Float[Array, "queries answers"]:
    """Return the log-probability of every answer to every query, each with the prompt that was found for it.

    Args:
        rows: What the memory gave for each query, from `retrieve`.
        queries: The queries, with their answers.
        lm: The language model.
        adapter: What the rows belong to.

    Returns:
        Log-probabilities, nats.

    Raises:
        ValueError: If the queries have no answers to choose from.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm, config = models.init(jax.random.key(0), config=layout), pipeline.Config(num_virtual=2)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> queries = pipeline.make_queries(["pay"], lm, text, config=config, labels=["y", "n", "m"])
        >>> logs = pipeline.rank(jnp.ones((1, 2, 32)), queries, lm, adapter=tuning.prompt(2))
        >>> logs.shape, bool(jnp.exp(logs).sum() < 1.0)  # there are other answers
        ((1, 3), True)
    """
    if queries.answers is None:
        checks.fail("queries.answers", "hold the answers to choose from", "is None", "Pass labels= to make_queries.")
    return _rank(rows, queries._replace(features=jnp.zeros(0)), lm, tuning.as_adapter(adapter))


@checks.frozen_config
class _Room:
    """Most tokens that are written."""

    tokens: int


@jax.jit
def _write(
    key: Key, rows: jax.Array, queries: Queries, lm: LM, adapter: Adapter, room: _Room
) -> tuple[jax.Array, jax.Array]:
    found, inputs = _adapted(rows, queries, lm, adapter)
    if found is None:
        return models.generate_tokens(key, lm, _as_batch(inputs), max_new_tokens=room.tokens)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(rows)))

    def one(key: Key, lm: LM, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        tokens, number = models.generate_tokens(key, lm, inputs, max_new_tokens=room.tokens)
        return tokens[0], number[0]

    return jax.vmap(one)(keys, found, inputs)


@checked
def write(
    key: Key,
    rows: Float[Array, "queries rows width"],
    queries: Queries,
    lm: LM,
    text: Text,
    *,
    adapter: Adapter,
    max_new_tokens: int = 16,
) -> list[str]:
    """Return what the model writes as answer to every query, each with the prompt that was found for it.

    Args:
        key: A key.
        rows: What the memory gave for each query, from `retrieve`.
        queries: The queries.
        lm: The language model.
        text: Its tokenizer.
        adapter: What the rows belong to.
        max_new_tokens: Most tokens of an answer.

    Returns:
        One text a query.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> class Letters:
        ...     def __call__(self, words, **_):
        ...         return {"input_ids": [ord(letter) % 32 for letter in words]}
        ...
        ...     def decode(self, ids, **_):
        ...         return "".join(chr(96 + int(i)) for i in ids)
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm, config = models.init(jax.random.key(0), config=layout), pipeline.Config(num_virtual=2)
        >>> queries = pipeline.make_queries(["pay"], lm, models.Text(Letters()), config=config)
        >>> rows, more = jnp.ones((1, 2, 32)), {"adapter": tuning.prompt(2), "max_new_tokens": 1}
        >>> words = pipeline.write(jax.random.key(1), rows, queries, lm, models.Text(Letters()), **more)
        >>> len(words), len(words[0]) <= 1
        (1, True)
    """
    checks.integer("max_new_tokens", max_new_tokens)
    bare = Queries(queries.ids, queries.mask, jnp.zeros(0))
    found = _write(key, rows, bare, lm, tuning.as_adapter(adapter), _Room(tokens=max_new_tokens))
    tokens, number = (np.asarray(a) for a in found)
    return [text.decode(row[:n]).strip() for row, n in zip(tokens, number, strict=True)]


@jax.jit
def _retrieve(
    key: Key, features: jax.Array, state: State, config: Config, chosen: Chosen
) -> tuple[jax.Array, Retrieved, State]:
    """Return the rows of every query, what was found, and the state with the uses counted."""
    how: Any = {"config": config, "similarity": chosen.similarity, "temperature": chosen.temperature}
    rows, found = retrieve(key, features, state.store, state.arrays, chosen.memory, **how)
    count = jnp.bincount(found.slots, length=len(state.store.filled)).astype(jnp.int32)
    uses = state.store.uses + jnp.where(state.store.filled.any(), count, 0)
    return rows, found, state._replace(store=state.store._replace(uses=uses))


@checked
def choose(
    key: Key,
    state: State,
    queries: Queries,
    lm: LM,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    **parts: Unpack[Parts],
) -> tuple[Float[Array, "queries answers"], AnswerInfo]:
    """Rank the answers to queries as arrays, traced: search -> read back -> decode -> the adapted language model.

    Args:
        key: Key of these reads.
        state: The memory.
        queries: The queries, from `make_queries` with labels.
        lm: The language model.
        config: Options of the pipeline, those of `init`.
        **parts: As for `observe`.

    Returns:
        Log-probability of every answer, nats, and the info. An empty store gives prompts of zeros; see `answer`.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm, config = models.init(jax.random.key(0), config=layout), pipeline.Config(num_virtual=2, codec="identity")
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> queries = pipeline.make_queries(["pay"], lm, text, config=config, labels=["y", "n", "m"])
        >>> state = pipeline.init(jax.random.key(1), lm, config=config)
        >>> ask = lambda key: pipeline.choose(key, state, queries, lm, config=config)
        >>> logs, info = jax.eval_shape(ask, jax.random.key(2))
        >>> logs.shape, info.found.slots.shape  # a number for each answer, a slot for each query
        ((1, 3), (1,))
    """
    chosen = complete(config, parts)
    check_rows(state.store, chosen.adapter, lm)
    rows, found, state = _retrieve(key, queries.features, state, config, chosen)
    logs = rank(rows, queries, lm, adapter=chosen.adapter)
    return logs, AnswerInfo(found, logs, state)


@checked
def answer(
    key: Key,
    state: State,
    query: str | Sequence[str],
    lm: LM,
    text: Text,
    *,
    config: Config = Config(),  # noqa: B008  # frozen
    labels: Sequence[str] | None = None,
    max_new_tokens: int = 16,
    **parts: Unpack[Parts],
) -> tuple[Any, AnswerInfo]:
    """Answer questions in words: `choose` among labels, or `write`, between text on the host.

    Args:
        key: Key of these reads.
        state: The memory.
        query: One text, or several.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        config: Options of the pipeline, those of `init`.
        labels: The answers to choose from, by their probability; None lets the model write.
        max_new_tokens: Most tokens that it writes.
        **parts: As for `observe`.

    Returns:
        The answer (of one text) or list of answers, and the info. With an empty store the model answers by itself.

    Raises:
        ValueError: If there is no text, or no label.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm, config = models.init(jax.random.key(0), config=layout), pipeline.Config(num_virtual=2, codec="identity")
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> state, labels = pipeline.init(jax.random.key(1), lm, config=config), ["y", "n", "m"]
        >>> words, info = answer(jax.random.key(2), state, "pay", lm, text, config=config, labels=labels)
        >>> words == labels[int(jnp.argmax(info.log_probabilities[0]))]  # the likeliest
        True
    """
    texts = [query] if isinstance(query, str) else list(query)
    queries = make_queries(texts, lm, text, config=config, labels=labels)
    chosen = complete(config, parts)
    check_rows(state.store, chosen.adapter, lm)
    found_key, text_key = jax.random.split(key)
    rows, found, state = _retrieve(found_key, queries.features, state, config, chosen)
    adapter = chosen.adapter if bool(state.store.filled.any()) else tuning.frozen()
    if labels is not None:
        logs = rank(rows, queries, lm, adapter=adapter)
        written = [labels[int(i)] for i in jnp.argmax(logs, axis=1)]
    else:
        logs = None
        written = write(text_key, rows, queries, lm, text, adapter=adapter, max_new_tokens=max_new_tokens)
    return (written[0] if isinstance(query, str) else written), AnswerInfo(found, logs, state)
