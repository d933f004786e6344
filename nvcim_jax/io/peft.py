"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors, both ways."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nvcim_jax import checks, files, tuning
from nvcim_jax.io.peft_tensors import ia3_parts, ia3_tensors, lora_parts, lora_tensors
from nvcim_jax.models import LM, Config
from nvcim_jax.signature import checked
from nvcim_jax.tuning import Adapter
from nvcim_jax.types import PyTree

__all__ = ["load_peft", "save_peft"]

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

TYPES = {"prompt": "PROMPT_TUNING", "p_tuning": "P_TUNING", "prefix": "PREFIX_TUNING", "lora": "LORA", "ia3": "IA3"}
"""Kinds of adapters by PEFT's names of them."""

PROMPT = "prompt_embeddings"

ABOUT = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "num_transformer_submodules", "num_attention_heads", "num_layers", "token_dim"),
    *("num_virtual_tokens", "target_modules", "fan_in_fan_out", "exclude_modules"),
)
"""Fields that say what the tensors show (prompts are held against them), or nothing of what an adapter computes."""

TRAINING = {
    "PROMPT_TUNING": "prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs",
    "P_TUNING": "encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout",
    "PREFIX_TUNING": "prefix_projection encoder_hidden_size init_weights",
    "LORA": "r lora_alpha lora_dropout use_rslora use_dora init_lora_weights layers_pattern loftq_config eva_config "
    "corda_config lora_ga_config runtime_config megatron_config megatron_core qalora_group_size ensure_weight_tying",
    "IA3": "feedforward_modules init_ia3_weights",
}
"""Fields that are read here, or that matter while PEFT trains alone, by PEFT's name of the kind."""

NEUTRAL = (None, False, "", "none", [], {})
"""Values by which any other field says that it changes nothing."""

PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Starts of LoRA that leave the model's own weights alone."""


@checked
def save_peft(folder: str | Path, state: PyTree, adapter: Adapter, lm: LM, *, base: str | None = None) -> Path:
    """Write an adapter so that PEFT opens it: adapter_config.json and adapter_model.safetensors.

    A P-tuned prompt is written without the network that made it, as PEFT does. The configuration of an older adapter in
    the folder goes before its weights do, and the new one comes last: a killed process leaves the older adapter, or a
    folder that `load_peft` refuses.

    Args:
        folder: Where to; it is made if it is not there.
        state: State of the adapter; rows that a memory gave become one by `adapter.from_rows(rows)`.
        adapter: Out of `tuning.prompt`, `p_tuning`, `prefix`, `lora` (also `rs`, `dora`) and `ia3`.
        lm: The model that it was tuned for; its family says what PEFT calls each weight.
        base: Name or folder of the model, for PEFT's `AutoPeftModel`; None: not said.

    Returns:
        The folder.

    Raises:
        ValueError: If PEFT has no such adapter or cannot keep it for this family, or the state is not finite or that of
            another adapter or model.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> with tempfile.TemporaryDirectory() as where:
        ...     path = io.save_peft(where, np.ones((8, 32)), tuning.prompt(8), lm)
        ...     about = json.loads((path / "adapter_config.json").read_text())
        >>> about["peft_type"], about["num_virtual_tokens"]
        ('PROMPT_TUNING', 8)
    """
    kind = adapter.details[0].kind if adapter.details else ""
    if kind not in TYPES:
        found = f"is {kind or 'one of your own'}"
        checks.fail("adapter", f"be one that PEFT keeps: {', '.join(TYPES)}", found, "Keep its rows yourself.")
    state = adapter.rows(state) if kind == "p_tuning" else state
    checks.finite("state", state, "Tune it again with a lower learning rate.")
    fields, tensors = _WRITERS[kind](state, adapter, lm)
    about = {
        "peft_type": TYPES[kind],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    path = files.folder("folder", folder)
    with files.replacing(path / WEIGHTS) as part:
        save_file({n: np.ascontiguousarray(a, np.float32) for n, a in tensors.items()}, part, {"format": "pt"})
        (path / CONFIG).unlink(missing_ok=True)
    files.write(path / CONFIG, json.dumps(about | {"inference_mode": True} | fields, indent=2) + "\n")
    return path


def _prompt_fields(config: Config, num: int, *, prefix: bool = False) -> dict[str, Any]:
    """Return what PEFT says of a prompt; of a prefix it counts the heads of keys and values, and their channels."""
    return {
        "num_virtual_tokens": num,
        "token_dim": config.kv_heads * config.head_width if prefix else config.width,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.kv_heads if prefix else config.num_heads,
        "num_layers": config.num_layers,
    }


def _write_prompt(state: PyTree, adapter: Adapter, lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    shape = (adapter.details[0].num_virtual, lm.config.width)
    checks.shape("state", state, shape, "(tokens, width)", "It belongs to another adapter or another model.")
    fields = _prompt_fields(lm.config, len(state))
    if adapter.details[0].kind == "p_tuning":
        fields["encoder_hidden_size"] = adapter.details[0].hidden or lm.config.width
    return fields, {PROMPT: state}


def _write_prefix(state: PyTree, adapter: Adapter, lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    config, parts = lm.config, adapter.parts(state, lm)
    both = np.stack([parts["keys"], parts["values"]], axis=1)  # (layers, 2, heads, tokens, channels)
    tokens = both.shape[3]
    fields = _prompt_fields(config, tokens, prefix=True)
    fields |= {"encoder_hidden_size": fields["token_dim"], "prefix_projection": False}
    return fields, {PROMPT: both.transpose(3, 0, 1, 2, 4).reshape(tokens, -1)}


def _write_lora(state: PyTree, adapter: Adapter, lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    options, alpha = adapter.details
    if alpha.ndim:
        fix = "Multiply each layer's part b by its own, and make the adapter with alpha=1.0."
        checks.fail("adapter", "have one alpha, as PEFT keeps it", f"has an alpha of shape {alpha.shape}", fix)
    checks.finite("adapter: alpha", alpha)
    tensors, modules = lora_tensors(adapter.parts(state, lm), options.groups(lm.config), lm.config)
    fields = {
        "r": options.rank,
        "lora_alpha": float(alpha),
        "lora_dropout": 0.0,
        "target_modules": modules,
        "fan_in_fan_out": lm.config.family == "gpt2",
        "bias": "none",
        "use_rslora": options.rs,
        "use_dora": options.dora,
    }
    return fields, tensors


def _write_ia3(state: PyTree, adapter: Adapter, lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, modules, fed = ia3_tensors(adapter.parts(state, lm), adapter.details[0].inputs, lm.config)
    gpt2 = lm.config.family == "gpt2"
    return {"target_modules": modules, "feedforward_modules": fed, "fan_in_fan_out": gpt2}, tensors


_WRITERS = {
    "prompt": _write_prompt,
    "p_tuning": _write_prompt,
    "prefix": _write_prefix,
    "lora": _write_lora,
    "ia3": _write_ia3,
}


@checked
def load_peft(folder: str | Path, lm: LM) -> tuple[PyTree, Adapter]:
    """Read an adapter that PEFT or `save_peft` wrote, for the model that it was tuned for.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        lm: The model.

    Returns:
        The state, float32, and the adapter.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If a file is damaged, the adapter is of another model, or a field asks for what is not supported;
            the message names it.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import io, models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> lm, adapter = models.init(jax.random.key(0), config=config), tuning.lora(4, rs=True)
        >>> state = adapter.init(jax.random.key(1), lm, tuning.examples([[1, 5, 6]], [[8, 2]]), None)
        >>> with tempfile.TemporaryDirectory() as where:
        ...     again, loaded = io.load_peft(io.save_peft(where, state, adapter, lm), lm)
        >>> bool((again == state).all()), loaded.details[0]
        (True, LoraOptions(rank=4, targets=('q', 'v'), rs=True, dora=False))
    """
    path = checks.file("folder", folder, folder=True)
    if not (path / CONFIG).is_file():
        fix = "Give the folder that PEFT's save_pretrained wrote."
        checks.fail("folder", f"hold an adapter of PEFT, with {CONFIG}", f"{path} has none", fix)
    raw = files.read_json("folder", path / CONFIG)
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    kinds = {name: ours for ours, name in TYPES.items()}
    if kind not in kinds:
        found = f"{path} holds {kind}" if kind else f"{CONFIG} says nothing of it"
        checks.fail("folder", f"hold an adapter of peft_type {', '.join(kinds)}", found)
    _check_fields(raw, kind)
    tensors = _tensors(path)
    for name, tensor in tensors.items():
        checks.finite(name, tensor, "Tune the adapter again with a lower learning rate.")
    return _READERS[kinds[kind]](raw, tensors, lm)


def _check_fields(raw: Mapping[str, Any], kind: str) -> None:
    known = {*ABOUT, *TRAINING[kind].split()}
    for name, value in raw.items():
        if name not in known and not any(value is n or (value == n and type(value) is type(n)) for n in NEUTRAL):
            checks.fail(f"{CONFIG}: {name}", "change nothing, such as null", f"is {value!r}", "It is not supported.")
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        checks.fail(f"{CONFIG}: task_type", "be CAUSAL_LM", f"is {raw['task_type']!r}", "It is not supported.")
    if raw.get("init_lora_weights", True) not in PLAIN_STARTS:
        fix = "It changes the model's own weights: convert it by PEFT to plain LoRA."
        found = f"is {raw['init_lora_weights']!r}"
        checks.fail(f"{CONFIG}: init_lora_weights", f"be one of {', '.join(map(str, PLAIN_STARTS))}", found, fix)


def _broken(path: Path, found: str) -> NoReturn:
    checks.fail("folder", f"hold a whole {WEIGHTS}", f"{path} {found}", "Save or download the adapter again.")


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLED).is_file()
        fix = "Convert it by PEFT: save_pretrained(folder)." if pickled else ""
        checks.fail("folder", f"hold {WEIGHTS}", f"{folder} has {f'{PICKLED} alone' if pickled else 'none'}", fix)
    try:
        with safe_open(path, framework="flax") as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
    _broken(path, f"is not ({reason})")


def _prompt_rows(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lm: LM) -> np.ndarray:
    rows = tensors.get(PROMPT)
    if rows is None or len(tensors) > 1:
        other = next((name for name in tensors if name != PROMPT), "nothing")
        checks.fail(
            "folder", f"hold the tensor {PROMPT} alone", f"also holds {other}" if rows is not None else "lacks it"
        )
    config, prefix = lm.config, raw["peft_type"] == TYPES["prefix"]
    width = 2 * config.num_layers * config.kv_heads * config.head_width if prefix else config.width
    if rows.ndim != 2 or rows.shape[1] != width:
        checks.fail(PROMPT, f"have shape (tokens, {width})", f"has {rows.shape}", "It belongs to another model.")
    wanted = _prompt_fields(config, len(rows), prefix=prefix)
    for name in ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim"):
        if raw.get(name) not in (None, wanted[name]):
            fix = f"{WEIGHTS} is another's." if name == "num_virtual_tokens" else "It belongs to another model."
            checks.fail(f"{CONFIG}: {name}", f"be {wanted[name]}", f"is {raw[name]!r}", fix)
    return rows


def _read_prompt(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lm: LM) -> tuple[PyTree, Adapter]:
    rows = _prompt_rows(raw, tensors, lm)
    if raw["peft_type"] == TYPES["prompt"]:
        return jnp.asarray(rows), tuning.prompt(len(rows))
    hidden = raw.get("encoder_hidden_size")
    if hidden is not None:
        checks.integer(f"{CONFIG}: encoder_hidden_size", hidden)
    return jnp.asarray(rows), tuning.p_tuning(len(rows), hidden)


def _read_prefix(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lm: LM) -> tuple[PyTree, Adapter]:
    config, rows = lm.config, _prompt_rows(raw, tensors, lm)
    both = rows.reshape(len(rows), config.num_layers, 2, config.kv_heads, config.head_width).transpose(2, 1, 3, 0, 4)
    adapter = tuning.prefix(len(rows))
    return adapter.details[0].pack({"keys": both[0], "values": both[1]}, config), adapter


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if not isinstance(value, bool | None):
        checks.fail(f"{CONFIG}: {name}", "be true, false or null", f"is {value!r}")
    return bool(value)


def _read_lora(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lm: LM) -> tuple[PyTree, Adapter]:
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    checks.integer(f"{CONFIG}: r", rank)
    checks.finite(f"{CONFIG}: lora_alpha", alpha)
    checks.rank(f"{CONFIG}: lora_alpha", alpha, 0, "()", "It is one number.")
    checks.number(f"{CONFIG}: lora_alpha", alpha, low=0.0)
    rs, dora = (_flag(raw, name) for name in ("use_rslora", "use_dora"))
    parts, targets = lora_parts(tensors, rank, dora, lm.config)
    adapter = tuning.lora(rank, alpha, targets=targets, rs=rs, dora=dora)
    return adapter.details[0].pack(parts, lm.config), adapter


def _read_ia3(raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray], lm: LM) -> tuple[PyTree, Adapter]:
    del raw
    parts, inputs = ia3_parts(tensors, lm.config)
    adapter = tuning.ia3(tuple(parts), inputs=inputs)
    return adapter.details[0].pack(parts, lm.config), adapter


_READERS = {
    "prompt": _read_prompt,
    "p_tuning": _read_prompt,
    "prefix": _read_prefix,
    "lora": _read_lora,
    "ia3": _read_ia3,
}
