"""Call one command: read its options, run it, and turn bad input into one line on stderr and exit code 2."""

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

__all__ = ["call", "parse"]

T = TypeVar("T")


def call(name: str, words: Sequence[str], *, traceback: bool = False) -> int:
    """Run the command `name`, a module of this package with `Options` and `main(options) -> int`."""
    module = importlib.import_module(f"nvcim_jax.cli.{name}")
    options = parse(module.Options, f"nvcim {name}", words)
    if isinstance(options, int):
        return options
    try:
        return module.main(options)
    except (ValueError, OSError) as error:
        if traceback:
            raise
        print(f"nvcim {name}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nvcim {name}: interrupted; the same command goes on from what is saved.", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    return " ".join(str(text).split())


def parse(options: type[T], program: str, words: Sequence[str]) -> T | int:
    """Return the options, or the exit code: 0 after help was printed, 2 after one line about bad words."""
    said = io.StringIO()
    arguments: dict[str, Any] = {"prog": program, "args": list(words)}
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, **arguments)
    except SystemExit as end:
        if end.code == 0:
            return 0
        print(f"{program}: {_unboxed(said.getvalue())} (see {program} --help)", file=sys.stderr)
        return 2


def _unboxed(box: str) -> str:
    """Return the message in one line, from the frame that tyro draws around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ \n") for line in plain.splitlines() if line.startswith("│")]
    message: list[str] = []
    for line in lines:
        if line.startswith("─"):
            break
        message.append(line)
    hint = next((lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("Perhaps you meant")), "")
    return " ".join(" ".join(message).split()) + (f". Perhaps you meant {hint}?" if hint else "")
