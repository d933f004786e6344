"""Tensors of a checkpoint that a model does not take: each kind is held against what takes its place."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.models.files.tensorfile import Tensor, read_rows
from nvcim_jax.models.positions import frequencies

__all__ = ["check_skipped"]

CAUSAL = re.compile(r"(^|\.)(attn|attention)\.(bias|masked_bias)$")
"""The causal mask that old versions kept as a buffer, and the number that stood for minus infinity."""

FREQUENCIES = re.compile(r"(^|\.)rotary_emb\.inv_freq$")

OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector)\.")
"""The parts of a multimodal checkpoint that are not the language model."""

CHUNK_BYTES = 8 << 20
"""Most bytes of a tensor that are compared at a time."""


def check_skipped(
    found: Mapping[str, Tensor], left: Sequence[str], config: Config, *, embedding: str, head: str
) -> list[str]:
    """Check what no parameter took, and return what belongs to no language model at all.

    Left out are a causal mask, rotary frequencies that are those of config.json, a head that is the embedding where the
    two are tied, biases of zeros that a quantiser added, and the vision part of a multimodal model.

    Args:
        found: All tensors.
        left: Names of those that no parameter took.
        config: The model.
        embedding: Name of the embedding's tensor.
        head: Name of the head's tensor.

    Returns:
        Names of the tensors of other parts.

    Raises:
        ValueError: If a tensor holds something that the model would then lack, or is not known.
    """
    unknown, parts = [], []
    for name in left:
        tensor = found[name]
        if OTHER_PARTS.search(name):
            parts.append(name)
        elif FREQUENCIES.search(name):
            _check_frequencies(name, tensor, config)
        elif config.tied and name == head:
            _check_equal(name, tensor, embedding, found[embedding])
        elif name.endswith(".bias") and f"{name[:-5]}.qweight" in found:
            if read_rows(tensor).any():
                checks.fail("source", f"have no bias {name}, as config.json says", "has one that is not zero")
        elif not (CAUSAL.search(name) and len(tensor.shape) != 1):
            unknown.append(name)
    if unknown:
        checks.fail(
            "source",
            f"hold only tensors of a {config.family} model as config.json describes it",
            f"also has {', '.join(sorted(unknown)[:5])}",
        )
    return parts


def _check_frequencies(name: str, tensor: Tensor, config: Config) -> None:
    kept = read_rows(tensor).astype(np.float64)
    ropes = [rope for rope in (config.rope, config.rope_local) if rope is not None]
    # Half precision kept them to one part in a hundred.
    known = [frequencies(rope, config.rotary) for rope in ropes]
    if not any(kept.shape == f.shape and np.allclose(kept, f, rtol=0.01, atol=1e-8) for f in known):
        checks.fail("source", "turn by the frequencies that config.json gives", f"{name} differs from them")


def _check_equal(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    rows = max(1, CHUNK_BYTES // (tensor.dtype.itemsize * int(np.prod(tensor.shape[1:]))))
    parts = [(low, min(low + rows, tensor.shape[0])) for low in range(0, tensor.shape[0], rows)]
    same = tensor.shape == other.shape
    if not (same and all(np.array_equal(read_rows(tensor, *part), read_rows(other, *part)) for part in parts)):
        checks.fail(
            "source",
            "hold one matrix for embedding and head, which config.json ties",
            f"{name} differs from {other_name}",
            'Set "tie_word_embeddings": false in config.json.',
        )
