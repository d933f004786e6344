"""Where prompts start, and which virtual token holds which example."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import models, tuning

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)


def test_text_vocabulary_and_activations():
    lm = models.init(jax.random.key(0), config=CONFIG, scale=0.3)
    ids = jnp.array([3, 4, 5])
    text = tuning.init_text(lm, ids, 5)
    np.testing.assert_array_equal(text, models.embed(lm, jnp.array([3, 4, 5, 3, 4])))
    rows = tuning.init_vocabulary(jax.random.key(0), lm, 64)
    np.testing.assert_allclose(jnp.sort(rows, axis=0), jnp.sort(lm.params["embedding"], axis=0))
    states = tuning.init_activations(lm, ids, 5, stop=1)
    truth, _ = models.hidden(lm, text, stop=1)
    cosine = (states * truth).sum() / jnp.linalg.norm(states) / jnp.linalg.norm(truth)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), st.integers(1, 12))
def test_every_example_is_held_and_tokens_keep_to_one_answer_where_there_is_room(answers, num):
    held = tuning.deal_examples(answers, num)
    assert held.shape == (num, len(answers))
    assert held.any(axis=0).all()
    assert held.any(axis=1).all() == (len(set(answers)) >= num or held[: len(set(answers))].any())
    if len(set(answers)) > num:
        return
    for row in held:
        assert len({answers[j] for j in np.flatnonzero(row)}) == 1
    counts = collections.Counter(answers)
    for j, answer in enumerate(answers):
        tokens = [t for t in range(num) if answers[np.flatnonzero(held[t])[0]] == answer]
        # dealt in turn: in one token, unless there are fewer examples than tokens
        assert held[:, j].sum() == 1 + max(0, len(tokens) - counts[answer])


def test_examples_start_where_the_model_was_taught_to_read_them():
    layout = models.SoftTokens(label=(0, 16), examples=(24, 32), size=0.2)
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 32))
    held = jnp.asarray(tuning.deal_examples(["b", "a", "b", "a"], 2))
    found = tuning.init_examples(x, y, held, layout=layout)
    np.testing.assert_allclose(found[0], models.soft_tokens(x[1] + x[3], y[1] + y[3], layout=layout), rtol=1e-5)
    np.testing.assert_allclose(found[1], models.soft_tokens(x[0] + x[2], y[0] + y[2], layout=layout), rtol=1e-5)


def test_nothing_to_deal_is_named():
    with pytest.raises(ValueError, match="answers"):
        tuning.deal_examples([], 3)
