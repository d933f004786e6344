"""Users who disagree: chosen from real ones, or simulated by permuting labels."""

import collections
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nvcim_jax import checks
from nvcim_jax.data.records import Record, check_records
from nvcim_jax.signature import checked

__all__ = ["most_opposed", "permuted_users"]


def _distributions(records: Sequence[Record], names: Sequence[str]) -> np.ndarray:
    """Return the share of each answer among the training rows of each user, shape (users, answers)."""
    answers = {answer: i for i, answer in enumerate(dict.fromkeys(row.output for row in records))}
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(answers)))
    for row in records:
        if row.split == "train" and row.user_or_domain in index:
            counts[index[row.user_or_domain], answers[row.output]] += 1
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


@checked
def most_opposed(records: Iterable[Record], names: Sequence[str], num_users: int, min_rows: int) -> tuple[str, ...]:
    """Choose users such that those who follow each other answer most differently.

    The distance of two users is the total variation TV(p, q) = sum_a |p_a - q_a| / 2 between the distributions of
    their training answers. The two farthest come first; then, again and again, the one farthest from the last.

    Args:
        records: Labelled rows of many users.
        names: The users to choose from.
        num_users: How many to choose.
        min_rows: Least number of training rows a user must have.

    Returns:
        The chosen users in order.

    Raises:
        ValueError: If fewer than `num_users` users have enough rows.

    Example:
        >>> rows = [Record(f"{u}{i}", u, "t", "x", a, "train") for u, a in zip("abc", "112") for i in range(3)]
        >>> most_opposed(rows, ["a", "b", "c"], 2, 3)
        ('a', 'c')
    """
    checks.integer("num_users", num_users)
    records = check_records("records", records)
    sizes = collections.Counter(row.user_or_domain for row in records if row.split == "train")
    names = [name for name in names if sizes[name] >= min_rows]
    if len(names) < num_users:
        checks.fail("num_users", f"be at most the {len(names)} users with {min_rows} training rows", f"is {num_users}")
    share = _distributions(records, names)
    distance = np.array([np.abs(share - own).sum(-1) / 2 for own in share])
    chosen = [int(i) for i in np.unravel_index(np.argmax(distance), distance.shape)][:num_users]
    if chosen[0] == chosen[-1]:  # nobody disagrees: the order given
        chosen = list(range(min(2, num_users)))
    while len(chosen) < num_users:
        rest = [i for i in range(len(names)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: distance[chosen[-1], i]))
    return tuple(names[i] for i in chosen)


def _permutations(num_labels: int, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Return distinct random permutations, shape (users, labels)."""
    possible = 1
    for i in range(1, num_labels + 1):
        possible = min(possible * i, num_users)
    if possible < num_users:
        checks.fail("num_users", f"be at most the permutations of {num_labels} labels", f"is {num_users}")
    found: list[np.ndarray] = []
    while len(found) < num_users:
        drawn = rng.permutation(num_labels)
        if not any((drawn == other).all() for other in found):
            found.append(drawn)
    return np.array(found)


@checked
def permuted_users(
    records: Iterable[Record],
    domains: Sequence[str],
    num_users: int,
    labels: Mapping[str, Sequence[str]] | Sequence[str] | None,
    rng: np.random.Generator,
) -> tuple[list[Record], tuple[str, ...]]:
    """Let simulated users answer the same utterances, each with a random permutation of the labels.

    Training utterances are dealt out to the users in turn, so that no two buffers share one; every user is tested on
    all test utterances.

    Args:
        records: Labelled rows.
        domains: The domains whose utterances are used, together.
        num_users: Number of users, named "user 1", "user 2", ..
        labels: The labels to permute; by default all that occur.
        rng: Source of the permutations.

    Returns:
        The users' rows (`extra` holds "source_id" and "source_output") and the labels.

    Example:
        >>> rows = [Record(f"{s}{i}", "d", "t", f"x {i}", "ab"[i % 2], s) for s in ("train", "test") for i in range(4)]
        >>> made, labels = permuted_users(rows, ["d"], 2, None, np.random.default_rng(0))
        >>> sorted(row.output for row in made if row.input == "x 0" and row.split == "test")  # they disagree
        ['a', 'b']
    """
    checks.integer("num_users", num_users)
    records = check_records("records", records)
    own = [row for row in records if row.user_or_domain in domains]
    if isinstance(labels, Mapping):
        labels = [label for name in domains for label in labels.get(name, ())]
    names = tuple(dict.fromkeys(row.output for row in own)) if labels is None else tuple(dict.fromkeys(labels))
    index = {name: i for i, name in enumerate(names)}
    wrong = next((row for row in own if row.output not in index), None)
    if wrong is not None:
        checks.fail("labels", "name every answer", f"{wrong.id} has {wrong.output!r}")
    permutations = _permutations(len(names), num_users, rng)
    train = [row for row in own if row.split == "train"]
    rank = {row.id: i for row, i in zip(train, rng.permutation(len(train)), strict=True)}
    made = []
    for user, permutation in enumerate(permutations):
        name = f"user {user + 1}"
        for row in own:
            if row.split == "train" and rank[row.id] % num_users != user:
                continue
            extra = {**row.extra, "source_id": row.id, "source_output": row.output}
            answer = names[permutation[index[row.output]]]
            made.append(Record(f"{name}/{row.id}", name, row.task, row.input, answer, row.split, extra))
    return made, names
