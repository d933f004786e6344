"""What the bundled language model is trained on: next tokens, and the answers of episodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.pretrain.episodes import EpisodeBatch
from nvcim_jax.models import Config, embed, head, hidden
from nvcim_jax.types import Key, PyTree, Scalar

__all__ = ["answer_loss", "episode_inputs", "soft_tokens", "text_loss"]


def soft_tokens(
    params: PyTree, bags: Int[Array, "*slots bag"], weights: Float[Array, "*slots bag"], *, config: Config
) -> Float[Array, "*slots width"]:
    """Return weighted means of embeddings, brought back to the size of the embeddings they average.

    `s = (sum_i w_i e_i) * (sum_i w_i |e_i| / sum_i w_i) / |sum_i w_i e_i|`: a mean of many words is short, and a short
    vector would be lost in the residual stream.

    Args:
        params: Parameters.
        bags: Tokens (..., bag).
        weights: Their weights, >= 0; a slot whose weights are all 0 gives a zero vector.
        config: The model.

    Returns:
        (..., width).
    """
    rows = embed(params, bags, config=config)
    total = (rows * weights[..., None]).sum(-2)
    size = (jnp.sqrt(jnp.square(rows).sum(-1) + 1e-12) * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1e-6)
    norm = jnp.sqrt(jnp.square(total).sum(-1) + 1e-12)
    return total * (size / norm)[..., None]


def episode_inputs(params: PyTree, batch: EpisodeBatch, *, config: Config) -> Float[Array, "rows tokens width"]:
    """Return the embeddings of a batch of episodes, soft tokens in their places."""
    soft = soft_tokens(params, batch.bags, batch.bag_weights, config=config)
    placed = jnp.take_along_axis(soft, jnp.maximum(batch.slots, 0)[..., None], axis=1)
    return jnp.where((batch.slots >= 0)[..., None], placed, embed(params, batch.ids, config=config))


def cross_entropy(params: PyTree, states: jax.Array, targets: jax.Array, *, config: Config) -> jax.Array:
    """Return the loss in nats of each target token, predicted from the state before it."""
    logits = head(params, states, config=config).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def text_loss(params: PyTree, ids: Int[Array, "rows tokens"], *, config: Config) -> Scalar:
    """Return the mean next-token loss in nats."""
    states, _ = hidden(params, embed(params, ids[:, :-1], config=config), config=config)
    return cross_entropy(params, states, ids[:, 1:], config=config).mean()


def answer_loss(
    params: PyTree, batch: EpisodeBatch, key: Key, *, config: Config, noise: float
) -> tuple[Scalar, dict[str, jax.Array]]:
    """Return the mean loss of the answers' tokens, in nats, with noise on the soft tokens.

    Args:
        params: Parameters.
        batch: Episodes.
        key: A key.
        config: The model.
        noise: Largest standard deviation of the noise, relative to the largest entry of a row's soft tokens; each row
            draws its own between 0 and this.

    Returns:
        The loss, and the share of answer tokens ranked first.
    """
    x = episode_inputs(params, batch, config=config)
    level_key, noise_key = jax.random.split(key)
    is_soft = (batch.slots >= 0)[..., None]
    largest = jnp.where(is_soft, jnp.abs(x), 0.0).max((1, 2), keepdims=True)
    level = jax.random.uniform(level_key, (x.shape[0], 1, 1), maxval=noise)
    drawn = level * jax.lax.stop_gradient(largest) * jax.random.normal(noise_key, x.shape)
    states, _ = hidden(params, x + jnp.where(is_soft, drawn, 0.0), config=config)
    states = jnp.take_along_axis(states, batch.where[..., None], axis=1)
    losses = cross_entropy(params, states, batch.targets, config=config)
    total = jnp.maximum(batch.weights.sum(), 1.0)
    return (losses * batch.weights).sum() / total, {"answer_tokens": total}
