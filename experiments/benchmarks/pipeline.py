"""What the pipeline costs: five prompts together against one by one, a hundred chips searched, one buffer, one answer.

    python -m experiments.benchmarks.pipeline          # two minutes on two idle cores
    python -m experiments.benchmarks.pipeline --tiny   # a minute; a random model, checks that everything runs

*Tuning*: the five prompts of one buffer (25 examples of the built-in users, batches of 3 and of 5) in one call, against
five calls with one prompt each, in turn; the median of the rounds' ratios; and the products with weights that they
make, without anything else. *Retrieval*: 100 chips, each programmed and searched by 50 queries over 100 stored prompts
(FeFET3, sigma 0.1, 16 bits on 2-bit cells, 8-bit converters), through `montecarlo.run`, seconds after the compile: with
keys of 1 x 48 values of their own; with the prompts' own 8 x 48 values as keys; and with those read back for every
query as well. Every cell is drawn: FeFET3 cells are cut at 0, so one number a pair would not be exact.
*Stages*: `observe` of a buffer and `answer` of one query, cold and warm.

Prints a table and writes `results/pipeline.json`; the committed file says what to expect.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from experiments.benchmarks import common
from nvcim_jax import checks, data, devices, files, models, montecarlo, pipeline, selection, tuning

__all__ = ["Benchmark", "run"]

_MODULE = "experiments.benchmarks.pipeline"
_TOGETHER, _RETRIEVAL_S = 0.5, 1.0
_BATCHES = (3, 5)
"""Texts a step and prompt: as in the experiments on domain shift, and all five of a cluster."""
CODE = 48


@checks.frozen_config
class Benchmark:
    """Settings of the benchmark.

    Attributes:
        rounds: Times that every case is run, in turn.
        num_steps: Steps of a tuning.
        num_instances: Chips of a retrieval.
        model: Folder of the language model; None for the bundled one.
        out: File of the records; None: results/pipeline.json beside this file.
        tiny: Run a random model, few steps and few chips in two rounds, and write nothing unless `out` is given.
    """

    rounds: int = 15
    num_steps: int = 20
    num_instances: int = 100
    model: Path | None = None
    out: Path | None = None
    tiny: bool = False


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Return processor and wall seconds of a call, until its arrays are there."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(work())
    return time.process_time() - cpu, time.perf_counter() - wall


def _in_turn(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, common.Samples]:
    """Run every case once a round, every second round in the opposite order, after a warm-up."""
    for work in cases.values():
        jax.block_until_ready(work())
    found = {name: common.Samples([], []) for name in cases}
    for number in range(rounds):
        for name in list(cases) if number % 2 == 0 else list(reversed(cases)):
            cpu, wall = _seconds(cases[name])
            found[name].cpu_s.append(round(cpu, 4))
            found[name].wall_s.append(round(wall, 4))
    return found


def _language_model(config: Benchmark) -> tuple[models.LM, models.Text]:
    lm, text = models.load(config.model or models.BUNDLED)
    if not config.tiny:
        return lm, text
    shape = models.Config(
        vocab_size=lm.config.vocab_size, width=64, num_layers=1, num_heads=4, mlp_width=64, bos_id=lm.config.bos_id,
        eos_ids=lm.config.eos_ids, pad_id=lm.config.pad_id,
    )  # fmt: skip
    return models.init(jax.random.key(0), config=shape), text


def _tuning(lm: models.LM, text: models.Text, batch: int, config: Benchmark) -> dict[str, common.Samples]:
    """Time five prompts of one buffer tuned together, and one after another."""
    records = data.builtin_users(0).blocks[0].records
    options = pipeline.Config(tuning=tuning.Options(num_steps=config.num_steps, batch=batch))
    buffer = pipeline.make_buffer(records, lm, text, config=options)
    weights = (jnp.arange(25)[None, :] % 5 == jnp.arange(5)[:, None]).astype(jnp.float32)
    keys, adapter = jax.random.split(jax.random.key(0), 5), options.adapter()
    starts = jnp.stack([adapter.init(jax.random.key(1), lm, buffer.examples, own) for own in weights])

    def one(key: jax.Array, start: jax.Array, own: jax.Array) -> jax.Array:
        return tuning.tune(key, start, lm, buffer.examples, own, adapter=adapter, options=options.tuning)[0]

    def tuned(first: int, num: int) -> jax.Array:
        here = slice(first, first + num)
        return jax.vmap(one)(keys[here], starts[here], weights[here])

    rows = 5 * batch
    tokens = rows * (options.num_virtual + buffer.examples.ids.shape[1])
    asked = rows * buffer.examples.where.shape[1]
    return _in_turn({
        "together": lambda: tuned(0, 5),
        "one by one": lambda: [tuned(i, 1) for i in range(5)],
        "bare products": _bare_products(lm, tokens, asked, config.num_steps),
    }, config.rounds)  # fmt: skip


def _bare_products(lm: models.LM, tokens: int, asked: int, num_steps: int) -> Callable[[], Any]:
    """Return a run of nothing but the products with the blocks' weights that tuning five prompts together makes.

    Forward, and with the transposed weights backward: all tokens through every block, but that the last computes for
    the positions that predict answers alone, beside everyone's keys and values. Attention, norms, activations and the
    head come on top.
    """
    layers = [jax.tree.map(lambda a, i=i: a[i], lm.params["layers"]) for i in range(lm.config.num_layers)]

    def forward(x: jax.Array, y: jax.Array, layer: Any) -> jax.Array:
        around = (x @ layer["k"] + x @ layer["v"])[: len(y)]
        y = y + (y @ layer["q"] + around) @ layer["o"]
        y = y + ((y @ layer["gate"]) * (y @ layer["up"])) @ layer["down"]
        return y / (1.0 + jnp.abs(y).max())

    def backward(x: jax.Array, y: jax.Array, layer: Any) -> jax.Array:
        hidden = y @ layer["down"].T
        y = y + hidden @ layer["gate"].T + (0.5 * hidden) @ layer["up"].T
        inner = y @ layer["o"].T
        x = x + (0.5 * x) @ layer["k"].T + (2.0 * x) @ layer["v"].T
        x = x.at[: len(y)].add(inner @ layer["q"].T)
        return x / (1.0 + jnp.abs(x).max())

    def once(x: jax.Array, layers: Any) -> jax.Array:
        for layer in layers[:-1]:
            x = forward(x, x, layer)
        x = backward(x, forward(x, x[:asked], layers[-1]), layers[-1])
        for layer in reversed(layers[:-1]):
            x = backward(x, x, layer)
        return x

    run = jax.jit(lambda x, layers: jax.lax.fori_loop(0, num_steps, lambda _, x: once(x, layers), x))
    x = jax.random.normal(jax.random.key(3), (tokens, lm.config.width))
    return lambda: run(x, layers)


def _retrieval_case(width: int, preset: pipeline.Preset, config: Benchmark, read: bool) -> Callable[[], Any]:
    """Return a run over chips: each programs the store, finds the prompt of 50 queries, and may read it back."""
    options, slots, num_queries = preset.config, preset.config.capacity, 50
    keys = jax.random.split(jax.random.key(1), 4)
    prompts = jax.random.normal(keys[0], (slots, options.num_virtual, width))
    features = jax.random.normal(keys[1], (slots, options.search_tokens, width))
    queries = jax.random.normal(keys[2], (num_queries, options.search_tokens, width))
    shape = models.Config(vocab_size=8, width=width, num_layers=1, num_heads=4, mlp_width=8)
    empty = pipeline.init(jax.random.key(0), models.init(jax.random.key(0), config=shape), config=options).store
    store = empty._replace(
        prompts=prompts,
        features=features,
        filled=jnp.ones(slots, bool),
        codec=selection.codec_init(keys[3], width, code=CODE),
    )
    device = devices.get("FeFET3", sigma=0.1)

    def chip(key: jax.Array, store: Any, queries: jax.Array, device: Any) -> Any:
        # What is not returned is not computed: without the read-back a separate chip of prompts is never drawn.
        chip_key, read_key = jax.random.split(key)
        memory = pipeline.crossbar_memory(device, preset.arrays)
        arrays = pipeline.program_store(chip_key, store, memory, config=options)
        prompts, found = pipeline.retrieve(read_key, queries, store, arrays, memory, config=options)
        return (found.slots, jnp.square(prompts).sum(axis=(1, 2))) if read else found.slots

    return lambda: montecarlo.run(
        chip, jax.random.key(2), config.num_instances, args=(store, queries, device), progress=False
    )


def _retrieval(config: Benchmark) -> dict[str, common.Samples]:
    """Time the retrieval of 50 queries over 100 stored prompts on many chips."""
    own = pipeline.Preset(config=pipeline.Config(capacity=100))
    same = own.changed(config={"keys": "prompt", "key_unit": False})
    quiet = own.changed(arrays={"adc_bits": None})
    width = 64 if config.tiny else 256
    cases = {
        "keys of 1 x 48": _retrieval_case(width, own, config, read=False),
        "keys of 1 x 48, ideal converters of outputs": _retrieval_case(width, quiet, config, read=False),
        "prompts of 8 x 48 as keys": _retrieval_case(width, same, config, read=False),
        "prompts of 8 x 48 as keys, read back": _retrieval_case(width, same, config, read=True),
    }
    return _in_turn(cases, config.rounds)


def _stages(lm: models.LM, text: models.Text, config: Benchmark) -> dict[str, Any]:
    """Time `observe` and `answer`, the first call with its compiles, and then again."""
    stream = data.builtin_users(0)
    options = pipeline.Config(capacity=20, tuning=tuning.Options(num_steps=config.num_steps, batch=5))
    parts: Any = pipeline.Preset(config=options).parts(devices.get("FeFET3", sigma=0.1))
    labels = list(stream.labels)
    state = pipeline.init(jax.random.key(0), lm, config=options, **parts)
    observed, answered = [], []
    for number, block in enumerate(stream.blocks[:3]):
        start = time.perf_counter()
        buffer = pipeline.make_buffer(block.records, lm, text, config=options)
        key = jax.random.fold_in(jax.random.key(1), number)
        state, _ = pipeline.observe(key, state, buffer, lm, config=options, **parts)
        jax.block_until_ready(state)
        observed.append(round(time.perf_counter() - start, 3))
    question = next(iter(stream.test.values()))[0].input
    for number in range(config.rounds + 1):
        start = time.perf_counter()
        pipeline.answer(jax.random.fold_in(jax.random.key(2), number), state, question, lm, text,
                        config=options, labels=labels, **parts)  # fmt: skip
        answered.append(round(time.perf_counter() - start, 4))
    return {"num_steps": config.num_steps, "observe_s": observed, "answer_s": answered}


def run(config: Benchmark) -> str:
    """Measure everything, write the record, and return the table."""
    if config.tiny:
        config = Benchmark(rounds=2, num_steps=2, num_instances=3, model=config.model, out=config.out, tiny=True)
    lm, text = _language_model(config)
    machine = common.machine()
    tuned = {batch: _tuning(lm, text, batch, config) for batch in _BATCHES}
    retrieved, stages = _retrieval(config), _stages(lm, text, config)
    out = config.out or (None if config.tiny else Path(__file__).parent / "results" / "pipeline.json")
    if out is not None:
        record = {
            "command": f"python -m {_MODULE}",
            "settings": {"rounds": config.rounds, "num_steps": config.num_steps, "num_instances": config.num_instances},
            "machine": machine,
            "versions": common.versions("jax", "jaxlib", "numpy"),
            "model": {
                "width": lm.config.width,
                "num_layers": lm.config.num_layers,
                "num_params": lm.config.num_params,
            },
            "tuning": {
                f"batch {batch}": {name: found._asdict() for name, found in samples.items()}
                | {name: found._asdict() for name, found in _ratios(samples).items()}
                for batch, samples in tuned.items()
            },
            "retrieval": {name: samples._asdict() for name, samples in retrieved.items()},
            "stages": stages,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(out, record)
    return _table(tuned, retrieved, stages, config)


def _ratios(samples: dict[str, common.Samples]) -> dict[str, common.Ratio]:
    """Return what five together take, and what their bare products alone take, in parts of five one by one."""
    alone = samples["one by one"].wall_s
    names = {"ratio_wall": "together", "products_ratio_wall": "bare products"}
    return {name: common.ratio(samples[case].wall_s, alone) for name, case in names.items()}


def _table(
    tuned: dict[int, dict[str, common.Samples]],
    retrieved: dict[str, common.Samples],
    stages: dict[str, Any],
    config: Benchmark,
) -> str:
    rows = []
    for batch, samples in tuned.items():
        together, apart = (1e3 * statistics.median(samples[name].wall_s) for name in ("together", "one by one"))
        ratio, products = _ratios(samples).values()
        name = f"five prompts together / one by one, {batch} texts a step ({together:.0f} ms / {apart:.0f} ms)"
        met = "yes" if ratio.median <= _TOGETHER else "no"
        rows.append([name, f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})", f"<= {_TOGETHER}", met])
        rows.append(["their products with weights alone", f"{products.median:.2f}", "", ""])
    for name, samples in retrieved.items():
        wall, cpu = statistics.median(samples.wall_s), statistics.median(samples.cpu_s)
        met = "yes" if wall < _RETRIEVAL_S else "no"
        rows.append(
            [f"{config.num_instances} chips: {name}", f"{wall:.2f} s ({cpu:.2f} s cpu)", f"< {_RETRIEVAL_S:g} s", met]
        )
    first, *_, last = stages["observe_s"]
    rows.append([f"observe, {config.num_steps} steps: first, third buffer", f"{first:.2f} s, {last:.2f} s", "", ""])
    first, *rest = stages["answer_s"]
    rows.append(["answer: first, then", f"{first:.2f} s, {statistics.median(rest) * 1e3:.1f} ms", "", ""])
    return common.table(["", "measured", "target", "met"], rows)


if __name__ == "__main__":
    print(run(tyro.cli(Benchmark)))
