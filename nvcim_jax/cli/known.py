"""The device that a word of the command line names: one of the table, or one in a file."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from nvcim_jax import checks, devices, io

__all__ = ["content", "is_file", "known_device"]


def is_file(name: str) -> bool:
    """Return whether a word names a device file rather than a device of the table."""
    return name not in devices.names() and (name.endswith(".npz") or Path(name).expanduser().is_file())


def known_device(name: Any, argument: str = "device", **given: Any) -> devices.Device:
    """Return the device of a name, or of a file that `nvcim device` wrote, with some of its numbers replaced.

    Raises:
        ValueError: If there is neither.
        FileNotFoundError: If it is the name of a device file that is not there.
    """
    if not isinstance(name, str) or not is_file(name):
        checks.choice(argument, name, devices.names())
        return devices.get(name, **given)
    path = checks.file(argument, name)
    stat = path.stat()
    return _loaded(path, stat.st_mtime_ns, stat.st_size).replace(**given)


@functools.lru_cache(maxsize=16)
def _loaded(path: Path, changed: int, size: int) -> devices.Device:
    """Load a file once for each content that it had."""
    del changed, size
    return io.load_device(path)


def content(name: str) -> dict[str, str]:
    """Return what a run must note besides the name, so that it does not go on with another file of this name."""
    if not is_file(name):
        return {}
    return {"device_file": hashlib.sha256(checks.file("device", name).read_bytes()).hexdigest()[:16]}
