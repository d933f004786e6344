"""A JSON array of any length, read one element at a time."""

import json
import re
from collections.abc import Iterator
from io import TextIOBase
from pathlib import Path
from typing import Any, NoReturn

from nvcim_jax import checks, files

__all__ = ["iterate_array"]

SPACE = re.compile(r"[ \t\r\n\ufeff]*")
NEAR_END = 10
"""An error this near to the end of what was read may be a token that was cut in two (the longest is -Infinity)."""


class _Window:
    """The part of a file that was read and not yet used.

    Attributes:
        text: The characters at hand.
        start: How many of them were used.
        line: Number of the line on which `text` begins.
        ended: Whether the file has been read to its end.
    """

    def __init__(self, file: TextIOBase, path: Path, chunk: int) -> None:
        self.file, self.path, self.chunk = file, path, chunk
        self.text, self.start, self.line, self.ended = "", 0, 1, False

    def more(self, size: int) -> None:
        """Let go of what was used, and read on."""
        self.line += self.text.count("\n", 0, self.start)
        read = self.file.read(size)
        self.ended = not read
        self.text, self.start = self.text[self.start :] + read, 0

    def next(self) -> str:
        """Skip white space and return the character that follows, or nothing at the end of the file."""
        while True:
            self.start = SPACE.match(self.text, self.start).end()  # type: ignore[union-attr]
            if self.start < len(self.text) or self.ended:
                return self.text[self.start : self.start + 1]
            self.more(self.chunk)

    def fail(self, found: str, position: int | None = None) -> NoReturn:
        line = self.line + self.text.count("\n", 0, self.start if position is None else position)
        checks.fail("path", "be a JSON array of objects", f"{self.path.name} {found} on line {line}")


def _element(window: _Window, decoder: json.JSONDecoder) -> dict[str, Any]:
    """Return the object at the front of the window, reading on until all of it is there."""
    size = window.chunk
    while True:
        try:
            value, end = decoder.raw_decode(window.text, window.start)
        except RecursionError:
            window.fail("nests too deeply")
        except json.JSONDecodeError as error:
            left = 0 if error.msg.startswith("Unterminated string") else len(window.text) - error.pos
            if window.ended or left > NEAR_END:
                window.fail(f"{'is broken' if left else 'breaks off'} ({error.msg})", error.pos)
            window.more(size)
            size *= 2  # few retries even for an element of many chunks
            continue
        if not isinstance(value, dict):
            window.fail(f"holds {str(value)[:20]!r}, which is no object,")
        window.start = end
        return value


def iterate_array(path: Path, *, chunk: int = 1 << 20) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array, holding one element and one chunk of the file in memory.

    Args:
        path: The file, plain or .gz.
        chunk: Characters read at a time.

    Returns:
        An iterator over the elements in order.

    Raises:
        ValueError: If the file is no JSON array of objects; the message gives the line.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "array.json"
        >>> _ = path.write_text('[{"a": 1},\\n {"a": [2]}]')
        >>> list(iterate_array(path, chunk=3))
        [{'a': 1}, {'a': [2]}]
    """
    checks.integer("chunk", chunk)
    decoder = json.JSONDecoder()
    with files.reading("path", path, kind="a JSON array of objects") as file:
        window = _Window(file, path, chunk)
        sign = window.next()
        if sign != "[":
            window.fail(f"begins with {sign!r}" if sign else "is empty")
        while True:
            window.start += 1
            if window.next() == "]" and sign == "[":
                break
            yield _element(window, decoder)
            sign = window.next()
            if sign not in (",", "]") or not sign:
                window.fail(f"has {sign!r} after an element" if sign else "breaks off")
            if sign == "]":
                break
        window.start += 1
        if window.next():
            window.fail("goes on after its end")
