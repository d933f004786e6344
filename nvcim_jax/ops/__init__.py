"""Atoms without domain knowledge: random numbers, quantisers, straight-through gradients."""

from nvcim_jax.ops.descend import Gradient, Loss, Optimiser, descend, reverse_mode
from nvcim_jax.ops.dispatch import Part, Weight, refuse, register_weight, understand
from nvcim_jax.ops.mirrored import mirror
from nvcim_jax.ops.moments import Moments, moments_add, moments_init, moments_spread
from nvcim_jax.ops.partials import as_partial
from nvcim_jax.ops.patches import patches
from nvcim_jax.ops.quantise import clip_inclusive, digits, from_digits, round_straight_through, uniform_steps
from nvcim_jax.ops.random import RNGS, Rng, centred_uniform, draw_batch, normal, normal_at, normal_pair
from nvcim_jax.ops.relaxed import relaxed_steps

__all__ = [
    "RNGS",
    "Gradient",
    "Loss",
    "Moments",
    "Optimiser",
    "Part",
    "Rng",
    "Weight",
    "as_partial",
    "centred_uniform",
    "clip_inclusive",
    "descend",
    "digits",
    "draw_batch",
    "from_digits",
    "mirror",
    "moments_add",
    "moments_init",
    "moments_spread",
    "normal",
    "normal_at",
    "normal_pair",
    "patches",
    "refuse",
    "register_weight",
    "relaxed_steps",
    "reverse_mode",
    "round_straight_through",
    "understand",
    "uniform_steps",
]
