"""Generate text: one compiled loop with a cache of keys and values."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.block import KeysValues, apply_block, rows_at
from nvcim_jax.models.config import Config
from nvcim_jax.models.forward import Span, add_positions, head, hidden, make_context, run_layers
from nvcim_jax.models.inputs import (
    Inputs,
    as_inputs,
    check_inputs,
    check_length,
    check_real,
    last_real,
    num_past,
    positions_of,
    prepend,
)
from nvcim_jax.models.lm import LM, Text
from nvcim_jax.models.params import embed
from nvcim_jax.models.positions import sliding_mask
from nvcim_jax.models.sampling import Sampling, check_sampling
from nvcim_jax.models.uncached import choose_tokens, fill_id, generate_uncached, has_ended
from nvcim_jax.ops import understand
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["Generation", "generate", "generate_tokens"]

APART_BYTES = 1 << 28
"""Weights up to this size are laid out layer by layer for the loop (one more copy of them)."""

APART_LAYERS = 12
"""Most layers that are laid out so: each is compiled on its own."""

BUCKET = 32
"""Texts are padded to a multiple of this, so that texts of similar length share one compilation."""


class Generation(NamedTuple):
    """Hold what was generated.

    Attributes:
        texts: The new text of each input.
        tokens: The new tokens (batch, max_new_tokens), filled up after the end of each text.
        num_tokens: How many of them were generated (batch,), the ending token included.
    """

    texts: list[str]
    tokens: jax.Array
    num_tokens: jax.Array


class _State(NamedTuple):
    step: jax.Array
    token: jax.Array
    tokens: jax.Array
    num_tokens: jax.Array
    done: jax.Array
    cache: Any


def _start(params: PyTree, inputs: Inputs, config: Config, room: int) -> tuple[jax.Array, KeysValues]:
    """Run the given tokens: the last one's residual stream, and a cache with room for more."""
    y, info = hidden(LM(params, config), inputs, keep_keys_values=True)
    own = info.keys_values
    assert own is not None
    parts = [own]
    if inputs.prefix is not None:
        size = (config.num_layers, len(inputs.x), *inputs.prefix.keys.shape[2:])
        parts = [KeysValues(*(jnp.broadcast_to(a, size).astype(own.keys.dtype) for a in inputs.prefix)), own]
    widths = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
    cache = [jnp.pad(jnp.concatenate(arrays, axis=3), widths) for arrays in zip(*parts, strict=True)]
    assert inputs.mask is not None
    return rows_at(y, last_real(inputs.mask)[:, None])[:, 0], KeysValues(*cache)


@checked
def generate_tokens(
    key: Key,
    lm: LM,
    x: Inputs | Float[Array, "batch tokens width"],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(greedy=True),  # noqa: B008  # frozen
    predict: Callable[[LM, Inputs, jax.Array], jax.Array] | None = None,
) -> tuple[Int[Array, "batch new"], Int[Array, " batch"]]:
    """Continue a batch of embedded texts: a pure function, to be compiled by its caller.

    Each text draws from its own key, `fold_in(fold_in(key, row), step)`, so what it becomes does not depend on the
    others. The loop ends when every text has ended.

    Args:
        key: A key; greedy choice does not use it.
        lm: The model; a text ends at one of its `eos_ids`.
        x: Input embeddings, or `Inputs` with their mask (padding on either side) and prefix.
        max_new_tokens: Most tokens to generate.
        sampling: How a token is chosen.
        predict: `predict(lm, inputs, at)` -> logits (batch, positions, vocab_size), in place of the model's own, as in
            `rank`. It keeps no cache: every new token costs a pass over the whole text.

    Returns:
        The new tokens, `pad_id` (else the first of `eos_ids`, else 0) after the end; and how many of them count.

    Raises:
        ValueError: If a shape does not fit, a number is out of range, or the result would exceed the learned positions.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(lm, jnp.array([[1, 2, 3]]))
        >>> tokens, _ = generate_tokens(jax.random.key(1), lm, x, max_new_tokens=4)
        >>> tokens.shape
        (1, 4)
    """
    checks.key("key", key)
    checks.integer("max_new_tokens", max_new_tokens)
    check_sampling(sampling)
    inputs = as_inputs(x)
    checks.rank("x", inputs.x, 3, "(batch, tokens, width)")
    inputs = check_inputs(inputs, lm.config)
    batch, given = inputs.x.shape[:2]
    mask = jnp.ones((batch, given), bool) if inputs.mask is None else inputs.mask
    checks.rank("mask", mask, 2, "(batch, tokens)")
    if inputs.positions is not None:
        checks.fail("x.positions", "be None", "are given", "They are counted from the first real token.")
    check_real(mask)
    check_length(inputs._replace(mask=mask), lm.config, new=max_new_tokens)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch, dtype=jnp.uint32))
    if predict is not None:
        return generate_uncached(predict, lm, inputs._replace(mask=mask), keys, room=max_new_tokens, sampling=sampling)
    run = partial(
        _generate, config=lm.config, room=max_new_tokens, sampling=sampling, apart=_fits_apart(lm.params, lm.config)
    )
    return understand(run)(lm.params, inputs._replace(mask=mask), keys)


def _generate(
    params: PyTree, inputs: Inputs, keys: jax.Array, *, config: Config, room: int, sampling: Sampling, apart: bool
) -> tuple[jax.Array, jax.Array]:
    """Generate `room` tokens, each row from its own key."""
    assert inputs.mask is not None
    lm, past = LM(params, config), num_past(inputs.prefix)
    batch, given = inputs.x.shape[:2]
    before = past + given
    last, cache = _start(params, inputs, config, room)
    layers: Any = params["layers"]
    if apart:
        layers, cache = _apart(layers, config), _apart(cache, config)
    fill = fill_id(config)
    slots = _slots(inputs, room)
    length = inputs.mask.sum(-1, dtype=jnp.int32) + past

    def choose(state: jax.Array, step: jax.Array) -> jax.Array:
        return choose_tokens(keys, step, head(lm, state), sampling)

    def record(state: _State, token: jax.Array, cache: Any) -> _State:
        token = jnp.where(state.done, fill, token)
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (jnp.int32(0), state.step))
        number = state.num_tokens + (~state.done).astype(jnp.int32)
        return _State(state.step + 1, token, tokens, number, state.done | has_ended(token, config), cache)

    def advance(state: _State) -> _State:
        place = state.step - 1
        y = embed(lm, state.token[:, None]).astype(inputs.x.dtype)
        at = (length + place)[:, None]
        y = add_positions(params, y, at, config)
        context = _step_context(slots, before + place, before, at, config)
        y, cache = _through_layers(layers, y, context, state.cache, before + place, config)
        return record(state, choose(y[:, 0], state.step), cache)

    empty = jnp.full((batch, room), fill, jnp.int32)
    nothing = jnp.zeros(batch, jnp.int32)
    state = _State(jnp.int32(0), nothing, empty, nothing, jnp.zeros(batch, bool), cache)
    state = record(state, choose(last, jnp.int32(0)), cache)
    state = jax.lax.while_loop(lambda s: (s.step < room) & ~s.done.all(), advance, state)
    return state.tokens, state.num_tokens


class _Slots(NamedTuple):
    """What stands in the places of the cache: prefix, given tokens, tokens to come.

    Attributes:
        real: Whether it is a token that was given (batch, slots).
        positions: Its position (batch, slots), int32.
    """

    real: jax.Array
    positions: jax.Array


def _slots(inputs: Inputs, room: int) -> _Slots:
    """Lay out the cache of inputs with a mask, followed by `room` new tokens."""
    assert inputs.mask is not None
    batch, past = len(inputs.x), num_past(inputs.prefix)
    real = jnp.pad(inputs.mask, ((0, 0), (past, 0)), constant_values=True)
    first = jnp.broadcast_to(jnp.arange(past, dtype=jnp.int32), (batch, past))
    length = past + inputs.mask.sum(-1, dtype=jnp.int32)
    to_come = length[:, None] + jnp.arange(room, dtype=jnp.int32)[None, :]
    positions = jnp.concatenate([first, positions_of(inputs), to_come], axis=1)
    return _Slots(jnp.pad(real, ((0, 0), (0, room))), positions)


def _fits_apart(params: PyTree, config: Config) -> bool:
    return (
        config.num_layers <= APART_LAYERS
        and sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(params["layers"])) <= APART_BYTES
    )


def _apart(stacked: PyTree, config: Config) -> list[PyTree]:
    """Return one tree a layer: a loop over them copies no weights, which a scan does in every step."""
    return [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(config.num_layers)]


def _through_layers(
    layers: Any, y: jax.Array, context: Any, cache: Any, at: jax.Array, config: Config
) -> tuple[jax.Array, Any]:
    """Run one token through all layers, and write its keys and values into the cache."""

    def write(old: KeysValues, new: KeysValues | None, axis: int) -> KeysValues:
        assert new is not None
        pairs = zip(old, new, strict=True)
        return KeysValues(*(jax.lax.dynamic_update_slice_in_dim(a, b, at, axis=axis) for a, b in pairs))

    if not isinstance(layers, list):
        y, info = run_layers(layers, y, context, cache, config=config, span=Span(keep=True))
        return y, write(cache, info.keys_values, 3)
    written = []
    for i, (layer, past) in enumerate(zip(layers, cache, strict=True)):
        slides = jnp.asarray(config.sliding[i]) if config.mixes_windows else None
        y, own = apply_block(layer, y, context, past, slides, config=config)
        written.append(write(past, own, 2))
    return y, written


def _step_context(slots: _Slots, now: jax.Array, before: int, positions: jax.Array, config: Config) -> Any:
    """Return the context of one new token that sees the cache's slots up to `now`, and itself."""
    batch, size = slots.real.shape
    index = jnp.arange(size, dtype=jnp.int32)[None, :]
    filled = slots.real | ((index >= before) & (index < now))
    itself = jnp.ones((batch, 1), bool)
    allowed = jnp.concatenate([filled, itself], axis=1)[:, None, :]
    local = None
    if config.window is not None and any(config.sliding):
        near = sliding_mask(positions, slots.positions, config.window)[:, 0]
        local = jnp.concatenate([near, itself], axis=1)[:, None, :]
    return make_context(positions, allowed, local, config)


_compiled = jax.jit(generate_tokens, static_argnames="max_new_tokens")  # a length: it decides shapes


def _tokenise(text: Text, texts: Sequence[str], room: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and mask, padded on the left to a multiple of the bucket, or to all the room there is."""
    if isinstance(texts, str) or not texts:
        checks.fail("texts", "be a list of at least one text", f"is {texts!r}", 'Write ["..."].')
    rows = [text.encode(words, special=True) for words in texts]
    longest = max(1, *map(len, rows))
    size = -(-longest // BUCKET) * BUCKET
    if room is not None:
        size = max(min(size, room), longest)
    ids, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :], mask[i, -len(row) :] = row, True
    return ids, mask


@checked
def generate(
    key: Key,
    lm: LM,
    texts: Sequence[str],
    *,
    text: Text,
    max_new_tokens: int,
    prompt: Float[Array, "*batch virtual width"] | None = None,
    prefix: KeysValues | None = None,
    sampling: Sampling = Sampling(greedy=True),  # noqa: B008  # frozen
) -> Generation:
    """Continue texts by a language model.

    Compiled once for a batch size, a length (rounded up to 32) and a number of new tokens; further calls, other
    temperatures and other prompts of the same shape run at once.

    Args:
        key: A key; greedy choice does not use it.
        lm: The model.
        texts: One or more, taken as they are: a template is not applied.
        text: How text becomes tokens.
        max_new_tokens: Most tokens to generate for each; a text that comes to a token of `config.eos_ids` ends there.
        prompt: Soft prompt before every text (virtual tokens, width), or one for each text.
        prefix: Keys and values before every text, as in `Inputs`.
        sampling: How a token is chosen; the likeliest by default.

    Returns:
        Texts and tokens.

    Raises:
        ValueError: If an argument is out of range, or the result would be longer than the model's learned positions.

    Example:
        >>> from nvcim_jax import models
        >>> class Letters:
        ...     def __call__(self, words, **_):
        ...         return {"input_ids": [ord(letter) % 32 for letter in words]}
        ...
        ...     def decode(self, ids, **_):
        ...         return "".join(chr(96 + int(i)) for i in ids)
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(Letters())
        >>> found = models.generate(jax.random.key(1), lm, ["pay", "loan"], text=text, max_new_tokens=2)
        >>> found.tokens.shape, [len(words) for words in found.texts]
        ((2, 2), [2, 2])
    """
    checks.key("key", key)
    checks.integer("max_new_tokens", max_new_tokens)
    check_sampling(sampling)
    room = None
    if lm.config.positions == "learned":
        taken = num_past(prefix) + (0 if prompt is None else prompt.shape[-2]) + max_new_tokens
        room = lm.config.max_tokens - taken
    ids, found = _tokenise(text, texts, room)
    inputs = Inputs(embed(lm, jnp.asarray(ids)), jnp.asarray(found), prefix=prefix)
    if prompt is not None:
        inputs = prepend(prompt, inputs)
    elif not found.any(axis=1).all():
        checks.fail("texts", "have at least one token each", "hold an empty text", "Give a prompt before it.")
    check_length(check_inputs(inputs, lm.config), lm.config, new=max_new_tokens)
    tokens, number = _compiled(key, lm, inputs, max_new_tokens=max_new_tokens, sampling=sampling)
    rows = [row[:n] for row, n in zip(np.asarray(tokens), np.asarray(number), strict=True)]
    return Generation([text.decode(row) for row in rows], tokens, number)
