"""Memory and room of a run before it is made, as tables: no weight is loaded, nothing is computed."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from nvcim_jax import cost, models, pipeline

__all__ = ["PACKED", "default_backend_is_cpu", "memory_of_the_machine", "rows"]

PACKED = "GPTQ"
"""In the name of a model whose blocks are int8 codes."""


def rows(
    wanted: Mapping[str, models.Config], preset: pipeline.Preset, work: cost.Work, packed: frozenset[str] = frozenset()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the table of the memory and that of the store, one row a model.

    Args:
        wanted: Name -> model.
        preset: Everything that is chosen.
        work: How much is done at a time; each model is also given with blocks computed again.
        packed: Names of those with packed weights.
    """
    memory, stores = [], []
    for name, model in wanted.items():
        for remat in (False, True):
            found = cost.memory(model, cost.Work(**{**vars(work), "remat": remat}), packed=name in packed)
            mib = {key.replace("_", " "): round(value / 2**20) for key, value in found._asdict().items()}
            memory.append({"model (MiB)": name, "remat": "yes" if remat else "no", **mib})
        room = pipeline.capacity(model, preset.config, preset.arrays)
        stores.append(
            {
                "store of": name,
                "parameters": f"{model.num_params:,}",
                "prompts": room.prompts,
                "arrays for prompts": room.value_arrays,
                "arrays for keys": room.key_arrays,
                "cells": f"{room.cells:,}",
            }
        )
    return memory, stores


def default_backend_is_cpu() -> bool:
    """Return whether JAX computes on a CPU here."""
    return jax.default_backend() == "cpu"


def memory_of_the_machine() -> int:
    """Return the bytes that computations can take here: the accelerator's, or those of the machine."""
    found = jax.devices()[0].memory_stats() if not default_backend_is_cpu() else None
    if found and "bytes_limit" in found:
        return int(found["bytes_limit"])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
