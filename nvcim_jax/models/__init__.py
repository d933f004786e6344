"""Decoder language models as pure functions of their parameters."""

from nvcim_jax.models.block import KeysValues
from nvcim_jax.models.config import Config, Rope
from nvcim_jax.models.files import BUNDLED, Packed, load, load_config, save
from nvcim_jax.models.forward import forward, head, hidden
from nvcim_jax.models.generate import generate, generate_tokens
from nvcim_jax.models.inputs import Inputs, prepend
from nvcim_jax.models.lm import LM, Template, Text, is_block_matrix
from nvcim_jax.models.loss import IGNORE, loss, token_losses
from nvcim_jax.models.params import embed, init
from nvcim_jax.models.ranking import Candidates, candidates, rank
from nvcim_jax.models.sampling import Sampling
from nvcim_jax.models.soft_tokens import SoftTokens, soft_tokens

__all__ = [
    "BUNDLED",
    "IGNORE",
    "LM",
    "Candidates",
    "Config",
    "Inputs",
    "KeysValues",
    "Packed",
    "Rope",
    "Sampling",
    "SoftTokens",
    "Template",
    "Text",
    "candidates",
    "embed",
    "forward",
    "generate",
    "generate_tokens",
    "head",
    "hidden",
    "init",
    "is_block_matrix",
    "load",
    "load_config",
    "loss",
    "prepend",
    "rank",
    "save",
    "soft_tokens",
    "token_losses",
]
