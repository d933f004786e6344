"""How a step is taken, and what holds a state: functions whose numbers are traced."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter, as_adapter
from nvcim_jax.tuning.rows import itself
from nvcim_jax.types import PyTree

__all__ = ["SCHEDULES", "Schedule", "adam", "bounded", "penalties"]

SCHEDULES = ("constant", "linear", "cosine")


@checks.frozen_config
class Schedule:
    """Say how a learning rate changes over the updates.

    Attributes:
        kind: After the warm-up: `constant`, or falling to zero in a `linear` or `cosine` way.
        warmup: Share of the updates over which it rises from zero, in [0, 1).

    Raises:
        ValueError: If an option has no such value.
    """

    kind: str = "linear"
    warmup: float = 0.05

    def __post_init__(self) -> None:
        """Check every option."""
        checks.choice("kind", self.kind, SCHEDULES)
        checks.number("warmup", self.warmup, low=0.0, high=0.99)

    def factors(self, step: Any, num_steps: int) -> tuple[jax.Array, jax.Array]:
        """Return what the warm-up and the fall leave of the learning rate in an update."""
        done = (jnp.asarray(step, jnp.float32) + 0.5) / num_steps
        rise = jnp.minimum(done / self.warmup, 1.0) if self.warmup else jnp.ones((), jnp.float32)
        left = jnp.clip((1.0 - done) / (1.0 - self.warmup), 0.0, 1.0)
        fall = {"constant": jnp.ones((), jnp.float32), "linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left)}[
            self.kind
        ]
        return rise, fall


def _adam(
    schedule: Schedule, learning_rate: jax.Array, clip_norm: jax.Array, num_steps: int
) -> optax.GradientTransformation:
    def rate(step: Any) -> jax.Array:
        rise, fall = schedule.factors(step, num_steps)
        return -(learning_rate * rise * fall)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),  # type: ignore[arg-type]  # traced
        optax.scale_by_adam(),
        optax.scale_by_schedule(rate),
    )


def _number(name: str, value: Any, low_open: bool = False) -> jax.Array:
    checks.number(name, value, low=0.0, low_open=low_open)
    return jnp.asarray(value, jnp.float32)


@checked
def adam(
    learning_rate: ArrayLike = 1e-2,
    clip_norm: ArrayLike = 1.0,
    schedule: Schedule = Schedule(),  # noqa: B008  # frozen
) -> Partial:
    """Return Adam with a schedule and clipped gradients, as `tune` takes an optimiser: number of steps -> Optax.

    An optimiser of your own is any function of the number of steps that returns an Optax transformation; bind its
    numbers with `jax.tree_util.Partial`, so that a new one compiles nothing:
    `Partial(lambda rate, num_steps: optax.sgd(rate), 0.1)`, the function named and kept.

    Args:
        learning_rate: Of Adam, >= 0.
        clip_norm: Largest norm of a gradient, > 0.
        schedule: How the learning rate changes.

    Returns:
        A tree whose leaves are the numbers.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> optimiser = adam(0.1, schedule=Schedule(kind="constant", warmup=0.0))(10)  # 10 updates
        >>> params = jnp.array([1.0, 1.0])
        >>> update, _ = optimiser.update(jnp.array([3.0, -0.2]), optimiser.init(params))
        >>> [f"{x:.3f}" for x in (params + update).tolist()]  # a first step: the rate, against the sign of the slope
        ['0.900', '1.100']
    """
    return Partial(_adam, schedule, _number("learning_rate", learning_rate), _number("clip_norm", clip_norm, True))


def _clip(bound: jax.Array, state: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -bound, bound), state)


def _clip_rows(bound: jax.Array, adapter: Adapter, state: PyTree) -> PyTree:
    rows = adapter.rows(state)
    moved = adapter.from_rows(jnp.clip(rows, -bound, bound))
    if jax.tree.structure(moved) != jax.tree.structure(state):
        checks.fail("adapter", "have states that rows give back", "makes its rows", "Use penalties(largest=...).")
    inside = (jnp.abs(rows) <= bound).all()
    return jax.tree.map(lambda leaf, other: jnp.where(inside, leaf, other), state, moved)


@checked
def bounded(bound: ArrayLike, adapter: Adapter | None = None) -> Partial:
    """Return a projection for `tune`: every entry is clipped to [-bound, bound] at the start and after every update.

    The noise of a memory grows with the largest entry, so the bound is what keeps it small.

    Args:
        bound: Largest |entry|, > 0.
        adapter: The adapter whose rows, what a memory stores, have these entries; None: entries of the state, which of
            a prompt are the same, and of `ia3` are not.

    Raises:
        ValueError: If the bound is not positive; when it is used, of an adapter such as `p_tuning`, which computes its
            rows.

    Example:
        >>> print(bounded(0.5)(jnp.array([-1.0, 0.2])))
        [-0.5  0.2]
        >>> from nvcim_jax import tuning
        >>> print(bounded(0.5, tuning.ia3())(jnp.array([0.2, 1.2])))  # factors: rows of -0.8 and 0.2
        [0.5 1.2]
    """
    largest = _number("bound", bound, True)
    if adapter is None or as_adapter(adapter).rows.func is itself:  # type: ignore[attr-defined]  # a Partial
        return Partial(_clip, largest)
    return Partial(_clip_rows, largest, as_adapter(adapter))


def _penalties(numbers: tuple[jax.Array, ...], rows: jax.Array, start: jax.Array) -> jax.Array:
    if not rows.size:
        checks.fail("penalty", "be of rows that a memory stores", "the adapter has none", "Leave it out.")
    largest, lipschitz, limit, anchor = numbers
    total = largest * jnp.abs(rows).max()
    squared = jnp.abs(rows @ rows.T).sum(axis=1).max()
    total += lipschitz * jnp.maximum(squared - jnp.square(limit), 0.0)
    return total + anchor * jnp.square(rows - start).mean()


@checked
def penalties(
    *,
    largest: ArrayLike = 0.0,
    lipschitz: ArrayLike = 0.0,
    lipschitz_limit: ArrayLike = 1.0,
    anchor: ArrayLike = 0.0,
) -> Partial:
    """Return terms for `tune` that are added to the loss, `penalty(rows, start)`: what makes S small, or holds it.

    `largest max|S| + lipschitz max(0, max_i sum_j |S S^T|_ij - limit^2) + anchor mean (S - S_0)^2`, the second bounding
    the squared largest singular value of S.

    Args:
        largest: Weight of max|S|, a soft bound, >= 0.
        lipschitz: Weight of the second term, >= 0.
        lipschitz_limit: See above, >= 0.
        anchor: Weight of the mean squared distance to where tuning started, >= 0.

    Raises:
        ValueError: If a number is negative; when it is used, of an adapter without rows such as `full`.

    Example:
        >>> rows = jnp.array([[3.0, 4.0]])  # S S^T = 25
        >>> penalty = penalties(largest=1.0, lipschitz=2.0, lipschitz_limit=4.0, anchor=1.0)
        >>> print(penalty(rows, jnp.zeros((1, 2))))  # 4 + 2 (25 - 16) + (9 + 16) / 2
        34.5
    """
    given = {"largest": largest, "lipschitz": lipschitz, "lipschitz_limit": lipschitz_limit, "anchor": anchor}
    return Partial(_penalties, tuple(_number(name, value) for name, value in given.items()))
