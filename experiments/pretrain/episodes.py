"""Training batches: plain text, and episodes whose task stands in front of the query.

An episode draws 2 to 5 groups of sentences, gives each a label that is renamed every time, and asks for the label of
further sentences. The examples stand in front either as text ("<s> sentence = label </s>") or, so that a soft prompt
can take their place, as a few *soft tokens*: weighted means of embeddings. A class is then written as some tokens
that each average the words of a few examples, followed by one token that averages the words of its label.

Groups come from labelled corpora, from sentences that share a word, from clusters of sentences, and from single
sentences cut at random into halves (one half is the example, the other the query).
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from tokenizers import Tokenizer

from experiments.pretrain import features
from experiments.pretrain.data import SPECIAL_TOKENS, Corpus, Group, encode
from nvcim_jax import checks

__all__ = [
    "LABEL_DECAY",
    "EpisodeBatch",
    "Material",
    "Sizes",
    "label_bag",
    "make_episodes",
    "make_material",
    "make_text",
]

PAD, START, END = (SPECIAL_TOKENS.index(name) for name in ("<pad>", "<s>", "</s>"))
LABEL_DECAY = 0.7
"""Weight of each further token of a label in its soft token: the order of the tokens stays readable."""


Values: TypeAlias = Any
"""An array: of NumPy while a batch is made, of JAX where it is used."""


class EpisodeBatch(NamedTuple):
    """Episodes, one a row; every position holds a token or a soft token.

    Attributes:
        ids: Tokens (rows, tokens), int32; padding where a soft token stands.
        slots: Which soft token stands at a position (rows, tokens), int32; -1 for an ordinary token.
        bags: Tokens that each soft token averages (rows, slots, bag), int32.
        bag_weights: Their weights (rows, slots, bag), float32, 0 for padding.
        where: Positions that predict an answer's tokens (rows, answers), int32.
        targets: The tokens they predict (rows, answers), int32.
        weights: 1 where there is an answer, 0 for padding (rows, answers), float32.
    """

    ids: Values
    slots: Values
    bags: Values
    bag_weights: Values
    where: Values
    targets: Values
    weights: Values


@checks.frozen_config
class Sizes:
    """Shapes of a batch of episodes.

    Attributes:
        rows: Episodes a batch.
        tokens: Positions of a row.
        slots: Soft tokens a row has room for.
        bag: Tokens a soft token averages at most.
        answers: Answer tokens a row has room for.
        sentence: Tokens of a sentence at most; longer ones are cut to a window.
    """

    rows: int = 48
    tokens: int = 64
    slots: int = 16
    bag: int = 32
    answers: int = 16
    sentence: int = 14


class Material(NamedTuple):
    """Everything batches are drawn from.

    Attributes:
        sentences: Token ids of each sentence.
        families: Families of groups by name.
        names: Token ids of every group name.
        words: Tokens that are whole words, from which labels are made.
        equals: Token of the answer sign.
    """

    sentences: list[np.ndarray]
    families: dict[str, list[Group]]
    names: dict[str, np.ndarray]
    words: np.ndarray
    equals: int


def whole_words(tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens that are words of at least three letters."""
    vocabulary = tokenizer.get_vocab()
    found = [i for word, i in vocabulary.items() if word[0] == "▁" and len(word) > 3 and word[1:].isalpha()]
    return np.asarray(sorted(found), np.int32)


def keyword_groups(sentences: list[np.ndarray], words: np.ndarray, tokenizer: Tokenizer) -> list[Group]:
    """Return, for each word of middling frequency, the sentences that hold it."""
    is_word = np.zeros(tokenizer.get_vocab_size(), bool)
    is_word[words] = True
    holders: dict[int, list[int]] = {}
    for index, ids in enumerate(sentences):
        for token in np.unique(ids[is_word[ids]]):
            holders.setdefault(int(token), []).append(index)
    return [
        Group(tokenizer.decode([token]).strip(), np.asarray(members))
        for token, members in sorted(holders.items())
        if 8 <= len(members) <= len(sentences) // 50 + 8
    ]


def cluster_groups(
    sentences: list[np.ndarray], vectors: np.ndarray, weights: np.ndarray, tokenizer: Tokenizer, *, seed: int
) -> list[Group]:
    """Return clusters of sentences by their mean word vector, each named by its most telling word."""
    points = features.sentence_vectors(sentences, vectors, weights)
    nearest = features.cluster(points, max(2, len(sentences) // 200), seed=seed)
    groups = []
    for number in range(nearest.max() + 1):
        members = np.flatnonzero(nearest == number)
        if len(members) >= 8:
            counts = np.bincount(np.concatenate([sentences[i] for i in members]), minlength=len(weights))
            groups.append(Group(tokenizer.decode([int(np.argmax(counts * weights))]).strip() or "x", members))
    return groups


def make_material(corpus: Corpus, tokenizer: Tokenizer, vectors: np.ndarray, *, seed: int) -> Material:
    """Encode the corpus and make its families of groups."""
    sentences = encode(tokenizer, corpus.train)
    weights = features.inverse_frequency(sentences, tokenizer.get_vocab_size())
    words = whole_words(tokenizer)
    families = {f"labelled {i}": family for i, family in enumerate(corpus.families)}
    families["keywords"] = keyword_groups(sentences, words, tokenizer)
    families["clusters"] = cluster_groups(sentences, vectors, weights, tokenizer, seed=seed)
    names = {group.name for family in families.values() for group in family}
    ids = encode(tokenizer, sorted(names))
    return Material(sentences, families, dict(zip(sorted(names), ids, strict=True)), words, equals_id(tokenizer))


def equals_id(tokenizer: Tokenizer) -> int:
    """Return the token of the answer sign."""
    return encode(tokenizer, ["a ="])[0][-1].item()


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


def label_bag(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a label and their weights in its soft token."""
    return ids, (LABEL_DECAY ** np.arange(len(ids))).astype(np.float32)


class Class(NamedTuple):
    """One class of an episode: how to draw a sentence of it, for an example or for a query, and its label."""

    label: np.ndarray
    examples: list[np.ndarray]
    queries: list[np.ndarray]


def window(generator: np.random.Generator, ids: np.ndarray, size: int) -> np.ndarray:
    """Cut a long sentence to a random window."""
    first = generator.integers(len(ids) - size + 1) if len(ids) > size else 0
    return ids[first : first + size]


def thin(generator: np.random.Generator, ids: np.ndarray, probability: float) -> np.ndarray:
    """Drop tokens at random, but never all of them."""
    kept = ids[generator.random(len(ids)) >= probability]
    return kept if len(kept) else ids[:1]


def random_label(generator: np.random.Generator, words: np.ndarray) -> np.ndarray:
    """Return one to three random words."""
    return generator.choice(words, generator.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))


def split_classes(generator: np.random.Generator, material: Material, num: int, sizes: Sizes) -> list[Class]:
    """Return classes of one sentence each, cut at random into an example half and a query half."""
    classes = []
    for index in generator.choice(len(material.sentences), num, replace=False):
        ids = material.sentences[index]
        first = generator.random(len(ids)) < 0.5
        halves = [ids[first], ids[~first]]
        halves = [half if len(half) else ids[:1] for half in halves]
        classes.append(
            Class(random_label(generator, material.words), [halves[0]], [window(generator, halves[1], sizes.sentence)])
        )
    return classes


def group_classes(
    generator: np.random.Generator, material: Material, family: str, num: int, renamed: bool, sizes: Sizes
) -> list[Class]:
    """Return classes drawn from the groups of one family."""
    groups = material.families[family]
    num = min(num, len(groups))
    classes = []
    for index in generator.choice(len(groups), num, replace=False):
        group = groups[index]
        label = random_label(generator, material.words) if renamed else material.names[group.name]
        # Examples and queries of one class never share a sentence.
        drawn = generator.choice(group.members, min(14, len(group.members)), replace=False)
        sentences = [material.sentences[i] for i in drawn]
        cut = len(sentences) // 2
        hidden = material.names[group.name][0] if family == "keywords" and generator.random() < 0.3 else -1
        queries = [thin(generator, s[s != hidden], 0.1) if (s != hidden).any() else s for s in sentences[cut:]]
        classes.append(Class(label, sentences[:cut], [window(generator, q, sizes.sentence) for q in queries]))
    return classes


def draw_classes(
    generator: np.random.Generator, material: Material, sizes: Sizes, num: int, *, named: bool
) -> list[Class]:
    """Return the classes of one episode; `named` asks for labels that fit their meaning."""
    labelled = [name for name in material.families if name.startswith("labelled")]
    kind = generator.choice(4, p=[0.0, 0.4, 0.2, 0.4] if named else [0.3, 0.25, 0.2, 0.25])
    if kind == 0:
        return split_classes(generator, material, num, sizes)
    family = (None, "keywords", "clusters", str(generator.choice(labelled)))[kind]
    assert family is not None
    if not material.families[family]:
        return split_classes(generator, material, num, sizes)
    return group_classes(generator, material, family, num, not named, sizes)


class Row:
    """One row of a batch while it is being filled."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.ids: list[int] = []
        self.slots: list[int] = []
        self.bags: list[tuple[np.ndarray, np.ndarray]] = []
        self.answers: list[tuple[int, int]] = []

    def soft(self, ids: np.ndarray, weights: np.ndarray) -> None:
        """Append a soft token."""
        self.slots.append(len(self.bags))
        self.ids.append(PAD)
        self.bags.append((ids, weights))

    def ask(self, query: np.ndarray, label: np.ndarray, equals: int, *, scored: bool) -> bool:
        """Append "<s> query = label </s>"; return whether there was room."""
        text = [START, *query, equals, *label, END]
        room = len(self.ids) + len(text) <= self.sizes.tokens
        if not room or len(self.answers) + len(label) + 1 > self.sizes.answers:
            return False
        start = len(self.ids) + len(query) + 1
        if scored:
            self.answers += [(start + i, int(token)) for i, token in enumerate([*label, END])]
        self.ids += [int(token) for token in text]
        self.slots += [-1] * len(text)
        return True


def write_prefix(generator: np.random.Generator, row: Row, classes: list[Class], num_examples: int) -> None:
    """Write every class as `num_examples` soft tokens and the soft token of its label."""
    for item in classes:
        per_token = generator.integers(1, 4)
        order = generator.permutation(len(item.examples))
        for i in range(num_examples):
            picked = [item.examples[j] for j in order[i * per_token : (i + 1) * per_token]]
            ids = np.concatenate(picked or [item.examples[order[0]]])
            if len(ids) > row.sizes.bag:
                ids = generator.choice(ids, row.sizes.bag, replace=False)
            row.soft(ids, np.ones(len(ids), np.float32))
        row.soft(*label_bag(item.label[: row.sizes.bag]))


def make_row(generator: np.random.Generator, material: Material, sizes: Sizes) -> Row:
    """Return one episode."""
    row = Row(sizes)
    style = generator.choice(["soft", "names", "text"], p=[0.75, 0.1, 0.15])
    num = int(generator.choice([2, 3, 4, 5], p=[0.1, 0.15, 0.25, 0.5]))
    named = style == "names" or generator.random() < 0.35
    classes = draw_classes(generator, material, sizes, num, named=named)
    if style == "soft":
        most = min(3, sizes.slots // len(classes) - 1)
        write_prefix(generator, row, classes, int(generator.integers(1, most + 1)))
    elif style == "names":
        write_prefix(generator, row, classes, 0)
    seen: set[int] = set()
    for turn in range(8):
        number = int(generator.integers(len(classes)))
        item = classes[number]
        # Without soft tokens a class can be known only once it has been shown.
        pool = item.queries if style != "text" or number in seen else item.examples
        query = window(generator, pool[generator.integers(len(pool))], sizes.sentence)
        scored = style != "text" or number in seen
        if not row.ask(query, item.label, material.equals, scored=scored) and turn:
            break
        seen.add(number)
    return row


def make_episodes(generator: np.random.Generator, material: Material, sizes: Sizes) -> EpisodeBatch:
    """Return a batch of episodes."""
    rows, tokens, slots, answers = sizes.rows, sizes.tokens, sizes.slots, sizes.answers
    batch = EpisodeBatch(
        np.full((rows, tokens), PAD, np.int32),
        np.full((rows, tokens), -1, np.int32),
        np.full((rows, slots, sizes.bag), PAD, np.int32),
        np.zeros((rows, slots, sizes.bag), np.float32),
        np.zeros((rows, answers), np.int32),
        np.full((rows, answers), PAD, np.int32),
        np.zeros((rows, answers), np.float32),
    )
    for i in range(rows):
        row = make_row(generator, material, sizes)
        batch.ids[i, : len(row.ids)] = row.ids
        batch.slots[i, : len(row.slots)] = row.slots
        for j, (ids, weights) in enumerate(row.bags):
            batch.bags[i, j, : len(ids)] = ids
            batch.bag_weights[i, j, : len(ids)] = weights
        for j, (position, target) in enumerate(row.answers):
            batch.where[i, j], batch.targets[i, j], batch.weights[i, j] = position, target, 1.0
    return batch
