"""The language model that ships with the package: files, loading, tokenizer, and what it knows."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

FOLDER = Path(models.__file__).parent / "bundled"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md")
TEXT = (
    "the film is a funny and moving story about a young woman who wants to find her father",
    "play a song by my favorite artist please",
    "what is the weather going to be like in the city tomorrow",
    "i would like to book a table for two at a good restaurant",
    "he was born in the north of the country and went to school there",
)

UNIGRAM = 6.06
"""Nats a token of TEXT under unigrams of the training sentences (experiments/pretrain/baselines.py, ngram_losses)."""


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.load(FOLDER)


def token_losses(lm: models.LM, ids: list[int]) -> np.ndarray:
    """Return the loss in nats of every token after the first."""
    x = models.embed(lm.params, jnp.asarray([ids[:-1]], jnp.int32), config=lm.config)
    logits, _ = models.forward(lm.params, x, config=lm.config)
    logs = jax.nn.log_softmax(logits[0])
    return -np.asarray(logs)[np.arange(len(ids) - 1), ids[1:]]


def test_files_are_there_and_small():
    sizes = {name: (FOLDER / name).stat().st_size for name in FILES}
    assert sum(sizes.values()) <= 8_000_000
    assert all(size > 100 for size in sizes.values())


def test_config_is_a_plain_llama():
    raw = json.loads((FOLDER / "config.json").read_text())
    assert raw["model_type"] == "llama"
    assert raw["tie_word_embeddings"] is True


def test_parameters_are_finite_and_as_many_as_the_config_says(lm: models.LM):
    leaves = jax.tree.leaves(lm.params)
    assert sum(leaf.size for leaf in leaves) == models.num_params(lm.config)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def test_tokenizer_round_trip(lm: models.LM):
    for text in (*TEXT, "it's 12 o'clock = noon, é ☂"):
        ids = lm.tokenizer(text)["input_ids"]
        assert ids[0] == lm.config.bos_id
        assert max(ids) < lm.config.vocab_size
        assert lm.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert lm.tokenizer.eos_token_id in lm.config.eos_ids


def test_answer_sign_is_one_token(lm: models.LM):
    ids = lm.tokenizer("how are you = fine")["input_ids"]
    assert "=" in lm.tokenizer.convert_ids_to_tokens(ids)[4]
    assert len(ids) == 6


def test_predicts_text_better_than_unigrams(lm: models.LM):
    rows = [[*lm.tokenizer(text)["input_ids"], lm.tokenizer.eos_token_id] for text in TEXT]
    losses = np.concatenate([token_losses(lm, row) for row in rows])
    assert losses.mean() < UNIGRAM - 2.0


def test_word_order_matters(lm: models.LM):
    generator = np.random.default_rng(0)
    straight, shuffled = [], []
    for text in TEXT:
        words = text.split()
        mixed = " ".join(words[i] for i in generator.permutation(len(words)))
        straight.append(token_losses(lm, lm.tokenizer(text)["input_ids"]).sum())
        shuffled.append(token_losses(lm, lm.tokenizer(mixed)["input_ids"]).sum())
    assert np.sum(straight) < np.sum(shuffled) - 10.0


def test_later_tokens_do_not_change_earlier_logits(lm: models.LM):
    ids = jnp.asarray([lm.tokenizer(TEXT[0])["input_ids"]], jnp.int32)
    x = models.embed(lm.params, ids, config=lm.config)
    grads = jax.grad(lambda x: models.forward(lm.params, x, config=lm.config)[0][0, 3].sum())(x)
    seen = np.abs(np.asarray(grads[0])).max(-1)
    assert (seen[:4] > 0).all()
    assert (seen[4:] == 0).all()


def test_prompt_gradient_is_finite_and_not_zero(lm: models.LM):
    ids = lm.tokenizer("play some music = song")["input_ids"]
    x = models.embed(lm.params, jnp.asarray([ids], jnp.int32), config=lm.config)
    prompt = lm.params["embedding"][jnp.arange(1000, 1008)][None]

    def loss(prompt: jax.Array) -> jax.Array:
        logits, _ = models.forward(lm.params, jnp.concatenate([prompt, x], axis=1), config=lm.config)
        return -jax.nn.log_softmax(logits[0, -2])[ids[-1]]

    grad = jax.grad(loss)(prompt)
    assert bool(jnp.isfinite(grad).all())
    assert float(jnp.abs(grad).max()) > 0
