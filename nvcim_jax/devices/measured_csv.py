"""Measured devices from CSV files: raw programming records, or a table that is already fitted."""

import csv
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.devices.measured import LevelFit, fit_table, from_fit
from nvcim_jax.devices.spec import Device
from nvcim_jax.signature import checked

__all__ = ["from_csv"]

_RECORDS = ("level", "g_us")
_TABLE = ("level", "mean_us", "sigma_us")
_OPTIONAL = ("target_us", "cell")


def _fail(path: Path, expected: str, found: str, fix: str = "") -> NoReturn:
    checks.fail("path", expected, f"{path.name!r} {found}", fix)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return line numbers and fields of the file, without blank lines and comments."""
    checks.file("path", path)
    with files.reading("path", path, kind="a CSV file in UTF-8") as file:
        text = file.read()
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    kept = [(number, line) for number, line in numbered if not line.lstrip().startswith("#")]
    if len(kept) < 2:
        _fail(path, "hold a header and at least one row", f"holds {len(kept)} lines")
    return [(number, [field.strip() for field in next(csv.reader([line]))]) for number, line in kept]


def _number(path: Path, line: int, column: str, text: str) -> float:
    """Return one entry of the file, which must be a finite number, and an integer where the column counts."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _fail(path, "hold finite numbers", f"has {text!r} in column {column} of line {line}", "Drop that record.")
    if column in {"level", "cell"} and (value < 0 or value != int(value)):
        _fail(path, f"count {column} by integers from 0", f"has {text!r} in line {line}")
    if column == "sigma_us" and value < 0:
        _fail(path, "hold standard deviations of at least 0", f"has {text!r} in line {line}")
    return value


def _columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of the file by name, as numbers."""
    (_, header), *rows = _lines(path)
    wanted = _TABLE if "mean_us" in header or "sigma_us" in header else _RECORDS
    for column in wanted:
        if column not in header:
            fix = f"Columns: {', '.join(wanted)}; optional: {', '.join(_OPTIONAL)}; separated by commas."
            _fail(path, f"have a column {column}", f"has {', '.join(header)}", fix)
    names = [name for name in header if name in (*wanted, *_OPTIONAL)]
    places = [header.index(name) for name in names]
    for line, fields in rows:
        if len(fields) != len(header):
            _fail(path, f"have {len(header)} fields in every row", f"has {len(fields)} in line {line}")
    entries = [
        [_number(path, line, name, fields[place]) for name, place in zip(names, places, strict=True)]
        for line, fields in rows
    ]
    return dict(zip(names, np.array(entries, dtype=np.float64).T, strict=True))


def _targets(path: Path, level: np.ndarray, target_us: np.ndarray | None) -> np.ndarray | None:
    """Return the target of each level, which is the same in all of its rows; NaN where a level has no row."""
    if target_us is None:
        return None
    targets = np.full(int(level.max()) + 1, np.nan)
    targets[level] = target_us
    wrong = np.flatnonzero(targets[level] != target_us)
    if wrong.size:
        _fail(path, "have one target_us for each level", f"has several of level {level[wrong[0]]}")
    return targets


def _table_fit(path: Path, columns: dict[str, np.ndarray], num_levels: int | None) -> LevelFit:
    """Return a table that is already fitted, one row a level; its errors are unknown."""
    level = columns["level"].astype(np.int64)
    count = int(level.max()) + 1 if num_levels is None else num_levels
    if sorted(level.tolist()) != list(range(count)):
        missing = sorted(set(range(count)) - set(level.tolist()))
        found = f"has no row of {missing}" if missing else f"has {len(level)} rows"
        _fail(path, f"have one row for each level from 0 to {count - 1}", found)
    order = np.argsort(level)
    targets = _targets(path, level, columns.get("target_us"))
    unknown = np.full(count, np.nan)
    mean, sigma = columns["mean_us"][order], columns["sigma_us"][order]
    return LevelFit(targets, mean, unknown, sigma, unknown, np.ones(count, np.int64), None, None)


@checked
def from_csv(
    path: str | Path,
    *,
    g_max_us: float,
    on_off_ratio: float | None = None,
    num_levels: int | None = None,
    min_records: int = 10,
    **effects: Any,
) -> Device:
    """Make a device of a CSV file of measurements.

    Two kinds of file are known by their header: *records*, with columns `level`, `g_us`, and optionally `cell`, which
    are fitted by `fit_table`; and a *table*, with columns `level`, `mean_us`, `sigma_us`. Both may have `target_us`,
    the conductance that was asked for; without it the levels are evenly spaced from g_min to g_max.

    Args:
        path: The file.
        g_max_us: Greatest conductance, microsiemens: the unit of the device.
        on_off_ratio: g_max / g_min; by default that of the lowest target, and infinite without targets.
        num_levels: Number of levels that the file must hold; by default the greatest plus one.
        min_records: Least number of records a level.
        **effects: Further arguments of `from_table`, such as `name`, `drift` or `clip`.

    Returns:
        The device.

    Raises:
        ValueError: If the file is missing, empty or a web page, lacks a column or a level, has an entry that is not a
            finite number, or too few records.

    Example:
        >>> import pathlib, tempfile
        >>> from nvcim_jax import devices
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
        >>> _ = file.write_text("level,mean_us,sigma_us\\n0,1,0.2\\n1,20,1.0\\n2,39,0.8\\n")
        >>> device = devices.from_csv(file, g_max_us=40.0)
        >>> print(f"{devices.sigma_of(0.5, device) * 40:.1f} uS")  # the row of level 1
        1.0 uS
    """
    path = Path(path)
    columns = _columns(path)
    if "g_us" in columns:
        level = columns["level"].astype(np.int64)
        fit = fit_table(
            level,
            columns["g_us"],
            cell=columns["cell"].astype(np.int64) if "cell" in columns else None,
            target_us=_targets(path, level, columns.get("target_us")),
            num_levels=num_levels,
            min_records=min_records,
        )
    else:
        fit = _table_fit(path, columns, num_levels)
    named: dict[str, Any] = {"name": path.stem, **effects}
    return from_fit(fit, g_max_us=g_max_us, on_off_ratio=on_off_ratio, **named)
