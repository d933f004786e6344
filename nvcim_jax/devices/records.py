"""Records of measured cells from a file of any tidy layout: what was asked for, what was read, when, of which cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nvcim_jax import checks
from nvcim_jax.devices.tidy import Tidy, numbers, read_tidy
from nvcim_jax.devices.units import COLUMNS, check_plausible, found_columns, in_microsiemens, in_seconds, unit_of
from nvcim_jax.signature import checked

__all__ = ["Records", "read_records"]

Column: TypeAlias = str | int
_ALSO = {"t_s": "t", "g_us": "g", "target_us": "target", "resistance": "r", "conductance": "g", "time": "t"}


class Records(NamedTuple):
    """Reads of measured cells, one entry a read.

    Attributes:
        level: Level that was asked for, from 0: by number where levels are numbers, else as they first come.
        g_us: Conductance read, microsiemens.
        cell: Which cell it was, numbered from 0; None where the file does not say.
        target_us: Conductance that was asked for (levels,), microsiemens; None where the file does not say.
        labels: What the file calls the levels (levels,).
        t_s: Seconds since programming; None where the file has no times.
        cycle: Which programming of the cell it was; None where the file does not say.
        left_out: Rows that are no records, by reason.
        source: Name of the file.
    """

    level: np.ndarray
    g_us: np.ndarray
    cell: np.ndarray | None
    target_us: np.ndarray | None
    labels: tuple[str, ...]
    t_s: np.ndarray | None = None
    cycle: np.ndarray | None = None
    left_out: Mapping[str, int] = {}
    source: str = ""


@checked
def read_records(
    path: str | Path, *, columns: Mapping[str, Column] | None = None, units: Mapping[str, str] | None = None
) -> Records:
    """Read measured cells from a tidy file: CSV, TSV, semicolons, bars or blanks, with headings or without.

    A row is one read of one cell. A name ending in .gz is read through gzip, .parquet as Parquet; lines that begin with
    #, % or // are comments. Columns: `g` or `r` (conductance or resistance), `level` (numbers or words) or `target`
    (conductance that was asked for), and optionally `cell`, `t` (time since programming), `cycle` (which programming).
    Without `columns` they are found by their headings, such as "G (uS)", `g_us`, `resistance_kohm`, `time [s]`.

    Rows whose conductance, level or time is no finite number (empty, NaN, overload) are left out, and counted in
    `left_out`; nothing else is judged here.

    Args:
        path: The file.
        columns: Which column holds what, by heading or by number from 0.
        units: Unit of `g`, `r` or `target` (S, mS, uS, nS, ohm, kohm, Mohm) and `t` (s, ms, us, min, h, d), where the
            heading does not say; times are seconds by default, targets in the unit of what was read.

    Returns:
        The records.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no table, a column is missing, a unit is unknown or cannot be right, or no row is a record.

    Example:
        >>> import pathlib, tempfile
        >>> from nvcim_jax import devices
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "cells.txt"
        >>> _ = file.write_text("0.0 a LRS 25.0\\n0.0 b HRS 500\\n9.5 a LRS OVLD\\n")
        >>> columns = {"t": 0, "cell": 1, "level": 2, "r": 3}
        >>> records = devices.read_records(file, columns=columns, units={"r": "kohm"})
        >>> records.labels, records.g_us.tolist(), dict(records.left_out)
        (('LRS', 'HRS'), [40.0, 2.0], {'no finite conductance': 1})
    """
    path = Path(path).expanduser()
    table = read_tidy(path)
    places = _places(path, table, columns)
    given = _named(units or {}, "units")
    for kind in given:
        if kind not in places:
            checks.fail("units", "name columns that are read", f"names {kind!r}", f"Read are {', '.join(places)}.")
    texts = {kind: [row[place] for row in table.rows] for kind, place in places.items()}
    heading = {kind: table.header[place] if table.header else None for kind, place in places.items()}
    kind = "g" if "g" in places else "r"
    unit = unit_of(kind, heading[kind], given.get(kind))
    g_us = in_microsiemens(numbers(texts[kind]), unit)
    check_plausible(g_us, unit)
    t_s, target = None, None
    if "t" in places:
        t_s = in_seconds(numbers(texts["t"]), unit_of("t", heading["t"], given.get("t")))
    if "target" in places:
        of_target = unit_of("target", heading["target"], given.get("target"), otherwise=unit)
        target = in_microsiemens(numbers(texts["target"]), of_target)
    return _records(path, table, texts, _Numbers(g_us, t_s, target))


class _Numbers(NamedTuple):
    g_us: np.ndarray
    t_s: np.ndarray | None
    target_us: np.ndarray | None


def _named(given: Mapping[str, Any], argument: str) -> dict[str, Any]:
    """Return what is given by what a column holds."""
    named = {_ALSO.get(name, name): value for name, value in given.items()}
    for kind in named:
        checks.choice(argument, kind, COLUMNS)
    return named


def _places(path: Path, table: Tidy, columns: Mapping[str, Column] | None) -> dict[str, int]:
    """Return the number of the column that holds each thing."""
    if columns is None:
        if table.header is None:
            fix = 'Say which column holds what: columns={"g": 0, "level": 1}.'
            checks.fail("columns", "be given for a file without headings", "is missing", fix)
        places = found_columns(table.header)
    else:
        places = {kind: _place(path, table, column) for kind, column in _named(columns, "columns").items()}
    has = f"{path.name!r} has {', '.join(table.header)}" if table.header else f"columns names {', '.join(places)}"
    if "g" not in places and "r" not in places:
        checks.fail("path", "have a column of conductances or resistances", has, 'Name it: columns={"g": ...}.')
    if "g" in places and "r" in places:
        del places["r"]
    if "level" not in places and "target" not in places:
        checks.fail("path", "have a column of levels or targets", has, 'Name it: columns={"level": ...}.')
    return places


def _place(path: Path, table: Tidy, column: Any) -> int:
    width = len(table.rows[0])
    if isinstance(column, str) and table.header is not None:
        checks.choice("columns", column, table.header)
        return table.header.index(column)
    if isinstance(column, str):
        checks.fail("columns", "be numbers for a file without headings", f"names {column!r} of {path.name!r}")
    checks.integer("columns", column, low=0, high=width - 1, fix=f"{path.name!r} has {width} columns.")
    return int(column)


def _records(path: Path, table: Tidy, texts: dict[str, list[str]], read: _Numbers) -> Records:
    """Leave out what is no record, and number levels, cells and cycles."""
    names = np.array(texts.get("level", texts.get("target")), dtype=object)
    good = {
        "no finite conductance": np.isfinite(read.g_us),
        "no level": names != "",
        "no finite time": np.ones(len(names), bool) if read.t_s is None else np.isfinite(read.t_s),
        "time before programming": np.ones(len(names), bool) if read.t_s is None else ~(read.t_s < 0),
    }
    kept = np.ones(len(names), bool)
    left_out = {"another number of fields": table.short} if table.short else {}
    for reason, fine in good.items():
        if (kept & ~fine).any():
            left_out[reason] = int((kept & ~fine).sum())
        kept &= fine
    if not kept.any():
        why = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        checks.fail("path", "hold one record at least", f"{path.name!r} holds {len(names)} rows, of which {why}")
    level, labels = _numbered(names[kept])
    return Records(
        level=level,
        g_us=read.g_us[kept],
        cell=_numbered(np.array(texts["cell"], dtype=object)[kept])[0] if "cell" in texts else None,
        target_us=None if read.target_us is None else _targets(level, read.target_us[kept], labels),
        labels=labels,
        t_s=None if read.t_s is None else read.t_s[kept],
        cycle=_numbered(np.array(texts["cycle"], dtype=object)[kept])[0] if "cycle" in texts else None,
        left_out=left_out,
        source=path.name,
    )


def _numbered(names: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number names from 0, numbers by size and words as they first come; "1.0" and "1" are one."""
    values = numbers(names.tolist())
    if np.isfinite(values).all():
        found, codes = np.unique(values, return_inverse=True)
        return codes, tuple(f"{value:g}" if value != int(value) else str(int(value)) for value in found.tolist())
    order = list(dict.fromkeys(names.tolist()))
    place = {name: i for i, name in enumerate(order)}
    return np.array([place[name] for name in names.tolist()]), tuple(order)


def _targets(level: np.ndarray, target_us: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Return the target of each level, which is the same in all of its rows."""
    targets = np.full(len(labels), np.nan)
    targets[level] = target_us
    wrong = np.flatnonzero(~np.isclose(targets[level], target_us, rtol=1e-6, atol=0.0))
    if wrong.size:
        fix = "Leave the column of targets out, or that of levels."
        checks.fail("path", "have one target for each level", f"has several of level {labels[level[wrong[0]]]!r}", fix)
    return targets
