"""Save a model as a Hugging Face checkpoint."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.models.files.gguf_weight import Blocks
from nvcim_jax.models.files.hf_config import config_to_hf
from nvcim_jax.models.files.quantised import Packed
from nvcim_jax.models.files.tensorfile import write_tensors
from nvcim_jax.models.layout import Place, places
from nvcim_jax.models.lm import LM, Text
from nvcim_jax.models.soft_tokens import SoftTokens
from nvcim_jax.ops import Weight
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["save"]

PACKED = (Packed, Blocks)
"""Weights that are written as the floats they stand for."""


def _leaf(params: PyTree, path: str) -> Any:
    for name in path.split("."):
        params = params[name]
    return params


def _layer(params: PyTree, path: str, place: Place, i: int, dtype: np.dtype) -> np.ndarray:
    leaf = _leaf(params, path)
    if place.layered:
        leaf = jax.tree.map(lambda a: a[i], leaf)
    return np.asarray(leaf.dense() if isinstance(leaf, PACKED) else leaf).astype(dtype, copy=False)


def _check(params: PyTree, config: Any) -> None:
    wanted = config.shapes
    for path, place in places(config).items():
        branch = params.get("layers", {}) if place.layered else params
        name = path.removeprefix("layers.")
        if name not in branch:
            checks.fail("lm.params", f"hold `{path}`", "lacks it")
        leaf = branch[name]
        if isinstance(leaf, Weight) and not isinstance(leaf, PACKED):
            checks.fail(
                f"lm.params: {path}", "be an array to be saved", f"is a {type(leaf).__name__}", "Put its floats there."
            )
        if leaf.shape != _leaf(wanted, path):
            checks.fail(f"lm.params: {path}", f"have shape {_leaf(wanted, path)}", f"has shape {leaf.shape}")


@checked
def save(folder: str | Path, lm: LM, text: Text | None = None, *, dtype: Any = None) -> None:
    """Write a model so that transformers (version 5) and `load` open it: config.json, model.safetensors, tokenizer.

    Args:
        folder: Where to; it is made if it is not there.
        lm: The model. Packed weights are written as floats.
        text: Its tokenizer is saved beside it.
        dtype: dtype of the file, such as `jnp.bfloat16`; None: the dtype of the embedding.

    Raises:
        ValueError: If a parameter is missing or misshaped, or transformers has no such model.

    Example: see `load`.
    """
    folder, config = Path(folder), lm.config
    target = np.dtype(lm.params["embedding"].dtype if dtype is None else dtype)
    _check(lm.params, config)
    raw = config_to_hf(config) | {"dtype": target.name}
    if lm.soft_tokens != SoftTokens():
        raw["soft_tokens"] = dataclasses.asdict(lm.soft_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[tuple[str, Place, int]]] = {}
    for path, place in places(config).items():
        for i in range(config.num_layers if place.layered else 1):
            parts.setdefault(place.tensor.format(i=i), []).append((path, place, i))

    def make(name: str) -> Iterator[np.ndarray]:
        first = parts[name][0][1]
        whole = np.empty(first.tensor_shape, target)
        for path, place, i in parts[name]:
            array = _layer(lm.params, path, place, i, target)
            for start, stop, at in place.pieces:
                if place.turned or array.ndim == 1:
                    whole[start:stop] = array[..., at : at + stop - start].T
                else:
                    whole[:, start:stop] = array[:, at : at + stop - start]
        yield whole

    plan = {name: (target, found[0][1].tensor_shape) for name, found in sorted(parts.items())}
    write_tensors(folder / "model.safetensors", plan, make)
    files.write(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    if text is not None and text.tokenizer is not None:
        text.tokenizer.save_pretrained(str(folder))
