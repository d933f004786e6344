"""Studies: records against the pieces they are made of, independence of what else is measured, resume, summaries."""

import importlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, models, montecarlo, pipeline, study, tuning
from nvcim_jax.data import Record

BANK = ("pay card", "bank loan", "card bank", "pay loan", "loan card", "pay bank")
FOOD = ("oven soup", "salt cook", "soup salt", "cook oven", "cook soup", "oven salt")
METHODS = {
    "plain": study.Method(),
    "oracle route": study.Method(route="oracle"),
    "CxDNN": study.Method(mitigation="cxdnn"),
}
BASELINES = ("frozen", "latest", "1-NN text", "1-NN own domain")


class Block(NamedTuple):
    domain: str
    records: tuple[Record, ...]


class Stream(NamedTuple):
    seed: int
    blocks: tuple[Block, ...]
    test: dict[str, tuple[Record, ...]]
    labels: tuple[str, ...] = ("yes", "no", "maybe")
    domains: tuple[str, ...] = ("money", "kitchen")
    kind: str = "block"
    unseen: str | None = None


def rows(domain: str, texts: tuple[str, ...], answer: str, split: str) -> tuple[Record, ...]:
    return tuple(Record(f"{domain}-{split}-{i}", domain, "t", text, answer, split) for i, text in enumerate(texts))


def stream(seed: int) -> Stream:
    bank, food = (tuple(np.roll(np.array(texts), seed).tolist()) for texts in (BANK, FOOD))
    return Stream(
        seed,
        (
            Block("money", rows("money", bank[:4], "yes", "train")),
            Block("kitchen", rows("kitchen", food[:4], "no", "train")),
        ),
        {"money": rows("money", bank[4:], "yes", "test"), "kitchen": rows("kitchen", food[4:], "no", "test")},
    )


DESIGN = study.Design(methods=METHODS, baselines=BASELINES, num_instances=2, every_block=True)


@pytest.fixture(scope="module")
def preset(config: pipeline.Config, arrays: crossbar.Config) -> pipeline.Preset:
    return pipeline.Preset(config=config, arrays=arrays, learning_rate=0.1, bound=1.0)


@pytest.fixture(scope="module")
def options(preset):
    """Return the keywords of `measure`, with some fields of the design replaced."""
    return lambda **others: {"preset": preset, "design": DESIGN._replace(**others)}


@pytest.fixture(scope="module")
def streams() -> list[Stream]:
    return [stream(3), stream(4)]


@pytest.fixture(scope="module")
def places() -> list[devices.Device]:
    return [devices.get("FeFET3", sigma=sigma) for sigma in (0.1, 0.3)]


@pytest.fixture(scope="module")
def records(lm, text, streams, places, options) -> list[dict[str, Any]]:
    return list(study.measure(jax.random.key(5), streams, lm, text, places, **options()))


def chosen(records: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [r for r in records if all(r[name] == value for name, value in fields.items())]


@pytest.mark.slow
def test_there_is_a_record_for_each_unit_block_chip_and_domain(records, streams, places) -> None:
    plan = study.plan(streams, places, DESIGN)
    assert len(plan) == 2 * (4 + 3 + 2 * 3)
    found = [study.Unit(*(r[name] for name in study.Unit._fields)) for r in records]
    assert list(dict.fromkeys(found)) == list(plan)
    for unit in plan:
        assert found.count(unit) == 2 * 2 * (1 if unit.device == "digital" else 2)
    assert json.loads(json.dumps(records)) == records
    places_of = {(r["block"], r["domain"]): r["role"] for r in records}
    assert places_of == {(0, "money"): "current", (0, "kitchen"): "later"} | {
        (1, "money"): "previous",
        (1, "kitchen"): "current",
    }


def test_how_many_chips_are_held_at_a_time_changes_nothing(
    streams, places, options, lm, text, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("nvcim_jax.study.measure")  # the face of the room hides the module
    own = options(methods={"plain": METHODS["plain"]}, baselines=(), digital=False)
    rank, ranked = module._right, []
    monkeypatch.setattr(
        module, "_right", lambda bench, prompts, queries: (ranked.append(prompts), rank(bench, prompts, queries))[1]
    )
    found = []
    for held in (64, 1):
        monkeypatch.setattr(module, "_CHIPS", held)
        ranked.clear()
        records = list(study.measure(jax.random.key(5), streams[:1], lm, text, places[:1], **own))
        found.append((records, np.concatenate(ranked)))
    assert found[0][0] == found[1][0]
    # the same prompts of the same chips are put before the model, those of one chip after those of the other
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_more_chips_than_records_can_be_held_for_are_refused(streams, places, options, lm, text) -> None:
    with pytest.raises(ValueError, match=r"num_instances.*at most 100000"):
        next(study.measure(jax.random.key(5), streams, lm, text, places, **options(num_instances=10**11)))


@pytest.mark.slow
def test_a_chip_is_that_of_the_metric_of_the_protocol(records, streams, places, preset, lm, text) -> None:
    learn_key, chip_key, *_ = jax.random.split(jax.random.fold_in(jax.random.key(5), 4), 4)
    observed = study.observe_stream(learn_key, streams[1], lm, text, None, preset=preset)
    for name in ("oracle route", "CxDNN"):
        method = METHODS[name]
        questions = study.make_questions(streams[1], lm, text, preset=preset)
        known = (observed.stores[-1], observed.curvatures[-1], observed.calibrations[-1])
        args = (study.trial(preset, method), lm, *known, questions, places[0])
        stats = montecarlo.run(study.chip_metric, chip_key, 2, args=args)
        chips = chosen(records, stream=4, method=name, device="FeFET3", sigma=0.1, block=1)
        for value in ("accuracy", "hit"):
            np.testing.assert_array_equal(np.array([r[value] for r in chips]), stats.values[value].ravel())


def test_the_frozen_model_is_asked_without_a_prompt(records, streams, preset, lm, text) -> None:
    questions = study.make_questions(streams[0], lm, text, preset=preset)

    @jax.jit
    def rank(lm: models.LM, asked: Any) -> jax.Array:
        return models.rank(lm, models.Inputs(models.embed(lm, asked.ids), asked.mask), asked.answers)

    right = np.asarray(jnp.argmax(rank(lm, questions.queries), axis=1) == questions.truth)
    found = [r["accuracy"] for r in chosen(records, stream=3, method="frozen", block=1)]
    assert found == [right[:2].mean(), right[2:].mean()]
    assert {r["hit"] for r in chosen(records, method="frozen")} == {None}


def test_the_oracle_always_hits_what_was_stored(records) -> None:
    own = chosen(records, method="oracle route")
    assert {r["hit"] for r in own if r["role"] in ("current", "previous")} == {1.0}
    assert {r["hit"] for r in own if r["role"] == "later"} == {None}


def test_the_nearest_text_has_the_words_of_the_query(records) -> None:
    # every test word was seen in its own domain's buffer with the one answer of that domain, and in no other
    assert {r["accuracy"] for r in chosen(records, method="1-NN text", block=1)} == {1.0}
    assert {r["hit"] for r in chosen(records, method="1-NN own domain", block=1)} == {1.0}
    assert {r["accuracy"] for r in chosen(records, method="1-NN text", role="later")} == {0.0}


def test_what_else_is_measured_changes_nothing(records, streams, places, options, lm, text) -> None:
    alone = options(methods={"oracle route": METHODS["oracle route"]}, baselines=("latest",))
    found = list(study.measure(jax.random.key(5), streams[1:], lm, text, places[:1], **alone))
    assert found == [r for r in records if r in found]
    assert len(found) == 2 * 2 * (1 + 1 + 2)


def test_a_sweep_of_sigma_compiles_no_chip_anew(records, streams, places, options, lm, text) -> None:
    assert len({r["sigma"] for r in records}) == 3
    alone = options(methods={"plain": METHODS["plain"]}, baselines=(), digital=False)
    list(study.measure(jax.random.key(5), streams[:1], lm, text, places[:1], **alone))
    with count_traces() as traced:
        list(study.measure(jax.random.key(5), streams[:1], lm, text, places[1:], **alone))
    assert not [name for name in traced if "chip" in name or "observe" in name or "rank" in name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latest", "sequential", "joint"])
def test_one_prompt_is_tuned_for_the_blocks_that_are_asked(streams, preset, lm, text, monkeypatch, kind) -> None:
    tune, tuned = tuning.tune, []
    monkeypatch.setattr(tuning, "tune", lambda *args, **options: (tuned.append(1), tune(*args, **options))[1])

    def prompts(blocks: list[int] | None) -> list[np.ndarray]:
        tuned.clear()
        how: Any = {"preset": preset, "kind": kind, "blocks": blocks}
        return [np.asarray(p) for p in study.tune_one(jax.random.key(6), streams[0], lm, text, **how)]

    first, last = prompts(None)
    assert len(tuned) == 2
    (found,) = prompts([1])
    np.testing.assert_array_equal(found, last)
    assert len(tuned) == (2 if kind == "sequential" else 1)
    (found,) = prompts([0])
    np.testing.assert_array_equal(found, first)
    assert len(tuned) == 1


class Stop(Exception):
    """The process is killed."""


def test_a_broken_study_goes_on_where_it_was(records, streams, places, options, lm, text, tmp_path) -> None:
    def kill(count: int, note: str) -> None:
        if "oracle route, FeFET3 0.1" in note and count:
            raise Stop

    arguments = (tmp_path, jax.random.key(5), streams[:1], lm, text, places)
    with pytest.raises(Stop):
        study.run(*arguments, **options(), session=study.Session(kill))
    kept = study.read(tmp_path)
    assert 0 < len(kept) < len(records) / 2
    with (tmp_path / "records.jsonl").open("a") as file:  # a unit that was half written, and half a line
        file.write(json.dumps(kept[-1] | {"method": "CxDNN"}) + '\n{"kind": "blo')
    seen: list[str] = []
    found = study.run(*arguments, **options(), session=study.Session(lambda count, note: seen.append(note)))
    assert found == chosen(records, stream=3) == study.read(tmp_path)
    assert not any("latest" in note for note in seen)
    with pytest.raises(ValueError, match=r"differs in the setting design\.num_instances \(2 there, 3"):
        study.run(*arguments, **options(num_instances=3))


@pytest.mark.slow
def test_noise_aware_and_joint_training_are_told_apart(streams, places, options, lm, text) -> None:
    trained_on = {"noisy": study.Method(training="noise")}
    others = {"methods": trained_on, "baselines": (), "every_block": False, "num_instances": 1}
    joint = pipeline.EndToEnd(num_steps=1, batch=2)
    found = list(
        study.measure(
            jax.random.key(5),
            streams[:1],
            lm,
            text,
            places,
            **options(**others, end_to_end=joint, train_device=places[0]),
        )
    )
    assert {r["trained_for"] for r in found} == {"FeFET3 0.1"}
    assert {(r["method"], r["device"], r["sigma"]) for r in found} == {
        (method, device, sigma)
        for method in ("noisy", "end-to-end")
        for device, sigma in (("digital", 0.0), ("FeFET3", 0.1), ("FeFET3", 0.3))
    }


def test_the_summary_is_the_table_by_hand() -> None:
    def record(method: str, seed: int, chip: int, block: int, domain: str, accuracy: float) -> dict[str, Any]:
        role = "current" if domain == "ab"[block] else ("previous" if block else "later")
        place = {"kind": "block", "stream": seed, "device": "X", "sigma": 0.1, "trained_for": "", "method": method}
        where = {"block": block, "current": "ab"[block], "instance": chip, "domain": domain, "role": role}
        return place | where | {"accuracy": accuracy, "hit": 1.0}

    values = {"oracle route": 0.9, "NVCiM-PT": 0.7, "other": 0.6}
    made = [
        record(method, seed, chip, block, domain, value + 0.1 * seed * (chip == 0) - 0.2 * (domain != "ab"[block]))
        for method, value in values.items()
        for seed in (0, 1)
        for chip in (0, 1)
        for block in (0, 1)
        for domain in "ab"
    ]
    oracle, main, other = study.summarise(made)
    # streams: value - .1, and .05 more for the second one; t(.95, 1) = 12.706, half width t * .05 / 2
    assert oracle["accuracy"] == pytest.approx(0.825)
    assert oracle["accuracy_high"] - oracle["accuracy"] == pytest.approx(12.7062 * 0.025, rel=1e-4)
    assert (main["gap"], main["gap_low"], other["gap"]) == pytest.approx((0.2, 0.2, 0.3))
    assert (main["difference"], other["difference"]) == pytest.approx((0.0, -0.1))
    assert main["previously_seen"] == pytest.approx(0.7 - 0.2 + 0.025)
    assert main["forgetting"] == pytest.approx(0.2)
    assert (main["hit"], main["unseen"], main["streams"], main["instances"]) == (1.0, None, 2, 2)
    assert main["loss"] is None
    # without noise the first chips of all streams gain .1, the others nothing: chip by chip, then over streams
    quiet = [r | {"sigma": 0.0, "accuracy": r["accuracy"] + 0.1 * (r["instance"] == 0)} for r in made]
    swept = {(row["sigma"], row["method"]): row for row in study.summarise([*made, *quiet])}
    assert [swept[0.1, "other"][name] for name in ("loss", "loss_low", "loss_high")] == pytest.approx([0.05] * 3)
    assert swept[0.0, "other"]["loss"] == 0.0
    R, blocks, domains = study.shift_matrix(made, "other", device="X")
    np.testing.assert_allclose(R, [[0.625, 0.425], [0.425, 0.625]])
    assert (blocks, domains) == (["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="have the same instances of every stream"):
        study.summarise([r for r in made if (r["stream"], r["instance"]) != (1, 1)])


def test_the_matrix_of_streams_with_other_domains_is_aligned_by_their_order() -> None:
    def stream(seed: int, order: str, names: str) -> list[dict[str, Any]]:
        return [
            {"method": "ours", "stream": seed, "block": t, "current": current, "domain": name}
            | {"accuracy": float(name == current)}
            for t, current in enumerate(order)
            for name in names
        ]

    for other in ("ba", "cd", "bc"):
        R, blocks, domains = study.shift_matrix([*stream(0, "ab", "ab"), *stream(1, other, other)], "ours")
        np.testing.assert_array_equal(R, np.eye(2))
        assert blocks == domains == ["domain 1", "domain 2"]
    R, blocks, domains = study.shift_matrix([*stream(0, "aba", "abz"), *stream(1, "aca", "acz")], "ours")
    np.testing.assert_array_equal(R, [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert (blocks, domains) == (["a", "domain 2", "a"], ["a", "domain 2", "z"])
    for order, names in (("aba", "ab"), ("abc", "abc")):
        with pytest.raises(ValueError, match="one order of domains in all streams, but stream 1 has another"):
            study.shift_matrix([*stream(0, "ab", "ab"), *stream(1, order, names)], "ours")


def test_the_nearest_text_is_that_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    draw = lambda num: [" ".join(rng.choice(list("abcdefghij"), 5)) for _ in range(num)]  # noqa: E731
    texts, queries = draw(30), draw(20)
    reference = text.TfidfVectorizer(token_pattern=r"\S+")
    similar = (reference.fit_transform(texts), reference.transform(queries))
    scores = (similar[1] @ similar[0].T).toarray()
    found = study.nearest_text(texts, queries)
    np.testing.assert_allclose(scores[np.arange(20), found], scores.max(axis=1), rtol=1e-12)


def test_wrong_arguments_are_named(streams, places, options, lm, text) -> None:
    def run(streams: list[Any] = streams, places: list[Any] = places, **others: Any) -> None:
        next(study.measure(jax.random.key(0), streams, lm, text, places, **options(**others)))

    with pytest.raises(ValueError, match=r"`baselines` must be one of .*Did you mean 'frozen'"):
        run(baselines=("frozn",))
    with pytest.raises(ValueError, match="`methods` must not be named latest"):
        run(methods={"latest": study.Method()})
    with pytest.raises(ValueError, match="`streams` must have labels"):
        run([streams[0]._replace(labels=())])
    with pytest.raises(ValueError, match="`streams` must have a seed of their own"):
        run([streams[0], streams[0]])
    with pytest.raises(ValueError, match="`device_list` must hold each name and sigma once"):
        run(places=[places[0], places[0]])
    with pytest.raises(ValueError, match="`streams` must hold at least one"):
        run([])
