"""Tuning: its loss against the model's own, its bounds, its noise, many prompts against one, what compiles anew."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support.tracing import count_traces

from nvcim_jax import devices, models, tuning
from nvcim_jax.tuning.noise import right_censored_moments
from nvcim_jax.tuning.span import window_lm

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
ADAPTER = tuning.prompt(4)
OPTIONS = tuning.Options(num_steps=30)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def batch() -> tuning.Examples:
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10, 11]], [[8, 2], [9, 2], [12, 13, 2]])


@pytest.fixture(scope="module")
def start(lm) -> jax.Array:
    return models.embed(lm, jnp.arange(20, 24))


@jax.jit
def loss(prompt: jax.Array, lm: models.LM, batch: tuning.Examples, weights: jax.Array) -> jax.Array:
    return tuning.answer_loss(prompt, lm, batch, weights, adapter=ADAPTER)


def tuned(lm, batch, start, weights=None, seed: int = 1, **how) -> tuple[jax.Array, tuning.TuneInfo]:
    return tuning.tune(jax.random.key(seed), start, lm, batch, weights, adapter=ADAPTER, **({"options": OPTIONS} | how))


def many(lm, batch, start, weights, **how) -> tuple[jax.Array, tuning.TuneInfo]:
    """Tune from one start, once for each row of weights."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(len(weights)))
    one = lambda key, own: tuning.tune(key, start, lm, batch, own, adapter=ADAPTER, **({"options": OPTIONS} | how))  # noqa: E731
    return jax.vmap(one)(keys, weights)


@pytest.mark.slow
def test_the_loss_is_the_models_own(lm, batch, start) -> None:
    x = models.embed(lm, jnp.array([[1, 9, 10, 11, 12, 13, 2]]))
    labels = jnp.array([[models.IGNORE] * 8 + [12, 13, 2]])
    truth, _ = models.loss(lm, jnp.concatenate([start[None], x], axis=1), labels)
    np.testing.assert_allclose(loss(start, lm, batch, jnp.array([0.0, 0.0, 1.0])), truth, rtol=2e-6)


SLIDING = {"window": 3, "sliding": (True, False), "rope_local": models.Rope(theta=100.0), "post_norms": True}
LEARNED = {"positions": "learned", "norm": "layer", "gated": False, "activation": "gelu_tanh", "qkv_bias": True}


def of_ones_own(adapter: tuning.Adapter) -> tuning.Adapter:
    """Return an adapter that does the same, as if someone else had written it."""

    def apply(state, lm, inputs):
        return adapter.apply(state, lm, inputs)

    return adapter._replace(apply=apply)


@pytest.mark.parametrize("of_family", [{}, SLIDING, LEARNED], ids=["llama", "sliding", "learned"])
@pytest.mark.parametrize("adapter", [ADAPTER, tuning.dept(4, 2, 8)], ids=["prompt", "dept"])
def test_a_prompt_run_once_for_all_texts_gives_what_it_gives_before_each(batch, of_family, adapter) -> None:
    """Texts behind one prompt are run as branches of one sequence; those of an adapter of one's own are not."""
    lm = models.init(jax.random.key(3), config=dataclasses.replace(CONFIG, **of_family), scale=0.3)
    own = of_ones_own(adapter)
    state = adapter.init(jax.random.key(4), lm, batch, None)
    weights = jnp.array([1.0, 0.0, 2.0])

    def found(adapter: tuning.Adapter) -> tuple[jax.Array, jax.Array]:
        measure = lambda state: tuning.answer_loss(state, lm, batch, weights, adapter=adapter)  # noqa: E731
        return jax.jit(jax.value_and_grad(measure))(state)

    (value, slope), (truth, expected) = found(adapter), found(own)
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), slope, expected)


def test_a_prompt_before_several_texts_is_one_run_of_rows(lm, batch, start) -> None:
    def products(adapter: tuning.Adapter) -> str:
        one = lambda state: tuning.answer_loss(state, lm, batch, jnp.ones(3), adapter=adapter)  # noqa: E731
        return jax.jit(one).lower(start).as_text()

    once, each = "(tensor<1x22x32xf32>, tensor<32x64xf32>)", "(tensor<3x10x32xf32>, tensor<32x64xf32>)"
    found = [[form in products(adapter) for form in (once, each)] for adapter in (ADAPTER, of_ones_own(ADAPTER))]
    assert found == [[True, False], [False, True]]  # 4 + 3 x 6 rows, or 3 x (4 + 6)


def test_many_long_texts_and_weights_of_ones_own_see_a_prompt_each(lm, batch, start) -> None:
    """Rows of one sequence are scored against all others; a weight may draw noise for each row."""

    def masks(lm: models.LM, batch: tuning.Examples) -> set[int]:
        """Return the numbers of texts that are attended side by side."""
        one = lambda state: tuning.answer_loss(state, lm, batch, jnp.ones(len(batch.ids)), adapter=ADAPTER)  # noqa: E731
        scores = re.findall(r"tensor<(\d+)x4x\d+x\d+xf32>", jax.jit(one).lower(start).as_text())
        return set(map(int, scores))

    long = tuning.examples([[1] * 20] * 30, [[8, 2]] * 30)  # 30 x (4 + 21) rows
    assert masks(lm, batch) == {1}
    assert masks(lm, long) == {30}
    assert masks(lm, long._replace(ids=long.ids[:20], where=long.where[:20], targets=long.targets[:20])) == {1}
    assert masks(window_lm(lm, 0, 2), batch) == {3}


def test_weights_count_tokens(lm, batch, start) -> None:
    each = [loss(start, lm, batch, w) for w in jnp.eye(3)]
    whole = loss(start, lm, batch, jnp.ones(3))
    np.testing.assert_allclose(whole, (2 * each[0] + 2 * each[1] + 3 * each[2]) / 7, rtol=1e-5)


def test_tuning_is_adam_on_that_loss(lm, batch, start) -> None:
    adam = tuning.adam(0.01, clip_norm=1e9, schedule=tuning.Schedule(kind="constant", warmup=0.0))
    found, info = tuned(lm, batch, start, options=tuning.Options(num_steps=5), optimiser=adam)
    truth, losses, reference = start, [], optax.adam(0.01)
    state = reference.init(start)
    for _ in range(5):
        value, slope = jax.value_and_grad(loss)(truth, lm, batch, jnp.ones(3))
        update, state = reference.update(slope, state)
        truth, losses = truth + update, [*losses, value]
    np.testing.assert_allclose(found, truth, atol=2e-5)
    np.testing.assert_allclose(info.losses, jnp.stack(losses), rtol=1e-4)


def test_prompts_side_by_side_equal_prompts_alone(lm, batch, start) -> None:
    both, _ = many(lm, batch, start, jnp.eye(3))
    alone, _ = many(lm, batch, start, jnp.eye(3)[:1])
    np.testing.assert_allclose(both[0], alone[0], atol=1e-4)
    assert jnp.abs(both[0] - both[1]).max() > 0.01


def test_tuning_lowers_the_loss_of_its_own_example_most(lm, batch, start) -> None:
    found, info = many(
        lm, batch, start, jnp.eye(3), options=tuning.Options(num_steps=80), optimiser=tuning.adam(learning_rate=0.05)
    )
    assert (info.losses[:, -1] < 0.5 * info.losses[:, 0]).all()
    table = [[loss(p, lm, batch, w) for w in jnp.eye(3)] for p in found]
    assert (np.argmin(np.asarray(table), axis=1) == np.arange(3)).all()


def test_a_bound_of_rows_asks_for_states_that_are_made_of_them(lm, batch) -> None:
    adapter = tuning.p_tuning(2)
    state = adapter.init(jax.random.key(0), lm, batch, None)
    with pytest.raises(ValueError, match=r"`adapter` must have states that rows give back.*penalties\(largest"):
        tuning.bounded(0.1, adapter)(state)


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 2])
def test_bound_and_seed(lm, batch, start, size) -> None:
    how = {
        "options": tuning.Options(num_steps=20, batch=size),
        "optimiser": tuning.adam(0.1),
        "project": tuning.bounded(0.25),
        "perturb": Partial(devices.value_noise, device=devices.get("FeFET6", sigma=0.1)),
    }
    first, info = tuned(lm, batch, start, seed=0, **how)
    assert float(info.largest) <= 0.25
    assert jnp.array_equal(first, tuned(lm, batch, start, seed=0, **how)[0])
    assert not jnp.array_equal(first, tuned(lm, batch, start, seed=1, **how)[0])


def test_an_anchor_holds_where_the_bound_lets_tuning_start(lm, batch, start) -> None:
    parts = {"project": tuning.bounded(0.2), "penalty": tuning.penalties(anchor=50.0), "optimiser": tuning.adam(0.05)}
    how = {"adapter": tuning.prompt(len(start)), "options": tuning.Options(num_steps=5), **parts}
    far, near = jnp.ones_like(start), jnp.full_like(start, 0.2)
    found = [tuning.tune(jax.random.key(0), own, lm, batch, **how)[0] for own in (far, near)]
    np.testing.assert_array_equal(*found)


def test_a_penalty_on_the_largest_entry_shrinks_it_and_an_anchor_holds(lm, batch, start) -> None:
    def found(**weights) -> jax.Array:
        how = {"penalty": tuning.penalties(**weights)} if weights else {}
        return tuned(lm, batch, start, optimiser=tuning.adam(0.05), **how)[0]

    free = found()
    assert float(jnp.abs(found(largest=1.0)).max()) < 0.7 * float(jnp.abs(free).max())
    assert jnp.linalg.norm(found(anchor=100.0) - start) < 0.5 * jnp.linalg.norm(free - start)


def test_the_lipschitz_term_is_above_the_largest_singular_value(lm, batch, start) -> None:
    penalty = tuning.penalties(lipschitz=10.0, lipschitz_limit=0.5)
    found, _ = tuned(
        lm, batch, start, options=tuning.Options(num_steps=200), optimiser=tuning.adam(0.05), penalty=penalty
    )
    largest = float(jnp.linalg.norm(found, ord=2))
    assert largest < 0.75
    assert largest**2 <= float(jnp.abs(found @ found.T).sum(axis=1).max()) * 1.0001


def test_new_numbers_compile_nothing(lm, batch, start) -> None:
    def run(rate: float, sigma: float, bound: float) -> None:
        tuned(
            lm, batch, start, optimiser=tuning.adam(rate), project=tuning.bounded(bound),
            penalty=tuning.penalties(largest=rate),
            perturb=Partial(devices.value_noise, device=devices.get("FeFET6", sigma=sigma)),
        )  # fmt: skip

    run(0.1, 0.1, 1.0)
    with count_traces() as traced:
        run(0.2, 0.05, 2.0)
    assert traced == []


def sgd(rate: jax.Array, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.sgd(rate)


def test_an_optimiser_of_ones_own_compiles_once_and_takes_its_steps(lm, batch, start) -> None:
    run = lambda rate: tuned(  # noqa: E731
        lm, batch, start, options=tuning.Options(num_steps=1), optimiser=Partial(sgd, jnp.float32(rate))
    )[0]
    slope = jax.grad(loss)(start, lm, batch, jnp.ones(3))
    np.testing.assert_allclose(run(0.1), start - 0.1 * slope, atol=1e-5)
    with count_traces() as traced:
        run(0.2)
    assert traced == []


def central(key, loss, params, step):
    """A slope without a backward pass, along one random direction."""
    draw_key, loss_key = jax.random.split(key)
    direction = jax.random.normal(draw_key, params.shape)
    above, below = (loss(params + shift * direction, jax.random.clone(loss_key), step) for shift in (1e-2, -1e-2))
    return (above[0] - below[0]) / 2e-2 * direction, above[1]


def test_a_gradient_of_ones_own_makes_the_loss_small(lm, batch, start) -> None:
    _, info = tuned(
        lm, batch, start, gradient=central, options=tuning.Options(num_steps=200), optimiser=tuning.adam(0.02)
    )
    assert float(info.losses[-20:].mean()) < 0.9 * float(info.losses[0])


@pytest.mark.slow
def test_noise_rises_to_its_full_size(lm, start) -> None:
    # a model-free check: the first loss sees 1 / (rise * steps) of the noise, the last all of it
    ids = tuning.examples([[1, 5]], [[8, 2]])
    how = {"options": tuning.Options(num_steps=4, noise_rise=0.5), "optimiser": tuning.adam(0.0)}
    _, plain = tuned(lm, ids, start, **how)
    _, shifted = tuned(lm, ids, start, perturb=Partial(lambda key, rows: rows + 50.0), **how)
    full = loss(start + 50.0, lm, ids, jnp.ones(1))
    np.testing.assert_allclose(plain.losses, plain.losses[:1].repeat(4), rtol=1e-6)
    np.testing.assert_allclose(shifted.losses[1:], jnp.full(3, full), rtol=1e-5)
    assert not np.isclose(shifted.losses[0], full, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": jnp.zeros((1, 4, 32))}, "shape"),
        ({"state": jnp.zeros((4, 16))}, r"\(4, 32\)"),
        ({"state": jnp.full((4, 32), jnp.nan)}, "finite"),
        ({"weights": jnp.zeros(3)}, "at least one example"),
        ({"weights": jnp.ones((2, 3))}, r"weights.*vmap"),
        ({"weights": -jnp.ones(3)}, "weights"),
    ],
)
def test_bad_input_is_named(lm, batch, start, change, message) -> None:
    given = {"state": start, "weights": jnp.ones(3)} | change
    with pytest.raises(Exception, match=message):
        tuning.tune(jax.random.key(0), given["state"], lm, batch, given["weights"], adapter=ADAPTER)


def test_known_examples_are_checked_in_a_traced_call_too(lm, batch, start) -> None:
    run = lambda batch, weights: jax.eval_shape(lambda: tuned(lm, batch, start, weights)[0])  # noqa: E731
    assert run(batch, jnp.ones(3)).shape == start.shape
    with pytest.raises(ValueError, match=r"`weights` must give the state at least one example, but are all zero"):
        run(batch, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"`examples.targets` must lie in \[0, 64\)"):
        run(batch._replace(targets=batch.targets.at[0, 0].set(64)), jnp.ones(3))


@pytest.mark.parametrize(("texts", "answer"), [([1, 64], 8), ([1, -3], 8), ([1, 5], 64)])
def test_a_token_beyond_the_vocabulary_is_named(lm, start, texts, answer) -> None:
    batch = tuning.examples([texts], [[answer]])
    said = r"`examples\.(ids|targets)` must lie in \[0, 64\), the rows of the embedding, but holds (64|-3)\. Is the"
    with pytest.raises(ValueError, match=said):
        tuning.tune(jax.random.key(0), start, lm, batch, adapter=ADAPTER)
    with pytest.raises(ValueError, match=said):
        tuning.tune_windows(jax.random.key(0), lm, batch, adapter=tuning.lora(2), window=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tuning.adam(learning_rate=-1.0), "learning_rate"),
        (lambda: tuning.adam(clip_norm=0.0), "clip_norm"),
        (lambda: tuning.bounded(-1.0), "bound"),
        (lambda: tuning.penalties(largest=-1.0), "largest"),
        (lambda: tuning.penalties(anchor=float("nan")), "anchor"),
        (lambda: tuning.Schedule(kind="linaer"), "Did you mean 'linear'"),
        (lambda: tuning.prompt(0), "num_virtual"),
        (lambda: tuning.prompt(4, "txt"), "Did you mean 'text'"),
        (lambda: tuning.examples([[1, 2, 3]], [[4]], num_tokens=2), "num_tokens"),
        (lambda: tuning.examples([[1]], []), "one answer"),
        (lambda: tuning.examples([[1], [1]], [[4], [-100, -100]]), "a token of 0 or more each.* but answer 1 has none"),
    ],
)
def test_numbers_and_names_without_sense_are_named(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_penalty_is_of_rows(lm, batch) -> None:
    state = tuning.full().init(jax.random.key(0), lm, batch, None)
    with pytest.raises(ValueError, match=r"`penalty` must be of rows .* but the adapter has none\. Leave it out\."):
        tuning.tune(jax.random.key(0), state, lm, batch, adapter=tuning.full(), penalty=tuning.penalties(largest=1.0))


def test_unknown_options_are_named(lm, batch, start) -> None:
    with pytest.raises(TypeError, match="num_steps"):
        tuning.Options(num_step=3)
    with pytest.raises(TypeError, match="Did you mean 'optimiser'"):
        tuned(lm, batch, start, optimizer=tuning.adam())


def test_censored_noise_has_the_moments_of_its_closed_form() -> None:
    values = jnp.linspace(-1.0, 2.0, 200_000)
    for threshold in (0.0, 0.5, 2.0, float("inf")):
        noise = tuning.censored_noise(jax.random.key(3), values, sigma=0.1, threshold=threshold) - values
        z = np.asarray(noise, np.float64) / (0.1 * 2.0)
        mean, variance = right_censored_moments(threshold)
        assert abs(z.mean() - mean) < 5 * np.sqrt(variance / z.size)
        assert abs(z.var() - variance) < 5 * np.sqrt(np.square(np.square(z - mean) - variance).mean() / z.size)
    grad = jax.grad(lambda v: tuning.censored_noise(jax.random.key(0), v, sigma=0.1).sum())(values[:5])
    np.testing.assert_array_equal(grad, jnp.ones(5))


@pytest.mark.slow
def test_computing_blocks_again_changes_memory_and_not_the_prompts(lm, batch, start) -> None:
    found = [
        many(lm, batch, start, jnp.eye(3)[:2], options=tuning.Options(num_steps=3, remat=remat))[0]
        for remat in (False, True)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_refused(lm, batch, start) -> None:
    counts = jnp.ones(len(batch.ids)).at[0].set(jnp.inf)
    with pytest.raises(ValueError, match="`weights` must be finite"):
        tuning.tune(jax.random.key(0), start, lm, batch, counts, adapter=tuning.prompt(len(start)))
