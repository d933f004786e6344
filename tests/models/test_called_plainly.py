"""Called outside of any jit, as in a notebook, the model compiles once, not in every call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from support.tracing import count_traces

from nvcim_jax import models, tuning
from nvcim_jax.models import LM

CONFIG = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=48, eos_ids=(2,))
ANSWERS = models.candidates([[8, 3], [9]], end=2)
EXAMPLES = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
PROMPT, CHANGE = tuning.prompt(3), tuning.lora(rank=2)


def _slope_of_a_prompt(lm: LM, ids: jax.Array) -> Any:
    state = PROMPT.from_rows(models.embed(lm, ids)[0])
    return jax.grad(lambda s: tuning.answer_loss(s, lm, EXAMPLES, jnp.ones(2), adapter=PROMPT))(state)


CALLS: dict[str, Callable[[LM, jax.Array], Any]] = {
    "forward": lambda lm, ids: models.forward(lm, models.embed(lm, ids), exits=(1,)),
    "some positions": lambda lm, ids: models.hidden(lm, models.embed(lm, ids), at=jnp.array([[0], [1]])),
    "loss": lambda lm, ids: models.loss(lm, models.embed(lm, ids), ids),
    "rank": lambda lm, ids: models.rank(lm, models.embed(lm, ids), ANSWERS),
    "slope of the weights": lambda lm, ids: jax.grad(lambda lm: models.loss(lm, models.embed(lm, ids), ids)[0])(lm),
    "slope of a prompt": _slope_of_a_prompt,
    "loss of an adapter": lambda lm, ids: tuning.answer_loss(
        CHANGE.init(jax.random.key(3), lm, EXAMPLES), lm, EXAMPLES, jnp.ones(2), adapter=CHANGE
    ),
}


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in CALLS.items()])
def test_a_second_call_compiles_nothing(call: Callable[[LM, jax.Array], Any]) -> None:
    first, second = (models.init(jax.random.key(seed), config=CONFIG) for seed in (0, 1))
    ids, other = jnp.array([[1, 5, 6], [1, 7, 9]]), jnp.array([[3, 4, 8], [1, 5, 11]])
    found = jax.tree.leaves(call(first, ids))
    with count_traces() as traced:
        again = jax.tree.leaves(call(second, other))
    assert traced == []
    assert not all(bool((a == b).all()) for a, b in zip(found, again, strict=True))
