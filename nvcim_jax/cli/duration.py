"""How long a run will take: operations counted from the plan, and the rate of this machine as measured in a moment."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import models, montecarlo, pipeline, selection
from nvcim_jax.study import Design

__all__ = ["Operations", "chips", "count", "nothing_done", "passes", "rate", "said", "updates"]

_FORWARD, _TRAINED = 2.0, 6.0
"""Floating-point operations for each weight and token: a product and a sum; gradients of inputs and activations too."""


class Operations(NamedTuple):
    """What a study computes at most, floating-point operations of the language model's products.

    Attributes:
        tuning: Of all trainings; what an earlier run left in the folder is not done again.
        answering: Of ranking all answers behind every query; a prompt that two methods find is ranked once.
    """

    tuning: float
    answering: float


def count(
    streams: Sequence[Any], config: models.Config, text: models.Text, preset: pipeline.Preset, design: Design
) -> Operations:
    """Count the products of a study on streams with labels, one device.

    A token passes the matrices of all blocks, 2 operations a weight, 6 with gradients; the head counts where a token is
    predicted. Attention, norms, the search and the chips are left out.

    Args:
        streams: The streams.
        config: The language model.
        text: Its tokenizer and the form of the task.
        preset: Everything that is chosen.
        design: What is compared.
    """
    total = Operations(0.0, 0.0)
    for stream in streams:
        trained, answered = _of_stream(stream, config, text, preset, design)
        total = Operations(total.tuning + trained, total.answering + answered)
    return total


def _of_stream(
    stream: Any, config: models.Config, text: models.Text, preset: pipeline.Preset, design: Design
) -> tuple[float, float]:
    """Return the operations of one stream."""
    blocks, head = _weights(config)
    own = preset.config
    records = [record for block in stream.blocks for record in block.records]
    around = len(text.encode(text.template.prefix)) + len(text.encode(text.template.suffix)) + own.num_virtual
    length = around + statistics.fmean(len(text.encode_input(record.input)) for record in records)
    answer = statistics.fmean(len(text.encode(record.output)) + 1 for record in records)
    each = own.num_prompts or selection.num_representatives(len(stream.blocks[0].records))
    steps = own.tuning.num_steps * (own.tuning.batch or len(stream.blocks[0].records))
    update = steps * ((_TRAINED + _FORWARD * own.tuning.remat) * blocks * (length + answer) + _TRAINED * head * answer)
    tuning = each * update * _tuned(len(stream.blocks), design)

    queries = sum(len(rows) for rows in stream.test.values())
    labels = sum(len(text.encode(label)) for label in stream.labels)
    asked = _FORWARD * (blocks * (length + labels) + head * (labels + 1))
    measured = len(stream.blocks) if design.every_block else 1
    ranked = len([name for name in design.baselines if not name.startswith("1-NN")])
    ranked += len(design.methods) * (design.num_instances + design.digital)
    return tuning, measured * ranked * queries * asked


def _tuned(num_blocks: int, design: Design) -> int:
    """Return how many times a buffer is tuned on: once a block for each kind of training, and for baselines."""
    measured = num_blocks if design.every_block else 1
    of_baselines = {"latest": measured, "joint": measured, "sequential": num_blocks}
    kinds = {method.training for method in design.methods.values()}
    return len(kinds) * num_blocks + sum(of_baselines.get(name, 0) for name in design.baselines)


def _weights(config: models.Config) -> tuple[int, int]:
    """Return the weights that a token meets in the blocks, and in the head."""
    head = config.vocab_size * config.width
    embeddings = head * (1 if config.tied else 2)
    return config.num_params - embeddings, head


def rate(config: models.Config, tokens: int = 128, seconds: float = 0.3) -> float:
    """Measure floating-point operations a second of products of the model's own shape.

    Args:
        config: The model.
        tokens: Rows of the inputs.
        seconds: How long to measure, at least.
    """
    x, w = jnp.ones((tokens, config.width)), jnp.ones((config.width, config.mlp_width))
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        product(x, w).block_until_ready()
        found.append(time.perf_counter() - started)
    return 2.0 * tokens * w.size / statistics.median(found)


def said(operations: Operations, a_second: float) -> str:
    """Return one line that says how long it will take.

    Example:
        >>> said(Operations(2e12, 4e12), 1e11)
        'About 1 minute here, and compiling: 20 s of tuning, 40 s of answering (6e+12 operations at 1e+11 a second).'
    """
    tuning, answering = (part / a_second for part in operations)
    return (
        f"About {_spoken(tuning + answering)} here, and compiling: {tuning:.0f} s of tuning, {answering:.0f} s of "
        f"answering ({sum(operations):.0e} operations at {a_second:.0e} a second)."
    )


def updates(config: models.Config, tokens: int, num: int, *, of_update: float = _TRAINED) -> float:
    """Return the operations of updates: of all products of a model, forward and backward.

    Args:
        config: The model.
        tokens: Tokens of an update.
        num: Updates.
        of_update: Operations for each weight and token; 2 for a forward pass alone.
    """
    return of_update * sum(_weights(config)) * tokens * num


def passes(seconds: float, of: str) -> str:
    """Return a line about work of which only the products are counted.

    Example:
        >>> passes(119.0, "updates")
        'About 2 minutes of updates here; compiling is not counted.'
    """
    return f"About {_spoken(seconds)} of {of} here; compiling is not counted."


def chips(
    metric: Callable[..., Any], args: Sequence[Any], num: int, programs: int = 1, tried: int = 16
) -> tuple[str, float]:
    """Return a line that says how long so many chips take, by a few of them that are computed now, and the seconds.

    Args:
        metric: Function of a key and `args`.
        args: What a chip is given.
        num: Chips of all points together.
        programs: Programs that are compiled, each about as long as this one.
        tried: Chips that are computed.
    """

    def seconds() -> float:
        started = time.perf_counter()
        montecarlo.run(metric, jax.random.key(0), tried, args=tuple(args), progress=False, quantiles=())
        return time.perf_counter() - started

    first, again = seconds(), seconds()
    compiling = max(first - again, 0.0)
    whole = num * again / tried + programs * compiling
    return f"{num:,} chips: about {_spoken(whole)} here, by {tried} of the first point; {programs} compiled.", whole


def nothing_done(out: Path, names: Sequence[str]) -> str:
    """Return what would be written.

    Example:
        >>> nothing_done(Path("runs/x"), ["a.json", "b.png"])
        'Nothing was written. It would be, into runs/x: a.json, b.png.'
    """
    return f"Nothing was written. It would be, into {out}: {', '.join(names)}."


def _spoken(seconds: float) -> str:
    for size, name in ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute")):
        if seconds >= 0.95 * size:
            shown = f"{seconds / size:.0f}" if seconds >= 9.5 * size else f"{seconds / size:.2g}"
            return f"{shown} {name}" + ("" if shown == "1" else "s")
    return f"{max(seconds, 1.0):.0f} s"
