"""What a command says: all of it, its result alone as JSON, or nothing; and options by the names they were given."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

__all__ = ["SPOKEN", "Said", "by_option", "flags", "print_result", "speaking"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """What is printed."""

    quiet: bool = False
    """Print nothing but errors, and what --json asks for."""
    json: bool = False
    """Print the result as JSON in place of all that is said on stdout."""

    @property
    def progress(self) -> bool | None:
        """Return what a progress bar is shown: None where stderr is a terminal, False never."""
        return False if self.quiet else None


SPOKEN = Said()


class _Aside(io.TextIOBase):
    """A stdout that swallows what is said, and knows where the result goes."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def write(self, text: str) -> int:
        """Swallow a text."""
        return len(text)


@contextlib.contextmanager
def speaking(options: Any) -> Iterator[None]:
    """Print what a command says, or swallow it where its options say so."""
    said = getattr(options, "said", SPOKEN)
    if not (said.quiet or said.json):
        yield
        return
    with contextlib.redirect_stdout(_Aside(sys.stdout)):  # type: ignore[type-var]
        yield


def print_result(options: Any, result: Any) -> None:
    """Print what came out as JSON where --json asks for it: rows as lines, anything else as one object.

    Args:
        options: The command's options.
        result: Rows, or a mapping; what is no number is null, arrays are lists.
    """
    if not options.said.json:
        return
    rows = result if isinstance(result, list) else [result]
    stream = getattr(sys.stdout, "result", sys.stdout)
    print("\n".join(json.dumps(_plain(row)) for row in rows), file=stream)


def _plain(value: Any) -> Any:
    """Return what JSON knows.

    Example:
        >>> _plain({"a": float("nan"), "b": (1, 2.5)})
        {'a': None, 'b': [1, 2.5]}
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):  # an array, or a number of one
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def by_option(message: str, options: Any, words: Sequence[str], names: Mapping[str, str]) -> str:
    """Return a message about an argument of the library as one about the option that it came from.

    Args:
        message: The message; "Argument `name` must" is what is replaced.
        options: The class of the command's options.
        words: The words that the user gave; an argument that is named in them, as in `--set sigma=1`, keeps its name.
        names: Options of arguments that have another name; and phrases of a fix in Python as one of the command line.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     num_steps: int = 1
        >>> by_option("Argument `num_steps` must be 1.", Options, [], {})
        'Argument `--num-steps` must be 1.'
        >>> by_option("Argument `name` must be ...", Options, [], {"name": "--device"})
        'Argument `--device` must be ...'
    """
    for phrase, said in names.items():
        message = message if phrase.isidentifier() else message.replace(phrase, said)
    found = re.search(r"Argument `([^`]+)`", message)
    if found is None:
        return message
    name = found[1]
    if any(re.search(rf"(^|[^\w-]){re.escape(name)}=", word) for word in words):
        return message
    flag = names.get(name) or _flags(options).get(name) or _given_as(name, words)
    return message if flag is None else message.replace(f"`{name}`", f"`{flag}`", 1)


def _given_as(file: str, words: Sequence[str]) -> str | None:
    """Return the option that a file was given as."""
    pairs = itertools.pairwise(words) if "." in file else ()
    return next((option for option, word in pairs if option.startswith("--") and Path(word).name == file), None)


def flags(made: Any, prefix: str = "") -> list[str]:
    """Return the options of a class of options, those of nested classes after its own."""
    return [flag for _, flag in _named_flags(made, prefix)]


def _flags(made: Any) -> dict[str, str]:
    """Return the option of each field, those of nested classes by their own names; the outermost counts."""
    found: dict[str, str] = {}
    for name, flag in _named_flags(made, ""):
        found.setdefault(name, flag)
    return found


def _named_flags(made: Any, prefix: str) -> list[tuple[str, str]]:
    """Return name and option of each field."""
    own: list[tuple[str, str]] = []
    nested: list[tuple[str, str]] = []
    hints = typing.get_type_hints(made, include_extras=True)
    for field in dataclasses.fields(made):
        marks = getattr(hints[field.name], "__metadata__", ())
        hint = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        flag = f"--{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            hidden = any(getattr(mark, "name", None) == "" for mark in marks)
            nested += _named_flags(hint, prefix if hidden else f"{flag[2:]}.")
        else:
            own.append((field.name, field.name.upper() if tyro.conf.Positional in marks else flag))
    return own + nested
