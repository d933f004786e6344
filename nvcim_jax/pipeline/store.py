"""The store of tuned prompts (OVTs): what is to be held, how much room it takes, what happens when it is full."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks, crossbar, models, selection
from nvcim_jax.pipeline.config import Config

__all__ = ["Capacity", "Inserted", "Store", "capacity", "empty_store", "insert", "key_shape", "value_shape"]


class Store(NamedTuple):
    """Hold the prompts that the memory is to hold, with what finds them. An empty slot holds zeros.

    Attributes:
        prompts: Tuned prompts (slots, virtual tokens, width).
        features: Features of each prompt's representative (slots, key tokens, width).
        filled: Which slots hold a prompt (slots,), bool.
        born: When each was stored, in prompts stored before it (slots,), int32.
        uses: How often each was found (slots,), int32.
        block: In which call of `observe` each was stored, for scoring (slots,), int32; -1 for an empty slot.
        codec: Between prompt and memory.
        scale_weights: Weights of the scaled search (scales,).
    """

    prompts: jax.Array
    features: jax.Array
    filled: jax.Array
    born: jax.Array
    uses: jax.Array
    block: jax.Array
    codec: selection.Codec
    scale_weights: jax.Array


class Inserted(NamedTuple):
    """Say where new prompts went.

    Attributes:
        slots: Slot of each new prompt (new,), int32.
        replaced: Whether a prompt was thrown out there (new,), bool.
    """

    slots: jax.Array
    replaced: jax.Array


class Capacity(NamedTuple):
    """Hold the room that a full store takes.

    Attributes:
        prompts: Prompts that it holds.
        value_arrays: Physical arrays for the prompts.
        key_arrays: Physical arrays for separate keys; 0 where the search runs on the prompts' own cells.
        cells: Memory cells of all that is programmed, reference and pair cells included.
    """

    prompts: int
    value_arrays: int
    key_arrays: int
    cells: int


def empty_store(model: models.Config, config: Config) -> Store:
    """Return a store without prompts, and with the identity codec until one is trained.

    Args:
        model: The language model, whose width the prompts have.
        config: Options of the pipeline.
    """
    slots = config.capacity
    weights = selection.SSA_WEIGHTS if len(config.search.scales) == 3 else (1.0,) * len(config.search.scales)
    return Store(
        prompts=jnp.zeros((slots, config.num_virtual, model.width)),
        features=jnp.zeros((slots, config.search_tokens, model.width)),
        filled=jnp.zeros(slots, bool),
        born=jnp.zeros(slots, jnp.int32),
        uses=jnp.zeros(slots, jnp.int32),
        block=jnp.full(slots, -1, jnp.int32),
        codec=selection.codec_identity(),
        scale_weights=jnp.asarray(weights, jnp.float32),
    )


def insert(
    store: Store,
    prompts: Float[Array, "new virtual width"],
    features: Float[Array, "new tokens width"],
    *,
    config: Config,
) -> tuple[Store, Inserted]:
    """Store new prompts, into empty slots first.

    Args:
        store: The store.
        prompts: Tuned prompts.
        features: Features of their representatives.
        config: `when_full` says whose slot is taken when none is empty: nobody's (`refuse`), that of the `oldest` or of
            the `least_used` prompt (the oldest of them).

    Returns:
        The store, and where the prompts went.

    Raises:
        ValueError: If the store is full and refuses, or more prompts come at once than it has slots.
    """
    num, slots = len(prompts), len(store.filled)
    free = slots - int(store.filled.sum())
    if num > slots or (config.when_full == "refuse" and num > free):
        checks.fail(
            "config.capacity",
            f"leave room for {num} more prompts",
            f"{slots} slots leave {free} empty",
            "Raise capacity, or let when_full='oldest' or 'least_used' replace prompts.",
        )
    uses = store.uses if config.when_full == "least_used" else jnp.zeros_like(store.uses)
    # lexsort: the last key counts most
    order = jnp.lexsort((jnp.arange(slots), store.born, uses, store.filled))[:num]
    first = jnp.where(store.filled.any(), jnp.where(store.filled, store.born, -1).max() + 1, 0)
    replaced = store.filled[order]
    made = store._replace(
        prompts=store.prompts.at[order].set(prompts),
        features=store.features.at[order].set(features),
        filled=store.filled.at[order].set(True),
        born=store.born.at[order].set((first + jnp.arange(num)).astype(jnp.int32)),
        uses=store.uses.at[order].set(0),
        block=store.block.at[order].set(store.block.max() + 1),
    )
    return made, Inserted(order, replaced)


def value_shape(width: int, config: Config) -> tuple[int, int]:
    """Return rows and columns of the matrix that holds the prompts, one a column."""
    code = width if config.codec == "identity" else config.code
    return config.num_virtual * code, config.capacity


def key_shape(width: int, config: Config) -> tuple[int, int]:
    """Return rows and columns of the matrix that is searched, one key a column."""
    code = width if config.codec == "identity" else config.code
    return selection.num_key_rows(config.search_tokens, code, config=config.search), config.capacity


def capacity(model: models.Config, config: Config) -> Capacity:
    """Return the arrays and cells of a store, full or not.

    Args:
        model: The language model.
        config: Options of the pipeline.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> model = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> capacity(model, pipeline.Config(capacity=128)).value_arrays  # 8 tokens x 48 values: 8 pairs of arrays
        16
    """
    shapes = [value_shape(model.width, config)]
    if not config.shares_arrays:
        shapes.append(key_shape(model.width, config))
    found = [crossbar.report(shape, config.arrays) for shape in shapes]
    keys = found[1].num_arrays if len(found) > 1 else 0
    return Capacity(config.capacity, found[0].num_arrays, keys, sum(each.num_cells_used for each in found))
