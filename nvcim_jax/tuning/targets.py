"""Which matrices of the blocks an adapter changes, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from nvcim_jax import checks
from nvcim_jax.models import Config, is_block_matrix
from nvcim_jax.types import PyTree

__all__ = ["changed_layers", "check_targets", "default_groups", "matrices"]


class _Ranked:
    """A shape that says how many axes it has."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.ndim = len(shape)


def matrices(config: Config) -> dict[str, tuple[int, int, int]]:
    """Return the matrices of the blocks: name -> (layers, inputs, outputs)."""
    return {n: s for n, s in config.shapes["layers"].items() if is_block_matrix(f"layers/{n}", _Ranked(s))}


def default_groups(config: Config) -> tuple[str, ...]:
    """Return queries and values, together with what the family keeps in one tensor with them.

    Example:
        >>> import dataclasses
        >>> gpt2 = Config(vocab_size=8, width=4, num_layers=1, num_heads=1, mlp_width=4, family="gpt2")
        >>> default_groups(gpt2), default_groups(dataclasses.replace(gpt2, family="llama"))
        (('q+k+v',), ('q', 'v'))
    """
    stems = {name: config.stems.get(name, name) for name in matrices(config)}
    groups = ["+".join(other for other, stem in stems.items() if stem == stems[name]) for name in ("q", "v")]
    return tuple(dict.fromkeys(groups))


def check_targets(targets: Sequence[str], config: Config, *, groups: bool) -> tuple[str, ...]:
    """Return targets that the model has, each matrix once.

    Args:
        targets: Names, such as "q"; "q+k+v" for several that share what they can.
        config: The model.
        groups: Whether names may be joined.

    Raises:
        ValueError: If a name is none of the model's, comes twice, or joins matrices with unlike inputs.
    """
    known, seen = matrices(config), []
    for target in targets:
        names = target.split("+") if groups else [target]
        for name in names:
            checks.choice("targets", name, known)
            if name in seen:
                checks.fail("targets", "name each matrix once", f"names {name!r} twice")
            seen.append(name)
        if len({known[name][1] for name in names}) > 1:
            checks.fail("targets", "join matrices that multiply the same inputs", f"join {target!r}")
    if not seen:
        checks.fail("targets", "name at least one matrix", "are empty")
    return tuple(targets)


def changed_layers(params: PyTree, changed: Mapping[str, Any]) -> PyTree:
    """Return parameters with some entries of the blocks replaced."""
    return {**params, "layers": {**params["layers"], **changed}}
