"""Decoder language models as pure functions of their parameters."""

from nvcim_jax.models.block import KeysValues
from nvcim_jax.models.config import Config, Rope
from nvcim_jax.models.forward import Info, forward, head, hidden
from nvcim_jax.models.generate import Generation, generate, generate_tokens, prepend
from nvcim_jax.models.load import BUNDLED, LM, load, load_config
from nvcim_jax.models.loss import IGNORE, LossInfo, loss, token_losses
from nvcim_jax.models.params import embed, init, num_params, shapes
from nvcim_jax.models.quantised import Quantised, dequantise
from nvcim_jax.models.ranking import Candidates, candidates, rank
from nvcim_jax.models.sampling import Sampling, keep_top, sample
from nvcim_jax.models.save import save
from nvcim_jax.models.soft_tokens import SoftTokens, soft_tokens

__all__ = [
    "BUNDLED",
    "IGNORE",
    "LM",
    "Candidates",
    "Config",
    "Generation",
    "Info",
    "KeysValues",
    "LossInfo",
    "Quantised",
    "Rope",
    "Sampling",
    "SoftTokens",
    "candidates",
    "dequantise",
    "embed",
    "forward",
    "generate",
    "generate_tokens",
    "head",
    "hidden",
    "init",
    "keep_top",
    "load",
    "load_config",
    "loss",
    "num_params",
    "prepend",
    "rank",
    "sample",
    "save",
    "shapes",
    "soft_tokens",
    "token_losses",
]
