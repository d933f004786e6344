"""What pretraining draws its batches from: sentences, and groups of them that share a meaning.

Groups come from labelled corpora, from sentences that share a word, and from clusters of sentences.
"""

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from experiments.pretrain import features
from experiments.pretrain.data import SPECIAL_TOKENS, Corpus, Group, encode

__all__ = ["MOST_CLASSES", "Material", "equals_id", "make_material"]

MOST_CLASSES = 6
"""Classes of an episode at most."""


class Material(NamedTuple):
    """Everything batches are drawn from.

    Attributes:
        sentences: Token ids of each sentence.
        families: Families of groups by name.
        names: Token ids of every group name.
        near: For some families, the groups most like each group, (groups, others).
        words: Tokens that are whole words, from which labels are made.
        pieces: Tokens that are neither special nor bytes, for labels whose words are spelt in parts.
        equals: Token of the answer sign.
    """

    sentences: list[np.ndarray]
    families: dict[str, list[Group]]
    names: dict[str, np.ndarray]
    near: dict[str, np.ndarray]
    words: np.ndarray
    pieces: np.ndarray
    equals: int


def whole_words(tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens that are words of at least three letters."""
    vocabulary = tokenizer.get_vocab()
    found = [i for word, i in vocabulary.items() if word[0] == "▁" and len(word) > 3 and word[1:].isalpha()]
    return np.asarray(sorted(found), np.int32)


def keyword_groups(
    sentences: list[np.ndarray], chosen: np.ndarray, words: np.ndarray, tokenizer: Tokenizer
) -> list[Group]:
    """Return, for each word of middling frequency, the chosen sentences that hold it."""
    is_word = np.zeros(tokenizer.get_vocab_size(), bool)
    is_word[words] = True
    holders: dict[int, list[int]] = {}
    for index in chosen:
        ids = sentences[index]
        for token in np.unique(ids[is_word[ids]]):
            holders.setdefault(int(token), []).append(int(index))
    return [
        Group(tokenizer.decode([token]).strip(), np.asarray(members))
        for token, members in sorted(holders.items())
        if 8 <= len(members) <= len(chosen) // 50 + 8
    ]


def cluster_groups(
    sentences: list[np.ndarray],
    chosen: np.ndarray,
    vectors: np.ndarray,
    weights: np.ndarray,
    tokenizer: Tokenizer,
    *,
    seed: int,
    each: int,
) -> list[Group]:
    """Return clusters of about `each` sentences by mean word vector, each named by its most telling word."""
    points = features.sentence_vectors([sentences[i] for i in chosen], vectors, weights)
    nearest = features.cluster(points, max(2, len(chosen) // each), seed=seed)
    groups = []
    for number in range(nearest.max() + 1):
        members = chosen[nearest == number]
        if len(members) >= 8:
            counts = np.bincount(np.concatenate([sentences[i] for i in members]), minlength=len(weights))
            groups.append(Group(tokenizer.decode([int(np.argmax(counts * weights))]).strip() or "x", members))
    return groups


def neighbours(family: list[Group], points: np.ndarray, num: int = 12) -> np.ndarray:
    """Return for each group the `num` others whose mean sentence is most like its own, (groups, num)."""
    centres = np.stack([points[group.members].mean(0) for group in family])
    centres -= centres.mean(0)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    likeness = centres @ centres.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, : min(num, len(family) - 1)]


def make_material(corpus: Corpus, tokenizer: Tokenizer, vectors: np.ndarray, *, seed: int) -> Material:
    """Encode the corpus and make its families of groups."""
    sentences = encode(tokenizer, corpus.train)
    weights = features.inverse_frequency(sentences, tokenizer.get_vocab_size())
    words = whole_words(tokenizer)
    families = {f"labelled {i}": family for i, family in enumerate(corpus.families)}
    # What people ask of an assistant, and everything: the two sorts of sentence are never mixed in one episode.
    for name, chosen in (("requests", corpus.requests), ("all", np.arange(len(sentences)))):
        families[f"keywords {name}"] = keyword_groups(sentences, chosen, words, tokenizer)
        for each in (40, 200):
            families[f"clusters of {each} {name}"] = cluster_groups(
                sentences, chosen, vectors, weights, tokenizer, seed=seed, each=each
            )
    families = {name: family for name, family in families.items() if len(family) > 1}
    names = {group.name for family in families.values() for group in family}
    ids = dict(zip(sorted(names), encode(tokenizer, sorted(names)), strict=True))
    points = features.sentence_vectors(sentences, vectors, weights)
    near = {name: neighbours(family, points) for name, family in families.items() if len(family) > MOST_CLASSES}
    pieces = np.arange(len(SPECIAL_TOKENS) + 256, tokenizer.get_vocab_size())
    return Material(sentences, families, ids, near, words, pieces, equals_id(tokenizer))


def equals_id(tokenizer: Tokenizer) -> int:
    """Return the token of the answer sign."""
    return encode(tokenizer, ["a ="])[0][-1].item()
