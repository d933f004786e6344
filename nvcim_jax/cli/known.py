"""The device that a word of the command line names: one of the table, one in a file, or a table of measurements."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import checks, devices, io

__all__ = ["content", "is_file", "known_device", "there"]


def _split(name: str) -> tuple[str, str]:
    """Return the file that a word names, and the greatest conductance behind it."""
    path, _, g_max_us = name.rpartition("@")
    return (path, g_max_us) if path else (name, "")


def is_file(name: str) -> bool:
    """Return whether a word names a file rather than a device of the table."""
    return name not in devices.names() and ("@" in name or name.endswith(".npz") or there(name))


def there(name: str) -> bool:
    """Return whether the file that a word names is there."""
    return Path(_split(name)[0]).expanduser().is_file()


def known_device(name: Any, argument: str = "--device", **given: Any) -> devices.Device:
    """Return the device of a name or of a file, with some of its numbers replaced.

    Args:
        name: A name of the table, a file that `nvcim device` wrote, or FILE@G_MAX_US: a table of measurements as
            `devices.read_records` finds its columns, and the greatest conductance, microsiemens.
        argument: What the word was given as.
        **given: Numbers that are replaced.

    Raises:
        ValueError: If there is none of them.
        FileNotFoundError: If a file is not there.
    """
    if not isinstance(name, str) or not is_file(name):
        checks.choice(argument, name, devices.names())
        return devices.get(name, **given)
    word, g_max_us = _split(name)
    path = checks.file(argument, word)
    stat = path.stat()
    if path.suffix == ".npz":
        return _loaded(path, stat.st_mtime_ns, stat.st_size).replace(**given)
    g_max = _number(argument, name, path, g_max_us)
    return _fitted(argument, path, g_max, stat.st_mtime_ns, stat.st_size).replace(**given)


def _number(argument: str, name: str, path: Path, g_max_us: str) -> float:
    """Return the greatest conductance behind a file, or say which it might be."""
    try:
        return float(g_max_us)
    except ValueError:
        most = np.quantile(_records(argument, path).g_us, 0.99)
        found = f"{name} has none; 99 % of its reads are up to {most:.3g} uS"
        fix = f"For example {argument} {path}@{most:.2g}; nvcim device makes a file of it."
        return checks.fail(argument, "be FILE@G_MAX_US for a table of measurements", found, fix)


@functools.lru_cache(maxsize=16)
def _loaded(path: Path, changed: int, size: int) -> devices.Device:
    """Load a file once for each content that it had."""
    del changed, size
    return io.load_device(path)


def _records(argument: str, path: Path) -> Any:
    """Read a table; what is wrong with it is said of the option that named it."""
    try:
        return devices.read_records(path)
    except ValueError as error:
        raise ValueError(str(error).replace("Argument `path`", f"Argument `{argument}`", 1)) from None


@functools.lru_cache(maxsize=16)
def _fitted(argument: str, path: Path, g_max_us: float, changed: int, size: int) -> devices.Device:
    """Fit a table once for each content that it had."""
    del changed, size
    return devices.from_records(devices.fit_records(_records(argument, path), g_max_us=g_max_us))


def content(name: str) -> dict[str, str]:
    """Return what a run must note besides the name, so that it does not go on with another file of this name."""
    if not is_file(name):
        return {}
    return {"device_file": hashlib.sha256(checks.file("--device", _split(name)[0]).read_bytes()).hexdigest()[:16]}
