"""Units and names of the columns of measurements, as people write them."""

import re
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks

__all__ = ["COLUMNS", "check_plausible", "found_columns", "in_microsiemens", "in_seconds", "unit_of"]

_CONDUCTANCE = {"S": 1e6, "mS": 1e3, "uS": 1.0, "nS": 1e-3, "pS": 1e-6}
_RESISTANCE = {"ohm": 1e6, "kohm": 1e3, "Mohm": 1.0, "Gohm": 1e-3}
_TIME = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SPELT = {
    "µS": "uS",
    "μS": "uS",
    "siemens": "S",
    "microsiemens": "uS",
    "Ω": "ohm",
    "Ohm": "ohm",
    "ohms": "ohm",
    "Ohms": "ohm",
    "kΩ": "kohm",
    "kOhm": "kohm",
    "KOhm": "kohm",
    "MΩ": "Mohm",
    "MOhm": "Mohm",
    "GΩ": "Gohm",
    "GOhm": "Gohm",
    "µs": "us",
    "μs": "us",
    "sec": "s",
    "seconds": "s",
    "hour": "h",
    "hours": "h",
    "hr": "h",
    "minutes": "min",
    "day": "d",
    "days": "d",
}
# A name's last part says the unit: without regard to case, for names in lower case are usual.
_ENDINGS = {"s": "s", "us": "uS", "ns": "nS", "ms": "mS", "ohm": "ohm", "kohm": "kohm", "mohm": "Mohm", "siemens": "S"}

COLUMNS: dict[str, tuple[str, ...]] = {
    "g": ("g", "conductance", "conductances", "g_read", "gread", "g_meas", "g_measured", "measured_conductance"),
    "r": ("r", "res", "resistance", "r_read", "rread", "r_meas", "measured_resistance"),
    "level": ("level", "state", "range", "lvl", "code", "target_level", "level_id"),
    "target": ("target", "g_target", "target_g", "gtarget", "target_conductance", "setpoint"),
    "cell": ("cell", "addr", "address", "cell_id", "cellid", "device", "device_id", "dev", "cell_address"),
    "t": ("t", "time", "elapsed", "elapsed_time", "delay", "time_since_programming", "retention_time"),
    "cycle": ("cycle", "cycles", "rep", "repeat", "repetition", "trial", "iteration"),
}
"""What a column may be called, in lower case and without its unit."""


class _Name(NamedTuple):
    bare: str
    unit: str


def _split(name: str) -> _Name:
    """Split a heading into its name and the unit that it carries: "G (uS)", "g_us", "time[s]"."""
    text = name.strip().strip('"')
    match = re.fullmatch(r"(.*?)[\s_]*[\[(/]\s*([^\])]+?)\s*[\])]?", text)
    if match and _plain(match[2]) in {**_CONDUCTANCE, **_RESISTANCE, **_TIME}:
        return _Name(_bare(match[1]), _plain(match[2]))
    bare = _bare(text)
    head, _, tail = bare.rpartition("_")
    return _Name(head, tail) if head and tail in (*_ENDINGS, *_TIME) else _Name(bare, "")


def _bare(text: str) -> str:
    return re.sub(r"[\s.\-]+", "_", text.strip()).strip("_").lower()


def _plain(unit: str) -> str:
    return _SPELT.get(unit.strip(), unit.strip())


def found_columns(header: list[str]) -> dict[str, int]:
    """Return the columns that a header names, by what they hold."""
    names = [_split(name).bare for name in header]
    places = {}
    for wanted, known in COLUMNS.items():
        ranked = [names.index(name) for name in known if name in names]
        if ranked:
            places[wanted] = ranked[0]
    return places


def unit_of(kind: str, heading: str | None, given: str | None, *, otherwise: str | None = None) -> str:
    """Return the unit of a column: the one that is given, that of its heading, or `otherwise`.

    Raises:
        ValueError: If there is neither, the two differ, or it is no unit of what the column holds.
    """
    known = _TIME if kind == "t" else {**_CONDUCTANCE, **_RESISTANCE}
    said = ""
    if heading is not None:
        split = _split(heading)
        said = split.unit if kind == "t" or split.unit in known else _ENDINGS.get(split.unit, "")
        said = said if said in known else ""
    if given is None:
        found = said or otherwise or ("s" if kind == "t" else "")
        if not found:
            fix = f'Give units={{"{kind}": ...}}: {", ".join(known)}.'
            checks.fail("units", f"say the unit of column {kind!r}", "nothing says it", fix)
        return found
    unit = _plain(given)
    checks.choice("units", unit, known)
    if said and said != unit:
        checks.fail("units", "agree with the heading of the column", f"is {unit} where {heading!r} says {said}")
    return unit


def in_seconds(values: np.ndarray, unit: str) -> np.ndarray:
    """Return times in seconds."""
    return values * _TIME[unit]


def in_microsiemens(values: np.ndarray, unit: str) -> np.ndarray:
    """Return conductances in microsiemens; a resistance of 0 or without end has none."""
    if unit in _CONDUCTANCE:
        return values * _CONDUCTANCE[unit]
    real = np.isfinite(values) & (values != 0)
    return np.where(real, _RESISTANCE[unit] / np.where(real, values, 1.0), np.nan)


# Within which the greatest conductance of a file lies, in microsiemens: 10 ohm to 10 Gohm.
_LEAST_US, _GREATEST_US = 1e-4, 1e5


def check_plausible(values_us: np.ndarray, unit: str) -> None:
    """Refuse a unit in which no memory cell conducts so much, or so little."""
    finite = np.abs(values_us[np.isfinite(values_us)])
    if not finite.size:
        return
    top = float(np.quantile(finite, 0.99))
    if not _LEAST_US <= top <= _GREATEST_US:
        found = f"in {unit} the greatest is {top:.3g} uS"
        wanted = f"be one in which the greatest conductance lies in {_LEAST_US:g} to {_GREATEST_US:g} uS"
        checks.fail("units", wanted, found, "Give the unit of the file.")
