"""The library's own decoder on chips: every function of it, without knowing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, models
from nvcim_jax.crossbar import Config, OnChip

IDEAL, GAUSSIAN = devices.get("ideal"), devices.get("Gaussian", sigma=0.02)
CONFIG = Config(rows=16)
MODEL = models.Config(vocab_size=40, width=32, num_layers=3, num_heads=4, mlp_width=48)
LM = models.init(jax.random.key(0), config=MODEL, scale=0.2)
IDS = jnp.asarray(np.random.default_rng(0).integers(1, 40, (2, 7)))
ANSWERS = models.candidates([[3], [5, 6], [7, 8, 9]], end=0)


def _on(key: jax.Array, device: devices.Device, select: Any = models.is_block_matrix) -> models.LM:
    return LM.replace(params=crossbar.on_chip(key, LM.params, device, config=CONFIG, select=select))


def _stored(leaf: Any) -> Any:
    """Return the matrices that the cells of a leaf hold."""
    if not isinstance(leaf, OnChip):
        return leaf
    read = lambda chip: crossbar.read_back(jax.random.key(0), chip)  # noqa: E731
    return jax.vmap(read)(leaf.chip) if leaf.num_stacked else read(leaf.chip)


def _dense(lm: models.LM) -> models.LM:
    return lm.replace(params=jax.tree.map(_stored, lm.params, is_leaf=lambda node: isinstance(node, OnChip)))


def _generate(lm: models.LM) -> jax.Array:
    return models.generate_tokens(jax.random.key(1), lm, models.embed(lm, IDS), max_new_tokens=4)[0]


USES = {
    "forward": lambda lm: models.forward(lm, models.embed(lm, IDS))[0],
    "hidden": lambda lm: models.hidden(lm, models.embed(lm, IDS))[0],
    "loss": lambda lm: models.loss(lm, models.embed(lm, IDS), IDS, chunk=4)[0],
    "loss, remat": lambda lm: models.loss(lm, models.embed(lm, IDS), IDS, remat=True)[0],
    "rank": lambda lm: models.rank(lm, models.embed(lm, IDS), ANSWERS),
    "generate": _generate,
}


@pytest.mark.slow
@pytest.mark.parametrize("use", mostly_slow(USES, "forward", "loss", "loss, remat", "hidden"))
def test_on_ideal_chips_the_decoder_equals_itself(use: str, key: jax.Array) -> None:
    np.testing.assert_allclose(USES[use](_on(key, IDEAL)), USES[use](LM), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("use", mostly_slow(USES, "forward", "loss", "hidden"))
def test_on_noisy_chips_it_is_the_decoder_of_what_their_cells_hold(use: str, key: jax.Array) -> None:
    noisy = _on(key, GAUSSIAN)
    fn = jax.jit(USES[use])
    found, wanted = fn(noisy), fn(_dense(noisy))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert use == "generate" or jnp.abs(found - USES[use](LM)).max() > 1e-3


@pytest.mark.slow
def test_its_head_may_lie_on_a_chip_too(key: jax.Array) -> None:
    config = dataclasses.replace(MODEL, tied=False)
    lm = models.init(jax.random.key(0), config=config, scale=0.2)
    chosen = lambda path, leaf: path == "head" or models.is_block_matrix(path, leaf)  # noqa: E731
    chips = lm.replace(params=crossbar.on_chip(key, lm.params, IDEAL, config=CONFIG, select=chosen))
    for use in ("forward", "loss", "rank"):
        np.testing.assert_allclose(USES[use](chips), USES[use](lm), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_pass_to_the_inputs_and_through_programming_to_the_weights(key: jax.Array) -> None:
    x = models.embed(LM, IDS)

    def loss(params: Any, x: jax.Array, remat: bool) -> jax.Array:
        chips = crossbar.on_chip(key, params, GAUSSIAN, config=CONFIG, select=models.is_block_matrix)
        return models.loss(LM.replace(params=chips), x, IDS, remat=remat)[0]

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    plain, again = grad(LM.params, x, False), grad(LM.params, x, True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    weights, inputs = plain
    for slope in (inputs, *(weights["layers"][name] for name in ("q", "k", "v", "o", "up", "down"))):
        assert jnp.isfinite(slope).all()
        assert (jnp.abs(slope).max(axis=(1, 2)) > 0).all()
    # to the inputs, it is the slope of the decoder of what the cells hold
    held = _dense(_on(key, GAUSSIAN))
    exact = jax.grad(lambda x: models.loss(held, x, IDS)[0])(x)
    np.testing.assert_allclose(inputs, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_many_sets_of_chips_by_vmap(key: jax.Array) -> None:
    keys = jax.random.split(key, 3)
    one = lambda key: USES["loss"](_on(key, GAUSSIAN))  # noqa: E731
    found = jax.jit(jax.vmap(one))(keys)
    np.testing.assert_allclose(found, jax.lax.map(one, keys), rtol=1e-5)
    assert len(set(np.asarray(found).tolist())) == 3


def test_a_tied_table_is_refused_where_it_is_looked_up(key: jax.Array) -> None:
    chips = _on(key, IDEAL, select=lambda path, leaf: path == "embedding")
    with pytest.raises(ValueError, match=r"the weight 'embedding' \(OnChip\) .* leave it out by `select=`"):
        models.embed(chips, IDS)
