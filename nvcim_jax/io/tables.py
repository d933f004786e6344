"""Tables of a sweep's records: one row an instance (Parquet), one row a point (CSV)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvcim_jax import checks, files
from nvcim_jax.io import records
from nvcim_jax.montecarlo import QUANTILES, stats_of_values
from nvcim_jax.signature import checked
from nvcim_jax.types import Table

__all__ = ["export", "read_points", "summary"]

Settings = dict[str, Any]


@checked
def read_points(folder: str | Path) -> list[tuple[Settings, Table]]:
    """Read the records of every point of a sweep, sorted by the names of their folders.

    Raises:
        ValueError: If the folder holds no points.
    """
    paths = sorted(path for path in (Path(folder) / "points").glob("*") if (path / "run.json").is_file())
    if not paths:
        checks.fail("folder", "hold the points of a sweep", f"has none: {folder}", "Run `nvcim sweep` into it first.")
    found = []
    for path in paths:
        about = json.loads((path / "run.json").read_text(encoding="utf-8"))
        found.append((about["fingerprint"]["config"]["settings"], records.read(path)))
    return found


@checked
def summary(points: Sequence[tuple[Settings, Table]], quantiles: tuple[float, ...] = QUANTILES) -> list[dict[str, Any]]:
    """Return one row for each point and scalar value: settings, mean, standard error, quantiles, counts."""
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
def export(folder: str | Path, *, command: str) -> tuple[Path, Path]:
    """Write `records.parquet` (every instance of every point) and `summary.csv` of a sweep's folder.

    Args:
        folder: Folder of the sweep.
        command: The command that made the records; kept in the Parquet file, and by it in every figure.

    Returns:
        The two paths.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, points = Path(folder), read_points(folder)
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
    pq.write_table(joined.replace_schema_metadata(about), sink)
    whole = files.write(folder / "records.parquet", sink.getvalue().to_pybytes())
    return whole, files.write(folder / "summary.csv", files.csv(summary(points)))
