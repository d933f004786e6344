"""Compressed models: what each block becomes, and that they do all that other models do."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import ShapedArray
from support.params import mostly_slow

from nvcim_jax import compression, models, tuning
from nvcim_jax.compression import blocks
from nvcim_jax.ops import Weight, register_weight, understand

CONFIG = models.Config(
    vocab_size=64, width=32, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=48, tied=False, eos_ids=(2,)
)
CONFIGS = {
    "some slide": dataclasses.replace(CONFIG, window=4, sliding=(True, False, True)),
    "learned positions": models.Config(
        vocab_size=64,
        width=32,
        num_layers=3,
        num_heads=4,
        mlp_width=48,
        positions="learned",
        max_tokens=16,
        gated=False,
    ),
}
TOKENS = jax.random.randint(jax.random.key(9), (4, 12), 3, 64)
NAMES = ("q", "k", "v", "o", "gate", "up", "down")
POLICY = compression.Policy(np.array([4, 3, 5]), np.array([0.5, 0.0, 0.7]))


def _model(config: models.Config = CONFIG) -> models.LM:
    return models.init(jax.random.key(0), config=config, scale=0.2)


def _with(lm: models.LM, leaves: dict[str, Any]) -> models.LM:
    return lm.replace(params={**lm.params, "layers": {**lm.params["layers"], **leaves}})


LM = _model()
SMALL = compression.apply(LM, POLICY, TOKENS)


def _dense(lm: models.LM) -> models.LM:
    leaves = {name: jax.vmap(lambda w: w.dense())(lm.params["layers"][name]) for name in NAMES}
    return _with(lm, leaves)


def _lowest() -> models.LM:
    """Return a compressed model with the one code that is no quantiser's."""
    up = SMALL.params["layers"]["up"]
    return _with(SMALL, {"up": dataclasses.replace(up, codes=up.codes.at[0, 0, 0].set(-128))})


class Heard(Weight):
    """A matrix that tells what it is multiplied with."""

    w: Any
    tell: Callable[[Any], None] = dataclasses.field(metadata={"static": True})

    def aval(self) -> Any:
        return ShapedArray(self.w.shape, self.w.dtype)


def _times_heard(w: Heard, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    jax.debug.callback(w.tell, x)
    return jnp.tensordot(x, w.w, (x.ndim - 1, axes[0]))


register_weight(Heard, _times_heard)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_second_moments_are_those_of_what_each_matrix_sees(config) -> None:
    lm = _model(config)
    x, layer = blocks.stream(lm, TOKENS), blocks.floats(lm, 1)
    found = jax.jit(blocks.second_moments)(lm, layer, 1, x)
    heard: dict[str, list[Any]] = {name: [] for name in found}
    own = {name: Heard(layer[name], heard[name].append) for name in found}
    jax.block_until_ready(blocks.run(lm, {**layer, **own}, 1, x))
    jax.effects_barrier()
    for name, second in found.items():
        rows = np.concatenate([np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in heard[name]])
        assert len(rows) == TOKENS.size
        np.testing.assert_allclose(second, rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_sensitivity_is_the_error_of_each_block_alone(config) -> None:
    lm = _model(config)
    table, parts = compression.sensitivity(lm, TOKENS, bits=3, sparsity=0.4), ("quantisation", "pruning")
    relative = compression.sensitivity(lm, TOKENS, bits=3, sparsity=0.4, relative=True)
    names, layers = blocks.matrices(lm), lm.params["layers"]
    rounded = {n: jax.vmap(partial(compression.quantise, bits=3, axis=0))(layers[n]) for n in names}
    pruned = {n: jnp.stack([compression.magnitude(w, 0.4)[0] for w in layers[n]]) for n in names}
    x, first = models.embed(lm, TOKENS), jax.jit(partial(models.hidden, stop=1))
    below, run = first(lm, x)[0], jax.jit(partial(models.hidden, start=1, stop=2))
    for i, (own, given) in enumerate(((first, x), (run, below))):
        y = own(lm, given)[0]
        for part, leaves in zip(parts, (rounded, pruned), strict=True):
            error = jnp.square(own(_with(lm, leaves), given)[0] - y).mean()
            np.testing.assert_allclose(getattr(table, part)[i], error, rtol=1e-4)
            np.testing.assert_allclose(getattr(relative, part)[i], error / jnp.square(y).mean(), rtol=1e-4)


def test_sensitivity_of_a_model_in_bfloat16_is_that_of_its_weights_in_float32() -> None:
    """Not of the rounding of its stream, which a block of small weights is far below."""
    layers = {n: w.at[1].multiply(0.02) if n in NAMES else w for n, w in LM.params["layers"].items()}
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _with(LM, layers).params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    found, wanted = (compression.sensitivity(LM.replace(params=own), TOKENS, bits=7) for own in (narrow, wide))
    np.testing.assert_allclose(found.quantisation, wanted.quantisation, rtol=1e-3)
    np.testing.assert_allclose(found.pruning, wanted.pruning, rtol=1e-3)


@pytest.mark.slow
def test_every_block_has_its_bits_and_its_sparsity() -> None:
    for name in NAMES:
        leaf = SMALL.params["layers"][name]
        assert leaf.codes.dtype == jnp.int8
        for codes, bits, sparsity in zip(leaf.codes, POLICY.bits, POLICY.sparsity, strict=True):
            assert int(jnp.abs(codes).max()) <= 2 ** (bits - 1) - 1
            assert int((codes == 0).sum()) >= int(sparsity * codes.size + 1e-9)
    for method in ("sparsegpt", "wanda", "magnitude"):
        floats = compression.apply(LM, POLICY, TOKENS, method=method, quantiser=None)
        for name in NAMES:
            for w, sparsity in zip(floats.params["layers"][name], POLICY.sparsity, strict=True):
                assert int((w == 0).sum()) == int(sparsity * w.size + 1e-9), (method, name)


@pytest.mark.slow
def test_each_block_is_calibrated_on_what_the_compressed_ones_before_it_make() -> None:
    pruned = compression.apply(LM, POLICY, TOKENS, quantiser=None)
    x = models.hidden(pruned, models.embed(LM, TOKENS), stop=2)[0]
    seen = blocks.second_moments(LM, blocks.floats(LM, 2), 2, x)
    for name in ("q", "down"):
        wanted, _ = compression.sparsegpt(LM.params["layers"][name][2], seen[name], 0.7)
        np.testing.assert_allclose(pruned.params["layers"][name][2], wanted, atol=1e-4)


@pytest.mark.slow
def test_without_zeros_and_with_many_bits_little_changes() -> None:
    x = models.embed(LM, TOKENS)
    exact = models.forward(LM, x)[0]
    policy = compression.uniform(3, bits=8, sparsity=0.0)
    ways: tuple[dict[str, Any], ...] = ({}, {"quantiser": "gptq"}, {"method": "magnitude"})
    for way in ways:
        found = models.forward(compression.apply(LM, policy, TOKENS, **way), x)[0]
        assert float(jnp.abs(found - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def _x(lm: models.LM) -> jax.Array:
    return models.embed(lm, TOKENS[:2, :5])


BATCH = tuning.examples([[1, 5], [1, 6]], [[8, 2], [9, 2]])
LORA = tuning.lora(2)
FUNCTIONS: dict[str, Callable[[models.LM], Any]] = {
    "forward": lambda lm: models.forward(lm, _x(lm))[0],
    "some layers, remat": lambda lm: models.hidden(lm, _x(lm), start=1, stop=2, remat=True)[0],
    "gradient of the loss": lambda lm: jax.grad(lambda x: models.loss(lm, x, TOKENS[:2, :5], chunk=4)[0])(_x(lm)),
    "rank": lambda lm: models.rank(lm, _x(lm), models.candidates([[7], [8, 9]], end=2)),
    "generate": lambda lm: models.generate_tokens(jax.random.key(0), lm, _x(lm), max_new_tokens=4)[0],
    "tune": lambda lm: (
        tuning.tune(
            jax.random.key(1),
            LORA.init(jax.random.key(2), LM, BATCH, None),
            lm,
            BATCH,
            adapter=LORA,
            options=tuning.Options(num_steps=3),
        )[1].losses
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_slow(["some layers, remat", "gradient of the loss", "generate", "tune"], "gradient of the loss")
)
def test_codes_side_by_side_do_what_bytes_do(name) -> None:
    run = jax.jit(FUNCTIONS[name])
    np.testing.assert_allclose(run(compression.pack(SMALL)), run(SMALL), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_packed_in_their_bits_and_come_back(bits) -> None:
    policy = compression.Policy(np.array([2, bits, 2]), np.zeros(3))
    small = compression.apply(LM, policy, method="magnitude")
    packed = compression.pack(small)
    for name in ("q", "down"):
        leaf, made = small.params["layers"][name], packed.params["layers"][name]
        assert made.shape == leaf.shape
        assert sum(plane.nbytes for plane in made.planes) * 8 == bits * leaf.codes.size
        for i in range(3):
            one = jax.tree.map(lambda a, i=i: a[i], made)
            np.testing.assert_array_equal(one.codes(), leaf.codes[i])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_codes_do_what_their_floats_do(name) -> None:
    run = FUNCTIONS[name]
    np.testing.assert_allclose(jax.jit(run)(SMALL), jax.jit(run)(_dense(SMALL)), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "some layers, remat", "gradient of the loss", "generate"])
def test_weights_rounded_in_the_loop_do_what_rounded_floats_do(name) -> None:
    run = FUNCTIONS[name]
    leaves = {n: compression.quantise(LM.params["layers"][n], jnp.float32(4), axis=1) for n in NAMES}
    own = compression.in_loop(LM, compression.uniform(3, bits=4), parts=("weights",))
    np.testing.assert_allclose(jax.jit(run)(own), jax.jit(run)(_with(LM, leaves)), atol=1e-5, rtol=1e-4)


def test_many_models_by_vmap_are_many_by_loop() -> None:
    other = compression.apply(LM, POLICY, method="magnitude")
    both = jax.tree.map(lambda *a: jnp.stack(a), SMALL, other)
    found = jax.jit(jax.vmap(FUNCTIONS["forward"]))(both)
    for own, lm in zip(found, (SMALL, other), strict=True):
        np.testing.assert_allclose(own, jax.jit(FUNCTIONS["forward"])(lm), atol=1e-5)


@pytest.mark.slow
def test_activations_keys_and_values_are_rounded_token_by_token() -> None:
    x = jax.random.normal(jax.random.key(3), (5, 32))
    w = compression.Quantised(LM.params["layers"]["q"][0], jnp.float32(3), ("inputs",))
    found = understand(lambda w: jnp.einsum("ti,io->to", x, w))(w)
    np.testing.assert_allclose(found, compression.quantise(x, 3) @ w.w, atol=1e-5)
    with pytest.raises(ValueError, match="multiplied along its outputs"):
        understand(lambda w: jnp.einsum("to,io->ti", x, w))(w)
    own = compression.in_loop(SMALL, POLICY, parts=("activations", "keys and values"))
    kept = models.forward(own, _x(own), keep_keys_values=True)[1].keys_values
    assert kept is not None
    for layer, bits in zip(np.asarray(kept.values), POLICY.bits, strict=True):
        for token in layer.transpose(0, 2, 1, 3).reshape(-1, layer.shape[1] * layer.shape[3]):
            steps = token / np.abs(token).max() * (2 ** (bits - 1) - 1)
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    near = compression.in_loop(LM, compression.uniform(3, bits=8))
    exact = models.forward(LM, _x(LM))[0]
    assert float(jnp.abs(models.forward(near, _x(LM))[0] - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def _rounding(policy: compression.Policy) -> tuning.Adapter:
    """Return the adapter that is the whole model, seen through its quantisers."""
    whole = tuning.full()

    def apply(state: Any, lm: models.LM, inputs: models.Inputs) -> tuple[models.LM, models.Inputs]:
        lm, inputs = whole.apply(state, lm, inputs)
        return compression.in_loop(lm, policy), inputs

    return whole._replace(apply=apply)


@pytest.mark.slow
def test_tuning_with_the_quantisers_in_the_loop_lowers_the_loss_of_the_quantised_model() -> None:
    policy = compression.uniform(3, bits=4)
    adapter, key = _rounding(policy), jax.random.key(4)
    start = adapter.init(key, LM, BATCH, None)
    state, _ = tuning.tune(key, start, LM, BATCH, adapter=adapter, options=tuning.Options(num_steps=20))
    losses = [float(tuning.answer_loss(own, LM, BATCH, jnp.ones(2), adapter=adapter)) for own in (start, state)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.slow
def test_compression_before_and_after_tuning() -> None:
    key, options = jax.random.key(5), tuning.Options(num_steps=20)
    state, info = tuning.tune(key, LORA.init(key, SMALL, BATCH), SMALL, BATCH, adapter=LORA, options=options)
    assert float(info.losses[-1]) < float(info.losses[0])
    state, _ = tuning.tune(key, LORA.init(key, LM, BATCH), LM, BATCH, adapter=LORA, options=options)
    after = compression.apply(tuning.merge(LM, state, LORA), compression.uniform(3, bits=8, sparsity=0.1), TOKENS)
    frozen = tuning.Adapter(LORA.init, lambda state, lm, inputs: (lm, inputs), LORA.rows, LORA.from_rows)
    losses = [float(tuning.answer_loss(state, lm, BATCH, jnp.ones(2), adapter=frozen)) for lm in (LM, after)]
    assert losses[1] < losses[0]


def test_memory_counts_what_is_held_and_what_the_policy_takes() -> None:
    found = compression.memory(SMALL, POLICY)
    leaves = [leaf for name in NAMES for leaf in jax.tree.leaves(SMALL.params["layers"][name])]
    assert found.held.sum() == sum(leaf.nbytes for leaf in leaves)
    weights = sum(SMALL.params["layers"][name].codes[0].size for name in NAMES)
    outputs = sum(SMALL.params["layers"][name].shape[-1] for name in NAMES)
    np.testing.assert_allclose(found.policy[1], (3 * weights + 16 * outputs) / 8)  # no mask where nothing went
    np.testing.assert_allclose(found.policy[0], ((0.5 * 4 + 1) * weights + 16 * outputs) / 8)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: compression.apply(LM, POLICY, TOKENS, method="sparse"), "`method` must be one of"),
        (lambda: compression.apply(LM, POLICY, TOKENS, quantiser="awq"), "`quantiser` must be one of"),
        (lambda: compression.apply(LM, POLICY), "`tokens` must be given for sparsegpt and absmax"),
        (lambda: compression.apply(LM, POLICY, TOKENS[0]), "`tokens` must"),
        (lambda: compression.apply(LM, compression.uniform(2), TOKENS), "`policy.bits` must have shape"),
        (
            lambda: compression.apply(LM, compression.Policy(np.full(3, 4), np.full(3, 1.5)), TOKENS),
            "`policy.sparsity` must",
        ),
        (lambda: compression.in_loop(SMALL, POLICY), r"layers.*codes|an array whose values are rounded"),
        (
            lambda: compression.pack(_lowest()),
            r"layers.up` must hold codes from -127 to 127, but holds -128\. Comp",
        ),
        (lambda: compression.pack(LM), r"must be codes with one scale an output, but is a .*Compress it first\."),
        (lambda: compression.in_loop(LM, POLICY, parts=("norms",)), "`parts` must be one of"),
        (lambda: compression.sensitivity(LM, TOKENS, bits=1), "`bits` must"),
        (lambda: compression.sensitivity(LM, TOKENS.at[0, 0].set(-100)), r"`tokens` must lie in .*holds -100"),
        (lambda: compression.sensitivity(LM, TOKENS[:0]), "`tokens` must hold a sequence and a token at least"),
        (lambda: compression.apply(LM, POLICY, TOKENS[:, :0]), "`tokens` must hold a sequence and a token at least"),
    ],
)
def test_wrong_use_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_without_a_quantiser_the_dtype_is_kept() -> None:
    narrow = LM.replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), LM.params))
    pruned = compression.apply(narrow, POLICY, method="magnitude", quantiser=None)
    assert pruned.params["layers"]["up"].dtype == jnp.bfloat16


def test_an_adapter_is_merged_before_its_model_is_compressed() -> None:
    state = LORA.init(jax.random.key(0), LM, BATCH, None)
    adapted, _ = LORA.apply(state, LM, models.Inputs(_x(LM)))
    with pytest.raises(ValueError, match=r"must be an array or packed codes .* is a LowRank\. .* tuning.merge"):
        compression.apply(adapted, POLICY, TOKENS)
    compression.apply(tuning.merge(LM, state, LORA), POLICY, method="magnitude")
