"""GGUF files of small models, written with the `gguf` package as llama.cpp's converter writes them."""

import json
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
}
"""`model_type` of transformers -> `general.architecture`."""


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the two halves of every head side by side, as the converter does for Llama (`LlamaModel.permute`)."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _regrouped(weight: np.ndarray, heads: int) -> np.ndarray:
    """Bring queries, keys and values from once a head to once (`GPTNeoXModel.modify_tensors`)."""
    parts = weight.reshape(heads, 3, -1, *weight.shape[1:])
    return np.concatenate([parts[:, i].reshape(-1, *weight.shape[1:]) for i in range(3)])


def converted(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint, named and stored as in a GGUF file."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, layers = raw["model_type"], raw.get("num_hidden_layers", raw.get("n_layer"))
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    names = gguf.get_tensor_name_map(arch, layers)
    heads = raw.get("num_attention_heads", raw.get("n_head"))
    made = {}
    for name, array in load_file(folder / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        stem = name.rsplit(".", 1)[0].split(".")[-1]
        if kind in {"llama", "mistral"} and stem in {"q_proj", "k_proj"}:
            array = _permuted(array, heads if stem == "q_proj" else raw.get("num_key_value_heads", heads))
        elif kind.startswith("gemma") and "norm" in name:
            array = array + np.float32(1)
        elif kind == "gpt2" and stem in {"c_attn", "c_proj", "c_fc"} and array.ndim == 2:
            array = array.T
        elif stem == "query_key_value":
            array = _regrouped(array, heads)
        made[stored] = np.ascontiguousarray(array)
    return made


def _numbers(writer: gguf.GGUFWriter, config: Any, raw: dict[str, Any]) -> None:
    """Write what a model's `Config` says that the file's metadata can say."""
    writer.add_context_length(config.max_tokens)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_width)
    (writer.add_layer_norm_rms_eps if config.norm == "rms" else writer.add_layer_norm_eps)(config.norm_eps)
    if config.positions == "rope":
        writer.add_rope_freq_base(config.rope.theta)
        writer.add_rope_dimension_count(config.rotary)
        if config.rope.scaling == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope.factor)
    if config.window is not None:
        writer.add_sliding_window(config.window)
    if config.attention_softcap is not None:
        writer.add_attn_logit_softcapping(config.attention_softcap)
        writer.add_final_logit_softcapping(config.logit_softcap)
    if raw["model_type"] == "gpt_neox":
        writer.add_parallel_residual(config.parallel)
    if raw["model_type"] == "gemma3_text":
        writer.add_array(f"{writer.arch}.attention.sliding_window_pattern", list(config.sliding))
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", config.rope_local.theta)


def rope_factors(config: Any) -> np.ndarray:
    """Return what the converter writes for the scaling of Llama 3 (`LlamaModel.generate_extra_tensors`)."""
    rope = config.rope
    plain = 1.0 / rope.theta ** (np.arange(0, config.rotary, 2, dtype=np.float32) / config.rotary)
    low, high = (
        rope.original_max_tokens / rope.low_frequency_factor,
        rope.original_max_tokens / rope.high_frequency_factor,
    )
    found = []
    for length in 2 * np.pi / plain:
        if length < high:
            found.append(1.0)
        elif length > low:
            found.append(rope.factor)
        else:
            smooth = (rope.original_max_tokens / length - rope.low_frequency_factor) / (
                rope.high_frequency_factor - rope.low_frequency_factor
            )
            found.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(found, np.float32)


HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the numbers in half precision stand in a block (`ggml-common.h`)."""


def random_blocks(name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return bytes of any codes and scales, the weights of a size that a model can bear."""
    size, bytes_ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    raw = rng.integers(0, 256, (shape[0], shape[1] // size, bytes_), dtype=np.uint8)
    for at in HALVES[kind]:
        drawn = rng.uniform(1e-4, 2e-4, (*raw.shape[:2], 1)).astype(np.float16)
        raw[..., at : at + 2] = drawn.view(np.uint8)
    return raw.reshape(shape[0], -1)


def write_gguf(path: Path, folder: Path, config: Any, kind: Any = "F32", extra: Any = None) -> Path:
    """Write the GGUF file of a checkpoint.

    Args:
        path: Where to.
        folder: The checkpoint.
        config: Its `Config`, from which the metadata are written.
        kind: Type of the matrices, or a function from the name of a tensor to it; everything else stays F32.
        extra: Called with the writer, before anything is written.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, ARCHITECTURES[raw["model_type"]])
    _numbers(writer, config, raw)
    if extra is not None:
        extra(writer)
    tensors = converted(folder)
    if config.rope.scaling == "llama3":
        tensors["rope_freqs.weight"] = rope_factors(config)
    for name, array in tensors.items():
        named = kind(name) if callable(kind) else kind
        chosen = gguf.GGMLQuantizationType[named]
        block = gguf.GGML_QUANT_SIZES[chosen][0]
        if array.ndim != 2 or named == "F32" or array.shape[-1] % block:
            writer.add_tensor(name, array)
        elif named.endswith("_K"):  # the package makes none of these: codes and scales are drawn
            writer.add_tensor(name, random_blocks(name, named, array.shape), raw_dtype=chosen)
        else:
            writer.add_tensor(name, gguf.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
