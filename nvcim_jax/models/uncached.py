"""Generate by any function from texts to logits: without a cache, the whole text again for every token."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax.models.config import Config
from nvcim_jax.models.inputs import Inputs, last_real
from nvcim_jax.models.lm import LM
from nvcim_jax.models.params import embed
from nvcim_jax.models.sampling import Sampling, sample

__all__ = ["choose_tokens", "fill_id", "generate_uncached", "has_ended"]


def fill_id(config: Config) -> int:
    """Return the token that stands behind the end of a text."""
    return config.pad_id if config.pad_id is not None else (config.eos_ids or (0,))[0]


def has_ended(token: jax.Array, config: Config) -> jax.Array:
    """Return which of some tokens end a text."""
    return jnp.isin(token, jnp.asarray(config.eos_ids or (-1,), jnp.int32))


def choose_tokens(keys: jax.Array, step: jax.Array, logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Return a token for each row (batch,), each by its own key and the number of the step."""
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return jax.vmap(partial(sample, sampling=sampling))(step_keys, logits)


class _Writing(NamedTuple):
    step: jax.Array
    tokens: jax.Array
    num_tokens: jax.Array
    done: jax.Array
    x: jax.Array
    mask: jax.Array


def generate_uncached(
    predict: Callable[[LM, Inputs, jax.Array], jax.Array],
    lm: LM,
    inputs: Inputs,
    keys: jax.Array,
    *,
    room: int,
    sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
    """Generate up to `room` tokens behind checked inputs with a mask, each row from its own key.

    Args:
        predict: Logits (batch, positions, vocab_size) at some positions of inputs.
        lm: The model that is handed to it.
        inputs: The texts; new tokens stand behind all of the array, wherever its padding is.
        keys: One a row.
        room: Most tokens.
        sampling: How a token is chosen.

    Returns:
        As `generate_tokens`.
    """
    assert inputs.mask is not None
    batch, given, _ = inputs.x.shape
    fill = fill_id(lm.config)
    last = last_real(inputs.mask)

    def advance(state: _Writing) -> _Writing:
        at = jnp.where(state.step == 0, last, jnp.int32(given - 1) + state.step)[:, None]
        logits = predict(lm, inputs._replace(x=state.x, mask=state.mask), at)[:, 0]
        token = jnp.where(state.done, fill, choose_tokens(keys, state.step, logits, sampling))
        place = jnp.int32(given) + state.step
        rows = embed(lm, token[:, None]).astype(state.x.dtype)
        return _Writing(
            state.step + 1,
            jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
            state.num_tokens + (~state.done).astype(jnp.int32),
            state.done | has_ended(token, lm.config),
            jax.lax.dynamic_update_slice_in_dim(state.x, rows, place, axis=1),
            jax.lax.dynamic_update_slice_in_dim(state.mask, jnp.ones((batch, 1), bool), place, axis=1),
        )

    state = _Writing(
        jnp.int32(0),
        jnp.full((batch, room), fill, jnp.int32),
        jnp.zeros(batch, jnp.int32),
        jnp.zeros(batch, bool),
        jnp.pad(inputs.x, ((0, 0), (0, room), (0, 0))),
        jnp.pad(inputs.mask, ((0, 0), (0, room))),
    )
    state = jax.lax.while_loop(lambda s: (s.step < room) & ~s.done.all(), advance, state)
    return state.tokens, state.num_tokens
