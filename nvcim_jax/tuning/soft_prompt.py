"""Prompt tuning: a few virtual tokens before a frozen language model, many prompts in one compiled call."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nvcim_jax import checks, models
from nvcim_jax.models import embed, head, hidden, token_losses
from nvcim_jax.tuning.examples import Examples, draw_batch
from nvcim_jax.types import Key, Perturb, Scalar

__all__ = ["Info", "Options", "Rates", "prompt_loss", "tune"]

_UNROLL = 4
"""Blocks compiled as one piece: less is copied between them, and a deep model still compiles few of them."""

SCHEDULES = ("constant", "linear", "cosine")
Leaf = jax.Array | float | Any


@checks.frozen_config
class Options:
    """Static options of prompt tuning.

    Attributes:
        num_steps: Updates.
        batch: Examples drawn each step; None takes all of them, weighted.
        schedule: Learning rate after the warm-up: `constant`, or falling to zero in a `linear` or `cosine` way.
        warmup: Share of the updates over which the learning rate rises from zero, in [0, 1).
        noise_rise: Share of the updates over which the noise rises from nothing to its full size, in [0, 1].
        remat: Whether the backward pass computes each block of the model again: the same prompts, in less memory (one
            block's activations and, for packed weights, one block's floats instead of all) and more time.

    Raises:
        ValueError: If an option has no such value.
    """

    num_steps: int = 100
    batch: int | None = None
    schedule: str = "linear"
    warmup: float = 0.05
    noise_rise: float = 0.5
    remat: bool = False

    def __post_init__(self) -> None:
        """Check every option."""
        checks.integer("num_steps", self.num_steps)
        if self.batch is not None:
            checks.integer("batch", self.batch)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.number("warmup", self.warmup, low=0.0, high=0.99)
        checks.number("noise_rise", self.noise_rise, low=0.0, high=1.0)


@struct.dataclass
class Rates:
    """Numbers of prompt tuning; they change without a new compilation.

    Attributes:
        learning_rate: Of Adam.
        clip_norm: Largest norm of a gradient.
        bound: Largest entry a prompt may have: it is clipped to [-bound, bound] after every update. The noise of a
            memory grows with max|S|, so the bound is what keeps it small.
        max_penalty: Weight of max|S| in the loss, a soft bound.
        anchor: Weight of the mean squared distance to the anchor.
        lipschitz: Weight of the excess of max_i sum_j |S S^T|_ij, which bounds the squared largest singular value of S,
            over the square of `lipschitz_limit`.
        lipschitz_limit: See above.
    """

    learning_rate: Leaf = 1e-2
    clip_norm: Leaf = 1.0
    bound: Leaf = float("inf")
    max_penalty: Leaf = 0.0
    anchor: Leaf = 0.0
    lipschitz: Leaf = 0.0
    lipschitz_limit: Leaf = 1.0


class Info(NamedTuple):
    """What happened while prompts were tuned.

    Attributes:
        losses: Loss before every update, nats a token of the answers, noise included (prompts, steps).
        largest: max|S| of each tuned prompt (prompts,).
    """

    losses: jax.Array
    largest: jax.Array


def prompt_loss(
    prompt: Float[Array, "virtual width"],
    lm: models.LM,
    batch: Examples,
    weights: Float[Array, " examples"],
    *,
    remat: bool = False,
) -> Scalar:
    """Return the loss of the answers behind a prompt.

    `L(S) = sum_i w_i sum_t -log p(a_it | S, text_i, a_i<t) / sum_i w_i |a_i|`, in nats a token of the answers. Logits
    exist for the tokens of the answers alone.

    Args:
        prompt: S (virtual tokens, width).
        lm: The frozen model.
        batch: Texts and answers.
        weights: Weight of each example, >= 0.
        remat: Whether the backward pass computes each block again, see `Options`.

    Returns:
        The loss, float32; 0 where all weights are 0.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config, scale=1e-4)
        >>> batch = tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> prompt = jnp.zeros((4, 32))
        >>> round(float(prompt_loss(prompt, lm, batch, jnp.ones(1))), 2)  # log 64 = 4.16
        4.16
    """
    checks.rank("prompt", prompt, 2, "(virtual tokens, width)")
    checks.shape("prompt", prompt, (len(prompt), lm.config.width), "(virtual tokens, width)")
    weights = weights.astype(jnp.float32)
    text = embed(lm, batch.ids)
    before = jnp.broadcast_to(prompt.astype(text.dtype), (len(text), *prompt.shape))
    whole = jnp.concatenate([before, text], axis=1)
    at = batch.where + prompt.shape[0]
    # Where memory is short, one block at a time.
    unroll = 1 if remat else min(_UNROLL, lm.config.num_layers)
    states, _ = hidden(lm, whole, at=at, remat=remat, unroll=unroll)
    losses = token_losses(head(lm, states), batch.targets)
    count = (weights * (batch.targets >= 0).sum(axis=1).astype(jnp.float32)).sum()
    return (losses.sum(axis=1) * weights).sum() / jnp.maximum(count, 1e-9)


def _unchanged(key: Key, prompt: jax.Array) -> jax.Array:
    """Return a prompt as it is: the noise-free default."""
    del key
    return prompt


def _penalties(prompt: jax.Array, anchor: jax.Array | None, rates: Rates) -> jax.Array:
    """Return the terms that hold a prompt: its largest entry, its Lipschitz constant, its distance to the anchor."""
    total = rates.max_penalty * jnp.abs(prompt).max()
    squared = jnp.abs(prompt @ prompt.T).sum(axis=1).max()
    total += rates.lipschitz * jnp.maximum(squared - jnp.square(rates.lipschitz_limit), 0.0)
    return total if anchor is None else total + rates.anchor * jnp.square(prompt - anchor).mean()


def _learning_rate(step: jax.Array, rates: Rates, options: Options) -> jax.Array:
    done = (step.astype(jnp.float32) + 0.5) / options.num_steps
    rise = jnp.minimum(done / options.warmup, 1.0) if options.warmup else 1.0
    left = jnp.clip((1.0 - done) / (1.0 - options.warmup), 0.0, 1.0)
    fall = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left)}[options.schedule]
    return rates.learning_rate * rise * fall


def _tune_one(
    key: Key,
    prompt: jax.Array,
    anchor: jax.Array | None,
    lm: models.LM,
    batch: Examples,
    weights: jax.Array,
    rates: Rates,
    perturb: Any,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """Tune one prompt: Adam, one draw of noise and (with `batch`) of examples a step."""
    optimiser = optax.chain(optax.clip_by_global_norm(rates.clip_norm), optax.scale_by_adam())  # type: ignore[arg-type]

    def objective(prompt: jax.Array, key: Key, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise_key, batch_key = jax.random.split(key)
        share = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(options.noise_rise * options.num_steps, 1.0), 1.0)
        noisy = prompt + share * (perturb(noise_key, prompt) - prompt)
        part, own = batch, weights
        if options.batch is not None:
            chosen = draw_batch(batch_key, weights, options.batch)
            part, own = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), batch), jnp.ones(options.batch, jnp.float32)
        value = prompt_loss(noisy, lm, part, own, remat=options.remat)
        return value + _penalties(prompt, anchor, rates), value

    def update(carry: tuple[jax.Array, Any], step: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        prompt, state = carry
        grad, value = jax.grad(objective, has_aux=True)(prompt, jax.random.fold_in(key, step), step)
        # Adam's bias correction in Optax raises a float to an integer step.
        with jax.numpy_dtype_promotion("standard"):
            direction, state = optimiser.update(grad, state)
        moved = prompt - _learning_rate(step, rates, options) * jnp.asarray(direction)
        return (jnp.clip(moved, -rates.bound, rates.bound), state), value

    start = jnp.clip(prompt, -rates.bound, rates.bound)
    (tuned, _), losses = jax.lax.scan(update, (start, optimiser.init(start)), jnp.arange(options.num_steps))
    return tuned, losses


@jax.jit
def _tune_all(
    key: Key,
    prompts: jax.Array,
    anchors: jax.Array | None,
    lm: models.LM,
    batch: Examples,
    weights: jax.Array,
    rates: Rates,
    perturb: Any,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(prompts)))

    def one(key: Key, prompt: jax.Array, anchor: jax.Array | None, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _tune_one(key, prompt, anchor, lm, batch, weights, rates, perturb, options)

    return jax.vmap(one)(keys, prompts, anchors, weights)


def tune(
    key: Key,
    prompts: Float[Array, "..."],
    lm: models.LM,
    batch: Examples,
    weights: Float[Array, "..."],
    rates: Rates | None = None,
    *,
    options: Options = Options(),  # noqa: B008  # frozen
    perturb: Perturb | Any = _unchanged,
    anchors: Float[Array, "prompts virtual width"] | None = None,
) -> tuple[Float[Array, "prompts virtual width"], Info]:
    """Tune several prompts at once, each on examples weighted its own way; the model stays frozen.

    Step t of prompt j: S <- clip(S - lr_t Adam(grad [L(S + s_t (perturb(S) - S)) + penalties(S)]), -bound, bound), with
    noise drawn afresh every step and s_t rising to 1. Prompt j draws from `fold_in(key, j)`, whatever else is tuned
    beside it. A second call with arrays of the same shapes compiles nothing.

    Args:
        key: A key; without noise and batches it decides nothing.
        prompts: Where the prompts start (prompts, virtual tokens, width).
        lm: The model.
        batch: Texts and answers, shared by the prompts.
        weights: How much each example counts for each prompt (prompts, examples), >= 0; each row has a positive one.
        rates: Numbers: learning rate, bound, penalties; the defaults of `Rates` if None.
        options: Number of steps and the like.
        perturb: What the memory does to a prompt, `perturb(key, prompt)`; its gradient should be the identity's. Bind
            arrays with `jax.tree_util.Partial`, so that a new sigma compiles nothing:
            `Partial(devices.value_noise, device=device)`.
        anchors: What `rates.anchor` holds the prompts to.

    Returns:
        The tuned prompts, and the info.

    Raises:
        ValueError: If shapes do not fit, weights are negative or missing, or prompts are not finite.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
        >>> start = jnp.stack([tuning.init_text(lm, jnp.array([3, 4]), 4)] * 2)
        >>> tuned, info = tune(jax.random.key(1), start, lm, batch, jnp.eye(2))
        >>> bool((info.losses[:, -1] < info.losses[:, 0]).all())
        True

    References:
        B. Lester et al., "The power of scale for parameter-efficient prompt tuning", arXiv:2104.08691; noise-aware
        tuning of the stored tokens: Qin et al., arXiv:2411.08244 (the clean form of the noise is in
        `nvcim_jax.devices.value_noise`).
    """
    checks.key("key", key)
    checks.rank("prompts", prompts, 3, "(prompts, virtual tokens, width)", "Add a leading axis for a single prompt.")
    if prompts.shape[-1] != lm.config.width:
        checks.fail("prompts", f"have width {lm.config.width}", f"has shape {prompts.shape}")
    checks.finite("prompts", prompts)
    checks.shape("weights", weights, (len(prompts), len(batch.ids)), "(prompts, examples)")
    checks.number("weights", weights, low=0.0)
    if checks.is_concrete(weights) and not bool((jnp.asarray(weights).sum(axis=1) > 0).all()):
        checks.fail("weights", "give each prompt at least one example", "have a row of zeros")
    if anchors is not None:
        checks.shape("anchors", anchors, prompts.shape, "(prompts, virtual tokens, width)")
    rates = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), Rates() if rates is None else rates)
    bound = perturb if isinstance(perturb, Partial) else Partial(perturb)
    tuned, losses = _tune_all(key, prompts.astype(jnp.float32), anchors, lm, batch, weights, rates, bound, options)
    return tuned, Info(losses, jnp.abs(tuned).max(axis=(1, 2)))
