"""Adapters tuned on a user's own data: soft prompts, many at a time, aware of the noise they will be stored with."""

from nvcim_jax.tuning.examples import Examples, draw_batch, examples
from nvcim_jax.tuning.noise import censored_noise, right_censored_moments
from nvcim_jax.tuning.soft_prompt import (
    INITS,
    Info,
    Options,
    Rates,
    init_activations,
    init_text,
    init_vocabulary,
    prompt_loss,
    tune,
)

__all__ = [
    "INITS",
    "Examples",
    "Info",
    "Options",
    "Rates",
    "censored_noise",
    "draw_batch",
    "examples",
    "init_activations",
    "init_text",
    "init_vocabulary",
    "prompt_loss",
    "right_censored_moments",
    "tune",
]
