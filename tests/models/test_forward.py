"""The decoder as a function: causality, padding, prefixes, exits, contraction, dtypes, transformations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

LLAMA = models.Config(vocab_size=64, width=32, num_layers=4, num_heads=4, num_kv_heads=2, mlp_width=48)
SLIDING = models.Config(
    vocab_size=64,
    width=32,
    num_layers=4,
    num_heads=4,
    mlp_width=48,
    window=3,
    sliding=(True, False, True, False),
    rope_local=models.Rope(theta=100.0),
    post_norms=True,
    qk_norm=True,
    family="gemma3_text",
)
LEARNED = models.Config(
    vocab_size=64,
    width=32,
    num_layers=4,
    num_heads=4,
    mlp_width=48,
    norm="layer",
    gated=False,
    activation="gelu_tanh",
    positions="learned",
    family="gpt2",
    qkv_bias=True,
)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, SLIDING, LEARNED], ids=["llama", "sliding", "learned"])


@pytest.fixture
def ids() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 9)).astype(np.int32))


def _embedded(config: models.Config, ids: jax.Array):
    lm = models.init(jax.random.key(3), config=config, scale=0.2)
    return lm, models.embed(lm, ids)


def _forward(**options):
    return jax.jit(lambda lm, x: models.forward(lm, x, **options))


@pytest.mark.slow
@CONFIGS
def test_no_token_sees_a_later_one(config, ids) -> None:
    lm, x = _embedded(config, ids)
    jacobian = jax.jit(jax.jacrev(lambda x: models.hidden(lm, x[None])[0][0].sum(-1)))(x[0])
    reach = np.abs(np.asarray(jacobian)).sum(-1)
    assert (reach[np.triu_indices(9, 1)] == 0).all()
    assert (np.diag(reach) > 0).all()


def test_a_window_reaches_as_far_as_the_layers_carry_it(ids) -> None:
    config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48, window=3)
    lm, x = _embedded(config, ids)
    jacobian = jax.jit(jax.jacrev(lambda x: models.hidden(lm, x)[0].sum(-1)))(x[0])
    reach = np.abs(np.asarray(jacobian)).sum(-1)[-1]
    assert (reach[:4] == 0).all()  # two layers of two steps back each: tokens 4 to 8
    assert (reach[4:] > 0).all()


@CONFIGS
def test_padding_on_either_side_changes_nothing(config, ids) -> None:
    lm, x = _embedded(config, ids)
    wanted, _ = _forward()(lm, x)
    pad = jnp.full((2, 3, config.width), 7.0)
    real = jnp.ones((2, 9), bool)
    blank = jnp.zeros((2, 3), bool)
    left = jnp.concatenate([blank, real], axis=1)
    right = jnp.concatenate([real, blank], axis=1)
    found, _ = _forward()(lm, models.Inputs(jnp.concatenate([pad, x], axis=1), left))
    np.testing.assert_allclose(found[:, 3:], wanted, atol=1e-5)
    found, _ = _forward()(lm, models.Inputs(jnp.concatenate([x, pad], axis=1), right))
    np.testing.assert_allclose(found[:, :9], wanted, atol=1e-5)
    assert bool(jnp.isfinite(found).all())


@CONFIGS
def test_kept_keys_and_values_are_a_prefix(config, ids) -> None:
    lm, x = _embedded(config, ids)
    wanted, _ = _forward()(lm, x)
    _, info = _forward(keep_keys_values=True)(lm, x[:, :5])
    found, _ = _forward()(lm, models.Inputs(x[:, 5:], prefix=info.keys_values))
    np.testing.assert_allclose(found, wanted[:, 5:], atol=1e-5)


def test_a_prefix_without_a_batch_axis_serves_every_row(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    shape = (LLAMA.num_layers, LLAMA.kv_heads, 3, LLAMA.head_width)
    prefix = models.KeysValues(*jax.random.normal(jax.random.key(1), (2, *shape)))
    both = models.KeysValues(*(jnp.stack([a, a], axis=1) for a in prefix))
    one, _ = _forward()(lm, models.Inputs(x, prefix=prefix))
    two, _ = _forward()(lm, models.Inputs(x, prefix=both))
    np.testing.assert_array_equal(one, two)
    plain, _ = _forward()(lm, x)
    assert float(jnp.abs(one - plain).max()) > 1e-3


def test_a_full_mask_replaces_causality(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    causal = jnp.tril(jnp.ones((9, 9), bool))[None].repeat(2, 0)
    wanted, _ = _forward()(lm, x)
    found, _ = _forward()(lm, models.Inputs(x, causal))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    both_ways, _ = _forward()(lm, models.Inputs(x, jnp.ones((2, 9, 9), bool)))
    assert float(jnp.abs(both_ways - wanted)[:, 0].max()) > 1e-3


@pytest.mark.slow
@CONFIGS
def test_exits_are_the_states_at_which_stopping_ends(config, ids) -> None:
    lm, x = _embedded(config, ids)
    logits, info = _forward(exits=(1, 3))(lm, x)
    assert logits.shape == (2, 9, 64)
    for kept, layers in zip(info.hidden, (1, 3), strict=True):
        below, _ = models.hidden(lm, x, stop=layers)
        np.testing.assert_allclose(kept, below, atol=5e-6)
        above, _ = models.hidden(lm, below, start=layers)
        np.testing.assert_allclose(models.head(lm, above), logits, atol=1e-5)


def _weight_flops(config: models.Config, **options) -> float:
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=config))
    x = jax.ShapeDtypeStruct((2, 9, config.width), jnp.float32)
    outer = jax.make_jaxpr(lambda p, x: models.hidden(p, x, **options)[0])(lm, x).jaxpr.eqns
    compiled = [e.params["jaxpr"].jaxpr.eqns for e in outer if e.primitive.name in ("jit", "pjit")]
    equations = [*outer, *(e for inside in compiled for e in inside)]
    scans = [e for e in equations if e.primitive.name == "scan"]
    inner = sum(str(e.params["jaxpr"]).count("dot_general") * e.params["length"] for e in scans)
    assert not any(e.primitive.name == "dot_general" for e in equations)
    return inner


def test_layers_above_the_stop_are_not_computed() -> None:
    whole = _weight_flops(LLAMA)
    assert whole == 4 * 9  # seven weights and two products of attention a layer
    assert _weight_flops(LLAMA, stop=1) == whole / 4
    assert _weight_flops(LLAMA, start=1, stop=3) == whole / 2


def test_stopping_copies_no_weights(ids) -> None:
    config = models.Config(vocab_size=64, width=64, num_layers=8, num_heads=4, mlp_width=256)
    lm = models.init(jax.random.key(0), config=config)
    x = models.embed(lm, ids)
    temporary = []
    for stop in (1, 7):
        lowered = jax.jit(lambda p, x, stop=stop: models.hidden(p, x, stop=stop)[0]).lower(lm, x)
        temporary.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    layer = 4 * config.num_params / 8
    assert temporary[1] - temporary[0] < layer  # not six layers more


@CONFIGS
def test_one_sequence_is_a_batch_of_one(config, ids) -> None:
    lm, x = _embedded(config, ids)
    wanted, _ = _forward()(lm, x)
    found, info = _forward(exits=(2,), keep_keys_values=True)(lm, x[0])
    np.testing.assert_allclose(found, wanted[0], atol=1e-6)
    assert info.hidden.shape == (1, 9, 32)
    assert info.keys_values.keys.shape == (4, config.kv_heads, 9, 8)
    mapped = jax.jit(jax.vmap(lambda x: models.forward(lm, x)[0]))(x)
    np.testing.assert_allclose(mapped, wanted, atol=1e-5)


@pytest.mark.slow
@CONFIGS
@pytest.mark.parametrize(
    "options", [{}, {"stop": 3}, {"start": 2, "stop": 3}, {"start": 1, "stop": 1}, {"remat": True}]
)
def test_positions_asked_for_are_rows_of_the_whole(config, options, ids) -> None:
    lm, x = _embedded(config, ids)
    at = jnp.array([[8, 2, 2], [0, 5, 7]])

    def rows(x: jax.Array, at: jax.Array | None) -> jax.Array:
        y, _ = models.hidden(lm, x, at=at, **options)
        return y

    def gathered(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(rows(x, None), at[..., None], axis=1)

    run = jax.jit(jax.vjp, static_argnums=0)
    (wanted, back), (found, asked) = run(gathered, x), run(lambda x: rows(x, at), x)
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    weight = jax.random.normal(jax.random.key(0), wanted.shape)
    np.testing.assert_allclose(asked(weight)[0], back(weight)[0], atol=1e-4)
    np.testing.assert_allclose(rows(x[1], at[1]), wanted[1], atol=5e-6)


def test_the_last_block_is_spared_what_is_not_asked_for(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    cost = [
        jax.jit(lambda x, at=at: models.hidden(lm, x, start=3, at=at)[0]).lower(x).compile()
        for at in (None, jnp.zeros((2, 1), jnp.int32))
    ]
    flops = [compiled.cost_analysis()["flops"] for compiled in cost]
    # q, o and the three of the feed-forward part run over one position of nine; k and v over all.
    assert flops[1] < 0.35 * flops[0]


@pytest.mark.slow
def test_jit_equals_eager(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    with jax.disable_jit():
        wanted, _ = models.forward(lm, x)
    found, _ = _forward()(lm, x)
    np.testing.assert_allclose(found, wanted, atol=5e-6)


def test_remat_changes_memory_only(ids) -> None:
    lm, x = _embedded(LLAMA, ids)

    def gradient(remat: bool):
        return jax.jit(jax.grad(lambda x: jnp.sin(models.forward(lm, x, remat=remat)[0]).sum()))

    np.testing.assert_allclose(gradient(True)(x), gradient(False)(x), rtol=1e-4, atol=1e-4)
    plain, less = (gradient(r).lower(x).compile().memory_analysis().temp_size_in_bytes for r in (False, True))
    assert less < plain


def test_gradient_equals_a_finite_difference(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    run = jax.jit(lambda x: jnp.sin(models.forward(lm, x)[0]).mean())
    towards = jax.random.normal(jax.random.key(5), x.shape)
    step = 2e-3
    slope = (run(x + step * towards) - run(x - step * towards)) / (2 * step)
    np.testing.assert_allclose((jax.grad(run)(x) * towards).sum(), slope, rtol=2e-2, atol=1e-4)


def test_bf16_computes_in_bf16_and_stays_near(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    wanted, _ = _forward()(lm, x)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), lm)
    found, _ = _forward()(half, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert float(jnp.abs(found.astype(jnp.float32) - wanted).max()) < 0.03 * float(jnp.abs(wanted).max()) + 0.03
    mixed, _ = _forward()(half, x)  # stored in bf16, computed in float32
    assert mixed.dtype == jnp.float32


def test_softmax_and_norms_are_in_float32(ids) -> None:
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=LLAMA, dtype=jnp.bfloat16))
    x = jax.ShapeDtypeStruct((2, 9, 32), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda p, x: models.forward(p, x)[0])(lm, x))
    for line in text.splitlines():
        if " = exp " in line or " = rsqrt" in line:
            assert ":f32" in line.split("=")[0], line


def test_one_trace_serves_all_values(ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    traces = []

    @jax.jit
    def run(lm, inputs):
        traces.append(None)
        return models.forward(lm, inputs)[0]

    for scale in (1.0, 0.5, 2.0):
        run(lm, models.Inputs(x * scale, jnp.ones((2, 9), bool)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": jnp.zeros((9, 31))}, "must have width 32"),
        ({"mask": jnp.ones((2, 8), bool)}, "`mask` must have shape"),
        ({"mask": jnp.ones((2, 9, 8), bool)}, "`mask` must have shape"),
        ({"stop": 5}, "`stop` must be an integer"),
        ({"exits": (5,)}, "An exit counts the layers below it"),
        ({"start": 3, "stop": 2}, "`start` must be"),
        ({"positions": jnp.zeros((2, 8), jnp.int32)}, "`positions` must have shape"),
        ({"prefix": models.KeysValues(*(jnp.zeros((3, 2, 1, 8)),) * 2)}, "`prefix.keys` must have shape"),
    ],
)
def test_wrong_arguments_are_named(options, message, ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    given = models.Inputs(x)._replace(**{n: v for n, v in options.items() if n in models.Inputs._fields})
    options = {n: v for n, v in options.items() if n not in models.Inputs._fields}
    with pytest.raises((ValueError, TypeError), match=message):
        models.forward(lm, given, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": jnp.zeros((3, 1), jnp.int32)}, "`at` must have shape"),
        ({"at": jnp.zeros((2, 1), jnp.int32), "exits": (1,)}, "`at` must be None with exits"),
        ({"at": jnp.zeros((2, 1), jnp.int32), "keep_keys_values": True}, "`at` must be None with exits"),
    ],
)
def test_wrong_positions_are_named(options, message, ids) -> None:
    lm, x = _embedded(LLAMA, ids)
    with pytest.raises(ValueError, match=message):
        models.hidden(lm, x, **options)


@pytest.mark.parity
def test_a_prefix_is_transformers_past_key_values(checkpoint, ids) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    folder = checkpoint("llama")
    lm, _ = models.load(folder)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    shape = (lm.config.num_layers, 2, lm.config.kv_heads, 3, lm.config.head_width)
    keys, values = np.random.default_rng(4).standard_normal((2, *shape)).astype(np.float32)
    cache = transformers.DynamicCache()
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(torch.from_numpy(k), torch.from_numpy(v), layer)
    with torch.no_grad():
        named = "cache" if "cache" in inspect.signature(hf.forward).parameters else "past_key_values"  # before 5.24
        wanted = hf(torch.from_numpy(np.asarray(ids, np.int64)), **{named: cache}).logits.numpy()
    prefix = models.KeysValues(jnp.asarray(keys), jnp.asarray(values))
    found, _ = models.forward(lm, models.Inputs(models.embed(lm, ids), prefix=prefix))
    assert np.abs(np.asarray(found) - wanted).max() <= 5e-6


def test_a_backward_pass_keeps_no_copy_of_the_weights() -> None:
    """By XLA's account: its temporaries are a fraction of the blocks' weights, where texts are short."""
    config = models.Config(vocab_size=64, width=64, num_layers=8, num_heads=4, mlp_width=256)
    lm = models.init(jax.random.key(0), config=config)
    last = jnp.full((1, 1), 3, jnp.int32)
    slope = jax.jit(jax.grad(lambda x, lm: jnp.sin(models.hidden(lm, x, at=last)[0]).sum()))
    analysis = slope.lower(models.embed(lm, jnp.arange(4)[None]), lm).compile().memory_analysis()
    assert analysis is not None
    weights = sum(a.nbytes for a in jax.tree.leaves(lm.params["layers"]))
    assert analysis.temp_size_in_bytes < 0.6 * weights
