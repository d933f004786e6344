"""Windows of blocks with exits: against full-depth tuning, what runs and what does not, and votes."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from nvcim_jax import devices, models, ops, tuning
from nvcim_jax.tuning.span import cut_state, window_lm
from nvcim_jax.tuning.windows import Windows, window_loss

CONFIG = models.Config(
    vocab_size=64, width=32, num_layers=4, num_heads=4, num_kv_heads=2, mlp_width=48, eos_ids=(2,), max_tokens=64
)
LEARNED = dataclasses.replace(CONFIG, family="gpt2", positions="learned", norm="layer", gated=False, num_kv_heads=4)
SLIDING = dataclasses.replace(CONFIG, window=2, sliding=(True, False, True, True), norm_offset=True)
ADAPTERS = {
    "lora": tuning.lora(2),
    "dora": tuning.lora(2, targets=("o", "up"), dora=True),
    "ia3": tuning.ia3(),
    "prefix": tuning.prefix(3),
}
OPTIONS = tuning.WindowOptions(num_steps=8)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def batch() -> tuning.Examples:
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10, 11]], [[8, 2], [9, 2], [12, 13, 2]])


@pytest.fixture(scope="module")
def windows(lm, batch) -> Windows:
    options = tuning.WindowOptions(num_steps=8, gain=True)
    return tuning.tune_windows(a_key(), lm, batch, adapter=ADAPTERS["lora"], window=2, options=options)[0]


def a_key() -> jax.Array:
    return jax.random.key(3)


def far(adapter: tuning.Adapter, lm: models.LM, batch: tuning.Examples) -> jax.Array:
    """Return a state in which every array counts."""
    state = adapter.init(jax.random.key(1), lm, batch, None)
    return state + 0.1 * jax.random.normal(jax.random.key(2), state.shape)


@partial(jax.jit, static_argnames=("how", "exits"))
def voted(windows: Windows, lm: models.LM, x: jax.Array, how: str = "max", exits: tuple[int, ...] | None = None):
    return tuning.vote(windows, lm, x, how=how, exits=exits)


def truncated(lm: models.LM, start: int, stop: int) -> models.LM:
    """Return a copy of some blocks, cut out in earnest."""
    layers = {name: a[start:stop] for name, a in lm.params["layers"].items()}
    sliding = lm.config.sliding[start:stop]
    return lm.replace(
        params={**lm.params, "layers": layers},
        config=dataclasses.replace(lm.config, num_layers=stop - start, sliding=sliding),
    )


@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("lora", CONFIG, id="llama"),
        pytest.param("dora", LEARNED, id="gpt2", marks=pytest.mark.slow),
        pytest.param("ia3", SLIDING, id="sliding", marks=pytest.mark.slow),
    ],
)
def test_a_window_is_full_depth_tuning_restricted_to_it(batch, name, config) -> None:
    """With no change outside blocks 2 and 3, the loss at the exit behind 3, and its slope in 2 and 3."""
    lm, adapter = models.init(jax.random.key(0), config=config, scale=0.3), ADAPTERS[name]
    options, whole = adapter.details[0], far(adapter, lm, batch)
    none = options.parts(adapter.init(jax.random.key(1), lm, batch, None), config)
    inside = {n: jnp.zeros_like(a).at[2:].set(1.0) for n, a in none.items()}
    parts = {n: jnp.where(inside[n] > 0, a, none[n]) for n, a in options.parts(whole, config).items()}
    at_depth = lambda state: tuning.answer_loss(state, lm, batch, jnp.ones(3), adapter=adapter)  # noqa: E731
    wanted, slope = jax.jit(jax.value_and_grad(at_depth))(options.pack(parts, config))

    @jax.jit
    @jax.value_and_grad
    def at_exit(state: jax.Array) -> jax.Array:
        x = models.hidden(lm, models.embed(lm, batch.ids), stop=2)[0]
        return window_loss((state, None), window_lm(lm, 2, 2), x, batch, jnp.ones(3), adapter=adapter)

    found, own = at_exit(cut_state(adapter, options.pack(parts, config), lm, 2, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    truth = cut_state(adapter, slope, lm, 2, 2)
    np.testing.assert_allclose(own, truth, atol=1e-5)
    assert jnp.abs(truth).max() > 1e-3


@pytest.mark.parametrize("name", ["lora", pytest.param("prefix", marks=pytest.mark.slow)])
def test_one_window_of_all_blocks_is_tune(lm, batch, name) -> None:
    adapter, noise = ADAPTERS[name], Partial(devices.value_noise, device=devices.get("FeFET6", sigma=0.1))
    options = tuning.WindowOptions(num_steps=6, batch=2, noise_rise=0.5)
    given = {"adapter": adapter, "perturb": noise, "project": tuning.bounded(2.0)}
    found, info = tuning.tune_windows(a_key(), lm, batch, window=4, options=options, **given)
    init, _, key = jax.random.split(a_key(), 3)
    start = adapter.init(init, lm, batch, jnp.ones(3))
    wanted, told = tuning.tune(key, start, lm, batch, options=options.of(6), **given)
    np.testing.assert_allclose(info.losses, told.losses, rtol=1e-5)
    np.testing.assert_allclose(found.tuned, wanted, atol=1e-4)
    x = models.embed(lm, batch.ids)
    logits, _ = jax.jit(tuning.vote)(found, lm, x)
    adapted, inputs = adapter.apply(found.tuned, lm, models.Inputs(x))
    np.testing.assert_allclose(logits, jax.nn.log_softmax(models.forward(adapted, inputs)[0]), atol=1e-4)


@pytest.mark.slow
def test_streams_that_are_stored_and_the_order_of_windows_change_nothing(lm, batch) -> None:
    given = {"adapter": ADAPTERS["lora"], "window": 2}
    wanted, info = tuning.tune_windows(a_key(), lm, batch, options=OPTIONS, **given)
    for schedule in ("blocks", "random"):
        found, told = tuning.tune_windows(a_key(), lm, batch, options=OPTIONS, schedule=schedule, **given)
        np.testing.assert_allclose(found.tuned, wanted.tuned, atol=1e-6)
        for w in range(2):
            np.testing.assert_allclose(told.losses[told.window == w], info.losses[info.window == w], rtol=1e-6)
        assert told.window.tolist() != info.window.tolist()
    again = dataclasses.replace(OPTIONS, stored=False, batch=2)
    drawn, told = tuning.tune_windows(a_key(), lm, batch, options=again, **given)
    stored, info = tuning.tune_windows(a_key(), lm, batch, options=dataclasses.replace(again, stored=True), **given)
    np.testing.assert_allclose(drawn.tuned, stored.tuned, atol=1e-4)
    np.testing.assert_allclose(told.losses, info.losses, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["blocks", "cyclic", "random"])
def test_each_window_has_its_share_of_the_updates(lm, batch, schedule) -> None:
    options = tuning.WindowOptions(num_steps=5)
    _, info = tuning.tune_windows(
        a_key(), lm, batch, adapter=ADAPTERS["ia3"], window=2, schedule=schedule, options=options
    )
    assert sorted(np.bincount(info.window)) == [2, 3]
    assert bool((info.losses > 0).all())


def test_a_window_that_is_never_named_stays_as_it_was(lm, batch) -> None:
    given = {"adapter": ADAPTERS["ia3"], "window": 2, "options": tuning.WindowOptions(num_steps=4)}
    top, info = tuning.tune_windows(a_key(), lm, batch, schedule=[1] * 4, **given)
    both, told = tuning.tune_windows(a_key(), lm, batch, schedule=[0, 1, 1, 0], **given)
    parts, wanted = (ADAPTERS["ia3"].parts(w.tuned, lm)["down"] for w in (top, both))
    np.testing.assert_array_equal(parts[:2], jnp.ones((2, 48)))
    assert jnp.abs(parts[2:] - 1.0).max() > 1e-3
    assert jnp.abs(wanted[:2] - 1.0).max() > 1e-3
    assert (info.window.tolist(), told.window.tolist()) == ([1] * 4, [0, 1, 1, 0])


def test_only_the_gains_that_are_asked_for_are_tuned(lm, batch, windows) -> None:
    assert jnp.abs(windows.gains - 1.0).max() > 1e-3
    plain, _ = tuning.tune_windows(a_key(), lm, batch, adapter=ADAPTERS["lora"], window=2, options=OPTIONS)
    np.testing.assert_array_equal(plain.gains, jnp.ones((2, 32)))


@pytest.mark.slow
def test_a_vote_of_one_exit_is_that_exit(lm, windows) -> None:
    x, adapter = models.embed(lm, jnp.array([[1, 9, 10], [1, 7, 5]])), ADAPTERS["lora"]
    for w in range(2):
        below, _ = models.hidden(lm, x, stop=2 * w)
        blocks = truncated(lm, 2 * w, 2 * w + 2)
        blocks = blocks.replace(params={**blocks.params, "final_norm": lm.params["final_norm"] * windows.gains[w]})
        adapted, _ = adapter.apply(cut_state(adapter, windows.tuned, lm, 2 * w, 2), blocks, models.Inputs(below))
        truth = jax.nn.log_softmax(models.forward(adapted, below)[0])
        for how in ("last", "max", "mean"):
            found, info = voted(windows, lm, x, how=how, exits=(w,))
            np.testing.assert_allclose(found, truth, atol=2e-5)
        np.testing.assert_allclose(info.confidence[0], jnp.exp(truth).max(-1), rtol=1e-4)
        np.testing.assert_array_equal(info.token[0], truth.argmax(-1))


@pytest.mark.slow
def test_votes_against_numpy(lm, windows) -> None:
    x = models.embed(lm, jnp.array([[1, 9, 10], [1, 7, 5]]))
    each = np.stack([np.exp(np.float64(voted(windows, lm, x, exits=(w,))[0])) for w in range(2)])
    truth = {"max": each.max(0), "mean": each.mean(0), "last": each[1]}
    for how, wanted in truth.items():
        found, _ = voted(windows, lm, x, how=how)
        np.testing.assert_allclose(np.exp(found), wanted / wanted.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7)
    surest = each.max(-1).argmax(0)
    chosen = np.take_along_axis(each.argmax(-1), surest[None], axis=0)[0]
    every, _ = voted(windows, lm, x)
    np.testing.assert_array_equal(every.argmax(-1), chosen)
    at = jnp.array([[2], [0]])
    some, _ = jax.jit(lambda at: tuning.vote(windows, lm, x, at=at))(at)
    np.testing.assert_allclose(some[:, 0], every[jnp.arange(2), at[:, 0]], atol=1e-5)
    shares = jnp.array([0.3, 0.7])[:, None, None, None]
    own = jax.jit(lambda: tuning.vote(windows, lm, x, how=lambda voices: (shares * voices).sum(axis=0))[0])()
    pooled = each[0] ** 0.3 * each[1] ** 0.7
    np.testing.assert_allclose(np.exp(own), pooled / pooled.sum(-1, keepdims=True), rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix"])
def test_answers_are_ranked_and_written_by_vote(lm, batch, name) -> None:
    """One window of all blocks says what the adapted model says, padding on either side included."""
    adapter = ADAPTERS[name]
    state = far(adapter, lm, batch)
    windows = Windows(adapter, state, jnp.ones((1, 32)))
    predict = lambda lm, x, at: tuning.vote(windows, lm, x, at=at)[0]  # noqa: E731
    ids = jnp.array([[0, 1, 9, 10], [1, 7, 5, 0]])
    given = models.Inputs(models.embed(lm, ids), jnp.array([[False, True, True, True], [True, True, True, False]]))
    adapted, inputs = adapter.apply(state, lm, given)
    answers = models.candidates([[7], [8, 9]], end=2)
    rank = jax.jit(lambda windows: models.rank(lm, given, answers, predict=predict))
    np.testing.assert_allclose(rank(windows), models.rank(adapted, inputs, answers), atol=1e-4)
    found = jax.jit(lambda: models.generate_tokens(a_key(), lm, given, max_new_tokens=4, predict=predict))()
    wanted = models.generate_tokens(a_key(), adapted, inputs, max_new_tokens=4)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_users_side_by_side_are_users_alone(lm, batch) -> None:
    counts = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    keys = jax.random.split(a_key(), 2)
    options = tuning.WindowOptions(num_steps=4)
    one = lambda key, w: tuning.tune_windows(  # noqa: E731
        key, lm, batch, w, adapter=ADAPTERS["lora"], window=2, schedule="random", options=options
    )
    both, _ = jax.vmap(one)(keys, counts)
    alone, _ = one(jax.random.split(a_key(), 2)[1], counts[1])
    np.testing.assert_allclose(both.tuned[1], alone.tuned, atol=1e-4)
    x = models.embed(lm, jnp.array([[1, 9, 10]]))
    votes, _ = jax.vmap(lambda w: tuning.vote(w, lm, x))(both)
    np.testing.assert_allclose(votes[1], voted(alone, lm, x)[0], atol=1e-3)


def packed(w: jax.Array) -> models.Packed:
    """Return codes of four bits, one scale for each output of 16 inputs."""
    groups = jnp.broadcast_to(jnp.arange(w.shape[1], dtype=jnp.int32) // 16, w.shape[:2])
    cut = w.reshape(w.shape[0], -1, 16, w.shape[2])
    scales = jnp.abs(cut).max(axis=2) / 7.0
    codes = jnp.round(w / jnp.repeat(scales, 16, axis=1)).astype(jnp.int8)
    return models.Packed(codes, scales, groups)


@pytest.mark.slow
def test_windows_around_packed_weights(lm, batch) -> None:
    layers = dict(lm.params["layers"])
    names = ("q", "v", "up", "down")
    codes = {name: packed(layers[name]) for name in names}
    dense = ops.understand(jax.vmap(lambda w: jnp.eye(w.shape[0]) @ w))
    floats = {name: dense(w) for name, w in codes.items()}
    found, wanted = (
        tuning.tune_windows(
            a_key(),
            lm.replace(params={**lm.params, "layers": {**layers, **changed}}),
            batch,
            adapter=ADAPTERS["lora"],
            window=2,
            options=OPTIONS,
        )[1]
        for changed in (codes, floats)
    )
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-3)


def flops(fn: Any, *given: Any) -> float:
    analysis = jax.jit(fn).lower(*given).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def block_by_block(lm, x, stop: int) -> Any:
    """Return the stream after some blocks; XLA counts a scan once, whatever its length."""
    for i in range(stop):
        x, _ = models.hidden(lm, x, start=i, stop=i + 1)
    return x


def cost_of_step(lm, batch, adapter, w: int, size: int) -> float:
    """Return the operations of the slope of one window's loss, the stream below computed in it."""

    def loss(state, lm, ids):
        x = jax.lax.stop_gradient(block_by_block(lm, models.embed(lm, ids), w * size))
        return window_loss((state, None), window_lm(lm, w * size, size), x, batch, jnp.ones(3), adapter=adapter)

    state = cut_state(adapter, adapter.init(a_key(), lm, batch, None), lm, w * size, size)
    return flops(jax.grad(loss), state, lm, batch.ids)


@pytest.mark.slow
def test_nothing_above_the_exit_runs_and_nothing_below_has_a_gradient(lm, batch) -> None:
    """By XLA's count of operations: a window further up costs one window's forward pass more, and no more."""
    adapter = ADAPTERS["lora"]
    steps = [cost_of_step(lm, batch, adapter, w, 1) for w in range(4)]
    stream = lambda ids, lm, stop: block_by_block(lm, models.embed(lm, ids), stop)  # noqa: E731
    below = [flops(partial(stream, stop=stop), batch.ids, lm) for stop in range(4)]
    np.testing.assert_allclose(np.diff(steps), np.diff(below), rtol=0.02)

    def whole(state, lm):
        adapted, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, batch.ids)))
        below = block_by_block(adapted, inputs.x, 3)
        states, _ = models.hidden(adapted, below, start=3, at=batch.where)
        return models.token_losses(models.head(adapted, states), batch.targets).sum()

    assert steps[0] < 0.35 * flops(jax.grad(whole), adapter.init(a_key(), lm, batch, None), lm)


@pytest.mark.slow
def test_the_memory_of_a_step_is_that_of_its_window() -> None:
    """By XLA's account of temporaries: half of the blocks take about half, wherever they lie."""
    lm = jax.eval_shape(lambda: models.init(a_key(), config=dataclasses.replace(CONFIG, num_layers=8)))
    lm = models.LM(lm.params, dataclasses.replace(CONFIG, num_layers=8))
    batch = jax.eval_shape(lambda: tuning.examples([[1] * 40] * 8, [[2, 3]] * 8))
    adapter = ADAPTERS["lora"]

    def temporaries(start: int, size: int) -> int:
        def loss(state, lm, batch):
            x = models.hidden(lm, models.embed(lm, batch.ids), stop=start)[0]
            return window_loss((state, None), window_lm(lm, start, size), x, batch, jnp.ones(8), adapter=adapter)

        config = dataclasses.replace(CONFIG, num_layers=size)
        state = jax.ShapeDtypeStruct(adapter.rows_shape(models.LM({}, config)), jnp.float32)
        analysis = jax.jit(jax.grad(loss)).lower(state, lm, batch).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    whole, low, high = temporaries(0, 8), temporaries(0, 4), temporaries(4, 4)
    assert low < 0.65 * whole
    assert high < 1.1 * low


def test_what_cannot_be_is_refused(lm, batch, windows) -> None:
    def tune(**given):
        return tuning.tune_windows(a_key(), lm, batch, **({"adapter": ADAPTERS["lora"], "window": 2} | given))

    x = models.embed(lm, jnp.array([[1, 9, 10]]))
    with pytest.raises(ValueError, match=r"`window` must divide the 4 blocks .*, but is 3. Use one of 1, 2, 4"):
        tune(window=3)
    with pytest.raises(ValueError, match=r"`schedule` must be one of blocks, cyclic, random, but is 'cycle'"):
        tune(schedule="cycle")
    with pytest.raises(ValueError, match=r"`schedule` must name a window for each of 8 updates, but names 2"):
        tune(schedule=[0, 1], options=OPTIONS)
    with pytest.raises(ValueError, match=r"`schedule` must be an integer of at least 0 and at most 1, but is 2"):
        tune(schedule=[2] * 8, options=OPTIONS)
    with pytest.raises(ValueError, match=r"`options.num_steps` must be an integer of at least 2, but is 1"):
        tune(options=tuning.WindowOptions(num_steps=1))
    with pytest.raises(ValueError, match=r"`adapter` must hold arrays for each block, but is `prompt`. Use lora"):
        tune(adapter=tuning.prompt(3))
    with pytest.raises(ValueError, match=r"`adapter` must hold arrays for each block, but is one of your own"):
        tune(adapter=tuning.frozen())
    with pytest.raises(TypeError, match=r"tune has no option `optimizer`. Did you mean 'optimiser'"):
        tune(optimizer=tuning.adam())
    with pytest.raises(ValueError, match=r"`how` must be one of last, max, mean, but is 'most'"):
        tuning.vote(windows, lm, x, how="most")
    with pytest.raises(ValueError, match=r"`exits` must be an integer of at least 0 and at most 1, but is 2"):
        tuning.vote(windows, lm, x, exits=(2,))
    with pytest.raises(ValueError, match=r"`exits` must name at least one exit"):
        tuning.vote(windows, lm, x, exits=())
    with pytest.raises(ValueError, match=r"`windows` must divide the 4 blocks of `lm`, but are 3"):
        tuning.vote(windows._replace(gains=jnp.ones((3, 32))), lm, x)
