"""Read the header of a GGUF file, and the rows of its tensors.

The format: magic, version, the number of tensors and of metadata, the metadata (name, type, value), the tensors (name,
sizes, type, offset), and from the next multiple of the alignment on the data. It is read here without the `gguf`
package, whose reader makes arrays of every string: `gguf.GGUFReader(path)` took 2.5 s for SmolLM2's 98,000 strings. The
tests hold it against that package.

References:
    GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.files.gguf_types import KINDS, NAMES

__all__ = ["Gguf", "GgufTensor", "read_blocks", "read_gguf"]

NUMBERS: Mapping[int, np.dtype] = {
    kind: np.dtype(name)
    for kind, name in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
"""dtypes of the types of metadata that are numbers."""

STRING, ARRAY = 8, 9

VERSIONS = (2, 3)
"""Versions of the format that are read: the first had other lengths, and no file of today."""

SPLIT = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""Name of one of the files that a model was split into."""

Read = tuple[Any, int]
"""A value, and where the next one begins."""


class GgufTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        path: Its file.
        kind: Name of its type, such as "Q4_1".
        shape: Its shape, as an array of NumPy counts it: rows first.
        begin: Its first byte in the file.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        kind = KINDS[self.kind]
        return self.shape[-1] // kind.block * kind.bytes


class Gguf(NamedTuple):
    """What a file says of itself.

    Attributes:
        path: The file; of several, the first.
        meta: Name -> number, string, or an array or list of them.
        tensors: Name -> where it lies.
    """

    path: Path
    meta: dict[str, Any]
    tensors: dict[str, GgufTensor]


def _broken(path: Path, found: str) -> NoReturn:
    checks.fail(path.name, "be a whole GGUF file", found, "Download it again.")


def _strings(data: mmap.mmap, at: int, count: int) -> Read:
    found = []
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        (size,) = unpack(data, at)
        at += 8 + size
        found.append(data[at - size : at].decode("utf-8", errors="replace"))
    if at > len(data):
        raise struct.error("a string ends behind the file")
    return found, at


def _array(data: mmap.mmap, at: int, kind: int, count: int) -> Read:
    if kind == STRING:
        return _strings(data, at, count)
    if kind == ARRAY:
        found = []
        for _ in range(count):
            value, at = _value(data, at, ARRAY)
            found.append(value)
        return found, at
    dtype = NUMBERS[kind]
    end = at + count * dtype.itemsize
    if end > len(data):
        raise struct.error("an array ends behind the file")
    return np.frombuffer(data[at:end], dtype), end


def _value(data: mmap.mmap, at: int, kind: int) -> Read:
    if kind == STRING:
        (value,), at = _strings(data, at, 1)
        return value, at
    if kind == ARRAY:
        inner, count = struct.unpack_from("<IQ", data, at)
        return _array(data, at + 12, inner, count)
    values, at = _array(data, at, kind, 1)
    return values[0].item(), at


def _metadata(data: mmap.mmap, at: int, count: int) -> Read:
    meta = {}
    for _ in range(count):
        (name,), at = _strings(data, at, 1)
        (kind,) = struct.unpack_from("<I", data, at)
        meta[name], at = _value(data, at + 4, kind)
    return meta, at


def _tensors(data: mmap.mmap, at: int, count: int, path: Path) -> Read:
    found = {}
    for _ in range(count):
        (name,), at = _strings(data, at, 1)
        (ndim,) = struct.unpack_from("<I", data, at)
        *sizes, number, begin = struct.unpack_from(f"<{ndim}QIQ", data, at + 4)
        at += 16 + 8 * ndim
        kind = NAMES.get(number, f"number {number}")
        if kind not in KINDS:
            fix = f"Supported: {', '.join(KINDS)}; llama-quantize of llama.cpp converts to one of them."
            checks.fail(f"{path.name}: {name}", "have a supported type", f"has type {kind}", fix)
        found[name] = GgufTensor(path, kind, tuple(reversed(sizes)), begin)
    return found, at


def _start(data: mmap.mmap, path: Path) -> tuple[int, int]:
    """Check magic and version, and return the numbers of tensors and metadata."""
    if data[:4] != b"GGUF":
        checks.fail(path.name, "be a GGUF file", f"begins with {data[:4]!r}", "Download the file itself.")
    version, num_tensors, num_meta = struct.unpack_from("<IQQ", data, 4)
    if version not in VERSIONS:
        swapped = int.from_bytes(data[4:8], "big") in VERSIONS
        found = "is of a big-endian machine" if swapped else f"has version {version}"
        checks.fail(path.name, f"have GGUF version {' or '.join(map(str, VERSIONS))}", found, "Convert it anew.")
    return num_tensors, num_meta


def _one(path: Path) -> Gguf:
    """Read the header of one file."""
    size = path.stat().st_size
    if size < 24:
        _broken(path, f"has {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        num_tensors, num_meta = _start(data, path)
        try:
            meta, at = _metadata(data, 24, num_meta)
            tensors, at = _tensors(data, at, num_tensors, path)
        except (struct.error, KeyError, OverflowError, MemoryError):
            _broken(path, f"has {size} bytes and a header that breaks off")
    alignment = int(meta.get("general.alignment", 32))
    start = -(-at // alignment) * alignment
    found = {name: tensor._replace(begin=start + tensor.begin) for name, tensor in tensors.items()}
    for name, tensor in found.items():
        block, width = KINDS[tensor.kind].block, tensor.shape[-1]
        if width % block:
            _broken(
                path, f"has rows of {width} for {name}, no multiple of the {block} weights of a {tensor.kind} block"
            )
        end = tensor.begin + math.prod(tensor.shape[:-1]) * tensor.row_bytes
        if end > size:
            _broken(path, f"ends at byte {size}, before the end of {name} at {end}")
    return Gguf(path, meta, found)


def _parts(path: Path) -> list[Path]:
    """Return the files of a model, all of which must be there."""
    split = SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    number = int(split["parts"])
    paths = [path.with_name(f"{split['stem']}-{i + 1:05d}-of-{number:05d}.gguf") for i in range(number)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path.name} is one of {number} files, of which {', '.join(missing)} is not in {path.parent}."
        )
    return paths


def read_gguf(path: Path) -> Gguf:
    """Read the header of a GGUF file; of a split one, give any of its parts.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If a part of a split file is not there.
        ValueError: If it is truncated, is something else, or has a tensor of an unknown type.
    """
    files = [_one(part) for part in _parts(path)]
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    wanted = int(files[0].meta.get("split.tensors.count", len(tensors)))
    if len(tensors) != wanted:
        checks.fail(path.name, f"hold {wanted} tensors with its other parts", f"holds {len(tensors)}", "Get them anew.")
    return Gguf(files[0].path, files[0].meta, tensors)


def read_blocks(tensor: GgufTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read the rows `start` to `stop` of a tensor of one or two axes as bytes (rows, bytes of a row)."""
    rows = math.prod(tensor.shape[:-1])
    stop = rows if stop is None else stop
    offset = tensor.begin + start * tensor.row_bytes
    flat = np.fromfile(tensor.path, np.uint8, (stop - start) * tensor.row_bytes, offset=offset)
    return flat.reshape(stop - start, tensor.row_bytes)
