"""Numbers that a cost is made of: each with its unit, range, source, and a mark that says how far to trust it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["MARKS", "Constant", "Specification", "changed", "constant_table", "leaves_of", "stated"]

MARKS: Mapping[str, str] = {
    "P": "read in the primary source or its repository",
    "A": "read in the abstract of the primary source",
    "S": "from a secondary source",
    "D": "derived from other numbers here",
    "M": "measured on this machine",
    "U": "given by the user",
    "R": "recalled, unchecked",
}
"""Marks, and what they say; R is the weakest, and is named wherever it enters a headline."""


class Constant(NamedTuple):
    """One number with all that must be known to use it.

    Attributes:
        value: The default, in SI units.
        low: Lower end of its range.
        high: Upper end.
        unit: SI unit: s, J, W, m2, B, B/s, J/B, 1/s, V, S, or 1.
        source: Where it comes from.
        mark: One of `MARKS`.
    """

    value: float
    low: float
    high: float
    unit: str
    source: str
    mark: str


class Specification(NamedTuple):
    """What makes a technology or a machine: leaves to compute with, and what stands behind each of them.

    Attributes:
        values: Name -> number; traced, so that it can be swept, mapped and differentiated.
        records: (name, `Constant`) of each; static.
    """

    values: dict[str, jax.Array]
    records: tuple[tuple[str, Constant], ...]


def stated(
    value: float, unit: str, source: str, mark: str, *, low: float | None = None, high: float | None = None
) -> Constant:
    """Return a constant whose range is its value where none is given.

    Raises:
        ValueError: If the mark is unknown, or the range does not hold the value.

    Example:
        >>> stated(1e-8, "s", "a datasheet", "P", high=3e-8)
        Constant(value=1e-08, low=1e-08, high=3e-08, unit='s', source='a datasheet', mark='P')
    """
    checks.choice("mark", mark, MARKS)
    found = Constant(value, value if low is None else low, value if high is None else high, unit, source, mark)
    if not found.low <= value <= found.high:
        checks.fail("value", f"lie in its range [{found.low:g}, {found.high:g}]", f"is {value:g}")
    return found


def leaves_of(table: Mapping[str, Constant]) -> Specification:
    """Return the leaves of a table of constants, and the table as static records."""
    values = {name: jnp.asarray(one.value, jnp.float32) for name, one in table.items()}
    return Specification(values, tuple(table.items()))


def changed(owner: str, found: Specification, changes: Mapping[str, Any]) -> Specification:
    """Return a specification with some of its numbers replaced.

    Args:
        owner: What is changed, for the message.
        found: The specification.
        changes: Name -> number of at least 0 (which then has no range), or a `Constant`.

    Raises:
        TypeError: If there is no such constant; the message suggests the nearest.
        ValueError: If a number is negative or no number.
    """
    records, values = dict(found.records), dict(found.values)
    checks.options(owner, changes.keys() - records.keys(), records)
    for name, given in changes.items():
        number = given.value if isinstance(given, Constant) else given
        checks.number(name, number, low=0.0, high=float("inf"), unit=records[name].unit)
        checks.shape(name, number, (), fix="Use jax.vmap for many.")
        values[name] = jnp.asarray(number, jnp.float32)
        records[name] = given if isinstance(given, Constant) else _users(number, records[name].unit)
    return Specification(values, tuple(records.items()))


def _users(number: Any, unit: str) -> Constant:
    """Return the record of a number that the user gives; a traced one has no value to keep."""
    value = float(number) if checks.is_concrete(number) else float("nan")
    return Constant(value, value, value, unit, "the user", "U")


@checked
def constant_table(*specifications: Any) -> list[dict[str, Any]]:
    """Return every constant of technologies and machines, one row each, for a table.

    Args:
        *specifications: Technologies and machines.

    Example:
        >>> from nvcim_jax import cost
        >>> rows = cost.constant_table(cost.machines.get("edge-8GB"))
        >>> [row["value"] for row in rows if row["constant"] == "dram_bandwidth"]
        [25600000000.0]
    """
    return [
        {"of": one.name, "constant": name, "value": record.value, **_about(record)}
        for one in specifications
        for name, record in one.records
    ]


def _about(record: Constant) -> dict[str, Any]:
    return {key: getattr(record, key) for key in ("low", "high", "unit", "mark", "source")}
