"""The store of tuned prompts (OVTs): what is to be held, how much room it takes, what happens when it is full."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks, crossbar, models, selection, tuning
from nvcim_jax.ops import Moments, moments_init
from nvcim_jax.pipeline.config import Config
from nvcim_jax.signature import checked

__all__ = [
    "Capacity",
    "Inserted",
    "Store",
    "Trainable",
    "capacity",
    "check_room",
    "check_rows",
    "empty_store",
    "insert",
]


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


class Store(NamedTuple):
    """Hold the prompts that the memory is to hold, with what finds them. An empty slot holds zeros.

    Attributes:
        prompts: Rows of each tuned adapter, such as virtual tokens (slots, rows, width).
        features: Features that each prompt is found by, all its keys (slots, keys x key tokens, width).
        filled: Which slots hold a prompt (slots,), bool.
        born: When each was stored, in prompts stored before it (slots,), int32.
        uses: How often each was found (slots,), int32.
        block: In which call of `observe` each was stored, for scoring (slots,), int32; -1 for an empty slot.
        codec: Between prompt and memory.
        scale_weights: Weights of the scaled search (scales,).
        seen: Moments of the features of all texts observed, digital, for `Config.key_spread`.
    """

    prompts: jax.Array
    features: jax.Array
    filled: jax.Array
    born: jax.Array
    uses: jax.Array
    block: jax.Array
    codec: selection.Codec
    scale_weights: jax.Array
    seen: Moments

    def trainable(self) -> Trainable:
        """Return the parts that end-to-end training changes."""
        return Trainable(self.prompts, self.codec, self.scale_weights)

    def with_trained(self, trained: Trainable) -> "Store":
        """Return the store with its trainable parts replaced; empty slots stay empty."""
        prompts = jnp.where(self.filled[:, None, None], trained.prompts, 0.0)
        return self._replace(prompts=prompts, codec=trained.codec, scale_weights=trained.scale_weights)


def check_rows(store: Store, adapter: tuning.Adapter, lm: models.LM) -> None:
    """Refuse an adapter whose rows the store does not hold.

    Raises:
        ValueError: If the rows have another shape.
    """
    own, held = adapter.rows_shape(lm), store.prompts.shape[1:]
    if own != held:
        fix = "Pass adapter= to every function of this store, as to `init`."
        checks.fail("adapter", f"have the rows of the store, {held}", f"has {own}", fix)


class Inserted(NamedTuple):
    """Say where new prompts went.

    Attributes:
        slots: Slot of each new prompt (new,), int32.
        replaced: Whether a prompt was thrown out there (new,), bool.
        refused: Whether the store was full and refused them all, which a traced call cannot raise, bool.
    """

    slots: jax.Array
    replaced: jax.Array
    refused: jax.Array


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


def empty_store(rows: tuple[int, int], config: Config) -> Store:
    """Return a store without prompts, and with a codec that waits for its first training.

    Args:
        rows: Shape of one prompt, see `tuning.Adapter.rows_shape`.
        config: Options of the pipeline.
    """
    slots, width = config.capacity, rows[1]
    weights = selection.SSA_WEIGHTS if len(config.search.scales) == 3 else (1.0,) * len(config.search.scales)
    return Store(
        prompts=jnp.zeros((slots, *rows), jnp.float32),
        features=jnp.zeros((slots, config.num_keys * config.search_tokens, width), jnp.float32),
        filled=jnp.zeros(slots, bool),
        born=jnp.zeros(slots, jnp.int32),
        uses=jnp.zeros(slots, jnp.int32),
        block=jnp.full(slots, -1, jnp.int32),
        codec=_first_codec(width, config),
        scale_weights=jnp.asarray(weights, jnp.float32),
        seen=moments_init((config.search_tokens, width)),
    )


def _first_codec(width: int, config: Config) -> selection.Codec:
    """Return a codec that keeps the leading values, of the sizes that training gives it: then no buffer compiles anew.

    With the identity there is none to wait for.
    """
    if config.codec == "identity":
        return selection.codec_identity()
    eye = jnp.eye(width, config.code, dtype=jnp.float32)
    encoder, decoder = ((eye, jnp.zeros(config.code, jnp.float32)),), ((eye.T, jnp.zeros(width, jnp.float32)),)
    return selection.Codec(encoder, decoder, jnp.zeros(width, jnp.float32), jnp.ones((), jnp.float32))


def check_room(store: Store, num: int, config: Config) -> None:
    """Refuse prompts that do not fit, where that can be seen.

    Raises:
        ValueError: If the store is full and refuses, or more prompts come at once than it has slots.
    """
    slots = len(store.filled)
    free = slots - int(store.filled.sum()) if checks.is_concrete(store.filled) else slots
    if num > slots or (config.when_full == "refuse" and num > free):
        checks.fail(
            "config.capacity",
            f"leave room for {num} more prompts",
            f"{slots} slots leave {free} empty",
            "Raise capacity, or let when_full='oldest' or 'least_used' replace prompts.",
        )


def insert(
    store: Store,
    prompts: Float[Array, "new rows width"],
    features: Float[Array, "new keys width"],
    *,
    config: Config,
) -> tuple[Store, Inserted]:
    """Store new prompts, into empty slots first.

    Args:
        store: The store.
        prompts: Tuned prompts.
        features: Features that they are found by.
        config: `when_full` says whose slot is taken when none is empty: nobody's (`refuse`), that of the `oldest` or of
            the `least_used` prompt (the oldest of them).

    Returns:
        The store, and where the prompts went. A traced call that is refused stores nothing and says so.

    Raises:
        ValueError: If the store is full and refuses, or more prompts come at once than it has slots.
    """
    num, slots = len(prompts), len(store.filled)
    check_room(store, num, config)
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
    refused = replaced.any() if config.when_full == "refuse" else jnp.zeros((), bool)
    if config.when_full == "refuse":
        made = jax.tree.map(lambda old, new: jnp.where(refused, old, new), store, made)
    return made, Inserted(order, replaced, refused)


@checked
def capacity(model: models.Config, config: Config, arrays: crossbar.Config) -> Capacity:
    """Return the arrays and cells of a store of prompts, full or not.

    Args:
        model: The language model.
        config: Options of the pipeline.
        arrays: Options of the crossbars.

    Example:
        >>> from nvcim_jax import models, pipeline
        >>> model = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> arrays = pipeline.Preset().arrays
        >>> capacity(model, pipeline.Config(capacity=128), arrays).value_arrays  # 8 tokens x 48 values: 8 pairs
        16
    """
    code = model.width if config.codec == "identity" else config.code
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=model))
    shapes = [(config.adapter().rows_shape(lm)[0] * code, config.capacity)]
    if not config.shares_arrays:
        rows = selection.num_key_rows(config.search_tokens, code, config=config.search)
        shapes.append((rows, config.capacity * config.num_keys))
    found = [crossbar.report(shape, arrays) for shape in shapes]
    keys = found[1].num_arrays if len(found) > 1 else 0
    return Capacity(config.capacity, found[0].num_arrays, keys, sum(each.num_cells_used for each in found))
