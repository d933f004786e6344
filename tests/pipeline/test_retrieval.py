"""Search and read-back in the memory: the digital scores within rounding, every kind of key, every layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small import filled_store

from nvcim_jax import crossbar, devices, models, pipeline, selection
from nvcim_jax.pipeline.retrieval import key_matrix, value_matrix
from nvcim_jax.pipeline.store import insert
from nvcim_jax.pipeline.text import answer_ids, pad_rows, text_features
from nvcim_jax.tuning.starts import assign_examples

WIDTH, SLOTS, FILLED = 32, 4, 3
EXACT = pipeline.exact_memory()


def queries(config, num: int = 5) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (num, config.search_tokens, WIDTH))


SEARCHES = [
    {"search": selection.SearchConfig(measure=measure, axis=axis, storage=storage, scales=scales), **other}
    for measure, axis, storage, scales, other in (
        ("mips", "features", "shared", (1, 2, 4), {}),
        ("cosine", "features", "shared", (1, 2, 4), {"key_unit": False}),
        ("ssa", "features", "shared", (1, 2, 4), {"keys": "prompt", "key_unit": False}),
        ("ssa", "features", "apart", (1, 2, 4), {}),
        ("ssa", "tokens", "apart", (1, 2), {"keys": "prompt"}),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("change", SEARCHES)
def test_search_on_ideal_arrays_is_the_digital_search_within_rounding(lm, config, arrays, change):
    bits = 10
    arrays = dataclasses.replace(arrays, weight_bits=bits)
    config = dataclasses.replace(config, **change)
    store, x = filled_store(lm, config), queries(config)
    exact = pipeline.program_store(jax.random.key(3), store, EXACT, config=config)
    digital = pipeline.search(jax.random.key(4), x, store, exact, EXACT, config=config)
    ideal = pipeline.crossbar_memory(devices.get("ideal"), arrays)
    chip = pipeline.program_store(jax.random.key(3), store, ideal, config=config)
    found = pipeline.search(jax.random.key(4), x, store, chip, ideal, config=config)
    assert bool((found[:, FILLED:] == -jnp.inf).all())
    assert bool((digital[:, FILLED:] == -jnp.inf).all())
    # every stored value is off by at most half a step of its column, 1 / (2 (2^(bits-1) - 1)) of the largest
    half_step = 0.5 / (2 ** (bits - 1) - 1) * jnp.abs(key_matrix(store, config=config)).max(axis=0)
    codes = jax.vmap(lambda f: f / jnp.linalg.norm(f))(x) if config.key_unit else x
    weights = store.scale_weights
    rows = jax.vmap(lambda c: selection.query_vector(c, weights, config=config.search))(codes)
    np.testing.assert_allclose(
        digital[:, :FILLED], rows @ key_matrix(store, config=config)[:, :FILLED], rtol=1e-4, atol=1e-5
    )
    bound = jnp.abs(rows).sum(axis=1, keepdims=True) * half_step[None, :] * 1.01
    assert bool((jnp.abs(found - digital) <= bound)[:, :FILLED].all())
    assert float(jnp.abs(found - digital)[:, :FILLED].max()) > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["features", "tokens"])
def test_both_storages_score_the_same_without_noise(lm, config, axis):
    found = []
    for storage in ("shared", "apart"):
        search = selection.SearchConfig(axis=axis, storage=storage)
        options = dataclasses.replace(config, key_tokens=4, search=search)
        store, x = filled_store(lm, options), queries(options)
        arrays = pipeline.program_store(jax.random.key(3), store, EXACT, config=options)
        found.append(pipeline.search(jax.random.key(4), x, store, arrays, EXACT, config=options)[:, :FILLED])
        assert len(arrays.keys) == (4 * WIDTH if storage == "shared" else 7 * WIDTH)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_unit_keys_make_scores_blind_to_length(lm, config):
    store, x = filled_store(lm, config), queries(config)
    longer = store._replace(features=7.0 * store.features)

    def scores(options, store, x):
        arrays = pipeline.program_store(jax.random.key(3), store, EXACT, config=options)
        return pipeline.search(jax.random.key(4), x, store, arrays, EXACT, config=options)[:, :FILLED]

    np.testing.assert_allclose(scores(config, longer, 3.0 * x), scores(config, store, x), rtol=1e-4)
    raw = dataclasses.replace(config, key_unit=False)
    np.testing.assert_allclose(scores(raw, longer, 3.0 * x), 21.0 * scores(raw, store, x), rtol=1e-4)


def test_read_prompts_are_the_stored_ones_within_rounding(lm, config, arrays):
    store, ideal = filled_store(lm, config), pipeline.crossbar_memory(devices.get("ideal"), arrays)
    chips = pipeline.program_store(jax.random.key(3), store, ideal, config=config)
    read = pipeline.read_prompts(jax.random.key(4), store, chips, ideal)
    half_step = 0.5 / 7 * jnp.abs(store.prompts).max(axis=(1, 2), keepdims=True) * 1.001
    assert bool((jnp.abs(read - store.prompts) <= half_step).all())
    np.testing.assert_allclose(crossbar.read_back(jax.random.key(5), chips.values).T,
                               read.reshape(SLOTS, -1), rtol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(read[FILLED:], 0.0)


def test_a_wrong_number_of_key_tokens_is_named(lm, config):
    store = filled_store(lm, config)
    arrays = pipeline.program_store(jax.random.key(3), store, EXACT, config=config)
    with pytest.raises(ValueError, match="features"):
        pipeline.search(jax.random.key(4), jnp.zeros((2, 3, WIDTH)), store, arrays, EXACT, config=config)


def test_clipped_keys_lose_less_to_noise(lm, config, memory):
    config = dataclasses.replace(config, key_clip=1.5, key_unit=False)
    free = dataclasses.replace(config, key_clip=None)
    store = filled_store(lm, config)
    # keys with a few entries far larger than the rest, as the embeddings of rare words have
    large = jnp.where(jnp.arange(WIDTH) < 2, 8.0, 1.0)
    store = store._replace(features=store.features * large[None, None, :])
    plain, clipped = (key_matrix(store, config=c) for c in (free, config))
    size = jnp.sqrt(jnp.square(plain).mean(axis=0, keepdims=True))
    np.testing.assert_allclose(clipped, jnp.clip(plain, -1.5 * size, 1.5 * size), rtol=1e-6)

    def noise(c) -> float:
        """Return the noise of scores over chips, relative to the spread of the scores over keys."""

        def chip(key):
            program_key, read_key = jax.random.split(key)
            arrays = pipeline.program_store(program_key, store, memory, config=c)
            return pipeline.search(read_key, queries(c), store, arrays, memory, config=c)[:, :FILLED]

        scores = jax.lax.map(chip, jax.random.split(jax.random.key(7), 200))
        return float(scores.std(axis=0).mean() / scores.mean(axis=0).std(axis=1).mean())

    assert noise(config) < 0.8 * noise(free)
    assert not config.shares_arrays
    with pytest.raises(ValueError, match="key_clip"):
        dataclasses.replace(config, key_clip=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"keys": "prompt"}, {"codec": "autoencoder"}])
def test_centred_keys_are_relative_to_what_is_stored(lm, config, change):
    config = dataclasses.replace(config, key_centre=True, search=selection.SearchConfig(measure="mips"), **change)
    store, x = filled_store(lm, config), queries(config)
    if "codec" in change:
        store = store._replace(codec=selection.codec_init(jax.random.key(5), WIDTH, code=8))
    assert not config.shares_arrays
    encode = lambda a: np.asarray(selection.encode(store.codec, a), np.float64)  # noqa: E731
    tokens, asked, seen = (
        encode(a) for a in (store.prompts if "keys" in change else store.features, x, store.features[:FILLED])
    )
    keys = (tokens[:FILLED] - tokens[:FILLED].mean(axis=0)).reshape(FILLED, -1)
    rows = (asked - seen.mean(axis=0)).reshape(len(asked), -1)
    cosine = (rows / np.linalg.norm(rows, axis=1)[:, None]) @ (keys / np.linalg.norm(keys, axis=1)[:, None]).T
    arrays = pipeline.program_store(jax.random.key(3), store, EXACT, config=config)
    found = pipeline.search(jax.random.key(4), x, store, arrays, EXACT, config=config)
    np.testing.assert_allclose(found[:, :FILLED], cosine, atol=1e-5)
    # a calibration scores the empty slots too, and moves no query by it
    whole = pipeline.search(jax.random.key(4), x, store, arrays, EXACT, config=config, every=True)
    np.testing.assert_array_equal(whole[:, :FILLED], found[:, :FILLED])
    np.testing.assert_array_equal(whole[:, FILLED:], 0.0)
    np.testing.assert_array_equal(key_matrix(store, config=config)[:, FILLED:], 0.0)


def test_what_all_texts_share_changes_no_centred_score_and_costs_plain_keys_their_room(lm, config, memory):
    centred = dataclasses.replace(config, key_centre=True)
    store, x = filled_store(lm, config), queries(config)
    shared = 6.0 * jax.random.normal(jax.random.key(9), (1, 1, WIDTH))
    moved = store._replace(features=jnp.where(store.filled[:, None, None], store.features + shared, 0.0))

    def scores(key, options, store, x, memory):
        arrays = pipeline.program_store(key, store, memory, config=options)
        return pipeline.search(key, x, store, arrays, memory, config=options)[:, :FILLED]

    exact = scores(jax.random.key(3), centred, store, x, EXACT)
    np.testing.assert_allclose(scores(jax.random.key(3), centred, moved, x + shared, EXACT), exact, atol=1e-5)

    def found(options) -> float:
        """Return how often the exact choice among centred keys is found on chips."""
        chip = lambda key: scores(key, options, moved, x + shared, memory).argmax(axis=1)  # noqa: E731
        return float((jax.lax.map(chip, jax.random.split(jax.random.key(7), 100)) == exact.argmax(axis=1)[None]).mean())

    assert found(centred) > 0.7
    assert found(config) < found(centred) - 0.2


def test_one_stored_prompt_is_found_though_its_centred_key_is_zero(lm, config, arrays):
    config = dataclasses.replace(config, key_centre=True, num_prompts=1)
    empty = pipeline.init(jax.random.key(0), lm, config=config).store
    store, _ = insert(empty, jnp.ones((1, 2, WIDTH)), jnp.ones((1, 1, WIDTH)), config=config)
    for memory in (EXACT, pipeline.crossbar_memory(devices.get("ideal"), arrays)):
        held = pipeline.program_store(jax.random.key(3), store, memory, config=config)
        prompts, found = pipeline.retrieve(jax.random.key(4), queries(config), store, held, memory, config=config)
        np.testing.assert_array_equal(found.slots, 0)
        assert bool(jnp.isfinite(prompts).all())


def test_records_are_clustered_by_input_or_by_input_and_answer(lm, text, buffers, config):
    rows = [row._replace(output=("yes", "no")[i % 2]) for i, row in enumerate(buffers[0])]
    config = dataclasses.replace(config, cluster_by="record")
    by_input, by_record = (
        pipeline.make_buffer(rows, lm, text, config=dataclasses.replace(config, cluster_by=by)).centres
        for by in ("input", "record")
    )
    halves = np.split(np.asarray(by_record), 2, axis=1)
    np.testing.assert_allclose(
        halves[0], by_input / np.linalg.norm(by_input, axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    for i, row in enumerate(rows):
        answer = text_features(lm, *pad_rows([answer_ids(row.output, text)]), config=config, num=1)[0, 0]
        np.testing.assert_allclose(halves[1][i], answer / jnp.linalg.norm(answer), rtol=1e-4, atol=1e-6)
    state = pipeline.init(jax.random.key(0), lm, config=config)
    buffer = pipeline.make_buffer(rows, lm, text, config=config)
    _, info = pipeline.observe(jax.random.key(1), state, buffer, lm, config=config)
    of_yes = np.asarray(info.clusters.assignment)[::2]
    assert len(set(of_yes)) == 1
    assert set(of_yes) & set(np.asarray(info.clusters.assignment)[1::2]) == set()


@pytest.mark.slow
def test_prompts_start_from_the_examples_that_they_are_tuned_on(lm, text, buffers, config):
    config = dataclasses.replace(config, start="examples")
    buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)
    weights = jnp.zeros((2, len(buffers[0]))).at[0, 0].set(1.0).at[1, :].set(1.0)
    found = [config.adapter().init(jax.random.key(0), lm, buffer.examples, own) for own in weights]
    for i, start in enumerate(found):
        own = [j for j in range(len(buffers[0])) if weights[i, j] > 0]
        for token, row in zip(
            start, assign_examples(jnp.zeros(len(own), jnp.int32), jnp.ones(len(own), bool), 2), strict=True
        ):
            held = [own[j] for j in range(len(own)) if row[j]]
            words, answers = (
                sum(models.embed(lm, jnp.asarray(ids)).sum(axis=0) for ids in texts)
                for texts in (
                    [text.encode(buffers[0][j].input) for j in held],
                    [answer_ids(buffers[0][j].output, text) for j in held],
                )
            )
            truth = models.soft_tokens(words, answers, layout=lm.soft_tokens, size=buffer.examples.words.size)
            np.testing.assert_allclose(token, truth, rtol=1e-4, atol=1e-6)
    assert not jnp.allclose(found[0], found[1])


@pytest.mark.parametrize("change", [{"num_virtual": 10**11}, {"capacity": 10**11}])
def test_a_slip_of_the_finger_is_named(config, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(config, **change)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompt", "anchored", "contrastive", "representative", "centroid"])
def test_every_kind_of_key_takes_in_a_buffer_and_answers(lm, text, buffers, config, kind):
    codec = "identity" if kind in ("prompt", "anchored") else "autoencoder"
    config = dataclasses.replace(config, keys=kind, codec=codec, code=8)
    state, buffer = (
        pipeline.init(jax.random.key(0), lm, config=config),
        pipeline.make_buffer(buffers[0], lm, text, config=config),
    )
    state, info = pipeline.observe(jax.random.key(1), state, buffer, lm, config=config)
    assert state.store.features.shape == (4, 1 if kind in ("representative", "centroid") else 2, 32)
    assert (info.codec is None) == (codec == "identity")
    keys = key_matrix(state.store, config=config)
    if kind == "representative":
        # the key is the representative's own text: it finds itself, whatever the prompt has become
        texts = [buffers[0][int(i)].input for i in info.representatives]
        _, found = pipeline.answer(jax.random.key(2), state, texts, lm, text, config=config, labels=["yes", "no"])
        np.testing.assert_array_equal(found.found.slots, info.inserted.slots)
    elif kind == "centroid":
        # the key is the mean of its cluster's texts
        features = pipeline.make_buffer(buffers[0], lm, text, config=config).features
        for i, slot in enumerate(info.inserted.slots):
            truth = features[info.clusters.assignment == i].mean(axis=0)
            np.testing.assert_allclose(state.store.features[slot], truth, rtol=1e-5, atol=1e-6)
    elif codec == "identity":
        norm = jnp.linalg.norm(value_matrix(state.store), axis=0)
        np.testing.assert_allclose(keys * norm[None], value_matrix(state.store), rtol=1e-4, atol=1e-6)
    if kind == "contrastive":
        assert info.codec.hit_rate is not None
    if kind == "anchored":
        pooled = pipeline.make_buffer(buffers[0], lm, text, config=config).features[info.representatives]
        assert float(jnp.abs(state.store.prompts[:2] - pooled).max()) < 4 * 1e-2 + 1e-5  # 4 steps of at most 1e-2


@pytest.mark.parametrize("labels", [["yes", "polish", "Polish"], ["yes", "polish", "polish"]])
def test_labels_of_the_same_tokens_are_named(lm, labels):
    text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
    found = f"`labels` must have tokens of their own each, but 'polish' and {labels[2]!r} have the same"
    with pytest.raises(ValueError, match=found):
        pipeline.make_queries(["pay"], lm, text, labels=labels)


def test_a_text_without_tokens_is_named(lm):
    text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
    bare = text.replace(template=dataclasses.replace(text.template, prefix="", suffix=""))
    with pytest.raises(ValueError, match=r"`texts` must have at least one token with what .* but hold ''"):
        pipeline.make_queries(["pay", ""], lm, bare)
    assert bool(pipeline.make_queries(["pay", ""], lm, text).mask[1].any())
