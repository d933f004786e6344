"""Windows that are tuned apart and vote, against LoRA at full depth and one window alone. See run.py beside this file.

Command:  python -m experiments.12_edge_llm.run tuning [--tiny] [--tasks TASK ...] [--methods METHOD ...]
              [--models MODEL ...] [--compressed FOLDER] [--out FOLDER]
Time:     `--config full`: not run whole; minutes of a GPU for each task, a day of two cores. `--config processor
          --tasks clinc5`: about two hours of one core, `wikitext2` twice that, `snips_slots` four for the three ways
          that were measured (--tiny: a minute).
Expect:   - not measured in this form: slots that are written, several windows of 10 or 15 blocks, the prefix in
            windows, five windows with more updates, LoRA on compressed weights. First `clinc5` with eight users
            (`results/tuning`: summary.json, table.md, quality.png): LoRA of `--config full` on a GPU, which had time
            for two of three streams; windows of `--config processor`, each second query, held against LoRA on the same
            ones; points, with 95 % over users and queries; speed in time of processors (`results/cost`).
          - LoRA after N updates 92.1 % right (the model alone 27.1 %). Stopped early: 36 updates -2.5 [-9.8, +3.8]
            points, 24 -6.5 [-11.7, -1.7], 12 -6.5 [-12.3, -1.0], 1.7, 2.5 and 5 times as fast.
          - five windows with N updates in all, 12 each: -50.8 [-63.3, -37.5] by vote of the largest, -48.3 [-60.8,
            -35.4] by the mean, 4.5 times as fast: the lower three exits, 22 to 26 % right, vote too. The upper two of
            them: -20.0 [-30.4, -10.4], 10 times as fast if only these had been tuned.
          - the upper two alone, 36 updates each: -5.0 [-14.6, +3.8] by the largest, 3.7 times as fast; the exit of the
            last by itself -3.8 [-12.1, +4.6], 7.2 times as fast if it alone had been tuned: the vote adds nothing.
          - the last window alone, 60 updates: -5.8 [-16.3, +5.4] at 1e-3, which two users chose, 4.5 times as fast; at
            1e-2, which one user of a first run had asked for, -21.7 [-32.9, -11.7]: it takes no large rate.
          - one part of the model alone with updates for a third of LoRA's time: the last of five windows 90, -4.6
            [-14.2, +5.0], the last of three 52, -3.8 [-12.9, +4.2], the last of two 36, -2.1 [-9.6, +4.6].
          - the upper two on LUC's model: -6.7 [-14.6, +1.7] by the largest, the last exit by itself -10.4 [-20.0,
            -0.4]; 3.6 times as fast in 4.5 times less memory, in codes (what was tuned here are their floats).
          - so 2.92 times the speed and, in codes, 4 times less memory are beaten, but no window was found within one
            point of LoRA: the nearest lies 2 points below it, in an interval of 14. LoRA with a fifth of its updates
            is as fast as they are and, within the intervals, no worse.
          - `wikitext2`, three users (32 windows of the test split), perplexity: the model alone 49.8, LoRA 25.5, the
            last window alone 30.9: .19 [.15, .22] nats above LoRA, 4.5 times as fast. Rates decide more than methods
            do: at 1e-3, three times what both chose, they reach 35 to 42 with LoRA and 31 to 33 with the window, which
            has less to spoil. Five windows with 12 updates each, one of these users: 71.6 by vote of the largest, 66.6
            by the mean, worse than the model alone; the exit of the last by itself 31.5 (the last alone, 60: 31.2).
          - `snips_slots`, six users (two intents, three draws, 49 queries each), answers right to the last token: LoRA
            24.5 % (the model alone none), five windows of 12 updates -22.8 [-28.9, -16.7] points by vote of the largest
            and -22.1 [-28.6, -15.6] by the mean, the last window alone, 60 updates, -16.3 [-22.1, -10.9], 4.5 times as
            fast: writing needs the lower blocks too, and its loss (.96 nats a token, LoRA .46) says so.
          - a first run by an earlier form of this file (`results/tuning/first.jsonl`; two users, 20 texts): five
            windows of 60 updates each 85 % right where LoRA had 80 %; a prefix in windows 28 %, as without tuning.

A user's records tune LoRA of rank 8 on all matrices of the blocks: at full depth (`lora`), in five windows of six
blocks (`windows`), in the upper two of these or the last alone, in two or three windows or the last of these alone
(`last of two`: the upper half of the model); and a prefix of 8 in five windows (`windowed prefix`). N is 60 updates of
5 texts. Windows do not see one another, and rates are constant: so what all five have learned in u updates each is at
once windows with 5 u updates in turn, and, read at its exit alone, the last window tuned for u updates and no other
(`exit 4`, partial tuning; `last window` goes on to 3 N). `lora` stopped at 0 updates is the model alone.

- `clinc5`: users are the four domains of three streams, 25 records each; 60 queries, right answers among 20 labels.
- `snips_slots`: two intents, three draws of 50 records each, 98 queries. `exact`: whether every token of the answer,
  its end too, is the likeliest after those before it, as greedy writing would have it; `writing` writes.
- `wikitext2`: three draws of 64 windows of 128 tokens of the validation split; perplexity of 64 windows of the test.

Rates are chosen for each number of updates and way to read, by the loss on other intents (clinc5: intents 6 to 10;
AddToPlaylist) or on the end of the validation split; `rates.TASK.jsonl` beside the records has which were tried.
`uniform` and `LUC` are the model with 4 bits and half of the weights gone (SparseGPT, nearest code, 16 windows of the
validation split; LUC by the sensitivities in `results/luc`), tuned with the same rates.
"""

import argparse
import dataclasses
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wikitext
from experiments.fine_tuning import tasks
from experiments.records import lines
from experiments.shift.settings import SMOLLM2, TINY, changed
from nvcim_jax import checks, compression, files, models, tuning

from . import programs, summary, users

__all__ = ["CONFIGS", "METHODS", "MODELS", "Config", "measure"]

Record = dict[str, Any]


class Method(NamedTuple):
    """Say what a method tunes, in windows of blocks.

    Attributes:
        stops: Field of `Config` with the updates of a window that are looked at.
        rates: Place in the rates of `Config`: LoRA at full depth, in windows, a prefix.
        exits: Windows of the model; 0: as many as `Config` has.
        alone: How many of the last are tuned, and no others; 0: all.
    """

    stops: str
    rates: int = 1
    exits: int = 0
    alone: int = 0


METHODS = {
    "lora": Method("whole", rates=0, exits=1),
    "windows": Method("stops"),
    "last window": Method("more", alone=1),
    "upper windows": Method("upper", alone=2),
    "last of three": Method("third", exits=3, alone=1),
    "last of two": Method("half", exits=2, alone=1),
    "windowed prefix": Method("stops", rates=2),
    "two windows": Method("stops", exits=2),
    "three windows": Method("stops", exits=3),
}

MODELS = ("as it is", "uniform", "LUC")
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
SENSITIVITY = Path(__file__).parent / "results/luc/sensitivity.jsonl"


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        sizes: Users and their texts.
        exits: Windows of `windows` and `windowed prefix`.
        rank: Rank of LoRA.
        batch: Texts of an update.
        steps: N, updates of LoRA that others are held against.
        stops: Updates of a window that are looked at.
        whole: Updates of LoRA at full depth that are looked at.
        more: Those of the last window alone, where it is the only one.
        upper: Those of the last two windows, where they are the only ones.
        third: Those of the last of three windows.
        half: Those of the last of two windows.
        rates: Learning rates that are chosen among, of LoRA at full depth, of its windows, of the prefix.
        chosen: Users that rates are chosen on.
        rows: Users that are tuned side by side, for each task.
        size: Texts that are read at once, for each task.
        writing: Updates of a window after which slots are written, ten minutes of a core for a user.
        most: Users that are measured on, at most.
        every: Which of their texts are measured on: each second one, if 2.
    """

    name: str = "full"
    sizes: users.Sizes = users.Sizes(settings=changed(SMOLLM2, num_test=60))
    exits: int = 5
    rank: int = 8
    batch: int = 5
    steps: int = 60
    stops: tuple[int, ...] = (12, 24, 36, 60)
    whole: tuple[int, ...] = (12, 24, 36, 60)
    more: tuple[int, ...] = (90, 120, 180)
    upper: tuple[int, ...] = (24, 36)
    third: tuple[int, ...] = (52,)
    half: tuple[int, ...] = (36,)
    rates: tuple[tuple[float, ...], ...] = (
        (3e-4, 1e-3, 3e-3, 1e-2),
        (1e-3, 3e-3, 1e-2, 3e-2),
        (1e-2, 3e-2, 1e-1, 3e-1),
    )
    chosen: int = 2
    rows: tuple[int, ...] = (16, 8, 8)
    size: tuple[int, ...] = (10, 14, 8)
    writing: tuple[int, ...] = (60,)
    most: int = 1000
    every: int = 1


CONFIGS = {
    "full": Config(),
    "processor": Config(
        name="processor",
        stops=(12,),
        whole=(60,),
        more=(60, 90),
        rates=((3e-4, 1e-3, 3e-3), (3e-4, 1e-3, 3e-3, 1e-2), (1e-2,)),
        upper=(36,),
        rows=(4, 2, 1),
        size=(10, 14, 1),
        writing=(),
        most=8,
        every=2,
    ),
    "tiny": Config(
        name="tiny",
        sizes=users.Sizes(
            settings=changed(TINY, language_model="bundled"),
            streams=1,
            kinds=("a", "bcd"),
            slots=(6, 3),
            tokens=16,
            windows=(4, 3),
            room=4,
        ),
        exits=2,
        rank=2,
        batch=2,
        steps=4,
        stops=(1, 4),
        whole=(1, 4),
        more=(6,),
        upper=(4,),
        third=(4,),
        half=(4,),
        rates=((1e-3,), (3e-3, 1e-2), (1e-1,)),
        chosen=1,
        rows=(4, 4, 4),
        size=(2, 2, 2),
        writing=(4,),
    ),
}


class Made(NamedTuple):
    """Hold everything about one task and method: what is run, and how it is read."""

    adapter: tuning.Adapter
    window: int
    only: tuple[int, ...] | None
    names: list[str]
    ways: programs.Reads
    rates: tuple[float, ...]
    stops: tuple[int, ...]

    def kept(self, numbers: Any) -> Record:
        """Return numbers by way to read."""
        return dict(zip(self.names, numbers, strict=True))


class Job(NamedTuple):
    """Name one tuning: a user by number, a rate, and the updates of a window."""

    user: int
    rate: float
    stop: int


def _made(method: str, config: Config, layers: int) -> Made:
    own = METHODS[method]
    exits = own.exits or config.exits
    adapter = tuning.lora(config.rank, 2.0 * config.rank, targets=TARGETS) if own.rates < 2 else tuning.prefix(8)
    only, (names, ways) = None, programs.reads(own.alone or exits)
    if own.alone:
        only = tuple(range(exits - own.alone, exits))
        both = [f"{name} of the upper two" for name in names if not name.startswith("exit")]
        names = [*both, *(f"exit {e}" for e in only)]
    stops: tuple[int, ...] = getattr(config, own.stops)
    return Made(adapter, layers // exits, only, names, ways, config.rates[own.rates], stops)


def _add(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.append(path, json.dumps(record) + "\n")
    shown = {name: value for name, value in record.items() if name != "reads"}
    print(path.stem, shown, flush=True)


def _tuned(
    config: Config, made: Made, lm: models.LM, own: users.Users, jobs: Sequence[Job], rows: int
) -> Iterator[tuple[list[Job], Any, np.ndarray]]:
    """Yield jobs, what they have learned, and the numbers of their users; always as many rows."""
    exits = lm.config.num_layers // made.window
    base = jax.random.key(config.sizes.settings.seed)
    for start in range(0, len(jobs), rows):
        part = list(jobs[start : start + rows])
        most = max(1, *(job.stop for job in part))
        steps = most * (exits if made.only is None else len(made.only))
        schedule = "cyclic" if made.only is None else list(made.only) * most
        options = tuning.WindowOptions(num_steps=steps, batch=config.batch, remat=True)
        filled = [part[i % len(part)] for i in range(rows)]
        at = np.array([job.user for job in filled])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(base, jnp.asarray(at, jnp.uint32))
        train = jax.tree.map(lambda a, at=at: a[at], own.train)
        given = {"adapter": made.adapter, "window": made.window, "options": options, "schedule": schedule}
        numbers = [job.rate for job in filled], [job.stop for job in filled]
        yield part, programs.tune_many(keys, lm, train, *map(np.asarray, numbers), **given), at


def _choose(config: Config, method: str, own: users.Users, lm: models.LM, path: Path, at: int) -> None:
    """Measure every rate on other records than those that are reported."""
    made = _made(method, config, lm.config.num_layers)
    if len(made.rates) == 1:
        return
    done = {(r["method"], r["user"], r["rate"], r["stop"]) for r in lines(path)}
    number = min(config.chosen, len(own.names))
    every = [Job(u, rate, stop) for rate in made.rates for stop in made.stops for u in range(number)]
    jobs = [job for job in every if (method, *job) not in done]
    names = summary.main_reads(made.names)
    ways = jax.tree.map(lambda a: a[np.array([made.names.index(name) for name in names])], made.ways)
    for part, windows, who in _tuned(config, made, lm, own, jobs, config.rows[at]):
        test = jax.tree.map(lambda a, who=who: a[who], own.test)
        found, _ = programs.losses(windows, lm, test, ways, size=config.size[at], exits=made.only)
        counts = np.asarray(test.targets >= 0).sum(axis=(1, 2))
        for i, job in enumerate(part):
            means = dict(zip(names, (found[i].sum(axis=1) / counts[i]).round(5).tolist(), strict=True))
            about = {"method": method, "user": job.user, "rate": job.rate, "stop": job.stop}
            _add(path, {**about, "reads": means})


def _quality(
    config: Config, about: Record, own: users.Users, lm: models.LM, text: models.Text, out: Path, at: int
) -> None:
    """Measure one task, model and method at the chosen rates."""
    made = _made(about["method"], config, lm.config.num_layers)
    name = f"{about['task']}.{about['model'].replace(' ', '_')}"
    path, names = out / f"quality.{name}.jsonl", own.names
    done = {(r["method"], r["user"], r["rate"], r["stop"]) for r in lines(path)}
    best = summary.best(lines(out / f"rates.{about['task']}.jsonl")).get(about["method"], {})
    every = [
        Job(u, rate, stop)
        for stop in ((0,) if about["method"] == "lora" else ()) + made.stops
        for rate in sorted(set(best.get(stop, {"": made.rates[0]}).values()))
        for u in range(min(len(names), config.most))
    ]
    every.sort(key=lambda job: job.user * config.sizes.streams // len(names))  # some users after the others
    jobs = [job for job in every if (about["method"], names[job.user], job.rate, job.stop) not in done]
    for part, windows, who in _tuned(config, made, lm, own, jobs, config.rows[at]):
        test = jax.tree.map(lambda a, who=who: a[who], own.test)
        found = programs.losses(windows, lm, test, made.ways, size=config.size[at], exits=made.only)
        asked = own.asked
        ranked = None
        if asked is not None and asked.truth is not None:
            queries = asked.ids[who], asked.mask[who]
            ranked = programs.ranks(
                windows, lm, queries, asked.answers, made.ways, size=config.size[at], exits=made.only
            )
            ranked = ranked == asked.truth[who][:, None, :]
        for i, job in enumerate(part):
            own_test = jax.tree.map(lambda a, i=i: np.asarray(a[i]), test)
            hits = None if ranked is None else ranked[i]
            reads = made.kept(_numbers(own_test, (found[0][i], found[1][i]), hits, asked is None))
            record = {**about, "user": names[job.user], "rate": job.rate, "stop": job.stop}
            record |= ({"every": config.every} if config.every > 1 else {}) | {"reads": reads}
            _add(path, record)
            if about["task"] == "snips_slots" and job.stop in config.writing:
                _write(config, record, made, windows, (lm, text, own), (i, job.user), out / f"writing.{name}.jsonl")


def _numbers(
    test: tuning.Examples, found: tuple[np.ndarray, np.ndarray], hits: np.ndarray | None, plain: bool
) -> list[Record]:
    """Return the numbers of one user, for each way to read."""
    counts = np.asarray(test.targets >= 0).sum(axis=1)
    rows = []
    for r, (losses, right) in enumerate(zip(*found, strict=True)):
        row: Record = {"loss": round(float(losses.sum() / counts.sum()), 5)}
        row["right_tokens"] = round(float(right.sum() / counts.sum()), 5)
        if plain:
            row["losses"] = [float(f"{v:.5g}") for v in losses / counts]
        else:
            row["exact"] = _digits(right == counts)
        if hits is not None:
            row["hits"] = _digits(hits[r])
        rows.append(row)
    return rows


def _digits(which: np.ndarray) -> str:
    return "".join("1" if one else "0" for one in which)


def _write(
    config: Config, record: Record, made: Made, windows: Any, world: tuple[Any, ...], row: tuple[int, int], path: Path
) -> None:
    """Write the answers of one user by the votes of all and the last exit, and score the slots."""
    lm, text, own = world
    chosen = [made.names.index(name) for name in summary.main_reads(made.names)]
    ways = jax.tree.map(lambda a: a[np.array(chosen)], made.ways)
    one = jax.tree.map(lambda a: a[row[0] : row[0] + 1], windows)
    asked = own.asked.ids[row[1]][None], own.asked.mask[row[1]][None]
    (found,) = programs.written(one, lm, asked, ways, room=config.sizes.room, text=text)
    reads = {made.names[r]: tasks.slots(own.asked.golds[row[1]], words) for r, words in zip(chosen, found, strict=True)}
    _add(path, {**{name: value for name, value in record.items() if name != "reads"}, "reads": reads})


def _compressed(name: str, config: Config, folder: Path) -> models.LM:
    """Return the compressed model, its weights floats: made once and kept in a file that processes share."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with (folder / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (path / "config.json").is_file():
            lm, text = users.load(config.sizes)
            policy, tokens = _policy(name, lm), _calibration(config, text)
            models.save(path, compression.apply(lm, policy, tokens))
    return models.load(path, dtype=jnp.float32)[0]


def _policy(name: str, lm: models.LM) -> compression.Policy:
    if name == "LUC":
        drawn = lines(SENSITIVITY)
        (own,) = [r for r in drawn if (r["model"], r["draw"], r["bits"]) == ("smollm2", 0, 4)]
        if len(own["luc_bits"]) == lm.config.num_layers:
            return compression.Policy(np.asarray(own["luc_bits"]), np.asarray(own["luc_sparsity"]))
    return compression.uniform(lm.config.num_layers, bits=4, sparsity=0.5)


def _calibration(config: Config, text: models.Text) -> jax.Array:
    if config.name == "tiny":
        return jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 16)), jnp.int32)
    valid = wikitext.windows(text, "valid", tokens=config.sizes.tokens)
    return jnp.asarray(valid[np.arange(16) * len(valid) // 16])


def _plan(config: Config, options: argparse.Namespace) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield models, tasks and methods, all that were asked for; the tiny variant sees each of them once."""
    if config.name == "tiny":
        yield "as it is", "clinc5", ("lora", "windows", "windowed prefix")
        yield "as it is", "snips_slots", ("lora",)
        yield from (("as it is", "wikitext2", ("windows",)), ("LUC", "clinc5", ("upper windows",)))
        return
    for model in options.models or MODELS:
        for task in options.tasks or users.TASKS:
            yield model, task, options.methods or (tuple(METHODS) if model == "as it is" else ("lora", "windows"))


def measure(options: argparse.Namespace, out: Path, config: Config | None = None) -> Record:
    """Measure what is not there yet."""
    config = config or CONFIGS["tiny" if options.tiny else options.config]
    for name, given, known in (
        ("--tasks", options.tasks, users.TASKS),
        ("--methods", options.methods, METHODS),
        ("--models", options.models, MODELS),
    ):
        for one in given:
            checks.choice(name, one, known)
    lm, text = users.load(config.sizes)
    for model, task, methods in _plan(config, options):
        own_lm = lm if model == "as it is" else _compressed(model, config, options.compressed or out / "models")
        others, reported = users.make(task, config.sizes, lm, text)
        reported = users.thinned(reported, config.every)
        at = users.TASKS.index(task)
        for method in methods:
            _choose(config, method, others, lm, out / f"rates.{task}.jsonl", at)
            about = {"task": task, "model": model, "method": method}
            _quality(config, about, reported, own_lm, text, out, at)
    files.write_json(out / "summary.json", summary.summarise(out, config.steps))
    return dataclasses.asdict(config)  # type: ignore[call-overload]
