"""A device in a file: its numbers, its laws by the names of the library's own functions, nothing that runs."""

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nvcim_jax import checks, devices, files
from nvcim_jax.signature import checked

__all__ = ["DEVICE_SUFFIX", "load_device", "save_device"]

DEVICE_SUFFIX = ".device.npz"
_FORMAT = "nvcim_jax device 1"
_NAMES = {part: name for name, part in devices.BY_NAME.items()}


@checked
def save_device(path: str | Path, device: devices.Device) -> Path:
    """Save a device whose laws are the library's own; arrays that several laws share are written once.

    Args:
        path: The file; `.device.npz` is the usual ending.
        device: The device.

    Returns:
        The path.

    Raises:
        ValueError: If a law is a function of the caller's.
        OSError: If the disk refuses.

    Example:
        >>> import pathlib, tempfile
        >>> from nvcim_jax import devices, io
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pcm.device.npz"
        >>> _ = io.save_device(path, devices.get("PCM", sigma=0.5))
        >>> print(io.load_device(path).name, io.load_device(path).sigma)
        PCM 0.5
    """
    arrays: dict[str, np.ndarray] = {}
    seen: dict[int, str] = {}

    def written(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Partial):
            name = _NAMES.get(value.func)
            if name is None:
                found = f"uses {getattr(value.func, '__name__', value.func)!r}"
                checks.fail(
                    "device", "use the library's own laws to be saved", found, "Save the numbers it is made of."
                )
            return {"law": name, "args": [written(v) for v in value.args], "named": _each(written, value.keywords)}
        if type(value) in _NAMES:
            return {"spec": _NAMES[type(value)], "fields": _each(written, vars(value))}
        if id(value) not in seen:
            seen[id(value)] = f"a{len(arrays)}"
            arrays[seen[id(value)]] = np.asarray(value)
        return {"array": seen[id(value)]}

    about = json.dumps({"format": _FORMAT, "device": written(device)})
    path = Path(path).expanduser()
    with files.replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, about=np.frombuffer(about.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return path


def _each(fn: Any, values: Any) -> dict[str, Any]:
    return {name: fn(value) for name, value in values.items()}


@checked
def load_device(path: str | Path) -> devices.Device:
    """Load a device that `save_device` wrote; nothing in the file is run.

    Args:
        path: The file.

    Returns:
        The device, every number as it was.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no such file.

    Example:
        >>> import pathlib, tempfile
        >>> from nvcim_jax import io
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.npz"
        >>> _ = path.write_text("RRAM1")
        >>> io.load_device(path)
        Traceback (most recent call last):
        ...
        ValueError: Argument `path` must be a device file, but ...notes.npz is none, or broken. Write one with nvcim ...
    """
    path = checks.file("path", path)
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        about = json.loads(arrays.pop("about").tobytes())
        return _read(about, arrays)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile):
        fix = "Write one with nvcim device, or nvcim_jax.io.save_device."
        return checks.fail("path", "be a device file", f"{path} is none, or broken", fix)


def _read(about: Any, arrays: dict[str, np.ndarray]) -> devices.Device:
    if about["format"] != _FORMAT:
        raise ValueError(about["format"])
    made = {name: jnp.asarray(value) for name, value in arrays.items()}

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return made[value["array"]]
        if "law" in value:
            return Partial(devices.BY_NAME[value["law"]], *map(read, value["args"]), **_each(read, value["named"]))
        return devices.BY_NAME[value["spec"]](**_each(read, value["fields"]))

    with jax.ensure_compile_time_eval():
        found = read(about["device"])
    if not isinstance(found, devices.Device):
        raise ValueError(type(found).__name__)
    return found
