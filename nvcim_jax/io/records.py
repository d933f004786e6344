"""Finished chunks of instances on disk: one Parquet file a chunk, written whole or not at all.

A folder of records holds

- `run.json`: the fingerprint of the run (settings, versions, key, arguments) and the names and shapes of its values;
- `chunks/<first>-<stop>.parquet`: column `instance` and one column for each value, instances first .. stop - 1;
- `lock`: held by the process that writes; the system frees it when that process ends, however it ends.

A file gets its name only after its bytes are on the disk, so that a kill leaves finished chunks and nothing else.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.io.fingerprint import difference
from nvcim_jax.signature import checked
from nvcim_jax.types import Table

__all__ = [
    "finished",
    "join",
    "locked",
    "missing",
    "open_folder",
    "points_of",
    "read",
    "read_about",
    "read_range",
    "same_sweep",
    "write_columns",
]


def _to_parquet(instance: np.ndarray, named: dict[str, np.ndarray]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Any] = {"instance": pa.array(instance.astype(np.int64))}
    for name, array in named.items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        size = math.prod(array.shape[1:])
        arrays[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink)
    return sink.getvalue().to_pybytes()


def _from_parquet(path: Path, shapes: dict[str, list[int]]) -> Table:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        reason = " ".join(str(error).split())
        found = f"{path} is damaged ({reason})"
        raise ValueError(f"Argument `folder` must hold whole records, but {found}. Delete it and run again.") from error
    named = {}
    for name, shape in shapes.items():
        column = table.column(name).combine_chunks()
        flat = column.flatten() if shape else column
        named[name] = flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    return Table(table.column("instance").to_numpy(), named)


def write_columns(folder: Path, first: int, named: dict[str, np.ndarray]) -> None:
    """Save named columns of the instances first, first + 1, ... as one file."""
    shapes = {name: list(array.shape[1:]) for name, array in named.items()}
    about = read_about(folder)
    if about["columns"] is None:
        files.write_json(folder / "run.json", about | {"columns": shapes})
    elif about["columns"] != shapes:
        checks.fail("folder", f"hold values {about['columns']}", f"is given {shapes}", "Use another folder.")
    num = len(next(iter(named.values())))
    name = f"{first:010d}-{first + num:010d}.parquet"
    files.write(folder / "chunks" / name, _to_parquet(np.arange(first, first + num), named))


def read_about(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says of a folder of records.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    path = folder / "run.json"
    if not path.is_file():
        checks.fail("folder", "be a folder of records", f"has no run.json: {folder}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"fingerprint": dict(found["fingerprint"]), "columns": found["columns"]}
    except (ValueError, KeyError, TypeError):
        fix = "Delete the folder and run again, or take the file from a copy."
    return checks.fail("folder", "hold a whole run.json", f"{path} is damaged", fix)


def points_of(folder: Path) -> list[Path]:
    """Return the folders of the points of a sweep, by their names."""
    return sorted(path for path in (folder / "points").glob("*") if (path / "run.json").is_file())


def same_sweep(folders: Sequence[Path], argument: str = "folder", here: dict[str, Any] | None = None) -> Any:
    """Return the settings that the points of one sweep share, or refuse points of several.

    Args:
        folders: Folders of points that hold a `run.json`.
        argument: What the user gave them as.
        here: Fingerprint of a point that is to join them.

    Raises:
        ValueError: If their common settings or their keys differ.
    """
    shared = {folder: _shared(read_about(folder)["fingerprint"]) for folder in folders}
    first = _shared(here) if here is not None else next(iter(shared.values()), {"config": None})
    for folder, found in shared.items():
        differing = difference(first, found) if here is None else difference(found, first)
        if differing:
            wanted = f"hold the points of {'one sweep' if here else f'the sweep of {folders[0]} alone'}"
            fix = "Use another folder, or go back to what it was made with."
            checks.fail(argument, wanted, f"{folder} differs in {'; '.join(differing)}", fix)
    return first["config"]


def _shared(found: dict[str, Any]) -> dict[str, Any]:
    return {"config": found["config"]["common"], "key": found["key"]}


def _chunk_files(folder: Path) -> list[tuple[range, Path]]:
    files = sorted((folder / "chunks").glob("[0-9]*-*.parquet"))
    return [(range(*(int(part) for part in path.stem.split("-"))), path) for path in files]


def finished(folder: Path) -> list[range]:
    """Return the ranges of ids that are saved, in order."""
    return [ids for ids, _ in _chunk_files(folder)]


def missing(ids: range, done: list[range]) -> list[range]:
    """Return the parts of `ids` that are not done, in order.

    Example:
        >>> missing(range(0, 10), [range(2, 4), range(3, 7)])
        [range(0, 2), range(7, 10)]
    """
    gaps, position = [], ids.start
    for part in sorted(done, key=lambda r: r.start):
        if part.start > position:
            gaps.append(range(position, min(part.start, ids.stop)))
        position = max(position, part.stop)
        if position >= ids.stop:
            break
    gaps.append(range(position, ids.stop))
    return [gap for gap in gaps if len(gap)]


def read_range(folder: Path, ids: range) -> Iterator[Table]:
    """Yield the saved chunks that lie in `ids`, cut to it, in order."""
    shapes = read_about(folder)["columns"]
    for span, path in _chunk_files(folder):
        if span.stop > ids.start and span.start < ids.stop:
            table = _from_parquet(path, shapes)
            inside = (table.instance >= ids.start) & (table.instance < ids.stop)
            yield Table(table.instance[inside], {n: a[inside] for n, a in table.columns.items()})


@checked
def read(folder: str | Path) -> Table:
    """Read all records of a folder, in instance order.

    Args:
        folder: A folder of one run, as `nvcim_jax.io.folder` makes it.

    Returns:
        Ids of the instances, and name -> values, (instances, ...).

    Raises:
        ValueError: If the folder holds none, or one instance twice with different values.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, montecarlo
        >>> where = tempfile.mkdtemp()
        >>> stats = montecarlo.run(jax.random.normal, jax.random.key(0), 4, store=io.folder(where))
        >>> table = io.read(where)
        >>> table.instance.tolist(), all((column == stats.values).all() for column in table.columns.values())
        ([0, 1, 2, 3], True)
    """
    folder = Path(folder)
    read_about(folder)
    parts = list(read_range(folder, range(2**32))) if finished(folder) else []
    if not parts:
        checks.fail("folder", "hold records", f"has no finished chunk: {folder}")
    return join(parts)[0]


def join(parts: list[Table], rtol: float = 0.0) -> tuple[Table, int]:
    """Return the records in instance order, and how many copies were dropped.

    Args:
        parts: Records with the same columns.
        rtol: Relative difference up to which two values of one instance are the same.

    Raises:
        ValueError: If one instance has two different values.
    """
    instance = np.concatenate([part.instance for part in parts])
    named = {n: np.concatenate([part.columns[n] for part in parts]) for n in parts[0].columns}
    order = np.argsort(instance, kind="stable")
    instance, named = instance[order], {n: a[order] for n, a in named.items()}
    again = np.flatnonzero(instance[1:] == instance[:-1]) + 1
    for name, array in named.items():
        old, new = array[again - 1].astype(np.float64), array[again].astype(np.float64)
        same = np.isclose(old, new, rtol=rtol, atol=0.0, equal_nan=True)
        differ = ~same.all(axis=tuple(range(1, same.ndim)))
        if differ.any():
            at = again[differ][0]
            found = f"instance {instance[at]} has `{name}` {array[at - 1]} and {array[at]}"
            checks.fail("folder", "hold one value an instance", found, "Find out which is wrong and delete it.")
    keep = np.ones(len(instance), bool)
    keep[again] = False
    return Table(instance[keep], {n: a[keep] for n, a in named.items()}), len(again)


@checked
@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone.

    Args:
        folder: The folder of records; it must be there.

    Yields:
        Nothing; the folder is free again when the block ends, or its process.

    Raises:
        ValueError: If another process holds it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked(folder):
        ...     with locked(folder):
        ...         pass
        Traceback (most recent call last):
        ...
        ValueError: Argument `folder` must be written by one process, but is in use by process ...
    """
    import fcntl

    checks.file("folder", folder, folder=True)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            found = f"is in use by process {file.read() or '?'}: {folder}"
            checks.fail("folder", "be written by one process", found, "Wait for it, or use another folder.")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def open_folder(folder: Path, found: dict[str, Any]) -> None:
    """Make the folder, or check that it holds the same run, and remove what a killed process left half written.

    Raises:
        ValueError: If it was made by other settings, versions, key or arguments; the message shows the difference.
    """
    files.folder("folder", folder / "chunks")
    about = folder / "run.json"
    if not about.is_file():
        files.write_json(about, {"fingerprint": found, "columns": None})
    differing = difference(read_about(folder)["fingerprint"], found)
    if differing:
        text = f"differs in {'; '.join(differing)}: {folder}"
        checks.fail("folder", "hold the same run", text, "Use another folder, or go back to what it was made with.")
    for leftover in [*folder.glob(".*.tmp"), *(folder / "chunks").glob(".*.tmp")]:
        leftover.unlink(missing_ok=True)
