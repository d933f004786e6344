"""What tuned windows answer together: each exit by itself, and one of them or all."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.signature import checked
from nvcim_jax.tuning.span import adapt, cut_state, inside, window_lm, with_gain
from nvcim_jax.tuning.windows import Windows

__all__ = ["VOTES", "VoteInfo", "vote"]

VOTES = ("last", "max", "mean")


class VoteInfo(NamedTuple):
    """Say what each exit thought, in the order in which they were named.

    Attributes:
        confidence: Its largest probability (exits, batch, positions), in (0, 1].
        token: The token that has it (exits, batch, positions), int32.
    """

    confidence: jax.Array
    token: jax.Array


def _exit(windows: Windows, lm: LM, inputs: Inputs, at: jax.Array, w: int) -> jax.Array:
    """Return the log-probabilities at one exit; the inputs are the stream at the entrance of its window."""
    size = lm.config.num_layers // len(windows.gains)
    blocks = with_gain(window_lm(lm, w * size, size), windows.gains[w])
    state = cut_state(windows.adapter, windows.tuned, lm, w * size, size)
    adapted, given = adapt(windows.adapter, state, blocks, inputs)
    states, _ = models.hidden(adapted, given, at=at)
    return jax.nn.log_softmax(models.head(adapted, states).astype(jnp.float32), axis=-1)


def _join(total: jax.Array | None, new: jax.Array, how: str) -> jax.Array:
    if total is None or how == "last":
        return new
    return jnp.maximum(total, new) if how == "max" else jnp.logaddexp(total, new)


def _which(exits: Sequence[int] | None, lm: LM, windows: Windows) -> tuple[int, ...]:
    """Return the exits that vote, checked."""
    number, layers = len(windows.gains), lm.config.num_layers
    if layers % number:
        checks.fail("windows", f"divide the {layers} blocks of `lm`", f"are {number}", "They belong to another model.")
    chosen = tuple(range(number)) if exits is None else tuple(exits)
    if not chosen:
        checks.fail("exits", "name at least one exit", "are empty", "Use None for all of them.")
    for e in chosen:
        checks.integer("exits", e, low=0, high=number - 1)
    return chosen


@checked
def vote(
    windows: Windows,
    lm: LM,
    x: Inputs | Float[Array, "batch tokens width"],
    *,
    how: str | Callable[[jax.Array], jax.Array] = "max",
    at: Int[Array, "batch positions"] | None = None,
    exits: Sequence[int] | None = None,
) -> tuple[Float[Array, "batch positions vocab"], VoteInfo]:
    """Return what the exits of tuned windows say together, as logits: the logarithm of a distribution.

    `max`: M[v] = max_e softmax(z_e)[v], brought to the sum one, whose likeliest token is that of the most confident
    exit; `mean`: their mean; `last`: the last of the exits alone. The model's own stream runs once; from it each window
    starts its adapted one, up to its exit, so that a vote costs at most twice a forward pass, and a head an exit.

    To rank answers or to write by vote, give `models.rank` or `models.generate_tokens` a `predict`:
    `predict=lambda lm, x, at: vote(windows, lm, x, at=at)[0]`.

    Args:
        windows: From `tune_windows`.
        lm: The model they were tuned for.
        x: Embeddings of the texts, or `Inputs`.
        how: One of `VOTES`, or a vote of your own: a function from the logarithms of all probabilities
            (exits, batch, positions, vocab_size) to logits (batch, positions, vocab_size). It takes the memory of all
            exits at once, a named one that of two.
        at: Positions that are asked for (batch, positions); None: all.
        exits: Which exits vote, 0 the lowest; None: all of them. What lies above the highest of them is not run.

    Returns:
        Logits (batch, positions, vocab_size), float32, with a log-sum-exp of 0; and the info.

    Raises:
        ValueError: If there is no such vote or exit, or the windows belong to another model.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=4, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config, scale=0.3)
        >>> batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
        >>> adapter = tuning.lora(4, targets=("up", "down"))
        >>> windows, _ = tuning.tune_windows(jax.random.key(1), lm, batch, adapter=adapter, window=2)
        >>> logits, info = tuning.vote(windows, lm, models.embed(lm, jnp.array([[1, 5, 6]])))
        >>> int(logits[0, -1].argmax()), info.token[:, 0, -1].tolist()  # both exits learned the answer
        (8, [8, 8])

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, section 4.
    """
    if not callable(how):
        checks.choice("how", how, VOTES)
    chosen = _which(exits, lm, windows)
    total, every, confidence, token = None, [], [], []
    for voice in _voices(windows, lm, x, at, chosen[-1:] if how == "last" else chosen):
        confidence.append(jnp.exp(voice.max(axis=-1)))
        token.append(voice.argmax(axis=-1).astype(jnp.int32))
        if callable(how):
            every.append(voice)
        else:
            total = _join(total, voice, how)
    if callable(how):
        total = how(jnp.stack(every))
    assert total is not None
    logits = total - jax.nn.logsumexp(total, axis=-1, keepdims=True)
    return logits, VoteInfo(jnp.stack(confidence), jnp.stack(token))


def _voices(
    windows: Windows, lm: LM, x: Inputs | jax.Array, at: jax.Array | None, chosen: Sequence[int]
) -> Iterator[jax.Array]:
    """Yield the log-probabilities of some exits, one after the other; the model's own stream runs once."""
    inputs = x if isinstance(x, Inputs) else Inputs(x)
    checks.rank("x", inputs.x, 3, "(batch, tokens, width)", "Add an axis of one text in front.")
    if at is None:
        places = jnp.arange(inputs.x.shape[1], dtype=jnp.int32)
        at = jnp.broadcast_to(places, inputs.x.shape[:2])
    size = lm.config.num_layers // len(windows.gains)
    asked = sorted(set(chosen))
    _, below = models.hidden(lm, inputs, stop=asked[-1] * size, exits=[w * size for w in asked])
    assert below.hidden is not None
    entrances = dict(zip(asked, below.hidden, strict=True))
    for w in chosen:
        yield _exit(windows, lm, inside(inputs, entrances[w], w * size, size), at, w)
