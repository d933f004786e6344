"""Training a codec to give tokens back, through the noise of the memory that holds their codes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from nvcim_jax import checks
from nvcim_jax.ops import as_partial, descend
from nvcim_jax.selection.codec import (
    Codec,
    check_tokens,
    codec_init,
    codec_pca,
    decode,
    encode,
    row_mean,
    standardised,
)
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["FitConfig", "FitInfo", "fit"]

STARTS = ("pca", "random", "codec")


@checks.frozen_config
class FitConfig:
    """Static options of the training of a codec; none of them is known from the paper.

    Args:
        num_steps: Steps of Adam; 0 returns the start.
        learning_rate: Of the first step; it falls to zero along half a cosine.
        batch: Tokens (`fit`) or queries (`fit_contrastive`) of a step, drawn with replacement; None, or as many as
            there are or more, for all of them.
        start: `pca`: the principal components of the data; `random`: fresh random weights; `codec`: the codec as given.
        temperature: Used by `fit_contrastive`: of the softmax over the prompts, in standard deviations of the scores.
        reconstruction_weight: Used by `fit_contrastive`: weight of the relative error against the contrastive loss.

    Raises:
        TypeError: If an option does not exist; the message suggests the nearest.
        ValueError: If an option has no such value.

    Example:
        >>> FitConfig(num_steps=100).start
        'pca'
    """

    num_steps: int = 300
    learning_rate: float = 1e-3
    batch: int | None = 256
    start: str = "pca"
    temperature: float = 0.2
    reconstruction_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check every option."""
        checks.integer("num_steps", self.num_steps, low=0)
        checks.number("learning_rate", self.learning_rate, low=0.0)
        if self.batch is not None:
            checks.integer("batch", self.batch)
        checks.choice("start", self.start, STARTS)
        checks.number("temperature", self.temperature, low=0.0, low_open=True)
        checks.number("reconstruction_weight", self.reconstruction_weight, low=0.0)


class FitInfo(NamedTuple):
    """What a training came to.

    Attributes:
        losses: Loss of every step, (steps,).
        relative_error: sum |x - x'|^2 / sum |x - mean|^2 over all tokens, x' decoded from undisturbed codes.
        noisy_relative_error: The same from codes disturbed once more.
        hit_rate: Share of the queries whose own prompt scores highest, undisturbed; None from `fit`.
    """

    losses: Float[Array, " steps"]
    relative_error: Float[Array, ""]
    noisy_relative_error: Float[Array, ""]
    hit_rate: Float[Array, ""] | None = None


def undisturbed(key: Key, x: PyTree) -> PyTree:
    """Return what is stored as it is: the noise-free default of `perturb`."""
    del key
    return x


@checked
def fit(
    key: Key,
    codec: Codec,
    tokens: Float[Array, "tokens width"],
    *,
    config: FitConfig,
    perturb: Callable[[Key, jax.Array], jax.Array] = undisturbed,
    real: Bool[Array, " tokens"] | None = None,
) -> tuple[Codec, FitInfo]:
    """Train a codec on the relative squared error of the tokens that come back, |x - x'|^2 / |x - mean|^2.

    Adam, all steps in one compiled scan. Call it with queries and prompts together, since both share a code.

    Args:
        key: Key of the start, the batches and the noise.
        codec: Codec of the wanted sizes, from `codec_init`.
        tokens: Tokens (tokens, width), at least 1.
        config: Options.
        perturb: Noise on a matrix of codes (batch, code), drawn afresh every step: (key, z) -> z. A
            `jax.tree_util.Partial` may hold arrays, such as a device, which are then traced and can be swept.
        real: Which tokens count, so that a table that fills up keeps its shape; None: all.

    Returns:
        codec: The trained codec.
        info: Losses and errors.

    Raises:
        ValueError: If a shape is wrong or a token is not finite.

    Example:
        >>> import jax
        >>> tokens = jax.random.normal(jax.random.key(0), (100, 8)) * jnp.array([[9, 9, 1, 1, 0, 0, 0, 0]], jnp.float32)
        >>> codec, info = fit(jax.random.key(1), codec_init(jax.random.key(2), 8, code=2), tokens, config=FitConfig())
        >>> print(f"{info.relative_error:.2f}, about 2 / (2 * 81 + 2) = {2 / 164:.2f}")
        0.01, about 2 / (2 * 81 + 2) = 0.01
    """
    checks.rank("tokens", tokens, 2, "(tokens, width)")
    check_tokens(codec, "tokens", tokens)
    checks.integer("the number of tokens", tokens.shape[0])
    checks.finite("tokens", tokens)
    if real is not None:
        checks.shape("real", real, (tokens.shape[0],), "(tokens,)")
    return _fit(key, codec, tokens.astype(jnp.float32), real, as_partial(perturb), config)


@jax.jit
def _fit(
    key: Key,
    codec: Codec,
    tokens: Float[Array, "tokens width"],
    real: Bool[Array, " tokens"] | None,
    perturb: jax.tree_util.Partial,
    config: FitConfig,
) -> tuple[Codec, FitInfo]:
    """Return the trained codec; the arguments are checked."""
    key_start, key_steps, key_last = jax.random.split(key, 3)
    spread = mean_square_spread(tokens, real)

    def loss(codec: Codec, key: Key) -> jax.Array:
        key_batch, key_noise = jax.random.split(key)
        rows, counts = draw(key_batch, tokens.shape[0], config.batch, real)
        x = tokens[rows]
        return mean_square(x - decode(codec, perturb(key_noise, encode(codec, x))), counts) / spread

    codec, losses = train(key_steps, start(key_start, codec, tokens, real, config), loss, config)
    return codec, FitInfo(losses, *relative_errors(key_last, codec, tokens, real, perturb))


def train(
    key: Key, codec: Codec, loss: Callable[[Codec, Key], jax.Array], config: FitConfig
) -> tuple[Codec, Float[Array, " steps"]]:
    """Run Adam on a loss(codec, key) and return the codec and the loss of every step."""

    def rate(step: Any) -> jax.Array:
        fall = 1.0 + jnp.cos(jnp.pi * jnp.asarray(step, jnp.float32) / max(config.num_steps, 1))
        return -(0.5 * config.learning_rate * fall)

    def reported(codec: Codec, key: Key, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del step
        value = loss(codec, key)
        return value, value

    optimiser = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(rate))
    return descend(key, codec, reported, optimiser, num_steps=config.num_steps)


def start(
    key: Key, codec: Codec, tokens: Float[Array, "tokens width"], real: Bool[Array, " tokens"] | None, config: FitConfig
) -> Codec:
    """Return the codec that a training starts from."""
    if not codec.encoder or config.start == "codec":
        return codec
    if config.start == "pca":
        return codec_pca(key, codec, tokens, real)
    hidden = tuple(w.shape[1] for w, _ in codec.encoder[:-1])
    fresh = codec_init(key, tokens.shape[1], code=codec.encoder[-1][0].shape[1], hidden=hidden)
    return standardised(fresh, tokens, real)


def relative_errors(
    key: Key,
    codec: Codec,
    tokens: Float[Array, "tokens width"],
    real: Bool[Array, " tokens"] | None,
    perturb: Callable[[Key, jax.Array], jax.Array],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the relative squared error of all tokens, from undisturbed and from disturbed codes."""
    z, spread = encode(codec, tokens), mean_square_spread(tokens, real)
    clean, noisy = (mean_square(tokens - decode(codec, codes), real) / spread for codes in (z, perturb(key, z)))
    return clean, noisy


def mean_square(rows: Float[Array, "rows width"], real: Array | None) -> Float[Array, ""]:
    """Return the mean squared entry of the rows that count."""
    if real is None:
        return jnp.square(rows).mean()
    return row_mean(jnp.square(rows), real).mean()


def mean_square_spread(tokens: Float[Array, "tokens width"], real: Array | None) -> Float[Array, ""]:
    """Return the mean squared distance of an entry from the mean token; 1 where all tokens are equal."""
    mean = tokens.mean(axis=0, keepdims=True) if real is None else row_mean(tokens, real)[None]
    spread = mean_square(tokens - mean, real)
    return jnp.where(spread > 0, spread, 1.0)


def draw(
    key: Key, num: int, batch: int | None, real: Bool[Array, " rows"] | None
) -> tuple[jax.Array, Float[Array, " drawn"] | None]:
    """Draw `batch` of the rows that count, with replacement; all rows where that is no fewer.

    Returns:
        Their numbers, and how much each counts; None: all alike.
    """
    if batch is None or batch >= num:
        return jnp.arange(num), None if real is None else real.astype(jnp.float32)
    if real is None:
        return jax.random.randint(key, (batch,), 0, num), None
    order, total = jnp.argsort(~real, stable=True), real.sum(dtype=jnp.int32)
    drawn = jax.random.randint(key, (batch,), 0, jnp.maximum(total, 1))
    place = jnp.arange(batch, dtype=jnp.int32)
    few = total <= batch
    return order[jnp.where(few, place, drawn)], jnp.where(few, place < total, True).astype(jnp.float32)
