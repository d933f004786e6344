"""From config.json to `Config` and back."""

import json
import math
from pathlib import Path
from typing import Any

from nvcim_jax import checks
from nvcim_jax.models.config import Config, Rope
from nvcim_jax.models.families import FAMILIES, Family, family
from nvcim_jax.models.files.quiet import import_transformers

__all__ = ["config_from_hf", "config_to_hf", "read_json"]

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""transformers' names of the activations."""

ROPE_NAMES = {"default": "none", "linear": "linear", "llama3": "llama3"}
"""transformers' names of the rope scalings that are supported."""

SCALED_EMBEDDINGS = ("gemma", "gemma2", "gemma3_text")
"""Families that multiply token embeddings by sqrt(width)."""


PARTLY_TURNED = ("gpt_neox", "phi")
"""Families whose rotary embedding turns part of a head unless it is said otherwise."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, and say what is there instead where it is none.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a JSON object: an HTML page saved under its name, a Git LFS pointer, a truncated file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path.name} in {path.parent}. A checkpoint folder must have one.")
    text = path.read_text(encoding="utf-8", errors="replace")
    start = text.lstrip()[:200].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")):
        checks.fail(path.name, "be JSON", "is an HTML page", "Download the file itself, not the page that shows it.")
    if start.startswith("version https://git-lfs"):
        checks.fail(path.name, "be JSON", "is a Git LFS pointer", "Run `git lfs pull` in the checkpoint folder.")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        checks.fail(
            path.name, "be JSON", f"breaks off or errs at line {error.lineno}: {error.msg}", "Download it again."
        )
    if not isinstance(found, dict):
        checks.fail(path.name, "be a JSON object", f"is a {type(found).__name__}")
    return found


def _complete(raw: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Fill in the defaults of the family and bring both rope schemas into one, by transformers' own code."""
    # `null` stands for the default in some published configs, which transformers' type check refuses.
    given = {k: v for k, v in raw.items() if k != "model_type" and not (k == "hidden_activation" and v is None)}
    return import_transformers().AutoConfig.for_model(model_type, **given).to_dict()  # imported late: it takes seconds


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _check_ropes(raw: dict[str, Any]) -> None:
    for key in ("rope_parameters", "rope_scaling"):
        rope = raw.get(key) or {}
        nested = [r for r in rope.values() if isinstance(r, dict)]
        for name in map(_rope_type, nested or [rope]):
            if name not in ROPE_NAMES:
                checks.fail(
                    f"config.json: {key}.rope_type",
                    f"be one of {', '.join(ROPE_NAMES)}",
                    f"is {name!r}",
                    "Long-context variants of rotary positions are not supported.",
                )


def _rope(found: dict[str, Any], full: dict[str, Any]) -> Rope:
    scaling = ROPE_NAMES[_rope_type(found)]
    options: dict[str, Any] = {}
    if scaling != "none":
        options["factor"] = float(found["factor"])
    if scaling == "llama3":
        options |= {
            "low_frequency_factor": float(found["low_freq_factor"]),
            "high_frequency_factor": float(found["high_freq_factor"]),
            "original_max_tokens": int(
                found.get("original_max_position_embeddings") or full["max_position_embeddings"]
            ),
        }
    return Rope(theta=float(found["rope_theta"]), scaling=scaling, **options)


def _rope_fields(full: dict[str, Any], head_dim: int) -> dict[str, Any]:
    found = full.get("rope_parameters")
    if not found:
        return {}
    if "full_attention" in found:
        return {
            "rope": _rope(found["full_attention"], full),
            "rope_local": _rope(found["sliding_attention"], full),
        }
    return {"rope": _rope(found, full), "rotary_dim": int(head_dim * (found.get("partial_rotary_factor") or 1.0))}


def _window_fields(full: dict[str, Any]) -> dict[str, Any]:
    window, types = full.get("sliding_window"), full.get("layer_types")
    if window is None:
        return {}
    slides = tuple(name == "sliding_attention" for name in types) if types else (True,) * full["num_hidden_layers"]
    return {"window": int(window), "sliding": slides} if any(slides) else {}


def _check_refused(full: dict[str, Any], known: Family, model_type: str) -> None:
    for key, only in known.refused.items():
        if full.get(key, only) not in (only, None):
            checks.fail(f"config.json: {key}", f"be {only} for {model_type}", f"is {full[key]}", "It is not supported.")
    if full.get("word_embed_proj_dim", full.get("hidden_size")) != full.get("hidden_size"):
        checks.fail("config.json: word_embed_proj_dim", "equal hidden_size", "differs", "It is not supported.")


def _tokens(full: dict[str, Any]) -> dict[str, Any]:
    eos = full.get("eos_token_id")
    ids = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
    return {"bos_id": full.get("bos_token_id"), "eos_ids": ids, "pad_id": full.get("pad_token_id")}


def config_from_hf(raw: dict[str, Any]) -> Config:
    """Return the `Config` of a Hugging Face config.

    Args:
        raw: What config.json holds, of any version of transformers: defaults may be left out, rotary positions may be
            given by `rope_parameters` or by `rope_theta` and `rope_scaling`.

    Returns:
        The config.

    Raises:
        ValueError: If the family or one of its options is not supported.

    Example:
        >>> config_from_hf({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}).head_dim
        16
    """
    if "model_type" not in raw:
        checks.fail("config.json", "name its model_type", "has none", f"Supported: {', '.join(sorted(FAMILIES))}.")
    known = family(raw["model_type"])
    _check_ropes(raw)
    full = _complete(raw, raw["model_type"])
    _check_refused(full, known, raw["model_type"])
    fields: dict[str, Any] = {name: full[key] for name, key in known.keys.items() if full.get(key) is not None}
    fields.setdefault("mlp_width", 4 * fields["width"])  # GPT-2's null
    if fields["activation"] not in ACTIVATION_NAMES:
        checks.choice("config.json: activation", fields["activation"], ACTIVATION_NAMES)
    fields["activation"] = ACTIVATION_NAMES[fields["activation"]]
    head_dim = fields.get("head_dim") or fields["width"] // fields["num_heads"]
    if full.get("query_pre_attn_scalar"):
        fields["attention_scale"] = float(full["query_pre_attn_scalar"]) ** -0.5
    if raw["model_type"] in SCALED_EMBEDDINGS:
        fields["embedding_scale"] = math.sqrt(fields["width"])
    fields |= dict(known.fixed) | _rope_fields(full, head_dim) | _window_fields(full) | _tokens(full)
    return Config(family=raw["model_type"], **fields)


def _rope_to_hf(rope: Rope) -> dict[str, Any]:
    name = {ours: theirs for theirs, ours in ROPE_NAMES.items()}[rope.scaling]
    found: dict[str, Any] = {"rope_type": name, "rope_theta": rope.theta}
    if rope.scaling != "none":
        found["factor"] = rope.factor
    if rope.scaling == "llama3":
        found |= {
            "low_freq_factor": rope.low_frequency_factor,
            "high_freq_factor": rope.high_frequency_factor,
            "original_max_position_embeddings": rope.original_max_tokens,
        }
    return found


def _activation_to_hf(config: Config) -> str:
    if config.activation == "gelu_tanh":
        return "gelu_new" if config.family in {"gpt2", "phi"} else "gelu_pytorch_tanh"
    return config.activation


def _positions_to_hf(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if config.positions == "rope":
        rope = _rope_to_hf(config.rope)
        if config.rotary != config.head_width or config.family in PARTLY_TURNED:
            fraction = config.rotary / config.head_width
            # The reader rounds the product down; half a channel more keeps it from falling one short.
            exact = int(config.head_width * fraction) == config.rotary
            rope["partial_rotary_factor"] = fraction if exact else fraction + 0.5 / config.head_width
        found["rope_parameters"] = rope
        if config.rope_local is not None:
            found["rope_parameters"] = {"full_attention": rope, "sliding_attention": _rope_to_hf(config.rope_local)}
    if config.family in {"mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}:
        found["sliding_window"] = config.window
    if config.family in {"qwen2", "qwen3"}:
        found["use_sliding_window"] = config.window is not None
    if config.sliding and config.family not in {"mistral", "phi3"}:
        found["layer_types"] = ["sliding_attention" if s else "full_attention" for s in config.sliding]
    return found


def config_to_hf(config: Config) -> dict[str, Any]:
    """Return what config.json must hold for transformers (version 5) to build this model.

    Args:
        config: The model.

    Returns:
        A dict that JSON can hold.

    Raises:
        ValueError: If no model of `config.family` is described by it.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> config_from_hf(config_to_hf(config)) == config
        True
    """
    known = family(config.family)
    found: dict[str, Any] = {"architectures": [known.architecture], "model_type": config.family}
    found |= {key: getattr(config, name) for name, key in known.keys.items()}
    key = known.keys["activation"]
    found[key] = _activation_to_hf(config)
    found |= _positions_to_hf(config)
    if config.family in {"gemma2", "gemma3_text"}:
        found["query_pre_attn_scalar"] = round(config.score_scale**-2)
    eos = list(config.eos_ids)
    found |= {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }
    if config_from_hf(found) != config:
        there, here = config_from_hf(found), config
        wrong = [n for n in here.__dataclass_fields__ if getattr(there, n) != getattr(here, n)]  # type: ignore[attr-defined]
        checks.fail("config", f"describe a model of the family {config.family}", f"differs in {', '.join(wrong)}")
    return found
