"""What each place of a convolution's window sees of its inputs, so that a convolution is a product."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from nvcim_jax.signature import checked

__all__ = ["patches"]


@checked
def patches(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> jax.Array:
    """Return the patches of images that a kernel meets, by padding and slicing alone, so that no value is rounded.

    Args:
        x: Images (images, *size, channels).
        window: Size of the kernel along each spatial axis.
        strides: Steps of the window.
        padding: Zeros before and after each spatial axis.
        dilation: Distance of neighbouring entries of the kernel.

    Returns:
        (images, *places, *window, channels).

    Example:
        >>> x = jnp.arange(4.0).reshape(1, 4, 1)
        >>> print(patches(x, (2,), (1,), [(0, 1)], (1,))[0, :, :, 0])
        [[0. 1.]
         [1. 2.]
         [2. 3.]
         [3. 0.]]
    """
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    reach = [(width - 1) * gap for width, gap in zip(window, dilation, strict=True)]
    places = [(size - far - 1) // step + 1 for size, far, step in zip(x.shape[1:-1], reach, strides, strict=True)]
    seen = []
    for at in itertools.product(*(range(0, far + 1, gap) for far, gap in zip(reach, dilation, strict=True))):
        ends = [first + (count - 1) * step + 1 for first, count, step in zip(at, places, strides, strict=True)]
        seen.append(lax.slice(x, (0, *at, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1)))
    # Joined along the channels: with an axis of their own, one channel would be copied number by number on a CPU.
    return jnp.concatenate(seen, axis=-1).reshape(x.shape[0], *places, *window, x.shape[-1])
