"""Where prompts start, and which virtual token holds which example."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import models, tuning
from nvcim_jax.tuning.starts import assign_examples, start_examples, start_text, start_vocabulary

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def examples() -> tuning.Examples:
    return tuning.examples([[1, 3, 4], [1, 5]], [[8, 9, 2], [7, 2]], num_tokens=8)


def test_a_text_gives_the_tokens_of_the_example_that_counts_most_answer_first(lm, examples) -> None:
    key = jax.random.key(0)
    for weights, ids in (
        (jnp.array([1.0, 1.0]), [8, 9, 1, 3, 4, 8, 9]),
        (jnp.array([1.0, 2.0]), [7, 1, 5, 7, 1, 5, 7]),
    ):
        found = start_text(key, lm, examples, weights, 7)
        np.testing.assert_array_equal(found, models.embed(lm, jnp.array(ids)))


def test_the_vocabulary_and_activations(lm, examples) -> None:
    key, weights = jax.random.key(0), jnp.ones(2)
    rows = start_vocabulary(key, lm, examples, weights, 64)
    np.testing.assert_allclose(jnp.sort(rows, axis=0), jnp.sort(lm.params["embedding"], axis=0))
    with pytest.raises(ValueError, match="num"):
        start_vocabulary(key, lm, examples, weights, 65)
    states = tuning.start_activations(1)(key, lm, examples, weights, 5)
    truth, _ = models.hidden(lm, start_text(key, lm, examples, weights, 5), stop=1)
    cosine = (states * truth).sum() / jnp.linalg.norm(states) / jnp.linalg.norm(truth)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


def assigned(answers: list[str], num: int, chosen: list[bool] | None = None) -> np.ndarray:
    names = sorted(set(answers))
    label = jnp.array([names.index(answer) for answer in answers], jnp.int32)
    mask = jnp.ones(len(answers), bool) if chosen is None else jnp.array(chosen)
    return np.asarray(assign_examples(label, mask, num))


def by_hand(answers: list[str], num: int) -> np.ndarray:
    """The same with Python's lists."""
    held, names = np.zeros((num, len(answers))), sorted(set(answers))
    for i, name in enumerate(names):
        tokens = range(i % num, num, len(names)) if i < num else [i % num]
        own = [j for j, answer in enumerate(answers) if answer == name]
        for turn, token in enumerate(tokens):
            held[token, own[turn :: len(tokens)] or own] = 1.0
    return held


answer_lists = st.lists(st.sampled_from("abcdefg"), min_size=12, max_size=12)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(answer_lists, st.lists(st.booleans(), min_size=12, max_size=12).filter(any), st.sampled_from([1, 3, 8]))
def test_examples_are_assigned_as_by_hand_and_only_those_that_take_part(answers, chosen, num) -> None:
    held = assigned(answers, num, chosen)
    own = [j for j in range(12) if chosen[j]]
    np.testing.assert_array_equal(held[:, own], by_hand([answers[j] for j in own], num))
    assert held[:, [j for j in range(12) if not chosen[j]]].sum() == 0


@settings(deadline=None, max_examples=60)
@given(answer_lists, st.sampled_from([1, 3, 8]))
def test_every_example_is_held_and_tokens_keep_to_one_answer_where_there_is_room(answers, num) -> None:
    held = assigned(answers, num)
    assert held.any(axis=0).all()
    assert held.any(axis=1).all() == (len(set(answers)) >= num or held[: len(set(answers))].any())
    if len(set(answers)) > num:
        return
    for row in held:
        assert len({answers[j] for j in np.flatnonzero(row)}) == 1
    counts = collections.Counter(answers)
    for j, answer in enumerate(answers):
        tokens = [t for t in range(num) if answers[np.flatnonzero(held[t])[0]] == answer]
        # in turn: in one token, unless there are fewer examples than tokens
        assert held[:, j].sum() == 1 + max(0, len(tokens) - counts[answer])


def test_examples_start_where_the_model_was_taught_to_read_them(lm) -> None:
    layout = models.SoftTokens(label=(0, 16), examples=(24, 32), size=0.2)
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 32))
    words = tuning.Words(x, y, jnp.ones(()), jnp.array([1, 0, 1, 0], jnp.int32))
    examples = tuning.examples([[1]] * 4, [[2]] * 4)._replace(words=words)
    found = start_examples(jax.random.key(0), lm.replace(soft_tokens=layout), examples, jnp.ones(4), 2)
    np.testing.assert_allclose(found[0], models.soft_tokens(x[1] + x[3], y[1] + y[3], layout=layout), rtol=1e-5)
    np.testing.assert_allclose(found[1], models.soft_tokens(x[0] + x[2], y[0] + y[2], layout=layout), rtol=1e-5)
    with pytest.raises(ValueError, match=r"examples\.words"):
        start_examples(jax.random.key(0), lm, examples._replace(words=None), jnp.ones(4), 2)
