"""One differentiable function from queries to the language model's loss, through noisy arrays; and training by it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, devices, selection, tuning
from nvcim_jax.models import LM
from nvcim_jax.ops import descend
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import program_store, retrieve
from nvcim_jax.pipeline.store import Store
from nvcim_jax.types import Key, Scalar

__all__ = ["Batch", "EndToEnd", "Trainable", "objective", "pipeline_loss", "train", "trainable", "with_trained"]


class Trainable(NamedTuple):
    """Hold what end-to-end training changes.

    Attributes:
        prompts: Stored prompts (slots, virtual tokens, width).
        codec: Between prompt and memory.
        scale_weights: Weights of the scaled search (scales,).
    """

    prompts: jax.Array
    codec: selection.Codec
    scale_weights: jax.Array


class Batch(NamedTuple):
    """Hold queries with their answers, and the store that they are answered from.

    Attributes:
        examples: Texts and answers.
        features: Features of the texts (texts, key tokens, width).
        store: The store; its trainable parts are replaced by those of `Trainable`.
        weights: Weight of each example (texts,), >= 0.
    """

    examples: tuning.Examples
    features: jax.Array
    store: Store
    weights: jax.Array


@checks.frozen_config
class EndToEnd:
    """Static options of end-to-end training.

    Attributes:
        num_steps: Updates, each on a chip of its own.
        batch: Examples drawn each step.
    """

    num_steps: int = 100
    batch: int = 16

    def __post_init__(self) -> None:
        """Check the numbers."""
        checks.integer("num_steps", self.num_steps)
        checks.integer("batch", self.batch)


def trainable(store: Store) -> Trainable:
    """Return the parts of a store that end-to-end training changes."""
    return Trainable(store.prompts, store.codec, store.scale_weights)


def with_trained(store: Store, trained: Trainable) -> Store:
    """Return the store with its trainable parts replaced; empty slots stay empty."""
    prompts = jnp.where(store.filled[:, None, None], trained.prompts, 0.0)
    return store._replace(prompts=prompts, codec=trained.codec, scale_weights=trained.scale_weights)


@jax.jit
def pipeline_loss(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    device: devices.Device | None,
    temperature: ArrayLike,
    *,
    config: Config,
) -> Scalar:
    """Return what `objective` returns, from the parts of a language model; jitted as a whole."""
    chip_key, read_key = jax.random.split(key)
    store = with_trained(batch.store, trained)
    arrays = program_store(chip_key, store, device, config=config)
    prompts, _ = retrieve(read_key, batch.features, store, arrays, device, config=config, temperature=temperature)

    def one(prompt: jax.Array, example: tuning.Examples) -> tuple[jax.Array, jax.Array]:
        alone = jax.tree.map(lambda a: a[None], example)
        count = (example.targets >= 0).sum().astype(jnp.float32)
        return tuning.prompt_loss(prompt, lm, alone, jnp.ones(1)), count

    losses, counts = jax.vmap(one)(prompts, batch.examples)
    total = (batch.weights * counts).sum()
    return (losses * batch.weights * counts).sum() / jnp.maximum(total, 1e-9)


def objective(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    device: devices.Device | None,
    *,
    config: Config,
    temperature: ArrayLike = 0.1,
) -> Scalar:
    """Return the loss of the whole pipeline on one chip: nats a token of the answers.

    `L = CE(LM([decode(sum_j w_j read(V~)_j); text]), answer)`, with `w = pick(search(encode(text), K~))` and `V~`, `K~`
    the arrays as one chip of the device holds them: encode, program, search, pick, read back, decode, language model.
    Differentiable in prompts, codec, scale weights and the numbers of the device (sigma), where `config.pick` is
    `soft` or `straight_through`; a `hard` pick passes no gradient to the search.

    Args:
        key: Key of the chip and its reads.
        trained: Prompts, codec, scale weights.
        batch: Queries with answers.
        lm: The language model.
        device: The memory cells; None for exact memory.
        config: Options of the pipeline.
        temperature: Of a soft choice, in the unit of the scores (a cosine, with `unit_keys`).

    Returns:
        The loss, a float32 scalar.

    Example: `loss, grads = jax.value_and_grad(objective, argnums=1)(key, trainable(store), batch, lm, device,
    config=config)`.
    """
    checks.shape("batch.features", batch.features, (len(batch.examples.ids), *batch.store.features.shape[1:]))
    return pipeline_loss(key, trained, batch, lm, device, temperature, config=config)


@jax.jit
def _train(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    device: Any,
    rates: tuning.Rates,
    temperature: jax.Array,
    config: Config,
    options: EndToEnd,
) -> tuple[Trainable, jax.Array]:
    def loss(trained: Trainable, key: Key, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del step
        draw_key, chip_key = jax.random.split(key)
        chosen = tuning.draw_batch(draw_key, batch.weights, options.batch)
        examples, features = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), (batch.examples, batch.features))
        part = Batch(examples, features, batch.store, jnp.ones(options.batch))
        value = pipeline_loss(chip_key, trained, part, lm, device, temperature, config=config)
        return value, value

    def rate(step: Any) -> jax.Array:
        return -(rates.learning_rate * (1.0 - (jnp.asarray(step, jnp.float32) + 0.5) / options.num_steps))

    def project(trained: Trainable) -> Trainable:
        return trained._replace(prompts=jnp.clip(trained.prompts, -rates.bound, rates.bound))

    optimiser = optax.chain(
        optax.clip_by_global_norm(rates.clip_norm),  # type: ignore[arg-type]  # traced
        optax.scale_by_adam(),
        optax.scale_by_schedule(rate),
    )
    return descend(key, trained, loss, optimiser, num_steps=options.num_steps, project=project)


def train(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    device: devices.Device | None,
    *,
    config: Config,
    options: EndToEnd = EndToEnd(),  # noqa: B008  # frozen
    rates: tuning.Rates | None = None,
    temperature: ArrayLike = 0.1,
) -> tuple[Trainable, Float[Array, " steps"]]:
    """Train prompts, codec and scale weights together by Adam through the noisy pipeline, a fresh chip every step.

    This goes beyond the paper, whose parts are trained one after the other; results name it "end-to-end".

    Args:
        key: A key.
        trained: Where to start, from a store that was tuned part by part.
        batch: All queries with answers that may be learned from.
        lm: The language model.
        device: The memory cells; None for exact memory.
        config: Options of the pipeline; its pick should be `soft` or `straight_through`.
        options: Number of steps and examples a step.
        rates: `learning_rate`, `clip_norm` and `bound` are used.
        temperature: As in `objective`.

    Returns:
        What was trained, and the loss before every update.

    Raises:
        ValueError: If the pick is hard.
    """
    if config.pick == "hard":
        checks.fail("config.pick", "be 'soft' or 'straight_through' to train", "is 'hard', which passes no gradient")
    rates = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tuning.Rates() if rates is None else rates)
    return _train(key, trained, batch, lm, device, rates, jnp.float32(temperature), config, options)
