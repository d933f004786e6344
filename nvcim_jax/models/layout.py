"""Where each parameter lies in the tensors of a checkpoint."""

from typing import NamedTuple

from nvcim_jax.models.config import Config
from nvcim_jax.models.families import family

__all__ = ["Place", "places"]

TABLES = ("embedding", "position_embedding")
"""Parameters that are looked up: stored as they are used."""


class Place(NamedTuple):
    """Describe where one parameter lies.

    Attributes:
        tensor: Name of the checkpoint's tensor; `{i}` stands for the layer.
        layered: Whether there is one tensor a layer.
        pieces: Runs of outputs as (start in the tensor, stop in the tensor, start in the parameter).
        outputs: Outputs of the whole tensor.
        turned: Whether the tensor is (outputs, inputs) while the parameter is (inputs, outputs).
        shape: Shape of the parameter, of one layer.
    """

    tensor: str
    layered: bool
    pieces: tuple[tuple[int, int, int], ...]
    outputs: int
    turned: bool
    shape: tuple[int, ...]

    @property
    def stem(self) -> str:
        """Name of the tensor without ".weight" or ".bias"."""
        return self.tensor.rsplit(".", 1)[0]

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        if len(self.shape) == 1:
            return (self.outputs,)
        if self.turned:
            return (self.outputs, self.shape[0])
        return (self.shape[0], self.outputs)


def _pieces(name: str, sizes: dict[str, int], heads: int) -> tuple[tuple[int, int, int], ...]:
    """Return the runs of `name` in a tensor that holds the parts `sizes`, once a head or (heads = 1) once."""
    block = sum(sizes.values()) // heads
    before = sum(size // heads for other, size in sizes.items() if list(sizes).index(other) < list(sizes).index(name))
    part = sizes[name] // heads
    return tuple((h * block + before, h * block + before + part, h * part) for h in range(heads))


def places(config: Config) -> dict[str, Place]:
    """Return where every parameter of a model lies in a checkpoint of its family.

    Args:
        config: The model.

    Returns:
        Path of the parameter ("layers.q", "embedding") -> its place.

    Example:
        >>> config = Config(vocab_size=512, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=128)
        >>> places(config)["layers.k"].tensor_shape  # outputs, inputs, as torch keeps them
        (32, 64)
    """
    known = family(config.family)
    tree = config.shapes
    flat = {name: shape for name, shape in tree.items() if name != "layers"}
    flat |= {f"layers.{name}": shape[1:] for name, shape in tree["layers"].items()}
    found = {}
    for path, shape in flat.items():
        layered = path.startswith("layers.")
        full = path.removeprefix("layers.")
        name = full.removesuffix("_bias")
        stem, suffix = known.stems[name], full.removeprefix(name) or "_weight"
        sharing = [other for other, s in known.stems.items() if s == stem]
        sizes = {other: flat[f"layers.{other}" if layered else other][-1] for other in sharing}
        if name in TABLES:
            found[path] = Place(f"{stem}.weight", False, ((0, shape[1], 0),), shape[1], False, shape)
            continue
        heads = config.num_heads if known.interleaved and len(sharing) > 1 else 1
        turned = len(shape) == 2 and not (known.inputs_first and layered)
        pieces = _pieces(name, sizes, heads)
        found[path] = Place(f"{stem}.{suffix[1:]}", layered, pieces, sum(sizes.values()), turned, shape)
    return found
