"""Training rows from the profile of a LaMP question: what a user wrote becomes input and output.

Where they come from, by task (`SOURCES`):
- LaMP_2M, LaMP_2N, LaMP_3, LaMP_4, LaMP_5: the text of an item in the wording of the user's own question, with the tag,
  category, score or title of the item as output. This gives the pairs that the benchmark's authors train on (for
  LaMP_2N, whose older files they no longer use, the same rule is inferred).
- LaMP_1: the authors train on title -> abstract, since a profile holds no citation. With `distractors`, the rows are
  choices in the wording of the question instead: inferred, on the assumption that a user's own paper is the nearer one.
- LaMP_7: the authors train on finishing a tweet after its first 10-25 % of words (here, one word at least), since a
  profile holds no paraphrase.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvcim_jax import checks
from nvcim_jax.data.lamp import LAMP_TASKS, PROFILE_FIELDS
from nvcim_jax.data.records import Record, check_records, text_of
from nvcim_jax.signature import checked

__all__ = ["SOURCES", "profile_pairs"]

SOURCES: Mapping[str, str] = {name: "inferred" if name == "LaMP_2N" else "published" for name in LAMP_TASKS}
"""Task -> whether its pairs are those of the benchmark's authors ("published") or a reading of ours ("inferred")."""

MARKERS = {
    "LaMP_2M": "description:",
    "LaMP_2N": "article:",
    "LaMP_3": "review:",
    "LaMP_4": "article:",
    "LaMP_5": "paper:",
}
"""Task -> the word in its question after which the user's text begins."""

COMPLETED_SHARE = (0.1, 0.25)


def _instruction(record: Record, task: str) -> str:
    """Return the wording of a question up to the word after which the text begins."""
    marker = MARKERS[task]
    head, found, _ = record.input.partition(marker)
    if not found:
        checks.fail("record", f"have {marker!r} in the question of {task}", f"{record.id} asks {record.input[:60]!r}")
    return head + found


def _citation(title: str, own: str, distractor: str, own_first: bool) -> tuple[str, str]:
    """Return a choice between two references in the wording of LaMP_1."""
    one, two = (own, distractor) if own_first else (distractor, own)
    question = (
        f'For an author who has written the paper with the title "{title}", which reference is related? Just answer '
        f'with [1] or [2] without explanation. [1]: "{one}" [2]: "{two}"'
    )
    return question, "[1]" if own_first else "[2]"


def _choices(
    items: Sequence[Mapping[str, Any]], distractors: Sequence[str], rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Ask of every paper of the user which is nearer: another paper of the user, or one of somebody else."""
    titles = [str(item["title"]) for item in items]
    others = [title for title in distractors if title not in titles]
    if not others:
        checks.fail("distractors", "hold a title that is not the user's", f"has none among {len(distractors)}")
    if len(titles) < 2:
        checks.fail("record", "have two papers at least for choices", f"has {len(titles)}")
    made = []
    for i, title in enumerate(titles):
        own = titles[(i + int(rng.integers(1, len(titles)))) % len(titles)]
        made.append(_citation(title, own, others[int(rng.integers(len(others)))], bool(rng.integers(2))))
    return made


def _completion(text: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """Return the beginning and the rest of a tweet; None for a single word."""
    words = text.split()
    if len(words) < 2:
        return None
    index = max(1, int(len(words) * rng.uniform(*COMPLETED_SHARE)))
    return f"Complete the following tweet: {' '.join(words[:index])}", " ".join(words[index:])


def _pairs(
    record: Record, task: str, items: Sequence[Mapping[str, Any]], distractors: Sequence[str], rng: np.random.Generator
) -> list[tuple[str, str] | None]:
    if task == "LaMP_1" and distractors:
        return list(_choices(items, distractors, rng))
    if task == "LaMP_1":
        return [(f"Write an abstract for this title: {item['title']}", str(item["abstract"])) for item in items]
    if task == "LaMP_7":
        return [_completion(str(item["text"]), rng) for item in items]
    text, answer = PROFILE_FIELDS[task]
    head = _instruction(record, task)
    return [(f"{head} {item[text]}", str(item[answer])) for item in items]


@checked
def profile_pairs(
    record: Record, task: str | None = None, *, seed: int | None = None, distractors: Sequence[str] = ()
) -> list[Record]:
    """Turn the profile of a question into training rows, in the order of the profile.

    Args:
        record: A question of `read_lamp`, with its profile in `extra`.
        task: Its task; by default what the record says.
        seed: Seed of what is drawn, where a tweet is cut (LaMP_7) and the choices of LaMP_1; the other tasks need none.
        distractors: Titles of other users' papers; with them, the rows of LaMP_1 are choices between two references.

    Returns:
        Training rows of the same user and task. `extra` holds "source" ("published" or "inferred") and, where the
        item has one, its "date". Tweets of one word and items
        without text are left out.

    Raises:
        ValueError: If there is no profile, its items lack the fields of the task, or a seed is needed and not there.

    Example:
        >>> question = "What is the score of the following review on a scale of 1 to 5? review: fine"
        >>> items = [{"id": "9", "text": "great", "score": "5"}]
        >>> record = Record("1", "u", "LaMP_3", question, "4", "val", {"profile": items})
        >>> [(row.input[-13:], row.output) for row in profile_pairs(record)]
        [('review: great', '5')]

    References:
        Salemi and Zamani (2024), Comparing retrieval-augmentation and parameter-efficient fine-tuning for
        privacy-preserving personalization; PEFT/data/datasets.py of github.com/LaMP-Benchmark/LaMP.
    """
    check_records("record", [record])
    task = (task or record.task).replace("-", "_")
    items = record.extra.get("profile")
    if not isinstance(items, list):
        checks.fail("record", "hold a profile in `extra`", f"{record.id} has none", "Read it with read_lamp.")
    if task == "LaMP_2":
        task = "LaMP_2M" if items and isinstance(items[0], Mapping) and "tag" in items[0] else "LaMP_2N"
    checks.choice("task", task, LAMP_TASKS)
    for i, item in enumerate(items):
        known = item if isinstance(item, Mapping) else {}
        missing = [name for name in PROFILE_FIELDS[task] if name not in known]
        if missing:
            checks.fail("record", f"have items of {task}", f"item {i} of {record.id} lacks {', '.join(missing)}")
    if task == "LaMP_7" or (task == "LaMP_1" and distractors):
        checks.integer("seed", seed, low=0, fix=f"The pairs of {task} are drawn.")
    rng = np.random.default_rng([seed or 0, zlib.crc32(record.id.encode())])
    # a null field is no text: its item is left out, as one without text is
    items = [item for item in items if all(text_of(item[name]) is not None for name in PROFILE_FIELDS[task])]
    source = "inferred" if task == "LaMP_1" and distractors else SOURCES[task]
    rows = []
    for i, (item, pair) in enumerate(zip(items, _pairs(record, task, items, distractors, rng), strict=True)):
        if pair is None or not pair[1].strip():
            continue
        extra = {"source": source} | ({"date": item["date"]} if "date" in item else {})
        identifier = f"{record.id}/{i}-{text_of(item.get('id')) or ''}".rstrip("-")
        rows.append(Record(identifier, record.user_or_domain, task, *pair, "train", extra))
    return rows
