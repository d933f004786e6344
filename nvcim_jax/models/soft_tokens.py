"""Soft tokens that hold labelled examples, in the way a language model was taught to read them, if it was."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["SoftTokens", "soft_tokens"]


@checks.frozen_config
class SoftTokens:
    """Say which channels of a soft token hold what. A checkpoint names its own under "soft_tokens" in config.json.

    Attributes:
        label: First channel, and the one after the last, of the label's part; None: all channels.
        examples: The same of the part of the examples.
        label_decay: Weight of each further token of a label relative to the token before it, so that the order stays
            readable, in (0, 1].
        size: Root mean square of a soft token's entries, > 0; None: that of the model's embeddings.

    Raises:
        ValueError: If a range is empty, or a number is out of range.
    """

    label: tuple[int, int] | None = None
    examples: tuple[int, int] | None = None
    label_decay: float = 1.0
    size: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("label", "examples"):
            found = getattr(self, name)
            if found is not None and (len(found) != 2 or not 0 <= found[0] < found[1]):
                checks.fail(name, "be a range of channels such as (0, 128)", f"is {found!r}")
        checks.number("label_decay", self.label_decay, low=1e-6, high=1.0)
        if self.size is not None:
            checks.number("size", self.size, low=1e-6)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def _part(x: jax.Array, channels: tuple[int, int] | None) -> jax.Array:
    """Return the direction of the leading entries of x in some channels, zero elsewhere."""
    width = x.shape[-1]
    first, last = (0, width) if channels is None else channels
    rest = [(0, 0)] * (x.ndim - 1)
    return jnp.pad(_unit(x[..., : last - first]), [*rest, (first, width - last)])


@checked
def soft_tokens(
    examples: Float[Array, "*slots width"],
    labels: Float[Array, "*slots width"],
    shares: Float[Array, "*slots 2"] | None = None,
    *,
    layout: SoftTokens,
    size: Any = None,
) -> Float[Array, "*slots width"]:
    """Return soft tokens that hold what some examples are about, and their label.

    `s = size sqrt(width) unit(a E(unit(x)) + b L(unit(y)))`: x the sum of the embeddings of the examples' words, y that
    of the label's, of which E and L keep the leading entries and put them into their channels.

    Args:
        examples: x (..., width).
        labels: y (..., width).
        shares: Amounts a and b (..., 2); equal by default.
        layout: The channels.
        size: Root mean square of the entries where `layout` names none; 1 by default.

    Returns:
        (..., width).

    Raises:
        ValueError: If the channels do not fit the width.

    Example:
        >>> layout = SoftTokens(label=(0, 2), examples=(3, 4), size=0.5)
        >>> soft = soft_tokens(jnp.array([3.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 0.0, 0.0]), layout=layout)
        >>> [round(v, 3) for v in soft.tolist()]  # the label's direction in channels 0 and 1, the examples' in 3
        [0.0, 0.707, 0.0, 0.707]
    """
    width = examples.shape[-1]
    most = max((found[1] for found in (layout.label, layout.examples) if found), default=width)
    if most > width:
        checks.fail(
            "layout", f"name channels below {width}", f"names channel {most - 1}", "It belongs to another model."
        )
    a, b = (1.0, 1.0) if shares is None else (shares[..., :1], shares[..., 1:])
    mixed = a * _part(examples, layout.examples) + b * _part(labels, layout.label)
    chosen = layout.size if layout.size is not None else 1.0 if size is None else size
    return jnp.asarray(chosen * width**0.5 * _unit(mixed))
