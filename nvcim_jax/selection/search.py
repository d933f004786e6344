"""Finding the stored prompt that fits a query: inner product, cosine, and scaled search (SSA).

What a memory column stores is `key_vector`, what drives its word lines is `query_vector`, and `scores` is their
product, by `jnp.matmul` or on noisy arrays (`similarity`). Without noise every storage gives the same score; with
noise, pooled copies that are stored apart meet device errors of their own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Num

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = [
    "SSA_WEIGHTS",
    "SearchConfig",
    "Similarity",
    "key_vector",
    "num_key_rows",
    "pool",
    "pool_tokens",
    "query_vector",
    "scores",
    "similarity",
]

SSA_WEIGHTS = (1.0, 0.8, 0.6)
"""Weights of the scales 1, 2 and 4; arXiv:2411.08244, as a secondary source states them."""

MEASURES = ("mips", "cosine", "ssa")
AXES = ("tokens", "features")
STORAGES = ("shared", "apart")


@checks.frozen_config
class SearchConfig:
    """Static options of the search.

    Of the scaled search the paper gives the scales, their weights and average pooling (stated by a secondary source).
    The axis that is pooled, the normalisation and the storage are not known: the choices here are inferred.

    Args:
        measure: `mips` (inner product), `cosine` (inner product of unit vectors), or `ssa` (the weighted sum of inner
            products of average-pooled codes, neither of them normalised).
        scales: Windows of the average pooling, used by `ssa`.
        axis: What is pooled: neighbouring `tokens` or neighbouring `features` of the code.
        storage: Used by `ssa`. `shared`: the code is stored once and the query is smoothed; `apart`: each pooled copy
            is stored in rows of its own, 1.75 times as many for scales 1, 2, 4.

    Raises:
        TypeError: If an option does not exist; the message suggests the nearest.
        ValueError: If an option has no such value.

    Example:
        >>> num_key_rows(1, 48, config=SearchConfig(storage="apart"))
        84

    References:
        R. Qin et al., "NVCiM-PT: An NVCiM-assisted prompt tuning framework for edge LLMs", DATE 2025, arXiv:2411.08244.
    """

    measure: str = "ssa"
    scales: tuple[int, ...] = (1, 2, 4)
    axis: str = "features"
    storage: str = "shared"

    def __post_init__(self) -> None:
        """Check every option."""
        checks.choice("measure", self.measure, MEASURES)
        checks.choice("axis", self.axis, AXES)
        checks.choice("storage", self.storage, STORAGES)
        if not isinstance(self.scales, tuple) or not self.scales:
            checks.fail("scales", "be a tuple of one integer or more", f"is {self.scales!r}")
        for scale in self.scales:
            checks.integer("scales", scale)


@checked
def pool_tokens(
    x: Num[Array, "tokens width"], mask: Num[Array, " tokens"] | Bool[Array, " tokens"], num: int
) -> Float[Array, "num width"]:
    """Average the real tokens of a sequence into `num` tokens.

    With t real tokens, output i averages the real tokens floor(i t / num) to ceil((i + 1) t / num) - 1 (adaptive
    average pooling). With t < num, output i repeats token floor(i t / num) (nearest). With no real token all are zero.

    Args:
        x: Tokens (tokens, width). What lies under the mask does not matter, NaN included.
        mask: Non-zero where a token is real, anywhere in the sequence.
        num: Number of tokens to return, at least 1.

    Returns:
        Array (num, width), in the dtype of `x`.

    Raises:
        ValueError: If a shape is wrong or `num` is not positive.

    Example:
        >>> x, mask = jnp.array([[9.0], [1.0], [2.0], [3.0]]), jnp.array([0, 1, 1, 1])
        >>> print(pool_tokens(x, mask, 1).ravel(), pool_tokens(x, mask, 2).ravel())
        [2.] [1.5 2.5]
    """
    checks.rank("x", x, 2, "(tokens, width)")
    checks.shape("mask", mask, (x.shape[0],), "(tokens,)")
    checks.integer("num", num)
    real = mask.astype(bool)
    order = jnp.cumsum(real) - 1
    total = order[-1] + 1
    index = jnp.arange(num)
    start = index * total // num
    stop = jnp.where(total < num, start + 1, ((index + 1) * total + num - 1) // num)
    inside = (order[None, :] >= start[:, None]) & (order[None, :] < stop[:, None]) & real[None, :]
    count = jnp.maximum(inside.sum(axis=1, keepdims=True), 1)
    average = inside.astype(jnp.float32) / count.astype(jnp.float32)
    kept = jnp.where(real[:, None], x, jnp.zeros((), x.dtype)).astype(jnp.float32)
    return jnp.matmul(average, kept, precision="highest").astype(x.dtype)


@checked
def pool(x: Float[Array, "tokens features"], window: int, axis: str) -> Float[Array, "..."]:
    """Average neighbours, P_L x: window and stride L, what remains at the end averaged over what is there.

    Args:
        x: Code (tokens, features).
        window: Length L of the window, at least 1.
        axis: "tokens" or "features".

    Returns:
        Array with ceil(size / L) entries along the axis.

    Raises:
        ValueError: If an argument has no such value.

    Example:
        >>> print(pool(jnp.array([[1.0, 3.0, 5.0, 7.0, 10.0]]), 2, "features"))
        [[ 2.  6. 10.]]
    """
    checks.rank("x", x, 2, "(tokens, features)")
    checks.integer("window", window)
    checks.choice("axis", axis, AXES)
    last = x.T if axis == "tokens" else x
    size = last.shape[1]
    num = -(-size // window)
    padded = jnp.pad(last, ((0, 0), (0, num * window - size)))
    pooled = padded.reshape(-1, num, window).sum(axis=2) / _counts(size, window, x.dtype)[None, :]
    return pooled.T if axis == "tokens" else pooled


@checked
def num_key_rows(num_tokens: int, code: int, *, config: SearchConfig) -> int:
    """Return how many rows of a memory column the key of one prompt takes.

    Args:
        num_tokens: Tokens of a code.
        code: Features of a code.
        config: Options of the search.

    Returns:
        num_tokens * code; with `ssa` stored apart, the sum of the sizes of the pooled copies.

    Example:
        >>> num_key_rows(8, 48, config=SearchConfig()), num_key_rows(8, 48, config=SearchConfig(storage="apart"))
        (384, 672)
    """
    checks.integer("num_tokens", num_tokens)
    checks.integer("code", code)
    if config.measure != "ssa" or config.storage == "shared":
        return num_tokens * code
    if config.axis == "tokens":
        return sum(-(-num_tokens // scale) * code for scale in config.scales)
    return sum(num_tokens * -(-code // scale) for scale in config.scales)


@checked
def key_vector(code: Float[Array, "tokens features"], *, config: SearchConfig) -> Float[Array, " rows"]:
    """Return what one memory column stores of a prompt's code O.

    `mips` and shared `ssa`: O flattened. `ssa` stored apart: [P_L(O) for L in scales], flattened one after another.
    `cosine`: O / |O| (a code of zeros stays zero).

    Args:
        code: Code (tokens, features) of one prompt.
        config: Options of the search.

    Returns:
        Vector (rows,), `num_key_rows` of them.

    Raises:
        ValueError: If the code has the wrong rank.

    Example:
        >>> print(key_vector(jnp.array([[3.0, 4.0]]), config=SearchConfig(measure="cosine")))
        [0.6 0.8]
    """
    checks.rank("code", code, 2, "(tokens, features)")
    if config.measure == "cosine":
        return _unit(code.ravel())
    if config.measure == "mips" or config.storage == "shared":
        return code.ravel()
    return jnp.concatenate([pool(code, scale, config.axis).ravel() for scale in config.scales])


@checked
def query_vector(
    code: Float[Array, "tokens features"], weights: Float[Array, " scales"] | tuple[float, ...], *, config: SearchConfig
) -> Float[Array, " rows"]:
    """Return what drives the word lines for the code E of a query.

    `mips`: E flattened. `cosine`: E / |E|. Shared `ssa`: G E with G = sum_L w_L P_L^T P_L, so that <G E, O> is
    sum_L w_L <P_L(E), P_L(O)>; for scales 1, 2, 4 and weights 1, 0.8, 0.6, G has the eigenvalues 1, 1.4 and 1.55: an
    inner product with a smoothed query. `ssa` stored apart: [w_L P_L(E) for L in scales].

    Args:
        code: Code (tokens, features) of one query, of the shape of the prompts' codes.
        weights: One weight for each scale, such as `SSA_WEIGHTS`; traced, so that they can be learned. Used by `ssa`.
        config: Options of the search.

    Returns:
        Vector (rows,), `num_key_rows` of them.

    Raises:
        ValueError: If a shape is wrong.

    Example:
        >>> code = jnp.array([[1.0, 1.0, 1.0, 1.0]])
        >>> print(query_vector(code, SSA_WEIGHTS, config=SearchConfig()))  # constant: the eigenvalue 1.55
        [1.55 1.55 1.55 1.55]

    References:
        R. Qin et al., arXiv:2411.08244 (the weighted sum over scales; G and the storages are inferred here).
    """
    checks.rank("code", code, 2, "(tokens, features)")
    if config.measure == "cosine":
        return _unit(code.ravel())
    if config.measure == "mips":
        return code.ravel()
    weights = jnp.asarray(weights, code.dtype)
    checks.shape("weights", weights, (len(config.scales),), "(scales,)")
    pooled = [weights[i] * pool(code, scale, config.axis) for i, scale in enumerate(config.scales)]
    if config.storage == "apart":
        return jnp.concatenate([part.ravel() for part in pooled])
    spread = [
        _pool_transposed(part, code.shape, scale, config.axis)
        for part, scale in zip(pooled, config.scales, strict=True)
    ]
    return functools.reduce(jnp.add, spread).ravel()


class Similarity(NamedTuple):
    """Say what a memory column stores of a code, and what drives the word lines: their inner product is the score.

    Attributes:
        key: `key(code) -> (rows,)`, of the code (tokens, features) of a key.
        query: `query(code, weights) -> (rows,)`, of that of a query; `weights` are those of the scales, traced.
    """

    key: Callable[[jax.Array], jax.Array]
    query: Callable[[jax.Array, jax.Array], jax.Array]


@checked
def similarity(config: SearchConfig) -> Similarity:
    """Return the similarity of a search's options: `key_vector` and `query_vector`.

    Args:
        config: Options of the search.

    Example:
        >>> found = similarity(SearchConfig(measure="cosine"))
        >>> code = jnp.array([[3.0, 4.0]])
        >>> print(f"{found.key(code) @ found.query(2.0 * code, jnp.ones(3)):.3f}")
        1.000
    """
    return Similarity(Partial(key_vector, config=config), Partial(query_vector, config=config))


@checked
def scores(
    queries: Float[Array, "..."],
    keys: Any,
    *,
    similarity: Callable[[jax.Array, Any], jax.Array] = jnp.matmul,
    filled: Bool[Array, " slots"] | None = None,
) -> Float[Array, "..."]:
    """Return the score of every stored prompt; without noise, sum_L w_L <P_L(E), P_L(O_j)>.

    Args:
        queries: One query (rows,) or several (queries, rows), from `query_vector`.
        keys: Key matrix (rows, slots) with a `key_vector` in each column, or whatever `similarity` understands, such as
            a programmed chip.
        similarity: The product: (queries, keys) -> (slots,) or (queries, slots).
        filled: Which slots hold a prompt; None for all.

    Returns:
        Scores (slots,) or (queries, slots), -inf where a slot is empty.

    Raises:
        ValueError: If a shape is wrong, or `similarity` returns anything but an array.

    Example:
        >>> keys = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> print(scores(jnp.array([3.0, 1.0]), keys, filled=jnp.array([True, False])))
        [  3. -inf]
    """
    checks.rank("queries", queries, (1, 2), "(rows,) or (queries, rows)")
    if similarity is jnp.matmul and not hasattr(keys, "shape"):
        checks.fail("keys", "be a matrix of keys", f"is {checks.shown(keys)}", "Give similarity= for other keys.")
    if isinstance(keys, jax.Array):
        checks.rank("keys", keys, 2, "(rows, slots)")
        checks.shape("keys", keys, (queries.shape[-1], keys.shape[1]), "(rows, slots)")
    found = similarity(queries, keys)
    if not isinstance(found, jax.Array):
        checks.fail(
            "similarity",
            "return an array of products",
            f"returns a {type(found).__name__}",
            "Drop diagnostics: `lambda x, chip: crossbar.matmul(key, x, chip)[0]`.",
        )
    if filled is None:
        return found
    checks.shape("filled", filled, (found.shape[-1],), "(slots,)")
    return jnp.where(jnp.broadcast_to(filled, found.shape), found, -jnp.inf)


def _counts(size: int, window: int, dtype: Any) -> Float[Array, " windows"]:
    """Return how many entries each window averages."""
    starts = range(0, size, window)
    return jnp.asarray([min(window, size - start) for start in starts], dtype)


def _pool_transposed(
    y: Float[Array, "..."], shape: tuple[int, ...], window: int, axis: str
) -> Float[Array, "tokens features"]:
    """Return P_L^T y: each entry spread evenly over the window that it is the average of."""
    last = y.T if axis == "tokens" else y
    size = shape[0] if axis == "tokens" else shape[1]
    spread = jnp.repeat(last / _counts(size, window, y.dtype)[None, :], window, axis=1)[:, :size]
    return spread.T if axis == "tokens" else spread


def _unit(x: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """Return x / |x|; a vector too short to divide by (1e-10) is left as it is, so that its gradient stays finite."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)))
    return x * jax.lax.rsqrt(jnp.where(square > 1e-20, square, 1.0)).astype(x.dtype)
