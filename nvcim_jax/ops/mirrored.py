"""Keys whose draws are the mirror image of another key's draws, for antithetic pairs."""

import jax
from jax.extend.random import define_prng_impl, threefry_prng_impl

from nvcim_jax import checks
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["is_mirrored", "mirror", "original"]

_THREEFRY = "threefry2x32"


def _mirrored_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    return ~threefry_prng_impl.random_bits(key, bit_width, shape)


# Splits and folds are those of threefry, so that a mirrored key leads to the mirror images of all later keys.
_MIRRORED = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape,
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    fold_in=threefry_prng_impl.fold_in,
    random_bits=_mirrored_bits,
    name="mirrored_threefry",
    tag="mir",
)


@checked
def mirror(key: Key) -> Key:
    """Return the key whose draws are the mirror image of those of `key`, also after splits and folds.

    Under it `ops.normal` and `ops.normal_pair` give -z and `ops.centred_uniform` gives -u, bit for bit, with either
    generator. The bits of `jax.random` become their complement: a uniform number u becomes 1 - u and a normal number
    z = F^-1(u) becomes -z up to rounding; what is not monotone in its bits is merely another valid draw.

    Args:
        key: A threefry key, JAX's default; mirrored twice it is itself again.

    Returns:
        The mirrored key.

    Raises:
        ValueError: If the key is of another generator.

    Example:
        >>> from nvcim_jax import ops
        >>> key = jax.random.key(0)
        >>> print(f"{ops.normal(key, ()):.4f} {ops.normal(ops.mirror(key), ()):.4f}")
        0.7805 -0.7805
    """
    if is_mirrored(key):
        return original(key)
    if str(jax.random.key_impl(key)) != _THREEFRY:
        fix = f"Make it with jax.random.key(seed, impl={_THREEFRY!r})."
        checks.fail("key", "be a threefry key", f"is of {jax.random.key_impl(key)}", fix)
    return jax.random.wrap_key_data(jax.random.key_data(jax.random.clone(key)), impl=_MIRRORED)  # type: ignore[arg-type]


def is_mirrored(key: Key) -> bool:
    """Return whether a key comes from `mirror`; known without its value, also inside `jax.jit`."""
    found = jax.random.key_impl(key)  # a name for the generators of JAX, else an object
    return not isinstance(found, str) and bool(found == _MIRRORED)


def original(key: Key) -> Key:
    """Return the key that a mirrored key is the image of; any other key as it is."""
    if not is_mirrored(key):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(jax.random.clone(key)), impl=_THREEFRY)
