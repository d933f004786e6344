"""The memory of tuning and answering against the compiler's own analysis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cost, models, tuning

TINY = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))


def _abstract(size: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_the_formula_is_the_compilers_analysis_within_a_factor(remat: bool) -> None:
    config = models.Config(vocab_size=512, width=128, num_layers=6, num_heads=4, mlp_width=768)
    work = cost.Work(prompts=3, batch=4, virtual=8, text=24, answer=4, remat=remat)
    lm = models.LM(jax.tree.map(_abstract, config.shapes, is_leaf=lambda node: isinstance(node, tuple)), config)
    batch = tuning.Examples(_abstract((10, 24), jnp.int32), *[_abstract((10, 4), jnp.int32)] * 2)
    options = tuning.Options(num_steps=3, batch=4, remat=remat)

    def tune(keys: Any, prompts: Any, lm: Any, batch: Any, weights: Any) -> Any:
        one = lambda key, prompt, own: tuning.tune(  # noqa: E731
            key, prompt, lm, batch, own, adapter=tuning.prompt(8), options=options
        )
        return jax.vmap(one)(keys, prompts, weights)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    lowered = jax.jit(tune).lower(keys, _abstract((3, 8, 128)), lm, batch, _abstract((3, 10)))
    analysis = lowered.compile().memory_analysis()
    truth = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    found = cost.memory(config, work)
    assert found.weights == 4 * config.num_params
    assert found.tuning_peak / 1.5 < truth < found.tuning_peak * 1.5
    rest = analysis.temp_size_in_bytes
    assert found.activations / 1.5 < rest < found.activations * 1.5


def test_packed_weights_take_a_byte_and_their_scales() -> None:
    config = dataclasses.replace(TINY, width=256, num_heads=2, mlp_width=512)
    layer = config.shapes["layers"]
    inputs = {name: size[1:] for name, size in layer.items() if len(size) == 3}
    codes = sum(i * o + 2 * -(-i // 128) * o + 4 * i for i, o in inputs.values())
    floats = config.num_params - sum(i * o for i, o in inputs.values())
    found = cost.memory(config, cost.Work(dtype="bfloat16"), packed=True)
    assert found.weights == codes + 2 * floats
