"""A window of blocks tuned at a time, each with an exit of its own: adaptive layer tuning of Edge-LLM."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import descend
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter, as_adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.span import adapt, cut_state, join_states, window_lm, with_gain
from nvcim_jax.tuning.tune import How, Options, Parts, check_examples, check_weights, make_how, noisy_loss, read_loss
from nvcim_jax.types import Key, PyTree

__all__ = ["SCHEDULES", "WindowInfo", "WindowOptions", "Windows", "tune_windows"]

SCHEDULES = ("blocks", "cyclic", "random")


@checks.frozen_config
class WindowOptions:
    """Static options of `tune_windows`.

    Attributes:
        num_steps: Updates, of all windows together.
        batch: Examples drawn each step; None takes all of them, weighted.
        noise_rise: Share of a window's updates over which the noise rises to its full size, in [0, 1].
        remat: Whether the backward pass computes each block of the window again, as in `Options`.
        gain: Whether an exit has factors of its own, one a channel, behind the frozen final norm, which are tuned too.
        stored: Whether the stream at a window's entrance is computed once for all examples and kept, instead of in
            every step for the examples of that step: the same numbers, since nothing below a window is tuned.

    Raises:
        ValueError: If an option has no such value.
    """

    num_steps: int = 100
    batch: int | None = None
    noise_rise: float = 0.5
    remat: bool = False
    gain: bool = False
    stored: bool = True

    def __post_init__(self) -> None:
        """Check every option."""
        self.of(self.num_steps)

    def of(self, num_steps: int) -> Options:
        """Return what one window is tuned with."""
        return Options(num_steps=num_steps, batch=self.batch, noise_rise=self.noise_rise, remat=self.remat)


class Windows(NamedTuple):
    """Hold what was tuned in windows of equal size; `vote` reads it.

    Attributes:
        adapter: The adapter.
        tuned: Its state, of all blocks: what `tune` would return, and what a memory stores.
        gains: Factors of the channels behind the final norm, for each exit (windows, width); ones unless tuned.
    """

    adapter: Adapter
    tuned: PyTree
    gains: jax.Array


class WindowInfo(NamedTuple):
    """What happened while windows were tuned.

    Attributes:
        losses: Loss at the exit of the window of each update, before it, nats a token (steps,).
        window: Which window that was (steps,), int32.
        largest: Largest absolute value of the rows that a memory would store.
    """

    losses: jax.Array
    window: jax.Array
    largest: jax.Array


class _Below(NamedTuple):
    """Say where the stream at a window's entrance comes from.

    Attributes:
        x: The streams of all examples (examples, tokens, width), or None.
        lm: The model that computes them in every step, or None.
    """

    x: jax.Array | None
    lm: LM | None


def _times(key: Key, schedule: str | Sequence[int], num_steps: int, num_windows: int) -> list[Any]:
    """Return the updates of each window (its updates,), int32, ascending; by name, each window has its share."""
    steps = np.arange(num_steps, dtype=np.int32)
    if not isinstance(schedule, str):
        return [steps[np.asarray(schedule) == w] for w in range(num_windows)]
    if schedule == "blocks":
        return [steps[steps * num_windows // num_steps == w] for w in range(num_windows)]
    order: Any = jax.random.permutation(key, jnp.asarray(steps)) if schedule == "random" else steps
    return [jnp.sort(order[w::num_windows]) for w in range(num_windows)]


@jax.jit
def _enter(lm: LM, ids: jax.Array) -> jax.Array:
    """Return the stream below the first block: embeddings, learned positions among them."""
    return models.hidden(lm, models.embed(lm, ids), stop=0)[0]


@jax.jit
def _pass(window: LM, x: jax.Array) -> jax.Array:
    """Return the base stream above a window: one program for all of them."""
    everywhere = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return models.hidden(window, x, at=everywhere)[0]


def window_loss(
    params: tuple[PyTree, Any],
    window: LM,
    x: jax.Array,
    batch: Examples,
    weights: jax.Array,
    *,
    adapter: Adapter,
    remat: bool = False,
) -> jax.Array:
    """Return the loss of the answers at the exit of a window: nothing above it is run.

    Args:
        params: State of the adapter in the window, and the gain of its exit or None.
        window: The blocks of the window, from `window_lm`.
        x: Stream at its entrance (examples, tokens, width).
        batch: Texts and answers.
        weights: Weight of each example.
        adapter: The adapter.
        remat: Whether the backward pass computes each block again.
    """
    state, gain = params
    adapted, inputs = adapt(adapter, state, with_gain(window, gain), Inputs(x))
    return read_loss(adapted, inputs, batch, weights, remat=remat)


@partial(jax.jit, static_argnames="start")
def _tune_window(
    keys: tuple[Key, jax.Array],
    params: tuple[PyTree, Any],
    window: LM,
    below: _Below,
    data: tuple[Examples, jax.Array],
    how: How,
    *,
    start: int,
) -> tuple[tuple[PyTree, Any], jax.Array]:
    """Tune one window; `start`, its first block, is 0 where the streams are stored: then all share a program."""
    key, times = keys
    examples, weights = data
    rows = how.adapter.rows(how.project(params[0]))

    def measure(gain: Any, state: PyTree, drawn: tuple[Examples, Any], weights: jax.Array) -> jax.Array:
        batch, x = drawn
        if below.lm is not None:
            x = jax.lax.stop_gradient(models.hidden(below.lm, models.embed(below.lm, batch.ids), stop=start)[0])
        return window_loss((state, gain), window, x, batch, weights, adapter=how.adapter, remat=how.options.remat)

    def loss(params: tuple[PyTree, Any], key: Key, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, gain = params
        return noisy_loss(state, key, step, ((examples, below.x), weights, rows), how, partial(measure, gain))

    def gradient(_: Key, loss: Any, params: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        return how.gradient(jax.random.fold_in(key, times[step]), loss, params, step)

    return descend(
        key,
        params,
        loss,
        how.optimiser(how.options.num_steps),
        num_steps=how.options.num_steps,
        gradient=gradient,
        project=lambda params: (how.project(params[0]), params[1]),
    )


def _check(lm: LM, window: int, schedule: str | Sequence[int], options: WindowOptions) -> int:
    """Return the number of windows, the static arguments checked."""
    layers = lm.config.num_layers
    checks.integer("window", window, high=layers)
    if layers % window:
        sizes = ", ".join(str(m) for m in range(1, layers + 1) if layers % m == 0)
        checks.fail("window", f"divide the {layers} blocks of the model", f"is {window}", f"Use one of {sizes}.")
    if not isinstance(schedule, str):
        if len(schedule) != options.num_steps:
            checks.fail("schedule", f"name a window for each of {options.num_steps} updates", f"names {len(schedule)}")
        for w in schedule:
            checks.integer("schedule", w, low=0, high=layers // window - 1)
        return layers // window
    checks.choice("schedule", schedule, SCHEDULES)
    fix = "Give each window one update at least."
    checks.integer("options.num_steps", options.num_steps, low=layers // window, fix=fix)
    return layers // window


@checked
def tune_windows(
    key: Key,
    lm: LM,
    examples: Examples,
    weights: Float[Array, "..."] | None = None,
    *,
    adapter: Adapter,
    window: int = 6,
    schedule: str | Sequence[int] = "cyclic",
    options: WindowOptions = WindowOptions(),  # noqa: B008  # frozen
    **parts: Unpack[Parts],
) -> tuple[Windows, WindowInfo]:
    """Tune an adapter a window of blocks at a time, each before an exit of its own; the model stays frozen.

    After every `window` blocks there is an exit: the model's own final norm and head. Update t tunes the blocks of one
    window, on the loss at its exit: the blocks below run without the adapter and without a gradient, those above do
    not run at all. Windows do not see one another: each starts from the stream of the model itself, so that the
    schedule decides which draws (of examples, of noise) a window meets, and nothing else. The learning rate and the
    noise change with a window's own updates.

    Every window is a program of its own. Inside one `jax.jit` a compiler may run them side by side, in the memory of
    all of them: leave that out where memory is short.

    With one window of all blocks this is `tune`. Many users side by side: `jax.vmap` over keys, examples and weights.

    Args:
        key: A key.
        lm: The model; its weights may be packed.
        examples: Texts and answers.
        weights: How much each example counts (examples,), >= 0, not all 0; None: all alike.
        adapter: One with arrays for each block: `lora`, `ia3`, or `prefix`, whose keys and values then stand before the
            text in the window alone.
        window: Blocks of a window; it divides those of the model.
        schedule: Windows one after another in `blocks` of updates, in turn (`cyclic`), or in an order drawn at `random`
            in which each has its share; or the window of every update by number. One that is never named keeps its
            start, which for a prefix is the keys of a text: leave its exit out of `vote(exits=...)`.
        options: Number of steps and the like.
        **parts: As of `tune`: `optimiser`, `gradient`, `perturb`, `penalty`, `project`.

    Returns:
        The tuned windows, and the info.

    Raises:
        TypeError: If there is no such part.
        ValueError: If the window does not divide the blocks, there are fewer updates than windows, the adapter has no
            arrays for each block, or as `tune`.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=4, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
        >>> adapter = tuning.lora(4)
        >>> windows, info = tuning.tune_windows(jax.random.key(1), lm, batch, adapter=adapter, window=2)
        >>> info.window[:4].tolist(), bool(info.losses[-2:].max() < info.losses[:2].min())
        ([0, 1, 0, 1], True)

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, section 4; that the exit head is the frozen one, and its gain, are
        our choice (the authors train a copy of the head for each exit).
    """
    checks.key("key", key)
    num_windows = _check(lm, window, schedule, options)
    counts = check_weights(weights, examples)
    check_examples(examples, lm)
    init_key, order_key, tune_key = jax.random.split(checks.key("key", key), 3)
    adapter = as_adapter(adapter)
    make_how(adapter, options.of(options.num_steps), parts)  # refuses what is no part
    start = adapter.init(init_key, lm, examples, counts)
    cut = [cut_state(adapter, start, lm, w * window, window) for w in range(num_windows)]
    batch = examples._replace(words=None)
    times = _times(order_key, schedule, options.num_steps, num_windows)
    x = _enter(lm, batch.ids) if options.stored else None
    found, losses = [], jnp.zeros(options.num_steps, jnp.float32)
    for w in range(num_windows):
        blocks = window_lm(lm, w * window, window)
        params = (cut[w], jnp.ones(lm.config.width, jnp.float32) if options.gain else None)
        below = _Below(x, None) if options.stored else _Below(None, lm)
        how = make_how(adapter, options.of(max(len(times[w]), 1)), parts)
        at = 0 if options.stored else w * window
        if len(times[w]):
            keys = tune_key, jnp.asarray(times[w])
            params, seen = _tune_window(keys, params, blocks, below, (batch, counts), how, start=at)
            losses = losses.at[times[w]].set(seen)
        found.append(params)
        if x is not None and w + 1 < num_windows:
            x = _pass(blocks, x)
    return _gather(found, losses, times, lm, adapter)


def _gather(
    found: list[tuple[PyTree, Any]], losses: jax.Array, times: list[Any], lm: LM, adapter: Adapter
) -> tuple[Windows, WindowInfo]:
    """Return the windows as one state, and the info."""
    tuned = join_states(adapter, [state for state, _ in found], lm)
    ones = jnp.ones(lm.config.width, jnp.float32)
    gains = jnp.stack([ones if gain is None else gain for _, gain in found])
    window = jnp.zeros(losses.shape, jnp.int32)
    for w, at in enumerate(times):
        window = window.at[at].set(jnp.int32(w))
    return Windows(adapter, tuned, gains), WindowInfo(losses, window, jnp.abs(adapter.rows(tuned)).max(initial=0.0))
