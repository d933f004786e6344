"""User streams: the buffers that arrive one after the other, and the test rows that must never be in one.

A stream shows a method its buffers in order, and the method must not know where one topic ends and the next begins.
The name of the current domain is there for scoring only.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.data.records import Record, check_records
from nvcim_jax.data.users import most_opposed, permuted_users
from nvcim_jax.signature import checked

__all__ = ["CLINC5_DOMAINS", "KINDS", "Block", "Stream", "StreamConfig", "clinc5", "stream"]

KINDS = ("block", "return", "gradual", "conflict", "preference")
"""The kinds of streams: see `StreamConfig`."""

CLINC5_DOMAINS = ("banking", "home", "kitchen_and_dining", "travel")
"""The domains of the standard run, in its order."""

GRADUAL_SHARE = (0.1, 0.9)


@checks.frozen_config
class StreamConfig:
    """What a stream is like, whatever it is made of.

    - "block": D1, D2, .., DK, one buffer of each;
    - "return": D1, D2, D1, D3, D1, ..: the first domain comes back after every other;
    - "gradual": the first buffer is of D1; in every later one the share of the new domain rises from .1 to .9 along
      the buffer, the rest being of the domain before it;
    - "conflict": like "block", over users; without `domains`, the `num_users` users are chosen such that those who
      follow each other answer most differently (the total variation between their answers' distributions);
    - "preference": the utterances of `domains` together, answered by `num_users` simulated users ("user 1", ..), each
      with a random permutation of the labels of their own: the text says nothing about whose query it is.

    Attributes:
        kind: One of `KINDS`.
        buffer_size: Rows of a buffer.
        num_blocks: Number of buffers; by default one a domain ("return": 2 K - 1). More start again from the front.
        num_users: Users of a "preference" stream, or chosen for a "conflict" stream.
        shuffle_domains: Whether the order of the domains is drawn, too.
        num_test: Test rows kept of each domain; all by default.
        split: Which rows to test on, "test" or "val" (to choose settings without looking at the test rows).

    Raises:
        ValueError: If an option has no such value.
    """

    kind: str = "block"
    buffer_size: int = 25
    num_blocks: int | None = None
    num_users: int = 4
    shuffle_domains: bool = False
    num_test: int | None = None
    split: str = "test"

    def __post_init__(self) -> None:
        """Check every option."""
        checks.choice("kind", self.kind, KINDS)
        checks.choice("split", self.split, ("test", "val"))
        for name in ("buffer_size", "num_users"):
            checks.integer(name, getattr(self, name))
        for name in ("num_blocks", "num_test"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name))
        checks.instance("shuffle_domains", self.shuffle_domains, bool)


class Block(NamedTuple):
    """One full buffer.

    Attributes:
        domain: The current domain, for scoring only.
        records: The rows of the buffer, in the order in which they came.
        previous: The domains of earlier blocks, without the current one, in order of first appearance.
    """

    domain: str
    records: tuple[Record, ...]
    previous: tuple[str, ...]


class Stream(NamedTuple):
    """The buffers of one user over time, and the test rows of every domain.

    Attributes:
        kind: The kind it was made as.
        seed: The seed it was made from.
        domains: The domains that occur in buffers, in order of first appearance: the columns of a matrix R[t, i].
        blocks: The buffers in order: the rows of R.
        test: Domain -> its test rows; no id of theirs is in any buffer. The unseen domain has an entry too.
        candidates: Domain -> the answers that can be right there; empty for free text.
        unseen: The domain that occurs in no buffer, or None.
    """

    kind: str
    seed: int
    domains: tuple[str, ...]
    blocks: tuple[Block, ...]
    test: Mapping[str, tuple[Record, ...]]
    candidates: Mapping[str, tuple[str, ...]]
    unseen: str | None = None

    @property
    def current(self) -> np.ndarray:
        """The column of R that each block's own domain has, shape (blocks,)."""
        return np.array([self.domains.index(block.domain) for block in self.blocks], np.int64)

    @property
    def labels(self) -> tuple[str, ...]:
        """All candidate answers of all domains together, each once, in order."""
        names = [*self.domains, *([self.unseen] if self.unseen else [])]
        return tuple(dict.fromkeys(label for name in names for label in self.candidates[name]))


@checked
def clinc5(records: Iterable[Record], *, num_labels: int = 5, first: int = 0) -> list[Record]:
    """Keep, of every domain, the rows of its first few answers in file order.

    Args:
        records: Labelled rows.
        num_labels: Answers kept in a domain.
        first: Answers of a domain that are left out before: others than the usual ones, to choose settings on.

    Returns:
        The rows kept, in order.

    Example:
        >>> rows = [Record(f"{i}", "d", "t", "x", f"answer {i % 7}", "train") for i in range(14)]
        >>> sorted({row.output for row in clinc5(rows)})
        ['answer 0', 'answer 1', 'answer 2', 'answer 3', 'answer 4']
        >>> sorted({row.output for row in clinc5(rows, num_labels=2, first=5)})
        ['answer 5', 'answer 6']
    """
    checks.integer("num_labels", num_labels)
    checks.integer("first", first, low=0)
    records = check_records("records", records)
    kept: dict[str, list[str]] = {}
    for record in records:
        labels = kept.setdefault(record.user_or_domain, [])
        if record.output not in labels and len(labels) < first + num_labels:
            labels.append(record.output)
    return [record for record in records if record.output in kept[record.user_or_domain][first:]]


def _generator(seed: int, *names: str) -> np.random.Generator:
    """Return random numbers that depend on the seed and the names, and on nothing else that was drawn."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _schedule(kind: str, domains: tuple[str, ...], num_blocks: int | None) -> list[str]:
    """Return the current domain of each block."""
    if kind == "return":
        cycle = [name for other in domains[1:] for name in (domains[0], other)] or list(domains)
        natural = 2 * len(domains) - 1
    else:
        cycle, natural = list(domains), len(domains)
    return [cycle[i % len(cycle)] for i in range(num_blocks or natural)]


class _Pool:
    """The training rows of each domain in random order, handed out without replacement."""

    def __init__(self, rows: Mapping[str, Sequence[Record]], seed: int) -> None:
        self.rows = {
            name: [own[i] for i in _generator(seed, "train", name).permutation(len(own))] for name, own in rows.items()
        }
        self.used = dict.fromkeys(rows, 0)

    def take(self, name: str) -> Record:
        if self.used[name] == len(self.rows[name]):
            found = f"{name} has {len(self.rows[name])}"
            checks.fail(
                "records",
                "have enough training rows for every buffer of a domain",
                found,
                "Use a smaller `buffer_size` or fewer blocks.",
            )
        self.used[name] += 1
        return self.rows[name][self.used[name] - 1]


def _buffer(pool: _Pool, old: str | None, new: str, size: int, rng: np.random.Generator) -> tuple[Record, ...]:
    """Fill one buffer: from `new` alone, or sliding from `old` to `new`."""
    if old is None:
        return tuple(pool.take(new) for _ in range(size))
    share = np.linspace(*GRADUAL_SHARE, size) if size > 1 else np.array([GRADUAL_SHARE[1]])
    is_new = rng.random(size) < share
    return tuple(pool.take(new if fresh else old) for fresh in is_new)


def _test_rows(rows: Sequence[Record], name: str, seed: int, config: StreamConfig) -> tuple[Record, ...]:
    """Return the test rows of one domain: all, or a random part that depends on the seed and the domain alone."""
    if not rows:
        checks.fail("records", f"have {config.split} rows of every domain", f"{name} has none")
    if config.num_test is None or config.num_test >= len(rows):
        return tuple(rows)
    chosen = np.sort(_generator(seed, "test", name).permutation(len(rows))[: config.num_test])
    return tuple(rows[i] for i in chosen)


def _candidates(
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None, names: Sequence[str], rows: Sequence[Record]
) -> dict[str, tuple[str, ...]]:
    """Return the candidate answers of each domain: those given, or those that occur, in file order."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        own = [row for row in rows if row.user_or_domain == name]
        if labels is None:
            found[name] = tuple(dict.fromkeys(row.output for row in own))
            continue
        if isinstance(labels, Mapping) and name not in labels:
            checks.fail("labels", "have an entry for every domain", f"has none for {name!r}")
        found[name] = tuple(labels[name] if isinstance(labels, Mapping) else labels)
        wrong = next((row for row in own if found[name] and row.output not in found[name]), None)
        if wrong is not None:
            checks.fail("labels", "name every answer", f"{wrong.id} of {name} has {wrong.output!r}")
    return found


def _previous(order: Sequence[str], block: int) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(order[:block]) if name != order[block])


def _check_ids(blocks: Sequence[Block], test: Mapping[str, tuple[Record, ...]]) -> None:
    """Check that each row comes once, and that no test row (nor the row it was made from) is in a buffer."""

    def source(row: Record) -> str:
        return row.extra.get("source_id", row.id)

    rows = [row for block in blocks for row in block.records]
    tested = [row for own in test.values() for row in own]
    for part, where in ((rows, "the buffers"), (tested, "the test rows")):
        ids = [row.id for row in part]
        twice = next((name for name, number in Counter(ids).items() if number > 1), None)
        if twice is not None:
            checks.fail("records", "have each id once", f"{twice!r} is twice in {where}")
    seen = {row.id for row in rows} | {source(row) for row in rows}
    leaked = next((row.id for row in tested if row.id in seen or source(row) in seen), None)
    if leaked is not None:
        checks.fail("records", "keep test rows out of the buffers", f"{leaked!r} is in one")


def _named(records: Sequence[Record], domains: Sequence[str] | None, unseen: str | None) -> tuple[str, ...]:
    """Return the domains of the buffers, after a check of their names."""
    known = list(dict.fromkeys(row.user_or_domain for row in records))
    for argument, names in (("domains", domains or ()), ("unseen", (unseen,) if unseen is not None else ())):
        for name in names:
            checks.choice(argument, name, known)
    names = tuple(domains) if domains is not None else tuple(name for name in known if name != unseen)
    if not names or len(set(names)) < len(names) or unseen in names:
        checks.fail("domains", "name each domain once, and not the unseen one", f"are {names} with unseen {unseen!r}")
    return names


@checked
def stream(
    records: Iterable[Record],
    *,
    seed: int,
    config: StreamConfig = StreamConfig(),  # noqa: B008  # frozen
    domains: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    unseen: str | None = None,
) -> Stream:
    """Make a user stream from labelled rows.

    Rows are drawn without replacement. The rows of a domain depend on the seed and the domain alone, so that a larger
    buffer begins with the rows of a smaller one, and streams of different kinds are paired.

    Args:
        records: Labelled rows with splits, any iterable; only "train" rows come into buffers.
        seed: Seed of every draw; a required number, since it makes the stream what it is.
        config: Kind, size and number of the buffers, and what is tested on.
        domains: Domains (or users) in order; by default, all of the records in order of first appearance.
        labels: Candidate answers, of each domain or of all; by default those that occur. Empty: free text.
        unseen: A domain that comes into no buffer and is only tested on.

    Returns:
        The stream.

    Raises:
        ValueError: If a name is unknown, rows do not suffice, an id comes twice, or a test row comes into a buffer.

    Example:
        >>> rows = [Record(f"{d}{s}{i}", d, "t", f"x {i}", f"{d} {i % 2}", s)
        ...         for d in "abc" for s in ("train", "test") for i in range(10)]
        >>> made = stream(rows, seed=0, config=StreamConfig(kind="return", buffer_size=4), unseen="c")
        >>> [block.domain for block in made.blocks], len(made.test["c"])
        (['a', 'b', 'a'], 10)
    """
    checks.integer("seed", seed, low=0)
    records = check_records("records", records)
    names = _named(records, domains, unseen)
    if config.kind == "preference":
        if unseen is not None:
            checks.fail("unseen", "be None for a preference stream", f"is {unseen!r}", "All users ask the same.")
        records, labels = permuted_users(records, names, config.num_users, labels, _generator(seed, "preference"))
        names = tuple(dict.fromkeys(row.user_or_domain for row in records))
    elif config.kind == "conflict" and domains is None:
        names = most_opposed(records, names, config.num_users, config.buffer_size)
    if config.shuffle_domains:
        names = tuple(names[i] for i in _generator(seed, "order").permutation(len(names)))
    return _assemble(records, names, labels, unseen, seed, config)


def _assemble(
    records: Sequence[Record],
    names: tuple[str, ...],
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None,
    unseen: str | None,
    seed: int,
    config: StreamConfig,
) -> Stream:
    """Fill the buffers of the schedule and gather the test rows."""
    order = _schedule(config.kind, names, config.num_blocks)
    seen = tuple(dict.fromkeys(order))
    tested = (*seen, *([unseen] if unseen else []))
    own = {name: [row for row in records if row.user_or_domain == name] for name in tested}
    pool = _Pool({name: [row for row in own[name] if row.split == "train"] for name in seen}, seed)
    rng = _generator(seed, "gradual")
    blocks = []
    for i, name in enumerate(order):
        old = order[i - 1] if config.kind == "gradual" and i else None
        blocks.append(Block(name, _buffer(pool, old, name, config.buffer_size, rng), _previous(order, i)))
    test = {
        name: _test_rows([row for row in own[name] if row.split == config.split], name, seed, config) for name in tested
    }
    _check_ids(blocks, test)
    return Stream(config.kind, seed, seen, tuple(blocks), test, _candidates(labels, tested, records), unseen)
