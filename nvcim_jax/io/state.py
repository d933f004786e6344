"""A memory in one file: what is stored, the chips as they were programmed, and the options they belong to."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nvcim_jax import checks, crossbar, files, selection
from nvcim_jax.ops import Moments
from nvcim_jax.pipeline import Config, Memory, State, Store, program_store
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["load_state", "save_state"]

FORMAT = "nvcim_jax.pipeline.State 3"
OTHER = "no crossbars"
"""What stands in place of a device's name where no chip is held."""


@checked
def save_state(path: str | Path, state: State, *, config: Config) -> Path:
    """Write a memory to one safetensors file: the store, what is programmed, and the options.

    Chips are kept whole: their cells, gains, corrections and the numbers of their device. The metadata of the file hold
    the options as JSON, the version of this package, and the device and layout of the chips; the language model stays
    outside. The file takes its name only when it is whole.

    Args:
        path: The file; its folder must exist.
        state: The memory.
        config: Options of the pipeline.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the options are not those of the store.

    Example:
        >>> import tempfile
        >>> import safetensors
        >>> from nvcim_jax import io, models, pipeline
        >>> layout = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> config = pipeline.Config(capacity=4, num_virtual=2, codec="identity")
        >>> state = pipeline.init(jax.random.key(1), models.init(jax.random.key(0), config=layout), config=config)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = io.save_state(folder + "/today.safetensors", state, config=config)
        ...     with safetensors.safe_open(path, "np") as file:
        ...         metadata = file.metadata()
        >>> json.loads(metadata["config"])["capacity"]  # the options are inside
        4
    """
    path = Path(path).expanduser()
    checks.file("path", path.parent, folder=True)
    checks.shape("state.store.filled", state.store.filled, (config.capacity,), "(config.capacity,)")
    from nvcim_jax import __version__

    device, layout = _about(state.arrays)
    metadata = {
        "format": FORMAT,
        "version": __version__,
        "device": device,
        "layout": layout,
        "config": json.dumps(dataclasses.asdict(config)),
    }
    tensors = {name: np.asarray(leaf) for name, leaf in _named({"store": state.store, "arrays": state.arrays}).items()}
    with files.replacing(path) as part:
        save_file(tensors, part, metadata=metadata)
    return path


@checked
def load_state(path: str | Path, memory: Memory, *, config: Config | None = None) -> tuple[State, Config]:
    """Read a memory that `save_state` wrote, bit for bit: the very chips, at the time they were saved.

    Args:
        path: The file.
        memory: What it was programmed into, such as `pipeline.crossbar_memory(device, arrays)`: it says what is held,
            while all numbers come from the file.
        config: Options that the file must have; None takes whatever it has.

    Returns:
        The memory, and its options.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not whole, holds something else, or belongs to another device or other options.

    Example:
        >>> import tempfile
        >>> from nvcim_jax import devices, io, models, pipeline
        >>> lm = models.init(
        ...     jax.random.key(0),
        ...     config=models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64),
        ... )
        >>> config = pipeline.Config(capacity=4, num_virtual=2, codec="identity")
        >>> memory = pipeline.crossbar_memory(devices.get("PCM"), pipeline.Preset().arrays)
        >>> state = pipeline.init(jax.random.key(1), lm, config=config, memory=memory)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = io.save_state(folder + "/today.safetensors", state, config=config)
        ...     again, options = io.load_state(path, memory)
        >>> tomorrow = pipeline.drift_state(again, 86_400.0)
        >>> tomorrow = pipeline.compensate_state(jax.random.key(2), tomorrow)
        >>> print(options == config, bool((again.arrays.values.cells.g == state.arrays.values.cells.g).all()))
        True True
    """
    found = checks.file("path", path)
    tensors, metadata = _read(found)
    if metadata.get("format") != FORMAT:
        checks.fail(found.name, "hold a memory of this package", f"holds {metadata.get('format', 'other tensors')!r}")
    saved = _config(found, metadata["config"])
    if config is not None and config != saved:
        name, given, kept = _first_difference(config, saved)
        checks.fail("config", f"be the one in {found.name}, with {name}={kept!r}", f"has {name}={given!r}")
    template = _template(found, tensors, memory, saved)
    device, layout = _about(template["arrays"])
    if metadata["device"] != device:
        checks.fail("memory", f"be on {metadata['device']!r}, as in {found.name}", f"is on {device!r}")
    if metadata["layout"] != layout:
        checks.fail("memory", f"have the layout of {found.name}, {metadata['layout']}", f"has {layout}")
    leaves, treedef = jax.tree.flatten(template)
    names = list(_named(template))
    _check_tensors(found, tensors, dict(zip(names, leaves, strict=True)))
    whole = treedef.unflatten([jnp.asarray(tensors[name]) for name in names])
    return State(whole["store"], whole["arrays"]), saved


def _about(arrays: PyTree) -> tuple[str, str]:
    """Return the name of the device that chips are on, and the options that they were written with."""
    is_chip = lambda held: isinstance(held, crossbar.Chip)  # noqa: E731
    chips = [held for held in jax.tree.leaves(arrays, is_leaf=is_chip) if is_chip(held)]
    if not chips:
        return OTHER, ""
    return chips[0].device.name, json.dumps(dataclasses.asdict(chips[0].config))


def _named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their path, such as `arrays.values.cells.g`."""
    found = jax.tree.flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def _broken(path: Path, found: str) -> NoReturn:
    checks.fail(path.name, "be a whole file of `save_state`", found, "Save the memory again.")


def _read(path: Path) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
    _broken(path, f"is not ({reason})")


def _build(kind: type, known: Any, values: Mapping[str, Any], path: Path) -> Any:
    """Return a configuration made of what JSON kept; tuples come back as lists."""
    names = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            checks.fail(path.name, f"hold options of {kind.__name__} that this version knows", f"has {name!r}")
    made = {}
    for name, value in values.items():
        default = getattr(known, name)
        if dataclasses.is_dataclass(default):
            value = _build(type(default), default, value, path)
        made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def _config(path: Path, text: str) -> Config:
    return _build(Config, Config(), json.loads(text), path)


def _first_difference(given: Any, kept: Any) -> tuple[str, Any, Any]:
    """Return the name of the first option that differs, and both of its values."""
    names = [field.name for field in dataclasses.fields(given)]
    name = next(name for name in names if getattr(given, name) != getattr(kept, name))
    a, b = getattr(given, name), getattr(kept, name)
    if not dataclasses.is_dataclass(a):
        return name, a, b
    inner, a, b = _first_difference(a, b)
    return f"{name}.{inner}", a, b


def _template(path: Path, tensors: Mapping[str, np.ndarray], memory: Memory, config: Config) -> PyTree:
    """Return the tree that the file must fill, with shapes in place of arrays."""
    if "store.prompts" not in tensors or tensors["store.prompts"].ndim != 3:
        _broken(path, "has no prompts")
    rows, slots = tensors["store.prompts"].shape[1:], config.capacity
    form: Any = jax.ShapeDtypeStruct
    store = Store(
        prompts=form((slots, *rows), jnp.float32),
        features=form((slots, config.num_keys * config.search_tokens, rows[1]), jnp.float32),
        filled=form((slots,), jnp.bool_),
        born=form((slots,), jnp.int32),
        uses=form((slots,), jnp.int32),
        block=form((slots,), jnp.int32),
        codec=_codec_form(path, tensors),
        scale_weights=form((len(config.search.scales),), jnp.float32),
        seen=Moments(form((), jnp.float32), *2 * (form((config.search_tokens, rows[1]), jnp.float32),)),
    )
    program = partial(program_store, memory=memory, config=config)
    arrays = jax.eval_shape(program, jax.eval_shape(lambda: jax.random.key(0)), store)
    return {"store": store, "arrays": arrays}


def _codec_form(path: Path, tensors: Mapping[str, np.ndarray]) -> selection.Codec:
    """Return the codec of the file, with shapes in place of arrays; before the first buffer it is the identity."""

    def leaf(name: str) -> jax.ShapeDtypeStruct:
        if name not in tensors:
            _broken(path, f"lacks {name}")
        return jax.ShapeDtypeStruct(tensors[name].shape, tensors[name].dtype)

    def layers(side: str) -> tuple[tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], ...]:
        start = f"store.codec.{side}."
        num = len({name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)})
        return tuple((leaf(f"{start}{i}.0"), leaf(f"{start}{i}.1")) for i in range(num))

    return selection.Codec(layers("encoder"), layers("decoder"), leaf("store.codec.shift"), leaf("store.codec.scale"))


def _check_tensors(path: Path, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> None:
    """Hold the tensors of a file against those that the device and the options ask for."""
    for names, fault in ((set(wanted) - set(tensors), "lacks"), (set(tensors) - set(wanted), "also holds")):
        if names:
            fix = "Load it with the memory that it was programmed into, all effects of its device included."
            checks.fail(
                "memory", f"have the state of the cells in {path.name}", f"the file {fault} {min(names)!r}", fix
            )
    for name, form in wanted.items():
        if tensors[name].shape != form.shape or tensors[name].dtype != form.dtype:
            found = f"holds {tensors[name].dtype} {tensors[name].shape}"
            checks.fail(f"{path.name}: {name}", f"be {form.dtype} {form.shape}", found, "Save the memory again.")
