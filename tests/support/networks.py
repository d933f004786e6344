"""Small networks of every library, and their weights on chips."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from nvcim_jax import crossbar, devices
from nvcim_jax.crossbar import Config, Kernel, OnChip

IDEAL, GAUSSIAN, PCM = devices.get("ideal"), devices.get("Gaussian", sigma=0.05), devices.get("PCM")
CONFIG = Config(rows=16)
CALIBRATED = Config(rows=16, dac_bits=8, dac_range="calibrated", adc_bits=8, adc_range="calibrated")


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


class Network(NamedTuple):
    """A network: `apply(params, x)`, and how `on_chip` is told about it."""

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    x: jax.Array
    options: dict[str, Any]


class _Dense(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.LayerNorm()(nn.relu(nn.Dense(7)(x))))


class _Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 2), strides=2)(x)), (2, 2), (1, 1))
        x = nn.relu(nn.Conv(5, (2, 2), kernel_dilation=2, padding="CIRCULAR")(x))
        return nn.Dense(3)(nn.Conv(2, (2, 1), padding="VALID")(x).reshape(x.shape[0], -1))


class _Sequences(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(3, (3,), padding="CAUSAL")(nn.MultiHeadDotProductAttention(2, qkv_features=4)(x))


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(nn.Dense(5)(x)), None


class _Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(nn.remat(_Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class _Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Conv(2, 3, (2, 2), rngs=rngs), nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(x)).reshape(x.shape[0], -1))


class _Equinox(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.MLP

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)).reshape(-1))


def _linen(module: nn.Module, x: jax.Array, **options: Any) -> Network:
    return Network(module.apply, module.init(jax.random.key(0), x), x, options)


def _sequence_kernels(path: str, leaf: Any) -> bool | Kernel:
    del leaf
    if not path.endswith("kernel"):
        return False
    return Kernel((0, 1)) if "/out/" in path or "Conv" in path else Kernel((0,))


def all_matrices(path: str, leaf: Any) -> bool:
    del path
    return leaf.ndim > 1


def _nnx_network() -> Network:
    net = _Nnx(nnx.Rngs(0))
    graph, state = nnx.split(net)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        filled = nnx.split(net)[1]
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled)(x)

    return Network(apply, nnx.to_pure_dict(state), draw(2, 3, 4, 2), {})


def _equinox_network() -> Network:
    keys = jax.random.split(jax.random.key(0))
    with jax.debug_key_reuse(False):  # Equinox splits a key twice for the check of JAX 0.8
        first = eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2, key=keys[0])
        model = _Equinox(first, eqx.nn.MLP(12, 3, 5, 1, key=keys[1]))
    return Network(lambda model, x: jax.vmap(model)(x), model, draw(2, 2, 5, 6), {"rows": 1})


def plain(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bi,io->bo", jnp.tanh(x @ params["first"] + params["bias"][None]), params["second"])


def _scanned(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, w)[0]


def _indexed(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w[i]), jnp.tanh(x @ w[-1]))


PLAIN = {"first": draw(20, 7), "bias": draw(7), "second": draw(7, 3)}
MAKERS: dict[str, Callable[[], Network]] = {
    "linen, dense": lambda: _linen(_Dense(), draw(4, 20)),
    "linen, convolutional": lambda: _linen(_Convolutional(), draw(2, 9, 8, 2)),
    "linen, attention": lambda: _linen(_Sequences(), draw(2, 5, 6), select=_sequence_kernels),
    "linen, scanned": lambda: _linen(_Scanned(), draw(4, 5), select=lambda path, leaf: path.endswith("kernel")),
    "nnx": _nnx_network,
    "equinox": _equinox_network,
    "plain": lambda: Network(plain, PLAIN, draw(4, 20), {}),
    "a stack, scanned": lambda: Network(_scanned, draw(3, 5, 5), draw(4, 5), {"select": all_matrices}),
    "a stack, indexed": lambda: Network(_indexed, draw(3, 5, 5), draw(4, 5), {"select": all_matrices}),
}


@functools.cache
def network(name: str) -> Network:
    return MAKERS[name]()


def on_chips(key: jax.Array, net: Network, device: devices.Device, config: Config = CONFIG) -> Any:
    return crossbar.on_chip(key, net.params, device, config=config, **net.options)


def chips_of(tree: Any) -> dict[str, OnChip]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, OnChip))
    return {leaf.path: leaf for leaf in leaves if isinstance(leaf, OnChip)}


def _stored(leaf: OnChip) -> jax.Array:
    """Return the array that the cells of a leaf hold, without converters, in the shape of the leaf."""

    def one(chip: crossbar.Chip) -> jax.Array:
        rest = [axis for axis in range(len(leaf.kernel)) if axis not in leaf.rows]
        matrix = crossbar.read_back(jax.random.key(0), chip)
        array = matrix.reshape([leaf.kernel[axis] for axis in (*leaf.rows, *rest)])
        return jnp.transpose(array, np.argsort((*leaf.rows, *rest)))

    return jax.vmap(one)(leaf.chip) if leaf.num_stacked else one(leaf.chip)


def dense(tree: Any) -> Any:
    """Return the tree with the arrays that its chips hold."""
    is_chip = lambda node: isinstance(node, OnChip)  # noqa: E731
    return jax.tree.map(lambda leaf: _stored(leaf) if is_chip(leaf) else leaf, tree, is_leaf=is_chip)
