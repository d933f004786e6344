"""Prompt tuning: its loss against the model's own, its bounds, its noise, many prompts against one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from nvcim_jax import devices, models, tuning

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
OPTIONS = tuning.Options(num_steps=30)


@pytest.fixture(scope="module")
def lm():
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def batch():
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10, 11]], [[8, 2], [9, 2], [12, 13, 2]])


def starts(lm, num: int) -> jax.Array:
    ids = jnp.arange(20, 24)
    one = tuning.init_text(lm, ids, 4)
    return jnp.broadcast_to(one, (num, *one.shape))


def test_loss_equals_the_models_own_loss(lm, batch):
    prompt = starts(lm, 1)[0]
    x = models.embed(lm, jnp.array([[1, 9, 10, 11, 12, 13, 2]]))
    x = jnp.concatenate([prompt[None], x], axis=1)
    labels = jnp.array([[models.IGNORE] * 8 + [12, 13, 2]])
    truth, _ = models.loss(lm, x, labels)
    found = tuning.prompt_loss(prompt, lm, batch, jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, truth, rtol=2e-6)


def test_weights_count_tokens(lm, batch):
    prompt = starts(lm, 1)[0]
    each = [tuning.prompt_loss(prompt, lm, batch, w) for w in jnp.eye(3)]
    whole = tuning.prompt_loss(prompt, lm, batch, jnp.ones(3))
    np.testing.assert_allclose(whole, (2 * each[0] + 2 * each[1] + 3 * each[2]) / 7, rtol=1e-5)


def test_tuning_is_adam_on_that_loss(lm, batch):
    prompt = starts(lm, 1)[0]
    rates = tuning.Rates(learning_rate=0.01, clip_norm=1e9)
    options = tuning.Options(num_steps=5, schedule="constant", warmup=0.0)
    found, info = tuning.tune(jax.random.key(1), prompt[None], lm, batch, jnp.ones((1, 3)), rates, options=options)
    adam = optax.adam(0.01)
    state, truth, losses = adam.init(prompt), prompt, []
    for _ in range(5):
        value, grad = jax.value_and_grad(tuning.prompt_loss)(truth, lm, batch, jnp.ones(3))
        with jax.numpy_dtype_promotion("standard"):
            update, state = adam.update(grad, state)
        truth, losses = truth + update, [*losses, value]
    np.testing.assert_allclose(found[0], truth, atol=2e-5)
    np.testing.assert_allclose(info.losses[0], jnp.stack(losses), rtol=1e-4)


def test_prompts_side_by_side_equal_prompts_alone(lm, batch):
    weights = jnp.eye(3)
    both, _ = tuning.tune(jax.random.key(1), starts(lm, 3), lm, batch, weights, options=OPTIONS)
    alone, _ = tuning.tune(jax.random.key(1), starts(lm, 1), lm, batch, weights[:1], options=OPTIONS)
    np.testing.assert_allclose(both[0], alone[0], atol=1e-4)
    assert jnp.abs(both[0] - both[1]).max() > 0.01


def test_tuning_lowers_the_loss_of_its_own_example_most(lm, batch):
    tuned, info = tuning.tune(
        jax.random.key(1),
        starts(lm, 3),
        lm,
        batch,
        jnp.eye(3),
        options=tuning.Options(num_steps=80),
        rates=tuning.Rates(learning_rate=0.05),
    )
    assert (info.losses[:, -1] < 0.5 * info.losses[:, 0]).all()
    table = [[tuning.prompt_loss(p, lm, batch, w) for w in jnp.eye(3)] for p in tuned]
    assert (np.argmin(np.asarray(table), axis=1) == np.arange(3)).all()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_bound_and_seed(lm, batch, batch_size):
    options = tuning.Options(num_steps=20, batch=batch_size)
    run = lambda seed: tuning.tune(  # noqa: E731
        jax.random.key(seed),
        starts(lm, 1),
        lm,
        batch,
        jnp.ones((1, 3)),
        tuning.Rates(learning_rate=0.1, bound=0.25),
        options=options,
        perturb=Partial(devices.value_noise, device=devices.get("FeFET6", sigma=0.1)),
    )
    first, info = run(0)
    assert float(info.largest[0]) <= 0.25
    assert jnp.array_equal(first, run(0)[0])
    assert not jnp.array_equal(first, run(1)[0])


def test_penalty_on_the_maximum_shrinks_it_and_the_anchor_holds(lm, batch):
    def largest(**numbers) -> float:
        _, info = tuning.tune(
            jax.random.key(0),
            starts(lm, 1),
            lm,
            batch,
            jnp.ones((1, 3)),
            tuning.Rates(learning_rate=0.05, **numbers),
            options=OPTIONS,
        )
        return float(info.largest[0])

    assert largest(max_penalty=1.0) < 0.7 * largest()
    anchor = starts(lm, 1)
    free, _ = tuning.tune(
        jax.random.key(0),
        anchor,
        lm,
        batch,
        jnp.ones((1, 3)),
        tuning.Rates(learning_rate=0.05),
        options=OPTIONS,
        anchors=anchor,
    )
    held, _ = tuning.tune(
        jax.random.key(0),
        anchor,
        lm,
        batch,
        jnp.ones((1, 3)),
        tuning.Rates(learning_rate=0.05, anchor=100.0),
        options=OPTIONS,
        anchors=anchor,
    )
    assert jnp.linalg.norm(held - anchor) < 0.5 * jnp.linalg.norm(free - anchor)


def test_lipschitz_bound_is_above_the_largest_singular_value(lm, batch):
    rates = tuning.Rates(learning_rate=0.05, lipschitz=10.0, lipschitz_limit=0.5)
    tuned, _ = tuning.tune(
        jax.random.key(0),
        starts(lm, 1),
        lm,
        batch,
        jnp.ones((1, 3)),
        rates,
        options=tuning.Options(num_steps=200),
    )
    assert float(jnp.linalg.norm(tuned[0], ord=2)) < 0.75
    squared = jnp.abs(tuned[0] @ tuned[0].T).sum(axis=1).max()
    assert float(jnp.linalg.norm(tuned[0], ord=2)) ** 2 <= float(squared) * 1.0001


def test_new_numbers_compile_nothing(lm, batch):
    from nvcim_jax.tuning.soft_prompt import _tune_all

    def run(rate: float, sigma: float) -> None:
        noise = Partial(devices.value_noise, device=devices.get("FeFET6", sigma=sigma))
        tuning.tune(
            jax.random.key(0),
            starts(lm, 2),
            lm,
            batch,
            jnp.ones((2, 3)),
            tuning.Rates(learning_rate=rate),
            options=tuning.Options(num_steps=3),
            perturb=noise,
        )

    run(0.1, 0.1)
    before = _tune_all._cache_size()
    run(0.2, 0.05)
    assert _tune_all._cache_size() == before


def test_noise_rises_to_its_full_size(lm):
    # a model-free check: the first loss sees 1 / (rise * steps) of the noise, the last all of it
    ids = tuning.examples([[1, 5]], [[8, 2]])
    jump = Partial(lambda key, prompt: prompt + 50.0)
    _, plain = tuning.tune(
        jax.random.key(0),
        starts(lm, 1),
        lm,
        ids,
        jnp.ones((1, 1)),
        tuning.Rates(learning_rate=0.0),
        options=tuning.Options(num_steps=4),
    )
    _, shifted = tuning.tune(
        jax.random.key(0),
        starts(lm, 1),
        lm,
        ids,
        jnp.ones((1, 1)),
        tuning.Rates(learning_rate=0.0),
        options=tuning.Options(num_steps=4, noise_rise=0.5),
        perturb=jump,
    )
    full = tuning.prompt_loss(starts(lm, 1)[0] + 50.0, lm, ids, jnp.ones(1))
    np.testing.assert_allclose(plain.losses[0], plain.losses[0, :1].repeat(4), rtol=1e-6)
    np.testing.assert_allclose(shifted.losses[0, 1:], jnp.full(3, full), rtol=1e-5)
    assert not np.isclose(shifted.losses[0, 0], full, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": jnp.zeros((4, 32))}, "must have shape"),
        ({"prompts": jnp.zeros((1, 4, 16))}, "must have width 32"),
        ({"weights": jnp.zeros((1, 3))}, "at least one example"),
        ({"weights": jnp.ones((2, 3))}, "weights"),
        ({"weights": -jnp.ones((1, 3))}, "weights"),
    ],
)
def test_bad_input_is_named(lm, batch, change, message):
    given = {"prompts": starts(lm, 1), "weights": jnp.ones((1, 3))} | change
    with pytest.raises(Exception, match=message):
        tuning.tune(jax.random.key(0), given["prompts"], lm, batch, given["weights"])


def test_options_are_checked():
    with pytest.raises(ValueError, match="schedule"):
        tuning.Options(schedule="linaer")
    with pytest.raises(TypeError, match="num_steps"):
        tuning.Options(num_step=3)
    with pytest.raises(ValueError, match="num_tokens"):
        tuning.examples([[1, 2, 3]], [[4]], num_tokens=2)
    with pytest.raises(ValueError, match="one answer"):
        tuning.examples([[1]], [])


def test_censored_noise_has_the_moments_of_its_closed_form():
    values = jnp.linspace(-1.0, 2.0, 200_000)
    for threshold in (0.0, 0.5, 2.0, float("inf")):
        noise = tuning.censored_noise(jax.random.key(3), values, sigma=0.1, threshold=threshold) - values
        z = np.asarray(noise, np.float64) / (0.1 * 2.0)
        mean, variance = tuning.right_censored_moments(threshold)
        assert abs(z.mean() - mean) < 5 * np.sqrt(variance / z.size)
        assert abs(z.var() - variance) < 5 * np.sqrt(np.square(np.square(z - mean) - variance).mean() / z.size)
    grad = jax.grad(lambda v: tuning.censored_noise(jax.random.key(0), v, sigma=0.1).sum())(values[:5])
    np.testing.assert_array_equal(grad, jnp.ones(5))


def test_computing_blocks_again_changes_memory_and_not_the_prompts(lm) -> None:
    batch = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
    found = [
        tuning.tune(
            jax.random.key(0),
            starts(lm, 2),
            lm,
            batch,
            jnp.eye(2),
            options=tuning.Options(num_steps=3, remat=remat),
        )[0]
        for remat in (False, True)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)
