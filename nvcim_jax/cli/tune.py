"""`nvcim tune`: tune one adapter on a file of labelled texts, and save it as PEFT keeps it."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.tree_util import Partial

from nvcim_jax import checks, data, files, io, models, pipeline, tuning
from nvcim_jax.cli import duration
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.rates import ADAPTERS, rate_of
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result
from nvcim_jax.progress import progress_bar
from nvcim_jax.tuning import Adapter

__all__ = ["Options", "main"]

NAMES = {"path": "DATA"}
"""Options of what the library calls otherwise."""

FILES = ("adapter_config.json", "adapter_model.safetensors", "tune.json")

TABLE = 16
"""Texts whose loss is taken at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Tune one adapter before a frozen model on the train rows of a file, and measure it on the others.

    Writes adapter_config.json and adapter_model.safetensors, which PEFT opens, and tune.json.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """JSON lines (.jsonl, .jsonl.gz) of {id, user_or_domain, task, input, output, split}."""
    model: str = "bundled"
    """Folder or hub id of a Hugging Face checkpoint, or bundled."""
    adapter: str = "lora"
    """What is tuned: prompt, p_tuning, prefix, lora, rslora, dora, ia3."""
    num_virtual: int = 8
    """Virtual tokens of a prompt or prefix."""
    rank: int = 8
    """Rank of low-rank changes."""
    alpha: float | None = None
    """Their scale, as PEFT's lora_alpha. None: the rank."""
    targets: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A matrix of the blocks to change, out of q, k, v, o, gate, up, down; may be repeated. None: the usual ones."""
    domains: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A user or domain to take; may be repeated. None: all."""
    num_steps: int = 100
    """Updates."""
    batch: int = 8
    """Texts of an update, drawn with replacement."""
    learning_rate: float | None = None
    """None: that of the adapter, found with SmolLM2 (`nvcim_jax.cli.rates`)."""
    zeroth_order: float | None = None
    """Length of the moves of zeroth-order slopes (MeZO), which need no backward pass. None: backward passes."""
    remat: bool = False
    """Whether backward passes compute each block again: less memory, more time."""
    max_input: int | None = None
    """Tokens of an input that are kept, from its beginning; all of them by default."""
    seed: int = 0
    """Seed of start, batches and directions."""
    out: Path = Path("runs/tune")
    """Folder of the adapter."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    _check(options)
    rows = _rows(options)
    lm, text = models.load(models.BUNDLED if options.model == "bundled" else options.model)
    if text.tokenizer is None:
        checks.fail("--model", "have a tokenizer", f"{options.model} has none", "Add its tokenizer.json to the folder.")
    text = text.replace(template=models.Template(max_input=options.max_input))
    batches = {
        split: pipeline.make_buffer(own, lm, text).examples._replace(words=None) for split, own in rows.items() if own
    }
    adapter = _adapter(options)
    start_key, tune_key = jax.random.split(jax.random.key(options.seed))
    state = adapter.init(start_key, lm, batches["train"], None)
    num = sum(leaf.size for leaf in jax.tree.leaves(adapter.rows(state)))
    print(f"Model {options.model}: {lm.config.num_params:,} parameters; {options.adapter}: {num:,} stored values.")
    print(", ".join(f"{len(own)} {split}" for split, own in rows.items() if own) + " rows.", flush=True)
    if options.dry_run:
        return _planned(options, lm, batches["train"], num)
    files.folder("--out", options.out)
    before = {split: _loss(state, lm, own, adapter) for split, own in batches.items()}
    started = time.perf_counter()
    state = _tuned(tune_key, state, lm, batches["train"], adapter, options)
    seconds = time.perf_counter() - started
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state)):
        after = f"made numbers that are not finite in {options.num_steps} updates"
        checks.fail("--learning-rate", "let the loss fall", after, "Lower it.")
    found = [
        {"split": split, "rows": len(rows[split]), "before": before[split], "after": _loss(state, lm, own, adapter)}
        for split, own in batches.items()
    ]
    print_table(found, title="Loss, nats a token of the answers")
    _save(options, state, lm, adapter, {"losses": found, "seconds": round(seconds, 1), "stored_values": num})
    return 0


def _planned(options: Options, lm: models.LM, train: tuning.Examples, num: int) -> int:
    """Say how long the updates would take and what would be written."""
    tokens = options.batch * train.ids.shape[1]
    each = 4.0 if options.zeroth_order else 8.0 if options.remat else 6.0  # for a weight and a token
    work = duration.updates(lm.config, tokens, options.num_steps, of_update=each)
    seconds = work / duration.rate(lm.config)
    print(duration.passes(seconds, f"{options.num_steps} updates"))
    print(duration.nothing_done(options.out, FILES))
    print_result(options, {"seconds": seconds, "stored_values": num, "out": str(options.out)})
    return 0


def _check(options: Options) -> None:
    checks.choice("--adapter", options.adapter, ADAPTERS)
    for name in ("num_virtual", "rank", "num_steps", "batch"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(options, name), high=10**6)
    checks.integer("--seed", options.seed, low=0, high=2**31)
    for name in ("learning_rate", "zeroth_order", "alpha"):
        if getattr(options, name) is not None:
            checks.number(f"--{name.replace('_', '-')}", getattr(options, name), low=0.0, low_open=True)
    if options.alpha is not None and options.adapter not in ("lora", "rslora", "dora"):
        checks.fail("--alpha", f"be left out with --adapter {options.adapter}", f"is {options.alpha:g}")
    if options.targets and options.adapter in ("prompt", "p_tuning", "prefix"):
        checks.fail("--targets", f"be left out with --adapter {options.adapter}", f"are {', '.join(options.targets)}")


def _rows(options: Options) -> dict[str, list[data.Record]]:
    """Return the rows of each split: train first."""
    rows = list(data.read_jsonl(options.data))
    known = list(dict.fromkeys(row.user_or_domain for row in rows))
    for name in options.domains:
        checks.choice("--domains", name, known)
    kept = [row for row in rows if not options.domains or row.user_or_domain in options.domains]
    found = {split: [row for row in kept if row.split == split] for split in ("train", "val", "test")}
    if not found["train"]:
        checks.fail("data", "have rows of the split train", f"{options.data.name} has none")
    for row in kept:
        if not row.output:
            checks.fail("data", "have an output in each row", f"row {row.id!r} has none")
    return found


def _adapter(options: Options) -> Adapter:
    targets: Sequence[str] | None = options.targets or None
    if options.adapter == "ia3":
        return tuning.ia3() if targets is None else tuning.ia3(targets, inputs=[n for n in targets if n == "down"])
    if options.adapter in ("lora", "rslora", "dora"):
        kind = {"rs": options.adapter == "rslora", "dora": options.adapter == "dora"}
        return tuning.lora(options.rank, options.alpha, targets=targets, **kind)
    make = {"prompt": tuning.prompt, "p_tuning": tuning.p_tuning, "prefix": tuning.prefix}[options.adapter]
    return make(options.num_virtual)


def _sgd(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.sgd(rate)


def _tuned(
    key: jax.Array, state: Any, lm: models.LM, batch: tuning.Examples, adapter: Adapter, options: Options
) -> Any:
    """Tune, and say how far it is after every update."""
    how_found: Any = {"bundled": options.model == "bundled", "zeroth_order": options.zeroth_order is not None}
    rate = options.learning_rate or rate_of(options.adapter, **how_found)
    parts: Any = {"optimiser": tuning.adam(rate)}
    if options.zeroth_order is not None:
        parts = {
            "optimiser": Partial(_sgd, jnp.float32(rate)),
            "gradient": tuning.zeroth_order(options.zeroth_order),
        }
    how = tuning.Options(num_steps=options.num_steps, batch=options.batch, remat=options.remat)
    with progress_bar(options.num_steps + 2, options.said.progress, "updates", lines=True) as advance:

        def told(state: Any) -> Any:
            jax.debug.callback(lambda: advance(1))
            return state

        found, _ = tuning.tune(key, state, lm, batch, adapter=adapter, options=how, project=told, **parts)
        jax.block_until_ready(found)
        jax.effects_barrier()
    return found


def _loss(state: Any, lm: models.LM, batch: tuning.Examples, adapter: Adapter) -> float:
    """Return the mean loss of a token over all rows, some of them at a time."""
    size, total, count = len(batch.ids), 0.0, 0
    for start in range(0, size, TABLE):
        rows = np.resize(np.arange(start, min(start + TABLE, size)), TABLE)
        own = jnp.asarray(np.arange(TABLE) < size - start, jnp.float32)
        part = jax.tree.map(lambda a, rows=rows: a[rows], batch)
        tokens = int(((part.targets >= 0).sum(axis=1) * own.astype(jnp.int32)).sum())
        total += tokens * float(_answer_loss(state, lm, part, own, tuning.as_adapter(adapter)))
        count += tokens
    return total / count


@jax.jit
def _answer_loss(state: Any, lm: models.LM, part: tuning.Examples, own: jax.Array, adapter: Adapter) -> jax.Array:
    return tuning.answer_loss(state, lm, part, own, adapter=adapter)


def _save(options: Options, state: Any, lm: models.LM, adapter: Adapter, measured: dict[str, Any]) -> None:
    base = None if options.model == "bundled" else options.model
    io.save_peft(options.out, state, adapter, lm, base=base)
    about = {
        "command": command_line("tune", options, ("data",)),
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
    }
    files.write_json(options.out / "tune.json", about | measured)
    print_result(options, about | measured)
    print("Written:")
    for name in FILES:
        print(f"  {options.out / name}")
