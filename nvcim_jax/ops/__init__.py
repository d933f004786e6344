"""Atoms without domain knowledge: random numbers, quantisers, straight-through gradients."""

from nvcim_jax.ops.random import RNGS, Rng, normal

__all__ = ["RNGS", "Rng", "normal"]
