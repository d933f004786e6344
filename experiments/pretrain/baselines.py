"""What the language model is compared with: n-gram models of the same tokens, nearest neighbours of the samples."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["nearest_neighbour", "ngram_losses"]


def ngram_losses(
    train: Sequence[np.ndarray], valid: Sequence[np.ndarray], vocab_size: int, order: int, *, start: int, end: int
) -> float:
    """Return the mean loss in nats a token of an interpolated Witten-Bell n-gram model.

    `p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))`, t(h) the number of different words seen after h, h' the
    history without its oldest token; below the unigrams lies the uniform distribution. Every sentence begins with
    `start` and ends with `end`, which is predicted too.

    Args:
        train: Token ids of the training sentences.
        valid: Of the sentences to score.
        vocab_size: Number of tokens.
        order: 1 for unigrams, 5 for 5-grams.
        start: Token before every sentence.
        end: Token after every sentence.

    References:
        Chen and Goodman, An empirical study of smoothing techniques for language modeling, 1998, section 2.5.
    """
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
    for ids in train:
        sentence = [start, *ids.tolist(), end]
        for i in range(1, len(sentence)):
            for n in range(min(order, i + 1)):
                counts[n][tuple(sentence[i - n : i])][sentence[i]] += 1
    sums = [{history: sum(seen.values()) for history, seen in table.items()} for table in counts]
    total, number = 0.0, 0
    for ids in valid:
        sentence = [start, *ids.tolist(), end]
        for i in range(1, len(sentence)):
            probability = 1.0 / vocab_size
            for n in range(min(order, i + 1)):
                history = tuple(sentence[i - n : i])
                if history not in sums[n]:
                    break
                seen = counts[n][history]
                probability = (seen[sentence[i]] + len(seen) * probability) / (sums[n][history] + len(seen))
            total -= math.log(probability)
            number += 1
    return total / number


def word_counts(texts: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Return how often each known word stands in each text."""
    counts = np.zeros((len(texts), len(vocabulary)))
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().split():
            if word in vocabulary:
                row[vocabulary[word]] += 1
    return counts


def nearest_neighbour(texts: Sequence[str], labels: Sequence[str], queries: Sequence[str]) -> list[str]:
    """Return for each query the label of the most similar text, by the cosine of TF-IDF word vectors.

    The weight of a word is `log((n + 1) / (df + 1)) + 1` over the n texts.
    """
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.lower().split()}))}
    stored, asked = word_counts(texts, vocabulary), word_counts(queries, vocabulary)
    weights = np.log((len(texts) + 1) / ((stored > 0).sum(0) + 1)) + 1
    stored, asked = stored * weights, asked * weights
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
    return [str(labels[i]) for i in np.argmax(asked @ stored.T, axis=1)]
