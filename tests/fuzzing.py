"""Wrong inputs, generated from a seed: for every public function of every room, and for the command line.

A process of its own runs them (`python tests/fuzzing.py functions|keys|cli SEED COUNT`), without the run-time check
of types of the tests, and says in one line of JSON each what came: the outcome, and the message. `test_fuzz.py` judges.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from support.wrong_inputs import CALLS, FILES, KEYS, LATER, ROOMS, SETUP, WRONG


def _wrong_file(kind: str, folder: Path) -> Path:
    """Make a file (or a folder, or nothing) that is not what was asked for."""
    contents = {
        "empty": b"",
        "binary": bytes(range(256)) * 4,
        "bom": b"\xef\xbb\xbfid,level,g_us\n1,2\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "png": b"\x89PNG\r\n\x1a\n\x00\x00",
        "cut": b'{"id": "1", "input": ',
    }
    path = folder / f"{kind}.{random.choice(['json', 'jsonl', 'csv', 'toml', 'safetensors', 'x'])}"
    if kind == "folder":
        path.mkdir(exist_ok=True)
    elif kind != "missing":
        path.write_bytes(contents[kind])
    return path


def functions(room: str) -> list[str]:
    """Return the public functions, and the options and specifications that a user makes, of a room."""
    module = importlib.import_module(f"nvcim_jax.{room}")
    named = [name for name in module.__all__ if callable(getattr(module, name))]
    return [
        f"{room}.{name}"
        for name in named
        if f"{room}.{name}" in CALLS or (inspect.isfunction(getattr(module, name)) and _required(getattr(module, name)))
    ]


def _required(fn: Any) -> list[str]:
    given = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(fn).parameters.values()
    return [p.name for p in found if p.kind in given and p.default is p.empty]


def calls(room: str, seed: int, count: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield function, wrong argument and the source of every argument: each function in turn, then again."""
    draw = random.Random(f"{room} {seed}")
    names = functions(room)
    for turn in range(count):
        name = names[turn % len(names)]
        base = _parts(CALLS[name]) if name in CALLS else {}
        if base:
            wrong = draw.choice(sorted(base))
            pool = KEYS + WRONG if wrong == "key" else WRONG
            pool += tuple(f"wrong_file({kind!r})" for kind in FILES) if "FILE" in base[wrong] else ()
            yield name, wrong, base | {wrong: draw.choice(pool)}
        else:
            import nvcim_jax

            required = _required(getattr(getattr(nvcim_jax, room), name.partition(".")[2]))
            yield name, "|".join(required), {argument: draw.choice(WRONG) for argument in required}


def with_keys() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield every call of the table that takes a key, with a key of every kind."""
    there = {name for room in ROOMS for name in functions(room)}
    for name in sorted(there & CALLS.keys()):
        base = _parts(CALLS[name])
        for value in KEYS if "key" in base else ():
            yield name, "key", base | {"key": value}


def _parts(text: str) -> dict[str, str]:
    import ast

    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(word.arg): ast.unparse(word.value) for word in call.keywords}


class _Late(Exception):
    """A call took too long."""


def _alarm(*_: Any) -> None:
    raise _Late


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_calls(made: Iterable[tuple[str, str, dict[str, str]]], folder: Path) -> Iterator[dict[str, str]]:
    """Run the calls and yield what came of each."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import nvcim_jax as nv

    scope: dict[str, Any] = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "np": np, "nv": nv, "Path": Path}
    exec(SETUP, scope)
    scope["wrong_file"] = lambda kind: _wrong_file(kind, folder)
    scope["FILE"] = folder / "there"
    for name, wrong, sources in made:
        for later, source in LATER.items():
            if later not in scope and any(later in text for text in sources.values()):
                scope[later] = eval(source, scope)
        arguments = {argument: eval(text, scope) for argument, text in sources.items()}
        said = {"call": name, "argument": wrong, "value": ", ".join(sources[part] for part in wrong.split("|"))}
        try:
            with _limited(20):
                found = _at(nv, name)(**arguments)
                if inspect.isgenerator(found):
                    next(found, None)
                elif isinstance(found, contextlib.AbstractContextManager):
                    with found:
                        pass
            yield said | {"raised": "", "message": ""}
        except BaseException as error:  # noqa: BLE001, since any of them is a finding
            yield said | {"raised": type(error).__name__, "message": str(error)}


COMMANDS = {
    "cost": "--draws 20 --out OUT",
    "run": "--out OUT",
    "report": "FILE",
    "device": "FILE --g-max-us 40 --out OUT",
    "product": "--inputs 8 --outputs 4 --batch 2 --rows 8 --cols 8 --weight-bits 4 --out OUT",
    "sweep": "--axis sigma=0.1 --set inputs=8 --set outputs=4 --set batch=2 --out OUT",
    "compress": "FILE --out OUT",
    "merge": "FILE",
    "tolerance": "--max-error 0.5 --set inputs=8 --set outputs=4 --set batch=2 --out OUT",
    "sensitivity": "--set inputs=8 --set outputs=4 --set batch=2",
    "plot": "FILE",
}
"""Words with which each command would run, in an empty folder."""

WORDS = (
    "text", "", "-1", "0", "2.5", "nan", "inf", "-inf", "1e30", "1" + "0" * 30, "None", "True", "[]", "{}", "a=b", "=",
    "sigma", "sigma=", "sigma=text", "sigma=nan", "sigma=1e30", "sgima=0.1", "adc_bits=0", "adc_bits=2.5",
    "device=FeFET7", "inputs=1000000000", "1/0", "3/2", "0/2", "\u00b1", "--", "--seed", "1000000000",
)  # fmt: skip


class _Ran(BaseException):
    """A command went as far as computing."""


def _ran(*_: Any, **__: Any) -> None:
    raise _Ran


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """Stop commands where they would compute: what is wrong must have been refused before."""
    from unittest import mock

    import jax

    import nvcim_jax as nv

    where: list[tuple[Any, str]] = [(nv.models, "load"), (nv.study, "run"), (jax.stages.Lowered, "compile")]
    where += [(nv.cost, "headline")]
    where += [(nv.montecarlo, name) for name in ("run", "sweep", "tolerance", "sensitivity")]
    with contextlib.ExitStack() as stack:
        for owner, name in where:
            stack.enter_context(mock.patch.object(owner, name, _ran))
        yield


def lines(seed: int, count: int) -> Iterator[tuple[list[str], str]]:
    """Yield words of a command line, and what is wrong with them."""
    from nvcim_jax.cli import COMMANDS as THERE

    draw = random.Random(f"cli {seed}")
    names = [name for name in THERE if name in COMMANDS]
    for turn in range(count):
        name = names[turn % len(names)]
        option = draw.choice(_flags(name))
        kind = draw.choice(("value", "value", "value", "value", "misspelt", "nothing", "file"))
        base = COMMANDS[name].split()
        if kind == "file" and ("FILE" in base or "OUT" in base):
            base[base.index("FILE" if "FILE" in base else "OUT")] = f"WRONG:{draw.choice(FILES)}"
            yield [name, *base], "a file"
        elif kind == "misspelt":
            at = draw.randrange(2, len(option))
            yield [name, *base, option[:at] + draw.choice("xyz_") + option[at:], "1"], option
        elif kind == "nothing":
            yield [name, *base, option], option
        else:
            value = draw.choice([*WORDS, *(f"WRONG:{kind}" for kind in FILES)])
            yield [name, *base, option, value], option


def _flags(name: str) -> list[str]:
    """Return the options of a command as its help lists them."""
    from nvcim_jax.cli import main as nvcim

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        nvcim([name, "--help"])
    return sorted(set(re.findall(r"--[a-z][a-z0-9.-]+", said.getvalue())) - {"--help"})


def run_lines(seed: int, count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Call the command line in this process, and yield what came of each."""
    from nvcim_jax.cli import main as nvcim

    for turn, (words, wrong) in enumerate(lines(seed, count)):
        here = folder / str(turn)
        here.mkdir()
        os.chdir(here)
        places = {"OUT": "out", "FILE": "there"}
        given = [
            str(_wrong_file(word.partition(":")[2], here)) if word.startswith("WRONG:") else places.get(word, word)
            for word in words
        ]
        before = sorted(path.name for path in here.rglob("*"))
        out, err, raised, code = io.StringIO(), io.StringIO(), "", None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited(20), nothing_computed():
                code = nvcim(given)
        except _Ran:
            code = 0
        except BaseException as error:  # noqa: BLE001, since any of them is a finding
            raised = f"{type(error).__name__}: {error}"
        left = sorted(path.name for path in here.rglob("*")) != before
        said = {"words": given, "wrong": wrong, "code": code, "raised": raised, "left": left}
        yield said | {"out": out.getvalue()[:300], "err": err.getvalue()}


def _at(root: Any, name: str) -> Any:
    for part in name.split("."):
        root = getattr(root, part)
    return root


def main(words: list[str]) -> None:
    """Run what the words say, in a folder of its own: cli, keys, or functions (of all rooms), a seed and a number."""
    what, seed, count = words[0], int(words[1]), int(words[2])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        if what == "cli":
            made = run_lines(seed, count, folder)
        else:
            drawn = (call for room in ROOMS for call in calls(room, seed, count))
            made = run_calls(with_keys() if what == "keys" else drawn, folder)
        for said in made:
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
