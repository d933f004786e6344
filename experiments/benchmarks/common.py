"""Paired timing of tools that live in processes of their own: one thread each, on one core, in turn.

A *side* is a process that holds one tool, ready to run: it imports, compiles and warms up once, then waits. The
parent asks the sides one after another, round by round, so that a change of the machine's speed meets them all alike
and cancels in the ratio of a round. Two clocks are read: the wall clock, and the processor time of the side. With one
thread they agree on a quiet machine; on a busy one only the second still tells what the work costs.

Nothing here imports a tool, so that a side can run under another Python.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "ROOT",
    "Case",
    "Ratio",
    "Samples",
    "Side",
    "ask",
    "interleave",
    "machine",
    "one_thread",
    "pin",
    "ratio",
    "run_module",
    "serve",
    "start",
    "stop",
    "table",
    "usable_cores",
    "versions",
    "write_jsonl",
]

ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Case(NamedTuple):
    """One thing that a side can be asked to run.

    Attributes:
        run: Does the work and waits for its end.
        items: Chips (or numbers, or products) that one run makes; times are given for one.
        facts: Numbers known from the preparation, such as the seconds of a compile.
    """

    run: Callable[[], object]
    items: int
    facts: dict[str, float]


class Side(NamedTuple):
    """A running side, as its parent sees it.

    Attributes:
        process: The process.
        tool: Its name.
        versions: Versions of what it runs.
        cases: What it can be asked for, with the facts of each.
    """

    process: subprocess.Popen[str]
    tool: str
    versions: dict[str, str]
    cases: dict[str, dict[str, float]]


class Samples(NamedTuple):
    """Seconds for one item, a number for each round."""

    cpu_s: list[float]
    wall_s: list[float]


class Ratio(NamedTuple):
    """Median and range of a ratio over the rounds."""

    median: float
    low: float
    high: float


def one_thread(core: int | None) -> dict[str, str]:
    """Return the environment of a side that may use one thread; `core` is the one that it pins itself to."""
    environment = dict(os.environ) | dict.fromkeys(_THREADS, "1")
    environment["XLA_FLAGS"] = _XLA_FLAGS
    environment["JAX_PLATFORMS"] = "cpu"
    environment["BENCHMARK_CORE"] = "" if core is None else str(core)
    return environment


def usable_cores() -> set[int]:
    """Return the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def pin() -> None:
    """Pin this process to the core that the parent chose, where the system can."""
    core = os.environ.get("BENCHMARK_CORE", "")
    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of packages, and of Python."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """Describe the machine as far as a timing depends on it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1] for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return {
        "cpu": names[0].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d"),
    }


def serve(
    tool: str, prepare: Callable[[], tuple[dict[str, str], Mapping[str, Case]]], needs: Sequence[str] = ()
) -> None:
    """Be a side: prepare, say what there is, then run a case for each line of the standard input.

    Args:
        tool: Name of the side.
        prepare: Returns versions and cases.
        needs: Modules without which the side says that it is missing, and ends.
    """
    pin()
    # what a tool prints goes to the standard error; the pipe carries answers only
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        print(json.dumps({"tool": tool, "missing": missing}), file=pipe)
        return
    found, cases = prepare()
    print(json.dumps({"tool": tool, "versions": found, "cases": {n: c.facts for n, c in cases.items()}}), file=pipe)
    for line in sys.stdin:
        case = cases[line.strip()]
        cpu, wall = time.process_time(), time.perf_counter()
        case.run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({"cpu_s": cpu / case.items, "wall_s": wall / case.items}), file=pipe)


def start(python: str, module: str, arguments: Sequence[str], core: int | None) -> Side | None:
    """Start `python -m module arguments` as a side; None if what it needs is not installed there."""
    process = subprocess.Popen(
        [python, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=one_thread(core),
    )
    hello = _answer(process, module)
    if "missing" in hello:
        process.communicate()
        return None
    return Side(process, hello["tool"], hello["versions"], hello["cases"])


def ask(side: Side, case: str) -> tuple[float, float]:
    """Let a side run a case once; return processor and wall seconds for one item."""
    assert side.process.stdin is not None
    side.process.stdin.write(case + "\n")
    side.process.stdin.flush()
    answer = _answer(side.process, case)
    return answer["cpu_s"], answer["wall_s"]


def stop(side: Side) -> None:
    """Let a side end."""
    side.process.communicate()


def _answer(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.communicate()
        raise RuntimeError(f"{what} ended with exit status {process.returncode}; its error stands above.")
    return json.loads(line)


def interleave(sides: Sequence[Side], rounds: int, tell: Callable[[str], None]) -> dict[tuple[str, str], Samples]:
    """Run every case of every side once a round, every second round in the opposite order, after a warm-up.

    Returns:
        Samples for each (tool, case).
    """
    jobs = [(side, case) for side in sides for case in side.cases]
    samples = {(side.tool, case): Samples([], []) for side, case in jobs}
    for side, case in jobs:
        ask(side, case)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for side, case in jobs if number % 2 == 0 else reversed(jobs):
            cpu, wall = ask(side, case)
            samples[side.tool, case].cpu_s.append(cpu)
            samples[side.tool, case].wall_s.append(wall)
    return samples


def ratio(numerator: Iterable[float], denominator: Iterable[float]) -> Ratio:
    """Return the ratio round by round: its median, lowest and highest.

    Example:
        >>> ratio([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
        Ratio(median=3.0, low=2.0, high=4.0)
    """
    values = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return Ratio(statistics.median(values), min(values), max(values))


def run_module(
    python: str, module: str, arguments: Sequence[str], core: int | None, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `python -m module arguments` to its end and return the JSON object that it prints.

    `variables` are added to its environment.
    """
    done = subprocess.run(
        [python, "-m", module, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=one_thread(core) | dict(variables or {}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table with aligned columns.

    Example:
        >>> print(table(["case", "ms"], [["device", "3.1"]]))
        | case   | ms  |
        |--------|-----|
        | device | 3.1 |
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    written.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(written)


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
