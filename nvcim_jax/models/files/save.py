"""Save a model as a Hugging Face checkpoint."""

import dataclasses
import functools
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
from nvcim_jax.models.files.save_packed import container_bits, packed_plan, packed_tensors, quantisation
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


Part = tuple[str, Place, int]


def _parts(config: Any) -> dict[str, list[Part]]:
    """Return name of a tensor -> the parameters that lie in it."""
    found: dict[str, list[Part]] = {}
    for path, place in places(config).items():
        for i in range(config.num_layers if place.layered else 1):
            found.setdefault(place.tensor.format(i=i), []).append((path, place, i))
    return found


def _floats(params: PyTree, parts: list[Part], dtype: np.dtype) -> np.ndarray:
    """Return one tensor of the file as floats."""
    whole = np.empty(parts[0][1].tensor_shape, dtype)
    for path, place, i in parts:
        array = _layer(params, path, place, i, dtype)
        for start, stop, at in place.pieces:
            if place.turned or array.ndim == 1:
                whole[start:stop] = array[..., at : at + stop - start].T
            else:
                whole[:, start:stop] = array[:, at : at + stop - start]
    return whole


@checked
def save(folder: str | Path, lm: LM, text: Text | None = None, *, dtype: Any = None, keep_codes: bool = False) -> None:
    """Write a model so that transformers (version 5) and `load` open it: config.json, model.safetensors, tokenizer.

    Args:
        folder: Where to; it is made if it is not there.
        lm: The model. Packed weights are written as floats.
        text: Its tokenizer is saved beside it.
        dtype: dtype of the file, such as `jnp.bfloat16`; None: the dtype of the embedding.
        keep_codes: Whether weights that are `Packed` keep their codes and scales, in the layout of GPTQ of 4 bits,
            where all codes fit into them, or 8: `load` gives them back as they are.

    Raises:
        ValueError: If a parameter is missing or misshaped, or transformers has no such model; if codes do not fill
            whole words.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     models.save(folder, models.init(jax.random.key(0), config=config), dtype=jnp.bfloat16)
        ...     sorted(file.name for file in Path(folder).iterdir()), models.load_config(folder).width
        (['config.json', 'model.safetensors'], 32)
    """
    folder, config = Path(folder), lm.config
    target = np.dtype(lm.params["embedding"].dtype if dtype is None else dtype)
    _check(lm.params, config)
    leaves = {path: _leaf(lm.params, path) for path in places(config)}
    coded = {path: leaf for path, leaf in leaves.items() if keep_codes and isinstance(leaf, Packed)}
    bits = container_bits(coded.values())
    raw = config_to_hf(config) | {"dtype": target.name} | (quantisation(bits) if coded else {})
    if lm.soft_tokens != SoftTokens():
        raw["soft_tokens"] = dataclasses.asdict(lm.soft_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "model.safetensors", lm, target, coded, bits)
    files.write(folder / "config.json", json.dumps(raw, indent=2) + "\n")
    if text is not None and text.tokenizer is not None:
        text.tokenizer.save_pretrained(str(folder))


def _write(path: Path, lm: LM, dtype: np.dtype, coded: dict[str, Packed], bits: int) -> None:
    """Write all tensors, one at a time."""
    plan: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    whole, stems = {}, {}
    for name, parts in sorted(_parts(lm.config).items()):
        if all(own in coded for own, _, _ in parts):
            found = packed_plan(coded, parts, bits)
            plan |= found
            stems |= dict.fromkeys(found, tuple(parts))
        else:
            plan[name], whole[name] = (dtype, parts[0][1].tensor_shape), parts

    @functools.lru_cache(maxsize=1)  # the tensors of one matrix follow each other
    def packed(parts: tuple[Part, ...]) -> dict[str, np.ndarray]:
        return packed_tensors(coded, parts, bits)

    def make(name: str) -> Iterator[np.ndarray]:
        yield packed(stems[name])[name] if name in stems else _floats(lm.params, whole[name], dtype)

    write_tensors(path, plan, make)
