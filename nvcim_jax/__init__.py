"""Noisy non-volatile computing-in-memory in JAX: devices, crossbars, many chips, language models, prompts in memory."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvcim_jax import (
        checks,
        compression,
        cost,
        crossbar,
        data,
        devices,
        files,
        io,
        metrics,
        models,
        montecarlo,
        ops,
        pipeline,
        plots,
        selection,
        study,
        tuning,
        types,
    )

__all__ = [
    "__version__",
    "checks",
    "compression",
    "cost",
    "crossbar",
    "data",
    "devices",
    "files",
    "io",
    "metrics",
    "models",
    "montecarlo",
    "ops",
    "pipeline",
    "plots",
    "selection",
    "study",
    "tuning",
    "types",
]

__version__ = "0.1.0"  # the release that this becomes; the package has that of the tag


def __getattr__(name: str) -> Any:
    """Import a room when it is first named, so that `nvcim --help` waits for none of them."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the rooms, whether imported yet or not."""
    return sorted({*globals(), *__all__})
