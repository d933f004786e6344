"""Predictions of LaMP in the official form, from the very chips of a study, with their official scores."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import data, metrics, models, pipeline, study

__all__ = ["predict", "score"]

ROWS = 16
MAIN_METHOD = "NVCiM-PT"


def predict(
    key: jax.Array,
    stream: data.Stream,
    lm: models.LM,
    text: models.Text,
    device: Any,
    *,
    preset: pipeline.Preset,
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
        preset: Everything that is chosen.
        num_chips: Number of chips.
        max_new_tokens: Most tokens that the model writes.
        advance: Called after every block and chip.

    Returns:
        Id -> answer, for every chip.
    """
    # The keys of `study.measure`, so that these are its prompts and its chips.
    learn_key, chip_key, *_ = jax.random.split(jax.random.fold_in(key, stream.seed), 4)
    method = study.METHODS[MAIN_METHOD]
    fitted = preset.fitted(device)
    own = fitted.changed(lipschitz=0.0, config=study.method_config(fitted.config, method))  # as it is trained there
    observed = study.observe_stream(learn_key, stream, lm, text, device, preset=own, advance=advance)
    rows = [record for name in stream.domains for record in stream.test[name]]
    questions = study.make_questions(_labelled(stream), lm, text, preset=own)
    trial, store, calibration = study.trial(own, method), observed.stores[-1], observed.calibrations[-1]
    find = jax.jit(study.retrieve_on_chip)
    made = []
    for i in range(num_chips):
        chip = jax.random.fold_in(jax.random.clone(chip_key), i)
        slots, prompts = find(chip, trial, store, observed.curvatures[-1], calibration, questions, device)
        own_key = jax.random.fold_in(learn_key, i)
        write = partial(pipeline.write, lm=lm, text=text, adapter=own.config.adapter(), max_new_tokens=max_new_tokens)
        answers = _answers(own_key, prompts[slots], questions.queries, list(stream.labels), lm, own, write)
        made.append({row.id: words for row, words in zip(rows, answers, strict=True)})
        advance(1, f"answers of chip {i + 1}")
    return made


def _labelled(stream: data.Stream) -> data.Stream:
    """Give a stream of free text one label, which nothing looks at, so that its rows can be laid out."""
    if stream.labels:
        return stream
    test = {name: tuple(dataclasses.replace(row, output="x") for row in rows) for name, rows in stream.test.items()}
    return stream._replace(test=test, candidates=dict.fromkeys(stream.candidates, ("x",)))


def _answers(
    key: jax.Array, rows: jax.Array, queries: Any, labels: list[str], lm: models.LM, preset: pipeline.Preset, write: Any
) -> list[str]:
    """Return the answer of every query behind its prompt, a few rows at a time."""
    found, total, adapter = [], len(rows), preset.config.adapter()
    for start in range(0, total, ROWS):
        which = np.resize(np.arange(start, min(start + ROWS, total)), ROWS)  # one shape for all calls
        part = queries._replace(ids=queries.ids[which], mask=queries.mask[which])
        if labels:
            best = jnp.argmax(pipeline.rank(rows[which], part, lm, adapter=adapter), axis=1)
            found += [labels[int(i)] for i in best]
        else:
            found += write(jax.random.fold_in(key, start), rows[which], part)
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
