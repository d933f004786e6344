"""Read and write safetensors files a few rows at a time.

The format: eight bytes with the length of a header, the header (JSON: name -> dtype, shape, begin and end), the
data. Mapping a file into memory counts every page that was touched as the process's own; plain reads of a few rows
keep the peak at what the caller holds.

References:
    Safetensors format, https://huggingface.co/docs/safetensors.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from nvcim_jax import checks, files

__all__ = ["Tensor", "find_tensors", "read_rows", "write_tensors"]

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Names that the format has for the dtypes read here."""

HEADER_LIMIT = 100_000_000
"""Longest header the format allows, bytes."""


class Tensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        path: Its file.
        dtype: Its dtype.
        shape: Its shape.
        begin: Its first byte in the file.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int


def _broken(path: Path, found: str) -> NoReturn:
    checks.fail(path.name, "be a whole safetensors file", found, "Download it again.")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file and where its data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:5].lower() in (b"<!doc", b"<html") or start.startswith(b"version "):
            checks.fail(
                path.name,
                "be a safetensors file",
                "is a text: an HTML page or a Git LFS pointer",
                "Download the file itself.",
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, HEADER_LIMIT):
            _broken(path, f"has {size} bytes and no readable header")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            _broken(path, "has a header that is not JSON")
    return header, 8 + length


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}.")
    header, data = _header(path)
    header.pop("__metadata__", None)
    size, found = path.stat().st_size, {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            checks.fail(f"{path.name}: {name}", f"have a dtype of {', '.join(DTYPES)}", f"has {entry['dtype']}")
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            _broken(path, f"gives {end - begin} bytes to {name} of shape {tuple(entry['shape'])}")
        if data + end > size:
            _broken(path, f"ends at byte {size}, before the end of {name} at {data + end}")
        found[name] = Tensor(path, dtype, tuple(entry["shape"]), data + begin)
    return found


def find_tensors(folder: Path) -> dict[str, Tensor]:
    """List the tensors of a checkpoint: model.safetensors, or the files of model.safetensors.index.json.

    Args:
        folder: The checkpoint.

    Returns:
        Name -> where it lies.

    Raises:
        FileNotFoundError: If there is no safetensors file.
        ValueError: If a file is truncated, is something else, or lacks a tensor that the index promises.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file() and any(folder.glob("*.bin")):
            raise FileNotFoundError(
                f"There is no model.safetensors in {folder}, only a pickled checkpoint, which can run any code. "
                "Convert it with transformers: save_pretrained(folder)."
            )
        return _tensors(single)
    from nvcim_jax.models.files.hf_config import read_json

    places: dict[str, str] = read_json(index).get("weight_map", {})
    found: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        found |= _tensors(folder / file)
    missing = sorted(set(places) - set(found))
    if missing:
        checks.fail(index.name, "name tensors that its files hold", f"also names {', '.join(missing[:5])}")
    return found


def read_rows(tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read the rows `start` to `stop` of a tensor, nothing else.

    Args:
        tensor: Where it lies.
        start: First index of the first axis.
        stop: One past the last; None: to the end.

    Returns:
        The rows, in the file's dtype.
    """
    if not tensor.shape:
        return np.fromfile(tensor.path, tensor.dtype, 1, offset=tensor.begin).reshape(())
    stop = tensor.shape[0] if stop is None else stop
    row = math.prod(tensor.shape[1:])
    offset = tensor.begin + start * row * tensor.dtype.itemsize
    flat = np.fromfile(tensor.path, tensor.dtype, (stop - start) * row, offset=offset)
    return flat.reshape(stop - start, *tensor.shape[1:])


def write_tensors(
    path: Path, plan: Mapping[str, tuple[np.dtype, tuple[int, ...]]], make: Callable[[str], Iterable[np.ndarray]]
) -> None:
    """Write a safetensors file piece by piece; it takes its name only when it is whole.

    Args:
        path: The file.
        plan: Name -> dtype and shape.
        make: Name -> the tensor as consecutive pieces.

    Raises:
        ValueError: If the pieces of a tensor do not add up to its shape.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in plan.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.replacing(path) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape) in plan.items():
            written = 0
            for piece in make(name):
                written += file.write(np.ascontiguousarray(piece, dtype).view(np.uint8).data)
            if written != math.prod(shape) * dtype.itemsize:
                checks.fail(name, f"have shape {shape} in {dtype}", f"came to {written} bytes")
