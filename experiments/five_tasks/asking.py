"""Queries on chips: the prompt that each one finds there, and the answer that is chosen or written behind it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.five_tasks.arrays import Arrays
from nvcim_jax import checks, devices, models, pipeline, study
from nvcim_jax.study.methods import Trial

__all__ = ["EXACT", "Asked", "Entry", "answer", "entries", "retrieve"]

EXACT = ("No-Miti(MIPS)", "NVP*(MIPS)", "NVCiM-PT", "oracle route")
"""Methods that are measured in exact memory, too; the others differ by what they do about noise."""

Entry = tuple[Any, ...]
"""What an answer depends on: the prompt as one chip gave it back (training, mitigation, chip, slot), and the query."""


class Asked(NamedTuple):
    """Hold what one method found on all chips of a device.

    Attributes:
        slots: Of every query (chips, queries).
        prompts: What the chip gives back (chips, slots, virtual tokens, width).
        entries: What the answer to each query depends on, chip by chip.
        hit: Whether it is a prompt of the query's own domain (chips, queries).
    """

    slots: np.ndarray
    prompts: np.ndarray
    entries: list[list[Entry]]
    hit: np.ndarray


@jax.jit
def _on_chips(keys: jax.Array, trial: Trial, *args: Any) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda key: study.retrieve_on_chip(key, trial, *args))(keys)


def retrieve(
    key: jax.Array,
    name: str,
    trained: Any,
    arrays: Arrays,
    device: devices.Device | None,
    *,
    preset: pipeline.Preset,
    num_chips: int,
) -> Asked:
    """Ask all queries on every chip, without the language model.

    Chips are computed on the CPU, whatever the model runs on: they are small, and compiled sooner.

    Args:
        key: Key of the chips; chip i uses `fold_in(key, i)`, whatever the method.
        name: The method, of `study.METHODS`.
        trained: The prompts.
        arrays: The stream.
        device: The memory cells; None: exact memory, one chip.
        preset: Everything that is chosen.
        num_chips: Chips.
    """
    method = study.METHODS[name]
    num, store = 1 if device is None else num_chips, trained.stores[method.training]
    args = (store, trained.curvature, arrays.buffers.features[-1], arrays.questions, device)
    with jax.default_device(jax.devices("cpu")[0]):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
        own = study.trial(preset.fitted(device), method)
        keys, args = jax.device_put((keys, args), jax.devices("cpu")[0])
        slots, prompts = (np.asarray(a) for a in _on_chips(keys, own, *args))
    where = ("exact" if device is None else device.name, "none" if device is None else method.mitigation)
    found = [
        [(method.training, *where, chip, int(slot), q) for q, slot in enumerate(row)] for chip, row in enumerate(slots)
    ]
    owner = np.asarray(arrays.questions.domain_of_block)[np.asarray(store.block)[slots]]
    return Asked(slots, prompts, found, owner == np.asarray(arrays.questions.domain)[None])


def entries(asked: Asked) -> dict[Entry, np.ndarray]:
    """Return the prompt of every entry."""
    return {entry: asked.prompts[chip, entry[-2]] for chip, row in enumerate(asked.entries) for entry in row}


@checks.frozen_config
class _Room:
    """Most tokens that are written; 0: the answer is chosen."""

    tokens: int


@partial(jax.jit, static_argnames="room")
def _answer(
    prompts: jax.Array, alone: jax.Array, ids: jax.Array, mask: jax.Array, lm: models.LM, answers: Any, room: _Room
) -> Any:
    """Return the best of the answers, or tokens and their number; without its prompt where a query stands alone."""
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, ids), mask))
    bare = jnp.pad(mask, ((0, 0), (prompts.shape[1], 0)))
    assert inputs.mask is not None
    inputs = inputs._replace(mask=jnp.where(alone[:, None], bare, inputs.mask))
    if not room.tokens:
        return jnp.argmax(models.rank(lm, inputs, answers), axis=1)
    return models.generate_tokens(jax.random.key(0), lm, inputs, max_new_tokens=room.tokens)


def answer(
    wanted: dict[Entry, np.ndarray | None],
    arrays: Arrays,
    lm: models.LM,
    *,
    num_rows: int,
    num_virtual: int,
    tokens: int = 0,
) -> dict[Entry, Any]:
    """Answer each entry's query behind its prompt, or alone: the number of the best answer, or the tokens written.

    Args:
        wanted: Entry -> prompt, or None where the query stands alone; the last part of an entry is the query.
        arrays: The stream.
        lm: The language model.
        num_rows: Queries of one call.
        num_virtual: Virtual tokens of a prompt.
        tokens: Most tokens that are written; 0: an answer is chosen.
    """
    names, blank = list(wanted), np.zeros((num_virtual, lm.config.width), np.float32)
    made: dict[Entry, Any] = {}
    for start in range(0, len(names), num_rows):
        own = names[start : start + num_rows]
        rows = [own[i % len(own)] for i in range(num_rows)]  # one size, and no answer depends on another
        queries, found = np.asarray([entry[-1] for entry in rows]), [wanted[entry] for entry in rows]
        prompts = np.stack([blank if prompt is None else prompt for prompt in found])
        alone = np.asarray([prompt is None for prompt in found])
        args = (prompts, alone, arrays.ids[queries], arrays.mask[queries], lm, arrays.answers)
        made |= zip(own, _read(_answer(*args, room=_Room(tokens=tokens))), strict=False)
    return made


def _read(found: Any) -> list[Any]:
    """Return what was chosen or written as plain values."""
    if not isinstance(found, tuple):
        return np.asarray(found).tolist()
    return [row[:number].tolist() for row, number in zip(*map(np.asarray, found), strict=True)]
