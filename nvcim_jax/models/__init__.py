"""Decoder language models as pure functions of their parameters."""

from nvcim_jax.models.block import KeysValues
from nvcim_jax.models.config import Config, Rope
from nvcim_jax.models.forward import Info, forward, head, hidden
from nvcim_jax.models.loss import IGNORE, LossInfo, loss, token_losses
from nvcim_jax.models.params import embed, init, num_params, shapes
from nvcim_jax.models.quantised import Quantised, dequantise

__all__ = [
    "IGNORE",
    "Config",
    "Info",
    "KeysValues",
    "LossInfo",
    "Quantised",
    "Rope",
    "dequantise",
    "embed",
    "forward",
    "head",
    "hidden",
    "init",
    "loss",
    "num_params",
    "shapes",
    "token_losses",
]
