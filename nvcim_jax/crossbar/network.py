"""A network on chips: chosen leaves of any tree of parameters become memory cells that multiply."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray

from nvcim_jax import checks, devices, ops
from nvcim_jax.crossbar.chip import Chip, program
from nvcim_jax.crossbar.config import Config, Converters
from nvcim_jax.crossbar.converters import BOUND_TO_RANGE
from nvcim_jax.crossbar.product import matmul
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["Kernel", "OnChip", "key_bits", "leaves_on_chips", "map_on_chips", "on_chip", "path_number", "reread"]


class Kernel(NamedTuple):
    """How the axes of a leaf lie on a chip.

    Attributes:
        rows: Axes that meet the inputs, in the order in which they lie on the word lines; the others are the outputs.
            Of a convolution: the spatial axes, then that of the inputs.
        stacked: Whether axis 0 is a stack (layers that are scanned or indexed), a chip each; `rows` then count from
            the axis after it.
    """

    rows: tuple[int, ...]
    stacked: bool = False


class OnChip(ops.Weight):
    """A weight that lies on a chip; it takes the place of an array among the parameters of a network.

    Products and convolutions with it are `matmul` with the chip. Every product that one evaluation makes with it is
    one and the same read, that of its key; `reread` gives another.

    Args:
        chip: The chip; of a stack, all its arrays have a leading axis.
        key: Key of the read; of a stack, one for each layer.
        kernel: Shape of one weight; None for (rows, cols) of the chip.
        rows: Axes of it that lie on the word lines, in their order.
        seen_as: dtype that the network sees.
        path: Where the leaf stands in the tree, for messages and keys.
        converters: Converters of the reads, where they differ from those of the chip.
        watch: Called on the host with (path, key of the read, inputs) of every product; None for nobody.
    """

    chip: Chip
    key: jax.Array
    kernel: tuple[int, ...] = eqx.field(static=True)
    rows: tuple[int, ...] = eqx.field(static=True)
    seen_as: Any = eqx.field(static=True)
    path: str = eqx.field(static=True)
    converters: Converters | None = eqx.field(static=True)
    watch: Callable[[str, jax.Array, jax.Array], None] | None = eqx.field(static=True)

    def __init__(
        self,
        chip: Chip,
        key: jax.Array,
        *,
        kernel: tuple[int, ...] | None = None,
        rows: tuple[int, ...] = (0,),
        seen_as: Any = jnp.float32,
        path: str = "",
        converters: Converters | None = None,
        watch: Callable[[str, jax.Array, jax.Array], None] | None = None,
    ) -> None:
        self.chip, self.key = chip, key
        self.kernel = (chip.num_rows, chip.scale.shape[-1]) if kernel is None else tuple(kernel)
        self.rows = tuple(rows)
        self.seen_as, self.path, self.converters = jnp.dtype(seen_as), path, converters
        self.watch = watch

    def aval(self) -> Any:
        """Return the shape and dtype of the array that it stands for."""
        stack = self.chip.scale.shape[:-1]
        return ShapedArray((*stack, *self.kernel), self.seen_as)

    @property
    def label(self) -> str:
        """Where the leaf stands in its tree."""
        return self.path

    @property
    def num_stacked(self) -> int:
        """How many leading axes count chips."""
        return self.chip.scale.ndim - 1


def _others(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(ndim) if axis not in axes)


def _times(w: OnChip, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Multiply inputs (..., *axes) with a chip."""
    if sorted(axes) != sorted(w.rows):
        found = f"contracted along {_axes(axes)}, while it was programmed with its inputs along {_axes(w.rows)}"
        ops.refuse(w, found, "Program it so by on_chip(..., rows=...) or by the `Kernel` that select= returns.")
    lead = x.ndim - len(axes)
    x = jnp.transpose(x, (*range(lead), *(lead + axes.index(row) for row in w.rows)))
    x = x.reshape(*x.shape[:lead], -1)
    if w.watch is not None:
        jax.debug.callback(functools.partial(w.watch, w.path), key_bits(w.key), x)
    y, _ = matmul(w.key, x, w.chip, converters=w.converters)
    outputs = [w.kernel[axis] for axis in _others(w.rows, len(w.kernel))]
    return y.reshape(*x.shape[:lead], *outputs).astype(x.dtype)


def key_bits(key: jax.Array) -> jax.Array:
    """Return the numbers that a key is made of."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"the axes {tuple(axes)}"


ops.register_weight(OnChip, _times, lambda w, dtype: dataclasses.replace(w, seen_as=dtype))


def _matrices_and_kernels(path: str, leaf: Any) -> bool:
    """Choose floating leaves of two axes, or of the four of a convolution of images."""
    del path
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim in (2, 4)


@checked
def on_chip(
    key: Key,
    params: PyTree,
    device: devices.Device,
    *,
    config: Config,
    select: Callable[[str, Any], bool | Kernel] = _matrices_and_kernels,
    rows: int = 0,
    write: Callable[..., Chip] = program,
    ranges: PyTree | None = None,
) -> PyTree:
    """Put the weights of a network on chips: return its parameters with the chosen leaves replaced by `OnChip`.

    The network is then called through Quax, `quax.quaxify(model.apply)(chips, x)`, inside jit, grad, vmap and scan;
    the library's own language models take such a tree as it is. A chosen leaf that is used in anything but a product
    or a convolution is refused by name; nothing becomes a dense array unasked.

    Each leaf has a chip and a read of its own. Their keys come from its path in the tree alone, such as
    "layers/q" (`jax.tree_util.keystr`), so that they do not depend on which other leaves are chosen or on their order;
    each layer of a stack folds in its number. Gradients pass through the programming to the weights, for noise-aware
    training. All products of one evaluation with a leaf are one read: a layer that a loop uses again meets the same
    read noise. `reread` draws new reads without programming anew.

    Args:
        key: Key of the chips; another key is another set of chips.
        params: Any tree of arrays; leaves that are no arrays stay as they are.
        device: The memory cells.
        config: Options of the crossbars.
        select: `select(path, leaf)`: whether a leaf goes on a chip, and how. True: two axes are a matrix, three a stack
            of matrices, four a convolution of images. Anything else is said by a `Kernel`: `Kernel(rows=(0, 1))` is a
            dense kernel with two axes of inputs, or a convolution of sequences. By default: floating leaves
            of two and four axes.
        rows: Axis of the inputs in a kernel of which `select` says no more than True: 0 as in Flax,
            (inputs, outputs) and (height, width, inputs, outputs); 1 as in Equinox, (outputs, inputs) and
            (outputs, inputs, height, width).
        write: What programs a matrix, `write(key, weights, device, config=config)`; `functools.partial(program,
            adc_max=8.0)` gives every chip a fixed range.
        ranges: A tree from `calibrate_network`, whose calibrated ranges these chips take over, path by path: of the
            same layout and kind of converters, whose bits may differ.

    Returns:
        The tree, with an `OnChip` where a leaf was chosen.

    Raises:
        ValueError: If no leaf is chosen, or one that cannot lie on a chip, or ranges are of other options; the message
            names it.

    Example:
        >>> import jax, jax.numpy as jnp, quax
        >>> from nvcim_jax import crossbar, devices
        >>> def network(params, x):
        ...     return jnp.tanh(x @ params["first"]) @ params["second"]
        >>> first, second = jax.random.normal(jax.random.key(0), (2, 30, 30))
        >>> params = {"first": first, "second": second}
        >>> config, x = crossbar.Config(rows=16), jnp.ones((5, 30))
        >>> chips = crossbar.on_chip(jax.random.key(1), params, devices.get("ideal"), config=config)
        >>> error = jnp.abs(quax.quaxify(network)(chips, x) - network(params, x)).max()
        >>> print(f"{error:.4f}")
        0.0000
    """
    if rows not in (0, 1):
        checks.fail("rows", "be 0 (Flax) or 1 (Equinox), the axis of the inputs", f"is {rows!r}")
    found, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_weight)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
    kernels = [_kernel(path, leaf, select, rows) for path, (_, leaf) in zip(paths, found, strict=True)]
    _check_chosen(paths, [jax.tree_util.keystr(path) for path, _ in found], kernels)
    known = {} if ranges is None else {leaf.path: leaf for leaf in leaves_on_chips(ranges)}
    leaves = [
        leaf
        if kernel is None
        else _with_ranges(_put(key, path, leaf, kernel, lambda k, w: write(k, w, device, config=config)), known)
        for path, (_, leaf), kernel in zip(paths, found, kernels, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


@checked
def reread(key: Key, params: PyTree, *, converters: Converters | None = None) -> PyTree:
    """Give every weight on a chip another read, without programming anew: clock 3 of the noise.

    Args:
        key: Key of the reads; each leaf's comes from its path, as in `on_chip`.
        params: A tree from `on_chip`.
        converters: Converters of these reads; None for those that the chips were made with.

    Returns:
        The tree, with the same chips.

    Raises:
        ValueError: If no leaf is on a chip.

    Example:
        >>> import jax, jax.numpy as jnp, quax
        >>> from nvcim_jax import crossbar, devices
        >>> device = devices.get("PCM")
        >>> params = {"w": jax.random.normal(jax.random.key(0), (64, 8))}
        >>> chips = crossbar.on_chip(jax.random.key(1), params, device, config=crossbar.Config())
        >>> read = quax.quaxify(lambda params: jnp.ones(64) @ params["w"])
        >>> again = crossbar.reread(jax.random.key(2), chips)
        >>> bool((chips["w"].chip.cells.g == again["w"].chip.cells.g).all()), bool((read(chips) == read(again)).any())
        (True, False)
    """

    def one(leaf: OnChip) -> OnChip:
        own = jax.random.fold_in(key, path_number(leaf.path))
        own = _layer_keys(own, leaf.chip.scale.shape[0]) if leaf.num_stacked else own
        return dataclasses.replace(leaf, key=own, converters=converters)

    leaves_on_chips(params)
    return map_on_chips(one, params)


def map_on_chips(fn: Callable[[OnChip], OnChip], params: PyTree) -> PyTree:
    """Apply a function to the weights on chips."""
    return jax.tree.map(lambda leaf: fn(leaf) if isinstance(leaf, OnChip) else leaf, params, is_leaf=_is_weight)


def leaves_on_chips(params: PyTree) -> list[OnChip]:
    """Return the weights on chips; there must be some."""
    found = [leaf for leaf in jax.tree.leaves(params, is_leaf=_is_weight) if isinstance(leaf, OnChip)]
    if not found:
        checks.fail("params", "hold weights on chips", "holds none", "Make them with crossbar.on_chip.")
    return found


def _with_ranges(leaf: OnChip, known: dict[str, OnChip]) -> OnChip:
    """Take over the ranges of a chip that was calibrated; those that are fixed were given, and stay."""
    if not known:
        return leaf
    if leaf.path not in known:
        checks.fail("ranges", f"hold {leaf.path!r}", f"holds {', '.join(known)}", "Calibrate the same selection.")
    other, config = known[leaf.path], leaf.chip.config
    if (leaf.kernel, leaf.rows, leaf.shape) != (other.kernel, other.rows, other.shape):
        found = f"holds one of {other.shape} with its inputs along {_axes(other.rows)}"
        wanted = f"hold {leaf.path!r} of {leaf.shape} with its inputs along {_axes(leaf.rows)}"
        checks.fail("ranges", wanted, found, "Calibrate the same selection.")
    _check_made_for(config, other.chip.config)
    taken = {"dac_max": "dac_range", "adc_range": "adc_range"}
    ranges = {name: getattr(other.chip, name) for name, kind in taken.items() if getattr(config, kind) == "calibrated"}
    return dataclasses.replace(leaf, chip=dataclasses.replace(leaf.chip, **ranges))  # type: ignore[arg-type]


def _check_made_for(config: Config, other: Config) -> None:
    """Check that ranges found with other options are those of these: of one layout, and one kind of converter."""
    of_read = {field.name for field in dataclasses.fields(Converters)}  # type: ignore[arg-type]
    names = [field.name for field in dataclasses.fields(Config) if field.name not in of_read]  # type: ignore[arg-type]
    for kind, bound in BOUND_TO_RANGE.items():
        names += bound if getattr(config, f"{kind}_range") in ("fixed", "calibrated") else bound[:1]
    for name in names:
        wanted, found = getattr(config, name), getattr(other, name)
        if wanted != found:
            fix = "Calibrate with the same Config."
            checks.fail("ranges", f"have {name}={wanted!r}", f"has {name}={found!r}", fix)


def _is_weight(node: Any) -> bool:
    return isinstance(node, ops.Weight)


def path_number(path: str) -> int:
    """Return what a path folds into a key: the same in every process."""
    return zlib.crc32(path.encode())


def _layer_keys(key: Key, num_layers: int) -> jax.Array:
    return jax.vmap(lambda layer: jax.random.fold_in(key, layer))(jnp.arange(num_layers))


def _kernel(path: str, leaf: Any, select: Callable[[str, Any], Any], rows: int) -> Kernel | None:
    """Return how a leaf lies on a chip; None for one that stays."""
    if not isinstance(leaf, jax.Array | np.ndarray | ops.Weight):
        return None
    chosen = select(path, leaf)
    name = f"params[{path!r}]"
    if not isinstance(chosen, bool | np.bool_ | Kernel):
        found = f"returns {chosen!r} for {path!r}"
        checks.fail("select", "return True, False or a crossbar.Kernel", found)
    if not isinstance(chosen, Kernel) and not chosen:
        return None
    leave = f"Leave it out: select=lambda path, leaf: path != {path!r} and ..."
    if isinstance(leaf, ops.Weight):
        fix = f"{leave} If the model is packed, load it with dtype=jnp.float32."
        checks.fail(name, "be an array to go on a chip", f"is a {type(leaf).__name__}", fix)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        checks.fail(name, "be of a floating dtype to go on a chip", f"is {leaf.dtype}", leave)
    kernel = chosen if isinstance(chosen, Kernel) else _usual(name, leaf, rows)
    ndim = leaf.ndim - kernel.stacked
    axes = set(kernel.rows)
    if not axes or len(axes) < len(kernel.rows) or not axes < set(range(ndim)):
        stack = " after the stack's" if kernel.stacked else ""
        expected = f"name some but not all of the {ndim} axes{stack}, each once, as the rows of {path!r}"
        checks.fail("select", expected, f"returns rows={kernel.rows}")
    checks.finite(name, leaf)
    return kernel


def _usual(name: str, leaf: Any, rows: int) -> Kernel:
    """Return how a leaf lies of which nothing more is said."""
    if leaf.ndim not in (2, 3, 4):
        checks.fail(
            name,
            "have two axes (a matrix), three (a stack of matrices) or four (a convolution) to go on a chip",
            f"has shape {leaf.shape}",
            "Return crossbar.Kernel(rows=...) from select=, the axes that meet the inputs, or False to leave it out.",
        )
    if leaf.ndim == 4:
        return Kernel((0, 1, 2) if rows == 0 else (2, 3, 1))
    return Kernel((rows,), stacked=leaf.ndim == 3)


def _check_chosen(paths: list[str], places: list[str], kernels: list[Kernel | None]) -> None:
    """Check that some leaf is chosen, and that no two have one key."""
    chosen = [(path, place) for path, place, kernel in zip(paths, places, kernels, strict=True) if kernel is not None]
    if not chosen:
        checks.fail("select", "choose a leaf", "chooses none", f"The leaves are: {', '.join(paths) or 'none'}.")
    seen: dict[int, tuple[str, str]] = {}
    for path, place in chosen:
        other, there = seen.setdefault(path_number(path), (path, place))
        if other != path:
            checks.fail("params", "have names of different checksums", f"has {other!r} and {path!r}", "Rename one.")
        if there != place:
            found = f"has {path!r} at {there} and at {place}"
            checks.fail("params", "have a path of its own for each leaf", found, "Rename one.")


def _put(key: Key, path: str, leaf: Any, kernel: Kernel, write: Callable[[Key, jax.Array], Chip]) -> OnChip:
    """Program one leaf."""
    own = jax.random.fold_in(key, path_number(path))
    shape = tuple(leaf.shape[int(kernel.stacked) :])
    cols = _others(kernel.rows, len(shape))
    height = math.prod(shape[row] for row in kernel.rows)

    def one(key: Key, w: jax.Array) -> tuple[Chip, jax.Array]:
        write_key, read_key = jax.random.split(key)
        matrix = jnp.transpose(w, (*kernel.rows, *cols)).reshape(height, -1)
        return write(write_key, matrix), read_key

    weights = jnp.asarray(leaf).astype(jnp.float32)
    chip, read = jax.vmap(one)(_layer_keys(own, leaf.shape[0]), weights) if kernel.stacked else one(own, weights)
    return OnChip(chip, read, kernel=shape, rows=kernel.rows, seen_as=leaf.dtype, path=path)
