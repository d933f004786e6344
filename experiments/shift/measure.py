"""What every experiment on domain shift does: measure the variants of its settings, keep and show the records."""

import argparse
import csv
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.records import lines, origin
from experiments.shift.settings import METHODS, Settings, design, device_list, language_model, streams
from nvcim_jax import checks, files, pipeline, study

__all__ = ["collect", "main", "measure", "read", "summaries", "table"]

Record = dict[str, Any]


def measure(
    variants: Mapping[str, Settings], out: Path, seeds: Sequence[int], *, trained: Path, quiet: bool = False
) -> list[Record]:
    """Measure every variant on some streams, each in a folder of its own, and return all records in `out`.

    Several processes may work on different streams of one `out` side by side; what is finished is not done again.

    Args:
        variants: Name -> settings.
        out: Folder of the experiment.
        seeds: Seeds of the streams.
        trained: Folder of what was trained, which all experiments share.
        quiet: Whether to print no progress.
    """
    started = time.perf_counter()
    for name, settings in variants.items():
        (lm, text), key, places = language_model(settings), jax.random.key(settings.seed), device_list(settings)
        _save_cells(settings, lm, out / "parts" / name)
        for stream in streams(settings, seeds):
            compared = design(settings)
            number, done = len(study.plan([stream], places, compared)), 0

            def advance(count: int, note: str, name: str = name, number: int = number) -> None:
                nonlocal done
                done += count
                if not quiet:
                    passed = time.perf_counter() - started
                    print(f"{passed:7.0f} s  {name}: {done}/{number} of stream, {note}", flush=True)

            folder = out / "parts" / name / f"stream-{stream.seed}"
            session = study.Session(advance, trained)
            chosen: Any = {"preset": settings.preset, "design": compared, "session": session}
            study.run(folder, key, [stream], lm, text, places, **chosen)
    return collect(out)


def _save_cells(settings: Settings, lm: Any, folder: Path) -> None:
    """Write how many cells a full store of each method takes on the first device."""
    device = device_list(settings)[0]
    preset = settings.preset.fitted(device)
    configs = {name: study.method_config(preset.config, METHODS[name]) for name in settings.methods}
    cells = {name: pipeline.capacity(lm.config, config, preset.arrays).cells for name, config in configs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "cells.json", cells)


def collect(out: Path) -> list[Record]:
    """Return the records of all rows that every stream of a variant has, with the variant and the cells of a store.

    A row that some streams lack, where a run was stopped or others are still at work, is left out and named.
    """
    records = []
    for folder in sorted((out / "parts").glob("*")):
        cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
        found = [study.read(path.parent) for path in sorted(folder.glob("stream-*/records.jsonl"))]
        rows = [{_row(record) for record in own} for own in found]
        whole, any_of = (set.intersection(*rows), set.union(*rows)) if rows else (set(), set())
        for row in sorted(any_of - whole):
            print(f"{folder.name}: left out, since some streams lack it: {' '.join(map(str, row))}", file=sys.stderr)
        kept = [record for own in found for record in own if _row(record) in whole]
        records += [{"variant": folder.name, **record, "cells": cells.get(record["method"])} for record in kept]
    return records


def _row(record: Record) -> tuple[Any, ...]:
    """Return what names a row of a table, whatever the stream."""
    return tuple(record[name] for name in study.Unit._fields if name != "stream")


def _save(records: list[Record], about: Record, out: Path) -> list[Path]:
    """Write the records and what they rest on, each file whole or not at all."""
    contents = {
        "records.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "records.csv": files.csv(records),
        "run.json": json.dumps(about, indent=1, default=str) + "\n",
    }
    return [files.write(out / name, content) for name, content in contents.items()]


WHOLE = ("stream", "block", "instance", "queries", "cells")
REAL = ("sigma", "accuracy", "hit")


def read(folder: Path) -> list[Record]:
    """Return the records that `main` has written, from records.jsonl, or from records.csv where that was kept alone.

    Raises:
        ValueError: If there are none.
    """
    whole, values = folder / "records.jsonl", folder / "records.csv"
    if whole.is_file():
        return lines(whole)
    if not values.is_file():
        checks.fail("folder", "hold records.jsonl or records.csv", f"{folder} does not", "Run run.py first.")
    with values.open(encoding="utf-8", newline="") as file:
        records: list[Record] = list(csv.DictReader(file))
    for record in records:
        record |= {name: int(record[name]) if record[name] else None for name in WHOLE}
        record |= {name: float(record[name]) if record[name] else None for name in REAL}
    return records


def summaries(records: Sequence[Record], **options: Any) -> list[Record]:
    """Return the summary of every variant, with its name."""
    names = dict.fromkeys(record["variant"] for record in records)
    cells = {(record["variant"], record["method"]): record["cells"] for record in records}
    return [
        {"variant": name, **row, "cells": cells[name, row["method"]]}
        for name in names
        for row in study.summarise([r for r in records if r["variant"] == name], **options)
    ]


def _cell(row: Record, name: str) -> str:
    mean, low, high = row[name], row.get(f"{name}_low"), row.get(f"{name}_high")
    if mean is None or isinstance(mean, int):
        return "-" if mean is None else str(mean)
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def table(rows: Sequence[Record], columns: Sequence[str] = ("accuracy", "hit", "gap", "difference")) -> str:
    """Return rows of a summary as a Markdown table: means with their 95 % intervals."""
    names = ["kind", "variant", "device", "sigma", "trained_for", "method"]
    names = [name for name in names if name == "method" or len({row[name] for row in rows}) > 1]
    lines = [[*names, *columns], ["---"] * (len(names) + len(columns))]
    lines += [[*(str(row[name]) for name in names), *(_cell(row, column) for column in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(
    experiment: str,
    variants: Mapping[str, Mapping[str, Settings]],
    arguments: Sequence[str] | None = None,
    *,
    columns: Sequence[str] = ("accuracy", "hit", "gap", "difference"),
) -> None:
    """Run an experiment from the command line.

    Args:
        experiment: Name of its folder.
        variants: Name of a configuration ("full", "tiny") -> its variants.
        arguments: Words of the command line; those of the process by default.
        columns: Columns of the table that is printed.
    """
    parser = argparse.ArgumentParser(description=f"Measure {experiment}.")
    parser.add_argument("--tiny", action="store_true", help="a few small numbers, to see that all of it works")
    parser.add_argument(
        "--config", choices=sorted(variants), default="full", help="which configuration; full by default"
    )
    parser.add_argument("--out", type=Path, help=f"folder of the records; runs/{experiment}/NAME by default")
    parser.add_argument("--streams", type=int, nargs="+", help="seeds of the streams of this process; all by default")
    parser.add_argument("--collect", action="store_true", help="measure nothing: gather what is finished in --out")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="variants to measure; all by default")
    parser.add_argument("--trained", type=Path, default=Path("runs") / "trained", help="folder of what was trained")
    parser.add_argument("--model", help="checkpoint to use in place of the settings'")
    chosen = parser.parse_args(arguments)
    name = "tiny" if chosen.tiny else chosen.config
    made = dict(variants[name])
    for variant in chosen.variants or ():
        checks.choice("--variants", variant, made)
    if chosen.variants:
        made = {key: made[key] for key in chosen.variants}
    if chosen.model is not None:
        made = {key: dataclasses.replace(value, language_model=chosen.model) for key, value in made.items()}
    out = chosen.out or Path("runs") / experiment / name
    seeds = chosen.streams or range(max(settings.num_streams for settings in made.values()))
    started = time.perf_counter()
    records = collect(out) if chosen.collect else measure(made, out, seeds, trained=chosen.trained, quiet=chosen.tiny)
    settings = {key: dataclasses.asdict(value) for key, value in made.items()}  # type: ignore[call-overload]
    about = origin(f"experiments.{experiment}.run", arguments, settings, started)
    about["settings"] = about.pop("config")
    print(table(summaries(records), columns))
    print("Written:", *(str(path) for path in _save(records, about, out)), sep="\n  ")
