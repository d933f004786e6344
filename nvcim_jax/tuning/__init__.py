"""Adapters tuned on a user's own data: bundles of functions, aware of the noise they will be stored with."""

from nvcim_jax.tuning.adapter import Adapter, as_adapter, frozen, rows_shape
from nvcim_jax.tuning.examples import Examples, Words, draw_batch, examples
from nvcim_jax.tuning.noise import censored_noise, right_censored_moments
from nvcim_jax.tuning.optimisers import Schedule, adam, bounded, penalties
from nvcim_jax.tuning.prompt import prompt
from nvcim_jax.tuning.starts import (
    STARTS,
    assign_examples,
    start_activations,
    start_examples,
    start_text,
    start_vocabulary,
)
from nvcim_jax.tuning.tune import Options, Parts, TuneInfo, answer_loss, tune

__all__ = [
    "STARTS",
    "Adapter",
    "Examples",
    "Options",
    "Parts",
    "Schedule",
    "TuneInfo",
    "Words",
    "adam",
    "answer_loss",
    "as_adapter",
    "assign_examples",
    "bounded",
    "censored_noise",
    "draw_batch",
    "examples",
    "frozen",
    "penalties",
    "prompt",
    "right_censored_moments",
    "rows_shape",
    "start_activations",
    "start_examples",
    "start_text",
    "start_vocabulary",
    "tune",
]
