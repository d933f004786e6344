"""Windows of the experiment on Edge-LLM: read together as by the library's vote, stopped as if tuned for less."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from nvcim_jax import models, tuning

tuning_part: Any = importlib.import_module("experiments.12_edge_llm.tuning")
programs: Any = importlib.import_module("experiments.12_edge_llm.programs")
summary: Any = importlib.import_module("experiments.12_edge_llm.summary")
CONFIG = models.Config(vocab_size=64, width=32, num_layers=4, num_heads=2, mlp_width=32, eos_ids=(2,))
OPTIONS = tuning.WindowOptions(num_steps=8, batch=2)
ADAPTER = tuning.lora(2)


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.3)


@pytest.fixture(scope="module")
def users() -> tuning.Examples:
    """Return two users of three texts."""
    given = {"num_tokens": 6, "num_answer": 3}
    both = [
        tuning.examples([[1, 5, 6], [1, 7], [1, 9, 10, 11]], [[8, 2], [9, 2], [12, 13, 2]], **given),
        tuning.examples([[1, 25, 6], [1, 27], [1, 9, 30, 11]], [[18, 2], [19, 2], [22, 23, 2]], **given),
    ]
    return jax.tree.map(lambda *a: jnp.stack(a), *both)


@pytest.fixture(scope="module")
def tuned(lm, users) -> Any:
    """Return what both have learned in at most four updates a window, the second stopped after two."""
    keys = jax.random.split(jax.random.key(1), 2)
    how = {"adapter": ADAPTER, "window": 2, "options": OPTIONS}
    return programs.tune_many(keys, lm, users, np.array([0.02, 0.03]), np.array([4, 2]), **how)


@pytest.mark.slow
def test_stopped_is_as_if_tuned_for_less(lm, users, tuned) -> None:
    key = jax.random.split(jax.random.key(1), 2)[1]
    own = jax.tree.map(lambda a: a[1], users)
    options = tuning.WindowOptions(num_steps=4, batch=2)
    rate = Partial(programs._until, jnp.float32(0.03), jnp.int32(9))
    less, info = tuning.tune_windows(key, lm, own, adapter=ADAPTER, window=2, options=options, optimiser=rate)
    np.testing.assert_allclose(tuned.tuned[1], less.tuned, atol=1e-5)
    assert info.losses.shape == (4,)


@pytest.mark.slow
def test_reads_are_the_votes_of_the_library(lm, users, tuned) -> None:
    names, ways = programs.reads(2)
    assert names == ["max", "mean", "exit 0", "exit 1"]
    losses, right = programs.losses(tuned, lm, users, ways, size=2)
    assert losses.shape == right.shape == (2, 4, 3)
    how: list[Any] = [{"how": "max"}, {"how": "mean"}, {"exits": (0,)}, {"exits": (1,)}]

    @jax.jit
    def votes(own: Any, test: tuning.Examples) -> list[jax.Array]:
        x = models.embed(lm, test.ids)
        return [tuning.vote(own, lm, x, at=test.where, **ways)[0] for ways in how]

    for u in range(2):
        own, test = (jax.tree.map(lambda a, u=u: a[u], tree) for tree in (tuned, users))
        for r, logits in enumerate(votes(own, test)):
            truth = models.token_losses(logits, test.targets).sum(axis=1)
            np.testing.assert_allclose(losses[u, r], truth, rtol=1e-4)
            hit = (logits.argmax(-1) == test.targets) & (test.targets >= 0)
            np.testing.assert_array_equal(right[u, r], hit.sum(axis=1))


@pytest.mark.slow
def test_answers_are_ranked_and_written_as_by_the_vote(lm, users, tuned) -> None:
    _, ways = programs.reads(2)
    answers = models.candidates([[8], [9], [12, 13]], end=2)
    asked = jnp.stack([jnp.array([[0, 1, 5, 6], [0, 0, 1, 7], [1, 9, 10, 11]])] * 2)
    found = programs.ranks(tuned, lm, (asked, asked > 0), answers, ways, size=2)
    own = jax.tree.map(lambda a: a[0], tuned)
    x = models.Inputs(models.embed(lm, asked[0]), asked[0] > 0)
    predict = lambda lm, x, at: tuning.vote(own, lm, x, at=at, how="mean")[0]  # noqa: E731
    np.testing.assert_array_equal(found[0, 1], models.rank(lm, x, answers, predict=predict).argmax(axis=1))
    one = jax.tree.map(lambda a: a[:1], tuned)
    letters = models.Text(Letters())
    words = programs.written(one, lm, (asked[:1], asked[:1] > 0), ways, room=2, text=letters)
    tokens, number = models.generate_tokens(jax.random.key(0), lm, x, max_new_tokens=2, predict=predict)
    kept = [row[:n] for row, n in zip(np.asarray(tokens), np.asarray(number), strict=True)]
    assert words[0][1] == [letters.decode(row).strip() for row in kept]


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids, **_):
        return "".join(chr(48 + int(i)) for i in ids)


def test_the_table_says_what_was_reached_at_what_speed() -> None:
    def record(user: str, method: str, hits: str, rate: float, reads: list[str]) -> dict[str, Any]:
        numbers = {name: {"loss": 1.0, "hits": hits, "exact": hits} for name in reads}
        return {"user": user, "method": method, "stop": 4, "rate": rate, "reads": numbers}

    names = ["max", "mean", "exit 0", "exit 1"]
    rates = [{"method": "lora", "stop": 4, "rate": 0.1, "reads": {"exit 0": 1.0}}]
    rates += [
        {"method": "windows", "stop": 4, "rate": rate, "reads": dict.fromkeys(names, loss)}
        for rate, loss in ((0.1, 2.0), (0.2, 1.0), (0.3, float("nan")))
    ]
    chosen = summary.best(rates)
    assert chosen["windows"][4] == {"max": 0.2, "mean": 0.2, "exit 1": 0.2}
    found = [record(user, "lora", "1100", 0.1, ["exit 0"]) for user in "ab"]
    base = {r["user"]: r["reads"]["exit 0"] | {"every": 1} for r in found}
    found += [record(user, "windows", hits, 0.2, names) for user, hits in (("a", "1110"), ("b", "1111"))]
    rows = summary._rows("clinc5", "as it is", found, chosen, base)
    lora, vote, alone = rows[0], rows[1], rows[-1]
    assert (lora["hits"], lora["over_lora"]) == (0.5, [0.0, 0.0, 0.0])
    assert (vote["hits"], vote["updates"], alone["updates"]) == (0.875, 8, 4)
    assert vote["over_lora"][0] == 0.375
    assert vote["over_lora"][1] <= 0.375 <= vote["over_lora"][2]
    # of each second text alone, of one side and of both
    thin = [r | {"every": 2} for r in found[2:]]
    both = {user: {"hits": "10", "every": 2} for user in "ab"}
    halves = [r | {"reads": {n: v | {"hits": v["hits"][::2]} for n, v in r["reads"].items()}} for r in thin]
    assert summary._rows("clinc5", "as it is", halves, chosen, both)[0]["over_lora"][0] == 0.5
    assert summary._rows("clinc5", "as it is", halves, chosen, base)[0]["over_lora"][0] == 0.5
    variants = {
        "lora": {"processor_seconds": [2.0, 4.0, 2.0], "seconds": [2.0] * 3, "memory_of_lora_over_it": 1.0},
        "windows, stored": {"processor_seconds": [0.5, 0.5, 1.0], "seconds": [1.0] * 3, "memory_of_lora_over_it": 1.7},
    }
    costs = {"variants": variants, "stream": {"processor_seconds": [1.0, 1.0, 1.0], "seconds": [0.0] * 3}}
    fast = summary.speeds(rows, costs, 4)
    assert fast[0]["faster"] == [1.0, 1.0, 1.0]
    assert fast[1]["faster"] == [1.6, 0.889, 3.2]  # 8 / 5, 8 / 9, 16 / 5
    assert (fast[1]["by_the_clock"], fast[1]["smaller"]) == ([1.0, 1.0, 1.0], 1.7)
    best = [(r["method"], r["read"], r["found"]) for r in summary.within(fast)]
    assert best == [("lora", "exit 0", name) for name in ("mean", "interval")] + [
        ("windows", "exit 0", name) for name in ("mean", "interval")
    ]
    assert "| clinc5 | as it is | windows | max | 8 | 1.70 | 1.60 | 87.5 % | +37.5 [" in summary.table(fast)


@pytest.mark.parametrize(
    ("method", "window", "only", "variant"),
    [
        ("last of two", 15, (1,), "windows of 15, stored"),
        ("last of three", 10, (2,), "windows of 10, stored"),
        ("last window", 6, (4,), "windows, stored"),
        ("upper windows", 6, (3, 4), "windows, stored"),
    ],
)
def test_a_part_alone_is_the_top_of_the_model_and_its_time_is_that_of_such_windows(
    method: str, window: int, only: tuple[int, ...], variant: str
) -> None:
    made = tuning_part._made(method, tuning_part.CONFIGS["processor"], 30)
    assert (made.window, made.only) == (window, only)
    assert summary._variant({"method": method, "model": "as it is"}) == variant
