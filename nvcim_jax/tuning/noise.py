"""Training noise that is not a device's: the right-censored Gaussian."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.ops import normal
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["censored_noise", "right_censored_moments"]


@checked
def censored_noise(
    key: Key, values: Float[Array, "*shape"], *, sigma: ArrayLike, threshold: ArrayLike = 1.0, rng: str = "counter"
) -> Float[Array, "*shape"]:
    """Add Gaussian noise whose right tail is cut: training with it helps the worst chips more than the mean one.

    `S + stop_gradient(max|S|) * sigma * min(z, threshold)`, z standard normal; an infinite threshold is plain
    Gaussian noise. The scale by max|S| makes it comparable with `devices.value_noise` and is this library's choice [I].

    Args:
        key: Key of this draw.
        values: Values to disturb, any shape.
        sigma: Standard deviation before the cut, relative to max|S|, >= 0.
        threshold: Largest z, in standard deviations.
        rng: Generator of the noise, see `nvcim_jax.ops.normal`.

    Returns:
        Noisy values; their derivative to `values` is 1.

    Raises:
        ValueError: If `sigma` is negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> noise = censored_noise(jax.random.key(0), jnp.ones(100_000), sigma=0.1, threshold=1.0) - 1.0
        >>> mean, variance = right_censored_moments(1.0)
        >>> print(f"{noise.mean():.3f} {0.1 * mean:.3f}, {noise.std():.3f} {0.1 * variance ** 0.5:.3f}")
        -0.008 -0.008, 0.087 0.087

    References:
        Z. Yan et al., "Improving realistic worst-case performance of NVCiM DNN accelerators through training with
        right-censored Gaussian noise", arXiv:2307.15853.
    """
    checks.number("sigma", sigma, low=0.0)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(values), initial=0.0)).astype(jnp.float32)
    z = jnp.minimum(normal(key, values.shape, rng=rng), threshold)
    return values + (scale * sigma * z).astype(values.dtype)


@checked
def right_censored_moments(threshold: float) -> tuple[float, float]:
    """Return mean and variance of min(z, threshold), z standard normal.

    With pdf phi and cdf Phi at t: mean = t (1 - Phi) - phi, E[min(z, t)^2] = Phi - t phi + t^2 (1 - Phi).

    Example:
        >>> right_censored_moments(float("inf"))
        (0.0, 1.0)
    """
    if math.isinf(threshold):
        return 0.0, 1.0
    density = math.exp(-threshold * threshold / 2) / math.sqrt(2 * math.pi)
    above = 0.5 * math.erfc(threshold / math.sqrt(2))
    mean = threshold * above - density
    return mean, (1 - above) - threshold * density + threshold**2 * above - mean**2
