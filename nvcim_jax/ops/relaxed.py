"""Rounding relaxed to noise of the same size, so that the number of steps has a gradient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax.ops.quantise import clip_inclusive
from nvcim_jax.ops.random import Rng, centred_uniform
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["relaxed_steps"]


@checked
def relaxed_steps(
    key: Key,
    x: Float[Array, "..."],
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    *,
    num_steps: Float[Array, "..."],
    rng: Rng = "counter",
) -> Float[Array, "..."]:
    """Clip to [low, high] and add the noise of one step: the relaxed twin of `uniform_steps`.

    y = clip(x) + step u inside the range, step = (high - low) / num_steps, u ~ U(-1/2, 1/2); at an end and beyond it
    y is the end, as in the hard twin. `num_steps` is a traced number, not necessarily whole: dy / dnum_steps =
    -step u / num_steps.

    Inside the range y is distributed exactly as the hard twin with subtracted dither, hard(x + step u) - step u; the
    hard twin alone has this error (mean 0, variance step^2 / 12) on average over inputs that spread evenly within a
    step. Nearer to an end than half a step, y may lie beyond it by as much.

    Args:
        key: A JAX random key, consumed.
        x: Array of any shape.
        low: Lower end, broadcasting against `x`.
        high: Upper end, above `low`.
        num_steps: Number of steps, above 0, broadcasting against `x`; 2**bits - 1 for a converter of `bits`.
        rng: Generator of the noise.

    Returns:
        Array of the shape of `x`.

    Example:
        >>> import jax
        >>> x, end = jnp.full(1_000_000, 0.3), jnp.ones(1)
        >>> y = relaxed_steps(jax.random.key(0), x, -end, end, num_steps=jnp.full(1, 15.0))
        >>> print(f"{y.mean():.2f} (0.3), 12 variance {12 * y.var():.4f} ({(2 / 15) ** 2:.4f})")
        0.30 (0.3), 12 variance 0.0178 (0.0178)

    References:
        A. Défossez, Y. Adi, G. Synnaeve, "Differentiable model compression via pseudo quantization noise",
        arXiv:2104.09987, section 3 (noise in place of rounding, bits as a real number).
        S. Lipshitz, R. Wannamaker, J. Vanderkooy, "Quantization and dither: a theoretical survey", J. Audio Eng. Soc.
        40, 1992, section 4 (the error of subtractively dithered rounding is uniform and independent of the input).
    """
    noise = (high - low) / num_steps * centred_uniform(key, x.shape, rng=rng)
    return clip_inclusive(x, low, high) + jnp.where((x > low) & (x < high), noise, 0.0)
