"""Load a Hugging Face checkpoint or a GGUF file, tensor by tensor, without torch."""

import dataclasses
import logging
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.models.families import family
from nvcim_jax.models.files.arrays import aligned, take_over
from nvcim_jax.models.files.gguf import gguf_config, gguf_params
from nvcim_jax.models.files.gguf_file import read_gguf
from nvcim_jax.models.files.gguf_tokenizer import gguf_tokenizer
from nvcim_jax.models.files.hf_config import config_from_hf, read_json
from nvcim_jax.models.files.quantised import Packed, unpack_awq, unpack_gptq
from nvcim_jax.models.files.quiet import import_transformers
from nvcim_jax.models.files.skipped import check_skipped
from nvcim_jax.models.files.source import find_source, gguf_of
from nvcim_jax.models.files.tensorfile import Tensor, find_tensors, read_rows
from nvcim_jax.models.layout import Place, places
from nvcim_jax.models.lm import LM, Text
from nvcim_jax.models.soft_tokens import SoftTokens
from nvcim_jax.signature import checked

__all__ = ["BUNDLED", "Packing", "load", "load_config"]

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Folder of the small language model that ships with the package."""

CHUNK_BYTES = 8 << 20
"""Most bytes of a file that are held at a time."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]


class Packing(NamedTuple):
    """Describe how a checkpoint packs its weights.

    Attributes:
        method: "gptq" or "awq".
        bits: Bits a weight.
        group_size: Inputs that share a scale; -1: all of them.
        version: Version of the GPTQ format.
    """

    method: str
    bits: int
    group_size: int
    version: int


def _refuse(path: Path) -> None:
    """Say what else a folder or file holds where it is no checkpoint of a whole model in safetensors."""
    adapter = path / "adapter_config.json"
    if adapter.is_file() and not (path / "config.json").is_file():
        base = read_json(adapter).get("base_model_name_or_path") or "its base model"
        fix = f"Load {base}, or merge the two with PEFT: merge_and_unload(), save_pretrained(folder)."
        checks.fail("source", "hold a whole model", f"holds a PEFT adapter alone: {path}", fix)


def _folder(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.exists():
        _refuse(path)
    if path.is_dir():
        return path
    if path.exists():
        checks.fail("source", "be a folder or a hub id", f"is a file: {path}", f"Give its folder: {path.parent}.")
    if not HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(f"There is no folder {path}, and it is not a hub id ('name' or 'owner/name') either.")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(str(source), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"'{source}' is neither a folder here nor in the local Hugging Face cache, and it could not be downloaded "
            f"({type(error).__name__}). With a network, check the id and your access; without one, give a local folder."
        ) from error


def _packing(raw: dict[str, Any]) -> Packing | None:
    found = raw.get("quantization_config")
    if not found:
        return None
    method = str(found.get("quant_method", "")).lower()
    checks.choice("config.json: quantization_config.quant_method", method, ("gptq", "awq"))
    bits = int(found.get("bits") or found.get("w_bit") or 4)
    if method == "awq":
        layout = str(found.get("version") or "gemm").lower()
        checks.choice("config.json: quantization_config.version", layout, ("gemm",))
    if bits not in ((4,) if method == "awq" else (2, 4, 8)):
        checks.fail("config.json: quantization_config.bits", "be 4 for AWQ, and 2, 4 or 8 for GPTQ", f"is {bits}")
    group = int(found.get("group_size") or found.get("q_group_size") or -1)
    version = 2 if found.get("checkpoint_format") == "gptq_v2" else 1
    return Packing(method, bits, group, version)


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the language model inside a multimodal Gemma 3."""
    return {"model_type": "gemma3_text", **raw["text_config"]} if raw.get("model_type") == "gemma3" else raw


@checked
def load_config(source: str | Path) -> Config:
    """Read the config of a checkpoint, without its weights.

    Args:
        source: As for `load`.

    Returns:
        The config; the tokens that end a text are those of config.json and generation_config.json together.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is of no supported family.

    Example:
        >>> import json, tempfile
        >>> raw = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 128}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "config.json").write_text(json.dumps(raw))
        ...     config = load_config(folder)
        >>> config.width, config.mlp_width  # four times the width, as GPT-2 says
        (32, 128)
    """
    found = gguf_of(path) if isinstance(path := find_source(source), Path) else None
    if found is not None:
        return gguf_config(read_gguf(found))
    return _folder_config(_folder(source))


def _folder_config(folder: Path) -> Config:
    raw = _text_part(read_json(folder / "config.json"))
    extra = folder / "generation_config.json"
    if extra.is_file():
        more = read_json(extra).get("eos_token_id")
        ids = [i for found in (raw.get("eos_token_id"), more) for i in (found if isinstance(found, list) else [found])]
        raw = raw | {"eos_token_id": list(dict.fromkeys(i for i in ids if i is not None)) or None}
    return config_from_hf(raw)


def _fill(into: np.ndarray, tensor: Tensor, place: Place) -> None:
    """Copy a tensor's share into its parameter, a few rows at a time."""
    if into.ndim == 1:
        for start, stop, at in place.pieces:
            into[at : at + stop - start] = read_rows(tensor, start, stop)
        return
    rows = max(1, CHUNK_BYTES // (tensor.shape[1] * tensor.dtype.itemsize))
    if place.turned:
        for start, stop, at in place.pieces:
            for low in range(start, stop, rows):
                high = min(low + rows, stop)
                into[:, at + low - start : at + high - start] = read_rows(tensor, low, high).T
        return
    for low in range(0, tensor.shape[0], rows):
        block = read_rows(tensor, low, min(low + rows, tensor.shape[0]))
        for start, stop, at in place.pieces:
            into[low : low + len(block), at : at + stop - start] = block[:, start:stop]


def _names(place: Place, num_layers: int) -> list[str]:
    return [place.tensor.format(i=i) for i in range(num_layers)] if place.layered else [place.tensor]


def _plain(place: Place, tensors: list[Tensor], dtype: np.dtype) -> jax.Array:
    shape = (len(tensors), *place.shape) if place.layered else place.shape
    whole = aligned(shape, dtype)
    for i, tensor in enumerate(tensors):
        _fill(whole[i] if place.layered else whole, tensor, place)
    return take_over(whole)


def _columns(array: np.ndarray, place: Place) -> np.ndarray:
    return np.concatenate([array[:, start:stop] for start, stop, _ in place.pieces], axis=1)


def _groups(found: dict[str, Tensor], stem: str, inputs: int, packing: Packing) -> np.ndarray:
    if f"{stem}.g_idx" in found:
        groups, known = read_rows(found[f"{stem}.g_idx"]).astype(np.int32), found[f"{stem}.scales"].shape[0]
        if groups.size and not (groups.min() >= 0 and groups.max() < known):
            checks.fail(f"{stem}.g_idx", f"name groups below {known}", f"names {groups.min()} to {groups.max()}")
        return groups
    size = inputs if packing.group_size <= 0 else packing.group_size
    return np.arange(inputs, dtype=np.int32) // np.int32(size)


def _packed(place: Place, found: dict[str, Tensor], num_layers: int, packing: Packing) -> Packed:
    """Return the stacked codes, scales and groups of one weight."""
    first = found[f"{place.stem.format(i=0)}.scales"]
    inputs, outputs = place.shape
    codes = aligned((num_layers, inputs, outputs), np.dtype(np.int8))
    scales = aligned((num_layers, first.shape[0], outputs), first.dtype)
    groups = aligned((num_layers, inputs), np.dtype(np.int32))
    for i in range(num_layers):
        stem = place.stem.format(i=i)
        weight, zeros = (read_rows(found[f"{stem}.{part}"]) for part in ("qweight", "qzeros"))
        groups[i] = _groups(found, stem, inputs, packing)
        if packing.method == "awq":
            made = unpack_awq(weight, zeros, groups[i], name=stem)
        else:
            made = unpack_gptq(weight, zeros, groups[i], bits=packing.bits, version=packing.version, name=stem)
        checks.shape(f"{stem}.qweight", made, (inputs, place.outputs), "unpacked (inputs, outputs)")
        codes[i] = _columns(made, place)
        scales[i] = _columns(read_rows(found[f"{stem}.scales"]), place)
    return Packed(take_over(codes), take_over(scales), take_over(groups))


def _renamed(found: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Give every tensor the name it has in a full causal model: some files leave out or add a prefix."""
    base = family(config.family).stems["embedding"].split(".")[0] + "."
    head = family(config.family).stems["head"] + "."
    named = {}
    for name, tensor in found.items():
        for long, short in (("language_model.model.", base), ("model.language_model.", base), ("language_model.", "")):
            if name.startswith(long):
                name = short + name.removeprefix(long)
                break
        # transformers 5 calls every head "lm_head"; the published files of GPT-NeoX do not.
        named[head + name.removeprefix("lm_head.") if name.startswith("lm_head.") else name] = tensor
    if any(name.startswith(base) for name in named):
        return named
    return {name if name.startswith(head) else base + name: tensor for name, tensor in named.items()}


def _is_packed(place: Place, found: dict[str, Tensor]) -> bool:
    return len(place.shape) == 2 and place.layered and f"{place.stem.format(i=0)}.qweight" in found


def _check(found: dict[str, Tensor], wanted: dict[str, Place], config: Config) -> list[str]:
    """Name the first tensors that are missing, misshaped or left over; return those of other parts than the model."""
    used, missing = set(), []
    for place in wanted.values():
        names = _names(place, config.num_layers)
        if _is_packed(place, found):
            stems = [name.rsplit(".", 1)[0] for name in names]
            names = [f"{stem}.{part}" for stem in stems for part in ("qweight", "qzeros", "scales")]
            used |= {f"{stem}.g_idx" for stem in stems}
        else:
            for name in names:
                if name in found:
                    checks.shape(
                        name,
                        np.broadcast_to(0, found[name].shape),
                        place.tensor_shape,
                        fix="It contradicts config.json.",
                    )
        used |= set(names)
        missing += [name for name in names if name not in found]
    if missing:
        checks.fail("source", f"hold {len(used)} tensors", f"lacks {len(missing)}: {', '.join(missing[:5])}")
    head = family(config.family).stems["head"] + ".weight"
    left = [name for name in found if name not in used]
    return check_skipped(found, left, config, embedding=wanted["embedding"].tensor, head=head)


def _bytes(place: Place, found: dict[str, Tensor], num_layers: int, dtype: np.dtype) -> int:
    count = math.prod(place.shape) * (num_layers if place.layered else 1)
    if not _is_packed(place, found):
        return count * dtype.itemsize
    scales = found[f"{place.stem.format(i=0)}.scales"]
    return count + num_layers * (scales.shape[0] * place.shape[1] * scales.dtype.itemsize + 4 * place.shape[0])


def _announce(
    folder: Path,
    wanted: dict[str, Place],
    found: dict[str, Tensor],
    config: Config,
    dtype: np.dtype,
    report: Callable[[str], None],
) -> None:
    sizes = [_bytes(place, found, config.num_layers, dtype) for place in wanted.values()]
    # Codes are unpacked one matrix at a time, through int16; everything else goes in chunks.
    spare = [4 * math.prod(p.shape) if _is_packed(p, found) else 2 * CHUNK_BYTES for p in wanted.values()]
    total = sum(sizes) / 2**20
    report(
        f"Loading {config.family} with {config.num_layers} layers from {folder.name}: {total:.0f} MiB of "
        f"parameters in {dtype.name}, at most about {total + max(spare) / 2**20:.0f} MiB while loading."
    )


def _soft_tokens(raw: dict[str, Any]) -> SoftTokens:
    """Return the layout of soft tokens that config.json names, if it does."""
    found = raw.get("soft_tokens") or {}
    known = [field.name for field in dataclasses.fields(SoftTokens)]
    for name in found:
        checks.choice("config.json: soft_tokens", name, known)
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return SoftTokens(**fields)


def _tokenizer(folder: Path) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in files):
        return None
    transformers = import_transformers()
    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def _compare(tokenizer: Any, config: Config) -> None:
    """Warn of tokens that the embedding has no row for."""
    if tokenizer is None:
        return
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > config.vocab_size:
        first = tokenizer.convert_ids_to_tokens(config.vocab_size)
        warnings.warn(
            f"The tokenizer knows {size} tokens, but the embedding has {config.vocab_size} rows: a text that holds "
            f"{first!r} (token {config.vocab_size}) or one above is refused. "
            "If that is unexpected, tokenizer and weights belong to different checkpoints.",
            stacklevel=3,
        )


@checked
def load(
    source: str | Path,
    *,
    dtype: Any = None,
    tokenizer: bool = True,
    report: Callable[[str], None] = logger.info,
) -> tuple[LM, Text]:
    """Load a decoder language model from a Hugging Face checkpoint or a GGUF file.

    Reads config, weights and tokenizer; torch is not needed. Tensors are read a few rows at a time straight into their
    place, so the peak is the parameters and little more. GPTQ and AWQ weights stay int8. Weights of GGUF (F32, F16,
    BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K) stay as the file packs them: in the memory of the file they
    multiply as their floats would, which are made layer by layer where they are used. What needs arrays, such as
    chips, asks for a `dtype`.

    Args:
        source: A folder with config.json and safetensors, or the id of such a model on the Hugging Face hub (from its
            cache, or the network); a GGUF file, one of the parts of a split one, a folder that holds one, a file on the
            hub ("owner/name/file.gguf"), or "package:NAME/FILE", a file of an installed Python package.
        dtype: dtype of the parameters, into which the weights of a GGUF file are then unpacked; codes of GPTQ and AWQ
            are int8 whatever it is. None: float32, and GGUF as it is packed.
        tokenizer: Whether to load the tokenizer as well.
        report: Is told, before anything is read, how much memory it takes; the logger by default.

    Returns:
        The model, and its tokenizer beside it, with the default template.

    Raises:
        FileNotFoundError: If the checkpoint or one of its files is not there.
        ValueError: If the model is not supported, or a tensor is missing, left over, misshaped or cut short.

    Example:
        >>> import tempfile
        >>> from nvcim_jax import models
        >>> config = models.Config(vocab_size=512, width=64, num_layers=2, num_heads=4, mlp_width=128)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     models.save(folder, lm)
        ...     again, _ = models.load(folder)
        >>> bool((again.params["layers"]["q"] == lm.params["layers"]["q"]).all())
        True
    """
    path, target = find_source(source), None if dtype is None else np.dtype(dtype)
    found = gguf_of(path) if isinstance(path, Path) else None
    if found is None:
        lm, made = _load_folder(_folder(path), target or np.dtype(np.float32), tokenizer, report)
    else:
        lm, made = _load_gguf(found, target, tokenizer, report)
    _compare(made, lm.config)
    return lm, Text(made)


def _load_gguf(path: Path, target: np.dtype | None, tokenizer: bool, report: Callable[[str], None]) -> tuple[LM, Any]:
    file = read_gguf(path)
    config = gguf_config(file)
    lm = LM(gguf_params(file, config, target, report), config)
    return lm, gguf_tokenizer(file.meta, path.name) if tokenizer else None


def _load_folder(folder: Path, target: np.dtype, tokenizer: bool, report: Callable[[str], None]) -> tuple[LM, Any]:
    raw = read_json(folder / "config.json")
    config = _folder_config(folder)
    packing = _packing(raw)
    found, wanted = _renamed(find_tensors(folder), config), places(config)
    parts = _check(found, wanted, config)
    _announce(folder, wanted, found, config, target, report)
    if parts:
        report(f"Left out: {len(parts)} tensors of the vision part, such as {parts[0]}.")
    params: dict[str, Any] = {"layers": {}}
    for path, place in wanted.items():
        if _is_packed(place, found):
            if packing is None:
                checks.fail("config.json", "have a quantization_config for packed weights", "has none")
            made: Any = _packed(place, found, config.num_layers, packing)
        else:
            made = _plain(place, [found[name] for name in _names(place, config.num_layers)], target)
        branch = params["layers"] if place.layered else params
        branch[path.removeprefix("layers.")] = made
    return LM(params, config, _soft_tokens(raw)), _tokenizer(folder) if tokenizer else None
