"""From buffers to answers: the plain model where nothing is stored, the stored prompt where nothing is lost."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import devices, models, pipeline
from nvcim_jax.pipeline.text import room

LABELS = ["yes", "no", "maybe"]
EXACT = pipeline.exact_memory()


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b))
    )


@jax.jit
def plain_rank(lm, queries, prompts):
    """Rank answers by the language model's own functions alone."""
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    return models.rank(lm, inputs, queries.answers)


def plain_logs(lm, text, words: str, prompts, config):
    queries = pipeline.make_queries([words], lm, text, config=config, labels=LABELS)
    return plain_rank(lm, queries, prompts)


def plain_answer(lm, text, words: str, prompts, config) -> str:
    queries = pipeline.make_queries([words], lm, text, config=config)
    inputs = models.prepend(prompts, models.Inputs(models.embed(lm, queries.ids), queries.mask))
    generate = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")
    tokens, number = generate(jax.random.key(0), lm, inputs, max_new_tokens=5)
    return text.decode(np.asarray(tokens)[0, : int(number[0])])


@pytest.fixture(scope="module")
def exact(learnt, config):
    """Return the memory of `learnt`, held exactly."""
    store = learnt.state.store
    return pipeline.State(store, pipeline.program_store(jax.random.key(0), store, EXACT, config=config))


@pytest.mark.slow
def test_an_empty_store_is_the_plain_model_bit_for_bit(lm, text, memory, config):
    for held in (EXACT, memory):
        own = {"config": config, "memory": held}
        state = pipeline.init(jax.random.key(0), lm, **own)
        answer, info = pipeline.answer(jax.random.key(1), state, "pay card", lm, text, labels=LABELS, **own)
        truth = plain_logs(lm, text, "pay card", jnp.zeros((0, 32)), config)
        np.testing.assert_array_equal(info.log_probabilities, truth)
        assert answer == LABELS[int(truth.argmax())]
        assert equal(info.state.store, state.store)
    written, info = pipeline.answer(jax.random.key(1), state, "pay card", lm, text, max_new_tokens=5, **own)
    assert written == plain_answer(lm, text, "pay card", jnp.zeros((0, 32)), config)
    assert info.log_probabilities is None


@pytest.mark.slow
def test_exact_memory_gives_the_stored_prompt_back_bit_for_bit(lm, text, exact, config):
    for words in ("pay card", "salt soup"):
        _, info = pipeline.answer(jax.random.key(1), exact, words, lm, text, config=config, labels=LABELS)
        slot = int(info.found.slots[0])
        queries = pipeline.make_queries([words], lm, text, config=config, labels=LABELS)
        prompts, found = pipeline.retrieve(
            jax.random.key(2), queries.features, exact.store, exact.arrays, EXACT, config=config
        )
        assert int(found.slots[0]) == slot
        np.testing.assert_array_equal(prompts[0], exact.store.prompts[slot])
        truth = plain_logs(lm, text, words, exact.store.prompts[slot], config)
        np.testing.assert_array_equal(info.log_probabilities, truth)
        logs, arrays_first = pipeline.choose(jax.random.key(1), exact, queries, lm, config=config)
        np.testing.assert_array_equal(logs, truth)
        assert equal(arrays_first.state, info.state)
        written, _ = pipeline.answer(jax.random.key(1), exact, words, lm, text, config=config, max_new_tokens=5)
        assert written == plain_answer(lm, text, words, exact.store.prompts[slot], config)


@pytest.mark.slow
def test_a_device_without_noise_equals_the_ideal_one_bit_for_bit(lm, text, learnt, config, arrays):
    found = []
    for cells in (devices.get("FeFET3", sigma=0.0), devices.get("ideal")):
        memory = pipeline.crossbar_memory(cells, arrays)
        held = pipeline.program_store(jax.random.key(3), learnt.state.store, memory, config=config)
        state = pipeline.State(learnt.state.store, held)
        _, info = pipeline.answer(
            jax.random.key(4), state, ["pay card", "soup cook"], lm, text, config=config, memory=memory, labels=LABELS
        )
        found.append((info.found, info.log_probabilities))
    assert equal(*found)


def test_the_same_seed_gives_the_same_run(learnt, make_learnt):
    again = make_learnt(7)
    assert equal(again.state, learnt.state)
    assert equal(again.info, learnt.info)
    other = make_learnt(8).state
    assert not jnp.array_equal(other.arrays.values.cells.g, learnt.state.arrays.values.cells.g)


def test_a_second_buffer_compiles_nothing(learnt):
    with count_traces() as traced:  # those of the first are no test: others may have compiled it before
        jax.jit(lambda x: x + 1)(1)
    assert traced != []
    assert learnt.traced[1] == []


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


def test_bad_buffers_and_unknown_parts_are_named(lm, text, buffers, config):
    with pytest.raises(ValueError, match="records"):
        pipeline.make_buffer([], lm, text, config=config)
    silent = [buffers[0][0], buffers[0][1]._replace(output="")]
    with pytest.raises(ValueError, match="'yes-1' has none"):
        pipeline.make_buffer(silent, lm, text, config=config)
    with pytest.raises(TypeError, match="Did you mean 'memory'"):
        pipeline.init(jax.random.key(0), lm, config=config, memry=EXACT)


def other_user(rows):
    """Return records with the answers exchanged."""
    return [row._replace(output={"yes": "no", "no": "yes"}[row.output]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["identity", "autoencoder"])
def test_users_side_by_side_equal_users_one_by_one(lm, text, buffers, config, memory, codec):
    own = {"config": dataclasses.replace(config, codec=codec, code=8, start="examples"), "memory": memory}
    users = [[rows, other_user(rows)] for rows in buffers]  # block, user
    alone = []
    for user in range(2):
        state = pipeline.init(jax.random.fold_in(jax.random.key(9), user), lm, **own)
        for seed, block in enumerate(users):
            buffer = pipeline.make_buffer(block[user], lm, text, config=own["config"])
            state, info = pipeline.observe(jax.random.fold_in(jax.random.key(seed), user), state, buffer, lm, **own)
        alone.append((state, info))
    both = jax.vmap(lambda key: pipeline.init(key, lm, **own))(folded(9))
    for seed, block in enumerate(users):
        stacked = pipeline.stack_buffers([pipeline.make_buffer(rows, lm, text, config=own["config"]) for rows in block])
        both, infos = jax.vmap(lambda k, s, b: pipeline.observe(k, s, b, lm, **own))(folded(seed), both, stacked)
    for user, (state, info) in enumerate(alone):
        mine, said = jax.tree.map(lambda a, user=user: a[user], (both, infos))
        np.testing.assert_array_equal(said.clusters.assignment, info.clusters.assignment)
        np.testing.assert_array_equal(said.inserted.slots, info.inserted.slots)
        np.testing.assert_allclose(mine.store.prompts, state.store.prompts, atol=2e-4)
        np.testing.assert_allclose(said.tuned.losses, info.tuned.losses, rtol=1e-3)
    assert not jnp.allclose(alone[0][0].store.prompts, alone[1][0].store.prompts)


def folded(seed: int) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(2))


def test_a_full_store_refuses_with_an_error_and_traced_in_its_info(lm, text, buffers, learnt, config):
    buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)
    state = pipeline.State(learnt.state.store, pipeline.init(jax.random.key(0), lm, config=config).arrays)
    with pytest.raises(ValueError, match="leave room for 2 more prompts"):
        pipeline.observe(jax.random.key(1), state, buffer, lm, config=config)
    traced = jax.jit(lambda key, state, buffer, lm: pipeline.observe(key, state, buffer, lm, config=config))
    after, info = traced(jax.random.key(1), state, buffer, lm)
    assert bool(info.inserted.refused)
    assert equal(after.store, state.store)


@pytest.mark.slow
def test_a_codec_meets_the_same_shapes_however_full_the_store_is(lm, text, buffers, config):
    own = dataclasses.replace(config, codec="autoencoder", code=8)
    state, traced = pipeline.init(jax.random.key(0), lm, config=own), []
    for i, rows in enumerate(buffers):
        buffer = pipeline.make_buffer(rows, lm, text, config=own)
        with count_traces() as found:
            state, info = pipeline.observe(jax.random.key(i), state, buffer, lm, config=own)
        traced.append(found)
        assert bool(jnp.isfinite(info.codec.losses).all())
        assert float(info.codec.relative_error) < 1.0
    assert traced[1] == []


def test_rows_that_were_tuned_before_are_stored_as_if_tuned_now(lm, text, buffers, config, memory):
    """Whatever they are found by, coded and held in: what is left to `observe` is the same to the last bit."""
    options = {"perturb": pipeline.presets["bundled"].changed(noise="value").parts(devices.get("FeFET3"))["perturb"]}
    buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)
    tuned = pipeline.tune_rows(jax.random.key(1), buffer, lm, config=config, **options)
    for change in ({}, {"keys": "centroid", "key_centre": True}, {"codec": "autoencoder", "code": 8}):
        own: Any = {"config": config.changed(**change), "memory": memory} | options
        state = pipeline.init(jax.random.key(0), lm, **own)
        with count_traces() as traced:
            again = pipeline.tune_rows(jax.random.key(1), buffer, lm, **own)
        assert traced == []  # the rest of the options is not looked at
        assert equal(again, tuned)
        after, info = pipeline.observe(jax.random.key(1), state, buffer, lm, tuned=tuned, **own)
        truth, found = pipeline.observe(jax.random.key(1), state, buffer, lm, **own)
        np.testing.assert_allclose(after.store.prompts, truth.store.prompts, atol=1e-6)
        assert equal(info.inserted, found.inserted)
        assert equal(info.tuned, tuned.info)
        np.testing.assert_allclose(info.tuned.losses, found.tuned.losses, rtol=1e-5)
    wrong = tuned._replace(rows=tuned.rows[:, :1])
    with pytest.raises(ValueError, match=r"`tuned\.rows` must have shape"):
        pipeline.observe(jax.random.key(1), state, buffer, lm, tuned=wrong, **own)


def test_what_an_anchored_prompt_is_held_to_counts_while_it_is_tuned(config):
    anchored = config.changed(keys="anchored", key_tokens=3)
    assert (anchored.for_tuning().keys, anchored.for_tuning().key_tokens) == ("anchored", 3)
    assert config.changed(keys="centroid", key_tokens=3).for_tuning() == config.for_tuning()
    for other in ({"num_virtual": 5}, {"train_on": "buffer"}, {"start": "vocabulary"}, {"tuning": {"num_steps": 9}}):
        assert config.changed(**other).for_tuning() != config.for_tuning()


def test_texts_that_differ_late_are_told_apart(lm, text, config):
    alike = "pay " * 50
    queries = pipeline.make_queries([alike + "card", alike + "bank"], lm, text, config=config)
    ids = np.asarray(queries.ids)
    assert (ids[0] != ids[1]).sum() == 1
    assert queries.mask.sum(axis=1).tolist() == [53, 53]  # start, 51 words, the sign before the answer


def test_tables_of_examples_have_few_sizes_and_little_padding() -> None:
    rooms = [room(longest) for longest in range(1, 4097)]
    assert rooms[:17] == [16] * 16 + [24]
    assert all(size >= longest for longest, size in enumerate(rooms, 1))
    assert all(size - longest < max(16, longest / 8 + 1) for longest, size in enumerate(rooms, 1))
    assert len(set(rooms)) == 15 + 8 * 5  # up to 128 every eight from 16 on, then eight an octave
