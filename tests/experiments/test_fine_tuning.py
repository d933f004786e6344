"""Tasks of the experiments on fine-tuning: scores by hand, perplexity of the library's own loss, windows of text."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import wikitext
from experiments.fine_tuning import methods, tasks
from nvcim_jax import data, models, pipeline, tuning

CONFIG = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG)


@pytest.fixture(scope="module")
def text() -> models.Text:
    return models.load(models.BUNDLED)[1]


def test_slots_by_hand() -> None:
    assert tasks.slots(["a = 1 | b = 2", "a = 3"], ["a = 1", "a = 3"]) == {"exact": 0.5, "slot_f1": 0.8}
    assert tasks.slots(["a = 1"], ["nonsense"]) == {"exact": 0.0, "slot_f1": 0.0}
    assert tasks.slots(["b = 2 | a = 1"], ["a = 1 | b = 2"])["slot_f1"] == 1.0


@pytest.mark.slow
def test_perplexity_is_that_of_the_loss(lm, text) -> None:
    ids = np.random.default_rng(0).integers(3, 4096, (5, 9)).astype(np.int32)
    task = tasks.predicting("text", text, tokens=9, num_train=2, num_test=3, ids=ids)
    exact = float(models.loss(lm, models.embed(lm, jnp.asarray(ids[2:])), jnp.asarray(ids[2:]))[0])
    found = task.score((), lm, tuning.frozen())
    assert found["nats"] == pytest.approx(exact, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(exact), rel=1e-4)


def test_windows_follow_each_other(text, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "wikitext2"
    folder.mkdir()
    words = "the cat sat on the mat and the dog ran to the door of the house . " * 40
    (folder / "test.txt.gz").write_bytes(gzip.compress(words.encode()))
    monkeypatch.setenv("NVCIM_DATA", str(tmp_path))
    begin = text.begin()
    whole = wikitext.windows(text, "test", tokens=16)
    assert (whole[:, : len(begin)] == begin).all()
    plain = text.encode(words)[: whole.size]
    assert whole[:, len(begin) :].ravel().tolist() == plain[: whole[:, len(begin) :].size]
    some = wikitext.windows(text, "test", tokens=16, num=3, start=2)
    assert (some == whole[2:5]).all()
    with pytest.raises(ValueError, match="`num` must be at most"):
        wikitext.windows(text, "test", tokens=16, num=10_000)


def test_every_method_makes_an_adapter_and_its_parts() -> None:
    for name, method in methods.METHODS.items():
        assert isinstance(method.adapter(), tuning.Adapter), name
        assert ("gradient" in methods.parts(method, "clinc5")) == (method.eps is not None), name


@pytest.mark.slow
def test_windows_that_are_measured_together_count_alike(lm, text) -> None:
    ids = np.random.default_rng(1).integers(3, 4096, (10, 9)).astype(np.int32)
    task = tasks.predicting("text", text, tokens=9, num_train=2, num_test=8, ids=ids)
    each = [float(models.loss(lm, models.embed(lm, row), row)[0]) for row in jnp.asarray(ids[2:])[:, None]]
    assert task.score((), lm, tuning.frozen())["nats"] == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.slow
def test_a_choice_is_scored_by_the_share_of_the_right_answer(lm, text) -> None:
    rows = data.builtin_records(0, num_users=1, num_topics=2, num_train=3, num_test=3)[0]
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    labels = sorted({row.output for row in rows})
    found = tasks.choosing("choice", train, test, labels, lm, text).score((), lm, tuning.frozen())
    queries = pipeline.make_queries([row.input for row in test], lm, text, labels=labels)
    inputs = models.Inputs(models.embed(lm, queries.ids), queries.mask)
    scores = np.asarray(models.rank(lm, inputs, queries.answers), np.float64)
    truth = np.array([labels.index(row.output) for row in test])
    nats = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(truth)), truth]
    assert found["nats"] == pytest.approx(nats.mean(), rel=1e-4)
    assert found["accuracy"] == (scores.argmax(axis=1) == truth).mean()


def test_text_and_answers_have_rates_of_their_own() -> None:
    method = methods.Method(tuning.ia3, 0.25, 0.5)
    for task, rate in (("clinc5, home", 0.25), ("snips_slots", 0.25), ("wikitext2", 0.5)):
        assert methods.rate_of(method, task) == rate
        assert float(methods.parts(method._replace(eps=1e-3), task)["optimiser"].args[0]) == rate
