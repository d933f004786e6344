"""Noisy non-volatile computing-in-memory in JAX: devices, crossbars, many chips, language models, prompts in memory."""

from nvcim_jax import (
    checks,
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
    selection,
    study,
    tuning,
    types,
)

__all__ = [
    "__version__",
    "checks",
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
    "selection",
    "study",
    "tuning",
    "types",
]

__version__ = "0.1.0"
