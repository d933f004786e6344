"""The contract of adapters, one table: rows and back, jit = eager, vmap = loop, gradients, and no second compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from support.tracing import count_traces

from nvcim_jax import models, tuning

CONFIG = models.Config(
    vocab_size=64, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48, qkv_bias=True, eos_ids=(2,)
)


def _zeros(key, lm, examples, weights=None):
    del key, examples, weights
    return {"shift": jnp.zeros(lm.config.width)}


def _shift(state, lm, inputs):
    places = jnp.arange(inputs.x.shape[1])[None]
    text = jnp.ones_like(places, bool) if inputs.num_text is None else places < inputs.num_text[:, None]
    return lm, inputs._replace(x=inputs.x + jnp.where(text[..., None], state["shift"][None, None], 0.0))


def shift() -> tuning.Adapter:
    """An adapter of one's own: a vector that is added to every embedding of a text."""
    return tuning.Adapter(_zeros, _shift, lambda state: state["shift"][None], lambda rows: {"shift": rows[0]})


def _ones(key, lm, examples, weights=None):
    del key, examples, weights
    return jnp.ones((1, lm.config.width))


def _scale(state, lm, inputs):
    params = lm.params | {"final_norm": lm.params["final_norm"] * state[0]}
    return lm.replace(params=params), inputs


def scale() -> tuning.Adapter:
    """An adapter of one's own that changes the model: a factor on the last norm."""
    return tuning.Adapter(Partial(_ones), Partial(_scale), Partial(jnp.asarray), Partial(jnp.asarray))


ADAPTERS = {
    "prompt": tuning.prompt(4),
    "prompt from the vocabulary": tuning.prompt(4, "vocabulary"),
    "prompt from activations": tuning.prompt(4, tuning.start_activations(1)),
    "prefix": tuning.prefix(3),
    "p-tuning": tuning.p_tuning(4, 16),
    "lora": tuning.lora(2, 4.0),
    "rslora on a group": tuning.lora(4, 2.0, targets=("q+k", "down", "gate+up"), rs=True),
    "dora": tuning.lora(2, dora=True),
    "ia3": tuning.ia3(),
    "ia3 on biased outputs": tuning.ia3(("q", "o", "up"), inputs=("o",)),
    "dept": tuning.dept(2, 3, 8),
    "shift": shift(),
    "scale": scale(),
}


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def batch() -> tuning.Examples:
    return tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10]], [[8, 2], [9, 2], [12, 2]])


@pytest.fixture(params=ADAPTERS, scope="module")
def adapter(request) -> tuning.Adapter:
    return ADAPTERS[request.param]


def equal(a, b, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.slow
def test_rows_and_back_give_the_state(lm, batch, adapter) -> None:
    state = adapter.init(jax.random.key(1), lm, batch)
    rows = adapter.rows(state)
    assert rows.shape == adapter.rows_shape(lm)
    again = adapter.from_rows(rows)
    equal(adapter.rows(again), rows, 0.0)
    if jax.tree.structure(again) == jax.tree.structure(state):  # P-tuning drops its network on the way
        equal(again, state, 0.0)


@pytest.mark.slow
def test_the_loss_is_that_of_ranking(lm, adapter) -> None:
    """What is tuned on is what is asked: the log-probability of an answer of several tokens, behind a padded text."""
    texts, answers = [[1, 5, 6], [1, 7], [1, 9, 10]], [[8, 3], [9], [12, 4, 5]]
    both = tuning.examples(texts, [[*own, 2] for own in answers])
    state = adapter.init(jax.random.key(1), lm, both)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    state = jax.tree.unflatten(tree, moved)
    ids, mask = jnp.array([[1, 5, 6], [0, 1, 7], [1, 9, 10]]), jnp.array([[1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
    adapted, inputs = adapter.apply(state, lm, models.Inputs(models.embed(lm, ids), mask))
    found = models.rank(adapted, inputs, models.candidates(answers, end=2))
    for i, own in enumerate(answers):
        loss = tuning.answer_loss(state, lm, both, jnp.eye(3)[i], adapter=adapter)
        assert float(found[i, i]) == pytest.approx(-float(loss) * (len(own) + 1), rel=1e-4)


@pytest.mark.slow
def test_jit_equals_eager_and_vmap_equals_a_loop(lm, batch, adapter) -> None:
    adapter = tuning.as_adapter(adapter)
    keys, weights = jax.random.split(jax.random.key(1), 2), jnp.eye(3)[:2]
    states = [adapter.init(key, lm, batch, own) for key, own in zip(keys, weights, strict=True)]
    jitted = jax.jit(lambda adapter, key, lm, batch, own: adapter.init(key, lm, batch, own))
    equal([jitted(adapter, key, lm, batch, own) for key, own in zip(keys, weights, strict=True)], states)
    many = jax.vmap(lambda key, own: adapter.init(key, lm, batch, own))(keys, weights)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    equal(many, stacked)
    loss = lambda state: tuning.answer_loss(state, lm, batch, jnp.ones(3), adapter=adapter)  # noqa: E731
    equal(jax.vmap(loss)(many), jnp.stack([loss(state) for state in states]))


@pytest.mark.slow
def test_gradients_are_finite_and_not_all_zero(lm, batch, adapter) -> None:
    state = adapter.init(jax.random.key(1), lm, batch)
    slope = jax.grad(lambda s: tuning.answer_loss(s, lm, batch, jnp.ones(3), adapter=adapter))(state)
    leaves = jax.tree.leaves(slope)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)
    assert sum(float(jnp.abs(leaf).max()) for leaf in leaves) > 1e-4


@pytest.mark.slow
def test_tuning_lowers_the_loss_and_compiles_once(lm, batch, adapter) -> None:
    options = tuning.Options(num_steps=20)

    def run(seed: int, rate: float) -> tuning.TuneInfo:
        state = adapter.init(jax.random.key(seed), lm, batch)
        how = {"adapter": adapter, "options": options, "optimiser": tuning.adam(rate)}
        return tuning.tune(jax.random.key(seed), state, lm, batch, **how)[1]

    info = run(1, 0.05)
    assert float(info.losses[-1]) < float(info.losses[0])
    with count_traces() as traced:
        run(2, 0.02)
    assert [name for name in traced if "tune" in name] == []


def test_an_adapter_that_is_made_again_compiles_nothing(lm, batch) -> None:
    state = tuning.prompt(3).init(jax.random.key(1), lm, batch)

    def run() -> None:
        adapter = tuning.prompt(3, tuning.start_activations(1))
        tuning.tune(jax.random.key(1), state, lm, batch, adapter=adapter, options=tuning.Options(num_steps=2))

    run()
    with count_traces() as traced:
        run()
    assert traced == []


@pytest.mark.slow
def test_the_frozen_adapter_is_the_model_itself(lm, batch) -> None:
    adapter = tuning.frozen()
    found = tuning.answer_loss((), lm, batch, jnp.ones(3), adapter=adapter)
    states, _ = models.hidden(lm, models.embed(lm, batch.ids), at=batch.where)
    losses = models.token_losses(models.head(lm, states), batch.targets)
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-6)  # each answer has two tokens
    assert adapter.apply((), lm, models.Inputs(jnp.ones((1, 2, 32))))[0] is lm


@pytest.mark.parametrize("adapter", [tuning.prompt(4), tuning.p_tuning(4, 16)], ids=["prompt", "p-tuning"])
def test_rows_of_something_else_are_no_virtual_tokens(lm, batch, adapter) -> None:
    with pytest.raises(ValueError, match=r"`state` must have 4 virtual tokens, but has 28\. Is it the adapter"):
        tuning.answer_loss(jnp.ones((28, lm.config.width)), lm, batch, jnp.ones(3), adapter=adapter)
