"""Array aliases and protocols that two rooms or more share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Key", "Perturb", "PyTree", "Records", "Scalar", "Store", "Table", "Work"]

Key: TypeAlias = PRNGKeyArray
"""A JAX random key (`jax.random.key`), consumed once by whatever receives it."""

Scalar: TypeAlias = Float[Array, ""]
"""A float array without axes."""

PyTree: TypeAlias = Any
"""Any nesting of containers whose leaves are arrays."""


@runtime_checkable
class Perturb(Protocol):
    """A random transform of a parameter tree: the seam for write-time hardware effects."""

    def __call__(self, key: Key, params: PyTree, /) -> PyTree:
        """Return a tree of the same structure, as the hardware would hold it."""
        ...


class Table(NamedTuple):
    """Records in instance order: ids (int64) and named columns with a leading instance axis."""

    instance: np.ndarray
    columns: dict[str, np.ndarray]


class Work(NamedTuple):
    """What a run computes: everything that a value of it depends on.

    Attributes:
        program: What one instance computes, as plain values that are equal where it computes the same
            (`nvcim_jax.montecarlo.program`); None where there is no one metric.
        key: The run's key.
        args: A tree of its arguments.
    """

    program: Any
    key: jax.Array
    args: PyTree


class Records(NamedTuple):
    """Records that are open for one run.

    Attributes:
        missing: Parts of the wanted ids that are not there yet, in order.
        read: Ids -> the records that are there, piece by piece in order.
        write: First id and named columns of the instances from there on; kept for good at the latest when the records
            are closed.
    """

    missing: tuple[range, ...]
    read: Callable[[range], Iterator[Table]]
    write: Callable[[int, dict[str, np.ndarray]], None]


@runtime_checkable
class Store(Protocol):
    """Where a run keeps its instances: the seam between numbers and a disk (`nvcim_jax.io.folder`)."""

    def __call__(self, work: Work, ids: range, /) -> AbstractContextManager[Records]:
        """Open the records of a run; raise `ValueError` where they are those of another one."""
        ...
