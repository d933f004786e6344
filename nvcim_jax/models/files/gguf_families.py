"""What tells the architectures of GGUF files apart, as a table, and how their metadata become a `Config`.

References:
    The names are those of `gguf/constants.py` and `gguf/tensor_mapping.py` of llama.cpp; what is stored otherwise than
    in a Hugging Face file is what its converter (`convert_hf_to_gguf.py`) changes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.config import Config, Rope
from nvcim_jax.models.families import family
from nvcim_jax.models.files.gguf_file import Gguf, read_blocks
from nvcim_jax.models.files.gguf_types import decode
from nvcim_jax.models.positions import frequencies

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "config_from_gguf"]


class Architecture(NamedTuple):
    """Describe one `general.architecture`.

    Attributes:
        family: Its `model_type` in transformers.
        activation: Of the feed-forward part; the files do not name it.
        permuted: Whether the rows of queries and keys are stored for rotary pairs of neighbours.
        offset_norms: Whether the scales of norms are stored plus one.
        fixed: Fields of `Config` that no file of the architecture says.
        every: Of so many layers the last one sees all keys, the others a window; 1: all layers are alike.
        wide: Number of layers of the size whose scores are scaled by width over heads, not by a head's channels.
    """

    family: str
    activation: str = "silu"
    permuted: bool = False
    offset_norms: bool = False
    fixed: Mapping[str, Any] = {}  # never written to
    every: int = 1
    wide: int = 0


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", "gelu_tanh", offset_norms=True),
    "gemma2": Architecture("gemma2", "gelu_tanh", offset_norms=True, every=2, wide=46),
    "gemma3": Architecture(
        "gemma3_text", "gelu_tanh", offset_norms=True, fixed={"rope_local": Rope(theta=1e4)}, every=6, wide=62
    ),
    "phi2": Architecture("phi", "gelu_tanh"),
    "phi3": Architecture("phi3"),
    "gpt2": Architecture("gpt2", "gelu_tanh"),
    "gptneox": Architecture("gpt_neox", "gelu"),
}
"""The architectures that are read."""

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of what each rotary frequency is divided by (Llama 3)."""

REFUSED_TENSORS = ("rope_factors_long.weight", "rope_factors_short.weight")


def architecture(file: Gguf) -> Architecture:
    """Return the description of a file's architecture.

    Raises:
        ValueError: If it is not supported; the message lists what is.
    """
    name = file.meta.get("general.architecture", "")
    checks.choice(f"{file.path.name}: general.architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def _decimal(value: float) -> float:
    """Return the shortest number that is the same in single precision: 1e-5, where a file gives 9.9999997e-6."""
    return float(str(np.float32(value)))


def _factors(rope: Rope, turned: int) -> np.ndarray:
    return frequencies(Rope(theta=rope.theta), turned) / frequencies(rope, turned)


def _llama3_rope(file: Gguf, theta: float, turned: int) -> Rope:
    """Return the scaling whose factors a Llama 3 file holds, which names none of its numbers."""
    tensor = file.tensors[ROPE_FACTORS]
    kept = decode(read_blocks(tensor), tensor.kind).reshape(-1)
    for tokens in (2**power for power in (13, *range(4, 20))):
        rope = Rope(theta=theta, scaling="llama3", factor=float(kept.max()), original_max_tokens=tokens)
        if kept.shape == (turned // 2,) and np.allclose(kept, _factors(rope, turned), rtol=1e-3):
            return rope
    return checks.fail(f"{file.path.name}: {ROPE_FACTORS}", "be the rotary factors of a Llama 3", "holds others")


def _rope(file: Gguf, get: Any, turned: int) -> Rope:
    theta = _decimal(get("rope.freq_base", 1e4))
    scaling = get("rope.scaling.type", "linear" if "rope.scale_linear" in file.meta else "none")
    if any(name in file.tensors for name in REFUSED_TENSORS):
        scaling = "longrope"
    if ROPE_FACTORS in file.tensors:
        return _llama3_rope(file, theta, turned)
    checks.choice(f"{file.path.name}: rope.scaling.type", scaling, ("linear", "none"))
    if scaling == "none":
        return Rope(theta=theta)
    return Rope(theta=theta, scaling="linear", factor=float(get("rope.scaling.factor", get("rope.scale_linear", 1.0))))


def _windows(known: Architecture, get: Any, num_layers: int) -> dict[str, Any]:
    window = get("attention.sliding_window", None)
    if not window:
        return {}
    every = get("attention.sliding_window_pattern", known.every)
    if isinstance(every, np.ndarray | list):
        return {"window": int(window), "sliding": tuple(bool(slides) for slides in every)}
    return {"window": int(window), "sliding": tuple(every == 1 or (i + 1) % every > 0 for i in range(num_layers))}


def _biases(file: Gguf) -> dict[str, bool]:
    has = lambda *names: any(f"{name}.bias" in file.tensors for name in names)  # noqa: E731
    return {
        "qkv_bias": has("blk.0.attn_q", "blk.0.attn_qkv"),
        "output_bias": has("blk.0.attn_output"),
        "mlp_bias": has("blk.0.ffn_up"),
        "head_bias": has("output"),
    }


def _tokens(meta: Mapping[str, Any]) -> dict[str, Any]:
    ids = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return {
        "bos_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_ids": tuple(dict.fromkeys(i for i in ids if i is not None)),
        "pad_id": meta.get("tokenizer.ggml.padding_token_id"),
    }


def config_from_gguf(file: Gguf, *, tied: bool) -> Config:
    """Return the `Config` that a file's metadata describe.

    Args:
        file: The file.
        tied: Whether the head is the embedding.

    Raises:
        ValueError: If the architecture or one of its options is not supported, or the metadata lack a number.
    """
    known, prefix = architecture(file), file.meta["general.architecture"]

    def get(key: str, *default: Any) -> Any:
        name = f"{prefix}.{key}"
        if name not in file.meta and not default:
            checks.fail(file.path.name, f"say `{name}`", "does not", "Convert the model anew.")
        return file.meta.get(name, *default)

    width, num_heads, num_layers = (int(get(k)) for k in ("embedding_length", "attention.head_count", "block_count"))
    head_dim = int(get("attention.key_length", width // num_heads))
    turned = int(get("rope.dimension_count", head_dim))
    fields: dict[str, Any] = dict(family(known.family).fixed) | _biases(file) | dict(known.fixed)
    layer_norm = fields.get("norm") == "layer"
    positions = fields.get("positions", "rope")
    fields |= {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "width": width,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": int(get("attention.head_count_kv", num_heads)),
        "head_dim": head_dim,
        "mlp_width": int(get("feed_forward_length")),
        "max_tokens": int(get("context_length")),
        "family": known.family,
        "norm_eps": _decimal(get(f"attention.layer_norm_{'' if layer_norm else 'rms_'}epsilon")),
        "activation": known.activation,
        "tied": tied,
        "parallel": bool(get("use_parallel_residual", fields.get("parallel", False))),
        "attention_softcap": get("attn_logit_softcapping", None),
        "logit_softcap": get("final_logit_softcapping", None),
    }
    if positions == "rope":
        fields |= {"rope": _rope(file, get, turned), "rotary_dim": turned}
    if num_layers == known.wide:
        fields["attention_scale"] = float(width // num_heads) ** -0.5
    if "rope_local" in fields:
        fields["rope_local"] = Rope(theta=float(get("rope.freq_base_swa", fields["rope_local"].theta)))
    if known.offset_norms:
        fields["embedding_scale"] = float(width) ** 0.5
    return Config(**fields | _windows(known, get, num_layers) | _tokens(file.meta))
