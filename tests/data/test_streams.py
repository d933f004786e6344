"""Streams: what each kind promises, and that no test row ever reaches a buffer."""

import dataclasses

import numpy as np
import pytest

from nvcim_jax.data import (
    CLINC5_DOMAINS,
    Record,
    Stream,
    StreamConfig,
    builtin_records,
    builtin_users,
    clinc5,
    data_folder,
    most_opposed,
    read_jsonl,
    stream,
)
from nvcim_jax.data.streams import KINDS


def _rows(domains: str = "abcd", train: int = 200, test: int = 20, num_labels: int = 5) -> list[Record]:
    return [
        Record(f"{d}-{split}-{i}", d, "t", f"{d} text {i}", f"{d}{i % num_labels}", split)
        for d in domains
        for split, number in (("train", train), ("val", 6), ("test", test))
        for i in range(number)
    ]


ROWS = _rows()


def _domains(made: Stream) -> list[str]:
    return [block.domain for block in made.blocks]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_test_rows_out_and_is_the_same_again(kind: str) -> None:
    options = {} if kind == "preference" else {"unseen": "d"}
    made = stream(ROWS, seed=3, config=StreamConfig(kind=kind, buffer_size=10, num_users=3), **options)
    again = stream(ROWS, seed=3, config=StreamConfig(kind=kind, buffer_size=10, num_users=3), **options)
    assert made == again
    buffered = [row for block in made.blocks for row in block.records]
    assert len({row.id for row in buffered}) == len(buffered)
    assert {row.split for row in buffered} == {"train"}
    assert all(row.split == "test" for own in made.test.values() for row in own)
    texts = {row.input for row in buffered}
    sources = {row.extra.get("source_id", row.id) for row in buffered}
    tested = {row.extra.get("source_id", row.id) for own in made.test.values() for row in own}
    assert not sources & tested
    assert len(texts) == len(buffered)
    assert all(len(block.records) == 10 for block in made.blocks)
    for name, own in made.test.items():
        assert all(row.user_or_domain == name and row.output in made.candidates[name] for row in own)
    other = stream(ROWS, seed=4, config=StreamConfig(kind=kind, buffer_size=10, num_users=3), **options)
    assert [b.records for b in other.blocks] != [b.records for b in made.blocks]


def test_a_row_that_comes_twice_is_named() -> None:
    rows = _rows("ab", train=4, test=2)
    train = [row for row in rows if row.split == "train" and row.user_or_domain == "a"]
    tested = [row for row in rows if row.split == "test"]
    with pytest.raises(ValueError, match="`records` must have each id once, but 'a-test-0' is twice in the test rows"):
        stream([*train, *tested, tested[0]], seed=0, config=StreamConfig(buffer_size=4), domains=["a"])
    other = dataclasses.replace(tested[0], user_or_domain="b")
    with pytest.raises(ValueError, match="'a-test-0' is twice in the test rows"):
        stream([*train, *tested, other], seed=0, config=StreamConfig(buffer_size=4), domains=["a"], unseen="b")
    with pytest.raises(ValueError, match="'a-train-3' is twice in the buffers"):
        stream([*train, train[3], *tested], seed=0, config=StreamConfig(buffer_size=5), domains=["a"])


def test_block_order_previous_domains_and_columns() -> None:
    made = stream(ROWS, seed=0, config=StreamConfig(buffer_size=10, num_blocks=5))
    assert _domains(made) == ["a", "b", "c", "d", "a"]
    assert [block.previous for block in made.blocks] == [(), ("a",), ("a", "b"), ("a", "b", "c"), ("b", "c", "d")]
    assert made.current.tolist() == [0, 1, 2, 3, 0]
    assert all(row.user_or_domain == block.domain for block in made.blocks for row in block.records)


def test_return_comes_back_to_the_first_domain() -> None:
    made = stream(ROWS, seed=0, config=StreamConfig(kind="return", buffer_size=10))
    assert _domains(made) == ["a", "b", "a", "c", "a", "d", "a"]
    assert made.blocks[2].previous == ("b",)


def test_gradual_share_rises_from_a_tenth_to_nine_tenths() -> None:
    size, seeds = 9, 400
    is_new = np.zeros((seeds, size))
    for seed in range(seeds):
        made = stream(ROWS, seed=seed, config=StreamConfig(kind="gradual", buffer_size=size), domains=["a", "b"])
        is_new[seed] = [row.user_or_domain == "b" for row in made.blocks[1].records]
        assert {row.user_or_domain for row in made.blocks[0].records} == {"a"}
    expected = np.linspace(0.1, 0.9, size)
    assert (np.abs(is_new.mean(0) - expected) < 5 * np.sqrt(expected * (1 - expected) / seeds)).all()


def test_larger_buffers_and_other_kinds_share_their_rows() -> None:
    small = stream(ROWS, seed=5, config=StreamConfig(buffer_size=10))
    large = stream(ROWS, seed=5, config=StreamConfig(buffer_size=40))
    back = stream(ROWS, seed=5, config=StreamConfig(kind="return", buffer_size=10))
    alone = stream(ROWS, seed=5, config=StreamConfig(buffer_size=10), domains=["b"])
    for block, longer in zip(small.blocks, large.blocks, strict=True):
        assert longer.records[:10] == block.records
    assert back.blocks[1].records == small.blocks[1].records == alone.blocks[0].records


def test_preference_users_disagree_on_the_same_texts() -> None:
    made = stream(ROWS, seed=1, config=StreamConfig(kind="preference", buffer_size=10, num_users=4), domains=["a"])
    texts = [[row.input for row in made.test[name]] for name in made.domains]
    assert made.domains == ("user 1", "user 2", "user 3", "user 4")
    assert all(own == texts[0] for own in texts)
    maps = []
    for name in made.domains:
        block = next(block for block in made.blocks if block.domain == name)
        pairs = {(row.extra["source_output"], row.output) for row in (*block.records, *made.test[name])}
        maps.append(tuple(sorted(pairs)))
        assert len(pairs) == len({new for _, new in pairs}) == 5  # a permutation, the same in training and test
    assert len(set(maps)) == 4


def test_preference_agreement_of_two_users_is_at_chance() -> None:
    agree = []
    for seed in range(300):
        made = stream(
            ROWS,
            seed=seed,
            config=StreamConfig(kind="preference", buffer_size=5, num_users=2, num_test=None),
            domains=["a"],
        )
        one, two = ([row.output for row in made.test[name]] for name in made.domains)
        agree.append(np.mean([x == y for x, y in zip(one, two, strict=True)]))
    # distinct permutations of 5: fixed points have mean 1 and variance 1, given not all five: (5! - 5) / (5! - 1) / 5
    expected = (120 - 5) / 119 / 5
    assert abs(np.mean(agree) - expected) < 5 * np.std(agree) / np.sqrt(300)


def test_conflict_chooses_the_users_farthest_apart() -> None:
    answers = {"u": "11111", "v": "11155", "w": "55555", "x": "33111"}
    rows = [
        Record(f"{name}{split}{i}", name, "rating", f"{name} {split} {i}", own[i % 5], split)
        for name, own in answers.items()
        for split in ("train", "test")
        for i in range(10)
    ]
    assert most_opposed(rows, list("uvwx"), 3, 10) == ("u", "w", "x")
    made = stream(rows, seed=0, config=StreamConfig(kind="conflict", num_users=3, buffer_size=10), labels=[*"12345"])
    assert made.domains == ("u", "w", "x")
    assert made.labels == tuple("12345")
    with pytest.raises(ValueError, match="at most the 4 users"):
        stream(rows, seed=0, config=StreamConfig(kind="conflict", num_users=5, buffer_size=10))
    with pytest.raises(ValueError, match="at most the 0 users"):
        stream(rows, seed=0, config=StreamConfig(kind="conflict", num_users=2, buffer_size=11))


def test_unseen_domain_is_tested_and_never_trained() -> None:
    made = stream(ROWS, seed=0, config=StreamConfig(buffer_size=10, num_test=7), unseen="b")
    assert made.unseen == "b"
    assert made.domains == ("a", "c", "d")
    assert set(made.test) == {"a", "b", "c", "d"}
    assert all(len(own) == 7 for own in made.test.values())
    assert not any(row.user_or_domain == "b" for block in made.blocks for row in block.records)
    assert len(made.labels) == 20


def test_validation_rows_instead_of_test_rows() -> None:
    made = stream(ROWS, seed=0, config=StreamConfig(buffer_size=10, split="val"))
    assert {row.split for own in made.test.values() for row in own} == {"val"}


def test_the_order_of_domains_is_drawn_on_request() -> None:
    orders = {stream(ROWS, seed=s, config=StreamConfig(buffer_size=5, shuffle_domains=True)).domains for s in range(12)}
    assert len(orders) > 4
    assert all(sorted(order) == list("abcd") for order in orders)


def test_a_test_row_among_the_training_rows_is_refused() -> None:
    leak = dataclasses.replace(next(row for row in ROWS if row.split == "test"), split="train", user_or_domain="z")
    rows = [*(row for row in ROWS if row.user_or_domain == "a"), leak]
    rows.append(dataclasses.replace(leak, id="other", split="test"))
    with pytest.raises(ValueError, match="'a-test-0' is in one"):
        stream(rows, seed=0, config=StreamConfig(buffer_size=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "blok"}, "Did you mean 'block'"),
        ({"domains": ["a", "bb"]}, "`domains` must be one of"),
        ({"domains": ["a", "a"]}, "name each domain once"),
        ({"domains": ["a"], "unseen": "a"}, "and not the unseen one"),
        ({"buffer_size": 300}, "a has 200. Use a smaller `buffer_size`"),
        ({"buffer_size": 0}, "`buffer_size`"),
        ({"kind": "preference", "unseen": "a"}, "All users ask the same"),
        ({"kind": "preference", "labels": ["a0"]}, "name every answer"),
        ({"kind": "preference", "domains": ["a"], "num_users": 200}, "permutations of 5 labels"),
        ({"labels": {"a": ["a0"]}}, "has none for 'b'|name every answer"),
    ],
)
def test_a_wrong_argument_is_named(options: dict, message: str) -> None:
    of_stream = {"domains", "unseen", "labels"} & options.keys()
    asked = {name: options[name] for name in of_stream}
    with pytest.raises(ValueError, match=message):
        stream(ROWS, seed=0, config=StreamConfig(**{n: options[n] for n in options.keys() - of_stream}), **asked)


def test_clinc5_keeps_the_first_answers_in_file_order() -> None:
    rows = [Record(str(i), "d", "t", "x", name, "train") for i, name in enumerate("cabcdefghe")]
    assert "".join(row.output for row in clinc5(rows)) == "cabcdee"


def test_clinc5_of_the_real_file() -> None:
    folder = data_folder("clinc150")
    if folder is None:
        pytest.skip("no folder clinc150 in NVCIM_DATA or ../shared/data")
    rows = clinc5(list(read_jsonl(folder / "clinc150.jsonl.gz")))
    made = stream(rows, domains=CLINC5_DOMAINS, seed=0)
    assert len(made.labels) == 20
    assert made.candidates["banking"] == ("transfer", "balance", "freeze account", "transactions", "pay bill")
    assert all(len(own) == 150 for own in made.test.values())
    assert [len(block.records) for block in made.blocks] == [25] * 4


@pytest.mark.parametrize("own_words", [False, True])
def test_builtin_users_always_disagree_and_never_test_on_a_training_question(own_words: bool) -> None:
    rows, answers = builtin_records(
        7, num_users=6, num_topics=8, num_train=200, num_test=80, num_words=2, own_words=own_words
    )
    assert len(set(answers)) == 6 * 8
    taste: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        assert row.input.isascii()
        assert row.input == row.input.lower()
        taste.setdefault((row.user_or_domain, row.extra["topic"]), set()).add(row.output)
    assert all(len(own) == 1 for own in taste.values())
    assert len({next(iter(own)) for own in taste.values()}) == 48
    for name in {row.user_or_domain for row in rows}:
        own = [row for row in rows if row.user_or_domain == name]
        texts = [{row.input for row in own if row.split == split} for split in ("train", "test")]
        assert [len(part) for part in texts] == [200, 80]
        assert not texts[0] & texts[1]


def test_builtin_text_tells_users_apart_only_where_asked() -> None:
    same = builtin_users(0).test
    assert len({tuple(row.input for row in own) for own in same.values()}) == 1
    own = builtin_users(0, own_words=True)
    texts = [{row.input for row in rows} for rows in own.test.values()]
    assert all(not one & two for i, one in enumerate(texts) for two in texts[:i])
    assert own.labels == builtin_users(0).labels


def test_builtin_defaults_fill_the_standard_run() -> None:
    made = builtin_users(1, kind="return", hold_out=True)
    assert made.unseen == "user 5"
    assert _domains(made) == ["user 1", "user 2", "user 1", "user 3", "user 1", "user 4", "user 1"]
    assert all(len(own) == 40 for own in made.test.values())
    assert len(made.labels) == 25
    with pytest.raises(ValueError, match="at most 5"):
        builtin_users(1, num_users=6, hold_out=True)
    with pytest.raises(ValueError, match="Use more topics or words"):
        builtin_records(1, num_topics=1, num_train=300)
