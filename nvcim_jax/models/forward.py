"""The decoder as a pure function of its parameters and input embeddings."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks
from nvcim_jax.models.block import Context, KeysValues, apply_block, normalise, rows_at
from nvcim_jax.models.config import Config
from nvcim_jax.models.inputs import Inputs, as_inputs, check_inputs, check_length, num_past, positions_of, visible
from nvcim_jax.models.lm import LM
from nvcim_jax.models.params import look_up
from nvcim_jax.models.positions import rotary_table, sliding_mask
from nvcim_jax.ops import understand
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["Info", "Span", "forward", "head", "hidden", "run_layers"]


class Info(NamedTuple):
    """What a call saw on its way.

    Attributes:
        hidden: The residual stream after each of the `exits` (exits, ..., tokens, width), before the final norm; None
            where no exit was asked for.
        keys_values: Keys and values of the call's own tokens, stacked over the layers that ran; None unless kept.
    """

    hidden: jax.Array | None
    keys_values: KeysValues | None


@checks.frozen_config
class Span:
    """Say which blocks run, and what is kept of them.

    Attributes:
        start: First block.
        stop: One past the last block; None: all.
        exits: Layer counts in [start, stop] after which the residual stream is kept.
        keep: Whether to return the keys and values of the call's tokens.
        remat: Whether to compute each block again in the backward pass instead of keeping what is inside it.
        keyed: Whether weights hold random keys, as those on chips do: JAX's check of keys would take a key that is cut
            out of a stack inside a checkpoint for one that is used again.
    """

    start: int = 0
    stop: int | None = None
    exits: tuple[int, ...] = ()
    keep: bool = False
    remat: bool = False
    keyed: bool = False

    def last(self, config: Config) -> int:
        """Return one past the last block, the span checked against the model."""
        stop = config.num_layers if self.stop is None else self.stop
        checks.integer("stop", stop, low=0, high=config.num_layers)
        checks.integer("start", self.start, low=0, high=stop)
        for e in self.exits:
            checks.integer("exits", e, low=self.start, high=stop, fix="An exit counts the layers below it.")
        return stop


def _all_but_slices(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive not in (jax.lax.dynamic_slice_p, jax.lax.squeeze_p)


def run_layers(
    layers: dict[str, Any],
    x: Float[Array, "batch tokens width"],
    context: Context,
    past: KeysValues | None = None,
    at: Int[Array, "batch positions"] | None = None,
    *,
    config: Config,
    span: Span,
) -> tuple[Float[Array, "batch out width"], Info]:
    """Scan the blocks of a span over the residual stream; the blocks outside are not computed.

    Args:
        layers: Arrays of all layers, stacked.
        x: Residual stream before the first block of the span.
        context: Masks and rotary tables.
        past: Keys and values from before, stacked over all layers.
        at: Positions whose rows are wanted (batch, positions), without `exits` and `keep`; None: all.
        config: The model.
        span: The blocks.

    Returns:
        The residual stream after the last block of the span, and the info.
    """
    start, stop = span.start, span.last(config)
    # Of positions that nobody asks for, the last block has to give keys and values alone: it runs apart.
    alone = at is not None and stop > start
    slides = jnp.asarray(config.sliding) if config.mixes_windows else None
    stacked = (layers, past, slides)

    def body(x: jax.Array, item: Any, at: jax.Array | None = None) -> tuple[jax.Array, Any]:
        layer, past, slides = item
        y, own = apply_block(layer, x, context, past, slides, at, config=config)
        return y, (y if span.exits else None, own if span.keep else None)

    def indexed(x: jax.Array, i: jax.Array | int, at: jax.Array | None = None) -> tuple[jax.Array, Any]:
        # Slicing the stack would copy every weight of the range; one layer at a time is what the scan reads anyway.
        return body(x, jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), stacked), at)

    whole = start == 0 and stop == config.num_layers and not alone
    step: Any = body if whole else indexed
    items: Any = stacked if whole else jnp.arange(start, stop - alone)
    if span.remat:
        step = jax.checkpoint(step)
    elif not whole and not span.keyed:
        # The backward pass would keep a copy of every weight of the range: it cuts them out of the stack again.
        step = jax.checkpoint(step, policy=_all_but_slices, prevent_cse=False)
    y, (states, own) = jax.lax.scan(step, x, items)
    if at is not None:
        return step(y, stop - 1, at)[0] if alone else rows_at(y, at), Info(None, None)
    if not span.exits:
        return y, Info(None, own)
    kept = [x if e == start else states[e - start - 1] for e in span.exits]
    return y, Info(jnp.stack(kept), own)


def make_context(positions: jax.Array, allowed: jax.Array, local: jax.Array | None, config: Config) -> Context:
    """Return masks and rotary tables for tokens at the given positions.

    Args:
        positions: (batch or 1, tokens).
        allowed: Bool (batch or 1, tokens, keys).
        local: Which keys lie inside the window (batch or 1, tokens, keys), where layers slide.
        config: The model.
    """
    window = allowed & local if local is not None else None
    if config.positions != "rope":
        return Context(allowed, window, None, None)
    table = rotary_table(positions, config.rope, config.rotary)
    other = table if config.rope_local is None else rotary_table(positions, config.rope_local, config.rotary)
    return Context(allowed, window, table, other)


def add_positions(params: PyTree, x: jax.Array, positions: jax.Array, config: Config) -> jax.Array:
    """Add learned position embeddings, where the model has them."""
    if config.positions != "learned":
        return x
    rows = look_up(params["position_embedding"], positions + config.position_offset)
    return x + jnp.broadcast_to(rows.astype(x.dtype), x.shape)


def _near(places: jax.Array, past: int, config: Config) -> jax.Array | None:
    """Return which keys lie inside the window of each query, by position: a prefix stands at 0, 1, ..."""
    if config.window is None or not any(config.sliding):
        return None
    before = jnp.broadcast_to(jnp.arange(past, dtype=places.dtype), (len(places), past))
    return sliding_mask(places, jnp.concatenate([before, places], axis=1), config.window)


def _hidden(params: PyTree, inputs: Inputs, at: jax.Array | None, *, config: Config, span: Span) -> Any:
    """Run the blocks over checked inputs."""
    places = positions_of(inputs)
    x = add_positions(params, inputs.x, places, config) if span.start == 0 else inputs.x
    context = make_context(places, visible(inputs), _near(places, num_past(inputs.prefix), config), config)
    return run_layers(params["layers"], x, context, inputs.prefix, at, config=config, span=span)


@partial(jax.jit, static_argnames=("config", "span"))
def _run(params: PyTree, inputs: Inputs, at: jax.Array | None, *, config: Config, span: Span) -> Any:
    # Compiled as a whole outside of any jit, too: a scan that is called by itself is compiled anew in every call.
    return understand(partial(_hidden, config=config, span=span))(params, inputs, at)


@checked
def hidden(
    lm: LM,
    x: Inputs | Float[Array, "*batch tokens width"],
    *,
    start: int = 0,
    stop: int | None = None,
    exits: Sequence[int] = (),
    keep_keys_values: bool = False,
    at: Int[Array, "..."] | None = None,
    remat: bool = False,
) -> tuple[Float[Array, "*batch out width"], Info]:
    """Return the residual stream after block `stop - 1`, before the final norm and the head.

    Args:
        lm: As for `forward`.
        x: As for `forward`.
        start: As for `forward`.
        stop: As for `forward`.
        exits: As for `forward`.
        keep_keys_values: As for `forward`.
        remat: As for `forward`.
        at: The positions whose states are wanted (..., positions), which spares the last block all else; without
            `exits` and `keep_keys_values`.

    Returns:
        The residual stream (..., tokens or positions, width), and the info.

    Raises:
        ValueError: As `forward`, or if `at` has the wrong shape or does not go together with what else is asked for.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=4, num_heads=4, mlp_width=128)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> x = models.embed(lm, jnp.array([[1, 2, 3]]))
        >>> below, _ = models.hidden(lm, x, stop=2)
        >>> above, _ = models.hidden(lm, below, start=2)
        >>> whole, _ = models.hidden(lm, x)
        >>> bool(jnp.allclose(above, whole, atol=1e-6))  # two halves are the whole
        True
    """
    keyed = any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(lm.params))
    span = Span(start=start, stop=stop, exits=tuple(exits), keep=keep_keys_values, remat=remat, keyed=keyed)
    span.last(lm.config)
    given = as_inputs(x)
    inputs = check_inputs(given, lm.config)
    single = given.x.ndim == 2
    if at is not None:
        if exits or keep_keys_values:
            checks.fail("at", "be None with exits or keep_keys_values", "names positions", "Those need all of them.")
        at = at[None] if single else at
        checks.shape("at", at, (len(inputs.x), at.shape[-1]), "(batch, positions)")
        checks.number("at", at, low=0.0, high=inputs.x.shape[1] - 1.0)
    if start == 0:
        check_length(inputs, lm.config)
    y, info = _run(lm.params, inputs, at, config=lm.config, span=span)
    if not single:
        return y, info
    states = None if info.hidden is None else info.hidden[:, 0]
    own = None if info.keys_values is None else KeysValues(*(a[:, 0] for a in info.keys_values))
    return y[0], Info(states, own)


def head_params(params: PyTree, config: Config) -> dict[str, Any]:
    """Return the parameters that the head looks at."""
    names = ("final_norm", "final_norm_bias", "head_bias", "embedding" if config.tied else "head")
    return {name: params[name] for name in names if name in params}


def _head(params: PyTree, x: jax.Array, *, config: Config) -> jax.Array:
    y = normalise(x, params["final_norm"], params.get("final_norm_bias"), config=config)
    # A tied head is the embedding (vocab, width), contracted along its second axis.
    weight, form = (params["embedding"], "...i,oi->...o") if config.tied else (params["head"], "...i,io->...o")
    logits = jnp.einsum(form, y, weight.astype(y.dtype))
    if config.head_bias:
        logits = logits + jnp.expand_dims(params["head_bias"].astype(logits.dtype), range(logits.ndim - 1))
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits


@partial(jax.jit, static_argnames="config")
def _logits(params: PyTree, x: jax.Array, *, config: Config) -> jax.Array:
    return understand(partial(_head, config=config))(params, x)


@checked
def head(lm: LM, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
    """Return the logits of a residual stream: final norm, product with the head, cap.

    Args:
        lm: The model.
        x: Residual stream (..., width) after any layer.

    Returns:
        Logits (..., vocab_size), in the dtype of `x`.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=1, num_heads=4, mlp_width=128)
        >>> head(models.init(jax.random.key(0), config=config), jnp.ones((3, 64))).shape
        (3, 512)
    """
    return _logits(head_params(lm.params, lm.config), x, config=lm.config)


@checked
def forward(
    lm: LM,
    x: Inputs | Float[Array, "*batch tokens width"],
    *,
    start: int = 0,
    stop: int | None = None,
    exits: Sequence[int] = (),
    keep_keys_values: bool = False,
    remat: bool = False,
) -> tuple[Float[Array, "*batch tokens vocab"], Info]:
    """Map input embeddings to next-token logits.

    `logits = head(norm(block_L(... block_1(x))))`; the input is embeddings, so a soft prompt is put before them by
    `prepend`. Computation runs in the dtype of `x`, norms and softmax in float32; parameters of another dtype are
    converted one layer at a time. A weight may be an `nvcim_jax.ops.Weight`, which then makes its own products.

    Args:
        lm: The model.
        x: Input embeddings (batch, tokens, width), or (tokens, width) for one sequence; or `Inputs`, which hold their
            mask, positions and prefix as well.
        start: First block to run; `x` is then the residual stream before it.
        stop: One past the last block to run; those above are not computed. The head reads what there is.
        exits: Numbers of layers, in [start, stop], after which the residual stream is returned in the info.
        keep_keys_values: Whether to return the tokens' own keys and values in the info.
        remat: Whether the backward pass computes each block again: less memory, more time.

    Returns:
        Logits (..., tokens, vocab_size), and the info.

    Raises:
        ValueError: If a shape does not fit, or the tokens exceed the learned positions, before anything is traced.

    Example:
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> logits, info = forward(lm, models.embed(lm, jnp.array([[1, 2, 3]])), exits=(1,))
        >>> logits.shape, info.hidden.shape
        ((1, 3, 512), (1, 1, 3, 64))
    """
    y, info = hidden(lm, x, start=start, stop=stop, exits=exits, keep_keys_values=keep_keys_values, remat=remat)
    return head(lm, y), info
