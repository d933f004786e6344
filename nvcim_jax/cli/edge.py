"""`nvcim edge`: Edge-LLM as a whole: compress by sensitivity, tune in windows, let exits vote, and schedule it."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nvcim_jax import checks, compression, cost, data, files, models, pipeline, plots, tuning
from nvcim_jax.cli import duration
from nvcim_jax.cli.compress import check_sides
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result
from nvcim_jax.progress import progress_bar

__all__ = ["Options", "main"]

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
NAMES = {"path": "DATA"}
"""Options of what the library calls otherwise."""

FILES = ("model/", "edge.json", "edge.png")

TOKENS = 32
"""Tokens of a window of plain text to calibrate with."""
TABLE = 16
"""Texts whose loss is taken at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compress a model on the train rows of a file, tune it there in windows of blocks whose exits vote, and measure.

    That is the loss of the other rows' answers, against LoRA at full depth of the model as it is, in as many updates.
    It schedules an update of both on an edge machine. Writes the compressed checkpoint, edge.json and edge.png.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """JSON lines (.jsonl, .jsonl.gz) of {id, user_or_domain, task, input, output, split}."""
    model: str = "bundled"
    """Folder or hub id of a Hugging Face checkpoint, a GGUF file, package:NAME/FILE, or bundled."""
    bits: int = 4
    """Bits of a weight, from 2 to 7; sensitive blocks get one more."""
    sparsity: float = 0.5
    """Mean share of weights that become 0."""
    method: str = "sparsegpt"
    """Which weights become 0: sparsegpt, wanda, magnitude."""
    window: int | None = None
    """Blocks of a window; None: the most that make four windows, or as near to it as the model has."""
    rank: int = 8
    """Rank of low-rank changes, of all matrices of the blocks."""
    num_steps: int = 200
    """Updates, of all windows together, and of LoRA at full depth."""
    batch: int = 8
    """Texts of an update, drawn with replacement."""
    learning_rate: float = 5e-3
    """Of Adam."""
    machine: str = "edge-8GB"
    """Machine of the schedule, see nv.cost.machines.names()."""
    max_input: int | None = None
    """Tokens of an input that are kept, from its beginning; all of them by default."""
    seed: int = 0
    """Seed of starts and batches."""
    out: Path = Path("runs/edge")
    """Folder of what is written."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    machine = _check(options)
    rows = list(data.read_jsonl(options.data))
    own = {split: [row for row in rows if (row.split == "train") == (split == "train")] for split in ("train", "test")}
    for split, found in own.items():
        if not found or not all(row.output for row in found):
            checks.fail("data", f"have {split} rows, each with an output", f"{options.data.name} does not")
    lm, text = models.load(models.BUNDLED if options.model == "bundled" else options.model, dtype=jnp.float32)
    if text.tokenizer is None:
        checks.fail("--model", "have a tokenizer", f"{options.model} has none", "Add its tokenizer.json to the folder.")
    window = _window(options, lm.config.num_layers)
    text = text.replace(template=models.Template(max_input=options.max_input))
    check_sides(lm)
    plain = _plain(own["train"], text)
    if not options.dry_run:
        files.folder("--out", options.out)
    train, test = (pipeline.make_buffer(own[s], lm, text).examples._replace(words=None) for s in ("train", "test"))
    if options.dry_run:
        return _planned(options, lm, window, train, test)
    table, policy, small = _compressed(options, lm, plain)
    models.save(options.out / "model", small, text, keep_codes=True)
    losses, seconds = _tuned(options, lm, small, window, train, test)
    plans = _plans(options, lm, policy, window, machine, train)
    _report(options, losses, seconds, plans, policy)
    _save(options, window, table, policy, {"losses": losses, "seconds_of_an_update": seconds, "schedule": plans})
    return 0


def _planned(options: Options, lm: models.LM, window: int, train: tuning.Examples, test: tuning.Examples) -> int:
    """Say how long the updates would take and what would be written."""
    tokens = options.batch * train.ids.shape[1]
    # both are run twice, once to compile; the windows of a quarter of the blocks take less than is counted
    work = duration.updates(lm.config, tokens, 4 * options.num_steps)
    exits = lm.config.num_layers // window
    work += duration.updates(lm.config, test.ids.size, 5 + exits, of_update=2.0)
    seconds = work / duration.rate(lm.config)
    print(
        f"Windows of {window} blocks, {exits} exits; {len(train.ids)} rows to tune on, {len(test.ids)} to measure on."
    )
    print(duration.passes(seconds, "updates and measuring, at most,") + " Nor is compressing.")
    print(duration.nothing_done(options.out, FILES))
    print_result(options, {"seconds": seconds, "window": window, "out": str(options.out)})
    return 0


def _check(options: Options) -> cost.Machine:
    checks.choice("--method", options.method, ("sparsegpt", "wanda", "magnitude"))
    checks.integer("--bits", options.bits, low=2, high=7, fix="A sensitive block gets one more; a code is a byte.")
    checks.number("--sparsity", options.sparsity, low=0.0, high=1.0)
    checks.number("--learning-rate", options.learning_rate, low=0.0, low_open=True)
    for name in ("rank", "num_steps", "batch"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(options, name), high=10**6)
    checks.integer("--seed", options.seed, low=0, high=2**31)
    checks.choice("--machine", options.machine, cost.machines.names())
    return cost.machines.get(options.machine)


def _window(options: Options, layers: int) -> int:
    """Return the blocks of a window, checked against the model."""
    sizes = [m for m in range(1, layers + 1) if layers % m == 0]
    window = max([m for m in sizes if m <= layers / 4], default=1) if options.window is None else options.window
    if window not in sizes:
        known = ", ".join(map(str, sizes))
        checks.fail("--window", f"divide the {layers} blocks of the model", f"is {window}", f"Use one of {known}.")
    steps = options.num_steps
    checks.integer("--num-steps", steps, low=layers // window, fix="Give each window one update at least.")
    return window


def _plain(rows: list[data.Record], text: models.Text) -> jax.Array:
    """Return the rows as windows of plain text."""
    ids = text.encode(" ".join(f"{row.input} {row.output}." for row in rows))
    if len(ids) < TOKENS:
        checks.fail("data", f"have {TOKENS} tokens in its train rows", f"they have {len(ids)}", "Give more rows.")
    return jnp.asarray(ids[: len(ids) // TOKENS * TOKENS], jnp.int32).reshape(-1, TOKENS)[:64]


def _compressed(
    options: Options, lm: models.LM, tokens: jax.Array
) -> tuple[compression.Table, compression.Policy, models.LM]:
    table = compression.sensitivity(lm, tokens, bits=options.bits, sparsity=options.sparsity)
    policy = compression.luc(table, bits=options.bits, sparsity=options.sparsity)
    with progress_bar(lm.config.num_layers, options.said.progress, "blocks", lines=True) as advance:
        return table, policy, compression.apply(lm, policy, tokens, method=options.method, advance=advance)


@jax.jit
def _own(lm: models.LM, test: tuning.Examples, adapter: tuning.Adapter, state: Any) -> jax.Array:
    adapted, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, test.ids)))
    return models.token_losses(models.head(adapted, models.hidden(adapted, inputs, at=test.where)[0]), test.targets)


def _voted(lm: models.LM, test: tuning.Examples, windows: Any, how: str, exits: Any = None) -> jax.Array:
    x = models.embed(lm, test.ids)
    return models.token_losses(tuning.vote(windows, lm, x, how=how, at=test.where, exits=exits)[0], test.targets)


_by_vote = jax.jit(_voted, static_argnames=("how", "exits"))


def _loss(fn: Any, lm: models.LM, test: tuning.Examples, *given: Any) -> float:
    """Return the mean loss of a token over all rows, some of them at a time."""
    size, total = len(test.ids), 0.0
    for start in range(0, size, TABLE):
        rows = np.resize(np.arange(start, min(start + TABLE, size)), TABLE)
        losses = fn(lm, jax.tree.map(lambda a, rows=rows: a[rows], test), *given)
        total += float(losses[: min(TABLE, size - start)].sum())
    return total / int((test.targets >= 0).sum())


def _tuned(
    options: Options, lm: models.LM, small: models.LM, window: int, train: tuning.Examples, test: tuning.Examples
) -> tuple[dict[str, float], dict[str, float]]:
    """Return losses of the rows that nothing was tuned on, and the seconds of an update, compiling apart."""
    adapter = tuning.lora(options.rank, targets=[n for n in TARGETS if n in lm.params["layers"]])
    init_key, tune_key, window_key = jax.random.split(jax.random.key(options.seed), 3)
    start, optimiser = adapter.init(init_key, lm, train, None), tuning.adam(options.learning_rate)
    both: dict[str, Any] = {"adapter": adapter, "optimiser": optimiser}
    size: dict[str, Any] = {"num_steps": options.num_steps, "batch": options.batch}

    def whole() -> Any:
        return tuning.tune(tune_key, start, lm, train, options=tuning.Options(**size), **both)[0]

    def windows() -> Any:
        how = tuning.WindowOptions(**size, gain=True)
        return tuning.tune_windows(window_key, small, train, window=window, options=how, **both)[0]

    seconds, found = {}, {}
    for name, run in (("LoRA", whole), ("windows", windows)):
        print(f"Tuning: {name}.", flush=True)
        jax.block_until_ready(run())
        began = time.perf_counter()
        found[name] = jax.block_until_ready(run())
        seconds[name] = (time.perf_counter() - began) / options.num_steps
    nothing, tuned = tuning.frozen(), found["windows"]
    losses = {
        "as it is": _loss(_own, lm, test, nothing, ()),
        "compressed": _loss(_own, small, test, nothing, ()),
        "LoRA": _loss(_own, lm, test, tuning.as_adapter(adapter), found["LoRA"]),
        **{f"windows, vote by {how}": _loss(_by_vote, small, test, tuned, how) for how in ("max", "mean")},
    }
    for e in range(lm.config.num_layers // window):
        losses[f"windows, exit {e + 1}"] = _loss(_by_vote, small, test, tuned, "last", (e,))
    return losses, seconds


def _plans(
    options: Options,
    lm: models.LM,
    policy: compression.Policy,
    window: int,
    machine: cost.Machine,
    train: tuning.Examples,
) -> dict[str, dict[str, float]]:
    """Return what an update takes by the schedule: LoRA of the model as it is, windows of the compressed one."""
    tokens = train.ids.shape[1]
    given = {"batch": options.batch, "tokens": tokens, "on": machine, "predicted": min(train.targets.shape[1], tokens)}
    layers, width = lm.config.num_layers, min(16, machine.widths[-1])
    small = {"bits": [int(b) for b in policy.bits], "sparsity": [float(p) for p in policy.sparsity]}
    whole = cost.schedule(lm, window=(0, layers), bits=width, activation_bits=width, **given)
    each = [
        cost.schedule(lm, window=(at, at + window), activation_bits=width, **small, **given)
        for at in range(0, layers, window)
    ]
    return {
        "LoRA": {"seconds": whole.time_s, "joules": whole.energy_j, "mb": sum(whole.stores) / 1e6},
        "windows": {
            "seconds": float(np.mean([plan.time_s for plan in each])),
            "joules": float(np.mean([plan.energy_j for plan in each])),
            "mb": max(sum(plan.stores) for plan in each) / 1e6,
        },
    }


def _report(
    options: Options, losses: dict[str, float], seconds: dict[str, float], plans: Any, policy: compression.Policy
) -> None:
    print(f"Policy: {policy.bits.mean():.4g} bits, sparsity {policy.sparsity.mean():.4g} in the mean.")
    print_table([{"": name, "loss": loss} for name, loss in losses.items()], title="Loss of the other rows' answers")
    rows = [
        {
            "update of": name,
            "ms here": 1e3 * seconds[name],
            f"ms on {options.machine}": 1e3 * plans[name]["seconds"],
            "mJ": 1e3 * plans[name]["joules"],
            "MB": plans[name]["mb"],
        }
        for name in ("LoRA", "windows")
    ]
    print_table(rows, title=f"An update: measured here, and by the schedule for {options.machine}")


def _save(
    options: Options, window: int, table: compression.Table, policy: compression.Policy, found: dict[str, Any]
) -> None:
    sensitivity = {part: np.asarray(getattr(table, part)).tolist() for part in ("quantisation", "pruning")}
    about = {
        "command": command_line("edge", options, ("data",)),
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "window": window,
        "bits": policy.bits.tolist(),
        "sparsity": policy.sparsity.tolist(),
        "sensitivity": sensitivity,
    }
    files.write_json(options.out / "edge.json", about | found)
    print_result(options, about | found)
    files.write(options.out / "edge.png", plots.png(_figure(sensitivity, found["losses"])))
    print("Written:")
    for name in FILES:
        print(f"  {options.out / name}")


def _figure(sensitivity: dict[str, list[float]], losses: dict[str, float]) -> Any:
    """Draw the sensitivity of each block, and the losses."""
    with plots.style():
        figure, first = plots.new_figure(6.7, 2.6)
        first.remove()
        left, right = figure.subplots(1, 2)
        for i, (part, values) in enumerate(sensitivity.items()):
            left.plot(range(1, len(values) + 1), values, plots.MARKERS[i] + "-", color=plots.COLOURS[i], label=part)
        left.set(xlabel="block", ylabel="mean squared error of its output", yscale="log")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        right.barh(list(losses), list(losses.values()), color=plots.COLOURS[0])
        right.invert_yaxis()
        right.set_xlabel("loss of the answers (nats a token)")
    return figure
