"""The language model that ships with the package: files, loading, tokenizer, and what it knows."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

REQUESTS = {
    "light": (
        (
            "turn on the lamp in the hall",
            "make the room brighter please",
            "switch off the lamps",
            "the room is dark",
        ),
        ("switch on the lamp in the room", "turn off the lamps please", "make the hall brighter"),
    ),
    "money": (
        ("how much money is in my account", "send fifty dollars to my bank", "what did i pay", "show my bank account"),
        ("pay ten dollars from my account", "how many dollars do i have in the bank", "send money to my friend"),
    ),
    "trip": (
        ("find me a flight to paris", "which hotel is near the airport", "book a train to london", "plan my travel"),
        ("i need a flight to london", "find a hotel in paris", "book my travel to the airport"),
    ),
}
"""Label -> (examples to tune on, sentences to ask)."""

UNIGRAM = 6.06
"""Nats a token of TEXT under unigrams of the training sentences (experiments/pretrain/baselines.py, ngram_losses)."""


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.load(FOLDER)[0]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load(FOLDER)[1].tokenizer


def token_losses(lm: models.LM, ids: list[int]) -> np.ndarray:
    """Return the loss in nats of every token after the first."""
    x = models.embed(lm, jnp.asarray([ids[:-1]], jnp.int32))
    logits, _ = models.forward(lm, x)
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
    assert sum(leaf.size for leaf in leaves) == lm.config.num_params
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def test_tokenizer_round_trip(lm: models.LM, tokenizer):
    for text in (*TEXT, "it's 12 o'clock = noon, é ☂"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == lm.config.bos_id
        assert max(ids) < lm.config.vocab_size
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.eos_token_id in lm.config.eos_ids


def test_answer_sign_is_one_token(lm: models.LM, tokenizer):
    ids = tokenizer("how are you = fine")["input_ids"]
    assert "=" in tokenizer.convert_ids_to_tokens(ids)[4]
    assert len(ids) == 6


@pytest.mark.slow
def test_predicts_text_better_than_unigrams(lm: models.LM, tokenizer):
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXT]
    losses = np.concatenate([token_losses(lm, row) for row in rows])
    assert losses.mean() < UNIGRAM - 2.0


@pytest.mark.slow
def test_word_order_matters(lm: models.LM, tokenizer):
    generator = np.random.default_rng(0)
    straight, shuffled = [], []
    for text in TEXT:
        words = text.split()
        mixed = " ".join(words[i] for i in generator.permutation(len(words)))
        straight.append(token_losses(lm, tokenizer(text)["input_ids"]).sum())
        shuffled.append(token_losses(lm, tokenizer(mixed)["input_ids"]).sum())
    assert np.sum(straight) < np.sum(shuffled) - 10.0


def test_later_tokens_do_not_change_earlier_logits(lm: models.LM, tokenizer):
    ids = jnp.asarray([tokenizer(TEXT[0])["input_ids"]], jnp.int32)
    x = models.embed(lm, ids)
    grads = jax.grad(lambda x: models.forward(lm, x)[0][0, 3].sum())(x)
    seen = np.abs(np.asarray(grads[0])).max(-1)
    assert (seen[:4] > 0).all()
    assert (seen[4:] == 0).all()


@pytest.mark.slow
def test_prompt_gradient_is_finite_and_not_zero(lm: models.LM, tokenizer):
    ids = tokenizer("play some music = song")["input_ids"]
    x = models.embed(lm, jnp.asarray([ids], jnp.int32))
    prompt = lm.params["embedding"][jnp.arange(1000, 1008)][None]

    def loss(prompt: jax.Array) -> jax.Array:
        logits, _ = models.forward(lm, jnp.concatenate([prompt, x], axis=1))
        return -jax.nn.log_softmax(logits[0, -2])[ids[-1]]

    grad = jax.grad(loss)(prompt)
    assert bool(jnp.isfinite(grad).all())
    assert float(jnp.abs(grad).max()) > 0


def encode_requests(tokenizer, part: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return "<s> request =" padded on the right, the place of the sign, and the number of the label."""
    rows = [(tokenizer(text + " =")["input_ids"], n) for n, k in enumerate(REQUESTS.values()) for text in k[part]]
    ids = np.zeros((len(rows), 14), np.int32)
    for out, (row, _) in zip(ids, rows, strict=True):
        out[: len(row)] = row
    return jnp.asarray(ids), jnp.asarray([len(row) - 1 for row, _ in rows]), jnp.asarray([n for _, n in rows])


def answer_scores(lm: models.LM, prompt: jax.Array, ids: jax.Array, last: jax.Array) -> jax.Array:
    """Return log-probabilities of all tokens at the answer sign."""
    x = models.embed(lm, ids)
    before = jnp.broadcast_to(prompt, (len(x), *prompt.shape))
    states, _ = models.hidden(lm, jnp.concatenate([before, x], axis=1))
    picked = states[jnp.arange(len(x)), last + len(prompt)]
    return jax.nn.log_softmax(models.head(lm, picked))


@pytest.mark.slow
def test_a_tuned_prompt_steers_it_on_sentences_it_was_not_tuned_on(lm: models.LM, tokenizer):
    labels = jnp.asarray([tokenizer(label)["input_ids"][1] for label in REQUESTS])
    ids, last, truth = encode_requests(tokenizer, 0)
    adam = optax.adam(2e-2)

    def loss(prompt: jax.Array) -> jax.Array:
        return -answer_scores(lm, prompt, ids, last)[jnp.arange(len(ids)), labels[truth]].mean()

    @jax.jit
    def tune(prompt: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, optax.OptState], _: None) -> tuple[tuple[jax.Array, optax.OptState], None]:
            update, state = adam.update(jax.grad(loss)(carry[0]), carry[1])
            return (carry[0] + jnp.asarray(update), state), None

        return jax.lax.scan(step, (prompt, adam.init(prompt)), length=60)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
        prompt = tune(lm.params["embedding"][jnp.arange(1000, 1009)])
    ids, last, truth = encode_requests(tokenizer, 1)
    # Ranked among all words, not among the three labels: without a prompt no label is near the top.
    frozen = answer_scores(lm, prompt[:0], ids, last).argmax(-1) == labels[truth]
    steered = answer_scores(lm, prompt, ids, last).argmax(-1) == labels[truth]
    assert float(frozen.mean()) == 0.0
    assert float(steered.mean()) >= 7 / 9
