"""What the experiments keep: lines of records, and what they rest on."""

import dataclasses
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import nvcim_jax as nv
from nvcim_jax import checks, files

__all__ = ["Record", "lines", "measure_parts", "origin", "read", "write"]

Record = dict[str, Any]


def lines(path: Path) -> list[Record]:
    """Return the records of a file, one a line; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def read(folder: Path, name: str = "records") -> list[Record]:
    """Return the records of a folder.

    Raises:
        ValueError: If it holds none.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        checks.fail("folder", f"hold {path.name}", f"{folder} does not", "Run run.py first.")
    return lines(path)


def write(path: Path, records: Iterable[Record]) -> Path:
    """Write records, one a line, whole or not at all."""
    return files.write(path, "".join(json.dumps(record) + "\n" for record in records))


def origin(module: str, arguments: Sequence[str] | None, config: Any, started: float | None = None) -> Record:
    """Return what records rest on: command, options (a dataclass or a dictionary), versions, device, seconds so far."""
    found: Record = {
        "command": shlex.join(["python", "-m", module, *(arguments or sys.argv[1:])]),
        "config": config if isinstance(config, Mapping) else dataclasses.asdict(config),
        "versions": {"nvcim_jax": nv.__version__, "jax": jax.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
    }
    return found if started is None else found | {"seconds": round(time.perf_counter() - started, 1)}


def measure_parts(
    module: str,
    parts: Mapping[str, Callable[[Any, Path], Iterator[Record]]],
    chosen: Sequence[str],
    config: Any,
    out: Path,
    *,
    arguments: Sequence[str] | None,
) -> None:
    """Measure parts of an experiment, each into NAME.jsonl and NAME.json of a folder; finished ones are left alone."""
    out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        path, started = out / f"{name}.jsonl", time.perf_counter()
        if path.is_file():
            print(f"{name}: finished before")
            continue
        records = []
        for record in parts[name](config, out):
            records.append(record)
            plain = {key: value for key, value in record.items() if isinstance(value, str | int | float)}
            print(name, plain, flush=True)
        write(path, records)
        files.write_json(out / f"{name}.json", origin(module, arguments, config, started))
    print(f"Written: {out}")
