"""Tuning an adapter on labelled texts before a frozen model, through the noise that it will be stored with."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import Gradient, Optimiser, Weight, as_partial, descend, draw_batch, reverse_mode
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter, as_adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.optimisers import adam
from nvcim_jax.types import Key, PyTree, Scalar

__all__ = ["Options", "Parts", "TuneInfo", "answer_loss", "tune"]


@checks.frozen_config
class Options:
    """Static options of tuning.

    Attributes:
        num_steps: Updates.
        batch: Examples drawn each step; None takes all of them, weighted.
        noise_rise: Share of the updates over which the noise rises from nothing to its full size, in [0, 1].
        remat: Whether the backward pass computes each block of the model again: the same result, in less memory (one
            block's activations and, for packed weights, one block's floats instead of all) and more time.

    Raises:
        ValueError: If an option has no such value.
    """

    num_steps: int = 100
    batch: int | None = None
    noise_rise: float = 0.5
    remat: bool = False

    def __post_init__(self) -> None:
        """Check every option."""
        checks.integer("num_steps", self.num_steps)
        if self.batch is not None:
            checks.integer("batch", self.batch)
        checks.number("noise_rise", self.noise_rise, low=0.0, high=1.0)


class Parts(TypedDict, total=False):
    """Functions that `tune` takes as keywords; each has a default.

    Attributes:
        optimiser: `optimiser(num_steps)` -> an Optax transformation; `adam()` by default.
        gradient: How the slope is found, see `nvcim_jax.ops.Gradient`; one backward pass by default.
        perturb: `perturb(key, rows)`: what the memory does to the stored rows; its gradient should be the identity's.
        penalty: `penalty(rows, start)`: a number that is added to the loss, see `penalties`.
        project: `project(state)`, at the start and after every update, see `bounded`.
    """

    optimiser: Callable[[int], Optimiser]
    gradient: Gradient
    perturb: Callable[[Key, jax.Array], jax.Array]
    penalty: Callable[[jax.Array, jax.Array], jax.Array]
    project: Callable[[PyTree], PyTree]


class TuneInfo(NamedTuple):
    """What happened while a state was tuned.

    Attributes:
        losses: Loss before every update, nats a token of the answers, noise included (steps,).
        largest: Largest absolute value of the rows that a memory would store.
    """

    losses: jax.Array
    largest: jax.Array


@checked
def answer_loss(
    state: PyTree,
    lm: LM,
    batch: Examples,
    weights: Float[Array, " examples"],
    *,
    adapter: Adapter,
    remat: bool = False,
) -> Scalar:
    """Return the loss of the answers under an adapted model.

    `L(S) = sum_i w_i sum_t -log p(a_it | S, text_i, a_i<t) / sum_i w_i |a_i|`, in nats a token of the answers. Logits
    exist for the tokens of the answers alone.

    Args:
        state: State of the adapter, such as a prompt (virtual tokens, width).
        lm: The frozen model.
        batch: Texts and answers.
        weights: Weight of each example, >= 0.
        adapter: The adapter.
        remat: Whether the backward pass computes each block again, see `Options`.

    Returns:
        The loss, float32; 0 where all weights are 0.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config, scale=1e-4)
        >>> batch = tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> loss = answer_loss(jnp.zeros((4, 32)), lm, batch, jnp.ones(1), adapter=tuning.prompt(4))
        >>> round(float(loss), 2)  # log 64 = 4.16
        4.16
    """
    return _answer_loss(state, lm, batch, weights.astype(jnp.float32), as_adapter(adapter), remat=remat)


@partial(jax.jit, static_argnames="remat")
def _answer_loss(
    state: PyTree, lm: LM, batch: Examples, weights: jax.Array, adapter: Adapter, *, remat: bool
) -> jax.Array:
    before = batch.where[:, 0] + 1
    adapted, inputs = adapter.apply(state, lm, Inputs(models.embed(lm, batch.ids), num_text=before))
    if adapted.params["embedding"] is not lm.params["embedding"]:  # the table itself is tuned
        adapted, inputs = adapter.apply(state, lm, Inputs(models.embed(adapted, batch.ids), num_text=before))
    shared = inputs.x.shape[1] - batch.ids.shape[1] if _one_before_all(adapter, adapted, inputs) else 0
    return read_loss(adapted, inputs, batch, weights, remat=remat, shared=shared)


_MOST_SHARED = 512
"""Most rows of a batch that are run as one sequence: each is scored against all others, most of them in vain."""


def _one_before_all(adapter: Adapter, lm: LM, inputs: Inputs) -> bool:
    """Return whether several texts stand behind the same rows, if any, and running those once changes nothing but time.

    An adapter of one's own may make rows of each text; a `Weight` may draw noise of its own for every row.
    """
    texts, tokens = inputs.x.shape[:2]
    plain = not any(isinstance(leaf, Weight) for leaf in lm.params["layers"].values())
    alone = inputs.mask is None and inputs.positions is None and inputs.prefix is None
    return plain and alone and bool(adapter.details) and texts > 1 and texts * tokens <= _MOST_SHARED


def _as_one(inputs: Inputs, at: jax.Array, shared: int) -> tuple[Inputs, jax.Array]:
    """Return texts behind the same rows as branches of one sequence, which holds those rows once; and the positions.

    `shared + texts x tokens` rows run through the model instead of `texts x (shared + tokens)`.
    """
    texts, tokens = len(inputs.x), inputs.x.shape[1] - shared
    own = inputs.x[:, shared:].reshape(1, texts * tokens, -1)
    x = jnp.concatenate([inputs.x[:1, :shared], own], axis=1)
    owner = np.concatenate([np.full(shared, -1), np.repeat(np.arange(texts), tokens)])
    places = np.concatenate([np.arange(shared), np.tile(np.arange(shared, shared + tokens), texts)])
    seen = np.tri(len(owner), dtype=bool) & ((owner[None, :] < 0) | (owner[None, :] == owner[:, None]))
    moved = at + jnp.arange(texts, dtype=jnp.int32)[:, None] * tokens
    positions = jnp.asarray(places[None], jnp.int32)
    return Inputs(x, jnp.asarray(seen[None]), positions), moved.reshape(1, -1)


def read_loss(
    lm: LM, inputs: Inputs, batch: Examples, weights: jax.Array, *, remat: bool, shared: int = 0
) -> jax.Array:
    """Return the loss of the answers by an adapted model, whose inputs may be longer than the texts.

    The first `shared` rows are the same before all texts.
    """
    at = batch.where + (inputs.x.shape[1] - batch.ids.shape[1])
    if shared:
        inputs, at = _as_one(inputs, at, shared)
    states, _ = models.hidden(lm, inputs, at=at, remat=remat)
    logits = models.head(lm, states.reshape(*batch.where.shape, -1))
    losses = models.token_losses(logits, batch.targets)
    count = (weights * (batch.targets >= 0).sum(axis=1).astype(jnp.float32)).sum()
    return (losses.sum(axis=1) * weights).sum() / jnp.maximum(count, 1e-9)


def _as_it_is(key: Key, rows: jax.Array) -> jax.Array:
    """Return what is stored as it is: the noise-free default."""
    del key
    return rows


def _free(rows: jax.Array, start: jax.Array) -> jax.Array:
    del rows, start
    return jnp.zeros((), jnp.float32)


def _anywhere(state: PyTree) -> PyTree:
    return state


class How(NamedTuple):
    """Hold everything that is not data, each part a tree."""

    adapter: Adapter
    options: Options
    optimiser: Any
    gradient: Any
    perturb: Any
    penalty: Any
    project: Any


def make_how(adapter: Adapter, options: Options, given: Parts) -> How:
    """Return all parts, the default where none was given."""
    checks.options("tune", given.keys() - Parts.__annotations__.keys(), Parts.__annotations__)
    defaults: dict[str, Any] = {
        "optimiser": adam(),
        "gradient": reverse_mode,
        "perturb": _as_it_is,
        "penalty": _free,
        "project": _anywhere,
    }
    parts = {name: as_partial(part) for name, part in {**defaults, **given}.items()}
    return How(as_adapter(adapter), options, **parts)


def noisy_loss(
    state: PyTree, key: Key, step: jax.Array, data: tuple[Any, ...], how: How, measure: Callable[..., jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return the loss with its penalties, and without them, of one draw of noise and (with `batch`) of examples.

    Args:
        state: State of the adapter.
        key: Of this step.
        step: Its number.
        data: A tree with an axis of examples first, their weights, and the rows where tuning started.
        how: Everything else.
        measure: `measure(state, examples, weights)` -> loss.
    """
    batch, weights, start = data
    options, adapter = how.options, how.adapter
    noise_key, batch_key = jax.random.split(key)
    share = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(options.noise_rise * options.num_steps, 1.0), 1.0)
    rows = adapter.rows(state)
    if how.perturb.func is _as_it_is:  # the weights of a whole model are no rows
        noisy = state
    else:
        noisy = adapter.from_rows(rows + share * (how.perturb(noise_key, rows) - rows))
    if options.batch is not None:
        chosen = draw_batch(batch_key, weights, options.batch)
        batch, weights = (
            jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), batch),
            jnp.ones(options.batch, jnp.float32),
        )
    value = measure(noisy, batch, weights)
    return value + how.penalty(rows, start), value


def check_weights(weights: Any, examples: Examples) -> jax.Array:
    """Return how much each example counts, checked; ones where nothing was said."""
    counts = jnp.ones(len(examples.ids), jnp.float32) if weights is None else weights
    checks.shape("weights", counts, (len(examples.ids),), "(examples,)", "Use jax.vmap for many states.")
    checks.number("weights", counts, low=0.0)
    checks.finite("weights", counts)
    if checks.is_concrete(counts) and not (np.asarray(counts) > 0).any():
        checks.fail("weights", "give the state at least one example", "are all zero")
    return counts


def check_examples(examples: Examples, lm: LM) -> None:
    """Check that every token of some examples is one of the model's; traced ones pass."""
    lm.config.check_tokens("examples.ids", examples.ids)
    if checks.is_concrete(examples.targets):
        answers = np.maximum(np.asarray(examples.targets), 0)  # negative: to be ignored
        lm.config.check_tokens("examples.targets", answers)


@jax.jit
def _tune(key: Key, state: PyTree, lm: LM, batch: Examples, weights: jax.Array, how: How) -> tuple[PyTree, TuneInfo]:
    """Run the loop; the arguments are checked."""
    data = (batch._replace(words=None), weights, how.adapter.rows(how.project(state)))

    def measure(state: PyTree, batch: Examples, weights: jax.Array) -> jax.Array:
        return answer_loss(state, lm, batch, weights, adapter=how.adapter, remat=how.options.remat)

    tuned, losses = descend(
        key,
        state,
        lambda state, key, step: noisy_loss(state, key, step, data, how, measure),
        how.optimiser(how.options.num_steps),
        num_steps=how.options.num_steps,
        gradient=how.gradient,
        project=how.project,
    )
    return tuned, TuneInfo(losses, jnp.abs(how.adapter.rows(tuned)).max(initial=0.0))


@checked
def tune(
    key: Key,
    state: PyTree,
    lm: LM,
    examples: Examples,
    weights: Float[Array, "..."] | None = None,
    *,
    adapter: Adapter,
    options: Options = Options(),  # noqa: B008  # frozen
    **parts: Unpack[Parts],
) -> tuple[PyTree, TuneInfo]:
    """Tune the state of an adapter on weighted examples; the model stays frozen.

    Step t: S <- project(S + optimiser(grad [L(S + s_t (perturb(S) - S)) + penalty(S)])), with noise drawn afresh every
    step and s_t rising to 1. A second call with arrays of the same shapes compiles nothing, new numbers included.

    Many states are tuned side by side by `jax.vmap` over keys, states and weights; with `jax.random.fold_in(key, j)`
    as the key of state j, each is tuned as if alone.

    Args:
        key: A key; without noise and batches it decides nothing.
        state: Where it starts, from `adapter.init`; tuned in float32.
        lm: The model.
        examples: Texts and answers.
        weights: How much each example counts (examples,), >= 0, not all 0; None: all alike.
        adapter: What is tuned, such as `prompt()`.
        options: Number of steps and the like.
        **parts: Functions in place of the defaults, see `Parts`: `optimiser`, `gradient`, `perturb`, `penalty`,
            `project`. Bind arrays with `jax.tree_util.Partial`, so that a new sigma compiles nothing:
            `perturb=Partial(devices.value_noise, device=device)`.

    Returns:
        The tuned state, and the info.

    Raises:
        TypeError: If there is no such part.
        ValueError: If shapes do not fit, a token is none of the model's, weights are negative or missing, or the state
            is not finite.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.prompt(4)
        >>> batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
        >>> start = adapter.init(jax.random.key(1), lm, batch)
        >>> tuned, info = tune(jax.random.key(2), start, lm, batch, adapter=adapter)
        >>> bool(info.losses[-1] < info.losses[0])
        True

    References:
        B. Lester et al., "The power of scale for parameter-efficient prompt tuning", arXiv:2104.08691; noise-aware
        tuning of the stored tokens: Qin et al., arXiv:2411.08244 (the clean form of the noise is in
        `nvcim_jax.devices.value_noise`).
    """
    checks.key("key", key)
    for leaf in jax.tree.leaves(state):
        checks.finite("state", leaf)
    check_examples(examples, lm)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)
    return _tune(key, state, lm, examples, check_weights(weights, examples), make_how(adapter, options, parts))
