"""What `nvcim run` takes, and what it refuses before anything is computed."""

from typing import Any

from nvcim_jax import checks, cost, models, pipeline, selection
from nvcim_jax.cli import estimate

__all__ = ["check_answers", "check_capacity", "check_memory", "inputs", "work"]

TYPICAL_INPUT = 32
"""Tokens of an input that an estimate without data assumes."""


def _prompts(options: Any) -> int:
    """Return the prompts that a buffer becomes, which are tuned at once."""
    each = options.chosen.config.num_prompts
    return selection.num_representatives(options.buffer_size) if each is None else each


def work(options: Any, longest: int = TYPICAL_INPUT) -> cost.Work:
    """Return what is computed at once, for inputs of at most so many tokens."""
    config = options.chosen.config
    return cost.Work(
        prompts=_prompts(options),
        batch=config.tuning.batch or options.buffer_size,
        virtual=config.num_virtual,
        text=16 * -(-((options.max_input or longest) + 8) // 16),
        new_tokens=options.max_new_tokens,
        remat=config.tuning.remat,
        dtype=options.dtype,
        on_cpu=estimate.default_backend_is_cpu(),
    )


def inputs(source: Any) -> list[str]:
    """Return all inputs of all streams."""
    return [
        record.input
        for stream in source.streams
        for records in (*(block.records for block in stream.blocks), *stream.test.values())
        for record in records
    ]


def check_capacity(options: Any, source: Any) -> None:
    """Say before anything is tuned that the prompts will not fit."""
    config, each = options.chosen.config, _prompts(options)
    needed = max(each * len(stream.blocks) for stream in source.streams)
    if config.when_full == "refuse" and needed > config.capacity:
        fix = "Raise it, or let --config.when-full oldest or least_used replace prompts."
        found = f"is {config.capacity}"
        checks.fail("--config.capacity", f"be at least {needed}, the prompts of all buffers", found, fix)


def check_memory(options: Any, source: Any, lm: models.LM, text: models.Text) -> None:
    """Refuse a run that cannot stay inside the budget."""
    longest = max(len(text.encode_input(words)) for words in inputs(source))
    packed = any(isinstance(leaf, models.Packed) for leaf in lm.params["layers"].values())
    found = cost.memory(lm.config, work(options, longest), packed=packed)
    needed = max(found.tuning_peak, found.answering_peak) / 2**20
    given = options.memory_budget_mb
    budget = estimate.memory_of_the_machine() / 2**20 if given is None else given
    if needed > budget:
        spare = "a smaller --config.tuning.batch, or a smaller model."
        fix = f"Use {'' if options.chosen.config.tuning.remat else '--config.tuning.remat, '}{spare}"
        wanted = f"be at least about {needed:.0f}, what {options.model} needs"
        checks.fail("--memory-budget-mb", wanted, f"is {budget:.0f}", fix)


def check_answers(options: Any, source: Any, lm: models.LM, text: models.Text) -> None:
    """Say before anything is tuned that codes are too wide, or that the model cannot tell labels apart."""
    config = options.chosen.config
    if config.codec != "identity":
        width = config.adapter().rows_shape(lm)[1]
        checks.integer("--config.code", config.code, high=width, fix="Use --config.codec identity for no compression.")
    for stream in source.streams:
        if stream.labels:
            pipeline.make_queries(["x"], lm, text, labels=stream.labels)
