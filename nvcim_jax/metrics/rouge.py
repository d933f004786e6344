"""ROUGE-1 and ROUGE-L of one text against one reference, without stemming."""

import re
from collections import Counter
from typing import NamedTuple

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["Rouge", "rouge"]

WORD = re.compile("[a-z0-9]+")


class Rouge(NamedTuple):
    """F-measures of one pair of texts, in [0, 1].

    Attributes:
        rouge_1: Of the words in common.
        rouge_l: Of the longest common subsequence of words.
    """

    rouge_1: float
    rouge_l: float


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence.

    One row of the table at a time, packed into the bits of an integer (Allison and Dix 1986): a bit is 1 where the
    row's length does not grow by one.
    """
    where: dict[str, int] = {}
    for i, word in enumerate(first):
        where[word] = where.get(word, 0) | 1 << i
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        match = row & where.get(word, 0)
        row = ((row + match) | (row - match)) & everything
    return len(first) - row.bit_count()


def _f_measure(common: int, predicted: int, reference: int) -> float:
    """Return 2 P R / (P + R) with P = common / predicted and R = common / reference."""
    if not common:
        return 0.0
    precision, recall = common / predicted, common / reference
    return 2 * precision * recall / (precision + recall)


@checked
def rouge(gold: str, pred: str | None) -> Rouge:
    """Return ROUGE-1 and ROUGE-L of a text against its reference.

    Words are runs of the letters a-z and digits in the lower-case text; everything else separates. No stemming.

    Args:
        gold: The reference.
        pred: The text to judge; None has no word.

    Returns:
        The F-measures; 0 where either text has no word.

    Example:
        >>> rouge("the cat sat on the mat", "on the mat the cat sat").rouge_1  # the same words
        1.0
        >>> rouge("the cat sat on the mat", "on the mat the cat sat").rouge_l  # 3 of 6 in order
        0.5

    References:
        Lin (2004), ROUGE: a package for automatic evaluation of summaries, sections 2 and 3.
        Allison and Dix (1986), A bit-string longest-common-subsequence algorithm.
    """
    for argument, text in (("gold", gold), ("pred", "" if pred is None else pred)):
        if not isinstance(text, str):
            checks.fail(argument, "be a text", f"is {text!r}")
    reference, predicted = WORD.findall(gold.lower()), WORD.findall((pred or "").lower())
    both = sum((Counter(reference) & Counter(predicted)).values())
    longest = _common_subsequence(reference, predicted)
    sizes = len(predicted), len(reference)
    return Rouge(_f_measure(both, *sizes), _f_measure(longest, *sizes))
