"""What the language model is compared with as a model of text: n-gram models of the same tokens."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

__all__ = ["ngram_losses"]


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
