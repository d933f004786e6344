"""What runs on the device: many users tuned side by side, and read in every way of voting from one pass.

Everything that changes from call to call is an argument: users, learning rates, when tuning stops, who votes. So a
shape of texts, an adapter and a size of window cost five programs: streams, updates, losses, ranks, writing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from nvcim_jax import models, tuning

__all__ = ["Reads", "joined", "losses", "ranks", "reads", "tune_many", "written"]


class Reads(NamedTuple):
    """Say in which ways exits are read together.

    Attributes:
        who: Which exits vote (reads, exits), bool.
        largest: Whether the largest probability counts, or the mean (reads,), bool.
    """

    who: jax.Array
    largest: jax.Array


def reads(exits: int) -> tuple[list[str], Reads]:
    """Return names of ways to read, and the ways: votes of all, of the upper two, and each exit alone.

    Example:
        >>> reads(3)[0]
        ['max', 'mean', 'max of the upper two', 'mean of the upper two', 'exit 0', 'exit 1', 'exit 2']
    """
    every, upper = np.ones(exits, bool), np.arange(exits) >= exits - 2
    found = {f"exit {e}": (np.arange(exits) == e, False) for e in range(exits)}
    if exits > 2:
        found = {"max of the upper two": (upper, True), "mean of the upper two": (upper, False), **found}
    if exits > 1:
        found = {"max": (every, True), "mean": (every, False), **found}
    who, largest = zip(*found.values(), strict=True)
    return list(found), Reads(jnp.asarray(np.stack(who)), jnp.asarray(np.array(largest)))


def joined(voices: jax.Array, read: Reads) -> jax.Array:
    """Return what some exits say together, as logits whose sum is not brought to one (..., vocab_size).

    Args:
        voices: Log-probabilities (exits, ..., vocab_size).
        read: One way to read.
    """
    who = read.who.reshape(-1, *(1,) * (voices.ndim - 1))
    asked = jnp.where(who, voices, -jnp.inf)
    return jnp.where(read.largest, asked.max(axis=0), jax.nn.logsumexp(asked, axis=0))


def _voted(
    windows: Any, way: Reads, exits: tuple[int, ...] | None, lm: models.LM, x: models.Inputs, at: jax.Array
) -> jax.Array:
    return tuning.vote(windows, lm, x, at=at, how=partial(joined, read=way), exits=exits)[0]


def _until(rate: jax.Array, stop: jax.Array, num_steps: int) -> optax.GradientTransformation:
    constant = tuning.Schedule(kind="constant", warmup=0.0)  # as Edge-LLM trains
    on = optax.scale_by_schedule(lambda step: jnp.where(step < stop, 1.0, 0.0))
    return optax.chain(tuning.adam(rate, schedule=constant)(num_steps), on)


def tune_many(
    keys: jax.Array,
    lm: models.LM,
    users: tuning.Examples,
    rates: Any,
    stops: Any,
    *,
    adapter: tuning.Adapter,
    window: int,
    options: tuning.WindowOptions,
    schedule: Any = "cyclic",
) -> Any:
    """Tune windows for many users side by side; the updates of a window after its `stop` change nothing.

    A rate that is constant makes what is tuned for k updates the same as the first k of more.

    Args:
        keys: One a user.
        lm: The model.
        users: Their texts (users, texts, ...).
        rates: Their learning rates (users,).
        stops: Updates of each window (users,).
        adapter: The adapter.
        window: Blocks of a window.
        options: Of `tuning.tune_windows`.
        schedule: Of the same.

    Returns:
        Windows, arrays (users, ...).
    """

    def one(key: jax.Array, examples: tuning.Examples, rate: jax.Array, stop: jax.Array) -> Any:
        given = {"adapter": adapter, "window": window, "options": options, "schedule": schedule}
        return tuning.tune_windows(key, lm, examples, optimiser=Partial(_until, rate, stop), **given)[0]

    return jax.vmap(one)(keys, users, jnp.asarray(rates, jnp.float32), jnp.asarray(stops, jnp.int32))


def _cut(tree: Any, size: int) -> Any:
    """Return arrays (users, texts, ...) in parts of one size; the last begins again from the front."""

    def one(a: jax.Array) -> jax.Array:
        number = -(-a.shape[1] // size)
        at = np.arange(number * size) % a.shape[1]
        return a[:, at].reshape(a.shape[0], number, size, *a.shape[2:])

    return jax.tree.map(one, tree)


def _whole(a: Any, count: int) -> np.ndarray:
    """Return (users, parts, reads, size, ...) as (users, reads, texts, ...)."""
    moved = np.moveaxis(np.asarray(a), 1, 2)
    return moved.reshape(*moved.shape[:2], -1, *moved.shape[4:])[:, :, :count]


@partial(jax.jit, static_argnames="exits")
def _losses(windows: Any, lm: models.LM, test: tuning.Examples, ways: Reads, exits: Any) -> tuple[jax.Array, jax.Array]:
    def part(own: Any, some: tuning.Examples) -> tuple[jax.Array, jax.Array]:
        def read(way: Reads) -> tuple[jax.Array, jax.Array]:
            # Only `joined` differs from one way to the next: the exits themselves are run once.
            logits = _voted(own, way, exits, lm, models.Inputs(models.embed(lm, some.ids)), some.where)
            right = (logits.argmax(axis=-1) == some.targets) & (some.targets >= 0)
            return models.token_losses(logits, some.targets).sum(axis=1), right.sum(axis=1)

        return jax.vmap(read)(ways)

    return jax.lax.map(lambda user: jax.lax.map(partial(part, user[0]), user[1]), (windows, test))


def losses(
    windows: Any,
    lm: models.LM,
    test: tuning.Examples,
    ways: Reads,
    *,
    size: int,
    exits: tuple[int, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each answer, summed, and how many of its tokens are the likeliest (users, reads, texts).

    Args:
        windows: From `tune_many`.
        lm: The model.
        test: Texts and answers (users, texts, ...).
        ways: How exits are read.
        size: Texts that are run at once.
        exits: Those that `ways` are about; None: all.
    """
    found = _losses(windows, lm, _cut(test, size), ways, exits)
    return tuple(_whole(a, test.ids.shape[1]) for a in found)  # type: ignore[return-value]


@partial(jax.jit, static_argnames="exits")
def _ranks(
    windows: Any, lm: models.LM, asked: tuple[jax.Array, jax.Array], answers: Any, ways: Reads, exits: Any
) -> jax.Array:
    def part(own: Any, some: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs = models.Inputs(models.embed(lm, some[0]), some[1])

        def read(way: Reads) -> jax.Array:
            return models.rank(lm, inputs, answers, predict=partial(_voted, own, way, exits)).argmax(axis=1)

        return jax.vmap(read)(ways)

    return jax.lax.map(lambda user: jax.lax.map(partial(part, user[0]), user[1]), (windows, asked))


def ranks(
    windows: Any,
    lm: models.LM,
    asked: tuple[jax.Array, jax.Array],
    answers: Any,
    ways: Reads,
    *,
    size: int,
    exits: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Return the number of the likeliest answer to each query (users, reads, queries).

    Args:
        windows: From `tune_many`.
        lm: The model.
        asked: Tokens of the queries and which are real (users, queries, tokens).
        answers: From `models.candidates`.
        ways: How exits are read.
        size: Queries that are run at once.
        exits: Those that `ways` are about; None: all.
    """
    return _whole(_ranks(windows, lm, _cut(asked, size), answers, ways, exits), asked[0].shape[1])


@partial(jax.jit, static_argnames="room")
def _written(windows: Any, lm: models.LM, asked: tuple[jax.Array, jax.Array], ways: Reads, room: int) -> Any:
    def one(own: Any, some: tuple[jax.Array, jax.Array], way: Reads) -> Any:
        inputs = models.Inputs(models.embed(lm, some[0]), some[1])
        predict = partial(_voted, own, way, None)
        return models.generate_tokens(jax.random.key(0), lm, inputs, max_new_tokens=room, predict=predict)

    def of_user(user: Any) -> Any:
        return jax.lax.map(lambda way: one(user[0], user[1], way), ways)

    return jax.lax.map(of_user, (windows, asked))


def written(
    windows: Any, lm: models.LM, asked: tuple[jax.Array, jax.Array], ways: Reads, *, room: int, text: models.Text
) -> list[list[list[str]]]:
    """Return what is written after each query: users, reads, queries.

    Args:
        windows: From `tune_many`.
        lm: The model.
        asked: Tokens of the queries and which are real (users, queries, tokens).
        ways: How exits are read.
        room: Most tokens of an answer.
        text: The tokenizer.
    """
    tokens, number = (np.asarray(a) for a in _written(windows, lm, asked, ways, room))

    def words(rows: np.ndarray, lengths: Sequence[int]) -> list[str]:
        return [text.decode(row[:n]).strip() for row, n in zip(rows, lengths, strict=True)]

    return [[words(*pair) for pair in zip(*user, strict=True)] for user in zip(tokens, number, strict=True)]
