"""Keys and values before every text, in every block: prefix tuning, that is P-tuning v2."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from nvcim_jax import checks, models
from nvcim_jax.models import LM, Config, Inputs, KeysValues
from nvcim_jax.signature import checked
from nvcim_jax.tuning.adapter import Adapter
from nvcim_jax.tuning.examples import Examples
from nvcim_jax.tuning.rows import itself, pack, unpack
from nvcim_jax.tuning.starts import start_text, start_vocabulary
from nvcim_jax.types import Key

__all__ = ["PrefixOptions", "prefix"]

STARTS = ("text", "vocabulary", "random")


@checks.frozen_config
class PrefixOptions:
    """Static options of `prefix`, under the same names."""

    kind: ClassVar[str] = "prefix"
    num_virtual: int = 8
    start: str = "text"

    def __post_init__(self) -> None:
        """Check the number and the name."""
        checks.integer("num_virtual", self.num_virtual)
        checks.choice("start", self.start, STARTS)

    def shapes(self, config: Config) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of a state: keys and values."""
        shape = (config.num_layers, config.kv_heads, self.num_virtual, config.head_width)
        return {"keys": shape, "values": shape}

    def parts(self, state: jax.Array, config: Config) -> dict[str, jax.Array]:
        """Return the arrays of a state by name."""
        return unpack(state, self.shapes(config), config)

    def pack(self, parts: Mapping[str, Any], config: Config) -> jax.Array:
        """Return the state that holds some arrays."""
        return pack(parts, self.shapes(config), config)


def _init(options: PrefixOptions, key: Key, lm: LM, examples: Examples, weights: Any = None) -> jax.Array:
    shapes = options.shapes(lm.config)
    if options.start == "random":
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        return options.pack({n: jax.random.normal(keys[n], shape) for n, shape in shapes.items()}, lm.config)
    counts = jnp.ones(len(examples.ids), jnp.float32) if weights is None else weights
    start = start_text if options.start == "text" else start_vocabulary
    rows = start(key, lm, examples, counts, options.num_virtual)
    _, info = models.hidden(lm, rows, keep_keys_values=True)
    assert info.keys_values is not None
    return options.pack(info.keys_values._asdict(), lm.config)


def _apply(options: PrefixOptions, state: jax.Array, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    if inputs.prefix is not None:
        checks.fail("inputs.prefix", "be None before a prefix is put there", "is given")
    parts = options.parts(state, lm.config)
    return lm, inputs._replace(prefix=KeysValues(parts["keys"][:, None], parts["values"][:, None]))


@checked
def prefix(num_virtual: int = 8, start: str = "text") -> Adapter:
    """Return the adapter of prefix tuning (P-tuning v2): keys and values before every text, in every block.

    The keys are those after the rotary embedding, at positions 0, 1, ...; texts begin behind them. A state holds them
    one after the other as rows of the model's width: what a memory stores; `adapter.parts(state, lm)` gives both.

    Args:
        num_virtual: Tokens of the prefix.
        start: Where it starts: keys and values of the `text` of the example that counts most, of tokens drawn from the
            `vocabulary`, or `random` numbers from N(0, 1) (PEFT's start, which needs far more steps).

    Returns:
        The adapter; two with the same arguments are equal to `jax.jit`.

    Raises:
        ValueError: If there is no such start, or the number is not positive.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64)
        >>> tuning.prefix(3).rows_shape(models.init(jax.random.key(0), config=config))  # 2 x 2 layers x 3
        (12, 32)

    References:
        X. L. Li and P. Liang, "Prefix-tuning", arXiv:2101.00190; X. Liu et al., "P-tuning v2", arXiv:2110.07602.
    """
    options = PrefixOptions(num_virtual=num_virtual, start=start)
    return Adapter(Partial(_init, options), Partial(_apply, options), Partial(itself), Partial(itself))
