"""Weights that an adapter puts around others: a low-rank change, and factors of inputs and outputs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray

from nvcim_jax import checks
from nvcim_jax.ops import Weight, refuse, register_weight, understand

__all__ = ["LowRank", "Scaled", "change", "column_sizes", "multiply"]


class _Around(Weight):
    """A weight that changes another one, of whatever class: an array, codes of a few bits, memory cells."""

    w: Any

    def aval(self) -> Any:
        """Return the shape and dtype of the weight inside."""
        return ShapedArray(self.w.shape, self.w.dtype)

    @property
    def label(self) -> str:
        """Name of the weight inside."""
        return getattr(self.w, "label", "")

    @property
    def num_stacked(self) -> int:
        """How many leading axes count matrices."""
        return self.w.num_stacked if isinstance(self.w, Weight) else max(self.w.ndim - 2, 0)


class LowRank(_Around):
    """w + scale a b, or with magnitudes m of the columns (DoRA): m (w + scale a b) / |w + scale a b|.

    The sizes of the columns |.| count as constants in gradients, as in PEFT. A column of zeros stays one.

    Attributes:
        w: The weight ([layers,] inputs, outputs).
        a: ([layers,] inputs, rank).
        b: ([layers,] rank, outputs).
        scale: ([layers]).
        magnitude: ([layers,] outputs), or None.
    """

    a: Any
    b: Any
    scale: Any
    magnitude: Any = None


class Scaled(_Around):
    """diag(inputs) w diag(outputs), either factor None for ones.

    Attributes:
        w: The weight ([layers,] inputs, outputs).
        inputs: ([layers,] inputs), or None.
        outputs: ([layers,] outputs), or None.
    """

    inputs: Any = None
    outputs: Any = None


def multiply(w: Any, x: jax.Array, axes: tuple[int, ...] = (0,)) -> jax.Array:
    """Return x contracted with some axes of a matrix of any class."""
    ends = tuple(range(x.ndim - len(axes), x.ndim))

    def product(w: jax.Array) -> jax.Array:
        return lax.dot_general(x, w.astype(x.dtype), ((ends, axes), ((), ())))

    return understand(product)(w) if isinstance(w, Weight) else product(w)


def change(w: LowRank) -> jax.Array:
    """Return scale a b, of one matrix or a stack, in float32."""
    a, b = (part.astype(jnp.float32) for part in (w.a, w.b))
    return (a @ b) * jnp.expand_dims(w.scale.astype(jnp.float32), (-2, -1))


def column_sizes(w: Any, added: jax.Array | None = None) -> jax.Array:
    """Return the Euclidean norm of each column of one matrix, of any class, with something added to it first.

    A weight that is no array is read through its products with unit vectors: of memory cells that is what they do.
    """
    dense = multiply(w, jnp.eye(w.shape[0], dtype=jnp.float32)) if isinstance(w, Weight) else w.astype(jnp.float32)
    return jnp.linalg.norm(dense if added is None else dense + added, axis=0)


def _ratio(magnitude: jax.Array, sizes: jax.Array) -> jax.Array:
    """Return what columns of some sizes, taken as constants, are multiplied by for those wanted; 1 for one of zeros."""
    sizes = lax.stop_gradient(sizes)
    empty = sizes == 0.0
    return jnp.where(empty, 1.0, magnitude.astype(jnp.float32) / jnp.where(empty, 1.0, sizes))


def _factor(w: LowRank) -> jax.Array | None:
    if w.magnitude is None:
        return None
    return _ratio(w.magnitude, column_sizes(w.w, change(w)))


def _times(x: jax.Array, factor: jax.Array | None) -> jax.Array:
    return x if factor is None else x * jnp.expand_dims(factor.astype(x.dtype), range(x.ndim - 1))


def _check_axes(w: Weight, axes: tuple[int, ...]) -> None:
    if axes not in ((0,), (1,)):
        refuse(w, f"summed over the axes {axes}", "Multiply it along its inputs or along its outputs.")


def _times_low_rank(w: LowRank, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    _check_axes(w, axes)
    a, b, scale = (part.astype(x.dtype) for part in (w.a, w.b, w.scale))
    factor = _factor(w)
    if axes == (0,):
        return _times(multiply(w.w, x) + (x @ a) @ b * scale, factor)
    x = _times(x, factor)
    return multiply(w.w, x, axes) + (x @ b.T) @ a.T * scale


def _times_scaled(w: Scaled, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    _check_axes(w, axes)
    before, after = (w.inputs, w.outputs) if axes == (0,) else (w.outputs, w.inputs)
    return _times(multiply(w.w, _times(x, before), axes), after)


def _cast(w: Any, dtype: Any) -> Any:
    inside = understand(lambda a: lax.convert_element_type(a, dtype))(w.w)
    if isinstance(w, LowRank):
        return LowRank(inside, w.a, w.b, w.scale, w.magnitude)
    return Scaled(inside, w.inputs, w.outputs)


register_weight(LowRank, _times_low_rank, _cast)
register_weight(Scaled, _times_scaled, _cast)


def dense(w: Any, argument: str) -> jax.Array:
    """Return what a changed array stands for, as an array of its dtype.

    Raises:
        ValueError: If the weight inside is no array.
    """
    if isinstance(w.w, Weight):
        found = f"is a {type(w.w).__name__}"
        checks.fail(argument, "be an array to be merged with", found, "Keep the adapter apart: it works around it.")
    base = w.w.astype(jnp.float32)
    if isinstance(w, Scaled):
        inputs = 1.0 if w.inputs is None else w.inputs[..., :, None]
        outputs = 1.0 if w.outputs is None else w.outputs[..., None, :]
        return (base * inputs * outputs).astype(w.w.dtype)
    made = base + change(w)
    if w.magnitude is not None:
        made = made * _ratio(w.magnitude, jnp.linalg.norm(made, axis=-2))[..., None, :]
    return made.astype(w.w.dtype)
