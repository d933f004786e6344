"""The store: whose slot is taken, how much room it takes, and what lies in which column."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small import filled_store

from nvcim_jax import crossbar, pipeline, selection
from nvcim_jax.pipeline.store import empty_store, insert

WIDTH = 32


def numbered(start: int, num: int) -> tuple[jax.Array, jax.Array]:
    """Return prompts and features whose every entry is their number, from `start`."""
    numbers = jnp.arange(start, start + num, dtype=jnp.float32)[:, None, None]
    return jnp.broadcast_to(numbers, (num, 2, WIDTH)), jnp.broadcast_to(numbers, (num, 1, WIDTH))


def held(store: pipeline.Store) -> list[int]:
    return [int(p[0, 0]) for p in store.prompts]


@pytest.fixture(scope="module")
def empty(lm, config):
    return empty_store((config.num_virtual, WIDTH), config)


def test_empty_slots_are_filled_in_order_then_it_refuses(empty, config):
    store, first = insert(empty, *numbered(1, 3), config=config)
    assert held(store) == [1, 2, 3, 0]
    assert (first.slots.tolist(), first.replaced.tolist()) == ([0, 1, 2], [False] * 3)
    assert store.block.tolist() == [0, 0, 0, -1]
    with pytest.raises(ValueError, match=r"2 more prompts, but 4 slots leave 1 empty\. .*when_full"):
        insert(store, *numbered(4, 2), config=config)
    store, _ = insert(store, *numbered(4, 1), config=config)
    assert held(store) == [1, 2, 3, 4]
    assert (store.born.tolist(), store.block.tolist()) == ([0, 1, 2, 3], [0, 0, 0, 1])


def test_the_oldest_go_first(empty, config):
    config = dataclasses.replace(config, when_full="oldest")
    store = empty
    for start in (1, 4, 7):
        store, last = insert(store, *numbered(start, 3), config=config)
    # 1 2 3 0 -> 5 6 3 4 -> 4 came third of the second call, so 3 is the oldest, then 4
    assert sorted(held(store)) == [6, 7, 8, 9]
    assert last.replaced.all()
    assert store.born[jnp.argsort(store.prompts[:, 0, 0])].tolist() == [5, 6, 7, 8]
    with pytest.raises(ValueError, match="room for 5"):
        insert(store, *numbered(1, 5), config=config)


def test_the_least_used_go_first_and_of_them_the_oldest(empty, config):
    config = dataclasses.replace(config, when_full="least_used")
    store, _ = insert(empty, *numbered(1, 4), config=config)
    store = store._replace(uses=jnp.array([5, 0, 0, 1], jnp.int32))
    store, put = insert(store, *numbered(5, 1), config=config)
    assert held(store) == [1, 5, 3, 4]
    assert store.uses.tolist() == [5, 0, 0, 1]
    store, put = insert(store, *numbered(6, 3), config=config)
    assert put.slots.tolist() == [2, 1, 3]
    assert held(store) == [1, 7, 6, 8]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"keys": "prompt", "key_unit": False},
        {"search": selection.SearchConfig(storage="apart")},
        {"key_tokens": 2},
        {"codec": "autoencoder", "code": 12, "capacity": 40},
    ],
)
def test_capacity_is_the_crossbars_report_of_both_matrices(lm, config, arrays, change):
    config = dataclasses.replace(config, **change)
    if "key_tokens" in change:
        arrays = crossbar.Config(rows=32, cols=16, mapping="offset", weight_bits=8, cell_bits=2)
    store = pipeline.init(jax.random.key(0), lm, config=config).store
    exact = pipeline.matrices(store, config=config)
    assert (exact.keys is None) == config.shares_arrays == (change.get("keys") == "prompt")
    values = crossbar.report(exact.values.shape, arrays)
    keys = None if exact.keys is None else crossbar.report(exact.keys.shape, arrays)
    found = pipeline.capacity(lm.config, config, arrays)
    assert found.prompts == config.capacity
    assert found.value_arrays == values.num_arrays
    assert found.key_arrays == (0 if keys is None else keys.num_arrays)
    assert found.cells == values.num_cells_used + (0 if keys is None else keys.num_cells_used)


def test_the_search_shares_cells_only_where_key_and_prompt_are_the_same_numbers(lm, config):
    same = dataclasses.replace(config, keys="prompt", key_unit=False)
    assert same.shares_arrays
    store = filled_store(lm, same, num=4)
    exact = pipeline.matrices(store, config=same)
    assert exact.keys is None
    for change in (
        {"keys": "representative"},
        {"key_unit": True},
        {"key_tokens": 1},
        {"search": selection.SearchConfig(measure="cosine")},
        {"search": selection.SearchConfig(storage="apart")},
    ):
        other = dataclasses.replace(same, **change)
        assert not other.shares_arrays
        if other.keys != "representative":
            keys = pipeline.matrices(store, config=other).keys
            assert keys.shape != exact.values.shape or not jnp.allclose(keys, exact.values)


def test_a_store_that_grows_keeps_the_conductances_of_its_old_columns(empty, config, memory):
    prompts = jax.random.normal(jax.random.key(0), (4, 2, WIDTH))
    features = jax.random.normal(jax.random.key(1), (4, 1, WIDTH))
    half, _ = insert(empty, prompts[:2], features[:2], config=config)
    full, _ = insert(half, 9.0 * prompts[2:], 9.0 * features[2:], config=config)
    before, after = (pipeline.program_store(jax.random.key(5), s, memory, config=config) for s in (half, full))
    for name in ("values", "keys"):
        old, new = getattr(before, name).cells.g, getattr(after, name).cells.g
        np.testing.assert_array_equal(old[..., :2], new[..., :2])
        assert not jnp.array_equal(old[..., 2:], new[..., 2:])


def test_an_option_without_sense_is_named(config):
    for change, message in (
        ({"keys": "promt"}, "Did you mean 'prompt'"),
        ({"when_full": "newest"}, "when_full"),
        ({"keys": "contrastive"}, "codec"),
        ({"capacity": 0}, "capacity"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **change)
    with pytest.raises(TypeError, match="Did you mean 'capacity'"):
        pipeline.Config(capacit=3)  # type: ignore[call-arg]
