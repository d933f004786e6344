"""The command line: `nvcim COMMAND`, one module a command, imported only when it is called."""

import codecs
import contextlib
import importlib.util
import io
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": "NVCiM-PT on a stream of users: prompts tuned, kept in noisy memory, found and used",
    "tune": "one adapter tuned on a file of labelled texts, and saved as PEFT keeps it",
    "compress": "a model's blocks pruned and quantised by a policy, calibrated on plain text, and saved",
    "edge": "Edge-LLM as a whole: compressed by sensitivity, tuned in windows, exits that vote, a schedule",
    "report": "the table and the figures of a run again, from its records alone",
    "devices": "list the memory cells that every command knows",
    "device": "make a device of measured cells: table, figures, and a file that every command takes",
    "cost": "latency, energy and area of a search on a chip and on digital machines, with bands",
    "product": "how far one product is off, over noisy chips, with its table and figure",
    "sweep": "run a grid of settings over device instances, resumable and in shards",
    "merge": "join the shards of a sweep; find gaps, duplicates and conflicts",
    "tolerance": "find how much of a non-ideality the task stands for 99 % of chips",
    "sensitivity": "find which device property limits the task",
    "plot": "draw the figures of a sweep from its saved records",
    "doctor": "what this machine has, what is missing, and what to install",
}
_SPELT = "nvcim-spelt"
_SIGNS = {"±": "+-", "×": "x", "σ": "sigma", "μ": "u", "µ": "u", "Ω": "ohm", "≤": "<=", "≥": ">=", "–": "-", "…": "..."}
_USAGE = "usage: nvcim [--traceback] COMMAND [OPTIONS]    (nvcim COMMAND --help for the options of one)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 found wrong, 2 bad input, 130 interrupted.

    Args:
        argv: Words after `nvcim`; those of the process when None.
    """
    _print_in_ascii_where_that_is_all()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("nvcim: interrupted before anything was computed.", file=sys.stderr)
        return 130


def _main(words: list[str]) -> int:
    traceback = words[:1] == ["--traceback"]
    words = words[1:] if traceback else words
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from nvcim_jax import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in _commands():
        from nvcim_jax import checks

        print(f"nvcim: no command {name!r}. {checks.suggestion(name, _commands())}", file=sys.stderr)
        return 2
    with _interrupts_held():
        from nvcim_jax.cli import entry

        module = entry.load(name)
    return module if isinstance(module, int) else entry.call(name, module, rest, traceback=traceback)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while compiled modules are loaded: there it ends the process, or hides as another error."""
    if threading.current_thread() is not threading.main_thread():  # only there may a signal be handled
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _print_in_ascii_where_that_is_all() -> None:
    """Write what a terminal cannot show in other letters: no result is lost over a sign."""
    codecs.register_error(_SPELT, _spelt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_SPELT)


def _spelt(error: UnicodeError) -> tuple[str, int]:
    """Spell the characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _commands() -> list[str]:
    return [name for name in COMMANDS if importlib.util.find_spec(f"nvcim_jax.cli.{name}")]


def _help() -> str:
    lines = [f"  {name:12s} {COMMANDS[name]}" for name in _commands()]
    return "\n".join([_USAGE, "", "Commands:", *lines, "", "Other options: --help, --version"])
