"""Compute instances into a folder of records, and go on where a killed process stopped."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvcim_jax.montecarlo import records
from nvcim_jax.montecarlo.engine import Chunk, stream, structure
from nvcim_jax.montecarlo.fingerprint import fingerprint
from nvcim_jax.types import PyTree

__all__ = ["saved_stream"]


_HOW: dict[str, Any] = {"chunk": None, "mapping": "auto", "mesh": None}


def _saver(folder: Path, save_every_s: float) -> tuple[Callable[[Chunk], None], Callable[[], None]]:
    """Return `add`, which joins chunks and writes them as one file every `save_every_s` seconds, and `flush`."""
    waiting: list[Chunk] = []
    saved_at = time.monotonic()

    def flush() -> None:
        nonlocal waiting, saved_at
        now, waiting = waiting, []  # a chunk that the disk refuses is not tried twice
        if now and jax.process_index() == 0:
            values = jax.tree.map(lambda *leaves: np.concatenate(leaves), *[chunk.values for chunk in now])
            records.write_chunk(folder, now[0].first, values)
        saved_at = time.monotonic()

    def add(chunk: Chunk) -> None:
        waiting.append(chunk)
        if time.monotonic() - saved_at >= save_every_s:
            flush()

    return add, flush


def _all_processes_ready(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def saved_stream(
    fn: Callable[..., PyTree],
    key: jax.Array,
    ids: range,
    folder: str | Path,
    *,
    config: Any = None,
    args: tuple[Any, ...] = (),
    save_every_s: float = 10.0,
    **options: Any,
) -> Iterator[Chunk]:
    """Yield the instances `ids` in order: saved ones from the folder, the others computed and saved.

    A process may be killed at any moment: what is in the folder is whole, and the next call goes on from there. With
    several processes (`jax.distributed`) the first one writes, into a folder that all of them can read.

    Args:
        fn: Metric of one instance.
        key: The run's key.
        ids: Instances wanted.
        folder: Folder of records, made when it is not there.
        config: Settings of the run, kept in `run.json` and compared on a resume.
        args: Arguments of the metric.
        save_every_s: Seconds between files; 0 writes every chunk.
        **options: `chunk`, `mapping`, `mesh`, `memory_budget_mb` of `run`.

    Yields:
        `Chunk` of host arrays.

    Raises:
        ValueError: If the folder holds another run (the difference is shown) or another process writes to it.
        OSError: If the disk is full; finished chunks stay.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writes = jax.process_index() == 0
    with records.locked(folder) if writes else contextlib.nullcontext():
        if writes:
            records.open_folder(folder, fingerprint(config, key, args))
        _all_processes_ready("montecarlo: folder ready")
        done = records.finished(folder)
        gaps = records.missing(ids, done)
        _all_processes_ready("montecarlo: gaps known")
        how = {name: options.get(name, default) for name, default in _HOW.items()}
        shapes = structure(fn, key, args, **how) if done else None
        position = ids.start
        for gap in [*gaps, range(ids.stop, ids.stop)]:
            yield from _from_disk(folder, range(position, gap.start), shapes)
            yield from _computed(fn, key, gap, folder, args, save_every_s, options)
            position = gap.stop


def _from_disk(folder: Path, ids: range, shapes: PyTree) -> Iterator[Chunk]:
    position = ids.start
    for part in records.read_range(folder, ids) if len(ids) else ():
        fresh = part.instance >= position  # files may overlap after a merge of shards
        if fresh.any():
            values = {name: array[fresh] for name, array in part.columns.items()}
            yield Chunk(position, int(fresh.sum()), records.restore(shapes, values))
            position += int(fresh.sum())


def _computed(
    fn: Callable[..., PyTree],
    key: jax.Array,
    ids: range,
    folder: Path,
    args: tuple[Any, ...],
    save_every_s: float,
    options: dict[str, Any],
) -> Iterator[Chunk]:
    if not len(ids):
        return
    add, flush = _saver(folder, save_every_s)
    try:
        for chunk in stream(fn, key, ids, args=args, **options):
            add(chunk)
            yield chunk
    finally:  # an interrupt or a stopping rule ends the loop early: what is computed is saved
        flush()
