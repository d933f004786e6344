"""Rank given answers by their probability after a text, all of them in one pass."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.models.forward import head, hidden
from nvcim_jax.models.inputs import Inputs, as_inputs, check_length, check_real, last_real, num_past
from nvcim_jax.models.lm import LM
from nvcim_jax.models.loss import token_losses
from nvcim_jax.models.params import embed
from nvcim_jax.signature import checked

__all__ = ["Candidates", "candidates", "rank"]


class Candidates(NamedTuple):
    """Hold answers laid out one after the other; each is a branch that continues every text.

    Attributes:
        ids: Tokens of all answers (tokens,), int32.
        owner: The answer that each belongs to (tokens,), int32.
        offset: Its place in that answer (tokens,), int32.
        following: The token after it; the ending token after an answer's last (tokens,), int32.
        first: First token of each answer (answers,), int32.
    """

    ids: jax.Array
    owner: jax.Array
    offset: jax.Array
    following: jax.Array
    first: jax.Array


@checked
def candidates(rows: Sequence[Sequence[int]], *, end: int) -> Candidates:
    """Lay out answers to rank.

    Args:
        rows: Token ids of each answer, at least one each, without the ending token.
        end: The token that ends an answer.

    Returns:
        The answers as branches.

    Raises:
        ValueError: If there is no answer, or one has no token.

    Example:
        >>> found = candidates([[5], [7, 8]], end=0)
        >>> found.ids.tolist(), found.owner.tolist(), found.following.tolist()  # each answer ends with 0
        ([5, 7, 8], [0, 1, 1], [0, 8, 0])
    """
    if not rows or not all(len(row) for row in rows):
        checks.fail("rows", "hold at least one answer of at least one token each", "holds an empty one or none")
    parts = (
        np.concatenate([np.asarray(row) for row in rows]),
        np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        np.concatenate([np.arange(len(row)) for row in rows]),
        np.concatenate([[*row[1:], end] for row in rows]),
        np.asarray([row[0] for row in rows]),
    )
    return Candidates(*(jnp.asarray(part, jnp.int32) for part in parts))


@checked
def rank(
    lm: LM,
    x: Inputs | Float[Array, "batch tokens width"],
    answers: Candidates,
    *,
    predict: Callable[[LM, Inputs, jax.Array], jax.Array] | None = None,
) -> Float[Array, "batch answers"]:
    """Return the log-probability of every answer after every text.

    `log p(a | x) = sum_t log p(a_t | x, a_<t)`, the ending token included. The answers are branches of one tree: each
    position sees the text and its own branch, so that the text is computed once for all of them.

    Args:
        lm: The model.
        x: Embeddings of the texts, soft prompts among them, or `Inputs` with their mask (padding on either side) and
            prefix.
        answers: From `candidates`.
        predict: `predict(lm, inputs, at)` -> logits (batch, positions, vocab_size) at some positions, in place of the
            model's own: a vote of exits, several models, a part of one. Inputs have positions and a mask (batch,
            queries, keys).

    Returns:
        Nats (batch, answers), at most 0.

    Raises:
        ValueError: If a shape does not fit, the texts have positions of their own, or text and answer together exceed
            the learned positions.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(lm, jnp.array([[5, 6, 7]]))
        >>> every = models.candidates([[token] for token in range(64)], end=0)
        >>> logits, _ = models.forward(lm, x)
        >>> bool((rank(lm, x, every) <= jax.nn.log_softmax(logits[:, -1])).all())  # p(a) p(end | a) <= p(a)
        True
    """
    inputs = as_inputs(x)
    checks.rank("x", inputs.x, 3, "(batch, tokens, width)")
    batch, stem = inputs.x.shape[:2]
    mask = jnp.ones((batch, stem), bool) if inputs.mask is None else inputs.mask.astype(bool)
    checks.shape("mask", mask, (batch, stem), "(batch, tokens)")
    if inputs.positions is not None:
        checks.fail("x.positions", "be None", "are given", "They are counted from the first real token.")
    check_real(mask)
    for ids in (answers.ids, answers.following):
        lm.config.check_tokens("answers", ids)
    check_length(inputs._replace(mask=mask), lm.config, new=_longest(answers))
    branches = embed(lm, answers.ids).astype(inputs.x.dtype)
    seen, at = _branched(inputs._replace(mask=None), mask, branches, answers)
    if predict is None:
        states, _ = hidden(lm, seen, at=at)
        first, rest = head(lm, states[:, 0]), head(lm, states[:, 1:])
    else:
        logits = predict(lm, seen, at)
        first, rest = logits[:, 0], logits[:, 1:]
    return _summed(first, rest, answers)


def _longest(answers: Candidates) -> int:
    """Return the tokens of the longest answer; while tracing, what it must have at least."""
    if checks.is_concrete(answers.offset):
        return int(np.asarray(answers.offset).max()) + 1
    return -(-len(answers.ids) // len(answers.first))


@jax.jit
def _branched(inputs: Inputs, mask: jax.Array, branches: jax.Array, answers: Candidates) -> tuple[Inputs, jax.Array]:
    """Return texts with all answers behind them, and the positions that predict: the last of the text, the answers'."""
    (batch, stem), past = mask.shape, num_past(inputs.prefix)
    size, lengths = stem + len(answers.ids), mask.sum(-1, dtype=jnp.int32)
    whole = jnp.concatenate([inputs.x, jnp.broadcast_to(branches, (batch, *branches.shape))], axis=1)
    of_stem = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    places = past + jnp.concatenate([of_stem, lengths[:, None] + answers.offset[None, :]], axis=1)
    branched = jnp.broadcast_to(jnp.arange(stem, size, dtype=jnp.int32), (batch, size - stem))
    at = jnp.concatenate([last_real(mask)[:, None], branched], axis=1)
    return Inputs(whole, _tree(mask, answers, past), places, inputs.prefix), at


@jax.jit
def _summed(first: jax.Array, rest: jax.Array, answers: Candidates) -> jax.Array:
    """Return each answer's log-probability from the logits after the text and at the answers' own tokens."""
    of_first = jax.nn.log_softmax(first.astype(jnp.float32))[:, answers.first]
    following = jnp.broadcast_to(answers.following, (len(rest), len(answers.ids)))
    return of_first.at[:, answers.owner].add(-token_losses(rest, following))


def _tree(mask: jax.Array, answers: Candidates, past: int) -> jax.Array:
    """Return what each position sees: prefix, the real tokens before it, and of the answers its own branch."""
    batch, stem = mask.shape
    size = stem + len(answers.ids)
    allowed = jnp.zeros((batch, size, size), bool)
    allowed = allowed.at[:, :, :stem].set(mask[:, None, :])
    allowed = allowed.at[:, stem:, stem:].set(answers.owner[:, None] == answers.owner[None, :])
    allowed = allowed & jnp.tril(jnp.ones((size, size), bool))[None]
    return jnp.pad(allowed, ((0, 0), (0, 0), (past, 0)), constant_values=True)
