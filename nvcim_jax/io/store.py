"""Folders of records as stores of a run: saved instances are read, new ones are written, a killed run goes on."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvcim_jax import files
from nvcim_jax.io import records
from nvcim_jax.io.fingerprint import fingerprint
from nvcim_jax.signature import checked
from nvcim_jax.types import Records, Store, Work

__all__ = ["folder", "holds", "point_name", "points"]

Columns = dict[str, np.ndarray]


@checked
def folder(path: str | Path, *, config: Any = None, save_every_s: float = 10.0) -> Store:
    """Return a folder as the store of a run: finished instances are kept in it, and a killed run goes on from there.

    A process may be killed at any moment: what is in the folder is whole. With several processes (`jax.distributed`)
    the first one writes, into a folder that all of them can read.

    Args:
        path: The folder, made when it is not there.
        config: Settings of the run, kept in `run.json`; a folder made with others is refused, with the difference.
        save_every_s: Seconds between files; 0 writes every chunk.

    Returns:
        A store for `montecarlo.run`. Opening it raises `ValueError` if the folder holds another run or another process
        writes to it, and `OSError` if the disk refuses.

    Example:
        >>> import tempfile
        >>> from nvcim_jax import io, montecarlo
        >>> runs = io.folder(tempfile.mkdtemp() + "/noise")
        >>> part = montecarlo.run(jax.random.normal, jax.random.key(0), 100, store=runs)
        >>> whole = montecarlo.run(jax.random.normal, jax.random.key(0), 200, store=runs)  # computes 100 more
        >>> bool((whole.values[:100] == part.values).all())
        True
    """
    path = Path(path)

    @contextlib.contextmanager
    def opened(work: Work, ids: range) -> Iterator[Records]:
        files.folder("folder", path)
        writes = jax.process_index() == 0
        with records.locked(path) if writes else contextlib.nullcontext():
            if writes:
                records.open_folder(path, fingerprint(config, work))
            _all_processes_ready("io: folder ready")
            missing = records.missing(ids, records.finished(path))
            _all_processes_ready("io: gaps known")
            add, flush = _writer(path, save_every_s, writes)
            try:
                yield Records(tuple(missing), lambda part: records.read_range(path, part), add)
            finally:  # an interrupt or a stopping rule ends the run early: what is computed is saved
                flush()

    return opened


@checked
def points(path: str | Path, *, config: Any = None, save_every_s: float = 10.0) -> Callable[[dict[str, Any]], Store]:
    """Return a folder as the stores of a sweep: one folder a point under `points/`, named by its settings.

    Args:
        path: The folder, made when it is not there.
        config: Settings common to all points, kept with each.
        save_every_s: See `folder`.

    Returns:
        The store of the point with these settings, for `montecarlo.sweep` and `montecarlo.tolerance`. The first one
        that is opened raises `ValueError` if the folder holds points of another `config` or key.

    Example:
        >>> import tempfile
        >>> from nvcim_jax import io, montecarlo
        >>> path = Path(tempfile.mkdtemp())
        >>> def build(settings):
        ...     return lambda key, numbers: numbers["sigma"] * jax.random.normal(key)
        >>> _ = montecarlo.sweep(build, jax.random.key(0), {"sigma": [0.1, 0.2]}, 10, traced=("sigma",),
        ...                      store=io.points(path))
        >>> sorted(point.name for point in (path / "points").iterdir())
        ['sigma=0.1', 'sigma=0.2']
    """
    alike = False

    def of_point(settings: dict[str, Any]) -> Store:
        about = {"settings": settings, "common": config}
        kept = folder(Path(path) / "points" / point_name(settings), config=about, save_every_s=save_every_s)

        @contextlib.contextmanager
        def opened(work: Work, ids: range) -> Iterator[Records]:
            nonlocal alike
            there = () if alike else records.points_of(Path(path))
            records.same_sweep(there, here=fingerprint(about, Work(None, work.key, {})))
            alike = True
            with kept(work, ids) as found:
                yield found

        return opened

    return of_point


@checked
def holds(path: str | Path) -> bool:
    """Return whether a folder holds anything that a run was to keep: instances, or records of a study.

    Args:
        path: The folder; folders below it count, and it need not be there.

    Example:
        >>> import tempfile
        >>> from nvcim_jax import io, montecarlo
        >>> path = Path(tempfile.mkdtemp())
        >>> before = io.holds(path)
        >>> _ = montecarlo.run(jax.random.normal, jax.random.key(0), 4, store=io.folder(path / "noise"))
        >>> before, io.holds(path)
        (False, True)
    """
    path = Path(path)
    return any(path.rglob("chunks/*.parquet")) or any(file.stat().st_size for file in path.rglob("records.jsonl"))


@checked
def point_name(settings: dict[str, Any]) -> str:
    """Return the folder name of a point, from its settings alone, so that a grid may grow.

    Args:
        settings: Settings of the point, name -> value; their order does not count.

    Example:
        >>> point_name({"sigma": 0.1, "device": "FeFET6"})
        'device=FeFET6,sigma=0.1'
    """
    parts = (f"{name}={settings[name]}" for name in sorted(settings))
    return re.sub(r"[^\w=.,+-]", "_", ",".join(parts)) or "point"


def _writer(path: Path, save_every_s: float, writes: bool) -> tuple[Callable[[int, Columns], None], Callable[[], None]]:
    """Return `add`, which joins what follows on each other and writes it as one file now and then, and `flush`."""
    waiting: list[tuple[int, Columns]] = []
    saved_at = time.monotonic()

    def flush() -> None:
        nonlocal waiting, saved_at
        now, waiting = waiting, []  # a chunk that the disk refuses is not tried twice
        if now and writes:
            joined = {name: np.concatenate([part[name] for _, part in now]) for name in now[0][1]}
            records.write_columns(path, now[0][0], joined)
        saved_at = time.monotonic()

    def add(first: int, named: Columns) -> None:
        if waiting and first != waiting[0][0] + sum(len(next(iter(part.values()))) for _, part in waiting):
            flush()
        waiting.append((first, named))
        if time.monotonic() - saved_at >= save_every_s:
            flush()

    return add, flush


def _all_processes_ready(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
