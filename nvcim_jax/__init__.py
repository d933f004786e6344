"""Noisy non-volatile computing-in-memory in JAX."""

from nvcim_jax import checks, types

__all__ = ["__version__", "checks", "types"]

__version__ = "0.1.0"
