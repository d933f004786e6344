"""Array-ish weights: every form of product that models use is that of the dense matrix, and the rest is refused."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import ShapedArray, Tracer

from nvcim_jax import ops


class Held(ops.Weight):
    """A matrix (of `rank` axes), or a stack of them, that is merely held."""

    matrix: jax.Array
    rank: int = eqx.field(static=True, default=2)

    def aval(self) -> Any:
        return ShapedArray(self.matrix.shape, self.matrix.dtype)

    @property
    def num_stacked(self) -> int:
        return self.matrix.ndim - self.rank


def _times(w: Held, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    assert w.matrix.ndim == w.rank  # a stack never arrives here
    ends = tuple(range(x.ndim - len(axes), x.ndim))
    return lax.dot_general(x, w.matrix.astype(x.dtype), ((ends, axes), ((), ())))


ops.register_weight(Held, _times, lambda w, dtype: Held(w.matrix.astype(dtype), w.rank))


def _draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


X, X2, X1, X4 = _draw(2, 4, 5), _draw(4, 5), _draw(5), _draw(2, 7, 6, 5)
Form = Callable[[jax.Array], Any]
MATRIX = {
    "x @ w": lambda w: X @ w,
    "x @ w.T": lambda w: X @ w.T.T,
    "w @ x": lambda w: w.T @ X1,
    "w @ many": lambda w: w.T @ X2.T,
    "dot": lambda w: jnp.dot(X, w),
    "vdot of a row": lambda w: X1 @ w,
    "tensordot": lambda w: jnp.tensordot(X, w, 1),
    "swapaxes": lambda w: X @ jnp.swapaxes(jnp.swapaxes(w, 0, 1), -1, -2),
    "both axes": lambda w: jnp.tensordot(_draw(4, 5, 3), w, 2),
    "both axes, turned": lambda w: jnp.einsum("boi,io->b", _draw(4, 3, 5), w),
    "...i,io->...o": lambda w: jnp.einsum("...i,io->...o", X, w),
    "...i,oi->...o": lambda w: jnp.einsum("...i,oi->...o", X, w.T),
    "io,bi->ob": lambda w: jnp.einsum("io,bi->ob", w, X2),
    "three operands": lambda w: jnp.einsum("bi,io,bo->b", X2, w, _draw(4, 3)),
    "NumPy inputs": lambda w: np.ones((2, 5), np.float32) @ w,
    "asarray": lambda w: X @ jnp.asarray(w),
    "array": lambda w: X @ jnp.array(w),
    "stop_gradient": lambda w: X @ lax.stop_gradient(w),
    "astype": lambda w: X.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    "a dtype asked for": lambda w: jnp.matmul(
        X.astype(jnp.bfloat16), w.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    ),
    "a cast of the transposed": lambda w: X.astype(jnp.bfloat16) @ w.T.astype(jnp.bfloat16).T,
    "jit inside": lambda w: jax.jit(lambda x, w: x @ w)(X, w),
    "vmap inside": lambda w: jax.vmap(lambda x: x @ w)(X),
    "grad to the inputs": lambda w: jax.grad(lambda x: jnp.sin(x @ w).sum())(X),
    "remat": lambda w: jax.checkpoint(lambda x, w: jnp.sin(x @ w))(X, w),
    "grad through remat": lambda w: jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ w))(x).sum())(X),
    "cond": lambda w: lax.cond(X1[0] > 0, lambda w: X @ w, lambda w: 2.0 * (X @ w), w),
    "a loop that uses it again": lambda w: lax.fori_loop(0, 3, lambda i, c: c + X1 @ w, jnp.zeros(3)),
    "a loop that carries it": lambda w: lax.fori_loop(0, 3, lambda i, c: (c[0] + X1 @ c[1], c[1]), (jnp.zeros(3), w))[
        0
    ],
    "what follows": lambda w: jax.nn.softmax(jax.nn.gelu(X @ w)),
    "a custom derivative behind it": lambda w: _doubled(X @ w),
}


@jax.custom_vjp
def _doubled(x: jax.Array) -> jax.Array:
    return 2.0 * x


_doubled.defvjp(lambda x: (2.0 * x, None), lambda _, g: (2.0 * g,))

STACK = {
    "scan": lambda s: lax.scan(lambda c, w: (c, X @ w), 0.0, s)[1],
    "scan over the transposed": lambda s: lax.scan(lambda c, w: (c, X @ w.T), 0.0, s.mT)[1],
    "map": lambda s: lax.map(lambda w: X @ w, s),
    "vmap": jax.vmap(lambda w: X @ w),
    "vmap, each its inputs": lambda s: jax.vmap(lambda x, w: x @ w)(_draw(6, 2, 5), s),
    "s[2]": lambda s: X @ s[2],
    "s[-1]": lambda s: X @ s[-1],
    "s[1:3]": lambda s: lax.map(lambda w: X @ w, s[1:3]),
    "a traced index": lambda s: jax.jit(lambda i, s: X @ s[i])(jnp.int32(2), s),
    "dynamic_index_in_dim": lambda s: X @ lax.dynamic_index_in_dim(s, 2, keepdims=False),
    "a loop over the index": lambda s: lax.fori_loop(0, 6, lambda i, c: c + X @ s[i], jnp.zeros((2, 4, 3))),
    "batch by batch": lambda s: jnp.einsum("bi,bio->bo", _draw(6, 5), s),
    "batch by batch, more axes": lambda s: jnp.einsum("xbi,bio->xbo", _draw(7, 6, 5), s),
    "batch by batch, the weight first": lambda s: jnp.einsum("bio,xbi->xbo", s, _draw(7, 6, 5)),
    "the stack free": lambda s: jnp.einsum("bi,lio->blo", X2, s),
    "the stack free, the weight first": lambda s: jnp.tensordot(s, X2, [[1], [1]]),
}
REFUSED: dict[str, tuple[Form, str]] = {
    "a sum": (lambda w: w + 1.0, "`add`"),
    "an element-wise product": (lambda w: 2.0 * w, "`mul`"),
    "reshape": (lambda w: w.reshape(-1), "`reshape`"),
    "a norm": (lambda w: jnp.abs(w).sum(), "`abs`"),
    "a row": (lambda w: w[1], "cut apart"),
    "a traced row": (lambda w: lax.dynamic_index_in_dim(w, 1), "cut apart"),
    "a column": (lambda w: w[:, 1], "cut apart"),
    "rows by numbers": (lambda w: w[jnp.array([1, 2])], "`gather`"),
    "another axis": (lambda w: w[None], "`broadcast_in_dim`"),
    "stacking": (lambda w: jnp.stack([w, w]), "`stack` or `broadcast_in_dim`"),  # the latter in JAX 0.8
    "two weights": (lambda w: w.T @ w, "multiplied with a weight of type Held"),
    "batch over a matrix": (lambda w: jnp.einsum("i,io->io", X1, w), "batch by batch along an axis of its matrix"),
    "a sum over an axis": (lambda w: jnp.einsum("bi,io->b", X2, w), "`reduce_sum`"),
    "a custom derivative": (_doubled, "a function with a backward pass of its own"),
}
REFUSED_STACK: dict[str, tuple[Form, str]] = {
    "a product over the stack": (lambda s: jnp.einsum("bl,lio->bio", _draw(4, 6), s), "summed over its stack"),
    "transposed across it": (lambda s: s.T, "transposed to the axes (2, 1, 0) across its stack"),
    "every other": (lambda s: s[::2], "cut apart or `gather`"),  # the latter in JAX 0.8
    "squeezed": (lambda s: jnp.squeeze(s[:, :, :1], -1), "cut apart"),
}


NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
CONVOLUTIONS = {
    "images as in Flax": (X4, (3, 2, 5, 4), {"dimension_numbers": NHWC}),
    "images as in Equinox": (jnp.moveaxis(X4, 3, 1), (4, 5, 3, 2), {"dimension_numbers": NCHW}),
    "strides, uneven padding": (X4, (3, 2, 5, 4), {"dimension_numbers": NHWC, "window_strides": (2, 3)}),
    "a dilated kernel": (X4, (2, 2, 5, 4), {"dimension_numbers": NHWC, "rhs_dilation": (3, 2)}),
    "valid": (X4, (3, 2, 5, 4), {"dimension_numbers": NHWC, "padding": "VALID"}),
    "cropped": (X4, (3, 2, 5, 4), {"dimension_numbers": NHWC, "padding": ((-1, 2), (0, -1))}),
    "one place": (X4, (7, 6, 5, 4), {"dimension_numbers": NHWC, "padding": "VALID"}),
    "sequences": (_draw(2, 9, 5), (3, 5, 4), {"dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (2,)}),
    "volumes": (_draw(1, 4, 5, 3, 2), (2, 2, 2, 2, 3), {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
    "a dtype asked for": (
        X4.astype(jnp.bfloat16),
        (3, 2, 5, 4),
        {"dimension_numbers": NHWC, "preferred_element_type": jnp.float32},
    ),
}


def _convolve(x: jax.Array, options: dict[str, Any], w: jax.Array) -> jax.Array:
    options = {"window_strides": (1,) * (x.ndim - 2), "padding": "SAME"} | options
    return lax.conv_general_dilated(x, w.astype(x.dtype), **options)


@pytest.mark.slow
@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_a_kernel_convolves_as_if_dense(form: str) -> None:
    x, shape, options = CONVOLUTIONS[form]
    w = _draw(*shape)
    fn = functools.partial(_convolve, x, options)
    _close(_held(fn)(Held(w, w.ndim)), fn(w), rtol=2e-2 if "dtype" in form else 1e-5)
    if "dtype" not in form:
        found = jax.grad(lambda held: jnp.sin(_held(fn)(held)).sum())(Held(w, w.ndim)).matrix
        np.testing.assert_allclose(found, jax.grad(lambda w: jnp.sin(fn(w)).sum())(w), rtol=1e-4, atol=1e-4)


def test_a_transposed_kernel_convolves_and_a_stack_is_scanned() -> None:
    w, stack = _draw(4, 5, 3, 2), _draw(2, 3, 3, 5, 5)
    options = {"dimension_numbers": NHWC}
    turned = lambda w: _convolve(X4, options, jnp.transpose(w, (2, 3, 1, 0)))  # noqa: E731
    _close(_held(turned)(Held(w, 4)), turned(w))
    layers = lambda s: lax.scan(lambda x, w: (jnp.tanh(_convolve(x, options, w)), None), X4, s)[0]  # noqa: E731
    _close(_held(layers)(Held(stack, 4)), layers(stack))


@pytest.mark.parametrize(
    ("shape", "options", "names"),
    [
        ((3, 2, 1, 5), {"feature_group_count": 5}, "convolved in groups"),
        ((3, 2, 5, 4), {"lhs_dilation": (2, 1), "padding": ((1, 1), (0, 0))}, "used in a transposed convolution"),
    ],
)
def test_other_convolutions_are_refused_by_name(shape: tuple[int, ...], options: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=rf"in products alone, but it is {names}. Leave .* out by `select="):
        _held(functools.partial(_convolve, X4, {"dimension_numbers": NHWC} | options))(Held(_draw(*shape), 4))


class Named(Held):
    @property
    def label(self) -> str:
        return "layers/q"


def test_a_named_weight_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"the weight 'layers/q' \(Named\) in products alone, .*table of embeddings"):
        _held(lambda w: w[jnp.array([1, 2])])(Named(_draw(5, 3)))


def _held(form: Form) -> Callable[[Held], Any]:
    return ops.understand(form)


def _close(found: Any, wanted: Any, rtol: float = 1e-5) -> None:
    assert found.dtype == wanted.dtype
    rtol = 2e-2 if found.dtype == jnp.bfloat16 else rtol
    found, wanted = (np.asarray(a.astype(jnp.float32)) for a in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("form", MATRIX)
def test_a_matrix_multiplies_as_if_dense(form: str, jit: bool) -> None:
    w, fn = _draw(5, 3), _held(MATRIX[form])
    # `times` returns the dtype of the inputs: what it is then asked for adds no bits
    _close((jax.jit(fn) if jit else fn)(Held(w)), MATRIX[form](w), rtol=2e-2 if "dtype" in form else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", STACK)
def test_a_stack_multiplies_as_if_dense(form: str) -> None:
    s = _draw(6, 5, 3)
    _close(_held(STACK[form])(Held(s)), STACK[form](s))


LOOPS = {"scan", "scan over the transposed", "map", "vmap", "vmap, each its inputs"}


@pytest.mark.parametrize("form", [form for form in STACK if form not in LOOPS])
def test_a_part_of_a_stack_is_the_stack_cut_out(form: str) -> None:
    """Of weights and of arrays, from a traced number on."""
    s = _draw(9, 5, 3)
    for whole in (Held(s), s):
        part = jax.jit(lambda start, whole: ops.understand(STACK[form])(ops.Part(whole, start, 6)))
        _close(part(jnp.int32(2), whole), STACK[form](s[2:8]))


@pytest.mark.parametrize(("form", "names"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_product_is_refused_by_name(form: Form, names: str) -> None:
    with pytest.raises(ValueError, match="in products alone") as error:
        _held(form)(Held(_draw(5, 3)))
    assert any(name in str(error.value) for name in names.split(" or "))
    assert "Held" in str(error.value) or "Transposed" in str(error.value)


@pytest.mark.parametrize(("form", "names"), REFUSED_STACK.values(), ids=REFUSED_STACK)
def test_what_no_stack_can_is_refused_by_name(form: Form, names: str) -> None:
    with pytest.raises(ValueError, match="in products alone") as error:
        _held(form)(Held(_draw(6, 5, 3)))
    assert any(name in str(error.value) for name in names.split(" or "))


def test_it_never_becomes_dense() -> None:
    with pytest.raises(ValueError, match="turned into a dense array"):
        Held(_draw(5, 3)).materialise()


def test_matrices_of_three_axes() -> None:
    into, out = _draw(5, 2, 3), _draw(2, 3, 5)

    def attend(into: jax.Array, out: jax.Array) -> jax.Array:
        heads = jnp.einsum("bi,ihd->bhd", X2, into)
        return jnp.einsum("bhd,hdo->bo", heads, out) + jnp.einsum("bhd,dho->bo", heads, jnp.swapaxes(out, 0, 1))

    found = ops.understand(attend)(Held(into, 3), Held(out, 3))
    _close(found, attend(into, out))
    stacked = jnp.stack([out, 2.0 * out])
    layers = lambda s: lax.scan(lambda c, w: (c, jnp.tensordot(_draw(4, 2, 3), w, 2)), 0.0, s)[1]  # noqa: E731
    _close(ops.understand(layers)(Held(stacked, 3)), layers(stacked))


@pytest.mark.parametrize("form", ["x @ w", "w @ many", "both axes", "remat", "grad to the inputs", "cond"])
def test_the_gradient_to_what_is_held_is_that_of_the_matrix(form: str) -> None:
    w = _draw(5, 3)
    fn = MATRIX[form]
    found = jax.grad(lambda held: jnp.sin(_held(fn)(held)).sum())(Held(w))
    _close(found.matrix, jax.grad(lambda w: jnp.sin(fn(w)).sum())(w))


def test_nothing_flows_through_a_stop() -> None:
    form = MATRIX["stop_gradient"]
    assert not jax.grad(lambda held: _held(form)(held).sum())(Held(_draw(5, 3))).matrix.any()


def test_many_weights_by_vmap_are_a_loop() -> None:
    s, fn = _draw(6, 5, 3), _held(lambda w: jnp.sin(X @ w))
    _close(jax.vmap(fn)(Held(s)), jnp.stack([fn(Held(w)) for w in s]))


def test_a_weight_returned_is_the_weight() -> None:
    w = Held(_draw(5, 3))
    assert ops.understand(lambda tree: tree["w"])({"w": w}).matrix is w.matrix


def test_plain_arrays_pay_nothing() -> None:
    def fn(w: jax.Array) -> jax.Array:
        assert not isinstance(w, Tracer)
        return w

    ops.understand(fn)(_draw(5, 3))


class _Net(nn.Module):
    """Dense layers of two and three axes, attention, norms, dropout that is off."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm()(nn.Dense(8)(x))
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x)
        x = nn.remat(nn.Dense)(6)(nn.relu(x))
        return nn.DenseGeneral((2, 3))(nn.Dropout(0.5, deterministic=True)(x))


@pytest.mark.slow
def test_a_linen_network(key: jax.Array) -> None:
    net = _Net()
    params = net.init(key, X)
    held = {"params": jax.tree_util.tree_map_with_path(_kernel, params["params"])}
    _close(ops.understand(net.apply)(held, X), net.apply(params, X))


def _kernel(path: Any, leaf: jax.Array) -> Any:
    return Held(leaf, leaf.ndim) if path[-1].key == "kernel" else leaf


def test_an_nnx_network() -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first, self.second = nnx.Linear(5, 8, rngs=rngs), nnx.LinearGeneral(8, (2, 3), rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(nnx.relu(self.first(x)))

    net = Net(nnx.Rngs(0))
    graph, variables = nnx.split(net)
    state = nnx.to_pure_dict(variables)
    held = jax.tree.map(lambda a: Held(a, a.ndim) if a.shape[0] in (5, 8) and a.ndim > 1 else a, state)

    def apply(state: Any) -> jax.Array:
        filled = nnx.split(net)[1]
        nnx.replace_by_pure_dict(filled, state)
        return nnx.merge(graph, filled)(X)

    _close(ops.understand(apply)(held), apply(state))


def test_an_equinox_network() -> None:
    with jax.debug_key_reuse(False):  # Equinox splits a key twice for the check of JAX 0.8
        net = eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_array)

    def apply(arrays: Any) -> jax.Array:
        return jax.vmap(eqx.combine(arrays, static))(X2)

    held = jax.tree.map(lambda a: Held(a) if a.ndim == 2 else a, arrays)
    _close(ops.understand(apply)(held), apply(arrays))
