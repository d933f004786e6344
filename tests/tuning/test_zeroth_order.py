"""Zeroth-order slopes: what they are on a quadratic, on adapters and on all weights; and the memory that they take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support.params import mostly_slow
from support.tracing import count_traces

from nvcim_jax import models, tuning
from nvcim_jax.ops import normal_at, understand
from nvcim_jax.tuning.shifted import Shifted, direction
from nvcim_jax.tuning.whole import Whole

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48, eos_ids=(2,))
CURVE = np.linspace(0.5, 2.0, 12).reshape(4, 3)
DRAWS = 40_000


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def batch() -> tuning.Examples:
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10]], [[8, 2], [9, 2], [12, 2]])


def quadratic(w: jax.Array, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return sum c (w - 1)^2 / 2: its slope is c (w - 1)."""
    del key, step
    value = (jnp.asarray(CURVE, jnp.float32) * jnp.square(w - 1.0)).sum() / 2
    return value, value


START = jnp.asarray(np.linspace(-1.0, 1.5, 12).reshape(4, 3), jnp.float32)
SLOPE = CURVE * (np.asarray(START, np.float64) - 1.0)


def slopes(gradient: Partial, num: int = DRAWS) -> np.ndarray:
    keys = jax.random.split(jax.random.key(3), num)
    one = lambda key: gradient(key, quadratic, START, jnp.int32(0))[0]  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Hold a mean of draws against the truth, within five standard errors."""
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found)) + 1e-6
    assert np.abs((found.mean(axis=0) - wanted) / error).max() < 5


def _kept(cutoff: float) -> np.ndarray:
    w = np.asarray(START, np.float64)
    return np.abs(w) <= cutoff * np.sqrt(np.square(w).mean())


UNBIASED = {
    "two-sided": (tuning.zeroth_order(1e-2), SLOPE),
    "forward": (tuning.zeroth_order(kind="forward"), SLOPE),
    "block-wise": (tuning.zeroth_order(1e-2, num_blocks=2), SLOPE),
    "forward, block-wise": (tuning.zeroth_order(kind="forward", num_blocks=4), SLOPE),
    "sparse": (tuning.zeroth_order(1e-2, cutoff=0.8), SLOPE * _kept(0.8)),
    "hybrid": (tuning.zeroth_order(1e-2, first_order=0.5), SLOPE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNBIASED)
def test_an_estimate_is_unbiased(name: str) -> None:
    gradient, wanted = UNBIASED[name]
    found = slopes(gradient)
    near(found, wanted)
    if name == "hybrid":  # the last half by a backward pass
        assert found[:, 2:].std(axis=0).max() < 1e-5
        assert found[:, :2].std(axis=0).min() > 0.1
    if name == "sparse":
        assert np.abs(found[:, ~_kept(0.8)]).max() == 0
    # g z of all entries: Var(g z_i) = |slope|^2 + slope_i^2, of a block |slope of the block|^2 + slope_i^2
    if name in ("two-sided", "forward", "block-wise"):
        size = np.square(SLOPE).sum()
        if name == "block-wise":
            size = np.repeat(np.square(SLOPE).reshape(2, -1).sum(axis=1), 2)[:, None]
        np.testing.assert_allclose(found.var(axis=0), size + np.square(SLOPE), rtol=0.06)


def test_the_sign_keeps_the_direction_alone() -> None:
    """E[sign(z . s) z] = sqrt(2 / pi) s / |s|."""
    found = slopes(tuning.zeroth_order(1e-2, kind="sign"))
    near(found, np.sqrt(2 / np.pi) * SLOPE / np.linalg.norm(SLOPE))


@pytest.mark.slow
def test_the_conservative_step_is_taken_where_it_helps() -> None:
    """On a quadratic w - rate g z is better than w just where rate z' C z < 2, and w + rate g z never is."""
    rate = 0.15
    plain, kept = (
        slopes(tuning.zeroth_order(1e-2, **how), 200) for how in ({}, {"kind": "conservative", "learning_rate": rate})
    )
    keys = jax.random.split(jax.random.key(3), 200)
    ks = jax.vmap(lambda key: jax.random.fold_in(jax.random.split(key)[0], 0))(keys)
    z = np.asarray(jax.vmap(lambda k: direction(k, START, None))(ks), np.float64)
    helps = rate * (CURVE * z * z).sum(axis=(1, 2)) < 2
    assert 0.1 < helps.mean() < 0.9
    np.testing.assert_allclose(kept, plain * helps[:, None, None], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_momentum_and_adam_are_those_of_optax(lm, batch) -> None:
    """An update is what Optax makes of g z."""
    adapter, gradient = tuning.lora(2), tuning.zeroth_order(1e-2)
    state = adapter.init(jax.random.key(1), lm, batch, None)
    for make in (_momentum, _adam):
        optimiser = Partial(make, jnp.float32(0.01))
        tuned, _ = tuning.tune(
            jax.random.key(2),
            state,
            lm,
            batch,
            adapter=adapter,
            options=tuning.Options(num_steps=2),
            optimiser=optimiser,
            gradient=gradient,
        )
        rule, w = make(0.01, 2), state
        memory = rule.init(w)
        loss = lambda s, key, step: (tuning.answer_loss(s, lm, batch, jnp.ones(3), adapter=adapter),) * 2  # noqa: E731
        for step in range(2):
            slope, _ = gradient(jax.random.fold_in(jax.random.key(2), step), loss, w, jnp.int32(step))
            change, memory = rule.update(slope, memory, w)
            w = optax.apply_updates(w, change)
        np.testing.assert_allclose(tuned, w, atol=1e-3 if make is _adam else 1e-4)


def _momentum(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.sgd(rate, momentum=0.9)


def _adam(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.adam(rate)


def _sgd(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.sgd(rate)


def _shift(w: jax.Array, limit: Any = None) -> Shifted:
    return Shifted(w, jax.random.key(4), jnp.float32(0.5), limit)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, jnp.float32(0.7)], ids=["all", "some"])
@pytest.mark.parametrize("shape", [(6, 5), (1500, 1100)], ids=["small", "in pieces"])
def test_a_moved_weight_is_its_array_and_its_direction(shape, limit) -> None:
    w = jax.random.normal(jax.random.key(5), shape)
    dense = w + 0.5 * direction(jax.random.key(4), w, limit)
    if limit is not None:
        np.testing.assert_array_equal(np.asarray(dense != w), np.asarray(jnp.abs(w) <= limit))
    leaf = _shift(w, limit)
    for axis in (0, 1):
        x = jax.random.normal(jax.random.key(6), (2, shape[axis]))
        form = "bi,io->bo" if axis == 0 else "bi,oi->bo"
        found = jax.jit(understand(lambda w, x, form=form: jnp.einsum(form, x, w)))(leaf, x)
        np.testing.assert_allclose(found, jnp.einsum(form, x, dense), atol=1e-3 if shape[0] > 6 else 1e-5)
    index = jnp.asarray([[3, 0], [5, 3]])
    rows = jax.jit(understand(lambda w, i: jnp.take(w, i, axis=0, mode="fill")))(leaf, index)
    np.testing.assert_allclose(rows, dense[index], atol=1e-6)
    with pytest.raises(ValueError, match="is looked up in another way than row by row"):
        understand(lambda w: jnp.take(w, index, axis=1))(leaf)


@pytest.mark.slow
def test_numbers_at_places_are_those_drawn_whole() -> None:
    key = jax.random.key(7)
    whole = normal_at(key, jnp.arange(24, dtype=jnp.uint32).reshape(4, 6))
    w = jnp.zeros((4, 6))
    np.testing.assert_array_equal(direction(key, w, None), whole)
    np.testing.assert_array_equal(direction(key, w[2:], None, 2), whole[2:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two_sided", "forward"])
def test_all_weights_move_along_one_direction(lm, batch, kind) -> None:
    """The derivative found through moved weights is that of the weights along the direction of the update."""
    adapter, gradient = tuning.full(), tuning.zeroth_order(1e-3, kind=kind)  # the error is that of a third derivative
    state = adapter.init(jax.random.key(1), lm, batch, None)

    def loss(state: Whole, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del key, step
        value = tuning.answer_loss(state, lm, batch, jnp.ones(3), adapter=adapter)
        return value, value

    found, _ = jax.jit(lambda state: gradient(jax.random.key(8), loss, state, jnp.int32(0)))(state)
    sign = jax.jit(lambda s: tuning.zeroth_order(1e-3, kind="sign")(jax.random.key(8), loss, s, jnp.int32(0)))(state)[0]
    slope = jax.jit(jax.grad(lambda s: loss(s, None, None)[0]))(state)  # type: ignore[arg-type]
    dot = lambda a, b: sum(float((x * y).sum()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    # g z and sign(g) z: g is their quotient, and the derivative along z.
    g = dot(found, sign) / dot(sign, sign) * np.sign(dot(slope, sign))
    np.testing.assert_allclose(abs(g), abs(dot(slope, sign)), rtol=0.02)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, abs(g) * b, rtol=1e-3, atol=1e-3), found, sign)


EVERY = {
    "all weights": tuning.full(),
    "prompt": tuning.prompt(3),
    "prefix": tuning.prefix(2),
    "p-tuning": tuning.p_tuning(2, 8),
    "lora": tuning.lora(2),
    "dora": tuning.lora(2, dora=True),
    "ia3": tuning.ia3(),
    "dept": tuning.dept(2, 2, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(EVERY, "lora", "prompt", "prefix"))
def test_it_lowers_the_loss_of_every_adapter_and_compiles_once(lm, batch, name) -> None:
    adapter = EVERY[name]
    state = adapter.init(jax.random.key(1), lm, batch, None)

    def run(rate: float, eps: float) -> tuning.TuneInfo:
        return tuning.tune(
            jax.random.key(2),
            state,
            lm,
            batch,
            adapter=adapter,
            options=tuning.Options(num_steps=60),
            optimiser=Partial(_sgd, jnp.float32(rate)),
            gradient=tuning.zeroth_order(eps),
        )[1]

    info = run(5e-5 if name == "all weights" else 3e-3, 1e-3)
    assert float(info.losses[-20:].mean()) < float(info.losses[:20].mean())
    with count_traces() as traced:
        run(1e-4, 1e-2)
    assert traced == []


def test_wrong_use_is_named(lm, batch) -> None:
    for how, said in {
        ("eps", 0.0): "`eps` must lie in",
        ("kind", "best"): "`kind`",
        ("num_blocks", 0): "`num_blocks` must be an integer of at least 1",
        ("first_order", 2.0): "`first_order` must lie in",
        ("cutoff", -1.0): "`cutoff` must lie in",
    }.items():
        with pytest.raises(ValueError, match=said):
            tuning.zeroth_order(**{how[0]: how[1]})
    with pytest.raises(ValueError, match="`learning_rate` must lie in"):
        tuning.zeroth_order(kind="conservative")
    with pytest.raises(ValueError, match="`num_blocks` must be 1 with kind='conservative'"):
        tuning.zeroth_order(kind="conservative", learning_rate=0.1, num_blocks=2)
    with pytest.raises(ValueError, match="have rows that a memory stores, but is that of all weights"):
        tuning.full().from_rows(jnp.zeros((1, 32)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two_sided", "conservative"])
def test_tuning_all_of_smollm2_takes_the_memory_of_a_forward_pass_and_one_block(kind) -> None:
    """XLA's own account of 134.5 million weights; nothing is computed."""
    config = models.Config(vocab_size=49152, width=576, num_layers=30, num_heads=9, num_kv_heads=3, mlp_width=1536)
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=config))
    batch = tuning.examples([[1] * 30] * 4, [[3, 2]] * 4)
    adapter, gradient = tuning.full(), tuning.zeroth_order(1e-3, kind=kind, learning_rate=1e-6)

    def tune(state: Whole, key: jax.Array) -> Whole:
        return tuning.tune(
            key,
            state,
            models.LM(state.params, config),
            batch,
            adapter=adapter,
            options=tuning.Options(num_steps=2, remat=True),
            optimiser=Partial(_sgd, jnp.float32(1e-6)),
            gradient=gradient,
        )[0]

    def forward(state: Whole) -> jax.Array:
        weights, whole = jnp.ones(4), models.LM(state.params, config)
        return tuning.answer_loss(state, whole, batch, weights, adapter=adapter, remat=True)

    state, key = Whole(lm.params), jax.eval_shape(lambda: jax.random.key(0))
    tuned = jax.jit(tune, donate_argnums=0).lower(state, key).compile().memory_analysis()
    once = jax.jit(forward).lower(state).compile().memory_analysis()
    block = 4 * sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(lm.params["layers"]))
    sizes = (tuned.temp_size_in_bytes, once.temp_size_in_bytes, block)
    print(f"{kind}: tuning, a forward pass, a block:", *(f"{size / 1e6:.1f} MB" for size in sizes))
    assert tuned.alias_size_in_bytes >= 4 * config.num_params  # the update is made in place
    assert tuned.temp_size_in_bytes <= once.temp_size_in_bytes + block
