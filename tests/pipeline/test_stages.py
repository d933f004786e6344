"""From buffers to answers: the plain model where nothing is stored, the stored prompt where nothing is lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices, models, pipeline

LABELS = ["yes", "no", "maybe"]


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))
    )


@jax.jit
def plain_rank(lm, queries, prompts, answers):
    """Rank answers by the language model's own functions alone."""
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    return models.rank(lm, inputs, answers)


def plain_logs(lm, text, words: str, prompts):
    queries = pipeline.make_queries([words], lm, text)
    return plain_rank(lm, queries, prompts, pipeline.label_candidates(LABELS, lm, text))


def plain_answer(lm, text, words: str, prompts) -> str:
    queries = pipeline.make_queries([words], lm, text)
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    generate = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")
    tokens, number = generate(jax.random.key(0), lm, inputs, max_new_tokens=5)
    return text.decode(np.asarray(tokens)[0, : int(number[0])])


@pytest.fixture(scope="module")
def exact(learnt, config):
    """Return the memory of `learnt`, held without a device."""
    store = learnt.state.store
    return pipeline.State(store, pipeline.program_store(jax.random.key(0), store, None, config=config), None)


def test_an_empty_store_is_the_plain_model_bit_for_bit(lm, text, device, config):
    for cells in (None, device):
        state = pipeline.init(jax.random.key(0), lm, cells, config=config)
        answer, info = pipeline.answer(jax.random.key(1), state, "pay card", lm, text, config=config, labels=LABELS)
        truth = plain_logs(lm, text, "pay card", jnp.zeros((0, 32)))
        np.testing.assert_array_equal(info.log_probabilities, truth)
        assert answer == LABELS[int(truth.argmax())]
        assert equal(info.state.store, state.store)
    written, info = pipeline.answer(jax.random.key(1), state, "pay card", lm, text, config=config, max_new_tokens=5)
    assert written == plain_answer(lm, text, "pay card", jnp.zeros((0, 32)))
    assert info.log_probabilities is None


def test_exact_memory_gives_the_stored_prompt_back_bit_for_bit(lm, text, exact, config):
    for words in ("pay card", "salt soup"):
        _, info = pipeline.answer(jax.random.key(1), exact, words, lm, text, config=config, labels=LABELS)
        slot = int(info.found.slots[0])
        features = pipeline.text_features(lm, *pipeline.make_queries([words], lm, text), config=config)
        prompts, found = pipeline.retrieve(jax.random.key(2), features, exact.store, exact.arrays, None, config=config)
        assert int(found.slots[0]) == slot
        np.testing.assert_array_equal(prompts[0], exact.store.prompts[slot])
        truth = plain_logs(lm, text, words, exact.store.prompts[slot])
        np.testing.assert_array_equal(info.log_probabilities, truth)
        written, _ = pipeline.answer(jax.random.key(1), exact, words, lm, text, config=config, max_new_tokens=5)
        assert written == plain_answer(lm, text, words, exact.store.prompts[slot])


def test_a_device_without_noise_equals_the_ideal_one_bit_for_bit(lm, text, learnt, config):
    found = []
    for cells in (devices.get("FeFET3", sigma=0.0), devices.get("ideal")):
        arrays = pipeline.program_store(jax.random.key(3), learnt.state.store, cells, config=config)
        state = pipeline.State(learnt.state.store, arrays, cells)
        _, info = pipeline.answer(
            jax.random.key(4), state, ["pay card", "soup cook"], lm, text, config=config, labels=LABELS
        )
        found.append((info.found, info.log_probabilities))
    assert equal(*found)


def test_the_same_seed_gives_the_same_run(learnt, make_learnt):
    again = make_learnt(7)
    assert equal(again.state, learnt.state)
    assert equal(again.info, learnt.info)
    other = make_learnt(8).state
    assert not jnp.array_equal(other.arrays.values.cells.g, learnt.state.arrays.values.cells.g)


def test_a_second_buffer_compiles_neither_tuning_nor_programming(learnt):
    assert learnt.num_compiled[0] == learnt.num_compiled[1] > 0


def test_buffers_fill_the_store_in_turn(learnt):
    store = learnt.state.store
    assert store.filled.all()
    np.testing.assert_array_equal(store.block, [0, 0, 1, 1])
    np.testing.assert_array_equal(store.born, [0, 1, 2, 3])
    assert [i.inserted.slots.tolist() for i in learnt.info] == [[0, 1], [2, 3]]
    assert all((i.tuned.losses[:, -1] < i.tuned.losses[:, 0]).all() for i in learnt.info)


def test_answers_count_the_uses_of_slots(lm, text, exact, config):
    texts = ["pay card", "pay card", "oven soup"]
    answers, info = pipeline.answer(jax.random.key(1), exact, texts, lm, text, config=config, labels=LABELS)
    assert len(answers) == 3
    assert set(answers) <= set(LABELS)
    np.testing.assert_array_equal(info.state.store.uses, jnp.bincount(info.found.slots, length=4))
    assert int(exact.store.uses.sum()) == 0
    # each text finds a prompt of its own topic: the query is the very text of a cluster's member
    np.testing.assert_array_equal(exact.store.block[info.found.slots], [0, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "texts"),
        ({"labels": []}, "answer"),
        ({"tokenizer": None}, "tokenizer"),
        ({"eos_ids": ()}, "token that ends a text"),
    ],
)
def test_bad_questions_are_named(lm, text, exact, config, change, message):
    text = text.replace(tokenizer=change.get("tokenizer", text.tokenizer))
    lm = lm.replace(config=dataclasses.replace(lm.config, eos_ids=change.get("eos_ids", (2,))))
    texts, labels = change.get("texts", ["pay"]), change.get("labels", LABELS)
    with pytest.raises(ValueError, match=message):
        pipeline.answer(jax.random.key(0), exact, texts, lm, text, config=config, labels=labels)


def test_bad_buffers_are_named(lm, text, buffers, config):
    state = pipeline.init(jax.random.key(0), lm, None, config=config)
    with pytest.raises(ValueError, match="records"):
        pipeline.observe(jax.random.key(1), state, [], lm, text, config=config)
    silent = [buffers[0][0], buffers[0][1]._replace(output="")]
    with pytest.raises(ValueError, match="'yes-1' has none"):
        pipeline.observe(jax.random.key(1), state, silent, lm, text, config=config)
