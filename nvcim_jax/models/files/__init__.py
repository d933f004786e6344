"""Files that language models are kept in: Hugging Face folders, GPTQ and AWQ, GGUF."""

from nvcim_jax.models.files.load import BUNDLED, load, load_config
from nvcim_jax.models.files.quantised import Packed
from nvcim_jax.models.files.save import save

__all__ = ["BUNDLED", "Packed", "load", "load_config", "save"]
