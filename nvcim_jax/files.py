"""Write a file whole or not at all, and read one that may be no text: the one way to and from a disk."""

import contextlib
import csv as csv_module
import errno
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nvcim_jax import checks

__all__ = ["append", "csv", "folder", "read_json", "reading", "replacing", "write", "write_json"]

# What a file that is no text begins with.
_BINARY = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
    b"GGUF": "a GGUF model",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; when the block ends well the file takes its own name.

    The bytes are on the disk before the name is: a process that is killed at any moment, or a disk that is full, leaves
    what was there before and no half-written file. Two processes that write one path do not meet.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: If the disk refuses; the message says what to do.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with replacing(target) as part:
        ...     _ = part.write_text("1 2 3")
        >>> target.read_text(), len(list(target.parent.iterdir()))
        ('1 2 3', 1)
    """
    path = Path(path)
    if not path.name or path.is_dir():
        checks.fail("path", "name a file", f"is the folder {path}", "Add a name.")
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _worded(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Bring the new name itself to the disk, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _worded(error: OSError, path: Path) -> OSError:
    fix = ""
    if error.errno in _FULL:
        fix = " What was finished before is kept: make room and run the same command again."
    elif error.errno in _REFUSED:
        fix = " Choose a folder that may be written to."
    return OSError(error.errno, f"Could not write {path} ({error.strerror or error}).{fix}")


def write(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all, text in UTF-8, and return its path.

    Raises:
        OSError: If the disk refuses, such as when it is full; what was there before is untouched.
    """
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write a value as indented JSON, whole or not at all, and return the path.

    Raises:
        OSError: See `write`.
    """
    return write(path, json.dumps(content, indent=1) + "\n")


def append(path: str | Path, content: str) -> None:
    """Add text to a file; it is on the disk when this returns. What cannot be added whole is taken back.

    A process that is killed meanwhile may leave the beginning of `content`: end it with a line's end, so that a reader
    can tell.

    Raises:
        OSError: If the disk refuses.
    """
    path = Path(path)
    try:
        with open(path, "ab") as file:
            before = file.tell()
            try:
                file.write(content.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), before)
                raise
    except OSError as error:
        raise _worded(error, path) from error


def csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header: the columns of all rows, in the order in which they first come.

    Example:
        >>> csv([{"name": "a", "value": 0.5}, {"name": "b", "error": 1}])
        'name,value,error\\na,0.5,\\nb,,1\\n'
    """
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv_module.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def folder(argument: str, path: str | Path, *, make: bool = True) -> Path:
    """Make a folder, with those above it, and return its path.

    Args:
        argument: Name of the argument, as the caller wrote it.
        path: The folder.
        make: Whether to make it, or only to check that no file stands in its place.

    Raises:
        ValueError: If a file stands there, or in place of a folder above it.
        OSError: If it cannot be made.
    """
    path = Path(path).expanduser()
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            checks.fail(argument, "be a folder", f"{part} is a file", "Name another folder.")
    if not make:
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _worded(error, path) from error
    return path


@contextlib.contextmanager
def reading(argument: str, path: str | Path, *, kind: str = "text in UTF-8") -> Iterator[io.TextIOBase]:
    """Open a text file, through gzip where its name ends in .gz, and name what is wrong with a file that is none.

    A byte-order mark at its beginning is left out.

    Args:
        argument: Name of the argument, as the caller wrote it.
        path: The file, which exists.
        kind: What it must be, continuing "must be ".

    Raises:
        ValueError: If it is binary, in another encoding, a web page, no gzip though its name says so, or cut short.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "text.txt"
        >>> _ = target.write_bytes(b"\\xef\\xbb\\xbfa line\\n")
        >>> with reading("path", target) as file:
        ...     print(repr(file.read()))
        'a line\\n'
    """
    path = Path(path)

    def refuse(found: str, fix: str = "") -> NoReturn:
        checks.fail(argument, f"be {kind}", f"{path} is {found}", fix)

    try:
        with _open(path) as file:
            _check_head(file.peek(4096)[:4096], path, refuse)
            yield io.TextIOWrapper(file, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"not: byte {error.object[error.start]:#x} at {error.start} is no UTF-8", "Save it as UTF-8.")
    except (EOFError, zlib.error):
        refuse("cut short", "Fetch it again.")
    except gzip.BadGzipFile:
        refuse("no gzip file, whatever its name says", "Take .gz off its name, or compress it.")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _check_head(head: bytes, path: Path, refuse: Callable[..., NoReturn]) -> None:
    """Refuse what the first bytes say is no text."""
    if head.startswith(b"\x1f\x8b"):
        refuse("compressed", f"Name it {path.name}.gz.")
    for beginning, name in _BINARY.items():
        if head.startswith(beginning):
            refuse(name)
    if b"\0" in head:
        refuse("binary")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        refuse("an HTML page", "The download failed: open the address in a browser.")


def read_json(argument: str, path: str | Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: If there is none; the message names what is near.
        ValueError: If it is none; the message gives the line.
    """
    path = checks.file(argument, path)
    with reading(argument, path, kind="JSON") as file:
        text = file.read()
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{path} is empty" if not text.strip() else f"{path} is not: {error.msg} at line {error.lineno}"
    except RecursionError:
        found = f"{path} nests too deeply"
    return checks.fail(argument, "be JSON", found)
