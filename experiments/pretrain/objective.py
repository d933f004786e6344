"""What the bundled language model is trained on: next tokens, and the answers of episodes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.pretrain.episodes import LABEL_DECAY, EpisodeBatch
from nvcim_jax import models
from nvcim_jax.models import Config, embed, head, hidden
from nvcim_jax.types import Key, PyTree, Scalar

__all__ = ["SOFT_SIZE", "answer_loss", "cross_entropy", "episode_inputs", "layout", "soft_tokens", "text_loss"]

SOFT_SIZE = 0.2
"""Root mean square of a soft token's entries."""
SHARPNESS = 12.0
"""Factor on the cosines of `feature_loss`."""


def unit(x: jax.Array) -> jax.Array:
    """Return vectors of length one; a zero vector stays zero."""
    return x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)


def mean_direction(params: PyTree, bags: Any, weights: Any, channels: int, *, config: Config) -> jax.Array:
    """Return the direction of weighted means of embeddings, by their first channels."""
    rows = embed(models.LM(params, config), bags)[..., :channels]
    return unit((rows * weights[..., None]).sum(-2))


def layout(width: int) -> models.SoftTokens:
    """Return where the model reads what: the label in the first half of the channels, the examples in the last quarter.

    The third quarter belongs to what a query is about.
    """
    examples = (3 * (width // 4), 4 * (width // 4))
    return models.SoftTokens(label=(0, width // 2), examples=examples, label_decay=LABEL_DECAY, size=SOFT_SIZE)


def soft_tokens(
    params: PyTree,
    bags: Int[Array, "*slots bag"],
    bag_weights: Float[Array, "*slots bag"],
    labels: Int[Array, "*slots label"],
    label_weights: Float[Array, "*slots label"],
    shares: Float[Array, "*slots 2"],
    *,
    config: Config,
) -> Float[Array, "*slots width"]:
    """Return soft tokens that hold examples and a label side by side, see `nvcim_jax.models.soft_tokens`.

    Args:
        params: Parameters.
        bags: Tokens of the examples (..., bag).
        bag_weights: Their weights, >= 0, 0 for padding.
        labels: Tokens of the label (..., label).
        label_weights: Their weights, >= 0, 0 for padding.
        shares: Amounts of examples and of label (..., 2).
        config: The model.

    Returns:
        (..., width).
    """
    examples, label = (
        (embed(models.LM(params, config), ids) * jnp.asarray(weights)[..., None]).sum(-2)
        for ids, weights in ((bags, bag_weights), (labels, label_weights))
    )
    return models.soft_tokens(examples, label, shares, layout=layout(config.width))


def episode_inputs(params: PyTree, batch: EpisodeBatch, *, config: Config) -> Float[Array, "rows tokens width"]:
    """Return the embeddings of a batch of episodes, soft tokens in their places."""
    soft = soft_tokens(
        params, batch.bags, batch.bag_weights, batch.labels, batch.label_weights, batch.shares, config=config
    )
    placed = jnp.take_along_axis(soft, jnp.maximum(batch.slots, 0)[..., None], axis=1)
    return jnp.where((batch.slots >= 0)[..., None], placed, embed(models.LM(params, config), batch.ids))


def cross_entropy(params: PyTree, states: jax.Array, targets: jax.Array, *, config: Config) -> jax.Array:
    """Return the loss in nats of each target token, predicted from the state before it."""
    logits = head(models.LM(params, config), states).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def text_loss(params: PyTree, ids: Int[Array, "rows tokens"], *, config: Config) -> Scalar:
    """Return the mean next-token loss in nats."""
    states, _ = hidden(models.LM(params, config), embed(models.LM(params, config), ids[:, :-1]))
    return cross_entropy(params, states, ids[:, 1:], config=config).mean()


def query_mask(parts: Int[Array, "rows tokens"]) -> jax.Array:
    """Return what each position sees: the prompt, and of its own query what stands before (rows, tokens, tokens)."""
    seen = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    return seen & jnp.tril(jnp.ones((parts.shape[1],) * 2, bool))


def log_share(scores: jax.Array, right: jax.Array, offered: jax.Array) -> jax.Array:
    """Return minus the logarithm of the right choices' share of the softmax over those offered."""
    least = jnp.finfo(scores.dtype).min
    of_right = jax.nn.logsumexp(jnp.where(right & offered, scores, least), axis=-1)
    return jax.nn.logsumexp(jnp.where(offered, scores, least), axis=-1) - of_right


def noisy(x: jax.Array, is_soft: jax.Array, key: Key, *, noise: float) -> jax.Array:
    """Return inputs whose soft tokens have random sizes and Gaussian noise."""
    level_key, noise_key, size_key = jax.random.split(key, 3)
    x = jnp.where(is_soft, x * 2 ** jax.random.uniform(size_key, is_soft.shape, minval=-1.0), x)
    largest = jnp.where(is_soft, jnp.abs(x), 0.0).max((1, 2), keepdims=True)
    level = jax.random.uniform(level_key, (x.shape[0], 1, 1), maxval=noise)
    drawn = level * jax.lax.stop_gradient(largest) * jax.random.normal(noise_key, x.shape)
    return x + jnp.where(is_soft, drawn, 0.0)


def feature_loss(params: PyTree, states: jax.Array, batch: EpisodeBatch, *, config: Config) -> jax.Array:
    """Return how badly the states find the soft tokens of their class by the cosine to their examples.

    The features of a sentence are the third quarter of the state's channels at its answer sign.
    """
    quarter = config.width // 4
    examples = mean_direction(params, batch.bags, batch.bag_weights, quarter, config=config)
    scores = SHARPNESS * jnp.einsum("raw,rsw->ras", unit(states[..., 2 * quarter : 3 * quarter]), examples)
    owners = jnp.asarray(batch.owners)[:, None, :]
    return log_share(scores, owners == jnp.asarray(batch.classes)[..., None], owners >= 0)


def answer_loss(
    params: PyTree, batch: EpisodeBatch, key: Key, *, config: Config, noise: float
) -> tuple[Scalar, Scalar, Scalar]:
    """Return what the answers of a batch cost.

    Args:
        params: Parameters.
        batch: Episodes.
        key: A key.
        config: The model.
        noise: Largest standard deviation of the noise, relative to the largest entry of a row's soft tokens; each row
            draws its own between 0 and this.

    Returns:
        In nats: the mean loss of the answers' tokens; the mean loss of choosing among the labels of the episode by
            their first token; and that of finding the right examples from the state in the middle of the model.
    """
    batch = EpisodeBatch(*map(jnp.asarray, batch))
    x = noisy(episode_inputs(params, batch, config=config), (batch.slots >= 0)[..., None], key, noise=noise)
    middle = config.num_layers // 2
    inputs = models.Inputs(x, query_mask(batch.parts), batch.places)
    states, info = hidden(models.LM(params, config), inputs, exits=(middle,))
    assert info.hidden is not None
    states, below = (jnp.take_along_axis(a, batch.where[..., None], axis=1) for a in (states, info.hidden[0]))
    logits = head(models.LM(params, config), states).astype(jnp.float32)
    picked = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    of_tokens = jax.nn.logsumexp(logits, axis=-1) - picked
    choices = jnp.broadcast_to(batch.choices[:, None], (*batch.targets.shape, batch.choices.shape[1]))
    offered = jnp.take_along_axis(logits, jnp.maximum(choices, 0), axis=-1)
    of_choice = log_share(offered, choices == batch.targets[..., None], choices >= 0)
    of_features = feature_loss(params, below, batch, config=config)
    first = (batch.classes >= 0).astype(jnp.float32)

    def mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
        return (losses * weights).sum() / jnp.maximum(weights.sum(), 1.0)

    return mean(of_tokens, batch.weights), mean(of_choice, first), mean(of_features, first)
