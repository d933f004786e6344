"""Tables of records, of a sweep and a study alike: `records.parquet`, one row a chip; `summary.csv`, one row a point.

What a row was made with are the columns that the metadata name as `axes`; the others are `instance`, the chip, and
what came out. The metadata also hold the `command`, what the rows are `of` (sweep or study), `common`, the settings of
all points of a sweep, and `larger_is_better`, the values that should be large.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.io import records
from nvcim_jax.io.store import point_name
from nvcim_jax.montecarlo import QUANTILES, stats_of_values
from nvcim_jax.signature import checked
from nvcim_jax.types import Table

__all__ = [
    "RECORDS",
    "export",
    "left_out",
    "read_points",
    "read_records",
    "records_about",
    "summarise_records",
    "summary",
    "write_records",
]

RECORDS = "records.parquet"
"""Name of the file of records."""

Settings = dict[str, Any]
Asked = tuple[Settings, range]


@checked
def read_points(folder: str | Path, only: Sequence[Asked] | None = None) -> list[tuple[Settings, Table]]:
    """Read the records of the points of a sweep.

    Args:
        folder: Folder of the sweep.
        only: Settings and ids of the points to read, in order; None reads all that there is, by the names of their
            folders.

    Returns:
        The settings and the records of each point.

    Raises:
        ValueError: If the folder holds no points, or, where all are read, those of several sweeps.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, montecarlo
        >>> where = tempfile.mkdtemp()
        >>> for sigma in (0.1, 0.2):
        ...     store = io.points(where)({"sigma": sigma})
        ...     _ = montecarlo.run(jax.random.normal, jax.random.key(0), 3, store=store)
        >>> [(settings, table.instance.tolist()) for settings, table in io.read_points(where)]
        [({'sigma': 0.1}, [0, 1, 2]), ({'sigma': 0.2}, [0, 1, 2])]
        >>> [table.instance.tolist() for _, table in io.read_points(where, [({"sigma": 0.2}, range(1, 3))])]
        [[1, 2]]
    """
    paths = records.points_of(Path(folder))
    if not paths:
        checks.fail("folder", "hold the points of a sweep", f"has none: {folder}", "Run `nvcim sweep` into it first.")
    if only is None:
        records.same_sweep(paths)
        return [(records.read_about(path)["fingerprint"]["config"]["settings"], records.read(path)) for path in paths]
    return [(settings, _part(Path(folder) / "points" / point_name(settings), ids)) for settings, ids in only]


def _part(path: Path, ids: range) -> Table:
    table = records.read(path)
    inside = (table.instance >= ids.start) & (table.instance < ids.stop)
    return Table(table.instance[inside], {name: column[inside] for name, column in table.columns.items()})


@checked
def left_out(folder: str | Path, only: Sequence[Asked]) -> str:
    """Return what a sweep's folder holds besides what was asked for: other points, further instances; "" for nothing.

    Args:
        folder: Folder of the sweep.
        only: Settings and ids of the points that were asked for.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, montecarlo
        >>> where = tempfile.mkdtemp()
        >>> for sigma in (0.1, 0.2):
        ...     store = io.points(where)({"sigma": sigma})
        ...     _ = montecarlo.run(jax.random.normal, jax.random.key(0), 3, store=store)
        >>> io.left_out(where, [({"sigma": 0.1}, range(2))])
        '1 other points and 1 further instances of these'
    """
    wanted = {point_name(settings): ids for settings, ids in only}
    points, instances = 0, 0
    for path in (Path(folder) / "points").glob("*"):
        if path.name in wanted:
            rest = [records.missing(part, [wanted[path.name]]) for part in records.finished(path)]
            instances += sum(len(part) for parts in rest for part in parts)
        else:
            points += (path / "run.json").is_file()
    said = [f"{points} other points"] if points else []
    said += [f"{instances} further instances of these"] if instances else []
    return " and ".join(said)


@checked
def summary(points: Sequence[tuple[Settings, Table]], quantiles: tuple[float, ...] = QUANTILES) -> list[dict[str, Any]]:
    """Return one row for each point and scalar value: settings, mean, standard error, quantiles, counts.

    Args:
        points: Settings and records of each point, from `read_points`.
        quantiles: Levels in [0, 1].

    Example:
        >>> import numpy as np
        >>> table = Table(np.arange(4), {"error": np.array([0.0, 1.0, 2.0, 3.0])})
        >>> row = summary([({"sigma": 0.1}, table)], quantiles=(0.5,))[0]
        >>> row["sigma"], row["mean"], row["q50"], row["num_instances"]
        (0.1, 1.5, 1.5, 4)
    """
    rows = []
    for settings, table in points:
        for name, column in table.columns.items():
            if column.ndim == 1:
                stats = stats_of_values(column, quantiles)
                found = {"mean": float(stats.mean), "standard_error": float(stats.standard_error)}
                levels = {f"q{100 * q:g}": float(v) for q, v in zip(quantiles, stats.quantiles, strict=True)}
                counts = {"num_instances": stats.num_instances, "num_nonfinite": stats.num_nonfinite}
                rows.append({**settings, "metric": name, **found, **levels, **counts})
    return rows


@checked
def export(
    folder: str | Path,
    *,
    command: str,
    only: Sequence[Asked] | None = None,
    larger_is_better: Sequence[str] | None = None,
) -> tuple[Path, Path]:
    """Write `records.parquet` (every instance of every point) and `summary.csv` of a sweep's folder.

    Args:
        folder: Folder of the sweep.
        only: See `read_points`.
        command: The command that made the records; kept in the Parquet file, and by it in every figure.
        larger_is_better: Names of the values that should be large, kept for the figures of yields.

    Returns:
        The two paths.

    Raises:
        ValueError: If the folder holds no points.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import pyarrow.parquet as pq
        >>> from nvcim_jax import io, montecarlo
        >>> where = tempfile.mkdtemp()
        >>> for sigma in (0.1, 0.2):
        ...     store = io.points(where)({"sigma": sigma})
        ...     _ = montecarlo.run(jax.random.normal, jax.random.key(0), 3, store=store)
        >>> records, rows = io.export(where, command="this example")
        >>> pq.read_table(records).num_rows, len(rows.read_text().splitlines())  # 2 points of 3; a head and 2 points
        (6, 3)
    """
    import pyarrow as pa

    folder, points = Path(folder), read_points(folder, only)
    axes = list(dict.fromkeys(name for settings, _ in points for name in settings))
    parts = []
    for settings, table in points:
        columns: dict[str, Any] = {name: [settings.get(name)] * len(table.instance) for name in axes}
        columns["instance"] = table.instance
        columns |= {n: a if a.ndim == 1 else list(a.reshape(len(a), -1)) for n, a in table.columns.items()}
        parts.append(pa.table(columns))
    joined = pa.concat_tables(parts, promote_options="permissive")
    common = records.same_sweep([folder / "points" / point_name(settings) for settings, _ in points])
    whole = _write(folder, joined, axes, command, "sweep", larger_is_better, common)
    return whole, files.write(folder / "summary.csv", files.csv(summary(points)))


def _write(
    folder: Path,
    table: Any,
    axes: Sequence[str],
    command: str,
    of: str,
    larger: Sequence[str] | None,
    common: Any = None,
) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"axes": json.dumps(list(axes)), "command": command, "of": of}
    if larger is not None:
        about["larger_is_better"] = ", ".join(larger)
    if common is not None:
        about["common"] = json.dumps(common)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(about), sink)
    return files.write(folder / RECORDS, sink.getvalue().to_pybytes())


@checked
def write_records(
    folder: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    axes: Sequence[str],
    command: str,
    of: str = "sweep",
    larger_is_better: Sequence[str] | None = None,
) -> Path:
    """Write rows, one a chip, as the `records.parquet` of a folder, which `nvcim report` and `nvcim plot` read.

    Args:
        folder: The folder.
        rows: One mapping a chip, all with the same keys; None where a value was not measured.
        axes: Keys of what a row was made with; all others but `instance` came out of it.
        command: The command that made the rows; kept in the file, and by it in every figure.
        of: What the rows are of: `sweep`, points of any axes; `study`, what `study.run` returns.
        larger_is_better: Names of the values that should be large.

    Returns:
        The path.

    Raises:
        ValueError: If there are no rows, they have different keys, or an axis or `instance` is none of these.

    Example:
        >>> import tempfile
        >>> made = [{"method": "ours", "instance": chip, "accuracy": 0.5 + 0.1 * chip} for chip in range(2)]
        >>> path = write_records(tempfile.mkdtemp(), made, axes=("method",), command="this example")
        >>> rows, about = read_records(path)
        >>> rows == made, about["axes"], about["of"]
        (True, ['method'], 'sweep')
    """
    import pyarrow as pa

    if not rows:
        checks.fail("rows", "hold at least one row", "is empty")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            unlike = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            checks.fail("rows", "have the same keys", f"row {number} differs from the first in {unlike}")
    for name in (*axes, "instance"):
        checks.choice("axes", name, list(rows[0]))
    checks.choice("of", of, ("sweep", "study"))
    return _write(Path(folder), pa.Table.from_pylist(list(map(dict, rows))), axes, command, of, larger_is_better)


@checked
def read_records(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read a `records.parquet`, of a sweep or of a study.

    Args:
        path: The file.

    Returns:
        Its rows, and what `records_about` returns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no file of records.

    Example:
        >>> import tempfile
        >>> rows = [{"sigma": 0.1, "instance": 0, "error": 0.3}]
        >>> path = write_records(tempfile.mkdtemp(), rows, axes=("sigma",), command="this example")
        >>> read_records(path)
        ([{'sigma': 0.1, 'instance': 0, 'error': 0.3}], {'axes': ['sigma'], 'command': 'this example', 'of': 'sweep'})
    """
    about = records_about(path)
    return _table(path).to_pylist(), about


@checked
def records_about(path: str | Path) -> dict[str, Any]:
    """Return what a `records.parquet` says of itself; none of its rows is read.

    Args:
        path: The file.

    Returns:
        `axes`, `command`, `of`, `larger_is_better`, `common`: the last two where the file says them, `of` is "sweep"
        where it does not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no file of records.

    Example:
        >>> import tempfile
        >>> rows = [{"method": "ours", "instance": 0, "hit": 0.3}]
        >>> path = write_records(tempfile.mkdtemp(), rows, axes=("method",), command="this example", of="study")
        >>> records_about(path)
        {'axes': ['method'], 'command': 'this example', 'of': 'study'}
    """
    import pyarrow.parquet as pq

    with _whole(path) as known:
        metadata = pq.read_schema(known).metadata or {}
    said = {name.decode(): word.decode() for name, word in metadata.items()}
    if "axes" not in said:
        checks.fail("path", "hold records", f"names no axes: {path}", "Give the records.parquet of a run or a sweep.")
    larger = {"larger_is_better": said["larger_is_better"]} if "larger_is_better" in said else {}
    about = {"axes": json.loads(said["axes"]), "command": said.get("command", ""), "of": said.get("of", "sweep")}
    common = {"common": json.loads(said["common"])} if "common" in said else {}
    return about | larger | common


@checked
def summarise_records(path: str | Path) -> list[dict[str, Any]]:
    """Return what `summary` does, of all points of a `records.parquet`.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or no file of records.

    Example:
        >>> import tempfile
        >>> rows = [{"sigma": s, "instance": i, "error": s * i} for s in (1.0, 2.0) for i in range(3)]
        >>> path = write_records(tempfile.mkdtemp(), rows, axes=("sigma",), command="this example")
        >>> [(row["sigma"], row["metric"], row["mean"], row["num_instances"]) for row in summarise_records(path)]
        [(1.0, 'error', 1.0, 3), (2.0, 'error', 2.0, 3)]
    """
    axes, table = records_about(path)["axes"], _table(path)
    keys = list(zip(*(table.column(name).to_pylist() for name in axes), strict=True)) or [()] * table.num_rows
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, key in enumerate(keys):
        found.setdefault(key, []).append(number)
    columns = {name: table.column(name).to_numpy() for name in table.column_names if name not in axes}
    instance, named = (
        columns["instance"],
        {n: c for n, c in columns.items() if c.dtype.kind in "iufb" and n != "instance"},
    )
    points = [
        (
            dict(zip(axes, key, strict=True)),
            Table(instance[at], {n: c[at].astype(np.float64) for n, c in named.items()}),
        )
        for key, at in found.items()
    ]
    return summary(points)


def _table(path: str | Path) -> Any:
    import pyarrow.parquet as pq

    with _whole(path) as known:
        return pq.read_table(known)


@contextlib.contextmanager
def _whole(path: str | Path) -> Iterator[Path]:
    """Say in one line that a file is damaged, where pyarrow fails on it."""
    known = checks.file("path", path)
    try:
        yield known
    except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
        reason = " ".join(str(error).split())
        found = f"{known} is damaged ({reason})"
        raise ValueError(f"Argument `path` must be a whole file of records, but {found}. Run again.") from error
