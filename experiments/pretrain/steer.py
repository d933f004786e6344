"""Steering the bundled language model by a soft prompt: start it from examples, tune it, rank answers.

The text form of a task is "<s> query = answer </s>", the soft prompt standing before "<s>". Answers are ranked among
candidates by the sum of the log-probabilities of their tokens and of "</s>".
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from experiments.pretrain.data import SPECIAL_TOKENS
from experiments.pretrain.episodes import label_weights
from experiments.pretrain.material import equals_id
from experiments.pretrain.objective import cross_entropy, soft_tokens
from nvcim_jax import models
from nvcim_jax.types import PyTree

__all__ = [
    "Candidates",
    "Example",
    "Labelled",
    "Queries",
    "accuracy",
    "make_candidates",
    "make_labelled",
    "make_queries",
    "prompt_from_examples",
    "prompt_from_words",
    "rank",
    "tune",
]

PAD, START, END = (SPECIAL_TOKENS.index(name) for name in ("<pad>", "<s>", "</s>"))
QUERY_TOKENS = 26
BAG_TOKENS = 192


class Example(NamedTuple):
    """A text and its label."""

    text: str
    label: str


class Queries(NamedTuple):
    """Texts up to the answer sign, padded on the right.

    Attributes:
        ids: Tokens (queries, tokens), int32.
        lengths: Tokens that are no padding (queries,), int32.
    """

    ids: jax.Array
    lengths: jax.Array


class Candidates(NamedTuple):
    """Answers laid out one after the other, each a branch that continues every query.

    Attributes:
        ids: Tokens of all answers (tokens,), int32.
        owner: The answer that each belongs to.
        offset: Its place in that answer.
        following: The token after it; "</s>" after the last.
        first: First token of each answer (answers,).
    """

    ids: jax.Array
    owner: jax.Array
    offset: jax.Array
    following: jax.Array
    first: jax.Array


class Labelled(NamedTuple):
    """Queries with their answers, for tuning.

    Attributes:
        ids: Tokens of query and answer (examples, tokens), int32.
        where: Positions that predict the answer (examples, answer tokens), int32.
        targets: What they predict, int32.
        weights: 1 for an answer's token, 0 for padding, float32.
    """

    ids: jax.Array
    where: jax.Array
    targets: jax.Array
    weights: jax.Array


def token_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the tokens of a text without the start token."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def query_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return "<s> text =", the end of a long text cut off."""
    ids = token_ids(tokenizer, text)[: QUERY_TOKENS - 2]
    return np.concatenate([[START], ids, [equals_id(tokenizer)]]).astype(np.int32)


def pad(rows: Sequence[np.ndarray], size: int, value: int = PAD) -> np.ndarray:
    """Stack rows of different lengths, padded on the right."""
    return np.stack([np.pad(row, (0, size - len(row)), constant_values=value) for row in rows])


def make_queries(tokenizer: Tokenizer, texts: Sequence[str]) -> Queries:
    """Encode texts as queries."""
    rows = [query_ids(tokenizer, text) for text in texts]
    return Queries(jnp.asarray(pad(rows, QUERY_TOKENS)), jnp.asarray([len(row) for row in rows]))


def make_candidates(tokenizer: Tokenizer, labels: Sequence[str]) -> Candidates:
    """Lay out the answers to rank."""
    ids = [token_ids(tokenizer, label) for label in labels]
    parts = (
        np.concatenate(ids),
        np.concatenate([np.full(len(row), i) for i, row in enumerate(ids)]),
        np.concatenate([np.arange(len(row)) for row in ids]),
        np.concatenate([[*row[1:], END] for row in ids]),
        np.asarray([row[0] for row in ids]),
    )
    return Candidates(*(jnp.asarray(part, jnp.int32) for part in parts))


def make_labelled(tokenizer: Tokenizer, examples: Sequence[Example]) -> Labelled:
    """Encode examples for tuning."""
    queries = [query_ids(tokenizer, example.text) for example in examples]
    answers = [np.append(token_ids(tokenizer, example.label), END) for example in examples]
    size = max(map(len, answers))
    where = [len(query) - 1 + np.arange(len(answer)) for query, answer in zip(queries, answers, strict=True)]
    whole = [np.concatenate([q, a[:-1]]) for q, a in zip(queries, answers, strict=True)]
    return Labelled(
        jnp.asarray(pad(whole, QUERY_TOKENS + size), jnp.int32),
        jnp.asarray(pad(where, size, 0), jnp.int32),
        jnp.asarray(pad(answers, size), jnp.int32),
        jnp.asarray(pad([np.ones(len(answer)) for answer in answers], size), jnp.float32),
    )


def prompt_from_examples(
    params: PyTree, tokenizer: Tokenizer, examples: Sequence[Example], *, config: models.Config, num_each: int = 2
) -> Float[Array, "prompt width"]:
    """Return a prompt made from labelled examples: `num_each` soft tokens for every label, see `soft_tokens`.

    The examples of a label are dealt out in turn over its soft tokens. Five labels and `num_each` = 2 give 10 virtual
    tokens.
    """
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for label in sorted({example.label for example in examples}):
        texts = [token_ids(tokenizer, example.text) for example in examples if example.label == label]
        dealt = [np.concatenate(texts[i::num_each] or texts)[:BAG_TOKENS] for i in range(num_each)]
        parts += [(ids, token_ids(tokenizer, label)) for ids in dealt]
    bags, labels = zip(*parts, strict=True)
    longest = max(map(len, labels))
    arrays = (
        pad(bags, BAG_TOKENS),
        pad([np.ones(len(ids), np.float32) for ids in bags], BAG_TOKENS),
        pad(labels, longest),
        pad([label_weights(len(ids)) for ids in labels], longest),
        np.ones((len(parts), 2), np.float32),
    )
    return soft_tokens(params, *map(jnp.asarray, arrays), config=config)


def prompt_from_words(params: PyTree, num_tokens: int, *, seed: int) -> Float[Array, "prompt width"]:
    """Return a prompt of random rows of the vocabulary."""
    rows = np.random.default_rng(seed).choice(np.arange(300, params["embedding"].shape[0]), num_tokens, replace=False)
    return params["embedding"][rows]


def tree_mask(prompt_tokens: int, queries: Queries, candidates: Candidates) -> jax.Array:
    """Return what each position sees: prompt, query, and of the answers its own branch (queries, all, all)."""
    tokens = queries.ids.shape[1]
    stem, branch = prompt_tokens + tokens, candidates.ids.shape[0]
    real = jnp.arange(stem)[None] < prompt_tokens + queries.lengths[:, None]
    owner = candidates.owner
    allowed = jnp.zeros((len(queries.ids), stem + branch, stem + branch), bool)
    allowed = allowed.at[:, :, :stem].set(real[:, None, :]).at[:, stem:, stem:].set(owner[:, None] == owner)
    return allowed & jnp.tril(jnp.ones((stem + branch, stem + branch), bool))


@jax.jit
def rank(
    params: PyTree, prompt: jax.Array, queries: Queries, candidates: Candidates, *, config: models.Config
) -> Float[Array, "queries answers"]:
    """Return the log-probability of every candidate after every query, in one pass over all branches."""
    lm = models.LM(params, config)
    num, tokens = queries.ids.shape
    stem = len(prompt) + tokens
    parts = [prompt, models.embed(lm, candidates.ids)]
    before, after = (jnp.broadcast_to(part, (num, *part.shape)) for part in parts)
    x = jnp.concatenate([before, models.embed(lm, queries.ids), after], axis=1)
    branch = len(prompt) + queries.lengths[:, None] + candidates.offset
    places = jnp.concatenate([jnp.broadcast_to(jnp.arange(stem), (num, stem)), branch], axis=1).astype(jnp.int32)
    states, _ = models.hidden(lm, models.Inputs(x, tree_mask(len(prompt), queries, candidates), places))
    last = states[jnp.arange(num), len(prompt) + queries.lengths - 1]
    of_first = jax.nn.log_softmax(models.head(lm, last))[:, candidates.first]
    targets = jnp.broadcast_to(candidates.following, (num, len(candidates.ids)))
    of_rest = -cross_entropy(params, states[:, stem:], targets, config=config)
    return of_first.at[:, candidates.owner].add(of_rest)


def accuracy(
    params: PyTree,
    prompt: jax.Array,
    queries: Queries,
    candidates: Candidates,
    truth: np.ndarray,
    *,
    config: models.Config,
) -> float:
    """Return the share of queries whose true answer is ranked first."""
    return float((jnp.argmax(rank(params, prompt, queries, candidates, config=config), axis=1) == truth).mean())


@partial(jax.jit, static_argnames="num_steps")  # the length of the scan
def tune(
    params: PyTree,
    prompt: jax.Array,
    examples: Labelled,
    learning_rate: jax.Array,
    *,
    config: models.Config,
    num_steps: int,
    bound: float = np.inf,
) -> tuple[Float[Array, "prompt width"], Float[Array, " steps"]]:
    """Tune a prompt by Adam on the mean loss of the examples' answers, all examples in every step.

    Entries are kept within [-bound, bound] by clipping after every step.

    Returns:
        The prompt, and the loss before each step in nats an answer.
    """
    lm = models.LM(params, config)
    text = models.embed(lm, examples.ids)

    def loss(candidate: jax.Array) -> jax.Array:
        before = jnp.broadcast_to(candidate, (len(text), *candidate.shape))
        states, _ = models.hidden(lm, jnp.concatenate([before, text], axis=1))
        states = jnp.take_along_axis(states, (examples.where + len(candidate))[..., None], axis=1)
        return (cross_entropy(params, states, examples.targets, config=config) * examples.weights).sum() / len(text)

    adam = optax.adam(learning_rate)

    def step(carry: tuple[jax.Array, optax.OptState], _: None) -> tuple[tuple[jax.Array, optax.OptState], jax.Array]:
        value, grad = jax.value_and_grad(loss)(carry[0])
        update, state = adam.update(grad, carry[1])
        return (jnp.clip(carry[0] + jnp.asarray(update), -bound, bound), state), value

    start = jnp.clip(prompt, -bound, bound)
    (tuned, _), losses = jax.lax.scan(step, (start, adam.init(start)), length=num_steps)
    return tuned, losses
