"""Pretraining of the bundled model: soft tokens, packed episodes, and going on after a restart."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def relaxed() -> Iterator[None]:
    """Let an experiment broadcast as NumPy does; only the library keeps to one rank and one dtype."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def pretrain() -> Iterator[SimpleNamespace]:
    """Return the modules as `python -m` in the root of the repository would find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        names = ("data", "episodes", "objective", "run", "train")
        yield SimpleNamespace(**{name: importlib.import_module(f"experiments.pretrain.{name}") for name in names})


@pytest.fixture(scope="module")
def started(pretrain, tmp_path_factory) -> SimpleNamespace:
    """Return the tiny recipe, its state before the first update, and its material."""
    corpus = pretrain.data.tiny_corpus()
    tokenizer = pretrain.data.train_tokenizer(corpus.train, pretrain.run.TINY.vocab_size)
    recipe = pretrain.train.Recipe(
        **{**pretrain.run.TINY.__dict__, "vocab_size": tokenizer.get_vocab_size(), "hard_from": 1, "text_tokens": 17}
    )
    state, material = pretrain.train.make_start(recipe, corpus, tokenizer)
    sizes = pretrain.episodes.Sizes(rows=6)
    batch = pretrain.episodes.make_episodes(np.random.default_rng(3), material, sizes, hard=True)
    config = pretrain.train.model_config(recipe)
    return SimpleNamespace(recipe=recipe, state=state, material=material, batch=batch, config=config)


@pytest.mark.slow
def test_soft_tokens_keep_examples_and_label_apart(pretrain, started) -> None:
    params, config = started.state.params, started.config
    bags, labels = jnp.array([[300, 301]] * 2), jnp.array([[310]] * 2)
    ones = jnp.ones((2, 2)), jnp.ones((2, 1))
    shares = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    soft = pretrain.objective.soft_tokens(params, bags, ones[0], labels, ones[1], shares, config=config)
    quarter = config.width // 4
    np.testing.assert_allclose(np.sqrt(np.square(soft).mean(1)), pretrain.objective.SOFT_SIZE, rtol=1e-4)
    assert not np.any(soft[0, : 3 * quarter])
    assert not np.any(soft[1, 2 * quarter :])
    label = np.asarray(params["embedding"])[310, : 2 * quarter]
    cosine = soft[1, : 2 * quarter] @ label / np.linalg.norm(soft[1]) / np.linalg.norm(label)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-4)


@pytest.mark.slow
def test_a_packed_query_is_read_as_if_it_stood_alone(pretrain, started) -> None:
    params, batch, config = started.state.params, started.batch, started.config
    lm = models.LM(params, config)
    x = pretrain.objective.episode_inputs(params, jax.tree.map(jnp.asarray, batch), config=config)
    mask = pretrain.objective.query_mask(jnp.asarray(batch.parts))
    packed, _ = models.hidden(lm, models.Inputs(x, mask, jnp.asarray(batch.places)))
    for row in range(2):
        number = batch.parts[row].max()
        kept = (batch.parts[row] == 0) | (batch.parts[row] == number)
        assert number > 1
        alone, _ = models.hidden(lm, x[row][kept])
        np.testing.assert_allclose(packed[row][kept], alone, atol=2e-5)


def test_answers_stand_where_the_batch_says(started) -> None:
    batch = started.batch
    rows, answers = np.nonzero(batch.weights)
    before = batch.ids[rows, batch.where[rows, answers]]
    first = batch.classes[rows, answers] >= 0
    assert (before[first] == started.material.equals).all()
    np.testing.assert_array_equal(before[~first], np.roll(batch.targets[rows, answers], 1)[~first])
    chosen = batch.choices[rows[first], batch.classes[rows, answers][first]]
    np.testing.assert_array_equal(chosen, batch.targets[rows, answers][first])


@pytest.mark.slow
def test_going_on_from_a_checkpoint_changes_no_bit(pretrain, started, tmp_path: Path) -> None:
    step = pretrain.train.make_step(started.recipe, started.material)
    state, _ = step(started.state)
    pretrain.train.save(tmp_path / "checkpoint.npz", state, started.recipe)
    again = pretrain.train.restore(tmp_path / "checkpoint.npz", started.state, started.recipe)
    assert again.step == 1
    straight, broken = (step(each)[0] for each in (state, again))
    jax.tree.map(np.testing.assert_array_equal, straight[1:], broken[1:])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), straight.params["layers"], state.params["layers"])
    assert all(jax.tree.leaves(moved))
