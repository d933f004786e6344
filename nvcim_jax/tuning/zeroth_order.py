"""Slopes from values of the loss alone, or from one forward derivative: tuning in the memory of a forward pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.ops import Loss, reverse_mode
from nvcim_jax.signature import checked
from nvcim_jax.tuning.shifted import Shifted, direction
from nvcim_jax.tuning.whole import Whole
from nvcim_jax.types import Key, PyTree

__all__ = ["KINDS", "zeroth_order"]

KINDS = ("two_sided", "sign", "conservative", "forward")

TABLES = ("embedding", "position_embedding")
"""Parameters below the first block."""


@checks.frozen_config
class _Options:
    """Static options of `zeroth_order`, under the same names."""

    kind: str
    num_blocks: int
    first_order: float

    def __post_init__(self) -> None:
        """Check them."""
        checks.choice("kind", self.kind, KINDS)
        checks.integer("num_blocks", self.num_blocks)
        checks.number("first_order", self.first_order, low=0.0, high=1.0)
        if self.num_blocks > 1 and self.kind == "conservative":
            checks.fail("num_blocks", "be 1 with kind='conservative'", f"is {self.num_blocks}")


class _Numbers(NamedTuple):
    eps: jax.Array
    learning_rate: jax.Array
    cutoff: jax.Array | None


class _Part(NamedTuple):
    """One array of a state.

    Attributes:
        array: The array.
        key: Key of its direction; of a stack, one for each layer.
        block: Number of the block that it, or each entry of its first axis, belongs to; the last one has its slope by
            a backward pass.
        limit: Largest entry that is moved, of a stack one for each layer; None: all are.
        layered: Whether its first axis counts layers of a model.
        weight: Whether it can stand in the model as a `Shifted`.
    """

    array: jax.Array
    key: Any
    block: jax.Array
    limit: jax.Array | None
    layered: bool
    weight: bool


def _block(shape: tuple[int, ...], options: _Options, below: bool | None) -> jax.Array:
    """Return the block of each entry of the first axis; of an array that lies below or above all layers, its one."""
    blocks = options.num_blocks
    if below is not None or not shape:
        top = blocks if options.first_order > 0 else blocks - 1
        return jnp.asarray(top if below is False else 0, jnp.int32)
    left = round(shape[0] * (1.0 - options.first_order))
    place = jnp.arange(shape[0], dtype=jnp.int32)
    return jnp.where(place < left, place * blocks // max(left, 1), blocks)


def _split(key: Key, state: PyTree, options: _Options, cutoff: jax.Array | None) -> list[_Part]:
    """Return the arrays of a state with what their directions are made from."""
    parts, whole = [], isinstance(state, Whole)
    for i, (path, a) in enumerate(jax.tree.flatten_with_path(state)[0]):
        name = jax.tree_util.keystr(path[1:2], simple=True) if whole else ""
        layered, own = name == "layers", jax.random.fold_in(key, i)
        if layered:
            own = jax.vmap(lambda layer, own=own: jax.random.fold_in(own, layer))(jnp.arange(len(a)))
        limit = None
        if cutoff is not None:
            axes = tuple(range(1, a.ndim)) if layered else None
            limit = cutoff * jnp.sqrt(jnp.square(a.astype(jnp.float32)).mean(axis=axes))
        below = None if layered or not whole else name in TABLES
        parts.append(_Part(a, own, _block(a.shape, options, below), limit, layered, whole and a.ndim - layered == 2))
    return parts


def _spread(values: jax.Array, a: jax.Array) -> jax.Array:
    """Return values of the first axis of an array, or one for all of it, so that they multiply it."""
    return values.reshape(values.shape + (1,) * (a.ndim - values.ndim))


def _along(part: _Part) -> jax.Array:
    """Return the direction of an array; XLA makes it inside whatever it is added to."""
    if not part.layered:
        flat = part.array if part.array.ndim else part.array[None]
        return direction(part.key, flat, part.limit).reshape(part.array.shape)
    return jax.vmap(direction, in_axes=(0, 0, None if part.limit is None else 0))(part.key, part.array, part.limit)


def _moved(state: PyTree, parts: list[_Part], sizes: jax.Array) -> PyTree:
    """Return the state moved along its direction, by a size for each block."""

    def one(part: _Part) -> Any:
        size = sizes[part.block]
        if part.weight:
            return Shifted(part.array, part.key, size, part.limit)
        return part.array + (_spread(size, part.array) * _along(part)).astype(part.array.dtype)

    return jax.tree.unflatten(jax.tree.structure(state), [one(part) for part in parts])


def _slope(state: PyTree, parts: list[_Part], sizes: jax.Array) -> PyTree:
    """Return the direction, times a number for each block."""
    leaves = [(_spread(sizes[p.block], p.array) * _along(p)).astype(p.array.dtype) for p in parts]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _derivatives(at: Any, numbers: _Numbers, options: _Options) -> tuple[jax.Array, jax.Array]:
    """Return the derivative along the direction of each block, and the reported loss."""
    blocks = options.num_blocks
    one_hot = jnp.eye(blocks + 1, dtype=jnp.float32)[:blocks]
    if options.kind == "forward":

        def forward(sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
            zeros = jnp.zeros_like(sizes)
            _, slope, reported = jax.jvp(at, (zeros,), (sizes,), has_aux=True)
            return slope, reported

        slopes, reported = jax.lax.map(forward, one_hot)
        return slopes, reported.mean()
    # One after the other, so that the memory is that of one.
    sizes = numbers.eps * jnp.concatenate([one_hot, -one_hot])
    values, reported = jax.lax.map(at, sizes)
    return (values[:blocks] - values[blocks:]) / (2.0 * numbers.eps), reported.mean()


def _gradient(
    options: _Options, numbers: _Numbers, key: Key, loss: Loss, params: PyTree, step: jax.Array
) -> tuple[PyTree, jax.Array]:
    z_key, loss_key = jax.random.split(key)
    parts = _split(z_key, params, options, numbers.cutoff)

    def at(sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss(_moved(params, parts, sizes), jax.random.clone(loss_key), step)

    slopes, reported = _derivatives(at, numbers, options)
    if options.kind == "sign":
        slopes = jnp.sign(slopes)
    if options.kind == "conservative":
        turn = jnp.asarray([1.0, 0.0, -1.0])
        moves = jnp.stack([-numbers.learning_rate * slopes * t for t in turn])
        values, _ = jax.lax.map(lambda move: at(jnp.pad(move, (0, 1))), moves)
        slopes = slopes * turn[jnp.argmin(values)]
    found = _slope(params, parts, jnp.pad(slopes, (0, 1)))
    if options.first_order == 0:
        return found, reported
    back, _ = reverse_mode(jax.random.clone(loss_key), loss, params, step)
    last = [_spread(part.block == options.num_blocks, part.array) for part in parts]
    chosen = [jnp.where(m, b, z) for m, b, z in zip(last, jax.tree.leaves(back), jax.tree.leaves(found), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), chosen), reported


@checked
def zeroth_order(
    eps: ArrayLike = 1e-3,
    *,
    kind: str = "two_sided",
    num_blocks: int = 1,
    cutoff: ArrayLike | None = None,
    first_order: float = 0.0,
    learning_rate: ArrayLike = 0.0,
) -> Partial:
    """Return a `gradient` for `tune` that needs no backward pass: `g z` with a random direction z ~ N(0, I).

    `g = (L(w + eps z) - L(w - eps z)) / (2 eps)`. z comes from a key and the place of each entry: the weights of a
    model (`full`) are moved where they multiply, one piece at a time, and z is made again for the update. The optimiser
    decides what an update keeps: `optax.sgd` nothing, with a momentum one copy of the state, Adam two.

    | published name | here |
    |---|---|
    | MeZO, ZO-SGD | `zeroth_order(eps)` with `optax.sgd` |
    | ZO-SGD-Sign | `kind="sign"`: sign(g) z |
    | ZO-SGD-MMT, ZO-Adam | `optax.sgd(rate, momentum=0.9)`, `optax.adam(rate)` |
    | ZO-SGD-Cons | `kind="conservative"`: the best of w - rate g z, w and w + rate g z |
    | Forward-Grad | `kind="forward"`: g the derivative along z, by one forward pass with tangents |
    | block-wise | `num_blocks=B`: a g for each block, 2 B values of the loss |
    | hybrid | `first_order=share`: a backward pass for the last layers |
    | Sparse-MeZO | `cutoff=c`: entries of at most c times the root mean square of their matrix are moved |

    Args:
        eps: Length of a move, > 0.
        kind: How g is found and used, see above: two_sided, sign, conservative, forward.
        num_blocks: Blocks of layers (of an adapter's state, of rows) that are moved one after the other.
        cutoff: See above, > 0; None: all entries are moved. The threshold's form is inferred [I].
        first_order: Share of the layers (of rows), the last ones, whose slope is that of a backward pass, in [0, 1].
            The whole backward pass is made: it spares variance, not memory.
        learning_rate: That of the optimiser, which must be plain SGD, for kind="conservative".

    Returns:
        A tree whose leaves are the numbers: new ones compile nothing.

    Raises:
        ValueError: If a number is out of range, or there is no such kind.

    Example:
        >>> import optax
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.full()
        >>> batch = tuning.examples([[1, 5, 6]], [[8, 2]])
        >>> state = adapter.init(jax.random.key(1), lm, batch, None)
        >>> sgd = Partial(lambda rate, num_steps: optax.sgd(rate), 1e-3)
        >>> how = {"optimiser": sgd, "gradient": tuning.zeroth_order(1e-3)}
        >>> _, info = tuning.tune(jax.random.key(2), state, lm, batch, adapter=adapter, **how)
        >>> bool(info.losses[-10:].mean() < info.losses[:10].mean())
        True

    References:
        S. Malladi et al., "Fine-tuning language models with just forward passes", arXiv:2305.17333, algorithm 1;
        Y. Zhang et al., "Revisiting zeroth-order optimization for memory-efficient LLM fine-tuning", arXiv:2402.11592,
        section 3; Y. Liu et al., "Sparse MeZO", arXiv:2402.15751.
    """
    options = _Options(kind=kind, num_blocks=num_blocks, first_order=first_order)
    checks.number("eps", eps, low=0.0, low_open=True)
    checks.number("learning_rate", learning_rate, low=0.0, low_open=kind == "conservative")
    if cutoff is not None:
        checks.number("cutoff", cutoff, low=0.0, low_open=True)
        cutoff = jnp.asarray(cutoff, jnp.float32)
    numbers = _Numbers(jnp.asarray(eps, jnp.float32), jnp.asarray(learning_rate, jnp.float32), cutoff)
    return Partial(_gradient, options, numbers)
