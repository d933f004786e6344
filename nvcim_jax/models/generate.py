"""Generate text: one compiled loop with a cache of keys and values."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.block import Contract, KeysValues, apply_block
from nvcim_jax.models.config import Config
from nvcim_jax.models.forward import add_positions, check_prefix, head, hidden, make_context, run_layers, unpack
from nvcim_jax.models.load import LM
from nvcim_jax.models.params import embed
from nvcim_jax.models.sampling import Sampling, sample
from nvcim_jax.types import Key, PyTree

__all__ = ["Generation", "generate", "generate_tokens", "prepend"]

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


def prepend(
    prompt: Float[Array, "*batch virtual width"],
    x: Float[Array, "batch tokens width"],
    mask: Bool[Array, "batch tokens"],
) -> tuple[Float[Array, "batch both width"], Bool[Array, "batch both"]]:
    """Put a soft prompt right before each text of a batch that is padded on the left.

    Args:
        prompt: (virtual tokens, width), or one for each text (batch, virtual tokens, width).
        x: Embeddings of the texts.
        mask: Which tokens are real; each row's real tokens are its last.

    Returns:
        Embeddings and mask (batch, virtual + tokens): padding, prompt, text.

    Example:
        >>> x = jnp.arange(3.0).reshape(1, 3, 1)
        >>> prepend(jnp.array([[9.0]]), x, jnp.array([[False, True, True]]))[0].ravel()  # padding, prompt, text
        Array([0., 9., 1., 2.], dtype=float32)
    """
    batch, tokens, width = x.shape
    virtual = prompt.shape[-2]
    prompt = jnp.broadcast_to(prompt, (batch, virtual, width)).astype(x.dtype)
    padding = tokens - mask.sum(-1, dtype=jnp.int32)[:, None]
    place = jnp.arange(virtual + tokens)[None, :] - padding
    # In [x; prompt]: the prompt's rows follow the text's.
    source = jnp.where(
        place < 0, place + padding, jnp.where(place < virtual, tokens + place, place + padding - virtual)
    )
    both = jnp.take_along_axis(jnp.concatenate([x, prompt], axis=1), source[..., None], axis=1)
    return both, place >= 0


def _start(
    params: PyTree,
    x: jax.Array,
    mask: jax.Array,
    prefix: KeysValues | None,
    config: Config,
    room: int,
    contract: Contract,
) -> tuple[jax.Array, KeysValues]:
    """Run the given tokens: the last one's residual stream, and a cache with room for more."""
    y, info = hidden(params, x, config=config, mask=mask, prefix=prefix, keep_keys_values=True, contract=contract)
    own = info.keys_values
    assert own is not None
    parts = [own]
    if prefix is not None:
        size = (config.num_layers, x.shape[0], *prefix.keys.shape[2:])
        parts = [KeysValues(*(jnp.broadcast_to(a, size).astype(own.keys.dtype) for a in prefix)), own]
    widths = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
    cache = [jnp.pad(jnp.concatenate(arrays, axis=3), widths) for arrays in zip(*parts, strict=True)]
    return y[:, -1], KeysValues(*cache)


def generate_tokens(
    key: Key,
    params: PyTree,
    x: Float[Array, "batch tokens width"],
    mask: Bool[Array, "batch tokens"],
    *,
    config: Config,
    max_new_tokens: int,
    prefix: KeysValues | None = None,
    sampling: Sampling = Sampling(greedy=True),  # noqa: B008  # frozen
    temperature: Float[Array, ""] | float = 1.0,
    top_p: Float[Array, ""] | float = 1.0,
    contract: Contract = jnp.einsum,
) -> tuple[Int[Array, "batch new"], Int[Array, " batch"]]:
    """Continue a batch of embedded texts: a pure function, to be compiled by its caller.

    Each text draws from its own key, `fold_in(fold_in(key, row), step)`, so what it becomes does not depend on the
    others. The loop ends when every text has ended.

    Args:
        key: A key; greedy choice does not use it.
        params: Parameters.
        x: Input embeddings, padded on the left.
        mask: Which tokens are real.
        config: The model; a text ends at one of its `eos_ids`.
        max_new_tokens: Most tokens to generate.
        prefix: Keys and values before the first token, as in `forward`.
        sampling: How a token is chosen.
        temperature: > 0; the logits are divided by it.
        top_p: In (0, 1], where `sampling.nucleus`.
        contract: The product with a weight.

    Returns:
        The new tokens, `pad_id` (else the first of `eos_ids`, else 0) after the end; and how many of them count.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> params = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(params, jnp.array([[1, 2, 3]]), config=config)
        >>> mask = jnp.ones((1, 3), bool)
        >>> tokens, _ = generate_tokens(jax.random.key(1), params, x, mask, config=config, max_new_tokens=4)
        >>> tokens.shape
        (1, 4)
    """
    batch, given = mask.shape
    prefix = check_prefix(prefix, config)
    before = given + (0 if prefix is None else prefix.keys.shape[3])
    last, cache = _start(params, x, mask, prefix, config, max_new_tokens, contract)
    layers: Any = params["layers"]
    if _fits_apart(layers, config):
        layers, cache = _apart(layers, config), _apart(cache, config)
    fill = config.pad_id if config.pad_id is not None else (config.eos_ids or (0,))[0]
    slots = jnp.pad(mask.astype(bool), ((0, 0), (before - given, 0)), constant_values=True)
    slots = jnp.pad(slots, ((0, 0), (0, max_new_tokens)))
    length = mask.sum(-1, dtype=jnp.int32) + (before - given)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))

    def choose(state: jax.Array, step: jax.Array) -> jax.Array:
        logits = head(params, state, config=config, contract=contract)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        pick = partial(sample, temperature=temperature, top_p=top_p, sampling=sampling)
        return jax.vmap(pick)(step_keys, logits)

    def ends(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.asarray(config.eos_ids or (-1,), jnp.int32))

    def record(state: _State, token: jax.Array, cache: Any) -> _State:
        token = jnp.where(state.done, fill, token)
        tokens = jax.lax.dynamic_update_slice(state.tokens, token[:, None], (0, state.step))
        number = state.num_tokens + (~state.done).astype(jnp.int32)
        return _State(state.step + 1, token, tokens, number, state.done | ends(token), cache)

    def advance(state: _State) -> _State:
        place = state.step - 1
        y = embed(params, state.token[:, None], config=config).astype(x.dtype)
        at = (length + place)[:, None]
        y = add_positions(params, y, at, config)
        context = _step_context(slots, before + place, before, at, config)
        y, cache = _through_layers(layers, y, context, state.cache, before + place, config, contract)
        return record(state, choose(y[:, 0], state.step), cache)

    empty = jnp.full((batch, max_new_tokens), fill, jnp.int32)
    nothing = jnp.zeros(batch, jnp.int32)
    state = _State(jnp.int32(0), nothing, empty, nothing, jnp.zeros(batch, bool), cache)
    state = record(state, choose(last, jnp.int32(0)), cache)
    state = jax.lax.while_loop(lambda s: (s.step < max_new_tokens) & ~s.done.all(), advance, state)
    return state.tokens, state.num_tokens


def _fits_apart(layers: PyTree, config: Config) -> bool:
    return (
        config.num_layers <= APART_LAYERS
        and sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(layers)) <= APART_BYTES
    )


def _apart(stacked: PyTree, config: Config) -> list[PyTree]:
    """Return one tree a layer: a loop over them copies no weights, which a scan does in every step."""
    return [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(config.num_layers)]


def _through_layers(
    layers: Any, y: jax.Array, context: Any, cache: Any, at: jax.Array, config: Config, contract: Contract
) -> tuple[jax.Array, Any]:
    """Run one token through all layers, and write its keys and values into the cache."""

    def write(old: KeysValues, new: KeysValues | None, axis: int) -> KeysValues:
        assert new is not None
        pairs = zip(old, new, strict=True)
        return KeysValues(*(jax.lax.dynamic_update_slice_in_dim(a, b, at, axis=axis) for a, b in pairs))

    if not isinstance(layers, list):
        y, info = run_layers(layers, y, context, cache, config=config, keep=True, contract=contract)
        return y, write(cache, info.keys_values, 3)
    written = []
    for i, (layer, past) in enumerate(zip(layers, cache, strict=True)):
        slides = jnp.asarray(config.sliding[i]) if config.mixes_windows else None
        y, own = apply_block(unpack(layer, y.dtype), y, context, past, slides, config=config, contract=contract)
        written.append(write(past, own, 2))
    return y, written


def _step_context(slots: jax.Array, now: jax.Array, before: int, positions: jax.Array, config: Config) -> Any:
    """Return the context of one new token that sees the cache's slots up to `now`, and itself."""
    batch, size = slots.shape
    index = jnp.arange(size)[None, :]
    filled = slots | ((index >= before) & (index < now))
    itself = jnp.ones((batch, 1), bool)
    allowed = jnp.concatenate([filled, itself], axis=1)[:, None, :]
    local = None
    if config.window is not None and any(config.sliding):
        near = jnp.broadcast_to(index > now - config.window, (batch, size))
        local = jnp.concatenate([near, itself], axis=1)[:, None, :]
    return make_context(positions, allowed, local, config)


_compiled = jax.jit(generate_tokens, static_argnames=("config", "max_new_tokens", "sampling", "contract"))


def _tokenise(lm: LM, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and mask, padded on the left to a multiple of the bucket."""
    if lm.tokenizer is None:
        checks.fail("lm", "have a tokenizer", "has none", "Embed the tokens yourself and call generate_tokens.")
    if isinstance(texts, str) or not texts:
        checks.fail("texts", "be a list of at least one text", f"is {texts!r}", 'Write ["..."].')
    rows = [lm.tokenizer(text)["input_ids"] for text in texts]
    size = -(-max(1, *map(len, rows)) // BUCKET) * BUCKET
    ids, mask = np.zeros((len(rows), size), np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        if row:
            ids[i, -len(row) :], mask[i, -len(row) :] = row, True
    return ids, mask


def generate(
    key: Key,
    lm: LM,
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    prompt: Float[Array, "*batch virtual width"] | None = None,
    prefix: KeysValues | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    contract: Contract = jnp.einsum,
) -> Generation:
    """Continue texts by a language model.

    Compiled once for a batch size, a length (rounded up to 32) and a number of new tokens; further calls, other
    temperatures and other prompts of the same shape run at once.

    Args:
        key: A key; greedy choice does not use it.
        lm: Parameters, config and tokenizer.
        texts: One or more.
        max_new_tokens: Most tokens to generate for each; a text that comes to a token of `config.eos_ids` ends there.
        prompt: Soft prompt before every text (virtual tokens, width), or one for each text.
        prefix: Keys and values before every text, as in `forward`.
        temperature: 0 takes the likeliest token; otherwise the logits are divided by it.
        top_k: Draws only from this many likeliest tokens.
        top_p: Draws only from the likeliest tokens that hold this probability, in (0, 1].
        contract: The product with a weight; pass the same function object again to avoid a new compilation.

    Returns:
        Texts and tokens.

    Raises:
        ValueError: If an argument is out of range, or the result would be longer than the model's learned positions.

    Example: see the tutorial; `generate(jax.random.key(0), lm, ["..."], max_new_tokens=32, prompt=soft_prompt)`.
    """
    checks.integer("max_new_tokens", max_new_tokens)
    checks.number("temperature", temperature, low=0.0)
    if top_p is not None:
        checks.number("top_p", top_p, low=0.0, high=1.0, low_open=True)
    sampling = Sampling(greedy=temperature == 0.0, top_k=top_k, nucleus=top_p is not None)
    ids, found = _tokenise(lm, texts)
    x, mask = embed(lm.params, jnp.asarray(ids), config=lm.config), jnp.asarray(found)
    if prompt is not None:
        checks.rank("prompt", prompt, (2, 3), "(virtual tokens, width) or (batch, virtual tokens, width)")
        x, mask = prepend(prompt, x, mask)
    elif not found.any(axis=1).all():
        checks.fail("texts", "have at least one token each", "hold an empty text", "Give a prompt before it.")
    longest = int(mask.sum(-1).max()) + max_new_tokens
    if lm.config.positions == "learned" and longest > lm.config.max_tokens:
        checks.fail("max_new_tokens", f"keep texts within {lm.config.max_tokens} tokens", f"makes {longest}")
    tokens, number = _compiled(
        key,
        lm.params,
        x,
        mask,
        config=lm.config,
        max_new_tokens=max_new_tokens,
        prefix=prefix,
        sampling=sampling,
        temperature=temperature or 1.0,
        top_p=1.0 if top_p is None else top_p,
        contract=contract,
    )
    rows = [row[:n] for row, n in zip(np.asarray(tokens), np.asarray(number), strict=True)]
    return Generation([lm.tokenizer.decode(row, skip_special_tokens=True) for row in rows], tokens, number)
