"""Standard normal and uniform numbers from a key, by a generator that the caller names.

Two generators are known:

- `counter`: a keyed 32-bit multiply-xorshift hash of the position, and the Box-Muller transform with its logarithm,
  sine and cosine written as polynomials, so that XLA vectorises the whole of it in one loop. On a CPU it is several
  times faster than `threefry` (`experiments/benchmarks/crossbar.py` prints both).
- `threefry`: `jax.random.normal`, JAX's own generator; slower, and the one to choose where a result must rest on a
  generator with a published analysis.

Both are pure functions of (key, shape, position): the same numbers on every mesh and in every chunk, and on every
backend up to float rounding. Under a mirrored key (`ops.mirror`) both give the negated numbers, bit for bit. All of it
is tested in `tests/ops/test_random.py`.
"""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from nvcim_jax import checks
from nvcim_jax.ops.mirrored import is_mirrored, original
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["RNGS", "Rng", "centred_uniform", "draw_batch", "normal", "normal_at", "normal_pair"]

RNGS = ("counter", "threefry")
Rng: TypeAlias = str
"""One of `RNGS`; a name that is not raises where it is used."""


@checked
def normal(key: Key, shape: tuple[int, ...], *, rng: Rng = "counter") -> Float[Array, "..."]:
    """Draw independent standard normal numbers, z ~ N(0, 1), float32.

    Args:
        key: A JAX random key, consumed; a mirrored one gives -z.
        shape: Shape of the result; at most 2**32 elements.
        rng: Name of the generator.

    Returns:
        Array of `shape`.

    Raises:
        ValueError: If the generator is unknown.

    Example:
        >>> z = normal(jax.random.key(0), (1_000_000,))
        >>> print(f"mean {abs(float(z.mean())):.2f} (0), variance {float(z.var()):.2f} (1)")
        mean 0.00 (0), variance 1.00 (1)
    """
    checks.choice("rng", rng, RNGS)
    size = math.prod(shape)
    checks.integer("the size of shape", size, low=0, high=2**32)
    if is_mirrored(key):
        return -normal(original(key), shape, rng=rng)
    if rng == "threefry" or size == 0:
        return jax.random.normal(key, shape, jnp.float32)
    if len(shape) > 1 and shape[0] == 2:
        return jnp.stack(normal_pair(key, shape[1:], rng=rng))
    # Only the cosines: joining cosines and sines along one axis would cost more than it saves, since a CPU cannot
    # vectorise a loop that branches on the position.
    return _box_muller(key, size)[0].reshape(shape)


@checked
def normal_at(key: Key, *positions: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """Return some of the numbers that `normal` draws, without drawing the others.

    Each number depends on the key and its position alone, so that an array that is too large to be drawn whole comes
    piece by piece, where it is used.

    Args:
        key: A JAX random key, consumed; a mirrored one gives the negated numbers.
        *positions: Where the numbers stand, any shape; or several arrays that are broadcast and added, such as
            (rows, 1) and (1, columns), which a compiler cannot take out of a loop over keys as one large array.

    Returns:
        `normal(key, (size,))[position]` of the generator `counter`, whatever the size.

    Raises:
        ValueError: If no position is given.

    Example:
        >>> z = normal(jax.random.key(0), (1000,))
        >>> bool((normal_at(jax.random.key(0), jnp.arange(500, 502, dtype=jnp.uint32)) == z[500:502]).all())
        True
    """
    if not positions:
        checks.fail("positions", "hold one array at least", "is empty")
    if is_mirrored(key):
        return -normal_at(original(key), *positions)
    words = jax.random.bits(key, (4,), jnp.uint32)
    return _box_muller_at(words, functools.reduce(jnp.add, positions[1:], positions[0] + words[0]))[0]


@checked
def normal_pair(
    key: Key, shape: tuple[int, ...], *, rng: Rng = "counter"
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Draw two independent arrays of standard normal numbers, as `normal` of shape (2, *shape) would hold them.

    The two halves come from one Box-Muller transform, so a pair costs little more than a single number.

    Args:
        key: A JAX random key, consumed; a mirrored one gives the negated numbers.
        shape: Shape of each array.
        rng: Name of the generator.

    Returns:
        Two arrays of `shape`, equal to `normal(key, (2, *shape), rng=rng)`.

    Raises:
        ValueError: If the generator is unknown.

    Example:
        >>> first, second = normal_pair(jax.random.key(0), (3,))
        >>> bool((jnp.stack([first, second]) == normal(jax.random.key(0), (2, 3))).all())
        True
    """
    checks.choice("rng", rng, RNGS)
    if is_mirrored(key):
        first, second = normal_pair(original(key), shape, rng=rng)
        return -first, -second
    if rng == "threefry":
        both = jax.random.normal(key, (2, *shape), jnp.float32)
        return both[0], both[1]
    first, second = _box_muller(key, math.prod(shape))
    return first.reshape(shape), second.reshape(shape)


@checked
def centred_uniform(key: Key, shape: tuple[int, ...], *, rng: Rng = "counter") -> Float[Array, "..."]:
    """Draw independent uniform numbers around zero, u ~ U(-1/2, 1/2), float32.

    u = (k + 1/2) / 2**23 - 1/2 with k one of 2**23 equally likely integers: exactly symmetric, never at an end.

    Args:
        key: A JAX random key, consumed; a mirrored one gives -u.
        shape: Shape of the result; at most 2**32 elements.
        rng: Name of the generator.

    Returns:
        Array of `shape`.

    Raises:
        ValueError: If the generator is unknown.

    Example:
        >>> u = centred_uniform(jax.random.key(0), (1_000_000,))
        >>> print(f"mean {abs(float(u.mean())):.2f} (0), 12 variance {12 * float(u.var()):.2f} (1)")
        mean 0.00 (0), 12 variance 1.00 (1)
    """
    checks.choice("rng", rng, RNGS)
    size = math.prod(shape)
    checks.integer("the size of shape", size, low=0, high=2**32)
    if is_mirrored(key):
        return -centred_uniform(original(key), shape, rng=rng)
    if rng == "threefry" or size == 0:
        bits = jax.random.bits(key, shape, jnp.uint32)
    else:
        bits = _uniform_bits(key, size).reshape(shape)
    return (bits >> 9).astype(jnp.int32).astype(jnp.float32) * 2**-23 + (2**-24 - 0.5)


@functools.partial(jax.jit, static_argnames="size", inline=True)
def _uniform_bits(key: Key, size: int) -> UInt32[Array, " size"]:
    """Return 32 random bits a position: two keyed rounds of mixing, as for the radius of a normal number."""
    words = jax.random.bits(key, (2,), jnp.uint32)
    return _mix(_mix(lax.iota(jnp.uint32, size) + words[0]) ^ words[1])


# Compiled once for a number of pairs where it is called by itself; inside another jit it is inlined.
@functools.partial(jax.jit, static_argnames="num_pairs", inline=True)
def _box_muller(key: Key, num_pairs: int) -> tuple[Float[Array, " pairs"], Float[Array, " pairs"]]:
    """Return r cos(a) and r sin(a) with r = sqrt(-2 ln u), u and a uniform and independent."""
    words = jax.random.bits(key, (4,), jnp.uint32)
    return _box_muller_at(words, lax.iota(jnp.uint32, num_pairs) + words[0])


def _box_muller_at(
    words: UInt32[Array, " 4"], started: UInt32[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return the pairs at some positions, to which the first of four random words was added."""
    # Two keyed rounds for the radius; the angle's round is keyed once more, so that no fixed map ties it to the radius.
    radius_bits = _mix(_mix(started) ^ words[1])
    angle_bits = _mix(_mix(radius_bits + words[2]) ^ words[3])
    # 31 bits: u in [2**-32, 1], so that the tail reaches 6.6 standard deviations
    u = lax.shift_right_logical(radius_bits, jnp.uint32(1)).astype(jnp.int32).astype(jnp.float32)
    u = u * jnp.float32(2**-31) + jnp.float32(2**-32)
    radius = jnp.sqrt(-2.0 * _log(u))
    cosine, sine = _cos_sin(angle_bits)
    return radius * cosine, radius * sine


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """Return a bijective scrambling of 32 bits (C. Wellons' "lowbias32", public domain, bias 0.17)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _log(u: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ln(u) for u in (0, 1], to float32 precision; coefficients of Cephes' logf (S. L. Moshier)."""
    bits = lax.bitcast_convert_type(u, jnp.int32)
    exponent = (bits - 0x3F3504F3) >> 23
    x = lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1.0  # in [sqrt(1/2) - 1, sqrt(2) - 1)
    polynomial = jnp.full_like(x, 7.0376836292e-2)
    for coefficient in (
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ):
        polynomial = polynomial * x + coefficient
    square = x * x
    # never above zero, whatever the rounding near u = 1: its square root is taken
    natural = x + (x * square * polynomial - 0.5 * square) + exponent.astype(jnp.float32) * math.log(2.0)
    return jnp.minimum(natural, 0.0)


def _cos_sin(bits: UInt32[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return cos and sin of an angle uniform on the circle: two bits choose the quadrant, 23 the angle within it."""
    quadrant = bits >> 30
    within = ((bits << 2) >> 9).astype(jnp.int32).astype(jnp.float32)
    angle = (within * 2**-23 + (2**-24 - 0.5)) * (math.pi / 2)  # in (-pi/4, pi/4)
    square = angle * angle
    sine = angle * (1.0 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040))))
    cosine = 1.0 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square * (1 / 40320))))
    swap = (quadrant & 1) == 1
    return (
        _flip_sign(jnp.where(swap, sine, cosine), quadrant & 2),
        _flip_sign(jnp.where(swap, cosine, sine), (quadrant * 3) & 2),
    )


def _flip_sign(value: Float[Array, "*shape"], second_bit: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `value` with its sign bit inverted where the second bit is set."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(value, jnp.uint32) ^ (second_bit << 30), jnp.float32)


@checked
def draw_batch(key: Key, weights: Float[Array, " examples"], size: int) -> Int[Array, " size"]:
    """Draw examples with replacement, each with a probability that is proportional to its weight.

    Args:
        key: A key.
        weights: Weight of each example, >= 0, not all 0.
        size: Number to draw.

    Returns:
        Indices (size,).

    Example:
        >>> draw_batch(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), 4).tolist()
        [1, 1, 1, 1]
    """
    return jax.random.categorical(key, jnp.log(weights), shape=(size,))
