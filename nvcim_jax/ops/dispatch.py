"""Weights that are more than an array: what they share, and how a function comes to understand them.

A leaf of a model's parameters may be a `Weight`: memory cells that hold a matrix, codes and scales, a matrix with a
low-rank change. The model does not know: Quax re-interprets it by the types that it is given, and the few operations
that a weight takes part in, products above all, come here. Whatever a weight has no rule for is refused by name, so
that nothing becomes a dense array unasked.

| form | what happens |
|---|---|
| products over any axes, the weight on either side (`@`, `dot`, `einsum`, `tensordot`) | `times` of its class |
| batch by batch over the leading axes of a stack, `jax.vmap` over a stack | `times`, mapped over the stack |
| convolutions, with strides, padding and dilated kernels | `times` with the patches of the inputs |
| a transposed weight (`w.T`, `swapaxes`) | a `Transposed`, whose products are those of the weight |
| one or several of a stack: `lax.scan`, `w[i]`, `w[i:j]`, `dynamic_index_in_dim` | weights of its class |
| `astype`, `stop_gradient`, `jnp.array` | `cast` of its class, its arrays behind a stop, itself |
| jit, grad, vmap, remat, cond, loops around any of these | as for arrays |
| anything else: sums, reshape, gather, two weights multiplied, convolutions in groups or transposed | refused by name |
"""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import quax
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core.primitives import copy_p, stop_gradient_p
from jax.tree_util import tree_flatten, tree_unflatten
from jax.typing import ArrayLike
from quax import _trace as quax_trace

from nvcim_jax.ops.patches import patches
from nvcim_jax.signature import checked

__all__ = ["Part", "Transposed", "Weight", "refuse", "register_weight", "understand"]

W = TypeVar("W", bound="Weight")

Times = Callable[[Any, jax.Array, tuple[int, ...]], jax.Array]

_STACK = "Scan over the layers, or index one of them by its number."
_FIX = "It can be multiplied with; choose which leaves are replaced by `select=`."
_TABLE = "It is looked up row by row, as a table of embeddings is: leave it out by `select=`."
_FIXES = {"gather": _TABLE}


class Weight(quax.ArrayValue):
    """A matrix, or a stack of matrices, that multiplies in its own way. A subclass gives `aval` and is registered.

    All arrays inside a stack have the stack's axes first, so that `jax.lax.scan` and indexing take it apart.
    """

    @property
    def label(self) -> str:
        """Name of the weight in its tree, for messages; empty where it has none."""
        return ""

    @property
    def num_stacked(self) -> int:
        """How many leading axes count matrices: those before the last two, unless a class says otherwise."""
        return max(self.ndim - 2, 0)

    def taken(self: W, start: Any, size: int) -> W:
        """Return `size` matrices of a stack from number `start` on, which may be traced."""
        return jax.tree.map(partial(_take, start=start, size=size), self, is_leaf=lambda a: isinstance(a, Part))

    def materialise(self) -> NoReturn:
        """Refuse to become a dense array.

        Raises:
            ValueError: Always.
        """
        refuse(self, "turned into a dense array")

    @staticmethod
    def default(primitive: Any, values: Sequence[Any], params: dict[str, Any]) -> NoReturn:
        """Refuse an operation that no rule was registered for.

        Raises:
            ValueError: Always; the message names the operation and the class.
        """
        del params
        weights = [value for value in values if isinstance(value, Weight)]
        if primitive is lax.dot_general_p:
            refuse(weights[0], f"multiplied with {_name(weights[-1])}", "Multiply it with plain arrays.")
        refuse(weights[0], f"used in the operation `{primitive}`", _FIXES.get(str(primitive), ""))


class Part(Weight):
    """Consecutive matrices of a stack, not cut out of it: one is read where it is used, and nothing is copied.

    Attributes:
        w: The stack, an array or a weight of any class (layers, inputs, outputs).
        start: Number of the first matrix, an int32 array: every part of one size is the same program.
        number: How many there are.
    """

    w: Any
    start: Any
    number: int = eqx.field(static=True)

    def aval(self) -> Any:
        """Return the shape of the part."""
        return ShapedArray((self.number, *self.w.shape[1:]), self.w.dtype)

    @property
    def label(self) -> str:
        """Name of the stack in its tree."""
        return getattr(self.w, "label", "")

    @property
    def num_stacked(self) -> int:
        """How many leading axes count matrices."""
        return self.w.num_stacked if isinstance(self.w, Weight) else self.w.ndim - 2

    def taken(self, start: Any, size: int) -> Any:
        """Return some of the matrices, cut out of the whole stack."""
        return _take(self.w, self.start + start, size)


def _take(a: Any, start: Any, size: int) -> Any:
    """Cut a part out of an array or a weight along its first axis."""
    if isinstance(a, Weight):
        return a.taken(start, size)
    if isinstance(start, int):
        return a[start : start + size]
    return lax.dynamic_slice_in_dim(a, start, size, 0)


class Transposed(Weight):
    """A weight with the axes of its matrices in another order; its products are those of the weight itself.

    Attributes:
        weight: The weight.
        order: Which axis of the matrix comes first, second, ...
    """

    weight: Weight
    order: tuple[int, ...] = eqx.field(static=True)

    def aval(self) -> Any:
        """Return the shape in the new order."""
        stack = self.weight.num_stacked
        matrix = self.weight.shape[stack:]
        shape = (*self.weight.shape[:stack], *(matrix[axis] for axis in self.order))
        return ShapedArray(shape, self.weight.dtype)

    @property
    def label(self) -> str:
        """Name of the weight in its tree."""
        return self.weight.label

    @property
    def num_stacked(self) -> int:
        """How many leading axes count matrices."""
        return self.weight.num_stacked


def _name(w: Weight) -> str:
    kind = type(w).__name__
    return f"the weight {w.label!r} ({kind})" if w.label else f"a weight of type {kind}"


@checked
def refuse(w: Weight, use: str, fix: str = "") -> NoReturn:
    """Raise the error of an operation that a weight does not take part in.

    Args:
        w: The weight.
        use: What is done with it, continuing "it is ".
        fix: What to do about it, a sentence; by default to leave the leaf out.

    Raises:
        ValueError: Always.

    Example:
        >>> part = Part(jnp.zeros((4, 2, 3)), start=jnp.int32(1), number=1)
        >>> refuse(part, "sorted")
        Traceback (most recent call last):
        ...
        ValueError: Argument `params` must use a weight of type Part in products alone, but it is sorted. ...
    """
    raise ValueError(f"Argument `params` must use {_name(w)} in products alone, but it is {use}. {fix or _FIX}")


@checked
def understand(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` as a function that takes trees with `Weight` leaves; for plain arrays it stays what it is.

    Every argument is a tree of arrays; what is static is closed over.

    Args:
        fn: A function of arrays, such as a model's forward pass.

    Example:
        >>> print(understand(jnp.add)(jnp.ones(2), 1.0))
        [2. 2.]
    """
    return quax.quaxify(fn)


def _same(w: W, dtype: Any) -> W:
    del dtype
    return w


_registered: weakref.WeakSet[type] = weakref.WeakSet()


@checked
def register_weight(cls: type[W], times: Times, cast: Callable[[W, Any], W] = _same) -> None:
    """Register how a class of weights multiplies; products with the weight on either side come to this one function.

    So does a convolution, as a product with the patches of its inputs: `axes` are then the spatial axes of the kernel
    and that of its inputs. A class that is registered again multiplies in the new way from then on: all that was
    compiled is dropped, since it may hold the old one.

    Args:
        cls: The class.
        times: `times(w, x, axes)`: x (..., *rows) contracted with the `axes` of w, in their order -> (..., *the rest),
            of the dtype of x. Here w is one matrix; a stack is mapped over.
        cast: What a conversion to another dtype does; by default nothing, since a weight computes in that of `x`.

    Example:
        >>> class Doubled(Weight):
        ...     w: jax.Array
        ...
        ...     def aval(self):
        ...         return ShapedArray(self.w.shape, self.w.dtype)
        >>> def times(w, x, axes):
        ...     return 2.0 * jnp.tensordot(x, w.w, axes=(tuple(range(x.ndim - len(axes), x.ndim)), axes))
        >>> register_weight(Doubled, times)
        >>> model = lambda params, x: x @ params["w"]  # knows nothing of it
        >>> print(understand(model)({"w": Doubled(jnp.ones((3, 2)))}, jnp.ones(3)))
        [6. 6.]
    """
    if cls in _registered:
        jax.clear_caches()
    _registered.add(cls)

    @quax.register(lax.dot_general_p)
    def _(x: ArrayLike, w: cls, *, dimension_numbers: Any, preferred_element_type: Any, **_: Any) -> Any:  # type: ignore[valid-type]
        (of_x, of_w), (batch_x, batch_w) = dimension_numbers
        y = _product(w, jnp.asarray(x), (of_x, of_w), (batch_x, batch_w), times)
        return y if preferred_element_type is None else y.astype(preferred_element_type)

    @quax.register(lax.dot_general_p)
    def _(w: cls, x: ArrayLike, *, dimension_numbers: Any, preferred_element_type: Any, **_: Any) -> Any:  # type: ignore[valid-type]
        (of_w, of_x), (batch_w, batch_x) = dimension_numbers
        y = _product(w, jnp.asarray(x), (of_x, of_w), (batch_x, batch_w), times)
        free, batch = w.ndim - len(of_w) - len(batch_w), len(batch_w)
        y = jnp.moveaxis(y, range(y.ndim - free, y.ndim), range(batch, batch + free))
        return y if preferred_element_type is None else y.astype(preferred_element_type)

    @quax.register(lax.conv_general_dilated_p)
    def _(x: ArrayLike, w: cls, **options: Any) -> Any:  # type: ignore[valid-type]
        return _convolution(w, jnp.asarray(x), options, times)

    @quax.register(lax.convert_element_type_p)
    def _(w: cls, *, new_dtype: Any, **_: Any) -> Any:  # type: ignore[valid-type]
        return cast(w, new_dtype)

    @quax.register(lax.transpose_p)
    def _(w: cls, *, permutation: tuple[int, ...]) -> Any:  # type: ignore[valid-type]
        return _transpose(w, permutation)

    @quax.register(copy_p)
    def _(w: cls) -> Any:  # type: ignore[valid-type]
        return w

    @quax.register(stop_gradient_p)
    def _(w: cls) -> Any:  # type: ignore[valid-type]
        return jax.tree.map(lax.stop_gradient, w)

    _register_stack(cls)


def _register_stack(cls: type[Weight]) -> None:
    """Register how a stack of weights is taken apart along its first axis."""

    @quax.register(lax.dynamic_slice_p)
    def _(w: cls, *starts: ArrayLike, slice_sizes: tuple[int, ...], **_: Any) -> Any:  # type: ignore[valid-type]
        if not w.num_stacked or tuple(slice_sizes[1:]) != tuple(w.shape[1:]):
            refuse(w, "cut apart", _STACK if w.num_stacked else _TABLE)
        return w.taken(starts[0], slice_sizes[0])

    @quax.register(lax.slice_p)
    def _(w: cls, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:  # type: ignore[valid-type]
        whole = all(start == 0 for start in start_indices[1:]) and tuple(limit_indices[1:]) == tuple(w.shape[1:])
        steps = () if strides is None else tuple(strides)
        if not w.num_stacked or not whole or any(step != 1 for step in steps):
            refuse(w, "cut apart", _STACK if w.num_stacked else _TABLE)
        return w.taken(start_indices[0], limit_indices[0] - start_indices[0])

    @quax.register(lax.squeeze_p)
    def _(w: cls, *, dimensions: tuple[int, ...]) -> Any:  # type: ignore[valid-type]
        if not w.num_stacked or tuple(dimensions) != (0,):
            refuse(w, f"squeezed along the axes {tuple(dimensions)}", _STACK)
        return jax.tree.map(lambda a: lax.squeeze(a, (0,)), w)


Pairs = tuple[Sequence[int], Sequence[int]]


def _product(w: Weight, x: jax.Array, summed: Pairs, batch: Pairs, times: Times) -> jax.Array:
    """Return the axes multiplied batch by batch, the free ones of x, the free ones of w; a stack is mapped over."""
    (of_x, of_w), (_, batch_w) = summed, batch
    if isinstance(w, Part):  # all of it at once: cut out, it is of another class
        whole = w.taken(0, w.number)
        return understand(lambda w: lax.dot_general(x, w.astype(x.dtype), (summed, batch)))(whole)
    if w.num_stacked:
        return _mapped_product(w, x, summed, batch, times)
    if batch_w:
        refuse(w, "multiplied batch by batch along an axis of its matrix", "Stack matrices instead.")
    ends = range(x.ndim - len(of_x), x.ndim)
    return times(w, jnp.moveaxis(x, tuple(of_x), tuple(ends)), tuple(of_w))


def _mapped_product(w: Weight, x: jax.Array, summed: Pairs, batch: Pairs, times: Times) -> jax.Array:
    """Map the product over the first axis of a stack, which is a batch axis or a free one."""
    (of_x, of_w), (batch_x, batch_w) = summed, batch
    if 0 in of_w:
        refuse(w, "summed over its stack", _STACK)
    if any(isinstance(leaf, Part) for leaf in jax.tree.leaves(w, is_leaf=lambda a: isinstance(a, Part))):
        w = w.taken(0, w.shape[0])  # one inside: it cannot be mapped over
    at = list(batch_w).index(0) if 0 in batch_w else None
    axis = None if at is None else batch_x[at]
    rest_w = [i - 1 for i in batch_w if i]
    rest_x = [i - (axis is not None and i > axis) for i in batch_x if i != axis]
    inner_x = [i - (axis is not None and i > axis) for i in of_x]

    def one(w: Weight, x: jax.Array) -> jax.Array:
        return _product(w, x, (inner_x, [i - 1 for i in of_w]), (rest_x, rest_w), times)

    y = jax.vmap(one, in_axes=(0, axis))(w, x)
    # As a free axis it is the first of w's, behind those of x.
    return jnp.moveaxis(y, 0, x.ndim - len(of_x) if at is None else at)


def _convolution(w: Weight, x: jax.Array, options: dict[str, Any], times: Times) -> jax.Array:
    """Multiply the patches of the inputs with a kernel."""
    of_x, of_w, of_y = options["dimension_numbers"]
    if options["feature_group_count"] != 1 or options["batch_group_count"] != 1:
        refuse(w, "convolved in groups", "Leave grouped and depthwise convolutions out by `select=`.")
    if any(step != 1 for step in options["lhs_dilation"]):
        refuse(w, "used in a transposed convolution", "Leave transposed convolutions out by `select=`.")
    window = [w.shape[axis] for axis in of_w[2:]]
    x = jnp.transpose(x, (of_x[0], *of_x[2:], of_x[1]))
    padding = [(int(low), int(high)) for low, high in options["padding"]]  # NumPy's integers before JAX 0.9
    seen = patches(x, window, options["window_strides"], padding, options["rhs_dilation"])
    y = times(w, seen, (*of_w[2:], of_w[1]))  # (images, *places, outputs)
    y = jnp.moveaxis(y, (0, y.ndim - 1, *range(1, y.ndim - 1)), tuple(of_y))
    wanted = options["preferred_element_type"]
    return y if wanted is None else y.astype(wanted)


def _transpose(w: Weight, permutation: Sequence[int]) -> Weight:
    """Return the weight with the axes of its matrix in another order, the stack's axes where they are."""
    stack = w.num_stacked
    if tuple(permutation[:stack]) != tuple(range(stack)):
        refuse(w, f"transposed to the axes {tuple(permutation)} across its stack", _STACK)
    order = tuple(axis - stack for axis in permutation[stack:])
    if isinstance(w, Transposed):
        w, order = w.weight, tuple(w.order[axis] for axis in order)
    return w if order == tuple(range(len(order))) else Transposed(w, order)


def _times_transposed(w: Transposed, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Multiply with the weight itself, and bring what is left of its axes into the new order."""
    inner = tuple(w.order[axis] for axis in axes)
    ends = tuple(range(x.ndim - len(axes), x.ndim))
    y = understand(lambda w: lax.dot_general(x, w, ((ends, inner), ((), ()))))(w.weight)
    found = [axis for axis in range(w.ndim) if axis not in inner]
    wanted = [axis for axis in w.order if axis not in inner]
    start = y.ndim - len(found)
    return jnp.transpose(y, (*range(start), *(start + found.index(axis) for axis in wanted)))


def _cast_transposed(w: Transposed, dtype: Any) -> Transposed:
    return Transposed(understand(lambda w: lax.convert_element_type(w, dtype))(w.weight), w.order)


register_weight(Transposed, _times_transposed, _cast_transposed)
register_weight(Part, lambda w, x, axes: refuse(w, f"summed over the axes {axes} with inputs of {x.ndim}"))


# `jax.extend` names the primitive of `jax.checkpoint` in later releases only; every release can be asked for it.
_REMAT = jax.make_jaxpr(jax.checkpoint(lax.neg))(jax.ShapeDtypeStruct((), jnp.float32)).eqns[0].primitive


@quax.register(_REMAT)
def _remat(*args: Any, jaxpr: Any, policy: Any, prevent_cse: Any, **params: Any) -> Any:
    """Compute again in the backward pass what is inside, weights and all."""
    if not any(isinstance(arg, quax.Value) for arg in args):
        return _REMAT.bind(*args, jaxpr=jaxpr, policy=policy, prevent_cse=prevent_cse, **params)
    leaves, tree = tree_flatten(args)
    inside = quax.quaxify(jaxpr_as_fun(jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())))
    again = jax.checkpoint(
        lambda *leaves: inside(*tree_unflatten(tree, leaves)), policy=policy, prevent_cse=prevent_cse
    )
    return again(*leaves)


def _process_custom_vjp(
    trace: Any, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Sequence[Any], **params: Any
) -> list[Any]:
    """Run a function with a backward pass of its own on plain arrays; a weight among its arguments is refused."""
    values = [trace.to_value(tracer) for tracer in tracers]
    for value in values:
        if isinstance(value, Weight):
            refuse(value, "an argument of a function with a backward pass of its own")
    arrays = [value.materialise() for value in values]
    with quax_trace.core.set_current_trace(trace.parent_trace):
        found = trace.parent_trace.process_custom_vjp_call(primitive, fun, fwd, bwd, arrays, **params)
    return [trace.stage_value(array) for array in found]


# Quax (0.4.6) has no rule for `jax.custom_vjp`, so that a model could not use one behind its first weight.
if "process_custom_vjp_call" not in vars(quax_trace._QuaxTrace):
    quax_trace._QuaxTrace.process_custom_vjp_call = _process_custom_vjp  # type: ignore[attr-defined]
