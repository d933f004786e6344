"""Atoms without domain knowledge: random numbers, quantisers, straight-through gradients."""

from nvcim_jax.ops.quantise import clip_inclusive, digits, from_digits, round_straight_through, uniform_steps
from nvcim_jax.ops.random import RNGS, Rng, normal, normal_pair

__all__ = [
    "RNGS",
    "Rng",
    "clip_inclusive",
    "digits",
    "from_digits",
    "normal",
    "normal_pair",
    "round_straight_through",
    "uniform_steps",
]
