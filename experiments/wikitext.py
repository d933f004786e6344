"""WikiText-2 as windows of tokens, for every experiment that measures perplexity."""

import gzip

import numpy as np

from experiments import data as public
from nvcim_jax import checks, models

__all__ = ["windows"]


def windows(text: models.Text, split: str, *, tokens: int, num: int | None = None, start: int = 0) -> np.ndarray:
    """Cut a split into windows that follow each other.

    Each window begins with what the tokenizer puts before every text, if anything; these tokens count. The text is the
    tokenised release with `<unk>`: its perplexities are not those of the raw release.

    Args:
        text: The model's tokenizer.
        split: `valid`, for calibration and tuning, or `test`.
        tokens: Tokens of a window.
        num: Windows; None: as many as there are.
        start: Windows that are left out at the beginning.

    Returns:
        Token ids (windows, tokens), int32.

    Raises:
        ValueError: If the data folder is not there, or the split holds fewer windows.
    """
    checks.choice("split", split, ("valid", "test"))
    folder = public.folder("wikitext2")
    words = gzip.decompress((folder / f"{split}.txt.gz").read_bytes()).decode("utf-8")
    first = text.begin()
    size = tokens - len(first)
    checks.integer("tokens", size, fix="A window holds at least one token of the text.")
    # A token is hardly ever longer than 16 characters on average: encode no more of the text than is needed.
    ids = text.encode(words if num is None else words[: 16 * (start + num) * size])
    found = np.asarray(ids[: len(ids) // size * size], np.int32).reshape(-1, size)[start:][:num]
    if num is not None and len(found) < num:
        checks.fail("num", f"be at most the {len(found)} windows that {split} has", f"is {num}")
    return np.concatenate([np.tile(np.asarray(first, np.int32), (len(found), 1)), found], axis=1)
