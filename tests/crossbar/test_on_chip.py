"""Networks on chips: every library's layers, under every transformation, equal themselves; the rest is refused."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from flax import nnx
from jax import lax

from nvcim_jax import crossbar, devices, montecarlo
from nvcim_jax.crossbar import Config, Converters, Kernel, OnChip

IDEAL, GAUSSIAN, PCM = devices.get("ideal"), devices.get("Gaussian", sigma=0.05), devices.get("PCM")
CONFIG = Config(rows=16)
Select = Callable[[str, Any], Any]


def _draw(*shape: int) -> jax.Array:
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


def _all(path: str, leaf: Any) -> bool:
    del path
    return leaf.ndim > 1


def _nnx_network() -> Network:
    graph, state = nnx.split(_Nnx(nnx.Rngs(0)))
    return Network(lambda state, x: nnx.merge(graph, state)(x), state, _draw(2, 3, 4, 2), {})


def _equinox_network() -> Network:
    keys = jax.random.split(jax.random.key(0))
    first = eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2, key=keys[0])
    model = _Equinox(first, eqx.nn.MLP(12, 3, 5, 1, key=keys[1]))
    return Network(lambda model, x: jax.vmap(model)(x), model, _draw(2, 2, 5, 6), {"rows": 1})


def _plain(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("bi,io->bo", jnp.tanh(x @ params["first"] + params["bias"][None]), params["second"])


def _scanned(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, w)[0]


def _indexed(w: jax.Array, x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 2, lambda i, h: jnp.tanh(h @ w[i]), jnp.tanh(x @ w[-1]))


PLAIN = {"first": _draw(20, 7), "bias": _draw(7), "second": _draw(7, 3)}
MAKERS: dict[str, Callable[[], Network]] = {
    "linen, dense": lambda: _linen(_Dense(), _draw(4, 20)),
    "linen, convolutional": lambda: _linen(_Convolutional(), _draw(2, 9, 8, 2)),
    "linen, attention": lambda: _linen(_Sequences(), _draw(2, 5, 6), select=_sequence_kernels),
    "linen, scanned": lambda: _linen(_Scanned(), _draw(4, 5), select=lambda path, leaf: path.endswith("kernel")),
    "nnx": _nnx_network,
    "equinox": _equinox_network,
    "plain": lambda: Network(_plain, PLAIN, _draw(4, 20), {}),
    "a stack, scanned": lambda: Network(_scanned, _draw(3, 5, 5), _draw(4, 5), {"select": _all}),
    "a stack, indexed": lambda: Network(_indexed, _draw(3, 5, 5), _draw(4, 5), {"select": _all}),
}


@functools.cache
def _network(name: str) -> Network:
    return MAKERS[name]()


def _on(key: jax.Array, net: Network, device: devices.Device, config: Config = CONFIG) -> Any:
    return crossbar.on_chip(key, net.params, device, config=config, **net.options)


def _chips(tree: Any) -> dict[str, OnChip]:
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


def _dense(tree: Any) -> Any:
    """Return the tree with the arrays that its chips hold."""
    is_chip = lambda node: isinstance(node, OnChip)  # noqa: E731
    return jax.tree.map(lambda leaf: _stored(leaf) if is_chip(leaf) else leaf, tree, is_leaf=is_chip)


@pytest.mark.parametrize("name", MAKERS)
def test_on_ideal_chips_a_network_equals_itself(name: str, key: jax.Array) -> None:
    net = _network(name)
    found = quax.quaxify(net.apply)(_on(key, net, IDEAL), net.x)
    np.testing.assert_allclose(found, net.apply(net.params, net.x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_on_noisy_chips_it_computes_with_what_their_cells_hold_in_jit_too(name: str, key: jax.Array) -> None:
    net = _network(name)
    chips = _on(key, net, GAUSSIAN)
    wanted = net.apply(_dense(chips), net.x)
    assert jnp.abs(wanted - net.apply(net.params, net.x)).max() > 1e-3
    np.testing.assert_allclose(quax.quaxify(net.apply)(chips, net.x), wanted, atol=1e-5, rtol=1e-4)
    whole = jax.jit(lambda key, x: quax.quaxify(net.apply)(_on(key, net, GAUSSIAN), x))
    np.testing.assert_allclose(whole(key, net.x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_pass_to_inputs_and_through_programming_to_weights_and_remat(name: str, key: jax.Array) -> None:
    net = _network(name)
    arrays, static = eqx.partition(net.params, eqx.is_array)

    def loss(arrays: Any, x: jax.Array, device: devices.Device | None, wrap: Callable[..., Any]) -> jax.Array:
        params = eqx.combine(arrays, static)
        if device is None:
            return jnp.sin(net.apply(params, x)).sum()
        chips = _on(key, net._replace(params=params), device)
        return jnp.sin(wrap(quax.quaxify(net.apply))(chips, x)).sum()

    plain = lambda fn: fn  # noqa: E731
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=3)
    exact, ideal = grad(arrays, net.x, None, plain), grad(arrays, net.x, IDEAL, plain)
    # The largest entry of a matrix fixes its scale: its own slope is lost to the lowest and highest level.
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(ideal), strict=True):
        far = np.sort(np.abs(np.asarray(a) - np.asarray(b)).ravel())
        assert far[: max(far.size - 3, 1)].max() < 1e-3
    noisy = grad(arrays, net.x, GAUSSIAN, plain)
    for leaf in jax.tree.leaves(noisy):
        assert np.isfinite(leaf).all()
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(noisy[1]))
    # keys and other integers inside a chip are no obstacle to remat: it is told of arrays alone
    again = grad(arrays, net.x, GAUSSIAN, eqx.filter_checkpoint)
    for a, b in zip(jax.tree.leaves(noisy), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_vmap_over_chips_is_a_loop_over_them(name: str, key: jax.Array) -> None:
    net = _network(name)
    keys = jax.random.split(key, 3)

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        chips = _on(key, net, GAUSSIAN)
        return [chip.chip.cells.g for chip in _chips(chips).values()], quax.quaxify(net.apply)(chips, net.x)

    (cells, y), (looped_cells, looped_y) = jax.jit(jax.vmap(one))(keys), jax.jit(lambda k: lax.map(one, k))(keys)
    for a, b in zip(cells, looped_cells, strict=True):
        np.testing.assert_array_equal(
            a, b
        )  # the chips are the same bit for bit; a batched product sums in its own order
    np.testing.assert_allclose(y, looped_y, rtol=1e-5, atol=1e-5)
    assert len({float(jnp.ravel(v)[0]) for v in y}) == 3


@pytest.mark.parametrize("name", ["linen, dense", "linen, convolutional", "equinox", "a stack, scanned"])
def test_many_chips_made_before_are_mapped_over_as_a_tree(name: str, key: jax.Array) -> None:
    net = _network(name)
    keys = jax.random.split(key, 3)
    arrays, static = eqx.partition(
        jax.vmap(lambda k: eqx.filter(_on(k, net, GAUSSIAN), eqx.is_array))(keys), eqx.is_array
    )
    del static
    static = eqx.filter(_on(key, net, GAUSSIAN), eqx.is_array, inverse=True)
    run = quax.quaxify(net.apply)
    found = jax.vmap(lambda arrays: run(eqx.combine(arrays, static), net.x))(arrays)
    wanted = jnp.stack([run(_on(k, net, GAUSSIAN), net.x) for k in keys])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_in_monte_carlo_instances_do_not_depend_on_the_chunk(key: jax.Array) -> None:
    net = _network("linen, dense")

    def metric(key: jax.Array, x: jax.Array) -> jax.Array:
        return quax.quaxify(net.apply)(_on(key, net, PCM), x).std()

    runs = [
        montecarlo.run(metric, key, 6, args=(net.x,), placement=montecarlo.Placement(chunk=chunk)).values
        for chunk in (2, 6)
    ]
    np.testing.assert_array_equal(*runs)
    batched = montecarlo.run(metric, key, 6, args=(net.x,), placement=montecarlo.Placement(mapping="vmap")).values
    np.testing.assert_allclose(batched, runs[0], rtol=1e-5)
    assert len(set(np.asarray(runs[0]).tolist())) == 6


def test_another_sigma_is_no_new_program(key: jax.Array) -> None:
    net, traces = _network("plain"), []

    @jax.jit
    def run(key: jax.Array, device: devices.Device) -> jax.Array:
        traces.append(1)
        return quax.quaxify(net.apply)(_on(key, net, device), net.x)

    spread = [float(run(key, devices.get("Gaussian", sigma=sigma)).std()) for sigma in (0.0, 0.1, 0.2)]
    assert len(traces) == 1
    assert len(set(spread)) == 3


def test_a_chip_does_not_depend_on_what_else_is_chosen_or_on_the_order(key: jax.Array) -> None:
    net = _network("linen, dense")
    all_chips = _chips(_on(key, net, GAUSSIAN))
    assert list(all_chips) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    for path, chip in all_chips.items():
        alone = crossbar.on_chip(key, net.params, GAUSSIAN, config=CONFIG, select=lambda p, _, path=path: p == path)
        for a, b in zip(jax.tree.leaves(_chips(alone)[path]), jax.tree.leaves(chip), strict=True):
            np.testing.assert_array_equal(*(_bits(x) for x in (a, b)))
    other = {"a": _draw(3, 3)} | PLAIN
    more = crossbar.on_chip(key, other, GAUSSIAN, config=CONFIG)
    some = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=CONFIG)
    np.testing.assert_array_equal(more["first"].chip.cells.g, some["first"].chip.cells.g)


def _bits(a: jax.Array) -> jax.Array:
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def test_equal_weights_at_other_places_have_other_noise_and_so_has_every_layer(key: jax.Array) -> None:
    w = jnp.full((6, 4), 0.5).at[0, 0].set(1.0)
    chips = crossbar.on_chip(key, {"a": w, "b": w}, GAUSSIAN, config=CONFIG)
    assert not (chips["a"].chip.cells.g[:, 0] == chips["b"].chip.cells.g[:, 0]).any()
    stack = crossbar.on_chip(key, jnp.stack([w, w]), GAUSSIAN, config=CONFIG, select=_all)
    assert not (stack.chip.cells.g[0, :, 0] == stack.chip.cells.g[1, :, 0]).any()
    assert len(np.unique(_bits(stack.key), axis=0)) == 2


def test_the_noise_is_that_of_the_device(key: jax.Array) -> None:
    w = jnp.full((60, 60), 0.5).at[0, 0].set(1.0)
    leaf = crossbar.on_chip(key, {"w": w}, GAUSSIAN, config=Config())["w"]
    g = leaf.chip.cells.g[:, 0].ravel()[1:]  # those at 0.5
    assert abs(float(g.std()) - 0.05) < 5 * 0.05 / (2 * g.size) ** 0.5
    assert abs(float(g.mean()) - 0.5) < 5 * 0.05 / g.size**0.5


def test_products_with_one_leaf_are_one_read_and_reread_gives_another(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, {"w": _draw(20, 7)}, PCM, config=CONFIG)
    x = _draw(4, 20)
    read = quax.quaxify(lambda params: (x @ params["w"], x @ params["w"]))
    first, second = read(chips)
    np.testing.assert_array_equal(first, second)
    again, same = (crossbar.reread(jax.random.key(seed), chips) for seed in (1, 1))
    np.testing.assert_array_equal(again["w"].chip.cells.g, chips["w"].chip.cells.g)
    np.testing.assert_array_equal(read(again)[0], read(same)[0])
    assert not (read(again)[0] == first).any()
    quiet = crossbar.on_chip(key, {"w": _draw(20, 7)}, GAUSSIAN, config=CONFIG)
    np.testing.assert_array_equal(read(quiet)[0], read(crossbar.reread(key, quiet))[0])


def test_reads_of_a_stack_are_drawn_layer_by_layer(key: jax.Array) -> None:
    stack = crossbar.on_chip(key, jnp.stack([_draw(20, 7)] * 3), PCM, config=CONFIG, select=_all)
    again = crossbar.reread(jax.random.key(1), stack)
    assert len(np.unique(np.concatenate([_bits(stack.key), _bits(again.key)]), axis=0)) == 6


def test_other_converters_of_a_read(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, {"w": _draw(20, 7)}, PCM, config=CONFIG)
    coarse = Converters(dac_bits=4, adc_bits=4)
    read = crossbar.reread(jax.random.key(1), chips, converters=coarse)
    x, leaf = _draw(2, 3, 20), read["w"]
    found = quax.quaxify(lambda params: x @ params["w"])(read)
    np.testing.assert_array_equal(found, crossbar.matmul(leaf.key, x, leaf.chip, converters=coarse)[0])
    assert (found != crossbar.matmul(leaf.key, x, leaf.chip)[0]).any()


def test_a_weight_made_by_hand_and_a_key_of_the_old_kind() -> None:
    key, w = jax.random.PRNGKey(0), _draw(20, 7)
    leaf = OnChip(crossbar.program(key, w, IDEAL, config=CONFIG), key)
    np.testing.assert_allclose(quax.quaxify(lambda w: _draw(4, 20) @ w)(leaf), _draw(4, 20) @ w, rtol=1e-4, atol=1e-5)
    chips = crossbar.on_chip(key, {"w": w}, IDEAL, config=CONFIG)
    assert chips["w"].shape == (20, 7)


def test_half_precision_stays_what_the_network_sees(key: jax.Array) -> None:
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PLAIN)
    chips = crossbar.on_chip(key, params, IDEAL, config=CONFIG)
    found = quax.quaxify(_plain)(chips, _draw(4, 20).astype(jnp.bfloat16))
    assert chips["first"].dtype == found.dtype == jnp.bfloat16
    np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (found, _plain(PLAIN, _draw(4, 20)))), atol=0.2)


def test_what_writes_a_matrix_can_be_given(key: jax.Array) -> None:
    config = Config(adc_bits=6, adc_range="fixed")
    write = functools.partial(crossbar.program, adc_max=3.0)
    chips = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=config, write=write)
    np.testing.assert_array_equal(chips["first"].chip.adc_range, [[[-3.0, 3.0]]])


CALIBRATED = Config(rows=16, dac_bits=8, dac_range="calibrated", adc_bits=8, adc_range="calibrated")


@pytest.mark.parametrize("name", ["linen, dense", "linen, convolutional", "nnx", "linen, scanned"])
def test_a_calibrated_network_has_the_ranges_of_what_it_sees(name: str, key: jax.Array) -> None:
    net = _network(name)
    run = jax.jit(quax.quaxify(net.apply)) if name.startswith("linen") else quax.quaxify(net.apply)
    chips = _on(key, net, GAUSSIAN, CALIBRATED)
    with pytest.raises(ValueError, match="be calibrated"):
        run(chips, net.x)
    found = crossbar.calibrate_network(jax.random.key(1), lambda params: run(params, net.x), chips, quantile=1.0)
    assert jax.tree.structure(run(found, net.x)) == jax.tree.structure(net.x)
    full_scales = [float(jnp.ravel(leaf.chip.dac_max)[0]) for leaf in _chips(found).values()]
    assert float(jnp.abs(net.x).max()) in full_scales  # of the layer that the inputs enter
    wanted = net.apply(_dense(found), net.x)
    assert 1e-6 < jnp.abs(run(found, net.x) - wanted).max() < 0.1 * jnp.abs(wanted).max()  # rounded, not clipped
    others = crossbar.on_chip(jax.random.key(2), net.params, GAUSSIAN, config=CALIBRATED, ranges=found, **net.options)
    for path, leaf in _chips(others).items():
        np.testing.assert_array_equal(leaf.chip.adc_range, _chips(found)[path].chip.adc_range)
    assert jnp.isfinite(run(others, net.x)).all()


def test_calibration_is_that_of_each_chip_by_itself(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=CALIBRATED)
    x = _draw(4, 20)
    found = crossbar.calibrate_network(jax.random.key(1), lambda params: quax.quaxify(_plain)(params, x), chips)
    one = crossbar.calibrate(jax.random.key(1), x, chips["first"].chip)  # no read noise: the key does not matter
    np.testing.assert_allclose(found["first"].chip.adc_range, one.adc_range, rtol=1e-6)


REFUSED: dict[str, tuple[Callable[[jax.Array], Any], str]] = {
    "added to": (lambda w: w + 1.0, "used in the operation `add`. It can be multiplied with; choose which"),
    "looked up": (lambda w: w[jnp.array([0, 2])], "`gather`. It is looked up row by row, as a table of embeddings is"),
    "one row": (lambda w: w[2], "cut apart. It is looked up row by row"),
    "the other axis": (lambda w: _draw(4, 7) @ w.T, "contracted along axis 1, while it was programmed with its inputs"),
    "reshaped": (lambda w: w.reshape(-1), "used in the operation `reshape`"),
    "with another": (lambda w: w.T @ w, "multiplied with the weight 'table' (OnChip)"),
}


@pytest.mark.parametrize(("use", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_product_is_refused_by_the_name_of_the_leaf(
    use: Callable[[jax.Array], Any], message: str, key: jax.Array
) -> None:
    chips = crossbar.on_chip(key, {"table": _draw(20, 7)}, IDEAL, config=CONFIG)
    with pytest.raises(ValueError, match=r"Argument `params` must use the weight 'table' \(") as error:
        quax.quaxify(lambda params: use(params["table"]))(chips)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("module", "x", "message"),
    [
        (nn.Conv(4, (3, 3), feature_group_count=2), _draw(1, 5, 5, 2), "convolved in groups. Leave grouped"),
        (nn.ConvTranspose(4, (3, 3), (2, 2)), _draw(1, 5, 5, 2), "used in a transposed convolution. Leave"),
        (nn.Embed(5, 3), jnp.arange(2), "It is looked up row by row, as a table of embeddings is: leave it out by"),
    ],
    ids=["groups", "transposed", "embedding"],
)
def test_layers_that_no_chip_computes_are_refused(
    module: nn.Module, x: jax.Array, message: str, key: jax.Array
) -> None:
    chips = crossbar.on_chip(key, module.init(key, x), IDEAL, config=CONFIG)
    with pytest.raises(ValueError, match="the weight 'params/") as error:
        quax.quaxify(module.apply)(chips, x)
    assert message in str(error.value)


def test_a_tied_head_is_refused_where_the_table_is_looked_up_and_the_fix_works(key: jax.Array) -> None:
    def model(params: Any, ids: jax.Array) -> jax.Array:
        return params["embedding"][ids] @ params["hidden"] @ params["embedding"].T

    params, ids = {"embedding": _draw(9, 6), "hidden": _draw(6, 6)}, jnp.array([1, 5])
    with pytest.raises(ValueError, match=r"the weight 'embedding'.* leave it out by `select=`"):
        quax.quaxify(model)(crossbar.on_chip(key, params, IDEAL, config=CONFIG), ids)
    fixed = crossbar.on_chip(key, params, IDEAL, config=CONFIG, select=lambda path, _: path != "embedding")
    np.testing.assert_allclose(quax.quaxify(model)(fixed, ids), model(params, ids), rtol=1e-4, atol=1e-5)


def test_the_fix_for_the_other_axis_works(key: jax.Array) -> None:
    w, x = _draw(20, 7), _draw(4, 7)
    use = quax.quaxify(lambda w: x @ w.T)
    for options in ({"rows": 1}, {"select": lambda path, leaf: Kernel((1,))}):
        np.testing.assert_allclose(
            use(crossbar.on_chip(key, w, IDEAL, config=CONFIG, **options)), x @ w.T, rtol=1e-4, atol=1e-5
        )


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "rows": (
        PLAIN,
        {"rows": 2},
        "Argument `rows` must be 0 \\(Flax\\) or 1 \\(Equinox\\), the axis of the inputs, but is 2",
    ),
    "nothing": (
        PLAIN,
        {"select": lambda path, leaf: False},
        "choose a leaf, but chooses none. The leaves are: bias, first",
    ),
    "an empty tree": ({}, {}, "chooses none. The leaves are: none"),
    "one axis": (
        PLAIN,
        {"select": lambda path, leaf: True},
        "`params\\['bias'\\]` must have two axes .* shape \\(7,\\)",
    ),
    "a word": (
        PLAIN,
        {"select": lambda path, leaf: "matrix"},
        "return True, False or a crossbar.Kernel, but returns 'matrix'",
    ),
    "no rows": (PLAIN, {"select": lambda path, leaf: Kernel(())}, "name some but not all of the 1 axes"),
    "all rows": (PLAIN, {"select": lambda path, leaf: leaf.ndim > 1 and Kernel((0, 1))}, "not all of the 2 axes"),
    "rows twice": (PLAIN, {"select": lambda path, leaf: leaf.ndim > 1 and Kernel((0, 0))}, "each once"),
    "rows of no stack": (
        {"w": _draw(2, 3, 4)},
        {"select": lambda path, leaf: Kernel((2,), stacked=True)},
        "the 2 axes after the stack's, .* rows=\\(2,\\)",
    ),
    "integers": (
        {"codes": jnp.ones((3, 3), jnp.int8)},
        {"select": _all},
        "of a floating dtype .* int8. Leave it out: select",
    ),
    "not finite": ({"w": jnp.full((3, 3), jnp.nan)}, {}, "`params\\['w'\\]` must"),
    "one checksum": ({"plumless": _draw(2, 2), "buckeroo": _draw(2, 2)}, {}, "'buckeroo' and 'plumless'. Rename one"),
}


@pytest.mark.parametrize(("params", "options", "message"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_refused_by_name(
    params: Any, options: dict[str, Any], message: str, key: jax.Array
) -> None:
    with pytest.raises(ValueError, match=message):
        crossbar.on_chip(key, params, IDEAL, config=CONFIG, **options)


def test_what_is_on_a_chip_goes_on_none_again_and_trees_without_chips_are_refused(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, PLAIN, IDEAL, config=CONFIG)
    with pytest.raises(
        ValueError, match=r"`params\['first'\]` must be an array to go on a chip, but is a OnChip. Leave"
    ):
        crossbar.on_chip(key, chips, IDEAL, config=CONFIG)
    for use in (lambda: crossbar.reread(key, PLAIN), lambda: crossbar.calibrate_network(key, lambda p: 0, PLAIN)):
        with pytest.raises(ValueError, match=r"hold weights on chips, but holds none. Make them with crossbar.on_chip"):
            use()
    calibrated = crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED)
    with pytest.raises(ValueError, match="multiply with every weight that is on a chip, but leaves out 'second'"):
        crossbar.calibrate_network(key, quax.quaxify(lambda params: _draw(4, 20) @ params["first"]), calibrated)
    some = crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED, select=lambda path, _: path == "first")
    with pytest.raises(ValueError, match="Argument `ranges` must hold 'second', but holds first"):
        crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED, ranges=some)
