"""One differentiable function from queries to the language model's loss, through noisy memory; and training by it."""

from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks, tuning
from nvcim_jax.models import LM
from nvcim_jax.ops import as_partial, descend, draw_batch
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import Memory, as_memory
from nvcim_jax.pipeline.retrieval import TEMPERATURE, program_store, retrieve
from nvcim_jax.pipeline.store import Store, Trainable, check_rows
from nvcim_jax.signature import checked
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import Key, Scalar

__all__ = ["Batch", "EndToEnd", "TrainParts", "objective", "train"]


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


@jax.jit
def _objective(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    memory: Memory,
    config: Config,
    adapter: Adapter,
    temperature: ArrayLike,
) -> Scalar:
    """Return the loss on one chip; the arguments are checked."""
    chip_key, read_key = jax.random.split(key)
    store = batch.store.with_trained(trained)
    arrays = program_store(chip_key, store, memory, config=config)
    prompts, _ = retrieve(read_key, batch.features, store, arrays, memory, config=config, temperature=temperature)

    def one(rows: jax.Array, example: tuning.Examples) -> tuple[jax.Array, jax.Array]:
        alone = jax.tree.map(lambda a: a[None], example)
        count = (example.targets >= 0).sum().astype(jnp.float32)
        return tuning.answer_loss(adapter.from_rows(rows), lm, alone, jnp.ones(1, jnp.float32), adapter=adapter), count

    losses, counts = jax.vmap(one)(prompts, batch.examples._replace(words=None))
    total = (batch.weights * counts).sum()
    return (losses * batch.weights * counts).sum() / jnp.maximum(total, 1e-9)


@checked
def objective(
    key: Key,
    trained: Trainable,
    batch: Batch,
    lm: LM,
    memory: Memory,
    *,
    config: Config,
    adapter: Adapter | None = None,
    temperature: ArrayLike = TEMPERATURE,
) -> Scalar:
    """Return the loss of the whole pipeline on one chip: nats a token of the answers.

    `L = CE(LM([decode(sum_j w_j read(V~)_j); text]), answer)`, with `w = pick(search(encode(text), K~))` and `V~`, `K~`
    the matrices as one memory holds them: encode, program, search, pick, read back, decode, language model.
    Differentiable in prompts, codec, scale weights and the numbers of the memory (sigma), where `config.pick` is
    `soft` or `straight_through`; a `hard` pick passes no gradient to the search.

    Args:
        key: Key of the chip and its reads.
        trained: Prompts, codec, scale weights.
        batch: Queries with answers.
        lm: The language model.
        memory: What holds the store, such as `crossbar_memory(device, arrays)`.
        config: Options of the pipeline.
        adapter: What the stored rows belong to; None: the prompt of the options.
        temperature: Of a soft choice, in the unit of the scores (a cosine, with `key_unit`).

    Returns:
        The loss, a float32 scalar.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> config = pipeline.Config(capacity=2, num_virtual=1, codec="identity", pick="straight_through")
        >>> store = pipeline.init(jax.random.key(1), lm, config=config).store
        >>> examples = tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> batch = pipeline.Batch(examples, jnp.ones((1, 1, 32)), store, jnp.ones(1))
        >>> loss = lambda trained: objective(
        ...     jax.random.key(2), trained, batch, lm, pipeline.exact_memory(), config=config
        ... )
        >>> value, slope = jax.eval_shape(jax.value_and_grad(loss), store.trainable())
        >>> value.shape, slope.prompts.shape == store.prompts.shape  # a number, and its slope by every stored prompt
        ((), True)
    """
    width = batch.store.features.shape[-1]
    checks.shape("batch.features", batch.features, (len(batch.examples.ids), config.search_tokens, width))
    adapter = tuning.as_adapter(config.adapter() if adapter is None else adapter)
    check_rows(batch.store, adapter, lm)
    return _objective(key, trained, batch, lm, as_memory(memory), config, adapter, temperature)


class TrainParts(TypedDict, total=False):
    """Name what `train` takes besides, as `tuning.tune` does.

    Attributes:
        optimiser: From the number of steps to an optimiser; Adam whose learning rate falls to zero.
        project: Holds the stored states, after every update; nothing does.
    """

    optimiser: Any
    project: Any


class _Fixed(NamedTuple):
    """Hold what stays the same while the whole pipeline is trained."""

    batch: Batch
    lm: LM
    memory: Memory
    config: Config
    options: EndToEnd
    temperature: jax.Array
    optimiser: Partial
    project: Partial
    adapter: Adapter


@jax.jit
def _train(key: Key, trained: Trainable, fixed: _Fixed) -> tuple[Trainable, jax.Array]:
    options, batch, adapter = fixed.options, fixed.batch, fixed.adapter

    def loss(trained: Trainable, key: Key, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del step
        draw_key, chip_key = jax.random.split(key)
        chosen = draw_batch(draw_key, batch.weights, options.batch)
        known = (batch.examples._replace(words=None), batch.features)
        examples, features = jax.tree.map(lambda a: jnp.take(a, chosen, axis=0), known)
        part = Batch(examples, features, batch.store, jnp.ones(options.batch, jnp.float32))
        value = _objective(chip_key, trained, part, fixed.lm, fixed.memory, fixed.config, adapter, fixed.temperature)
        return value, value

    def project(trained: Trainable) -> Trainable:
        held = jax.vmap(lambda rows: adapter.rows(fixed.project(adapter.from_rows(rows))))(trained.prompts)
        return trained._replace(prompts=held)

    optimiser = fixed.optimiser(options.num_steps)
    return descend(key, trained, loss, optimiser, num_steps=options.num_steps, project=project)


@checked
def train(
    key: Key,
    batch: Batch,
    lm: LM,
    memory: Memory,
    *,
    config: Config,
    adapter: Adapter | None = None,
    options: EndToEnd = EndToEnd(),  # noqa: B008  # frozen
    temperature: ArrayLike = TEMPERATURE,
    **parts: Unpack[TrainParts],
) -> tuple[Store, Float[Array, " steps"]]:
    """Train prompts, codec and scale weights of a store together through the noisy pipeline, a fresh chip every step.

    This goes beyond the paper, whose parts are trained one after the other; results name it "end-to-end".

    Args:
        key: A key.
        batch: All queries with answers that may be learned from, and the store to start from, tuned part by part.
        lm: The language model.
        memory: What holds the store.
        config: Options of the pipeline; its pick should be `soft` or `straight_through`.
        adapter: What the rows belong to; None: that of the config.
        options: Number of steps and examples a step.
        temperature: As in `objective`; one of your own belongs into `choose` and `answer` as well.
        **parts: `optimiser` and `project`, see `TrainParts`.

    Returns:
        The store as trained, and the loss before every update.

    Raises:
        TypeError: If there is no such part.
        ValueError: If the pick is hard, or the store holds rows of another adapter.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm, exact = models.init(jax.random.key(0), config=layout), pipeline.exact_memory()
        >>> config = pipeline.Config(capacity=2, num_virtual=1, codec="identity", pick="straight_through")
        >>> store = pipeline.init(jax.random.key(1), lm, config=config).store
        >>> batch = pipeline.Batch(tuning.examples([[1, 5, 6]], [[8, 2]]), jnp.ones((1, 1, 32)), store, jnp.ones(1))
        >>> options = pipeline.EndToEnd(num_steps=3)
        >>> run = lambda key: train(key, batch, lm, exact, config=config, options=options)
        >>> jax.eval_shape(run, jax.random.key(2))[1].shape  # the loss before each update
        (3,)
        >>> train(jax.random.key(2), batch, lm, exact, config=config.changed(pick="hard"))
        Traceback (most recent call last):
        ...
        ValueError: Argument `config.pick` must be 'soft' or 'straight_through' to train, but is 'hard', ...
    """
    if config.pick == "hard":
        checks.fail("config.pick", "be 'soft' or 'straight_through' to train", "is 'hard', which passes no gradient")
    known = TrainParts.__annotations__
    checks.options("pipeline.train", parts.keys() - known.keys(), known)
    optimiser = parts.get("optimiser", tuning.adam(schedule=tuning.Schedule(warmup=0.0)))
    project = parts.get("project", tuning.bounded(float("inf")))
    fixed = _Fixed(
        batch,
        lm,
        as_memory(memory),
        config,
        options,
        jnp.asarray(temperature, jnp.float32),
        as_partial(optimiser),
        as_partial(project),
        tuning.as_adapter(config.adapter() if adapter is None else adapter),
    )
    check_rows(batch.store, fixed.adapter, lm)
    trained, losses = _train(key, batch.store.trainable(), fixed)
    return batch.store.with_trained(trained), losses
