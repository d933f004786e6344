"""The static description, its parameters, and the positions it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models
from nvcim_jax.models.positions import frequencies

SIZES = {"vocab_size": 64, "width": 32, "num_layers": 2, "num_heads": 4, "mlp_width": 48}


def test_a_config_is_hashable_and_compares_by_value() -> None:
    assert hash(models.Config(**SIZES)) == hash(models.Config(**SIZES))
    assert models.Config(**SIZES) != models.Config(**SIZES, tied=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "`num_kv_heads` must divide num_heads = 4"),
        ({"activation": "gelu_tan"}, "Did you mean 'gelu_tanh'"),
        ({"norm": "batch"}, "must be one of layer, rms"),
        ({"rotary_dim": 5}, "must be even"),
        ({"rotary_dim": 10}, "`rotary_dim` must be an integer of at least 2 and at most 8"),
        ({"window": 0}, "`window` must be an integer"),
        ({"sliding": (True, False)}, "`window` must be an integer where layers slide"),
        ({"window": 4, "sliding": (True,)}, "one bool for each of 2 layers"),
        ({"shared_norm": True}, "unless the block is parallel"),
        ({"width": 0}, "`width` must be an integer of at least 1"),
    ],
)
def test_contradictions_are_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        models.Config(**(SIZES | changes))


def test_a_misspelt_option_is_corrected() -> None:
    with pytest.raises(TypeError, match="Did you mean 'num_kv_heads'"):
        models.Config(**SIZES, num_kv_head=2)


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("llama3", 8.0)])
def test_scaled_frequencies_lie_between_the_plain_and_the_divided_ones(scaling, factor) -> None:
    plain = frequencies(models.Rope(theta=5e5), 64)
    found = frequencies(models.Rope(theta=5e5, scaling=scaling, factor=factor), 64)
    assert (found <= plain + 1e-12).all()
    assert (found >= plain / factor - 1e-12).all()
    np.testing.assert_allclose(found[-1], plain[-1] / factor)  # the slowest channel is always divided
    if scaling == "llama3":
        np.testing.assert_allclose(found[0], plain[0])  # the fastest never


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of linear, llama3, none"):
        models.Rope(scaling="yarn")


def test_initial_weights_have_the_asked_for_spread() -> None:
    config = models.Config(vocab_size=512, width=64, num_layers=8, num_heads=4, mlp_width=128)
    params = models.init(jax.random.key(0), config=config, scale=0.02).params
    for name, wanted in (("q", 0.02), ("up", 0.02), ("down", 0.02 / 4), ("o", 0.02 / 4)):
        weight = params["layers"][name]
        error = wanted / np.sqrt(2 * weight.size)  # standard error of a standard deviation
        assert abs(float(weight.std()) - wanted) <= 5 * error, name
    assert bool((params["final_norm"] == 1.0).all())
    gemma = models.Config(**SIZES, norm_offset=True)
    assert bool((models.init(jax.random.key(0), config=gemma).params["final_norm"] == 0.0).all())


def test_sizes_are_counted(key) -> None:
    for config in (models.Config(**SIZES), models.Config(**SIZES, tied=False, norm="layer", head_bias=True)):
        lm = models.init(key, config=config) if config.tied else models.init(jax.random.key(1), config=config)
        assert sum(a.size for a in jax.tree.leaves(lm)) == config.num_params


def test_scaled_embeddings_take_the_soft_prompt_as_it_is() -> None:
    config = models.Config(**SIZES, embedding_scale=32**0.5)
    lm = models.init(jax.random.key(0), config=config)
    ids = jnp.array([3, 5])
    np.testing.assert_allclose(models.embed(lm, ids), lm.params["embedding"][ids] * np.float32(32**0.5), rtol=1e-6)
    half = models.init(jax.random.key(0), config=config, dtype=jnp.bfloat16)
    assert models.embed(half, ids).dtype == jnp.bfloat16
