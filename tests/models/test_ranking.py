"""Ranking of answers against one forward pass for each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
ANSWERS = [[7], [8, 9, 10], [8, 11]]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_rank_equals_one_pass_an_answer(side: str):
    lm = models.init(jax.random.key(0), config=CONFIG, scale=0.3)
    texts = [[1, 5, 6], [1, 20, 21, 22, 23]]
    ids, mask = np.zeros((2, 6), np.int32), np.zeros((2, 6), bool)
    for i, text in enumerate(texts):
        place = slice(6 - len(text), 6) if side == "left" else slice(0, len(text))
        ids[i, place], mask[i, place] = text, True
    x = models.embed(lm, jnp.asarray(ids))
    found = models.rank(lm, models.Inputs(x, jnp.asarray(mask)), models.candidates(ANSWERS, end=2))
    for i, text in enumerate(texts):
        for j, answer in enumerate(ANSWERS):
            whole = jnp.array([*text, *answer])
            logits, _ = models.forward(lm, models.embed(lm, whole))
            logs = jax.nn.log_softmax(logits)
            truth = sum(logs[len(text) - 1 + t, token] for t, token in enumerate([*answer, 2]))
            np.testing.assert_allclose(found[i, j], truth, atol=2e-5)


def test_empty_answers_are_named():
    with pytest.raises(ValueError, match="at least one token"):
        models.candidates([[1], []], end=2)
    with pytest.raises(ValueError, match="rows"):
        models.candidates([], end=2)
