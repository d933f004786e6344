"""The whole pipeline as one function: its gradients, its stages one by one, its chips, and training by it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, montecarlo, pipeline, selection, tuning
from nvcim_jax.pipeline.store import insert

TEMPERATURE = 0.3
ARRAYS = crossbar.Config(rows=32, cols=8, weight_scale="column")


@pytest.fixture(scope="module")
def smooth(config):
    """Return options under which nothing rounds: with `ARRAYS`, ideal converters and a soft pick."""
    return dataclasses.replace(config, pick="soft", codec="autoencoder", code=8)


@pytest.fixture(scope="module")
def gaussian():
    return devices.get("Gaussian", sigma=0.03)


@pytest.fixture(scope="module")
def memory(gaussian):
    return pipeline.crossbar_memory(gaussian, ARRAYS)


@pytest.fixture(scope="module")
def batch(lm, smooth):
    prompts = 0.5 * jax.random.normal(jax.random.key(1), (3, 2, 32))
    features = jax.random.normal(jax.random.key(2), (3, 1, 32))
    store = insert(pipeline.init(jax.random.key(0), lm, config=smooth).store, prompts, features, config=smooth)[0]
    store = store._replace(codec=selection.codec_init(jax.random.key(3), 32, code=8))
    examples = tuning.examples([[1, 5, 6], [1, 7], [1, 8, 9]], [[10, 2], [11, 2], [12, 2]])
    noise = jax.random.normal(jax.random.key(4), (3, 1, 32))
    return pipeline.Batch(examples, features + 0.5 * noise, store, jnp.array([1.0, 2.0, 1.0]))


@pytest.fixture(scope="module")
def loss(lm, batch, smooth, gaussian):
    """Return the objective as a function of what is trained and of sigma, on one chip."""

    def of(trained, sigma, seed=5):
        device = dataclasses.replace(gaussian, sigma=jnp.asarray(sigma, jnp.float32))
        key = jax.random.key(seed)
        memory = pipeline.crossbar_memory(device, ARRAYS)
        return pipeline.objective(key, trained, batch, lm, memory, config=smooth, temperature=TEMPERATURE)

    return of


@pytest.fixture(scope="module")
def gradients(loss, batch):
    return jax.grad(loss, argnums=(0, 1))(batch.store.trainable(), 0.03)


@pytest.mark.parametrize(
    ("part", "step"), [pytest.param("prompts", 1e-2, marks=pytest.mark.slow), ("codec", 1e-2), ("scale_weights", 2e-2)]
)
def test_gradients_agree_with_finite_differences(loss, batch, gradients, part, step):
    trained = batch.store.trainable()
    leaves, treedef = jax.tree.flatten(getattr(trained, part))
    slopes = jax.tree.leaves(getattr(gradients[0], part))
    norm = np.sqrt(sum(float(jnp.square(s).sum()) for s in slopes))
    assert norm > 1e-3
    rng = np.random.default_rng(0)
    for _ in range(2):
        # half along the gradient, so that there is something to see; half at random, so that no part hides
        drawn = [rng.standard_normal(a.shape).astype(np.float32) for a in leaves]
        size = np.sqrt(sum(float(np.square(d).sum()) for d in drawn))
        way = [s / norm + d / size for s, d in zip(slopes, drawn, strict=True)]

        def at(distance: float, way=way) -> float:
            moved = treedef.unflatten([a + distance * w for a, w in zip(leaves, way, strict=True)])
            return float(loss(trained._replace(**{part: moved}), 0.03))

        found = sum(float((s * w).sum()) for s, w in zip(slopes, way, strict=True))
        np.testing.assert_allclose(found, (at(step) - at(-step)) / (2 * step), rtol=0.03)


def test_the_gradient_by_sigma_agrees_with_finite_differences(loss, batch, gradients):
    trained = batch.store.trainable()
    slope = (float(loss(trained, 0.032)) - float(loss(trained, 0.028))) / 0.004
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(gradients[1], slope, rtol=0.03)


def test_empty_slots_get_no_gradient(gradients):
    np.testing.assert_array_equal(gradients[0].prompts[3], 0.0)


@pytest.mark.slow
def test_the_objective_is_its_stages_one_by_one(lm, batch, smooth, memory, loss):
    chip_key, read_key = jax.random.split(jax.random.key(5))
    held = pipeline.program_store(chip_key, batch.store, memory, config=smooth)
    prompts, found = pipeline.retrieve(
        read_key, batch.features, batch.store, held, memory, config=smooth, temperature=TEMPERATURE
    )
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-5)
    adapter = smooth.adapter()
    loss_of = jax.jit(lambda prompt, alone: tuning.answer_loss(prompt, lm, alone, jnp.ones(1), adapter=adapter))
    truth, tokens = 0.0, 0.0
    for i, weight in enumerate([1.0, 2.0, 1.0]):
        alone = jax.tree.map(lambda a, i=i: a[i : i + 1], batch.examples)
        count = float((alone.targets >= 0).sum())
        truth, tokens = truth + weight * count * float(loss_of(prompts[i], alone)), tokens + weight * count
    np.testing.assert_allclose(loss(batch.store.trainable(), 0.03), truth / tokens, rtol=1e-5)


def test_what_is_trained_is_answered_at_the_same_temperature(lm, text, batch, smooth, memory):
    state = pipeline.State(batch.store, pipeline.program_store(jax.random.key(5), batch.store, memory, config=smooth))
    queries = pipeline.make_queries(["pay"], lm, text, config=smooth, labels=["yes", "no"])
    shared = {inspect.signature(f).parameters["temperature"].default for f in (pipeline.objective, pipeline.train)}
    for more, temperature in (({}, shared.pop()), ({"temperature": TEMPERATURE}, TEMPERATURE)):
        _, info = pipeline.choose(jax.random.key(6), state, queries, lm, config=smooth, memory=memory, **more)
        wanted = jax.nn.softmax(info.found.scores / temperature, axis=1)
        np.testing.assert_allclose(info.found.weights, wanted, rtol=1e-5)
    assert not shared
    with pytest.raises(ValueError, match="`temperature` must lie in"):
        pipeline.choose(jax.random.key(6), state, queries, lm, config=smooth, memory=memory, temperature=0.0)


def test_another_sigma_and_another_chip_compile_nothing(loss, batch):
    trained = batch.store.trainable()
    values = [float(loss(trained, 0.03))]
    with count_traces() as traced:
        values += [float(loss(trained, 0.1)), float(loss(trained, 0.03, seed=6))]
    assert traced == []
    assert len(set(values)) == 3


@pytest.mark.slow
def test_chips_by_vmap_are_chips_by_loop(lm, batch, smooth, memory):
    def chip(key, trained, batch, lm, memory):
        return pipeline.objective(key, trained, batch, lm, memory, config=smooth, temperature=TEMPERATURE)

    args = (batch.store.trainable(), batch, lm, memory)
    loop, many = (
        montecarlo.run(chip, jax.random.key(9), 3, args=args, placement=montecarlo.Placement(mapping=mapping))
        for mapping in ("loop", "vmap")
    )
    np.testing.assert_allclose(loop.values, many.values, rtol=2e-5)
    single = chip(jax.random.fold_in(jax.random.key(9), 1), *args)
    np.testing.assert_allclose(loop.values[1], single, rtol=2e-5)
    assert loop.values.std() > 1e-3


@pytest.mark.slow
def test_straight_through_runs_forward_as_hard_and_passes_a_gradient(batch, smooth, memory):
    held = pipeline.program_store(jax.random.key(0), batch.store, memory, config=smooth)

    def prompts(weights, pick):
        options = dataclasses.replace(smooth, pick=pick)
        store = batch.store._replace(scale_weights=weights)
        return pipeline.retrieve(
            jax.random.key(1), batch.features, store, held, memory, config=options, temperature=TEMPERATURE
        )[0]

    weights = batch.store.scale_weights
    np.testing.assert_array_equal(prompts(weights, "hard"), prompts(weights, "straight_through"))
    slope = {
        pick: jax.grad(lambda w, pick=pick: jnp.square(prompts(w, pick)).sum())(weights)
        for pick in ("hard", "soft", "straight_through")
    }
    np.testing.assert_array_equal(slope["hard"], 0.0)
    assert float(jnp.abs(slope["soft"]).min()) > 0
    assert float(jnp.abs(slope["straight_through"]).min()) > 0


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_empty_slots_empty(lm, batch, smooth, memory):
    options = pipeline.EndToEnd(num_steps=30, batch=4)
    config = dataclasses.replace(smooth, pick="straight_through")
    store, losses = pipeline.train(
        jax.random.key(0), batch, lm, memory, config=config, options=options, temperature=TEMPERATURE,
        optimiser=tuning.adam(0.05, schedule=tuning.Schedule(warmup=0.0)), project=tuning.bounded(2.0),
    )  # fmt: skip
    assert losses.shape == (30,)
    assert float(losses[-8:].mean()) < 0.6 * float(losses[:8].mean())
    assert float(jnp.abs(store.prompts).max()) <= 2.0
    np.testing.assert_array_equal(store.prompts[3], 0.0)
    assert not jnp.array_equal(store.scale_weights, batch.store.scale_weights)
    assert not jnp.array_equal(store.codec.encoder[0][0], batch.store.codec.encoder[0][0])


def test_an_adapter_of_ones_own_is_trained_as_that(lm) -> None:
    """Without an update the loss is the objective's; without the adapter its rows would pass for a prompt."""
    config, adapter = pipeline.Config(capacity=2, codec="identity", pick="straight_through"), tuning.lora(4)
    examples = tuning.examples([[1, 5, 6]], [[8, 2]])
    state = adapter.init(jax.random.key(3), lm, examples) + 0.05
    store = pipeline.init(jax.random.key(1), lm, config=config, adapter=adapter).store
    store = store._replace(prompts=jnp.stack([state, state]), filled=jnp.ones(2, bool))
    store = store._replace(features=jnp.ones_like(store.features))
    batch = pipeline.Batch(examples, jnp.ones((1, 1, lm.config.width)), store, jnp.ones(1))
    key, exact = jax.random.key(5), pipeline.exact_memory()
    how = {"config": config, "adapter": adapter}
    options, still = pipeline.EndToEnd(num_steps=1, batch=1), tuning.adam(1e-12)
    _, losses = pipeline.train(key, batch, lm, exact, options=options, optimiser=still, **how)
    value = pipeline.objective(key, store.trainable(), batch, lm, exact, **how)
    np.testing.assert_allclose(losses, [value], rtol=1e-6)
    for call in (
        lambda: pipeline.train(key, batch, lm, exact, config=config),
        lambda: pipeline.objective(key, store.trainable(), batch, lm, exact, config=config),
    ):
        with pytest.raises(ValueError, match=r"`adapter` must have the rows of the store, .* Pass adapter= to every"):
            call()


def test_what_cannot_be_trained_is_named(lm, batch, smooth, memory):
    config = dataclasses.replace(smooth, pick="hard")
    with pytest.raises(ValueError, match="passes no gradient"):
        pipeline.train(jax.random.key(0), batch, lm, memory, config=config)
    with pytest.raises(ValueError, match="num_steps"):
        pipeline.EndToEnd(num_steps=0)
    wrong = batch._replace(features=batch.features[:2])
    with pytest.raises(ValueError, match=r"batch\.features"):
        pipeline.objective(jax.random.key(0), batch.store.trainable(), wrong, lm, memory, config=smooth)
