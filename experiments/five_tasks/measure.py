"""One task on one stream: everything tuned, asked, answered and scored; records kept whole or not at all."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.five_tasks import arrays, asking, tasks, training
from nvcim_jax import checks, data, devices, files, metrics, models
from nvcim_jax.study.trained import plain

__all__ = ["MAIN", "ROWS", "Options", "measure", "read", "summarise"]

Record = dict[str, Any]

ROWS = ("SWV", "CxDNN", "CorrectNet", "No-Miti(MIPS)", "NVP*(MIPS)", "NVCiM-PT", "oracle route")

MAIN = {"intents": "accuracy", "ratings": "mae", "slots": "slot_f1", "paraphrase": "rouge_1", "titles": "rouge_1"}
"""The score of each task by which methods are compared."""


class Options(NamedTuple):
    """Say how a measurement is worked through; but for rounding, which tuning makes larger, no record depends on it.

    Attributes:
        together: Prompts that are tuned at a time; None: as many as a stream has on an accelerator, one on a CPU.
        num_rows: Queries that are answered in one call.
    """

    together: int | None = None
    num_rows: int = 128


class _Bench(NamedTuple):
    """Hold one task with all its streams; rooms for tokens are those of all tasks of a call."""

    name: str
    streams: tuple[data.Stream, ...]
    text: models.Text
    room: arrays.Sizes
    tokens: int


def _benches(config: Any, lm: models.LM, text: models.Text, seeds: Sequence[int]) -> list[_Bench]:
    """Return the tasks, with one room in common."""
    found = []
    for name in config.tasks:
        own = tasks.as_text(text, name, config.preset)
        rows = tasks.made_up(name) if config.data == "made up" else tasks.read(name, own)
        held = {"buffer_size": config.buffer_size, "num_test": config.num_test}
        streams = tuple(tasks.stream(name, rows, seed, **held) for seed in seeds)
        tokens = 0 if tasks.TASKS[name].chosen else min(tasks.TASKS[name].max_output, config.max_new_tokens)
        found.append(_Bench(name, streams, own, arrays.sizes(streams, lm, own), tokens))
    room = arrays.Sizes(0, 0, 0)
    for bench in found:
        room = room.both(bench.room)
    most = max(bench.tokens for bench in found)
    return [bench._replace(room=room, tokens=most if bench.tokens else 0) for bench in found]


def measure(
    config: Any,
    out: Path,
    seeds: Sequence[int],
    *,
    lm: models.LM,
    text: models.Text,
    options: Options,
    say: Callable[[str], None],
) -> None:
    """Measure all tasks of a configuration on some streams, each into a file of its own; what is there is kept.

    Args:
        config: The configuration, see `Config` in run.py.
        out: Folder of the records.
        seeds: Seeds of the streams, the first of every task first.
        lm: The language model.
        text: Its tokenizer.
        options: How it is worked through.
        say: Called with what was done.
    """
    _same(config, out)
    benches = _benches(config, lm, text, seeds)
    for i, seed in enumerate(seeds):
        for bench in benches:
            path = out / "parts" / f"{bench.name}-{seed}.jsonl"
            if path.is_file():
                say(f"{path.name} is there")
                continue
            files.folder("out", path.parent)
            records = list(_measure(config, bench, bench.streams[i], lm, options, say))
            files.write(path, "".join(json.dumps(record) + "\n" for record in records))
            say(f"{path.name} written")


def _same(config: Any, out: Path) -> None:
    """Write what is measured beside the records, or hold it against what is there."""
    files.folder("out", out)
    about, path = plain({**vars(config), "tasks": None}), out / "config.json"
    if not path.is_file():
        files.write_json(path, about)
    if files.read_json("out", path) != json.loads(json.dumps(about)):
        checks.fail("out", "hold records of this configuration", f"{path} says another", "Use another folder.")


def _measure(
    config: Any, bench: _Bench, stream: data.Stream, lm: models.LM, options: Options, say: Callable[[str], None]
) -> Iterator[Record]:
    """Yield the records of one stream of one task, with the keys that `study.measure` uses."""
    preset, chosen = config.preset, tasks.TASKS[bench.name].chosen
    device = devices.get(config.device, sigma=config.sigma)
    own = arrays.arrays(stream, lm, bench.text, config=preset.config, room=bench.room, chosen=chosen)
    learning, chips, *_ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), stream.seed), 4)
    every = len(stream.blocks) * len(training.TRAININGS)
    together = options.together or (1 if jax.default_backend() == "cpu" else every)
    how: Any = {"num_rows": options.num_rows, "num_virtual": preset.config.num_virtual, "tokens": bench.tokens}
    places = [(name, device) for name in config.methods]
    places += [(name, None) for name in config.methods if name in asking.EXACT]

    def ask(place: tuple[str, devices.Device | None]) -> asking.Asked:
        key = jax.random.wrap_key_data(chip_key)
        return asking.retrieve(key, place[0], trained, own, place[1], preset=preset, num_chips=config.num_chips)

    # What compiles for itself compiles at the same time.
    with ThreadPoolExecutor() as pool:
        alone = pool.submit(asking.answer, {("alone", q): None for q in range(len(own.ids))}, own, lm, **how)
        trained = training.train(learning, own.buffers, lm, device, preset=preset, together=together)
        say(f"{bench.name} {stream.seed}: tuned, loss {json.dumps(trained.losses)}")
        chip_key: Any = np.asarray(jax.random.key_data(chips))
        names = [(name, "exact" if where is None else where.name) for name, where in places]
        asked = dict(zip(names, pool.map(ask, places), strict=True))
        say(f"{bench.name} {stream.seed}: asked on {config.num_chips} chips")
        wanted: dict[asking.Entry, Any] = {}
        for found in asked.values():
            wanted |= asking.entries(found)
        made = alone.result() | asking.answer(wanted, own, lm, **how)
    say(f"{bench.name} {stream.seed}: {len(made)} answers")
    yield from _scored(bench, stream, made, asked, device)


def _scored(
    bench: _Bench, stream: data.Stream, made: dict[Any, Any], asked: dict[Any, asking.Asked], device: devices.Device
) -> Iterator[Record]:
    """Yield a record for each method, chip and domain."""
    bound = tasks.TASKS[bench.name].max_output

    def words(entry: Any) -> str:
        found = made[entry]
        return stream.labels[found] if isinstance(found, int) else bench.text.decode(found[:bound]).strip()

    for name, answers, hit in tasks.floors(bench.name, stream, bench.text):
        yield from _records(bench, stream, {"method": name, "device": "none", "sigma": 0.0}, answers, hit)
    number = sum(len(stream.test[domain]) for domain in stream.domains)
    alone = [words(("alone", q)) for q in range(number)]
    yield from _records(bench, stream, {"method": "frozen", "device": "none", "sigma": 0.0}, alone, None)
    for (name, place), found in asked.items():
        sigma = 0.0 if place == "exact" else float(f"{float(device.sigma):.6g}")
        for chip, row in enumerate(found.entries):
            about = {"method": name, "device": place, "sigma": sigma, "instance": chip}
            yield from _records(bench, stream, about, [words(entry) for entry in row], found.hit[chip].tolist())


def _records(
    bench: _Bench, stream: data.Stream, about: Record, answers: Sequence[str], hit: Sequence[bool] | None
) -> Iterator[Record]:
    start = 0
    for domain in stream.domains:
        golds = [row.output for row in stream.test[domain]]
        part = slice(start, start + len(golds))
        start += len(golds)
        scores = tasks.TASKS[bench.name].score(golds, answers[part])
        yield {
            "task": bench.name,
            "stream": stream.seed,
            "instance": 0,
            **about,
            "domain": domain,
            "queries": len(golds),
            **{name: scores.get(name) for name in tasks.METRICS},
            "hit": None if hit is None else float(np.mean(hit[part])),
        }


def read(out: Path) -> list[Record]:
    """Return the records of all parts that are finished, or of records.csv where that was kept alone, task by task.

    Raises:
        ValueError: If there are none.
    """
    paths, table = sorted((out / "parts").glob("*.jsonl")), out / "records.csv"
    if not paths and not table.is_file():
        checks.fail("folder", "hold parts of records, or records.csv", f"{out} does not", "Run run.py first.")
    records = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    if not paths:
        with table.open(encoding="utf-8", newline="") as file:
            records = [_as_record(row) for row in csv.DictReader(file)]
    order = list(tasks.TASKS)
    return sorted(records, key=lambda record: order.index(record["task"]))


def _as_record(row: dict[str, str]) -> Record:
    found: Record = {**row, **{name: int(row[name]) for name in ("stream", "instance", "queries")}}
    real = ("sigma", *tasks.METRICS, "hit")
    return found | {name: float(row[name]) if row[name] else None for name in real}


def _runs(records: Sequence[Record], score: str) -> np.ndarray:
    """Return the mean over domains of each run, (streams, chips)."""
    runs: dict[tuple[int, int], list[float]] = {}
    for record in records:
        runs.setdefault((record["stream"], record["instance"]), []).append(record[score])
    streams, chips = ({run[i] for run in runs} for i in (0, 1))
    return np.array([[np.mean(runs[s, c]) for c in sorted(chips)] for s in sorted(streams)])


def _number(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def summarise(records: Sequence[Record], against: str = "NVCiM-PT") -> list[Record]:
    """Return one row for each task, method and score: mean over streams, chips and domains with its 95 % interval.

    Intervals are Student's over streams, chips averaged first. `ahead` is how much better `against` on chips is, stream
    by stream; for a mean error, how much smaller. `better_in` counts in how many of all `domains` of all streams it is.

    Args:
        records: The records.
        against: The method that all others are compared with.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["task"], record["device"], record["method"]), []).append(record)
    rows = []
    for (task, device, method), own in groups.items():
        place = next(
            (key for key in groups if key[0] == task and key[2] == against and key[1] not in ("none", "exact")), None
        )
        for score in (*tasks.METRICS, "hit"):
            if any(record[score] is None for record in own):
                continue
            values = _runs(own, score)
            found = metrics.hierarchical_interval(values)
            row = {"task": task, "device": device, "method": method, "score": score, "streams": len(values)}
            row |= {"chips": values.shape[1], "mean": _number(found.mean)}
            row |= {"low": _number(found.low), "high": _number(found.high)}
            rows.append(row | _ahead(values, own, groups.get(place) if place else None, score))
    return rows


def _ahead(values: np.ndarray, own: Sequence[Record], reference: Sequence[Record] | None, score: str) -> Record:
    """Return how much better the reference is, stream by stream, and in how many domains of all streams it is."""
    nothing: Record = dict.fromkeys(("ahead", "ahead_low", "ahead_high", "better_in", "domains"))
    if reference is None or any(record[score] is None for record in reference):
        return nothing
    sign = -1.0 if score == "mae" else 1.0
    found = metrics.interval(sign * (_runs(reference, score).mean(1) - values.mean(1)))
    one, other = (_by_domain(records, score) for records in (reference, own))
    better = [sign * (one[place] - other[place]) > 1e-9 for place in one]
    made = {"ahead": _number(found.mean), "ahead_low": _number(found.low), "ahead_high": _number(found.high)}
    return {**made, "better_in": sum(better), "domains": len(better)}


def _by_domain(records: Sequence[Record], score: str) -> dict[tuple[int, str], float]:
    """Return the mean over chips in each domain of each stream."""
    found: dict[tuple[int, str], list[float]] = {}
    for record in records:
        found.setdefault((record["stream"], record["domain"]), []).append(record[score])
    return {place: float(np.mean(values)) for place, values in found.items()}
