"""The five kinds of tasks: scores and floors by hand, and the same records as a study makes one by one."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.five_tasks import arrays, asking, measure, tasks, training
from nvcim_jax import data, devices, models, pipeline, study

run: Any = importlib.import_module("experiments.15_five_tasks.run")
TINY = run.CONFIGS["tiny"]


@pytest.fixture(scope="module")
def loaded() -> tuple[models.LM, models.Text]:
    return run.language_model(TINY)


def _stream(name: str, seed: int = 0) -> data.Stream:
    rows = tasks.made_up(name)
    return tasks.stream(name, rows, seed, buffer_size=TINY.buffer_size, num_test=TINY.num_test)


def test_scores_by_hand() -> None:
    assert tasks.TASKS["ratings"].score(["5", "3"], ["4", "3"]) == {"accuracy": 0.5, "mae": 0.5}
    assert tasks.TASKS["titles"].score(["a b", "c d"], ["a b", "c x"]) == {"rouge_1": 0.75}
    assert tasks.TASKS["slots"].score(["a = 1"], ["a = 1"]) == {"exact": 1.0, "slot_f1": 1.0}


def test_floors_by_hand(loaded) -> None:
    rows = [
        data.Record("0", "u", "rating", "good film", "5", "train"),
        data.Record("1", "u", "rating", "fine film", "5", "train"),
        data.Record("2", "v", "rating", "bad story", "1", "train"),
        data.Record("3", "v", "rating", "long story", "2", "train"),
        data.Record("4", "u", "rating", "good story", "4", "test"),
        data.Record("5", "v", "rating", "bad film", "1", "test"),
    ]
    config = data.StreamConfig(buffer_size=2)
    made = data.stream(rows, seed=0, config=config, domains=("u", "v"), labels=("1", "2", "3", "4", "5"))
    text = tasks.as_text(loaded[1], "ratings", TINY.preset)
    found = {name: answers for name, answers, _ in tasks.floors("ratings", made, text)}
    assert found["1-NN own domain"][0] == "5"
    assert found["most frequent"] == ["5", "5"]
    assert found["median"] == ["2", "2"]  # of 1 2 5 5, the lower of the middle ones
    assert found["median, own user"] == ["5", "1"]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_streams_of_other_seeds_are_others(name: str) -> None:
    one, two = (_stream(name, seed) for seed in (0, 1))
    assert len(one.domains) == tasks.TASKS[name].num_domains
    assert {row.id for b in one.blocks for row in b.records} != {row.id for b in two.blocks for row in b.records}


def test_users_of_other_streams_are_others() -> None:
    rows = [
        data.Record(f"{u} {i}", f"user {u}", "rating", "film", "3", "train" if i < 2 else "test")
        for u in range(12)
        for i in range(4)
    ]
    found = [tasks.stream("ratings", rows, seed, buffer_size=2, num_test=2).domains for seed in range(3)]
    assert len({user for domains in found for user in domains}) == 12


@pytest.mark.slow
def test_an_answer_is_scored_until_the_text_ends_and_queries_alone_see_no_prompt(loaded) -> None:
    lm, text = loaded
    own = tasks.as_text(text, "titles", TINY.preset)
    made = _stream("titles")
    held = arrays.arrays(made, lm, own, config=TINY.preset.config, room=arrays.sizes([made], lm, own), chosen=False)
    prompt = np.asarray(jax.random.normal(jax.random.key(0), (4, lm.config.width)))
    wanted = {("alone", 0): None, ("prompt", 0): prompt, ("alone", 5): None}
    found = asking.answer(wanted, held, lm, num_rows=4, num_virtual=4, tokens=4)
    for (kind, query), tokens in found.items():
        ids = held.ids[query][held.mask[query]][None]
        x = models.Inputs(models.embed(lm, jnp.asarray(ids)))
        if kind == "prompt":
            x = models.prepend(jnp.asarray(prompt), x)
        exact, number = models.generate_tokens(jax.random.key(1), lm, x, max_new_tokens=4)
        assert tokens == exact[0, : int(number[0])].tolist()


@pytest.mark.slow
def test_records_are_those_of_a_study(loaded, tmp_path) -> None:
    lm, text = loaded
    own, made = tasks.as_text(text, "intents", TINY.preset), _stream("intents")
    device = devices.get(TINY.device, sigma=TINY.sigma)
    names = ("SWV", "CorrectNet", "No-Miti(MIPS)", "NVCiM-PT")
    design = study.Design(
        methods={name: study.METHODS[name] for name in names},
        baselines=("frozen", "1-NN text"),
        num_instances=TINY.num_chips,
        digital=False,
    )
    rows = list(study.measure(jax.random.key(0), [made], lm, own, [device], preset=TINY.preset, design=design))
    config = run.Config(**{**vars(TINY), "tasks": ("intents",), "methods": names})
    measure.measure(config, tmp_path, [0], lm=lm, text=text, options=measure.Options(3, 8), say=lambda note: None)
    mine = {(r["method"], r["instance"], r["domain"]): r for r in measure.read(tmp_path) if r["device"] != "exact"}
    assert len(rows) == 2 * 4 + 4 * 2 * 4
    for row in rows:
        found = mine[row["method"], row["instance"], row["domain"]]
        assert (found["accuracy"], found["hit"]) == (row["accuracy"], row["hit"]), row
    before = (tmp_path / "parts" / "intents-0.jsonl").stat().st_mtime_ns
    measure.measure(config, tmp_path, [0], lm=lm, text=text, options=measure.Options(), say=lambda note: None)
    assert (tmp_path / "parts" / "intents-0.jsonl").stat().st_mtime_ns == before
    other = run.Config(**{**vars(config), "sigma": 0.2})
    with pytest.raises(ValueError, match="`out` must hold records of this configuration"):
        measure.measure(other, tmp_path, [0], lm=lm, text=text, options=measure.Options(), say=lambda note: None)


@pytest.mark.slow
def test_prompts_tuned_side_by_side_are_those_tuned_one_by_one(loaded) -> None:
    lm, text = loaded
    own, made = tasks.as_text(text, "slots", TINY.preset), _stream("slots")
    config, device = TINY.preset.config, devices.get("FeFET3", sigma=0.1)
    room = arrays.sizes([made], lm, own)
    held = arrays.arrays(made, lm, own, config=config, room=room, chosen=False)
    found = training.train(jax.random.key(3), held.buffers, lm, device, preset=TINY.preset, together=12)
    for name, noise in (("plain", None), ("noise", device)):
        labelled = made._replace(candidates=dict.fromkeys(made.domains, ("a", "b")))
        one = study.observe_stream(
            jax.random.key(3), labelled, lm, own, noise, preset=TINY.preset, with_curvature=name == "plain"
        )
        for mine, exact in zip(jax.tree.leaves(found.stores[name]), jax.tree.leaves(one.stores[-1]), strict=True):
            np.testing.assert_allclose(mine, exact, atol=2e-4)
        if name == "plain":
            np.testing.assert_allclose(found.curvature, one.curvatures[-1], rtol=1e-2, atol=1e-3)
    assert isinstance(found.stores["plain"], pipeline.Store)


def test_a_summary_by_hand() -> None:
    rows = [
        {
            "task": "ratings", "stream": s, "instance": c, "device": "FeFET3", "method": m, "domain": d,
            "hit": None, **dict.fromkeys(tasks.METRICS), "mae": value + s + 0.1 * c,
        }
        for m, value in (("NVCiM-PT", 1.0), ("other", 2.0)) for s in range(2) for c in range(2) for d in "ab"
    ]  # fmt: skip
    ours, other = measure.summarise(rows)
    assert (ours["mean"], ours["streams"], ours["chips"]) == (pytest.approx(1.55), 2, 2)
    assert (other["ahead"], other["ahead_low"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (other["better_in"], ours["better_in"], other["domains"]) == (4, 0, 4)
