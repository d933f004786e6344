"""What PEFT calls the tensors of an adapter, by the module of the family that holds each weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvcim_jax import checks
from nvcim_jax.models import Config

__all__ = ["ia3_parts", "ia3_tensors", "lora_parts", "lora_tensors"]

BASE = "base_model.model."
Tensors = Mapping[str, np.ndarray]


def _stems(config: Config) -> dict[str, str]:
    """Return the module of each matrix of the blocks, `{i}` for the layer: name -> stem."""
    found = {path.removeprefix("layers."): place for path, place in config.places.items() if place.layered}
    return {name: place.stem for name, place in found.items() if len(place.shape) == 2}


def _members(stem: str, config: Config) -> list[str]:
    return [name for name, own in _stems(config).items() if own == stem]


def _short(stem: str, config: Config) -> str:
    """Return the end of a module's name that no other module of the blocks has: what PEFT looks for."""
    words, others = stem.split("."), {own for own in _stems(config).values() if own != stem}
    for num in range(1, len(words)):
        short = ".".join(words[-num:])
        if not any(own.endswith(f".{short}") for own in others):
            return short
    return stem


def _gathered(parts: Mapping[str, Any], stem: str, config: Config) -> np.ndarray:
    """Return the outputs of a module (..., outputs) from those of its matrices."""
    members = _members(stem, config)
    first = np.asarray(parts[members[0]])
    whole = np.zeros((*first.shape[:-1], config.places[f"layers.{members[0]}"].outputs), np.float32)
    for name in members:
        for low, high, at in config.places[f"layers.{name}"].pieces:
            whole[..., low:high] = np.asarray(parts[name])[..., at : at + high - low]
    return whole


def _scattered(whole: np.ndarray, stem: str, config: Config) -> dict[str, np.ndarray]:
    """Return the outputs of each matrix of a module."""
    found = {}
    for name in _members(stem, config):
        place = config.places[f"layers.{name}"]
        part = np.zeros((*whole.shape[:-1], place.shape[-1]), np.float32)
        for low, high, at in place.pieces:
            part[..., at : at + high - low] = whole[..., low:high]
        found[name] = part
    return found


def _split(whole: Any, group: str, config: Config) -> dict[str, np.ndarray]:
    """Return the outputs of each matrix of a group, which lie side by side."""
    names = group.split("+")
    ends = np.cumsum([config.places[f"layers.{name}"].shape[-1] for name in names])[:-1]
    return dict(zip(names, np.split(np.asarray(whole), ends, axis=-1), strict=True))


def lora_tensors(
    parts: Mapping[str, Any], groups: Sequence[str], config: Config
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return PEFT's tensors of a LoRA state, and its target modules.

    Raises:
        ValueError: If a group is not what the family keeps in one tensor.
    """
    tensors, modules = {}, []
    for group in groups:
        stem = _stems(config)[group.split("+")[0]]
        if set(group.split("+")) != set(_members(stem, config)):
            whole = "+".join(_members(stem, config))
            fix = f"Tune {whole!r} instead." if "+" in whole or "+" not in group else "Tune each by itself."
            checks.fail("adapter", f"change {whole} together, as {config.family} keeps them", f"changes {group}", fix)
        modules.append(_short(stem, config))
        own = {"lora_A.weight": np.asarray(parts[f"{group}.a"]).swapaxes(1, 2)}
        b = _gathered(_split(parts[f"{group}.b"], group, config), stem, config)
        own["lora_B.weight"] = b.swapaxes(1, 2)
        if f"{group}.magnitude" in parts:
            own["lora_magnitude_vector"] = _gathered(_split(parts[f"{group}.magnitude"], group, config), stem, config)
        for suffix, stack in own.items():
            tensors |= {f"{BASE}{stem.format(i=i)}.{suffix}": layer for i, layer in enumerate(stack)}
    return tensors, modules


def ia3_tensors(
    parts: Mapping[str, Any], inputs: Sequence[str], config: Config
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Return PEFT's tensors of an (IA)3 state, its target modules, and those whose inputs are scaled.

    Raises:
        ValueError: If the family keeps a matrix whose inputs are scaled in one tensor with others.
    """
    tensors, modules, fed = {}, [], []
    for stem in dict.fromkeys(_stems(config)[name] for name in parts):
        members = _members(stem, config)
        modules.append(_short(stem, config))
        if any(name in inputs for name in members):
            if len(members) > 1:
                fix = "Scale outputs instead."
                checks.fail("adapter", f"scale no inputs of {'+'.join(members)}, which are one tensor", "does", fix)
            fed.append(modules[-1])
            stack = np.asarray(parts[members[0]])[:, None, :]
        else:
            ones = {n: np.ones((config.num_layers, config.places[f"layers.{n}"].shape[-1])) for n in members}
            stack = _gathered(ones | {n: parts[n] for n in members if n in parts}, stem, config)[..., None]
        tensors |= {f"{BASE}{stem.format(i=i)}.ia3_l": layer for i, layer in enumerate(stack)}
    return tensors, modules, fed


def _stacks(tensors: Tensors, suffixes: Sequence[str], config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of every module stacked over layers: stem -> suffix -> stack.

    Raises:
        ValueError: If a tensor belongs to no matrix of the blocks, or a layer has none.
    """
    left, found = dict(tensors), {}
    for stem in dict.fromkeys(_stems(config).values()):
        for suffix in suffixes:
            names = [f"{BASE}{stem.format(i=i)}.{suffix}" for i in range(config.num_layers)]
            here = [name in left for name in names]
            if not any(here):
                continue
            if not all(here):
                checks.fail("folder", "change every layer", f"lacks {names[here.index(False)]}", "It is not supported.")
            stack = [left.pop(name) for name in names]
            if len({layer.shape for layer in stack}) > 1:
                checks.fail("folder", "change every layer alike", f"{names[0]} differs in shape from others")
            found.setdefault(stem, {})[suffix] = np.stack(stack)
    if left:
        fix = "It belongs to another model, or changes more than the matrices of the blocks."
        checks.fail("folder", f"hold tensors of a {config.family} model", f"also holds {min(left)}", fix)
    if not found:
        checks.fail("folder", "hold the tensors of an adapter", "holds none")
    return found


def _check(name: str, found: np.ndarray, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        checks.fail(name, f"have shape {wanted[1:]}", f"has {found.shape[1:]}", "It belongs to another model.")


def lora_parts(
    tensors: Tensors, rank: int, dora: bool, config: Config
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays of a LoRA state by name, and its targets.

    Raises:
        ValueError: If a tensor is missing, misshaped, or of something else.
    """
    suffixes = ("lora_A.weight", "lora_B.weight", *(("lora_magnitude_vector",) if dora else ()))
    parts, groups = {}, []
    for stem, own in _stacks(tensors, suffixes, config).items():
        members = _members(stem, config)
        place = config.places[f"layers.{members[0]}"]
        group, layers = "+".join(members), config.num_layers
        wanted = ((layers, rank, place.shape[0]), (layers, place.outputs, rank), (layers, place.outputs))
        for suffix, shape in zip(suffixes, wanted, strict=False):
            if suffix not in own:
                checks.fail("folder", f"hold {suffix} of every target", f"lacks that of {stem.format(i=0)}")
            _check(f"{stem.format(i=0)}.{suffix}", own[suffix], shape)
        parts[f"{group}.a"] = own["lora_A.weight"].swapaxes(1, 2)
        sides = {"b": own["lora_B.weight"].swapaxes(1, 2)}
        if dora:
            sides["magnitude"] = own["lora_magnitude_vector"]
        for part, whole in sides.items():
            scattered = _scattered(whole, stem, config)
            parts[f"{group}.{part}"] = np.concatenate([scattered[name] for name in members], axis=-1)
        groups.append(group)
    return parts, tuple(groups)


def ia3_parts(tensors: Tensors, config: Config) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the factors of an (IA)3 state by name, and the targets whose inputs they scale.

    Raises:
        ValueError: If a tensor is missing, misshaped, or of something else.
    """
    parts, inputs = {}, []
    for stem, own in _stacks(tensors, ("ia3_l",), config).items():
        stack, members = own["ia3_l"], _members(stem, config)
        place = config.places[f"layers.{members[0]}"]
        if stack.shape[1:] == (1, place.shape[0]) and len(members) == 1:
            parts[members[0]] = stack[:, 0]
            inputs.append(members[0])
            continue
        _check(f"{stem.format(i=0)}.ia3_l", stack, (config.num_layers, place.outputs, 1))
        parts |= _scattered(stack[..., 0], stem, config)
    return parts, tuple(inputs)
