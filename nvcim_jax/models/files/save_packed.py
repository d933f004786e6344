"""Codes of a few bits written as a GPTQ checkpoint has them, whatever they came from."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.files.quantised import Packed
from nvcim_jax.models.layout import Place

__all__ = ["container_bits", "packed_plan", "packed_tensors", "quantisation"]

Part = tuple[str, Place, int]
Plan = dict[str, tuple[np.dtype, tuple[int, ...]]]


def container_bits(leaves: Iterable[Packed]) -> int:
    """Return how many bits of a file hold all codes: 4 or 8; a word of 4 bits holds eight, which sides must fill."""
    found = [np.asarray(leaf.codes) for leaf in leaves]
    small = all(codes.min() >= -8 and codes.max() <= 7 for codes in found)
    return 4 if small and not any(side % 8 for codes in found for side in codes.shape[-2:]) else 8


def quantisation(bits: int) -> dict[str, Any]:
    """Return what config.json says of such weights."""
    about = {"quant_method": "gptq", "bits": bits, "group_size": -1, "sym": True, "desc_act": False}
    return {"quantization_config": {**about, "checkpoint_format": "gptq"}}


def _words(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack the rows of unsigned numbers into 32-bit words, the first lowest."""
    per = 32 // bits
    words = np.zeros((len(values) // per, values.shape[1]), np.uint32)
    for i in range(per):
        words |= values[i::per].astype(np.uint32) << np.uint32(bits * i)
    return words.view(np.int32)


def _joined(leaves: dict[str, Packed], parts: Sequence[Part], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, scales and groups of one tensor of the file, of the outputs of all its parts."""
    first = leaves[parts[0][0]]
    groups, outputs = np.asarray(first.groups[parts[0][2]]), parts[0][1].outputs
    codes = np.zeros((len(groups), outputs), np.int16)
    scales = np.zeros((first.scales.shape[-2], outputs), np.asarray(first.scales[0]).dtype)
    for path, place, i in parts:
        leaf = leaves[path]
        if not np.array_equal(groups, leaf.groups[i]) or leaf.scales.shape[-2] != len(scales):
            checks.fail(f"lm.params: {path}", f"share the groups of its tensor {name}", "has others", "Save floats.")
        for start, stop, at in place.pieces:
            codes[:, start:stop] = np.asarray(leaf.codes[i])[:, at : at + stop - start]
            scales[:, start:stop] = np.asarray(leaf.scales[i])[:, at : at + stop - start]
    return codes, scales, groups.astype(np.int32)


def packed_plan(leaves: dict[str, Packed], parts: Sequence[Part], bits: int) -> Plan:
    """Return dtype and shape of the tensors of a file that hold one packed matrix, by name.

    Args:
        leaves: Path of a parameter -> its stack.
        parts: The parameters that lie in the matrix, of one layer.
        bits: 4 or 8.

    Raises:
        ValueError: If sides do not fill whole words.
    """
    path, place, i = parts[0]
    stem, scales, (inputs, outputs) = place.stem.format(i=i), leaves[path].scales, (place.shape[0], place.outputs)
    per, word = 32 // bits, np.dtype(np.int32)
    if inputs % per or outputs % per:
        checks.fail(f"lm.params: {path}", f"have sides that {per} divides", f"is {(inputs, outputs)}", "Save floats.")
    return {
        f"{stem}.g_idx": (word, (inputs,)),
        f"{stem}.qweight": (word, (inputs // per, outputs)),
        f"{stem}.qzeros": (word, (scales.shape[-2], outputs // per)),
        f"{stem}.scales": (np.dtype(scales.dtype), (scales.shape[-2], outputs)),
    }


def packed_tensors(leaves: dict[str, Packed], parts: Sequence[Part], bits: int) -> dict[str, np.ndarray]:
    """Return the tensors of `packed_plan`.

    Raises:
        ValueError: If parameters of one matrix have different groups.
    """
    stem = parts[0][1].stem.format(i=parts[0][2])
    codes, scales, groups = _joined(leaves, parts, stem)
    zero = 1 << (bits - 1)
    zeros = np.full((codes.shape[1], len(scales)), zero - 1)  # version 1 of the format stores one less
    return {
        f"{stem}.g_idx": groups,
        f"{stem}.qweight": _words(codes + np.int16(zero), bits),
        f"{stem}.qzeros": np.ascontiguousarray(_words(zeros, bits).T),
        f"{stem}.scales": scales,
    }
