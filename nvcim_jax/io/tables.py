"""Tables of a sweep's records: one row an instance (Parquet), one row a point (CSV)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvcim_jax import checks, files
from nvcim_jax.io import records
from nvcim_jax.io.store import point_name
from nvcim_jax.montecarlo import QUANTILES, stats_of_values
from nvcim_jax.signature import checked
from nvcim_jax.types import Table

__all__ = ["export", "left_out", "read_points", "summary"]

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
        ValueError: If the folder holds no points.

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
    paths = sorted(path for path in (Path(folder) / "points").glob("*") if (path / "run.json").is_file())
    if not paths:
        checks.fail("folder", "hold the points of a sweep", f"has none: {folder}", "Run `nvcim sweep` into it first.")
    if only is None:
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
    import pyarrow.parquet as pq

    folder, points = Path(folder), read_points(folder, only)
    axes = list(dict.fromkeys(name for settings, _ in points for name in settings))
    parts = []
    for settings, table in points:
        columns: dict[str, Any] = {name: [settings.get(name)] * len(table.instance) for name in axes}
        columns["instance"] = table.instance
        columns |= {n: a if a.ndim == 1 else list(a.reshape(len(a), -1)) for n, a in table.columns.items()}
        parts.append(pa.table(columns))
    joined = pa.concat_tables(parts, promote_options="permissive")
    sink = pa.BufferOutputStream()
    about = {"axes": json.dumps(axes), "command": command}
    if larger_is_better is not None:
        about["larger_is_better"] = ", ".join(larger_is_better)
    pq.write_table(joined.replace_schema_metadata(about), sink)
    whole = files.write(folder / "records.parquet", sink.getvalue().to_pybytes())
    return whole, files.write(folder / "summary.csv", files.csv(summary(points)))
