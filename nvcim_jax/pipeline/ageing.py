"""What time does to a programmed memory, and what is done about it."""

import jax
from jax.typing import ArrayLike
from jaxtyping import Num

from nvcim_jax import checks, crossbar
from nvcim_jax.crossbar import Chip
from nvcim_jax.pipeline.stages import State
from nvcim_jax.types import Key

__all__ = ["compensate_state", "drift_state"]


def _check_drifts(state: State) -> None:
    if state.device is None or state.device.drift is None:
        name = "None, exact memory" if state.device is None else f"{state.device.name!r}, which does not"
        checks.fail("state.device", "drift", f"is {name}", "Use a device that drifts, such as devices.get('PCM').")


def drift_state(state: State, t_s: Num[ArrayLike, ""]) -> State:
    """Let time pass for both chips of a memory, from the exponents sampled at programming. Draws nothing.

    Args:
        state: The memory, on a device that drifts.
        t_s: Seconds since programming (not since the last call), >= 0.

    Returns:
        The same memory at time `t_s`; digital corrections stay as they were set.

    Raises:
        ValueError: If the device does not drift, or the time is negative.

    Example: see `nvcim_jax.io.load_state`.
    """
    _check_drifts(state)
    checks.number("t_s", t_s, low=0.0, unit="s")

    def age(chip: Chip | None) -> Chip | None:
        return None if chip is None else crossbar.drift(chip, t_s)

    return state._replace(arrays=state.arrays._replace(values=age(state.arrays.values), keys=age(state.arrays.keys)))


def compensate_state(key: Key, state: State) -> State:
    """Scale the outputs of each array of both chips by what its summed conductance has lost.

    Args:
        key: Key of the reads that measure it.
        state: The memory, at some time after programming.

    Returns:
        The memory with its gains set.

    Raises:
        ValueError: If the device does not drift.

    Example: see `nvcim_jax.io.load_state`.

    References:
        V. Joshi et al., Nature Communications 11, 2473 (2020), "Drift compensation".
    """
    _check_drifts(state)
    value_key, search_key = jax.random.split(key)

    def restore(key: Key, chip: Chip | None) -> Chip | None:
        return None if chip is None else crossbar.compensate(key, chip)

    arrays = state.arrays
    made = arrays._replace(values=restore(value_key, arrays.values), keys=restore(search_key, arrays.keys))
    return state._replace(arrays=made)
