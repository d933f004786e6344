"""Methods of fine-tuning that the experiments compare, each with what it needs to be good."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from nvcim_jax import tuning

__all__ = ["METHODS", "Method", "parts", "rate_of"]


class Method(NamedTuple):
    """One way of tuning.

    Attributes:
        adapter: Makes what is tuned.
        rate: Learning rate where answers are learned; see `METHODS`.
        text_rate: Learning rate where running text is learned.
        steps: Updates, relative to those of the experiment: a zeroth-order update is cheap and says little.
        eps: Length of a zeroth-order move; None: backward passes.
    """

    adapter: Callable[[], tuning.Adapter]
    rate: float
    text_rate: float
    steps: float = 1.0
    eps: float | None = None


METHODS: dict[str, Method] = {
    "prompt": Method(partial(tuning.prompt, 16), 1e-2, 3e-2),
    "P-tuning": Method(partial(tuning.p_tuning, 16), 3.3e-4, 1e-3),
    "prefix": Method(partial(tuning.prefix, 8), 1e-2, 3.3e-3),
    "LoRA": Method(partial(tuning.lora, 8), 1.65e-3, 1e-3),
    "rsLoRA": Method(partial(tuning.lora, 8, 16.0, rs=True), 6.6e-4, 3.3e-4),
    "DoRA": Method(partial(tuning.lora, 8, dora=True), 1.65e-3, 1e-3),
    "(IA)3": Method(tuning.ia3, 2e-2, 3.3e-3),
    "DePT": Method(partial(tuning.dept, 8, 4, 128), 6e-2, 1e-2),
    "all weights": Method(tuning.full, 2e-5, 2e-5),
    "MeZO, LoRA": Method(partial(tuning.lora, 8), 2e-4, 2e-4, steps=5.0, eps=1e-2),
    "MeZO, prefix": Method(partial(tuning.prefix, 8), 2e-3, 2e-3, steps=5.0, eps=1e-1),
    "MeZO, all weights": Method(tuning.full, 2e-6, 2e-6, steps=5.0, eps=1e-3),
}
"""Name -> method. Rates of Adam, and of SGD for zeroth order.

Those of Adam had the lowest loss among four, a factor of three apart, on a domain of clinc5 with other intents than are
reported, and on windows of WikiText-2's validation split (`experiments.11_memory_and_accuracy.run --config rates`, its
records in `results/rates.jsonl`). Zeroth order was looked at on clinc5 alone: LoRA at three rates, of which the least
was the best, the prefix at three, of which the largest was; all weights at none."""


def _sgd(rate: Any, num_steps: int) -> optax.GradientTransformation:
    del num_steps
    return optax.sgd(rate)


def rate_of(method: Method, task: str) -> float:
    """Return the learning rate for a task, by its name."""
    return method.text_rate if task.startswith("wikitext2") else method.rate


def parts(method: Method, task: str) -> dict[str, Any]:
    """Return what `tuning.tune` takes as keywords for a task, by its name; another rate compiles nothing."""
    rate = rate_of(method, task)
    if method.eps is None:
        return {"optimiser": tuning.adam(rate)}
    return {"optimiser": Partial(_sgd, jnp.float32(rate)), "gradient": tuning.zeroth_order(method.eps)}
