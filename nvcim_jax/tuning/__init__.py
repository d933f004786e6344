"""Adapters tuned on a user's own data: bundles of functions, aware of the noise they will be stored with."""

from nvcim_jax.tuning.adapter import Adapter, as_adapter, frozen
from nvcim_jax.tuning.dept import dept
from nvcim_jax.tuning.examples import Examples, Words, examples
from nvcim_jax.tuning.ia3 import ia3
from nvcim_jax.tuning.lora import lora
from nvcim_jax.tuning.merging import merge
from nvcim_jax.tuning.noise import censored_noise
from nvcim_jax.tuning.optimisers import Schedule, adam, bounded, penalties
from nvcim_jax.tuning.p_tuning import p_tuning
from nvcim_jax.tuning.prefix import prefix
from nvcim_jax.tuning.prompt import prompt
from nvcim_jax.tuning.starts import STARTS, start_activations
from nvcim_jax.tuning.tune import Options, Parts, TuneInfo, answer_loss, tune
from nvcim_jax.tuning.vote import vote
from nvcim_jax.tuning.whole import full
from nvcim_jax.tuning.windows import WindowOptions, tune_windows
from nvcim_jax.tuning.zeroth_order import zeroth_order

__all__ = [
    "STARTS",
    "Adapter",
    "Examples",
    "Options",
    "Parts",
    "Schedule",
    "TuneInfo",
    "WindowOptions",
    "Words",
    "adam",
    "answer_loss",
    "as_adapter",
    "bounded",
    "censored_noise",
    "dept",
    "examples",
    "frozen",
    "full",
    "ia3",
    "lora",
    "merge",
    "p_tuning",
    "penalties",
    "prefix",
    "prompt",
    "start_activations",
    "tune",
    "tune_windows",
    "vote",
    "zeroth_order",
]
