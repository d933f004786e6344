"""Training batches: plain text, and episodes whose task stands in front of the query as soft tokens.

An episode draws 2 to 6 groups of sentences, gives each a label that is renamed every time, writes them as a prompt of
soft tokens, and asks for the labels of other sentences. A soft token holds what its class looks like and what it is
called: the mean of the embeddings of a few examples, moved to other channels, plus the embedding of the label (see
`objective.soft_tokens`). So that the prompts a user tunes are read as well, some episodes hold the two in
neighbouring tokens, or several tokens a class, or ordinary tokens in between; order, share and length are random.

The queries of an episode share its prompt and do not see each other: one row holds them one after the other, and every
query stands at the position it would have alone.

Groups come from `material`; in some episodes a class is a single sentence cut at random into halves, one of which is
the example and the other the query.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from experiments.pretrain.data import SPECIAL_TOKENS
from experiments.pretrain.material import MOST_CLASSES, Material
from nvcim_jax import checks

__all__ = ["LABEL_DECAY", "EpisodeBatch", "Sizes", "label_weights", "make_episodes", "make_text"]

PAD, START, END = (SPECIAL_TOKENS.index(name) for name in ("<pad>", "<s>", "</s>"))
LABEL_DECAY = 0.7
"""Weight of each further token of a label in its soft token: the order of the tokens stays readable."""
Values: TypeAlias = Any
"""An array: of NumPy while a batch is made, of JAX where it is used."""


class EpisodeBatch(NamedTuple):
    """Episodes, one a row; every position holds a token or a soft token.

    Attributes:
        ids: Tokens (rows, tokens), int32; padding where a soft token stands.
        parts: 0 in the prompt, the number of the query from 1 on, -1 for padding (rows, tokens), int32.
        places: Position of each token in its own sequence (rows, tokens), int32.
        slots: Which soft token stands at a position (rows, tokens), int32; -1 for an ordinary token.
        bags: Tokens of the examples that each soft token averages (rows, slots, bag), int32.
        bag_weights: Their weights (rows, slots, bag), float32, 0 for padding.
        labels: Tokens of the label in each soft token (rows, slots, label), int32.
        label_weights: Their weights (rows, slots, label), float32, 0 for padding.
        shares: Amounts of examples and of label in each soft token (rows, slots, 2), float32.
        owners: Class whose examples a soft token holds (rows, slots), int32; -1 where it holds none.
        where: Positions that predict an answer's tokens (rows, answers), int32.
        targets: The tokens they predict (rows, answers), int32.
        weights: 1 where there is an answer, 0 for padding (rows, answers), float32.
        classes: Class of an answer at its first token (rows, answers), int32; -1 elsewhere.
        choices: First token of each class's label (rows, classes), int32; -1 for padding.
    """

    ids: Values
    parts: Values
    places: Values
    slots: Values
    bags: Values
    bag_weights: Values
    labels: Values
    label_weights: Values
    shares: Values
    owners: Values
    where: Values
    targets: Values
    weights: Values
    classes: Values
    choices: Values


@checks.frozen_config
class Sizes:
    """Shapes of a batch of episodes.

    Attributes:
        rows: Episodes a batch.
        tokens: Positions of a row.
        slots: Soft tokens a row has room for.
        bag: Tokens of examples that a soft token averages at most.
        label: Tokens of a label at most.
        answers: Answer tokens a row has room for.
        sentence: Tokens of a sentence at most; longer ones are cut to a window.
    """

    rows: int = 12
    tokens: int = 128
    slots: int = 16
    bag: int = 48
    label: int = 4
    answers: int = 40
    sentence: int = 14


def make_text(generator: np.random.Generator, material: Material, rows: int, tokens: int) -> np.ndarray:
    """Return rows of "<s> sentence </s>" packed one after the other, (rows, tokens), int32."""
    out = np.full((rows, tokens), PAD, np.int32)
    for row in out:
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < tokens:
            ids = material.sentences[generator.integers(len(material.sentences))]
            parts.append(np.concatenate([[START], ids, [END]]))
        row[:] = np.concatenate(parts)[:tokens]
    return out


def label_weights(num_tokens: int) -> np.ndarray:
    """Return the weights of a label's tokens in its soft token."""
    return (LABEL_DECAY ** np.arange(num_tokens)).astype(np.float32)


class Class(NamedTuple):
    """One class of an episode: its number, its label, and sentences for examples and for queries."""

    number: int
    label: np.ndarray
    examples: list[np.ndarray]
    queries: list[np.ndarray]


def window(generator: np.random.Generator, ids: np.ndarray, size: int) -> np.ndarray:
    """Cut a long sentence to a random window."""
    first = generator.integers(len(ids) - size + 1) if len(ids) > size else 0
    return ids[first : first + size]


def random_label(generator: np.random.Generator, words: np.ndarray) -> np.ndarray:
    """Return one to three random words."""
    return generator.choice(words, generator.choice([1, 2, 3], p=[0.45, 0.4, 0.15]))


def hard_labels(generator: np.random.Generator, material: Material, num: int) -> list[np.ndarray]:
    """Return labels of one to four tokens, words or parts of words; in some episodes all begin alike."""
    labels = []
    for _ in range(num):
        size = generator.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15])
        spelt = generator.random(size) < 0.4
        labels.append(np.where(spelt, generator.choice(material.pieces, size), generator.choice(material.words, size)))
    if generator.random() < 0.25:
        labels = [np.append(labels[0][:1], label)[:4] for label in labels]
    return labels


def split_classes(generator: np.random.Generator, material: Material, num: int) -> list[Class]:
    """Return classes of one sentence each, cut at random into an example half and a query half."""
    classes = []
    for number, index in enumerate(generator.choice(len(material.sentences), num, replace=False)):
        ids = material.sentences[index]
        first = generator.random(len(ids)) < 0.5
        halves = [half if len(half) else ids[:1] for half in (ids[first], ids[~first])]
        classes.append(Class(number, random_label(generator, material.words), halves[:1], halves[1:]))
    return classes


def pick_groups(generator: np.random.Generator, material: Material, family: str, num: int, *, hard: bool) -> np.ndarray:
    """Return the numbers of different groups of a family; often groups much like each other where it is `hard`."""
    size = len(material.families[family])
    if hard and family in material.near and generator.random() < 0.6:
        first = generator.integers(size)
        others = material.near[family][first]
        return np.append(first, generator.choice(others, min(num - 1, len(others)), replace=False))
    return generator.choice(size, min(num, size), replace=False)


def group_classes(
    generator: np.random.Generator, material: Material, family: str, num: int, *, named: bool, hard: bool
) -> list[Class]:
    """Return classes drawn from the groups of one family."""
    groups = material.families[family]
    classes = []
    for number, index in enumerate(pick_groups(generator, material, family, num, hard=hard)):
        group = groups[index]
        label = material.names[group.name] if named else random_label(generator, material.words)
        # Examples and queries of one class never share a sentence.
        drawn = generator.choice(group.members, min(int(generator.integers(6, 15)), len(group.members)), replace=False)
        sentences = [material.sentences[i] for i in drawn]
        cut = max(1, len(sentences) - 4)
        queries = sentences[cut:]
        if family.startswith("keywords") and generator.random() < 0.5:
            hidden = material.names[group.name][0]
            queries = [s[s != hidden] if (s != hidden).any() else s for s in queries]
        classes.append(Class(number, label, sentences[:cut], queries))
    return classes


def draw_classes(
    generator: np.random.Generator, material: Material, num: int, *, named: bool, hard: bool
) -> list[Class]:
    """Return the classes of one episode; `named` asks for labels that fit their meaning, `hard` for like classes."""
    kind = generator.choice(
        ["split", "labelled", "keywords", "clusters"], p=[0.0, 0.5, 0.3, 0.2] if named else [0.1, 0.35, 0.3, 0.25]
    )
    families = [name for name in material.families if name.startswith(kind)]
    if not families:
        return split_classes(generator, material, num)
    return group_classes(generator, material, str(generator.choice(families)), num, named=named, hard=hard)


class SoftToken(NamedTuple):
    """What one soft token holds: see `EpisodeBatch`."""

    examples: np.ndarray
    label: np.ndarray
    shares: tuple[float, float]
    owner: int


class Row:
    """One row of a batch while it is being filled."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.ids: list[int] = []
        self.parts: list[int] = []
        self.places: list[int] = []
        self.slots: list[int] = []
        self.soft_tokens: list[SoftToken] = []
        self.answers: list[tuple[int, int, int]] = []
        self.choices: list[int] = []

    def prompt(self, token: int, slot: int) -> None:
        """Append a position of the prompt."""
        self.places.append(len(self.ids))
        self.ids.append(token)
        self.parts.append(0)
        self.slots.append(slot)

    def soft(self, token: SoftToken) -> None:
        """Append a soft token."""
        self.prompt(PAD, len(self.soft_tokens))
        self.soft_tokens.append(token)

    def ask(self, number: int, query: np.ndarray, item: Class, equals: int) -> bool:
        """Append "<s> query = label" as query `number` from 1; return whether there was room."""
        label = item.label[: self.sizes.label]
        text, answer = [START, *query, equals, *label], [*label, END]
        if len(self.ids) + len(text) > self.sizes.tokens or len(self.answers) + len(answer) > self.sizes.answers:
            return False
        start = len(self.ids) + len(query) + 1
        self.answers += [(start + i, int(token), -1 if i else item.number) for i, token in enumerate(answer)]
        first = self.parts.count(0)
        self.places += range(first, first + len(text))
        self.ids += [int(token) for token in text]
        self.parts += [number] * len(text)
        self.slots += [-1] * len(text)
        return True


def class_tokens(
    generator: np.random.Generator, item: Class, num_each: int, apart: bool, sizes: Sizes
) -> list[list[SoftToken]]:
    """Return the soft tokens of one class, in runs that stay together."""
    order = generator.permutation(len(item.examples))
    label = item.label[: sizes.label]
    runs = []
    for i in range(num_each):
        picked = [window(generator, item.examples[j], 24) for j in (order[i::num_each] if i < len(order) else order)]
        ids = np.concatenate(picked)
        if len(ids) > sizes.bag:
            ids = generator.choice(ids, sizes.bag, replace=False)
        of_label = float(np.exp(generator.uniform(-0.5, 0.5)))
        if apart:
            runs.append([SoftToken(ids, label, (1.0, 0.0), item.number), SoftToken(ids, label, (0.0, 1.0), -1)])
        else:
            runs.append([SoftToken(ids, label, (1.0, of_label), item.number)])
    return runs


def write_prompt(generator: np.random.Generator, row: Row, classes: list[Class], words: np.ndarray) -> None:
    """Write the classes as soft tokens in random order, with ordinary tokens between them in some episodes."""
    apart = generator.random() < 0.15
    most = row.sizes.slots // (len(classes) * (2 if apart else 1))
    num_each = int(generator.integers(1, min(3, most) + 1))
    runs = [run for item in classes for run in class_tokens(generator, item, num_each, apart, row.sizes)]
    num_others = int(generator.integers(1, 5)) if generator.random() < 0.3 else 0
    for turn in generator.permutation(len(runs) + num_others):
        if turn >= len(runs):
            row.prompt(int(generator.choice(words)), -1)
            continue
        for part in runs[turn]:
            row.soft(part)


def make_row(generator: np.random.Generator, material: Material, sizes: Sizes, *, hard: bool) -> Row:
    """Return one episode."""
    row = Row(sizes)
    chances = [0.0, 0.05, 0.1, 0.2, 0.4, 0.25] if hard else [0.05, 0.15, 0.2, 0.2, 0.25, 0.15]
    num = int(generator.choice([1, 2, 3, 4, 5, 6], p=chances))
    named = bool(generator.random() < 0.3)
    classes = draw_classes(generator, material, num, named=named, hard=hard)
    if hard and not named:
        labels = hard_labels(generator, material, len(classes))
        classes = [item._replace(label=label) for item, label in zip(classes, labels, strict=True)]
    write_prompt(generator, row, classes, material.words)
    row.choices = [int(item.label[0]) for item in classes]
    asked = [(item, query) for item in classes for query in item.queries]
    for number, turn in enumerate(generator.permutation(len(asked))):
        item, query = asked[turn]
        if not row.ask(number + 1, window(generator, query, sizes.sentence), item, material.equals):
            break
    return row


def make_episodes(
    generator: np.random.Generator, material: Material, sizes: Sizes, *, hard: bool = False
) -> EpisodeBatch:
    """Return a batch of episodes; hard ones have more classes, more alike, with labels of more and of odder tokens."""
    grid, slots, answers = (sizes.rows, sizes.tokens), (sizes.rows, sizes.slots), (sizes.rows, sizes.answers)
    batch = EpisodeBatch(
        ids=np.full(grid, PAD, np.int32),
        parts=np.full(grid, -1, np.int32),
        places=np.zeros(grid, np.int32),
        slots=np.full(grid, -1, np.int32),
        bags=np.full((*slots, sizes.bag), PAD, np.int32),
        bag_weights=np.zeros((*slots, sizes.bag), np.float32),
        labels=np.full((*slots, sizes.label), PAD, np.int32),
        label_weights=np.zeros((*slots, sizes.label), np.float32),
        shares=np.zeros((*slots, 2), np.float32),
        where=np.zeros(answers, np.int32),
        targets=np.full(answers, PAD, np.int32),
        weights=np.zeros(answers, np.float32),
        owners=np.full(slots, -1, np.int32),
        classes=np.full(answers, -1, np.int32),
        choices=np.full((sizes.rows, MOST_CLASSES), -1, np.int32),
    )
    for i in range(sizes.rows):
        row = make_row(generator, material, sizes, hard=hard)
        for name in ("ids", "parts", "places", "slots"):
            getattr(batch, name)[i, : len(row.ids)] = getattr(row, name)
        batch.choices[i, : len(row.choices)] = row.choices
        for j, (examples, label, shares, owner) in enumerate(row.soft_tokens):
            batch.bags[i, j, : len(examples)] = examples
            batch.bag_weights[i, j, : len(examples)] = 1.0
            batch.labels[i, j, : len(label)] = label
            batch.label_weights[i, j, : len(label)] = label_weights(len(label))
            batch.shares[i, j], batch.owners[i, j] = shares, owner
        for j, (position, target, number) in enumerate(row.answers):
            batch.where[i, j], batch.targets[i, j], batch.weights[i, j] = position, target, 1.0
            batch.classes[i, j] = number
    return batch
