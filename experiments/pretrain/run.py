"""Pretrain the small language model that ships with the package.

    NVCIM_DATA=<data folder> python -m experiments.pretrain.run --out runs/pretrain  # the shipped checkpoint
    python -m experiments.pretrain.run --tiny --out runs/pretrain_tiny  # hand-written text, 20 seconds

Run from the repository's root. The full run takes about 95 minutes of one core (XLA_FLAGS
"--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" keeps it to one). It can be killed at any moment
and started again with the same command: it goes on from the last checkpoint, and the result is the same, bit for bit on
one machine with one number of threads (OPENBLAS_NUM_THREADS too: the word vectors are a factorisation). It writes
log.jsonl, checkpoint.npz and, at the end, model/ with config.json, model.safetensors in bfloat16 and the tokenizer:
the files of nvcim_jax/models/bundled. Expect the losses of that folder's MODEL_CARD.md; measure with evaluate.py.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from tokenizers import Tokenizer

from experiments.pretrain import data, objective
from experiments.pretrain.train import Recipe, TrainState, make_start, make_step, model_config, restore, save
from nvcim_jax import files, models

__all__ = ["SHIPPED", "TINY", "export", "train"]

SHIPPED = Recipe()
TINY = Recipe(
    vocab_size=400,
    width=32,
    num_layers=2,
    num_heads=2,
    mlp_width=64,
    num_steps=30,
    hard_from=20,
    warmup=5,
    decay=10,
    text_rows=2,
    text_tokens=33,
    episode_rows=4,
)

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "clean_up_tokenization_spaces": False,
    "model_max_length": 512,
}


def export(folder: Path, state: TrainState, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Write the model as a Hugging Face checkpoint in bfloat16."""
    special = {f"{name}_id": tokenizer.token_to_id(token) for name, token in (("bos", "<s>"), ("pad", "<pad>"))}
    ends = (tokenizer.token_to_id("</s>"),)
    config = dataclasses.replace(model_config(recipe), **special, eos_ids=ends)
    lm = models.LM(state.params, config, objective.layout(recipe.width))
    models.save(folder, lm, dtype=jnp.bfloat16)
    tokenizer.save(str(folder / "tokenizer.json"))
    files.write(folder / "tokenizer_config.json", json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


def prepare(recipe: Recipe, corpus: data.Corpus, out: Path) -> Tokenizer:
    """Return the tokenizer of this run, trained once."""
    path = out / "tokenizer.json"
    if not path.exists():
        data.train_tokenizer(corpus.train, recipe.vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def train(recipe: Recipe, corpus: data.Corpus, out: Path, *, save_every: int = 50) -> tuple[TrainState, Recipe]:
    """Train, or go on training, and write checkpoints, the log and the model.

    Args:
        recipe: Everything that decides the result, besides the text.
        corpus: The text.
        out: Folder of this run.
        save_every: Updates between two checkpoints.

    Returns:
        The final state, and the recipe as it was used.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = prepare(recipe, corpus, out)
    # A small text may hold fewer tokens than were asked for.
    recipe = dataclasses.replace(recipe, vocab_size=tokenizer.get_vocab_size())
    state, material = make_start(recipe, corpus, tokenizer)
    checkpoint = out / "checkpoint.npz"
    if checkpoint.exists():
        state = restore(checkpoint, state, recipe)
        print(f"going on after step {state.step}", flush=True)
    step, started, first, losses = make_step(recipe, material), time.monotonic(), state.step, []
    while state.step < recipe.num_steps:
        state, parts = step(state)
        losses.append([float(part) for part in parts])
        if state.step % save_every == 0 or state.step == recipe.num_steps:
            save(checkpoint, state, recipe)
            each = (time.monotonic() - started) / (state.step - first)
            means = dict(zip(("text", "answer", "choice", "features"), np.mean(losses, axis=0).tolist(), strict=True))
            left = each * (recipe.num_steps - state.step)
            record = {"step": state.step, **means, "seconds_a_step": each}
            files.append(out / "log.jsonl", json.dumps(record) + "\n")
            shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"step {state.step}: {shown} nats; {left:.0f} s left", flush=True)
            losses.clear()
    export(out / "model", state, tokenizer, recipe)
    return state, recipe


def main(out: Path, recipe: Recipe = SHIPPED, tiny: bool = False) -> None:
    """Pretrain and export.

    Args:
        out: Folder of this run; an interrupted run goes on.
        recipe: Everything that decides the result, besides the text.
        tiny: Use a few hand-written sentences and a recipe of seconds instead.
    """
    folder = data.data_folder()
    if tiny:
        train(TINY, data.tiny_corpus(), out, save_every=10)
    elif folder is None:
        raise SystemExit(
            "No pretrain_text, clinc150 and snips_slots in NVCIM_DATA: `python -m experiments.data` makes them."
        )
    else:
        train(recipe, data.read_corpus(folder), out)
    print(f"written: {out / 'model'}")


if __name__ == "__main__":
    tyro.cli(main)
