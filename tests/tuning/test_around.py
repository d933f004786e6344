"""Adapters around any weight, in every function of the model, beside each other; their gradients; merged and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, models, tuning
from nvcim_jax.tuning.weights import LowRank, dense

CONFIG = models.Config(
    vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48, qkv_bias=True, eos_ids=(2,)
)
IDS = jnp.asarray([[1, 5, 6, 7, 8], [9, 10, 11, 12, 13]], jnp.int32)
ANSWERS = models.candidates([[7], [8, 9]], end=2)
ADAPTERS = {
    "lora": tuning.lora(2, 4.0),
    "rslora on a group": tuning.lora(4, 2.0, targets=("q+k", "down", "gate+up"), rs=True),
    "dora": tuning.lora(2, targets=("o", "up"), dora=True),
    "ia3": tuning.ia3(("q", "k", "down")),
}
MERGED = pytest.mark.parametrize("name", ADAPTERS)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    made = models.init(jax.random.key(0), config=CONFIG, scale=0.3)
    biases = {f"{n}_bias": jnp.full_like(made.params["layers"][f"{n}_bias"], 0.2) for n in "qkv"}
    return made.replace(params={**made.params, "layers": {**made.params["layers"], **biases}})


@pytest.fixture(scope="module")
def batch() -> tuning.Examples:
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10]], [[8, 2], [9, 2], [12, 2]])


def far(adapter: tuning.Adapter, lm: models.LM, batch: tuning.Examples) -> jax.Array:
    """Return a state in which every array counts."""
    state = adapter.init(jax.random.key(1), lm, batch, None)
    return state + 0.1 * jax.random.normal(jax.random.key(2), state.shape)


def _nothing_added(up: jax.Array) -> tuple[jax.Array, ...]:
    """Return a and b of rank 1 that are zero, a scale, and magnitudes."""
    layers, inputs, outputs = up.shape
    zeros = (jnp.zeros((layers, inputs, 1)), jnp.zeros((layers, 1, outputs)))
    return *zeros, jnp.ones(layers), jnp.ones((layers, outputs))


def applied(adapter: tuning.Adapter, state, lm: models.LM) -> tuple[models.LM, models.Inputs]:
    return adapter.apply(state, lm, models.Inputs(models.embed(lm, IDS)))


@jax.jit
def everything(lm: models.LM, x: models.Inputs) -> tuple[jax.Array, ...]:
    labels = jnp.pad(IDS, ((0, 0), (x.x.shape[1] - IDS.shape[1], 0)), constant_values=models.IGNORE)
    tokens, _ = models.generate_tokens(jax.random.key(0), lm, x, max_new_tokens=3)
    return models.forward(lm, x)[0], models.loss(lm, x, labels)[0], models.rank(lm, x, ANSWERS), tokens


@pytest.mark.slow
@MERGED
def test_an_adapter_does_what_the_merged_weights_do_and_comes_out_again(lm, batch, name) -> None:
    adapter = ADAPTERS[name]
    state = far(adapter, lm, batch)
    merged = tuning.merge(lm, state, adapter)
    found, wanted = everything(*applied(adapter, state, lm)), everything(merged, applied(tuning.frozen(), (), lm)[1])
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    if name == "dora":
        with pytest.raises(ValueError, match="must keep the sizes of columns to be taken out, but is DoRA"):
            tuning.merge(merged, state, adapter, undo=True)
        return
    bare = tuning.merge(merged, state, adapter, undo=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), bare.params, lm.params)


@pytest.mark.slow
def test_a_column_of_zeros_has_no_size_to_be_brought_to(lm, batch) -> None:
    """Of a weight that was pruned by columns: the adapter begins where the model is, and its gradient is finite."""
    adapter = ADAPTERS["dora"]
    up = lm.params["layers"]["up"].at[..., 3].set(0.0)
    pruned = lm.replace(params={**lm.params, "layers": {**lm.params["layers"], "up": up}})
    state = adapter.init(jax.random.key(1), pruned, batch, None)
    loss, slope = jax.value_and_grad(tuning.answer_loss)(state, pruned, batch, jnp.ones(3), adapter=adapter)
    bare = tuning.answer_loss((), pruned, batch, jnp.ones(3), adapter=tuning.frozen())
    np.testing.assert_allclose(loss, bare, rtol=1e-5)
    assert jnp.isfinite(slope).all()
    merged = tuning.merge(pruned, state, adapter)
    np.testing.assert_allclose(merged.params["layers"]["up"], up, atol=1e-6)
    through = jax.grad(lambda up: dense(LowRank(up, *_nothing_added(up)), "w").sum())
    assert jnp.isfinite(through(up)).all()


def test_all_weights_are_merged_and_do_not_come_out_again(lm, batch) -> None:
    adapter = tuning.full()
    state = jax.tree.map(lambda leaf: leaf + 0.1, adapter.init(jax.random.key(1), lm, batch, None))
    merged = tuning.merge(lm, state, adapter)
    jax.tree.map(np.testing.assert_array_equal, merged.params, state.params)
    for held in (lm, merged):
        with pytest.raises(ValueError, match="must change weights by what can be taken out, but replaces them"):
            tuning.merge(held, state, adapter, undo=True)


def test_what_cannot_be_merged_is_named(lm, batch) -> None:
    for adapter in (tuning.prompt(2), tuning.prefix(2)):
        state = adapter.init(jax.random.key(1), lm, batch, None)
        with pytest.raises(ValueError, match="`adapter` must change weights to be merged into them, but"):
            tuning.merge(lm, state, adapter)
    zeros = jnp.zeros(tuning.ia3().rows_shape(lm))
    with pytest.raises(ValueError, match="must scale by no zero to be taken out"):
        tuning.merge(lm, zeros, tuning.ia3(), undo=True)
    with pytest.raises(ValueError, match=r"`state` must have shape \(rows, width\) = .* another adapter or"):
        ADAPTERS["lora"].apply(zeros, lm, models.Inputs(jnp.zeros((1, 2, 32))))


def test_wrong_targets_are_named(lm) -> None:
    x = models.Inputs(jnp.zeros((1, 2, 32)))
    for targets, said in {
        ("query",): "'query'",
        ("q", "q+k"): "name each matrix once, but names 'q' twice",
        ("q+down",): "join matrices that multiply the same inputs",
        (): "name at least one",
    }.items():
        with pytest.raises(ValueError, match=said):
            tuning.lora(2, targets=targets).apply(jnp.zeros((4, 32)), lm, x)
    with pytest.raises(ValueError, match="`inputs`"):
        tuning.ia3(("k",), inputs=("down",))


def _packed(w: jax.Array) -> models.Packed:
    scales = jnp.abs(w).max(axis=1, keepdims=True) / 127
    groups = jnp.zeros(w.shape[:2], jnp.int32)
    return models.Packed(jnp.round(w / scales).astype(jnp.int8), scales, groups)


def _dense(w: models.Packed) -> jax.Array:
    return jax.vmap(lambda w: w.dense())(w)


@pytest.mark.slow
@MERGED
def test_an_adapter_works_around_packed_weights(lm, batch, name) -> None:
    adapter, layers = ADAPTERS[name], lm.params["layers"]
    packed = {n: _packed(w) if w.ndim == 3 else w for n, w in layers.items()}
    plain = {n: _dense(w) if isinstance(w, models.Packed) else w for n, w in packed.items()}
    around, floats = (lm.replace(params={**lm.params, "layers": own}) for own in (packed, plain))
    start = [adapter.init(jax.random.key(1), one, batch, None) for one in (around, floats)]
    np.testing.assert_allclose(*start, atol=1e-5)
    slope = jax.jit(jax.value_and_grad(lambda s, lm: tuning.answer_loss(s, lm, batch, jnp.ones(3), adapter=adapter)))
    state = far(adapter, floats, batch)
    for a, b in zip(slope(state, around), slope(state, floats), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    with pytest.raises(ValueError, match="must be an array to be merged with, but is a Packed"):
        tuning.merge(around, state, adapter)


@pytest.mark.slow
def test_low_rank_changes_are_tuned_around_noisy_chips(lm, batch) -> None:
    device = devices.get("PCM")
    chips = crossbar.on_chip(
        jax.random.key(3), lm.params, device, config=crossbar.Config(rows=32, cols=32), select=models.is_block_matrix
    )
    noisy = lm.replace(params=chips)
    adapter = tuning.lora(2)
    state = adapter.init(jax.random.key(1), noisy, batch, None)
    _, info = tuning.tune(
        jax.random.key(4),
        state,
        noisy,
        batch,
        adapter=adapter,
        options=tuning.Options(num_steps=20),
        optimiser=tuning.adam(0.02),
    )
    bare = tuning.answer_loss((), noisy, batch, jnp.ones(3), adapter=tuning.frozen())
    np.testing.assert_allclose(info.losses[0], bare, rtol=1e-5)  # B = 0
    assert float(info.losses[-1]) < 0.8 * float(bare)


EVERY = {**ADAPTERS, "prefix": tuning.prefix(2), "dept": tuning.dept(2, 2, 8), "p-tuning": tuning.p_tuning(2, 8)}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(EVERY, "lora", "dora", "ia3"))
def test_gradients_are_those_of_finite_differences(lm, batch, name) -> None:
    adapter = EVERY[name]
    state = adapter.init(jax.random.key(1), lm, batch, None)
    leaves, treedef = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(5), 2 * len(leaves))
    state = treedef.unflatten([a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=False)])
    along = treedef.unflatten([jax.random.normal(k, a.shape) for a, k in zip(leaves, keys[len(leaves) :], strict=True)])
    if name == "dora":  # the sizes of columns are constants in its gradient: only the magnitudes have a true slope
        shapes = adapter.details[0].shapes(CONFIG)
        mask = {n: jnp.full(shape, float(n.endswith("magnitude"))) for n, shape in shapes.items()}
        along = along * adapter.details[0].pack(mask, CONFIG)

    @jax.jit
    def at(t: jax.Array) -> jax.Array:
        moved = jax.tree.map(lambda a, z: a + t * z, state, along)
        return tuning.answer_loss(moved, lm, batch, jnp.ones(3), adapter=adapter)

    # Fourth order: rounding in float32 asks for a wide step, the bends of P-tuning's network for a short one.
    h = 2e-4 if name == "p-tuning" else 1e-2
    wanted = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    found = jax.jit(jax.grad(at))(0.0)
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "dept", "p-tuning"])
def test_an_adapter_of_inputs_goes_through_every_function(lm, batch, name) -> None:
    adapter = EVERY[name]
    state = adapter.init(jax.random.key(1), lm, batch, None)
    own, inputs = applied(adapter, state, lm)
    logits, loss, ranked, tokens = everything(own, inputs)
    bare = everything(*applied(tuning.frozen(), (), lm))
    assert logits.shape[-1] == 64
    assert not np.allclose(ranked, bare[2], atol=1e-3)
    assert float(loss) > 0
    np.testing.assert_array_equal(tokens[:, 0], jnp.argmax(logits[:, -1], axis=-1))


@pytest.mark.slow
def test_a_prefix_from_a_text_stands_for_that_text(lm) -> None:
    """Keys and values of a text are the text: what comes behind them is what comes behind it."""
    text = [1, 5, 6, 8]
    batch = tuning.examples([text[:3]], [[8, 2]])
    adapter = tuning.prefix(4)
    state = adapter.init(jax.random.key(1), lm, batch, None)
    assert adapter.parts(state, lm)["keys"].shape == (2, 2, 4, 8)
    start = jnp.asarray([[8, *text[:3]]])  # the answer comes first
    whole, _ = models.forward(lm, models.embed(lm, jnp.concatenate([start, IDS[:1]], axis=1)))
    _, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, IDS[:1])))
    np.testing.assert_allclose(models.forward(lm, inputs)[0], whole[:, 4:], atol=1e-5)


@pytest.mark.slow
def test_users_side_by_side_are_users_one_by_one(lm, batch) -> None:
    """One frozen model, an adapter each."""
    adapter = tuning.lora(2)
    keys = jax.random.split(jax.random.key(1), 3)
    states = jax.vmap(lambda key: adapter.init(key, lm, batch, None))(keys)
    tune = lambda key, state: tuning.tune(  # noqa: E731
        key, state, lm, batch, adapter=adapter, options=tuning.Options(num_steps=3)
    )[0]
    many = jax.vmap(tune)(keys, states)
    for i in range(3):
        np.testing.assert_allclose(many[i], tune(keys[i], states[i]), atol=1e-5)


def test_the_scale_is_that_of_the_kind(lm) -> None:
    x = models.Inputs(jnp.zeros((1, 1, 32)))
    for rs, wanted in ((False, 6.0 / 4), (True, 6.0 / 2)):
        adapter = tuning.lora(4, 6.0, rs=rs)
        leaf = adapter.apply(jnp.zeros(adapter.rows_shape(lm)), lm, x)[0].params["layers"]["q"]
        np.testing.assert_allclose(leaf.scale, wanted)
    gpt2 = models.Config(
        vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64, family="gpt2", norm="layer", gated=False
    )
    assert list(tuning.lora(2).details[0].shapes(gpt2)) == ["q+k+v.a", "q+k+v.b"]


def test_texts_longer_than_dept_was_made_for_are_named(lm, batch) -> None:
    adapter = tuning.dept(2, 2, 4)
    state = adapter.init(jax.random.key(1), lm, batch, None)
    with pytest.raises(ValueError, match="`max_tokens` must be at least 5, the length of the texts, but is 4"):
        applied(adapter, state, lm)
