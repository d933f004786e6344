"""What Monte Carlo costs over the bare mapped function, and that its memory does not grow.

    python -m experiments.benchmarks.montecarlo          # about four minutes on one core
    python -m experiments.benchmarks.montecarlo --tiny   # seconds; checks that everything runs

Runs 1,000 instances of about 10 ms each, in turn, as `jit(lax.map)` alone, as `montecarlo.run`, and as
`montecarlo.run` that saves its records; one thread on one core, processor time, median of the rounds' ratios. Then it
compares the peak memory of a million cheap instances (values not kept) with that of a thousand. Prints two tables
and writes `results/montecarlo_cpu.jsonl` and `results/montecarlo_cpu.md`; the committed files say what to expect.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from experiments.benchmarks import common
from nvcim_jax import checks, files

__all__ = ["Benchmark", "run"]

_MODULE = "experiments.benchmarks.montecarlo"
_TARGET = 1.05


@checks.frozen_config
class Benchmark:
    """Settings of the benchmark.

    Attributes:
        rounds: Times that every case is run, in turn.
        num_instances: Instances of a run.
        instance_ms: Time of one instance.
        memory_instances: Numbers of cheap instances whose peak memory is compared.
        core: Processor that the measured process is pinned to; None for the last one.
        out: Folder of the records.
        tiny: Run a few instances in two rounds, and write nothing unless `out` is given.
        side: For the measured processes themselves: "overhead" or "memory".
    """

    rounds: int = 5
    num_instances: int = 1000
    instance_ms: float = 10.0
    memory_instances: tuple[int, int] = (1000, 1_000_000)
    core: int | None = None
    out: Path | None = None
    tiny: bool = False
    side: str | None = None


def _metric(num_steps: int) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp

    def metric(key: Any, matrix: Any) -> Any:
        x = jax.random.normal(key, (64, 64))
        return jnp.sum(jax.lax.fori_loop(0, num_steps, lambda i, x: jnp.tanh(x @ matrix), x))

    return metric


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def _overhead(config: Benchmark) -> dict[str, Any]:
    """Measure the three cases in turn, in this process."""
    import jax
    import jax.numpy as jnp

    from nvcim_jax import io, montecarlo

    key, num = jax.random.key(0), config.num_instances
    matrix = jax.random.normal(jax.random.key(1), (64, 64)) / 8

    def bare_map(metric: Callable[..., Any], num: int) -> Any:
        return jax.jit(
            lambda key, m: jax.lax.map(
                lambda i: metric(jax.random.fold_in(key, i), m), jnp.arange(num, dtype=jnp.uint32)
            )
        )

    probe = bare_map(_metric(200), 20)
    probe(key, matrix).block_until_ready()
    per_step = min(_seconds(lambda: probe(key, matrix).block_until_ready())[0] for _ in range(5)) / 20 / 200
    metric = _metric(max(1, round(config.instance_ms * 1e-3 / per_step)))
    bare = bare_map(metric, num)
    compiled = bare.lower(key, matrix).compile()

    def saved() -> None:
        with tempfile.TemporaryDirectory() as folder:
            montecarlo.run(metric, key, num, args=(matrix,), progress=False, store=io.folder(folder))

    cases: dict[str, Callable[[], object]] = {
        "bare": lambda: compiled(key, matrix).block_until_ready(),
        "run": lambda: montecarlo.run(metric, key, num, args=(matrix,), progress=False),
        "run, saved": saved,
    }
    montecarlo.run(metric, key, 2, args=(matrix,))  # compiled before it is timed, as the bare map is
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for number in range(config.rounds):
        order = list(cases) if number % 2 == 0 else list(reversed(cases))
        for name in order:
            times[name].append(_seconds(cases[name]))
    return {
        name: {"cpu_s": [round(c, 4) for c, _ in found], "wall_s": [round(w, 4) for _, w in found]}
        for name, found in times.items()
    }


def _memory(config: Benchmark) -> dict[str, Any]:
    """Run cheap instances without keeping them and return this process's peak memory."""
    import jax

    from nvcim_jax import montecarlo

    num = config.num_instances
    start = time.perf_counter()
    stats = montecarlo.run(
        lambda key: jax.random.normal(key, (16,)).sum(), jax.random.key(0), num, keep_values=False, progress=False
    )
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "num_instances": num,
        "peak_mb": round(peak_mb, 1),
        "wall_s": round(time.perf_counter() - start, 2),
        "mean": float(stats.mean),
        "standard_error": float(stats.standard_error),
    }


def run(config: Benchmark) -> str:
    """Measure everything, write the records, and return the tables."""
    if config.tiny:
        few = {"rounds": 2, "num_instances": 20, "instance_ms": 1.0, "memory_instances": (100, 5000)}
        config = Benchmark(out=config.out, core=config.core, **few)  # type: ignore[arg-type]
    core = config.core if config.core is not None else max(common.usable_cores())

    def side(name: str, num: int) -> dict[str, Any]:
        words = ["--side", name, "--num-instances", str(num), "--rounds", str(config.rounds)]
        words += ["--instance-ms", str(config.instance_ms)]
        return common.run_module(sys.executable, _MODULE, words, core)

    machine = common.machine()
    times = side("overhead", config.num_instances)
    memory = [side("memory", num) for num in config.memory_instances]
    text = _tables(times, memory, config)
    out = config.out or (None if config.num_instances < 1000 else Path(__file__).parent / "results")
    if out is not None:
        command = f"python -m {_MODULE}"
        facts = {"machine": machine, "command": command, "versions": common.versions("jax", "jaxlib", "numpy")}
        records = [facts, *({"case": name, **found} for name, found in times.items()), *memory]
        common.write_jsonl(out / "montecarlo_cpu.jsonl", records)
        head = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in machine.items())
        files.write(out / "montecarlo_cpu.md", f"# {command}\n\n{head}\n\n{text}\n")
    return text


def _tables(times: dict[str, Any], memory: list[dict[str, Any]], config: Benchmark) -> str:
    rows = []
    for name in ("run", "run, saved"):
        found = common.ratio(times[name]["cpu_s"], times["bare"]["cpu_s"])
        rows.append(
            [
                f"{name} / bare map, {config.num_instances} instances of {config.instance_ms:g} ms",
                f"{found.median:.3f} ({found.low:.3f}..{found.high:.3f})",
                f"< {_TARGET}",
                "yes" if found.median < _TARGET else "no",
            ]
        )
    few, many = memory
    growth = many["peak_mb"] - few["peak_mb"]
    name = f"peak memory of {many['num_instances']:,} cheap instances over {few['num_instances']:,}"
    rows.append(
        [
            name,
            f"{growth:+.1f} MB of {few['peak_mb']:.0f} MB",
            "< 10 %",
            "yes" if growth < 0.1 * few["peak_mb"] else "no",
        ]
    )
    rows.append([f"{many['num_instances']:,} cheap instances", f"{many['wall_s']:.1f} s", "", ""])
    return common.table(["", "measured", "target", "met"], rows)


if __name__ == "__main__":
    settings = tyro.cli(Benchmark)
    if settings.side is None:
        print(run(settings))
    else:
        common.pin()
        print(json.dumps(_overhead(settings) if settings.side == "overhead" else _memory(settings)))
