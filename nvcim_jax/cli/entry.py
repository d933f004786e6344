"""Call one command: read its options, run it, and turn bad input into one line on stderr and exit code 2."""

import collections.abc
import contextlib
import dataclasses
import importlib
import io
import os
import re
import shlex
import sys
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from nvcim_jax import checks
from nvcim_jax.cli.voice import Said, by_option, speaking

__all__ = ["call", "command_line", "load", "parse"]

T = TypeVar("T")

_RULES = tyro.constructors.ConstructorRegistry()


@_RULES.primitive_rule
def _name_alone(info: tyro.constructors.PrimitiveTypeInfo) -> "tyro.constructors.PrimitiveConstructorSpec[str] | None":
    """Read what is a name or a function as a name: functions are given in Python."""
    parts = typing.get_args(info.type)
    if str not in parts or not any(typing.get_origin(part) is collections.abc.Callable for part in parts):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


_MAY_BE_REPEATED = tyro.conf.UseAppendAction[Any].__metadata__[0]  # type: ignore[attr-defined]


def load(name: str) -> Any:
    """Return the module of a command with everything that it computes with, or the exit code 2 after a line."""
    try:
        _check_platform()
    except ValueError as error:
        print(f"nvcim {name}: {_one_line(error)}", file=sys.stderr)
        return 2
    import nvcim_jax.study  # noqa: F401  the room that imports most others

    return importlib.import_module(f"nvcim_jax.cli.{name}")


def call(name: str, module: Any, words: Sequence[str], *, traceback: bool = False) -> int:
    """Run the command `name`, of a module with `Options` and `main(options) -> int`.

    A module that has `read(words)` reads its own options.
    """
    options = None
    try:
        options = module.read(words) if hasattr(module, "read") else parse(module.Options, f"nvcim {name}", words)
        if isinstance(options, int):
            return options
        with speaking(options):
            return module.main(options)
    except BrokenPipeError:  # whoever read the output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if traceback:
            raise
        said = by_option(_one_line(error), module.Options, words, getattr(module, "NAMES", {}))
        print(f"nvcim {name}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nvcim {name}: interrupted; {_kept(options)}.", file=sys.stderr)
        return 130


def _check_platform() -> None:
    """Say in one line that JAX has not the platform that the environment asks for, before a device is made on it."""
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError):
        wanted = jax.config.values.get("jax_platforms")
        fix = "Install JAX for it, or leave JAX_PLATFORMS out."
        checks.fail("JAX_PLATFORMS", "name a platform that JAX has here", f"is {wanted!r}", fix)


def _kept(options: Any) -> str:
    from nvcim_jax.io import holds

    out = getattr(options, "out", None)
    if out is None:
        return "nothing is saved"
    if not holds(out):
        return f"nothing is finished yet in {out}"
    return f"what is finished is in {out}, and the same command goes on from there"


def command_line(name: str, options: Any, positional: Sequence[str] = (), *, in_full: bool = False) -> str:
    """Return the command that gives these options, to be kept with what it makes.

    Args:
        name: Name of the command.
        options: Its `Options`.
        positional: Names of those that are given without a flag.
        in_full: Whether defaults are written out too, so that no later default changes what the command does.
    """
    return shlex.join(["nvcim", name, *_words(options, type(options), positional, in_full)])


def _words(options: Any, made: Any, positional: Sequence[str], in_full: bool, prefix: str = "") -> list[str]:
    """Return the words of options; those of a nested class carry its name, where it does not hide it."""
    words: list[str] = []
    hints = typing.get_type_hints(made, include_extras=True)
    for field in dataclasses.fields(options):
        value, default = getattr(options, field.name), _default(field)
        flag = f"--{prefix}{field.name.replace('_', '-')}"
        if isinstance(value, Said) or field.name == "dry_run":  # what was printed is no part of what was made
            continue
        if dataclasses.is_dataclass(value):
            own = prefix if _hides_its_name(hints[field.name]) else f"{flag[2:]}."
            words += _words(value, type(value), positional, in_full or value != default, own)
        elif value == default and field.name not in positional and not in_full:
            continue
        elif isinstance(value, bool):
            words.append(flag if value else f"--{prefix}no-{field.name.replace('_', '-')}")
        elif value is not None or in_full:
            given = [str(part) for part in (value if isinstance(value, tuple) else (value,))]
            if field.name in positional:
                words += given
            elif _MAY_BE_REPEATED in getattr(hints[field.name], "__metadata__", ()):
                words += [word for part in given for word in (flag, part)]
            else:
                words += [flag, *given]
    return words


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _hides_its_name(hint: Any) -> bool:
    return any(getattr(part, "name", None) == "" for part in getattr(hint, "__metadata__", ()))


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {text}"
    return " ".join(str(text).split())


def parse(options: type[T], program: str, words: Sequence[str], *, default: T | None = None) -> T | int:
    """Return the options, or the exit code: 0 after help was printed, 2 after one line about bad words.

    Args:
        options: Their class.
        program: What the user calls.
        words: What stands behind it.
        default: What holds where the words say nothing; the defaults of the class when None.
    """
    said = io.StringIO()
    arguments: dict[str, Any] = {"prog": program, "args": list(words)}
    if default is not None:
        arguments["default"] = default
    try:
        with contextlib.redirect_stderr(said), _RULES:
            return tyro.cli(options, **arguments)
    except ValueError as error:  # of an option's own class, which checks what it is made of
        print(f"{program}: {by_option(_one_line(error), options, words, {})}", file=sys.stderr)
        return 2
    except SystemExit as end:
        if end.code == 0:
            return 0
        print(
            f"{program}: {by_option(_unboxed(said.getvalue()), options, words, {})} (see {program} --help)",
            file=sys.stderr,
        )
        return 2


def _unboxed(box: str) -> str:
    """Return the message in one line, from the frame that tyro draws around it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯ \n") for line in plain.splitlines()[1:]]  # the first holds the frame's title
    lines = [line for line in lines if line]
    while lines and not lines[0].strip("─-"):
        del lines[0]
    end = next((i for i, line in enumerate(lines) if not line.strip("─-")), len(lines))
    message = lines[:end]
    hint = next((lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("Perhaps you meant")), "")
    # What an option's own class has refused names the option itself; the field before it is known to nobody outside.
    line = re.sub(r"^Error parsing [\w.-]+: (?=Argument )", "", " ".join(" ".join(message).split()))
    return line + (f". Perhaps you meant {hint}?" if hint else "")
