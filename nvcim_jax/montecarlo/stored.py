"""Instances from a store where it has them, computed and kept where it has not."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

from nvcim_jax.montecarlo.columns import columns, restore
from nvcim_jax.montecarlo.engine import Chunk, stream, structure, work
from nvcim_jax.montecarlo.placement import CHOSEN, Placement
from nvcim_jax.types import PyTree, Records, Store

__all__ = ["instances"]


def instances(
    fn: Callable[..., PyTree],
    key: jax.Array,
    ids: range,
    *,
    args: tuple[Any, ...] = (),
    placement: Placement = CHOSEN,
    store: Store | None = None,
) -> Generator[Chunk, None, None]:
    """Yield the instances `ids` in order: those that the store has from there, the others computed and kept in it.

    Args:
        fn: Metric of one instance.
        key: The run's key.
        ids: Instances wanted.
        args: Arguments of the metric.
        placement: Where they are computed.
        store: Where they are kept; None keeps nothing.

    Yields:
        `Chunk` of host arrays.

    Raises:
        ValueError: If the store holds another run or is in use.
    """
    if store is None:
        yield from stream(fn, key, ids, args=args, placement=placement)
        return
    with store(work(fn, key, args), ids) as records:
        shapes = structure(fn, key, args, placement) if _all(records.missing) < len(ids) else None
        position = ids.start
        for gap in [*records.missing, range(ids.stop, ids.stop)]:
            yield from _kept(records, range(position, gap.start), shapes)
            for chunk in stream(fn, key, gap, args=args, placement=placement) if len(gap) else ():
                records.write(chunk.first, columns(chunk.values))
                yield chunk
            position = gap.stop


def _all(parts: tuple[range, ...]) -> int:
    return sum(len(part) for part in parts)


def _kept(records: Records, ids: range, shapes: PyTree) -> Iterator[Chunk]:
    position = ids.start
    for part in records.read(ids) if len(ids) else ():
        fresh = part.instance >= position  # files may overlap after a merge of shards
        if fresh.any():
            values = {name: array[fresh] for name, array in part.columns.items()}
            yield Chunk(position, int(fresh.sum()), restore(shapes, values))
            position += int(fresh.sum())
