"""What is tuned in place of a model's weights: a bundle of functions, so that other adapters are other bundles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvcim_jax import checks
from nvcim_jax.models import LM, Inputs
from nvcim_jax.ops import as_partial
from nvcim_jax.signature import checked
from nvcim_jax.tuning.examples import Examples, Words

__all__ = ["Adapter", "as_adapter", "frozen"]


class Adapter(NamedTuple):
    """Say how a model is adapted, and what a memory keeps of it.

    The functions are traced. Bind numbers with `jax.tree_util.Partial` and sizes in a static configuration: then an
    adapter passes through `jax.jit` like an array, and one that is made again compiles nothing.

    Attributes:
        init: `init(key, lm, examples, weights) -> state`: where tuning starts, any tree of float arrays; `weights`
            (examples,) say how much each example counts, None for all alike.
        apply: `apply(state, lm, inputs) -> (lm, inputs)`: the model and its inputs as adapted. What is not changed is
            returned as the same object.
        rows: `rows(state) -> (rows, width)`: what a memory stores.
        from_rows: `from_rows(rows) -> state`: the way back.
    """

    init: Callable[..., Any]
    apply: Callable[[Any, LM, Inputs], tuple[LM, Inputs]]
    rows: Callable[[Any], jax.Array]
    from_rows: Callable[[jax.Array], Any]

    @property
    def details(self) -> tuple[Any, ...]:
        """Options and numbers that an adapter of this library was made with; () for one of your own."""
        found = getattr(self.apply, "args", ())
        return found if found and hasattr(found[0], "kind") else ()

    def parts(self, state: Any, lm: LM) -> dict[str, jax.Array]:
        """Return the arrays of a state by name: of `lora` "q.a", "q.b", ..., of `prefix` "keys" and "values".

        Args:
            state: The state.
            lm: The model that it belongs to.

        Raises:
            ValueError: If it belongs to another model; of an adapter of your own.
        """
        if not self.details or not hasattr(self.details[0], "parts"):
            checks.fail("adapter", "be one of this library that packs several arrays", "is not", "Look at the state.")
        return self.details[0].parts(state, lm.config)

    def rows_shape(self, lm: LM) -> tuple[int, int]:
        """Return the shape of what a memory stores, without computing anything.

        Example:
            >>> from nvcim_jax import models, tuning
            >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
            >>> tuning.prompt(8).rows_shape(models.init(jax.random.key(0), config=config))
            (8, 32)
        """
        one, width = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, lm.config.width), jnp.float32)
        examples = Examples(one, one, one, Words(width, width, jnp.ones((), jnp.float32), jnp.zeros(1, jnp.int32)))
        return jax.eval_shape(_first_rows, as_adapter(self), jax.random.key(0), lm, examples).shape


@checked
def as_adapter(adapter: Adapter) -> Adapter:
    """Return an adapter that is an argument of `jax.jit`, whatever functions it is made of.

    Args:
        adapter: Any adapter; its functions may be plain ones.

    Example:
        >>> own = frozen()._replace(from_rows=lambda rows: rows)  # a plain function is no tree of arrays
        >>> print(jax.jit(lambda adapter, rows: adapter.from_rows(2.0 * rows))(as_adapter(own), jnp.ones(2)))
        [2. 2.]
    """
    return Adapter(*map(as_partial, adapter))


def _nothing(key: jax.Array, lm: LM, examples: Examples, weights: Any = None) -> tuple[()]:
    del key, lm, examples, weights
    return ()


def _unchanged(state: Any, lm: LM, inputs: Inputs) -> tuple[LM, Inputs]:
    del state
    return lm, inputs


def _no_rows(state: Any) -> jax.Array:
    del state
    return jnp.zeros((0, 0), jnp.float32)


def _forget(rows: jax.Array) -> tuple[()]:
    del rows
    return ()


def frozen() -> Adapter:
    """Return the adapter that changes nothing: the model by itself.

    Example:
        >>> from nvcim_jax import models, tuning
        >>> config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=64)
        >>> lm = models.init(jax.random.key(0), config=config)
        >>> found, _ = tuning.frozen().apply((), lm, models.Inputs(jnp.zeros((1, 2, 32))))
        >>> found is lm, tuning.frozen().rows_shape(lm)  # nothing to store
        (True, (0, 0))
    """
    return as_adapter(Adapter(_nothing, _unchanged, _no_rows, _forget))


def _first_rows(adapter: Adapter, key: jax.Array, lm: LM, examples: Examples) -> jax.Array:
    return adapter.rows(adapter.init(key, lm, examples, None))
