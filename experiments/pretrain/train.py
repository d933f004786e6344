"""The training loop of the bundled language model: recipe, optimiser, checkpoints."""

import dataclasses
import json
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
from experiments.pretrain.material import Material, equals_id, make_material
from nvcim_jax import checks, files, models
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
        rope_theta: Base of the rotary frequencies; a large one lets most channels match whatever their distance.
        num_steps: Updates.
        hard_from: Update from which on episodes are hard, see `episodes.make_episodes`.
        warmup: Updates over which the learning rate rises.
        decay: Updates at the end over which it falls to zero; constant in between.
        learning_rate: Its peak for the matrices of the blocks (Muon).
        embedding_rate: Its peak for embedding and norms (Adam).
        weight_decay: Of the matrices of the blocks, decoupled.
        text_rows: Rows of plain text a step.
        text_tokens: Tokens of such a row.
        episode_rows: Episodes a step.
        episode_tokens: Tokens of an episode.
        noise: Largest noise on soft tokens, relative to their largest entry.
        embedding_size: Mean length of the embedding's rows at the start.
        head_gain: Weight of the final norm at the start.
        random_size: Size of the random part of the blocks' matrices, relative to a standard deviation of 0.05.
        gather_gain: Strength of the wired part that gathers words, see `wire`.
        match_gain: Of the part that compares.
        copy_gain: Of the part that copies.
    """

    seed: int = 20241112
    vocab_size: int = 4096
    width: int = 256
    num_layers: int = 4
    num_heads: int = 4
    mlp_width: int = 512
    rope_theta: float = 1e6
    num_steps: int = 9000
    hard_from: int = 2400
    warmup: int = 30
    decay: int = 3000
    learning_rate: float = 2e-3
    embedding_rate: float = 1e-3
    weight_decay: float = 0.05
    text_rows: int = 3
    text_tokens: int = 129
    episode_rows: int = 12
    episode_tokens: int = 128
    noise: float = 0.1
    embedding_size: float = 3.2
    head_gain: float = 0.15
    random_size: float = 0.3
    gather_gain: float = 1.2
    match_gain: float = 1.2
    copy_gain: float = 0.7


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
        rope=models.Rope(theta=recipe.rope_theta),
        tied=True,
    )


def learning_rate(recipe: Recipe, peak: float | None = None) -> optax.Schedule:
    """Return the schedule: up over `warmup` to the peak, constant, down to zero over the last `decay` updates."""
    peak = recipe.learning_rate if peak is None else peak

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        rise = (count + 1) / recipe.warmup
        fall = (recipe.num_steps - count) / recipe.decay
        return peak * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return rate


def make_optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Return Muon for the matrices of the blocks and Adam for the rest (Jordan 2024; Liu et al., arXiv 2502.16982)."""

    def matrices(params: PyTree) -> PyTree:
        axes = optax.contrib.MuonDimensionNumbers((1,), (2,))
        return jax.tree.map(lambda array: axes if array.ndim == 3 else None, params)

    muon = optax.contrib.muon(
        learning_rate(recipe),
        adam_learning_rate=learning_rate(recipe, recipe.embedding_rate),
        adam_b2=0.98,
        consistent_rms=0.2,
        weight_decay=recipe.weight_decay,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def first_embedding(
    sentences: list[np.ndarray], vectors: np.ndarray, weights: np.ndarray, equals: int, recipe: Recipe
) -> np.ndarray:
    """Return the embedding before training: word vectors in the first half of the channels, rare words longer.

    The mean over the text is taken away, so that sentences differ by what they are about and not by how common their
    words are. Signs that stand in no sentence, and the answer sign, begin almost without a meaning.
    """
    counts = np.bincount(np.concatenate(sentences), minlength=recipe.vocab_size)
    vectors = vectors - counts @ vectors / counts.sum()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = (counts == 0) | (np.arange(recipe.vocab_size) == equals)
    vectors[empty] *= 0.02
    generator = np.random.default_rng([recipe.seed, 1])
    rest = generator.standard_normal((recipe.vocab_size, recipe.width - vectors.shape[1])) / vectors.shape[1] ** 0.5
    lengths = weights / weights.mean() * recipe.embedding_size
    return (np.concatenate([vectors, 0.1 * rest], axis=1) * lengths[:, None]).astype(np.float32)


def wire(layers: dict[str, jax.Array], recipe: Recipe) -> dict[str, jax.Array]:
    """Add to random blocks the circuit that episodes teach, so that training only has to sharpen it.

    The first half of the residual stream's channels holds words and labels, the third quarter what a sentence is
    about, the last quarter what the examples in a soft token are about. The first block gathers the leading quarter of
    every word before a position into the third quarter; in the upper half of the blocks the third quarter of a query
    is compared with the last quarter of the soft tokens, and the words of those that match are copied. Blocks that
    begin near a useful pattern learn faster than random ones (Trockman and Kolter, arXiv 2305.09828).
    """
    quarter, size, upper = recipe.width // 4, recipe.width // recipe.num_heads, recipe.num_layers // 2
    wired = {name: recipe.random_size * np.array(array) for name, array in layers.items() if array.ndim == 3}
    # The leading channels go where the rotation of positions is slowest: the end of each half of a head.
    slow = np.arange(size).reshape(2, size // 2)[:, ::-1].T.ravel()[:quarter]
    for head in range(recipe.num_heads):
        own = head * size + np.arange(size)
        matched, words = np.arange(min(quarter, size)), own % (2 * quarter)
        wired["q"][upper:, 2 * quarter + matched, head * size + slow] += recipe.match_gain
        wired["k"][upper:, 3 * quarter + matched, head * size + slow] += recipe.match_gain
        wired["v"][upper:, words, own] += recipe.copy_gain
        wired["o"][upper:, own, words] += recipe.copy_gain
        lead = words < quarter
        wired["v"][0, words[lead], own[lead]] += recipe.gather_gain
        wired["o"][0, own[lead], 2 * quarter + words[lead]] += recipe.gather_gain
    return layers | {name: jnp.asarray(array) for name, array in wired.items()}


def make_start(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> tuple[TrainState, Material]:
    """Return the state before the first update, and the material batches are drawn from.

    The embedding starts as word vectors (see `first_embedding`), the blocks near a circuit (see `wire`).
    """
    config = model_config(recipe)
    sentences = encode(tokenizer, corpus.train)
    vectors = features.word_vectors(sentences, recipe.vocab_size, recipe.width // 2, seed=recipe.seed)
    weights = features.inverse_frequency(sentences, recipe.vocab_size)
    params = models.init(jax.random.key(recipe.seed), config=config, scale=0.05).params
    params["embedding"] = jnp.asarray(first_embedding(sentences, vectors, weights, equals_id(tokenizer), recipe))
    params["final_norm"] = recipe.head_gain * params["final_norm"]
    params["layers"] = wire(params["layers"], recipe)
    material = make_material(corpus, tokenizer, vectors, seed=recipe.seed)
    return TrainState(0, params, make_optimiser(recipe).init(params)), material


def make_step(
    recipe: Recipe, material: Material
) -> Callable[[TrainState], tuple[TrainState, tuple[jax.Array, jax.Array]]]:
    """Return the function that makes one update; batch and noise depend on the seed and the step alone."""
    config = model_config(recipe)
    optimiser = make_optimiser(recipe)
    sizes = episodes.Sizes(rows=recipe.episode_rows, tokens=recipe.episode_tokens)
    root = jax.random.key(recipe.seed + 1)

    def objectives(params: PyTree, text: jax.Array, batch: episodes.EpisodeBatch, key: jax.Array) -> Any:
        of_text = objective.text_loss(params, text, config=config)
        parts = objective.answer_loss(params, batch, key, config=config, noise=recipe.noise)
        return of_text + sum(parts), (of_text, *parts)

    @jax.jit
    def update(params: PyTree, state: Any, text: Any, batch: Any, key: Any) -> Any:
        (_, losses), grads = jax.value_and_grad(objectives, has_aux=True)(params, text, batch, key)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    def step(state: TrainState) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        generator = np.random.default_rng([recipe.seed, state.step])
        text = episodes.make_text(generator, material, recipe.text_rows, recipe.text_tokens)
        batch = episodes.make_episodes(generator, material, sizes, hard=state.step >= recipe.hard_from)
        key = jax.random.fold_in(root, state.step)
        params, optimiser_state, losses = update(state.params, state.optimiser, text, batch, key)
        return TrainState(state.step + 1, params, optimiser_state), losses

    return step


def save(path: Path, state: TrainState, recipe: Recipe) -> None:
    """Write a checkpoint whole or not at all."""
    leaves: dict[str, Any] = {f"leaf_{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state[1:]))}
    with files.replacing(path) as part, part.open("wb") as file:
        np.savez(file, step=state.step, recipe=json.dumps(dataclasses.asdict(recipe)), **leaves)


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
