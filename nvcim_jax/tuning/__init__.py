"""Adapters tuned on a user's own data: soft prompts, many at a time, aware of the noise they will be stored with."""

from nvcim_jax.tuning.examples import Examples, draw_batch, examples
from nvcim_jax.tuning.noise import censored_noise, right_censored_moments
from nvcim_jax.tuning.soft_prompt import Info, Options, Rates, prompt_loss, tune
from nvcim_jax.tuning.starts import INITS, deal_examples, init_activations, init_examples, init_text, init_vocabulary

__all__ = [
    "INITS",
    "Examples",
    "Info",
    "Options",
    "Rates",
    "censored_noise",
    "deal_examples",
    "draw_batch",
    "examples",
    "init_activations",
    "init_examples",
    "init_text",
    "init_vocabulary",
    "prompt_loss",
    "right_censored_moments",
    "tune",
]
