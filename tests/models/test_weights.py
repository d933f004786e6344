"""Weights that multiply in their own way, in every function of the decoder and under every transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import ShapedArray
from support.params import mostly_slow

from nvcim_jax import models, tuning
from nvcim_jax.ops import Weight, register_weight

CONFIG = models.Config(
    vocab_size=64, width=32, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=48, tied=False, eos_ids=(2,)
)
IDS = np.array([[1, 5, 6, 7, 8], [9, 10, 11, 12, 13]], np.int32)
ANSWERS = models.candidates([[7], [8, 9]], end=2)


class LowRank(Weight):
    """w + a b."""

    w: Any
    a: Any
    b: Any

    def aval(self) -> Any:
        return ShapedArray(self.w.shape, self.w.dtype)

    def dense(self) -> jax.Array:
        return self.w + self.a @ self.b


class Shifted(Weight):
    """w + eps z, z drawn anew wherever it multiplies."""

    w: Any
    key: Any
    eps: Any

    def aval(self) -> Any:
        return ShapedArray(self.w.shape, self.w.dtype)

    def dense(self) -> jax.Array:
        return self.w + self.eps * jax.random.normal(jax.random.clone(self.key), self.w.shape)


def _plus(x: jax.Array, change: Callable[[jax.Array], jax.Array], w: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    last = tuple(range(x.ndim - len(axes), x.ndim))
    return jax.lax.dot_general(x, w, ((last, axes), ((), ()))) + change(x)


def _times_low_rank(w: LowRank, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    def change(x: jax.Array) -> jax.Array:
        return (x @ w.a) @ w.b if axes == (0,) else (x @ w.b.T) @ w.a.T

    return _plus(x, change, w.w, axes)


def _times_shifted(w: Shifted, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    z = jax.random.normal(jax.random.clone(w.key), w.w.shape)
    return _plus(x, lambda x: w.eps * (x @ (z if axes == (0,) else z.T)), w.w, axes)


register_weight(LowRank, _times_low_rank)
register_weight(Shifted, _times_shifted)


def _low_rank(key: jax.Array, w: jax.Array) -> LowRank:
    *stack, rows, cols = w.shape
    one, two = jax.random.split(key)
    return LowRank(w, 0.3 * jax.random.normal(one, (*stack, rows, 2)), 0.3 * jax.random.normal(two, (*stack, 2, cols)))


def _shifted(key: jax.Array, w: jax.Array) -> Shifted:
    num = w.shape[:-2]
    return Shifted(w, jax.random.split(key, num) if num else key, jnp.full(num, 0.1))


MAKES = {"low_rank": _low_rank, "shifted": _shifted}


def _pair(make: Callable[..., Any], names: tuple[str, ...]) -> tuple[models.LM, models.LM]:
    """Return a model with such weights, and the same one with what they stand for."""
    lm = models.init(jax.random.key(0), config=CONFIG, scale=0.2)
    own, merged = dict(lm.params), dict(lm.params)
    own["layers"], merged["layers"] = dict(own["layers"]), dict(merged["layers"])
    for i, name in enumerate(names):
        branches = (own, merged) if name == "head" else (own["layers"], merged["layers"])
        leaf = make(jax.random.fold_in(jax.random.key(1), i), branches[0][name])
        branches[0][name] = leaf
        branches[1][name] = leaf.dense() if leaf.ndim == 2 else jax.vmap(lambda w: w.dense())(leaf)
    return lm.replace(params=own), lm.replace(params=merged)


def _x(lm: models.LM) -> jax.Array:
    return models.embed(lm, jnp.asarray(IDS))


FUNCTIONS: dict[str, Callable[[models.LM], Any]] = {
    "forward": lambda lm: models.forward(lm, _x(lm))[0],
    "hidden at": lambda lm: models.hidden(lm, _x(lm), at=jnp.array([[4], [2]]))[0],
    "some layers": lambda lm: models.hidden(lm, _x(lm), start=1, stop=2)[0],
    "remat": lambda lm: models.forward(lm, _x(lm), remat=True)[0],
    "loss": lambda lm: models.loss(lm, _x(lm), jnp.asarray(IDS), chunk=4)[0],
    "rank": lambda lm: models.rank(lm, _x(lm), ANSWERS),
    "answer loss": lambda lm: tuning.answer_loss(
        jnp.full((2, 32), 0.1),
        lm,
        tuning.examples([[1, 5], [1, 6]], [[8, 2], [9, 2]]),
        jnp.ones(2),
        adapter=tuning.prompt(2),
    ),
    "gradient to the input": lambda lm: jax.grad(lambda x: models.loss(lm, x, jnp.asarray(IDS), chunk=4)[0])(_x(lm)),
    "gradient with remat": lambda lm: jax.grad(lambda x: models.loss(lm, x, jnp.asarray(IDS), chunk=4, remat=True)[0])(
        _x(lm)
    ),
}
NAMES = {"blocks": ("q", "up", "down"), "blocks and head": ("q", "up", "down", "head")}
EVERY = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("names", mostly_slow(NAMES, "blocks and head"))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_weight_does_what_it_stands_for(name, names, make) -> None:
    run = FUNCTIONS[name]
    own, merged = _pair(make, NAMES[names])
    wanted = jax.jit(run)(merged)
    np.testing.assert_allclose(jax.jit(run)(own), wanted, atol=1e-5, rtol=1e-5)
    if "head" in names:
        np.testing.assert_allclose(run(own), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@EVERY
def test_text_is_continued_as_by_what_it_stands_for(make) -> None:
    own, merged = _pair(make, NAMES["blocks and head"])

    @jax.jit
    def run(lm: models.LM) -> jax.Array:
        return models.generate_tokens(jax.random.key(0), lm, _x(lm), max_new_tokens=5)[0]

    np.testing.assert_array_equal(run(own), run(merged))


def _again(a: jax.Array) -> jax.Array:
    """Return an array, or keys that may be used once more."""
    return jax.random.clone(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


@pytest.mark.slow
@EVERY
def test_many_by_vmap_are_many_by_loop(make) -> None:
    own, _ = _pair(make, NAMES["blocks"])
    ids = jnp.stack([jnp.asarray(IDS), jnp.asarray(IDS[::-1])])
    lms = jax.tree.map(lambda a: jnp.stack([a, jnp.flip(a, 0)]) if a.dtype == jnp.float32 else jnp.stack([a, a]), own)

    def run(lm: models.LM, ids: jax.Array) -> jax.Array:
        return models.forward(lm, models.embed(lm, ids))[0]

    found = jax.jit(jax.vmap(run))(jax.tree.map(_again, lms), ids)
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: _again(a)[i], lms)
        np.testing.assert_allclose(found[i], jax.jit(run)(one, ids[i]), atol=1e-5)


def test_gradients_to_a_low_rank_change_are_those_through_the_merged_weight() -> None:
    own, _ = _pair(_low_rank, NAMES["blocks and head"])
    x = _x(own)

    def through(leaf: LowRank, name: str, merge: bool, lm: models.LM) -> jax.Array:
        made = leaf.w + leaf.a @ leaf.b if merge else leaf
        params = dict(lm.params)
        if name == "head":
            params["head"] = made
        else:
            params["layers"] = {**params["layers"], name: made}
        return models.loss(lm.replace(params=params), x, jnp.asarray(IDS), chunk=4)[0]

    for name, leaf in (("up", own.params["layers"]["up"]), ("head", own.params["head"])):
        slope = jax.jit(jax.grad(through), static_argnums=(1, 2))
        found, wanted = slope(leaf, name, False, own), slope(leaf, name, True, own)
        for part in ("a", "b"):
            np.testing.assert_allclose(getattr(found, part), getattr(wanted, part), atol=1e-6)
            assert float(jnp.abs(getattr(found, part)).max()) > 0


def test_a_tied_head_is_asked_along_its_second_axis() -> None:
    config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=48)
    lm = models.init(jax.random.key(0), config=config, scale=0.2)
    x, leaf = _x(lm), _low_rank(jax.random.key(1), lm.params["embedding"])
    own = lm.replace(params={**lm.params, "embedding": leaf})
    merged = lm.replace(params={**lm.params, "embedding": leaf.dense()})
    np.testing.assert_allclose(models.forward(own, x)[0], models.forward(merged, x)[0], atol=1e-5)
    with pytest.raises(ValueError, match="in products alone, but it is used in the operation"):
        models.embed(own, jnp.asarray(IDS))


def test_a_class_that_is_registered_again_multiplies_in_the_new_way() -> None:
    class Times(Weight):
        w: Any

        def aval(self) -> Any:
            return ShapedArray(self.w.shape, self.w.dtype)

    config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=4, mlp_width=48)
    lm = models.init(jax.random.key(0), config=config, scale=0.2)
    states = jax.random.normal(jax.random.key(1), (2, 32))
    own = lm.replace(params={**lm.params, "embedding": Times(lm.params["embedding"])})
    for factor in (1.0, 2.0):
        register_weight(Times, lambda w, x, axes, factor=factor: factor * jnp.tensordot(x, w.w, (-1, axes[0])))
        np.testing.assert_allclose(models.head(own, states), factor * models.head(lm, states), rtol=1e-5, atol=1e-5)


def test_what_is_no_matrix_of_a_block_is_not_chosen() -> None:
    lm = models.init(jax.random.key(0), config=CONFIG)
    flat = {f"layers/{name}": leaf for name, leaf in lm.params["layers"].items()}
    flat |= {name: leaf for name, leaf in lm.params.items() if name != "layers"}
    chosen = {path for path, leaf in flat.items() if models.is_block_matrix(path, leaf)}
    assert chosen == {f"layers/{name}" for name in ("q", "k", "v", "o", "up", "down", "gate")}


def test_a_plain_array_is_asked_for_by_save(tmp_path) -> None:
    own, _ = _pair(_low_rank, ("up",))
    with pytest.raises(ValueError, match=r"`lm.params: layers.up` must be an array to be saved, but is a LowRank"):
        models.save(tmp_path, own)
