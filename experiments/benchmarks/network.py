"""How fast a network is evaluated on many chips, next to a loop in torch: ratios, one thread, paired and interleaved.

    python -m experiments.benchmarks.network                      # torch and aihwkit where they are installed
    python -m experiments.benchmarks.network --peer-python PYTHON # those of another environment
    python -m experiments.benchmarks.network --tiny               # seconds; checks that everything runs

About two minutes on one core. Prints a table of ratios with the targets beside it, and writes it with every sample to
`results/network_cpu.md` and `results/network_cpu.jsonl`; the committed files there say what to expect. Ratios are taken
within a round and between processor times (see `common.py`). The networks are in `digits.py`.

"Its products" are the `crossbar.matmul` calls of a network, with inputs that are there already; "written by hand" is
the network of those calls without Quax, patches and activations included.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments.benchmarks import common
from experiments.benchmarks.common import Samples, Side
from nvcim_jax import checks

__all__ = ["COMPARISONS", "Benchmark", "Comparison", "run", "verdict"]


@checks.frozen_config
class Benchmark:
    """Settings of the benchmark.

    Attributes:
        rounds: Times that every case is run, in turn with all others.
        num_chips: Chips of one sample of nvcim_jax.
        peer_chips: Chips of one sample of the others.
        peer_python: Python that torch and aihwkit are looked for in; None for this one.
        core: Processor that all sides are pinned to; None for the last that this process may use.
        out: Folder of the records; None for `results`.
        tiny: Run two chips in two rounds without the others, and write nothing unless `out` is given.
    """

    rounds: int = 11
    num_chips: int = 1000
    peer_chips: int = 200
    peer_python: str | None = None
    core: int | None = None
    out: Path | None = None
    tiny: bool = False


class Comparison(NamedTuple):
    """One line of the table: the time of `slow` over that of `fast`, each (tool, case), and the target."""

    fast: tuple[str, str]
    slow: tuple[str, str]
    least: float | None = None
    most: float | None = None


_OURS = "nvcim_jax"
COMPARISONS = (
    Comparison((_OURS, "dense"), ("torch", "dense"), least=10.0),
    Comparison((_OURS, "dense"), ("aihwkit", "dense"), least=10.0),
    Comparison((_OURS, "convolutional"), ("torch", "convolutional"), least=3.0),
    Comparison((_OURS, "dense, its products"), (_OURS, "dense, one network"), most=1.1),
    Comparison((_OURS, "convolutional, written by hand"), (_OURS, "convolutional, one network"), most=1.1),
    Comparison((_OURS, "convolutional, its products"), (_OURS, "convolutional, one network")),
)


def run(benchmark: Benchmark) -> str:
    """Run the benchmark, write its records, and return its table."""
    core = max(common.usable_cores()) if benchmark.core is None else benchmark.core
    machine, here = common.machine(), sys.executable
    wanted = [(here, _OURS, 2 if benchmark.tiny else benchmark.num_chips)]
    if not benchmark.tiny:
        there = benchmark.peer_python or here
        wanted += [(there, tool, benchmark.peer_chips) for tool in ("torch", "aihwkit")]
    sides = []
    for python, tool, num in wanted:
        _tell(f"preparing {tool}")
        side = common.start(python, "experiments.benchmarks.network_sides", [tool, str(num)], core)
        if side is None:
            _tell(f"{tool} is not installed there: left out")
        else:
            sides.append(side)
    try:
        measured = common.interleave(sides, 2 if benchmark.tiny else benchmark.rounds, _tell)
    finally:
        for side in sides:
            common.stop(side)
    report = f"{_header(machine, sides)}\n\n{_table(measured)}\n\n{_accuracy(sides)}\n"
    out = benchmark.out or (None if benchmark.tiny else Path(__file__).parent / "results")
    if out is not None:
        common.write_jsonl(out / "network_cpu.jsonl", _records(machine, sides, measured))
        (out / "network_cpu.md").write_text(f"# A network on many chips\n\n{report}", encoding="utf-8")
    return report


def verdict(line: Comparison, ratio: float) -> str:
    """Return whether a ratio meets the target of its line; nothing where there is none."""
    if line.least is None and line.most is None:
        return ""
    return "yes" if ratio >= (line.least or 0.0) and ratio <= (line.most or ratio) else "no"


def _target(line: Comparison) -> str:
    if line.least is not None:
        return f">= {line.least:g} x as fast"
    return "" if line.most is None else f"<= {line.most:g} x the time"


def _table(measured: Mapping[tuple[str, str], Samples]) -> str:
    rows = []
    for line in COMPARISONS:
        fast, slow = measured.get(line.fast), measured.get(line.slow)
        if fast is None or slow is None:
            continue
        cpu = common.ratio(slow.cpu_s, fast.cpu_s)
        rows.append(
            [
                " ".join(line.fast),
                " ".join(line.slow),
                f"{statistics.median(fast.cpu_s) * 1e6:.0f}",
                f"{statistics.median(slow.cpu_s) * 1e6:.0f}",
                f"{cpu.median:.2f} ({cpu.low:.2f}..{cpu.high:.2f})",
                _target(line),
                verdict(line, cpu.median),
            ]
        )
    return common.table(["fast", "slow", "us", "its us", "ratio", "target", "met"], rows)


def _accuracy(sides: Sequence[Side]) -> str:
    found = [
        [side.tool, case, f"{facts['accuracy']:.3f}"]
        for side in sides
        for case, facts in side.cases.items()
        if "accuracy" in facts
    ]
    return common.table(["tool", "network", "mean accuracy over chips"], found)


def _header(machine: Mapping[str, Any], sides: Sequence[Side]) -> str:
    lines = ["- command: python -m experiments.benchmarks.network"]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in machine.items()]
    lines += [f"- {side.tool}: " + ", ".join(f"{n} {v}" for n, v in side.versions.items()) for side in sides]
    lines.append(
        "- us: median processor time of one chip (or one network); ratio: median (least..greatest) of the rounds"
    )
    return "\n".join(lines)


def _records(
    machine: Mapping[str, Any], sides: Sequence[Side], measured: Mapping[tuple[str, str], Samples]
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{"machine": dict(machine), "command": "python -m experiments.benchmarks.network"}]
    for side in sides:
        records.append({"tool": side.tool, "versions": side.versions})
        for case, facts in side.cases.items():
            samples = measured[side.tool, case]
            times = {clock: [float(f"{s:.5g}") for s in getattr(samples, clock)] for clock in samples._fields}
            records.append({"tool": side.tool, "case": case} | facts | times)
    return json.loads(json.dumps(records))


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(run(tyro.cli(Benchmark)))
