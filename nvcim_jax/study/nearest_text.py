"""The text baseline without any language model: the answer of the most similar text that was seen."""

from collections.abc import Sequence

import numpy as np

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["nearest_text"]


def _word_counts(texts: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Return how often each known word stands in each text."""
    counts = np.zeros((len(texts), len(vocabulary)))
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().split():
            if word in vocabulary:
                row[vocabulary[word]] += 1
    return counts


@checked
def nearest_text(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """Return for each query the index of the most similar text, by the cosine of TF-IDF word vectors.

    The weight of a word is `log((n + 1) / (df + 1)) + 1` over the n texts; words that stand in no text count nothing.
    A query without a known word, like any tie, gets the first text.

    Args:
        texts: Texts that were seen, at least one.
        queries: Texts to find a neighbour for.

    Returns:
        Indices into `texts` (queries,), int64.

    Raises:
        ValueError: If there is no text.

    Example:
        >>> nearest_text(["is my flight late", "pay the bill"], ["the flight is late", "a bill"]).tolist()
        [0, 1]
    """
    if isinstance(texts, str) or not texts:
        checks.fail("texts", "be a list of at least one text", f"is {texts!r}")
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in texts for w in text.lower().split()}))}
    stored, asked = _word_counts(texts, vocabulary), _word_counts(queries, vocabulary)
    weights = np.log((len(texts) + 1) / ((stored > 0).sum(0) + 1)) + 1
    stored, asked = stored * weights, asked * weights
    stored /= np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-9)
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
    return np.argmax(asked @ stored.T, axis=1)
