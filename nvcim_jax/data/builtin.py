"""Users with opposite tastes over one small grammar: a stream that needs no file.

Every user answers the same kinds of questions ("what drink should i have tonight"), each with a taste of their own
("tea", "coffee", ..). No two users ever give the same answer to the same question, so the right prompt is known, the
wrong one is always wrong, and by default nothing in a question tells whose it is. With `own_words`, every user names
occasions that only they have ("before the meeting", "after school"), and the text alone can find the user.
"""

import itertools
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from nvcim_jax import checks
from nvcim_jax.data.records import Record
from nvcim_jax.data.streams import Stream, StreamConfig, stream
from nvcim_jax.signature import checked

__all__ = ["MAX_TOPICS", "MAX_USERS", "builtin_records", "builtin_users"]


class Topic(NamedTuple):
    """A kind of choice: the words for it in a question, and what a user can like."""

    words: tuple[str, ...]
    tastes: tuple[str, ...]


TOPICS = {
    "drink": Topic(("drink", "cup", "hot drink"), ("tea", "coffee", "water", "milk", "juice", "wine")),
    "music": Topic(("song", "tune", "record"), ("jazz", "rock", "pop", "folk", "blues", "opera")),
    "meal": Topic(("meal", "dinner", "dish"), ("pasta", "rice", "soup", "salad", "fish", "bread")),
    "film": Topic(("film", "movie", "show"), ("comedy", "drama", "horror", "romance", "mystery", "western")),
    "place": Topic(("trip", "holiday", "place to go"), ("beach", "mountain", "city", "lake", "island", "forest")),
    "sport": Topic(("sport", "game", "way to train"), ("tennis", "swimming", "running", "football", "golf", "dance")),
    "color": Topic(("color", "shirt", "coat"), ("red", "blue", "green", "black", "white", "yellow")),
    "gift": Topic(("gift", "present", "nice surprise"), ("book", "flowers", "watch", "toy", "candle", "ring")),
}

FORMS = (
    "what {word} should i have {when}",
    "pick a {word} for me {when}",
    "i want a {word} {when}",
    "please choose a {word} for me {when}",
    "which {word} would i like {when}",
    "{when} i need a {word}",
    "can you find me a {word} {when}",
    "tell me what {word} to get {when}",
)

TIMES = (
    "tonight", "today", "this morning", "this evening", "tomorrow", "now", "later", "on sunday", "next week",
    "for the weekend",
)  # fmt: skip

OWN_TIMES = (
    ("before the meeting", "at the office", "after the call", "with my boss", "between two reports", "at my desk"),
    ("after school", "with the kids", "at the playground", "before bed time", "with my baby", "for the family"),
    ("in the garden", "on the farm", "by the river", "with my horse", "near the barn", "after the harvest"),
    ("at the airport", "on the train", "in the hotel", "during the flight", "at the border", "on the road"),
    ("after the exam", "in the library", "at the college", "with my teacher", "between classes", "in my dorm"),
    ("at the hospital", "with my doctor", "after the surgery", "in the clinic", "with the nurse", "before the test"),
)

MAX_USERS = 6
"""The most users the grammar has tastes for."""

MAX_TOPICS = len(TOPICS)
"""The most kinds of choices."""


def _questions(words: tuple[str, ...], times: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """Return all questions about one topic, in random order."""
    made = [form.format(word=word, when=when) for form, word, when in itertools.product(FORMS, words, times)]
    return [made[i] for i in rng.permutation(len(made))]


def _dealt(questions: dict[str, list[str]], start: int, number: int) -> list[tuple[str, str]]:
    """Return `number` (topic, question) pairs, the topics in turn, from each topic's `start`-th question on."""
    topics = list(questions)
    return [
        (topics[i % len(topics)], questions[topics[i % len(topics)]][start + i // len(topics)]) for i in range(number)
    ]


@checked
def builtin_records(
    seed: int,
    *,
    num_users: int = 4,
    num_topics: int = 5,
    num_train: int = 100,
    num_test: int = 40,
    num_words: int = 1,
    own_words: bool = False,
) -> tuple[list[Record], tuple[str, ...]]:
    """Write the rows of users with opposite tastes.

    Args:
        seed: Seed of the tastes and of the questions.
        num_users: Number of users, up to `MAX_USERS`.
        num_topics: Number of topics, up to `MAX_TOPICS`.
        num_train: Training rows of a user.
        num_test: Test rows of a user; no question is in both.
        num_words: Words for the same topic, 1 to 3 ("drink", "cup", "hot drink"): with more, a question can use a word
            that the buffer does not have.
        own_words: Whether every user names occasions of their own, so that the text tells whose it is. Otherwise all
            users ask exactly the same questions.

    Returns:
        The rows, and the candidate answers (num_users x num_topics).

    Example:
        >>> rows, answers = builtin_records(0, num_users=2, num_topics=1, num_train=3, num_test=1)
        >>> len(rows), len(answers)  # 2 x (3 + 1) rows, 2 x 1 tastes
        (8, 2)
    """
    checks.integer("seed", seed, low=0)
    checks.integer("num_users", num_users, high=MAX_USERS)
    checks.integer("num_topics", num_topics, high=MAX_TOPICS)
    checks.integer("num_words", num_words, high=3)
    available = len(FORMS) * num_words * len(OWN_TIMES[0] if own_words else TIMES)
    for argument, value in (("num_train", num_train), ("num_test", num_test)):
        checks.integer(argument, value)
    train_each, test_each = -(-num_train // num_topics), -(-num_test // num_topics)
    if train_each + test_each > available:
        found = f"ask for {train_each + test_each}"
        checks.fail(
            "num_train and num_test", f"need at most {available} questions a topic", found, "Use more topics or words."
        )
    rng = np.random.default_rng([seed, 0])
    topics = [list(TOPICS)[i] for i in sorted(rng.permutation(len(TOPICS))[:num_topics])]
    tastes = {topic: [TOPICS[topic].tastes[i] for i in rng.permutation(MAX_USERS)[:num_users]] for topic in topics}
    rows = []
    for user in range(num_users):
        rng = np.random.default_rng([seed, 1, user if own_words else 0])
        times = OWN_TIMES[user] if own_words else TIMES
        questions = {topic: _questions(TOPICS[topic].words[:num_words], times, rng) for topic in topics}
        for split, start, number in (("test", 0, num_test), ("train", test_each, num_train)):
            for i, (topic, question) in enumerate(_dealt(questions, start, number)):
                name, answer = f"user {user + 1}", tastes[topic][user]
                identifier = f"builtin-{seed}-{user + 1}-{split}-{i}"
                rows.append(Record(identifier, name, "preference", question, answer, split, {"topic": topic}))
    return rows, tuple(taste for topic in topics for taste in tastes[topic])


class Rows(TypedDict, total=False):
    """What the rows of the built-in users are like: keywords of `builtin_records` that `builtin_users` hands on."""

    num_topics: int
    num_train: int
    num_test: int
    num_words: int
    own_words: bool


@checked
def builtin_users(
    seed: int,
    *,
    kind: str = "block",
    num_users: int = 4,
    buffer_size: int = 25,
    num_blocks: int | None = None,
    hold_out: bool = False,
    **rows: Unpack[Rows],
) -> Stream:
    """Make a stream of users with opposite tastes, without any file.

    A prompt tuned on a user answers that user's questions and gets every question of another user wrong.

    Args:
        seed: Seed of everything.
        kind: "block", "return", "gradual" or "conflict" (the same as "block" here: all users disagree), as in `stream`.
        num_users: Users in the buffers.
        buffer_size: Rows of a buffer.
        num_blocks: Number of buffers; by default one a user ("return": 2 K - 1).
        hold_out: Whether one more user is tested on and comes into no buffer.
        **rows: `num_topics` (kinds of choices, each a class for every user), `num_train`, `num_test` (rows of a user),
            `num_words` (for the same topic, 1 to 3), `own_words` (whether the text can tell the users apart), as in
            `builtin_records`.

    Returns:
        The stream; every user's candidates are all users' tastes.

    Raises:
        ValueError: If an argument is out of range, or the rows do not suffice for the buffers.
        TypeError: If an option does not exist; the message suggests the nearest.

    Example:
        >>> made = builtin_users(0)
        >>> len(made.blocks), len(made.blocks[0].records), len(made.labels)  # 4 users x 5 topics
        (4, 25, 20)
    """
    checks.choice("kind", kind, ("block", "return", "gradual", "conflict"))
    checks.integer("num_users", num_users, high=MAX_USERS - hold_out)
    known = Rows.__annotations__.keys()
    checks.options("builtin_users", rows.keys() - known, {*builtin_users.__annotations__, *known} - {"rows", "return"})
    records, labels = builtin_records(seed, num_users=num_users + hold_out, **rows)
    names = [f"user {i + 1}" for i in range(num_users)]
    unseen = f"user {num_users + 1}" if hold_out else None
    config = StreamConfig(kind=kind, buffer_size=buffer_size, num_blocks=num_blocks)
    return stream(records, seed=seed, config=config, domains=names, labels=labels, unseen=unseen)
