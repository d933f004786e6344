"""What a memory does to a prompt while it is tuned: the noise models of noise-aware training, bound to a device."""

import jax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nvcim_jax import crossbar, devices, tuning
from nvcim_jax.pipeline.config import Config
from nvcim_jax.types import Key

__all__ = ["through_cells", "training_noise"]

CENSORED_AT = 1.0
"""Largest noise of right-censored training, in standard deviations: this library's choice [I]."""


def through_cells(
    key: Key, prompt: Float[Array, "virtual width"], device: devices.Device, *, config: crossbar.Config
) -> Float[Array, "virtual width"]:
    """Return a prompt as a freshly programmed chip would give it back, every cell with the noise of its own level.

    The prompt is one column of the matrix; the gradient passes straight through rounding, slicing and noise.

    Args:
        key: Key of the chip and of its one read.
        prompt: (virtual tokens, width).
        device: The memory cells.
        config: Options of the crossbars.
    """
    write_key, read_key = jax.random.split(key)
    chip = crossbar.program(write_key, prompt.reshape(-1, 1), device, config=config)
    read = crossbar.read_back(read_key, chip).reshape(prompt.shape)
    # Reading multiplies by the scale of the column, which depends on the largest entry: that part is left out.
    return prompt + jax.lax.stop_gradient(read - prompt)


def _nothing(key: Key, prompt: jax.Array) -> jax.Array:
    del key
    return prompt


def training_noise(device: devices.Device | None, config: Config) -> Partial:
    """Return the noise of `config.noise` as a `perturb` for `tuning.tune`; another sigma compiles nothing.

    Args:
        device: The memory cells; None: no noise.
        config: Options of the pipeline.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import devices, pipeline
        >>> device = devices.get("FeFET3", sigma=0.1)
        >>> perturb = training_noise(device, pipeline.Config(noise="cell"))
        >>> noise = perturb(jax.random.key(0), jnp.ones((8, 256))) - 1.0
        >>> bool(0.03 < noise.std() < 0.3)
        True
    """
    if config.noise == "none" or device is None:
        return Partial(_nothing)
    if config.noise == "value":
        return Partial(devices.value_noise, device=device)
    if config.noise == "censored":
        return Partial(tuning.censored_noise, sigma=device.sigma, threshold=CENSORED_AT)
    return Partial(through_cells, device=device, config=config.arrays)
