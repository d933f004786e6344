"""How fast the crossbar makes fresh chips, next to other tools: ratios, one thread, paired and interleaved.

    python -m experiments.benchmarks.crossbar                      # NumPy, and torch and aihwkit where installed
    python -m experiments.benchmarks.crossbar --peer-python PYTHON # torch and aihwkit of another environment
    python -m experiments.benchmarks.crossbar --tiny               # seconds; checks that everything runs

About four minutes on one core. Prints a table of ratios with the targets beside it, and writes it with every sample
to `results/crossbar_cpu.md` and `results/crossbar_cpu.jsonl`; the committed files there say what to expect. Ratios
are taken within a round and between processor times (see `common.py`); those of the wall clock stand beside them.

The workload is in `workload.py`. In a loop over chips that share their inputs, XLA computes what does not depend on the
chip once, which is what a Monte Carlo study gains too; the cases "call by call" cannot gain so, since each chip is
a call of its own.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments.benchmarks import common
from experiments.benchmarks.common import Ratio, Samples, Side
from nvcim_jax import checks, files

__all__ = ["COMPARISONS", "Benchmark", "Comparison", "quotient", "run", "verdict"]

_Measured = Mapping[tuple[str, str], Samples]


@checks.frozen_config
class Benchmark:
    """Settings of the benchmark.

    Attributes:
        rounds: Times that every case is run, in turn with all others.
        peer_python: Python that torch and aihwkit are looked for in; None for this one.
        core: Processor that all sides are pinned to; None for the last that this process may use.
        memory_instances: Numbers of chips whose peak memory is compared.
        out: Folder of the records.
        tiny: Run a small product in two rounds, and write nothing unless `out` is given.
    """

    rounds: int = 15
    peer_python: str | None = None
    core: int | None = None
    memory_instances: tuple[int, int] = (10, 10_000)
    out: Path | None = None
    tiny: bool = False


class Comparison(NamedTuple):
    """One line of the table.

    Attributes:
        case: What nvcim_jax runs.
        tool: What it is held against.
        other: What that tool runs.
        least: The target where the number is how many times as fast nvcim_jax is.
        most: The target where it is how many times as long nvcim_jax takes.
    """

    case: str
    tool: str
    other: str
    least: float | None = None
    most: float | None = None


_BIG, _SMALL = "1024x1024", "384x128"
COMPARISONS = (
    Comparison(f"device {_BIG}", "aihwkit", f"device {_BIG}", least=2.4),
    Comparison(f"device {_BIG}", "torch", f"device {_BIG}", least=1.5),
    Comparison(f"device, 512-bit vectors {_BIG}", "aihwkit", f"device {_BIG}"),
    Comparison(f"montecarlo.run {_BIG}", "aihwkit", f"device {_BIG}"),
    Comparison(f"moment_matched {_BIG}", "aihwkit", f"device {_BIG}"),
    Comparison(f"pair {_BIG}", "aihwkit", f"device {_BIG}", least=4.0),
    Comparison(f"output_joint {_BIG}", "aihwkit", f"device {_BIG}", least=12.0),
    Comparison(f"output_marginal {_BIG}", "aihwkit", f"device {_BIG}"),
    Comparison(f"gradient {_BIG}", "aihwkit", f"gradient {_BIG}", least=2.0),
    Comparison(f"output_joint {_BIG}", "numpy", f"matmul {_BIG}", most=1.2),
    Comparison(f"output_joint, call by call {_BIG}", "numpy", f"matmul {_BIG}"),
    Comparison(f"output_marginal, call by call {_BIG}", "numpy", f"matmul {_BIG}"),
    Comparison(f"no_noise, call by call {_BIG}", "numpy", f"matmul {_BIG}", most=1.1),
    Comparison(f"device {_SMALL}", "aihwkit", f"device {_SMALL}", least=3.0),
    Comparison(f"device {_SMALL}", "torch", f"device {_SMALL}"),
    Comparison(f"device, 512-bit vectors {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"montecarlo.run {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"moment_matched {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"pair {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"output_joint {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"output_marginal {_SMALL}", "aihwkit", f"device {_SMALL}"),
    Comparison(f"gradient {_SMALL}", "aihwkit", f"gradient {_SMALL}"),
    Comparison(f"output_joint {_SMALL}", "numpy", f"matmul {_SMALL}"),
    Comparison(f"no_noise, call by call {_SMALL}", "numpy", f"matmul {_SMALL}"),
)
_TINY = (
    Comparison("device tiny", "numpy", "matmul tiny"),
    Comparison("output_joint tiny", "numpy", "matmul tiny"),
    Comparison("no_noise, call by call tiny", "numpy", "matmul tiny"),
)
_COMPILE_S = 3.0
# glibc gives freed buffers back at once, so that the peak is what was needed, not what the allocator kept for later
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}
_MEMORY_SHARE = 0.02  # "equal" memory: two runs of one size differ by as much


def run(benchmark: Benchmark) -> str:
    """Run the benchmark, write its records, and return its tables."""
    shapes = ["tiny"] if benchmark.tiny else [_BIG, _SMALL]
    core = max(common.usable_cores()) if benchmark.core is None else benchmark.core
    machine = common.machine()
    sides = _sides(benchmark, shapes, core)
    try:
        measured = common.interleave(sides, 2 if benchmark.tiny else benchmark.rounds, _tell)
    finally:
        for side in sides:
            common.stop(side)
    memory = _memory(benchmark, shapes[0], core)
    machine["load_average_at_end"] = common.machine()["load_average"]
    tables = [
        "## Ratios",
        _ratio_table(_TINY if benchmark.tiny else COMPARISONS, measured),
        "## Random numbers",
        _normal_table(measured),
        "## Compile time and memory",
        _cost_table(sides, memory, shapes[0]),
    ]
    header = _header(machine, sides)
    report = "\n\n".join([header, *tables]) + "\n"
    out = benchmark.out or (None if benchmark.tiny else Path(__file__).parent / "results")
    if out is not None:
        common.write_jsonl(out / "crossbar_cpu.jsonl", _records(machine, sides, measured, memory))
        files.write(out / "crossbar_cpu.md", "# Crossbar benchmark, one thread\n\n" + report)
    return report


def _sides(benchmark: Benchmark, shapes: list[str], core: int) -> list[Side]:
    here, module = sys.executable, "experiments.benchmarks.peers"
    wanted = [(here, module, ["numpy", *shapes])]
    if not benchmark.tiny:
        there = benchmark.peer_python or here
        wanted += [(there, module, [tool, *shapes]) for tool in ("torch", "aihwkit")]
    wanted.append((here, "experiments.benchmarks.products", ["serve", *shapes]))
    sides = []
    for python, name, arguments in wanted:
        _tell(f"preparing {name.rsplit('.', 1)[1]} {arguments[0]}")
        side = common.start(python, name, arguments, core)
        if side is None:
            _tell(f"{arguments[0]} is not installed there: left out")
        else:
            sides.append(side)
    return sides


def _memory(benchmark: Benchmark, shape: str, core: int) -> list[dict[str, float]]:
    """Return the peak memory of a run of few and of many chips, each in a process of its own."""
    found = []
    for num in (2, 8) if benchmark.tiny else benchmark.memory_instances:
        _tell(f"peak memory of {num} chips")
        module, arguments = "experiments.benchmarks.products", ["memory", shape, str(num)]
        found.append(common.run_module(sys.executable, module, arguments, core, _RETURN_MEMORY))
    return found


def _ratio_table(comparisons: Sequence[Comparison], measured: _Measured) -> str:
    rows = []
    for line in comparisons:
        ours, theirs = measured["nvcim_jax", line.case], measured.get((line.tool, line.other))
        if theirs is None:
            continue
        cpu, wall = (quotient(line, ours, theirs, clock) for clock in ("cpu_s", "wall_s"))
        rows.append(
            [
                line.case,
                f"{line.tool} {line.other}",
                _ms(ours.cpu_s),
                _ms(theirs.cpu_s),
                f"{cpu.median:.2f} ({cpu.low:.2f}..{cpu.high:.2f})",
                f"{wall.median:.2f} ({wall.low:.2f}..{wall.high:.2f})",
                _target(line),
                verdict(line, cpu.median),
            ]
        )
    head = ["nvcim_jax", "against", "ms", "its ms", "ratio", "ratio by wall clock", "target", "met"]
    return common.table(head, rows)


def quotient(line: Comparison, ours: Samples, theirs: Samples, clock: str) -> Ratio:
    """Return theirs / ours, the speed-up; ours / theirs where the target is a longest time."""
    a, b = getattr(theirs, clock), getattr(ours, clock)
    return common.ratio(a, b) if line.tool != "numpy" else common.ratio(b, a)


def _target(line: Comparison) -> str:
    if line.least is not None:
        return f">= {line.least:g} x as fast"
    if line.most is not None:
        return f"<= {line.most:g} x the time"
    return "(x the time)" if line.tool == "numpy" else "(x as fast)"


def verdict(line: Comparison, value: float) -> str:
    """Return whether a ratio meets the target of its line; nothing where there is none."""
    if line.least is None and line.most is None:
        return ""
    return "yes" if value >= (line.least or 0.0) and value <= (line.most or value) else "no"


def _normal_table(measured: _Measured) -> str:
    rows = []
    for (tool, case), samples in measured.items():
        if case.startswith("normal"):
            median, least = statistics.median(samples.cpu_s), min(samples.cpu_s)
            rows.append([tool, case, f"{median * 1e9:.2f}", f"{least * 1e9:.2f}"])
    return common.table(["tool", "generator", "ns per number, median", "least"], rows)


def _cost_table(sides: Sequence[Side], memory: Sequence[Mapping[str, float]], shape: str) -> str:
    rows = []
    for case, facts in sides[-1].cases.items():
        if "compile_cpu_s" in facts and case.endswith(shape):
            seconds = facts["compile_cpu_s"]
            met = "yes" if seconds < _COMPILE_S else "no"
            rows.append([f"compile {case}", f"{seconds:.2f} s", f"< {_COMPILE_S:g} s", met])
    few, many = memory
    share = many["peak_mb"] / few["peak_mb"]
    rows.append([f"peak memory, {few['num']} chips {shape}", f"{few['peak_mb']:.0f} MB", "", ""])
    met = "yes" if abs(share - 1.0) <= _MEMORY_SHARE else "no"
    name = f"peak memory, {many['num']} chips {shape}"
    rows.append([name, f"{many['peak_mb']:.0f} MB", f"equal within {_MEMORY_SHARE:.0%}", met])
    return common.table(["", "measured", "target", "met"], rows)


def _header(machine: Mapping[str, Any], sides: Sequence[Side]) -> str:
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in machine.items()]
    lines += [f"- {side.tool}: " + ", ".join(f"{n} {v}" for n, v in side.versions.items()) for side in sides]
    lines.append("- ms: median processor time of one fresh chip; ratio: median (least..greatest) of the rounds")
    return "\n".join(lines)


def _records(
    machine: Mapping[str, Any], sides: Sequence[Side], measured: _Measured, memory: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    command = "python -m experiments.benchmarks.crossbar"
    records: list[dict[str, Any]] = [{"machine": dict(machine), "command": command}]
    records += [{"tool": side.tool, "versions": side.versions} for side in sides]
    for side in sides:
        for case, facts in side.cases.items():
            samples = measured[side.tool, case]
            times = {clock: [float(f"{s:.5g}") for s in getattr(samples, clock)] for clock in samples._fields}
            records.append({"tool": side.tool, "case": case} | {n: round(v, 3) for n, v in facts.items()} | times)
    return records + [{"memory": dict(one)} for one in memory]


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.3g}"


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(run(tyro.cli(Benchmark)))
