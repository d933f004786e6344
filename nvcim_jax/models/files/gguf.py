"""Load a decoder language model from a GGUF file."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.models.config import Config
from nvcim_jax.models.files.arrays import aligned, take_over
from nvcim_jax.models.files.gguf_families import REFUSED_TENSORS, ROPE_FACTORS, architecture, config_from_gguf
from nvcim_jax.models.files.gguf_file import Gguf, GgufTensor, read_blocks
from nvcim_jax.models.files.gguf_types import KINDS, decode
from nvcim_jax.models.files.gguf_weight import Blocks, pack_rows
from nvcim_jax.types import PyTree

__all__ = ["GgufPlace", "gguf_config", "gguf_params", "gguf_places"]

STEMS = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attention_norm": "blk.{i}.attn_norm",
    "q": "blk.{i}.attn_q",
    "k": "blk.{i}.attn_k",
    "v": "blk.{i}.attn_v",
    "o": "blk.{i}.attn_output",
    "q_norm": "blk.{i}.attn_q_norm",
    "k_norm": "blk.{i}.attn_k_norm",
    "attention_post_norm": "blk.{i}.post_attention_norm",
    "mlp_norm": "blk.{i}.ffn_norm",
    "mlp_post_norm": "blk.{i}.post_ffw_norm",
    "gate": "blk.{i}.ffn_gate",
    "up": "blk.{i}.ffn_up",
    "down": "blk.{i}.ffn_down",
}
"""Parameter -> name of its tensor, less ".weight" or ".bias"; `{i}` is the layer."""

FUSED = (("blk.{i}.attn_qkv", ("q", "k", "v")), ("blk.{i}.ffn_up", ("gate", "up")))
"""Tensors that hold several parameters, one after the other, where the files have no tensor for the first of them."""

CHUNK_BYTES = 1 << 20
"""Bytes of a file that are made floats at a time: what a processor's cache holds."""


class GgufPlace(NamedTuple):
    """Describe where one parameter lies.

    Attributes:
        tensor: Name of the tensor; `{i}` stands for the layer.
        layered: Whether there is one tensor a layer.
        start: Its first row in the tensor.
        rows: Number of its rows: outputs, or rows of a table.
        shape: Shape of the parameter, of one layer.
        turned: Whether the tensor is (outputs, inputs) while the parameter is (inputs, outputs).
        heads: Into how many heads the rows are permuted for rotary pairs of neighbours; 0: they are not.
        offset: What is taken off.
    """

    tensor: str
    layered: bool
    start: int
    rows: int
    shape: tuple[int, ...]
    turned: bool
    heads: int
    offset: float

    def names(self, num_layers: int) -> list[str]:
        """Return the names of its tensors, layer by layer."""
        return [self.tensor.format(i=i) for i in range(num_layers)] if self.layered else [self.tensor]

    def order(self) -> np.ndarray:
        """Return which row of the tensor each row of the parameter is."""
        rows = np.arange(self.start, self.start + self.rows)
        if not self.heads:
            return rows
        # Stored as (heads, pair, half), which is (heads, half, pair) here.
        return rows.reshape(self.heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _is_tied(file: Gguf) -> bool:
    """Return whether the head is the embedding: it is left out, or kept as a second copy (GPT-2)."""
    head, table = file.tensors.get("output.weight"), file.tensors["token_embd.weight"]
    if head is None:
        return True
    if (head.kind, head.shape) != (table.kind, table.shape):
        return False
    step = max(1, CHUNK_BYTES // head.row_bytes)
    parts = ((low, min(low + step, head.shape[0])) for low in range(0, head.shape[0], step))
    return all(np.array_equal(read_blocks(head, *part), read_blocks(table, *part)) for part in parts)


def gguf_config(file: Gguf) -> Config:
    """Return the config of a file.

    Raises:
        ValueError: If the model is not supported.
    """
    architecture(file)
    if "token_embd.weight" not in file.tensors:
        checks.fail(file.path.name, "hold a language model", "has no token_embd.weight")
    return config_from_gguf(file, tied=_is_tied(file))


def gguf_places(file: Gguf, config: Config) -> dict[str, GgufPlace]:
    """Return where every parameter of a model lies in its file.

    Returns:
        Path of the parameter ("layers.q", "embedding") -> its place.
    """
    known, tree = architecture(file), config.shapes
    flat = {name: shape for name, shape in tree.items() if name != "layers"}
    flat |= {f"layers.{name}": shape[1:] for name, shape in tree["layers"].items()}
    found = {}
    for path, shape in flat.items():
        name, layered = path.removeprefix("layers."), path.startswith("layers.")
        base = name.removesuffix("_bias")
        suffix, stem, start = "bias" if name.endswith("_bias") else "weight", STEMS[base], 0
        for fused, parts in FUSED:
            if base in parts and f"{STEMS[parts[0]]}.weight".format(i=0) not in file.tensors and layered:
                before = parts[: parts.index(base)]
                stem, start = fused, sum(flat[f"layers.{part}"][-1] for part in before if f"layers.{part}" in flat)
        turned = len(shape) == 2 and base not in {"embedding", "position_embedding"}
        heads = {"q": config.num_heads, "k": config.kv_heads}.get(base, 0) if known.permuted else 0
        offset = float(known.offset_norms and base.endswith("norm"))
        rows = shape[-1] if turned or len(shape) == 1 else shape[0]
        found[path] = GgufPlace(f"{stem}.{suffix}", layered, start, rows, shape, turned, heads, offset)
    return found


def _check(file: Gguf, places: dict[str, GgufPlace], config: Config) -> None:
    """Name the first tensors that are missing, misshaped or left over."""
    wanted: dict[str, tuple[GgufPlace, int]] = {}
    for place in places.values():
        for name in place.names(config.num_layers):
            rows = max(place.start + place.rows, wanted.get(name, (place, 0))[1])
            wanted[name] = (place, rows)
    missing = [name for name in wanted if name not in file.tensors]
    if missing:
        checks.fail(
            file.path.name, f"hold {len(wanted)} tensors", f"lacks {len(missing)}: {', '.join(missing[:5])}",
            "Of a split model, keep all parts in one folder under their names.",
        )  # fmt: skip
    for name, (place, rows) in wanted.items():
        inputs = place.shape[:1] if place.turned else place.shape[1:]
        checks.shape(
            name,
            np.broadcast_to(0, file.tensors[name].shape),
            (rows, *inputs),
            fix="It contradicts the metadata.",
        )
    spare = {ROPE_FACTORS, *REFUSED_TENSORS} | ({"output.weight"} if config.tied else set())
    left = [name for name in file.tensors if name not in wanted and name not in spare]
    if left:
        checks.fail(
            file.path.name, f"hold only tensors of a {config.family} model", f"also has {', '.join(sorted(left)[:5])}"
        )


def _rows(tensor: GgufTensor, place: GgufPlace) -> Iterator[tuple[int, np.ndarray]]:
    """Give the rows of a parameter as floats, as many at a time as a processor's cache holds."""
    if len(tensor.shape) == 1:
        yield 0, decode(read_blocks(tensor), tensor.kind).reshape(-1)[place.order()]
        return
    raw = read_blocks(tensor, place.start, place.start + place.rows)
    order = place.order() - place.start
    step = max(1, CHUNK_BYTES // 4 // tensor.shape[-1])
    for low in range(0, place.rows, step):
        part = raw[order[low : low + step]] if place.heads else raw[low : low + step]
        yield low, decode(part, tensor.kind)


def _floats(place: GgufPlace, tensors: list[GgufTensor], dtype: np.dtype) -> jax.Array:
    whole = aligned((len(tensors), *place.shape), dtype)
    for into, tensor in zip(whole, tensors, strict=True):
        for low, rows in _rows(tensor, place):
            if place.turned:
                into[:, low : low + len(rows)] = rows.T
            else:
                into[low : low + len(rows)] = rows
        if place.offset:
            into -= np.asarray(place.offset, dtype)
    return take_over(whole if place.layered else whole[0])


def _blocks(place: GgufPlace, tensors: list[GgufTensor]) -> Blocks:
    """Return a parameter as it is packed, a few outputs at a time."""
    fields: dict[str, np.ndarray] = {}
    order = place.order() - place.start
    for i, tensor in enumerate(tensors):
        raw = read_blocks(tensor, place.start, place.start + place.rows)
        step = max(1, CHUNK_BYTES // tensor.row_bytes)
        for low in range(0, place.rows, step):
            part = raw[order[low : low + step]] if place.heads else raw[low : low + step]
            for name, field in pack_rows(part, tensor.kind).items():
                if name not in fields:
                    fields[name] = aligned((len(tensors), len(field), place.rows), field.dtype)
                    fields[name][...] = 0  # what layers of other types leave out
                fields[name][i, :, low : low + step] = field
    kinds = sorted({tensor.kind for tensor in tensors})
    which = jnp.asarray([kinds.index(tensor.kind) for tensor in tensors], jnp.int32)
    made = {name: take_over(field if place.layered else field[0]) for name, field in fields.items()}
    width = place.shape[0] if place.turned else place.shape[1]
    return Blocks(made, which if place.layered else which[0], tuple(kinds), width, not place.turned)


def _is_packed(place: GgufPlace, tensors: list[GgufTensor]) -> bool:
    return len(place.shape) == 2 and all(KINDS[tensor.kind].parts is not None for tensor in tensors)


def _announce(
    file: Gguf,
    config: Config,
    found: dict[str, list[GgufTensor]],
    dtype: np.dtype,
    packed: set[str],
    report: Callable[[str], None],
) -> None:
    kinds = sorted({tensor.kind for tensors in found.values() for tensor in tensors})
    total = 0
    for path, tensors in found.items():
        rows = [tensor.row_bytes if path in packed else tensor.shape[-1] * dtype.itemsize for tensor in tensors]
        total += max(rows) * sum(math.prod(tensor.shape[:-1]) for tensor in tensors)
    report(
        f"Loading {config.family} with {config.num_layers} layers from {file.path.name} ({', '.join(kinds)}): about "
        f"{total / 2**20:.0f} MiB of parameters{', packed as they are' if packed else f' in {dtype.name}'}."
    )


def gguf_params(file: Gguf, config: Config, dtype: np.dtype | None, report: Callable[[str], None]) -> PyTree:
    """Return the parameters of a model.

    Args:
        file: The file.
        config: Its config.
        dtype: dtype of the parameters; None: packed weights stay as they are, all others are float32.
        report: Is told, before anything is read, how much memory it takes.

    Raises:
        ValueError: If a tensor is missing, left over or misshaped.
    """
    places = gguf_places(file, config)
    _check(file, places, config)
    found = {path: [file.tensors[name] for name in place.names(config.num_layers)] for path, place in places.items()}
    packed = {path for path, place in places.items() if dtype is None and _is_packed(place, found[path])}
    floats = np.dtype(np.float32) if dtype is None else dtype
    _announce(file, config, found, floats, packed, report)
    params: dict[str, Any] = {"layers": {}}
    for path, place in places.items():
        branch = params["layers"] if place.layered else params
        made = _blocks(place, found[path]) if path in packed else _floats(place, found[path], floats)
        branch[path.removeprefix("layers.")] = made
    return params
