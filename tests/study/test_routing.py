"""Who chooses the prompt: the relations that must hold between oracle, search and chance, chip by chip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices, models, montecarlo, pipeline, study, tuning
from nvcim_jax.pipeline.store import empty_store, insert
from nvcim_jax.pipeline.text import Queries

EACH = 12  # queries of each of two domains
CHIPS = 20
ROUTES = ("oracle", "search", "random")


@pytest.fixture(scope="module")
def options(config):
    return dataclasses.replace(config, capacity=2)


@pytest.fixture(scope="module")
def store(lm, options):
    """Return two prompts, tuned to say token 10 in domain 0 and token 11 in domain 1, whatever the text."""
    texts = [[1, 5, 6], [1, 7, 8]] * 2
    batch = tuning.examples(texts, [[10, 2]] * 2 + [[11, 2]] * 2)
    weights = jnp.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    start = models.embed(lm, jnp.array([3, 4]))
    how = {"adapter": options.adapter(), "options": tuning.Options(num_steps=40), "optimiser": tuning.adam(0.1)}
    tune = lambda key, own: tuning.tune(key, start, lm, batch, own, **how)[0]  # noqa: E731
    prompts = jax.vmap(tune)(jax.random.split(jax.random.key(1), 2), weights)
    made = empty_store((2, 32), options)
    for prompt, features in zip(prompts, jnp.eye(2, 32), strict=True):
        made, _ = insert(made, prompt[None], features[None, None], config=options)
    return made


def asked(noise: float) -> study.Questions:
    """Return queries near the features of their domain's prompt."""
    domain = jnp.repeat(jnp.arange(2), EACH)
    features = jnp.eye(2, 32)[domain][:, None] + noise * jax.random.normal(jax.random.key(2), (2 * EACH, 1, 32))
    ids = jax.random.randint(jax.random.key(3), (2 * EACH, 3), 5, 9).at[:, 0].set(1)
    answers = models.candidates([[10], [11]], end=2)
    return study.Questions(
        queries=Queries(ids, jnp.ones((2 * EACH, 3), bool), features, answers),
        truth=domain,
        domain=domain,
        counts=jnp.full(2, float(EACH)),
        domain_of_block=jnp.arange(2),
    )


@pytest.fixture(scope="module")
def ask(lm, options, arrays):
    """Return a function that asks all queries on `CHIPS` chips; values are (chips, domains)."""

    def run(route: str, store, questions, sigma: float = 0.1) -> dict[str, np.ndarray]:
        preset = pipeline.Preset(config=options, arrays=arrays)
        own = study.trial(preset, study.Method(measure="ssa", route=route))
        unused = jnp.zeros_like(store.prompts), questions.queries.features
        args = (own, lm, store, *unused, questions, devices.get("FeFET3", sigma=sigma))
        return montecarlo.run(study.chip_metric, jax.random.key(4), CHIPS, args=args).values

    return run


@pytest.mark.slow
def test_oracle_beats_search_beats_chance(ask, store):
    found = {route: ask(route, store, asked(noise=0.7)) for route in ROUTES}
    hit = {route: values["hit"].mean(axis=1) for route, values in found.items()}
    np.testing.assert_array_equal(hit["oracle"], 1.0)
    assert abs(hit["random"].mean() - 0.5) < 5 * 0.5 / np.sqrt(CHIPS * 2 * EACH)
    assert 0.6 < hit["search"].mean() < 0.98
    accuracy = {route: values["accuracy"].mean(axis=1) for route, values in found.items()}
    assert accuracy["oracle"].mean() > 0.9
    for better, worse in (("oracle", "search"), ("search", "random")):
        difference = accuracy[better] - accuracy[worse]  # on the same chips
        assert difference.mean() > 5 * difference.std(ddof=1) / np.sqrt(CHIPS)


@pytest.mark.slow
def test_the_wrong_domains_prompt_never_hits_and_never_answers(ask, store):
    crossed = store._replace(block=store.block[::-1])
    found = ask("search", crossed, asked(noise=0.0), sigma=0.01)
    np.testing.assert_array_equal(found["hit"], 0.0)
    # prompts that belong to the other domain's features give the other domain's answer
    crossed = store._replace(features=store.features[::-1])
    found = ask("search", crossed, asked(noise=0.0), sigma=0.01)
    assert found["accuracy"].mean() < 0.1
    assert ask("search", store, asked(noise=0.0), sigma=0.01)["accuracy"].mean() > 0.9


@pytest.mark.slow
def test_with_one_stored_prompt_all_routers_agree(ask, store):
    alone = store._replace(filled=jnp.array([True, False]), prompts=store.prompts.at[1].set(0.0))
    found = [ask(route, alone, asked(noise=0.7)) for route in ROUTES]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0]["accuracy"], other["accuracy"])
        np.testing.assert_array_equal(found[0]["hit"], other["hit"])
    np.testing.assert_array_equal(found[0]["hit"], np.tile([1.0, 0.0], (CHIPS, 1)))
