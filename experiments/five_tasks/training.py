"""All prompts of a stream, tuned side by side: every buffer, plainly, through noise, and with a Lipschitz penalty."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks, devices, models, ops, pipeline, study
from nvcim_jax.pipeline.store import Store, insert
from nvcim_jax.study.measure import LIPSCHITZ

__all__ = ["TRAININGS", "Trained", "train"]

TRAININGS = ("plain", "noise", "lipschitz")


class Trained(NamedTuple):
    """Hold what was tuned.

    Attributes:
        stores: Training -> the store after the last buffer.
        curvature: Second derivatives of the plainly tuned prompts, in their slots.
        losses: Training -> loss at the last step, mean over buffers.
    """

    stores: dict[str, Store]
    curvature: np.ndarray
    losses: dict[str, float]


@checks.frozen_config
class _How:
    """What is the same for all prompts."""

    config: pipeline.Config
    together: int


@jax.jit
def _tune(keys: jax.Array, buffers: Any, parts: Any, lm: models.LM, how: _How) -> tuple[Store, jax.Array]:
    """Return the stores after the last buffer, with an axis of trainings, and the last losses (trainings, blocks)."""
    empty = pipeline.init(jax.random.key(0), lm, config=how.config)
    shape = len(TRAININGS), len(keys)

    def one(which: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        own, buffer = (jax.tree.map(lambda a, i=i: a[i], tree) for i, tree in zip(which, (parts, buffers), strict=True))
        # All trainings of a block draw from one key, as those of a study do.
        key = jax.random.wrap_key_data(keys[which[1]])
        state, info = pipeline.observe(key, empty, buffer, lm, config=how.config, **own)
        slot = info.inserted.slots[0]
        return state.store.prompts[slot], state.store.features[slot], info.tuned.losses[0, -1]

    number = jnp.arange(shape[0] * shape[1])
    found = jax.lax.map(one, (number // shape[1], number % shape[1]), batch_size=how.together)
    prompts, features, losses = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), found)

    def fill(prompts: jax.Array, features: jax.Array) -> Store:
        """Take in one prompt a block, as `observe` does one after the other."""
        store = empty.store
        for prompt, key, seen in zip(prompts, features, buffers.features, strict=True):
            store, _ = insert(store, prompt[None], key[None], config=how.config)
            store = store._replace(seen=ops.moments_add(store.seen, seen))
        return store

    return jax.vmap(fill)(prompts, features), losses


def _parts(preset: pipeline.Preset, device: devices.Device) -> Any:
    """Return what tuning meets in each training, stacked: no noise is noise of size zero, and so is no penalty."""
    own = preset.changed(lipschitz=0.0)
    each = {
        "plain": own.parts(device.replace(sigma=0.0)),
        "noise": own.parts(device),
        "lipschitz": preset.changed(lipschitz=preset.lipschitz or LIPSCHITZ).parts(device.replace(sigma=0.0)),
    }
    kept = [{name: part for name, part in each[t].items() if name != "memory"} for t in TRAININGS]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *kept)


@jax.jit
def _curvature(keys: jax.Array, prompts: jax.Array, examples: Any, lm: models.LM, how: _How) -> jax.Array:
    """Return the second derivatives of each block's prompt, (blocks, virtual tokens, width)."""
    own: Any = {"adapter": how.config.adapter()}

    def one(each: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
        key, prompt, part = each
        every = jnp.ones((1, len(part.ids)), jnp.float32)
        return study.curvature(jax.random.wrap_key_data(key), prompt[None], lm, part, every, **own)[0]

    return jax.lax.map(one, (keys, prompts, examples))


def _block_keys(key: jax.Array, num: int) -> np.ndarray:
    return np.stack([np.asarray(jax.random.key_data(jax.random.fold_in(key, t))) for t in range(num)])


def train(
    key: jax.Array,
    buffers: Any,
    lm: models.LM,
    device: devices.Device,
    *,
    preset: pipeline.Preset,
    together: int,
) -> Trained:
    """Tune every prompt of a stream: the same prompts, to rounding, as `study.observe_stream` makes one by one.

    Args:
        key: A key; block t uses `fold_in(key, t)`.
        buffers: The buffers, stacked.
        lm: The language model.
        device: Whose noise is met.
        preset: Everything that is chosen; one prompt a buffer.
        together: Prompts that are tuned at a time, a divisor of their number: memory against time.
    """
    if preset.config.num_prompts != 1:
        checks.fail("preset.config.num_prompts", "be 1", f"is {preset.config.num_prompts}")
    num, how = len(buffers.centres), _How(config=preset.config, together=together)
    found, losses = _tune(_block_keys(key, num), buffers, _parts(preset, device), lm, how)
    held: Any = jax.device_get(found)
    stores = {name: jax.tree.map(lambda a, i=i: a[i], held) for i, name in enumerate(TRAININGS)}
    _, probe_key = jax.random.split(jax.random.fold_in(key, num))
    prompts, curvature = stores["plain"].prompts, np.zeros_like(stores["plain"].prompts)
    # An empty store is filled from the front.
    curvature[:num] = _curvature(_block_keys(probe_key, num), prompts[:num], buffers.examples, lm, how)
    mean = {name: float(np.mean(losses[i])) for i, name in enumerate(TRAININGS)}
    return Trained(stores, curvature, mean)
