"""Noisy non-volatile computing-in-memory in JAX: devices, crossbars, Monte Carlo over chips, and language models."""

from nvcim_jax import checks, crossbar, devices, models, montecarlo, ops, tuning, types

__all__ = ["__version__", "checks", "crossbar", "devices", "models", "montecarlo", "ops", "tuning", "types"]

__version__ = "0.1.0"
