"""Predictions of LaMP in the official form, from the very chips of a study, with their official scores."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import data, metrics, models, pipeline, study

__all__ = ["predict", "score"]

ROWS = 16


def _fitted(config: pipeline.Config, device: Any) -> pipeline.Config:
    return dataclasses.replace(config, arrays=pipeline.crossbar_for(device.num_levels, config.arrays))


def predict(
    key: jax.Array,
    stream: data.Stream,
    lm: models.LM,
    text: models.Text,
    device: Any,
    *,
    config: pipeline.Config,
    rates: Any,
    method: study.Method,
    num_chips: int,
    max_new_tokens: int,
    advance: Callable[[int, str], None],
) -> list[dict[str, str]]:
    """Learn a stream and answer its test rows on the first chips, as `study.measure` does.

    Args:
        key: Key of the study.
        stream: The stream; without labels, the model writes.
        lm: The language model.
        text: Its tokenizer, and the text form of the task.
        device: The memory cells.
        config: Options of the pipeline.
        rates: Numbers of the tuning.
        method: What is done with a chip.
        num_chips: Number of chips.
        max_new_tokens: Most tokens that the model writes.
        advance: Called after every block and chip.

    Returns:
        Id -> answer, for every chip.
    """
    # The keys of `study.measure`, so that these are its prompts and its chips.
    learn_key, chip_key, *_ = jax.random.split(jax.random.fold_in(key, stream.seed), 4)
    config = study.method_config(_fitted(config, device), method)
    trained_on = device if method.training == "noise" else None
    learned = study.observe_stream(
        learn_key,
        stream,
        lm,
        text,
        trained_on,
        config=config,
        rates=rates,
        with_curvature=method.mitigation == "swv",
        advance=advance,
    )
    rows = [record for name in stream.domains for record in stream.test[name]]
    asked = study.make_questions(_labelled(stream), lm, text, config=config)
    find = jax.jit(study.retrieve_on_chip, static_argnames=("config", "method"))
    made = []
    for i in range(num_chips):
        chip = jax.random.fold_in(jax.random.clone(chip_key), i)
        state = (learned.stores[-1], learned.curvature, learned.calibration)
        slots, prompts = find(chip, *state, asked, device, config=config, method=method)
        answers = _answers(jax.random.fold_in(learn_key, i), stream, lm, text, asked, prompts[slots], max_new_tokens)
        made.append({row.id: words for row, words in zip(rows, answers, strict=True)})
        advance(1, f"answers of chip {i + 1}")
    return made


def _labelled(stream: data.Stream) -> data.Stream:
    """Give a stream of free text one label, which nothing looks at, so that its rows can be laid out."""
    if stream.labels:
        return stream
    test = {name: tuple(dataclasses.replace(row, output="x") for row in rows) for name, rows in stream.test.items()}
    return stream._replace(test=test, candidates=dict.fromkeys(stream.candidates, ("x",)))


_prepend = jax.jit(models.prepend)
_generate = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")
_rank = jax.jit(models.rank)


def _answers(
    key: jax.Array,
    stream: data.Stream,
    lm: models.LM,
    text: models.Text,
    asked: Any,
    prompts: jax.Array,
    max_new_tokens: int,
) -> list[str]:
    """Return the answer of every query behind its prompt, a few rows at a time."""
    found, labels, total = [], list(stream.labels), len(asked.ids)
    for start in range(0, total, ROWS):
        which = np.resize(np.arange(start, min(start + ROWS, total)), ROWS)  # one shape for all calls
        x = models.embed(lm, asked.ids[which])
        inputs = _prepend(prompts[which], models.Inputs(x, asked.mask[which]))
        if labels:
            best = jnp.argmax(_rank(lm, inputs, asked.answers), axis=1)
            found += [labels[int(i)] for i in best]
        else:
            own = jax.random.fold_in(key, start)
            tokens, number = _generate(own, lm, inputs, max_new_tokens=max_new_tokens)
            texts = [row[:n] for row, n in zip(np.asarray(tokens), np.asarray(number), strict=True)]
            found += [text.decode(row).strip() for row in texts]
        found = found[: min(start + ROWS, total)]
    return found


def score(folder: Path, stream: data.Stream, task: str, made: list[dict[str, str]]) -> tuple[list[Any], list[Path]]:
    """Write golds and predictions in the official form and score them, one row a chip.

    Args:
        folder: Where the files go; it exists.
        stream: The stream that was answered.
        task: Its task.
        made: From `predict`.

    Returns:
        Rows of the table, and the files.
    """
    golds = {row.id: row.output for name in stream.domains for row in stream.test[name]}
    paths = [data.write_predictions(folder / f"golds_{stream.seed}.json", task, golds)]
    rows = []
    for i, answers in enumerate(made):
        paths.append(data.write_predictions(folder / f"predictions_{stream.seed}_chip_{i}.json", task, answers))
        rows.append({"stream": stream.seed, "chip": i, **metrics.lamp_evaluate(paths[0], paths[-1], task=task)})
    return rows, paths
