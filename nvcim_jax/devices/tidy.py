"""The columns of a tidy file of measurements, as texts: separators, headers, comments, gzip, Parquet."""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks, files

__all__ = ["Tidy", "numbers", "read_tidy"]

_SEPARATORS = ("\t", ";", ",", "|")
_MOST_CELLS = 100_000_000


class Tidy(NamedTuple):
    """A table of texts.

    Attributes:
        header: Headings; None where the first row is data.
        rows: Fields of each row, all of one length.
        short: Rows that had another number of fields, which are left out.
    """

    header: list[str] | None
    rows: list[list[str]]
    short: int


def read_tidy(path: Path) -> Tidy:
    """Read a table whose rows are records: separated by tabs, semicolons, commas, bars or blanks, or Parquet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text and no Parquet file, or holds no rows.
    """
    checks.file("path", path)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path)
    with files.reading("path", path, kind="a table in UTF-8, or Parquet") as file:
        text = file.read()
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", "%", "//"))]
    if not lines:
        checks.fail("path", "hold rows of records", f"{path.name!r} holds none")
    rows = _fields(lines)
    length = Counter(map(len, rows[1:] or rows)).most_common(1)[0][0]
    if length < 2 and len(rows[0]) < 2:
        checks.fail("path", "have two columns at least", f"{path.name!r} has one: {lines[0][:40]!r}")
    header = rows[0] if _is_header(rows[0]) else None
    body = rows[1:] if header is not None else rows
    kept = [row for row in body if len(row) == length]
    if header is not None and len(header) == length - 1:
        header = ["", *header]  # as pandas and R write an index without a name
    if not kept or (header is not None and len(header) != length):
        found = (
            f"{path.name!r} has {len(rows[0])} headings over {length} columns" if kept else f"{path.name!r} has none"
        )
        checks.fail("path", "hold rows of records under its headings", found)
    return Tidy(header, kept, len(body) - len(kept))


def _fields(lines: list[str]) -> list[list[str]]:
    """Split lines at the separator that splits them most alike."""
    some = lines[:50]
    counts = {separator: Counter(line.count(separator) for line in some) for separator in _SEPARATORS}
    usable = [s for s in _SEPARATORS if counts[s].most_common(1)[0][0] > 0]
    if not usable:
        return [line.split() for line in lines]
    # a comma beside another separator is that of decimals
    best = max(usable, key=lambda s: (counts[s].most_common(1)[0][1], -_SEPARATORS.index(s)))
    limit = csv.field_size_limit(_MOST_CELLS)
    try:
        return [[field.strip() for field in row] for row in csv.reader(lines, delimiter=best)]
    except csv.Error as error:
        return checks.fail("path", "be a table", f"it is not: {error}")
    finally:
        csv.field_size_limit(limit)


def _is_header(row: list[str]) -> bool:
    """A row is a header where no field is a number."""
    return all(np.isnan(numbers([field])[0]) and not _is_missing(field) for field in row if field) and any(row)


_MISSING = {"", "nan", "na", "n/a", "null", "none", "-", "ovld", "overload", "ol", "inf", "-inf", "+inf"}


def _is_missing(text: str) -> bool:
    return text.lower() in _MISSING


def numbers(column: list[str]) -> np.ndarray:
    """Return texts as numbers; NaN where one is none. A decimal comma is understood."""
    try:
        return np.array(column, dtype=np.float64)
    except ValueError:
        return np.array([_number(text) for text in column])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(text.replace(",", ".")) if text.count(",") == 1 else float("nan")
    except ValueError:
        return float("nan")


def _parquet(path: Path) -> Tidy:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError):
        checks.fail("path", "be a Parquet file", f"{path} is none", "Fetch it again, or name it as what it is.")
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    if not columns or not columns[0]:
        checks.fail("path", "hold rows of records", f"{path.name!r} holds none")
    return Tidy([str(name) for name in table.column_names], [list(row) for row in zip(*columns, strict=True)], 0)
