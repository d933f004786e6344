"""The training loop of the bundled language model: recipe, optimiser, checkpoints."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from tokenizers import Tokenizer

from experiments.pretrain import episodes, features, objective
from experiments.pretrain.data import Corpus, encode
from nvcim_jax import checks, models
from nvcim_jax.types import PyTree

__all__ = ["Recipe", "TrainState", "learning_rate", "make_start", "make_step", "model_config", "restore", "save"]


@checks.frozen_config
class Recipe:
    """Everything that decides the checkpoint, besides the text.

    Attributes:
        seed: Of the parameters, the batches and the noise.
        vocab_size: Tokens of the tokenizer.
        width: Channels of the model.
        num_layers: Blocks.
        num_heads: Heads of a block.
        mlp_width: Hidden channels of the feed-forward part.
        num_steps: Updates.
        warmup: Updates over which the learning rate rises.
        decay: Updates at the end over which it falls to zero; constant in between.
        learning_rate: Its peak.
        weight_decay: Of the matrices of the blocks, decoupled.
        text_rows: Rows of plain text a step.
        text_tokens: Tokens of such a row.
        episode_rows: Episodes a step.
        episode_tokens: Tokens of an episode.
        noise: Largest noise on soft tokens, relative to their largest entry.
        embedding_size: Mean length of the embedding's rows at the start.
    """

    seed: int = 20241112
    vocab_size: int = 4096
    width: int = 256
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 512
    num_steps: int = 1100
    warmup: int = 100
    decay: int = 350
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    text_rows: int = 6
    text_tokens: int = 129
    episode_rows: int = 20
    episode_tokens: int = 64
    noise: float = 0.1
    embedding_size: float = 0.8


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: Updates done.
        params: Parameters.
        optimiser: State of the optimiser.
    """

    step: int
    params: PyTree
    optimiser: Any


def model_config(recipe: Recipe) -> models.Config:
    """Return the shape of the model: a Llama with a tied head."""
    return models.Config(
        vocab_size=recipe.vocab_size,
        width=recipe.width,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        mlp_width=recipe.mlp_width,
        max_tokens=512,
        norm_eps=1e-5,
        tied=True,
    )


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Return the schedule: up over `warmup`, constant, down to zero over the last `decay` updates."""

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        rise = (count + 1) / recipe.warmup
        fall = (recipe.num_steps - count) / recipe.decay
        return recipe.learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return rate


def make_optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Return Muon for the matrices of the blocks and Adam for the rest (Jordan 2024; Liu et al., arXiv 2502.16982)."""

    def matrices(params: PyTree) -> PyTree:
        axes = optax.contrib.MuonDimensionNumbers((1,), (2,))
        return jax.tree.map(lambda array: axes if array.ndim == 3 else None, params)

    muon = optax.contrib.muon(
        learning_rate(recipe),
        adam_b2=0.98,
        consistent_rms=0.2,
        weight_decay=recipe.weight_decay,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def make_start(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> tuple[TrainState, episodes.Material]:
    """Return the state before the first update, and the material batches are drawn from.

    The embedding starts as word vectors, rare words longer; the products of attention start near the identity, so
    that a head looks for similar tokens and copies what it finds (Trockman and Kolter, arXiv 2305.09828).
    """
    config = model_config(recipe)
    sentences = encode(tokenizer, corpus.train)
    vectors = features.word_vectors(sentences, recipe.vocab_size, recipe.width, seed=recipe.seed)
    weights = features.inverse_frequency(sentences, recipe.vocab_size)
    params = models.init(jax.random.key(recipe.seed), config=config, scale=0.05)
    lengths = weights / weights.mean() * recipe.embedding_size
    params["embedding"] = jnp.asarray(vectors * lengths[:, None])
    for name, factor in (("q", 0.5), ("k", 0.5), ("v", 0.3), ("o", 0.3)):
        params["layers"][name] = 0.6 * params["layers"][name] + factor * jnp.eye(recipe.width)[None]
    material = episodes.make_material(corpus, tokenizer, vectors, seed=recipe.seed)
    return TrainState(0, params, make_optimiser(recipe).init(params)), material


def make_step(
    recipe: Recipe, material: episodes.Material
) -> Callable[[TrainState], tuple[TrainState, tuple[jax.Array, jax.Array]]]:
    """Return the function that makes one update; batch and noise depend on the seed and the step alone."""
    config = model_config(recipe)
    optimiser = make_optimiser(recipe)
    sizes = episodes.Sizes(rows=recipe.episode_rows, tokens=recipe.episode_tokens)
    root = jax.random.key(recipe.seed + 1)

    def objectives(params: PyTree, text: jax.Array, batch: episodes.EpisodeBatch, key: jax.Array) -> Any:
        of_text = objective.text_loss(params, text, config=config)
        of_answers, _ = objective.answer_loss(params, batch, key, config=config, noise=recipe.noise)
        return of_text + of_answers, (of_text, of_answers)

    @jax.jit
    def update(params: PyTree, state: Any, text: Any, batch: Any, key: Any) -> Any:
        (_, losses), grads = jax.value_and_grad(objectives, has_aux=True)(params, text, batch, key)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    def step(state: TrainState) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        generator = np.random.default_rng([recipe.seed, state.step])
        text = episodes.make_text(generator, material, recipe.text_rows, recipe.text_tokens)
        batch = episodes.make_episodes(generator, material, sizes)
        key = jax.random.fold_in(root, state.step)
        params, optimiser_state, losses = update(state.params, state.optimiser, text, batch, key)
        return TrainState(state.step + 1, params, optimiser_state), losses

    return step


def save(path: Path, state: TrainState, recipe: Recipe) -> None:
    """Write a checkpoint beside its final place and move it there, so that a kill never leaves half a file."""
    leaves: dict[str, Any] = {f"leaf_{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state[1:]))}
    written = path.with_suffix(".partial.npz")
    with written.open("wb") as file:
        np.savez(file, step=state.step, recipe=json.dumps(dataclasses.asdict(recipe)), **leaves)
        file.flush()
        os.fsync(file.fileno())
    written.replace(path)


def restore(path: Path, start: TrainState, recipe: Recipe) -> TrainState:
    """Return the state of a checkpoint.

    `num_steps` and `decay` may differ from the recipe that wrote it, as long as its learning rate has not begun to
    fall under either: the updates so far are then the same.

    Raises:
        ValueError: If it was written by another recipe.
    """
    with np.load(path) as file:
        written = Recipe(**json.loads(str(file["recipe"])))
        step = int(file["step"])
        leaves = [jnp.asarray(file[name]) for name in sorted(file.files) if name.startswith("leaf_")]
    same = dataclasses.replace(written, num_steps=recipe.num_steps, decay=recipe.decay) == recipe
    early = all(step <= each.num_steps - each.decay for each in (written, recipe))
    if not (same and (early or written == recipe)):
        checks.fail("recipe", f"be the one that wrote {path.name}", "differs", "Give another folder to start anew.")
    structure = jax.tree.structure(start[1:])
    return TrainState(step, *jax.tree.unflatten(structure, leaves))
