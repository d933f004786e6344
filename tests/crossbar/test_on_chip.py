"""Networks on chips: every library's layers, under every transformation, equal themselves."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from jax import lax
from support.networks import (
    CALIBRATED,
    CONFIG,
    GAUSSIAN,
    IDEAL,
    MAKERS,
    PCM,
    PLAIN,
    all_matrices,
    chips_of,
    dense,
    draw,
    network,
    on_chips,
    plain,
)
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, montecarlo
from nvcim_jax.crossbar import Config, Converters, OnChip

NAMES = mostly_slow(MAKERS, "plain", "linen, dense", "a stack, scanned")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_ideal_chips_a_network_equals_itself(name: str, key: jax.Array) -> None:
    net = network(name)
    found = quax.quaxify(net.apply)(on_chips(key, net, IDEAL), net.x)
    np.testing.assert_allclose(found, net.apply(net.params, net.x), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_on_noisy_chips_it_computes_with_what_their_cells_hold_in_jit_too(name: str, key: jax.Array) -> None:
    net = network(name)
    chips = on_chips(key, net, GAUSSIAN)
    wanted = net.apply(dense(chips), net.x)
    assert jnp.abs(wanted - net.apply(net.params, net.x)).max() > 1e-3
    np.testing.assert_allclose(quax.quaxify(net.apply)(chips, net.x), wanted, atol=1e-5, rtol=1e-4)
    whole = jax.jit(lambda key, x: quax.quaxify(net.apply)(on_chips(key, net, GAUSSIAN), x))
    np.testing.assert_allclose(whole(key, net.x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_to_inputs_and_through_programming_to_weights_and_remat(name: str, key: jax.Array) -> None:
    net = network(name)
    arrays, static = eqx.partition(net.params, eqx.is_array)

    def loss(arrays: Any, x: jax.Array, device: devices.Device | None, wrap: Callable[..., Any]) -> jax.Array:
        params = eqx.combine(arrays, static)
        if device is None:
            return jnp.sin(net.apply(params, x)).sum()
        chips = on_chips(key, net._replace(params=params), device)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_chips_is_a_loop_over_them(name: str, key: jax.Array) -> None:
    net = network(name)
    keys = jax.random.split(key, 3)

    def one(key: jax.Array) -> tuple[Any, jax.Array]:
        chips = on_chips(key, net, GAUSSIAN)
        return [chip.chip.cells.g for chip in chips_of(chips).values()], quax.quaxify(net.apply)(chips, net.x)

    (cells, y), (looped_cells, looped_y) = jax.jit(jax.vmap(one))(keys), jax.jit(lambda k: lax.map(one, k))(keys)
    for a, b in zip(cells, looped_cells, strict=True):
        np.testing.assert_array_equal(
            a, b
        )  # the chips are the same bit for bit; a batched product sums in its own order
    np.testing.assert_allclose(y, looped_y, rtol=1e-5, atol=1e-5)
    assert len({float(jnp.ravel(v)[0]) for v in y}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_slow(["linen, dense", "linen, convolutional", "equinox", "a stack, scanned"], "a stack, scanned")
)
def test_many_chips_made_before_are_mapped_over_as_a_tree(name: str, key: jax.Array) -> None:
    net = network(name)
    keys = jax.random.split(key, 3)
    arrays, static = eqx.partition(
        jax.vmap(lambda k: eqx.filter(on_chips(k, net, GAUSSIAN), eqx.is_array))(keys), eqx.is_array
    )
    del static
    static = eqx.filter(on_chips(key, net, GAUSSIAN), eqx.is_array, inverse=True)
    run = quax.quaxify(net.apply)
    found = jax.vmap(lambda arrays: run(eqx.combine(arrays, static), net.x))(arrays)
    wanted = jnp.stack([run(on_chips(k, net, GAUSSIAN), net.x) for k in keys])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_in_monte_carlo_instances_do_not_depend_on_the_chunk(key: jax.Array) -> None:
    net = network("linen, dense")

    def metric(key: jax.Array, x: jax.Array) -> jax.Array:
        return quax.quaxify(net.apply)(on_chips(key, net, PCM), x).std()

    runs = [
        montecarlo.run(metric, key, 6, args=(net.x,), placement=montecarlo.Placement(chunk=chunk)).values
        for chunk in (2, 6)
    ]
    np.testing.assert_array_equal(*runs)
    batched = montecarlo.run(metric, key, 6, args=(net.x,), placement=montecarlo.Placement(mapping="vmap")).values
    np.testing.assert_allclose(batched, runs[0], rtol=1e-5)
    assert len(set(np.asarray(runs[0]).tolist())) == 6


def test_another_sigma_is_no_new_program(key: jax.Array) -> None:
    net, traces = network("plain"), []

    @jax.jit
    def run(key: jax.Array, device: devices.Device) -> jax.Array:
        traces.append(1)
        return quax.quaxify(net.apply)(on_chips(key, net, device), net.x)

    spread = [float(run(key, devices.get("Gaussian", sigma=sigma)).std()) for sigma in (0.0, 0.1, 0.2)]
    assert len(traces) == 1
    assert len(set(spread)) == 3


def test_a_chip_does_not_depend_on_what_else_is_chosen_or_on_the_order(key: jax.Array) -> None:
    net = network("linen, dense")
    all_chips = chips_of(on_chips(key, net, GAUSSIAN))
    assert list(all_chips) == ["params/Dense_0/kernel", "params/Dense_1/kernel"]
    for path, chip in all_chips.items():
        alone = crossbar.on_chip(key, net.params, GAUSSIAN, config=CONFIG, select=lambda p, _, path=path: p == path)
        for a, b in zip(jax.tree.leaves(chips_of(alone)[path]), jax.tree.leaves(chip), strict=True):
            np.testing.assert_array_equal(*(_bits(x) for x in (a, b)))
    other = {"a": draw(3, 3)} | PLAIN
    more = crossbar.on_chip(key, other, GAUSSIAN, config=CONFIG)
    some = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=CONFIG)
    np.testing.assert_array_equal(more["first"].chip.cells.g, some["first"].chip.cells.g)


def _bits(a: jax.Array) -> jax.Array:
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def test_equal_weights_at_other_places_have_other_noise_and_so_has_every_layer(key: jax.Array) -> None:
    w = jnp.full((6, 4), 0.5).at[0, 0].set(1.0)
    chips = crossbar.on_chip(key, {"a": w, "b": w}, GAUSSIAN, config=CONFIG)
    assert not (chips["a"].chip.cells.g[:, 0] == chips["b"].chip.cells.g[:, 0]).any()
    stack = crossbar.on_chip(key, jnp.stack([w, w]), GAUSSIAN, config=CONFIG, select=all_matrices)
    assert not (stack.chip.cells.g[0, :, 0] == stack.chip.cells.g[1, :, 0]).any()
    assert len(np.unique(_bits(stack.key), axis=0)) == 2


def test_the_noise_is_that_of_the_device(key: jax.Array) -> None:
    w = jnp.full((60, 60), 0.5).at[0, 0].set(1.0)
    leaf = crossbar.on_chip(key, {"w": w}, GAUSSIAN, config=Config())["w"]
    g = leaf.chip.cells.g[:, 0].ravel()[1:]  # those at 0.5
    assert abs(float(g.std()) - 0.05) < 5 * 0.05 / (2 * g.size) ** 0.5
    assert abs(float(g.mean()) - 0.5) < 5 * 0.05 / g.size**0.5


def test_products_with_one_leaf_are_one_read_and_reread_gives_another(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, {"w": draw(20, 7)}, PCM, config=CONFIG)
    x = draw(4, 20)
    read = quax.quaxify(lambda params: (x @ params["w"], x @ params["w"]))
    first, second = read(chips)
    np.testing.assert_array_equal(first, second)
    again, same = (crossbar.reread(jax.random.key(seed), chips) for seed in (1, 1))
    np.testing.assert_array_equal(again["w"].chip.cells.g, chips["w"].chip.cells.g)
    np.testing.assert_array_equal(read(again)[0], read(same)[0])
    assert not (read(again)[0] == first).any()
    quiet = crossbar.on_chip(key, {"w": draw(20, 7)}, GAUSSIAN, config=CONFIG)
    np.testing.assert_array_equal(read(quiet)[0], read(crossbar.reread(key, quiet))[0])


def test_reads_of_a_stack_are_drawn_layer_by_layer(key: jax.Array) -> None:
    stack = crossbar.on_chip(key, jnp.stack([draw(20, 7)] * 3), PCM, config=CONFIG, select=all_matrices)
    again = crossbar.reread(jax.random.key(1), stack)
    assert len(np.unique(np.concatenate([_bits(stack.key), _bits(again.key)]), axis=0)) == 6


def test_other_converters_of_a_read(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, {"w": draw(20, 7)}, PCM, config=CONFIG)
    coarse = Converters(dac_bits=4, adc_bits=4)
    read = crossbar.reread(jax.random.key(1), chips, converters=coarse)
    x, leaf = draw(2, 3, 20), read["w"]
    found = quax.quaxify(lambda params: x @ params["w"])(read)
    np.testing.assert_array_equal(found, crossbar.matmul(leaf.key, x, leaf.chip, converters=coarse)[0])
    assert (found != crossbar.matmul(leaf.key, x, leaf.chip)[0]).any()


def test_a_weight_made_by_hand_and_a_key_of_the_old_kind() -> None:
    key, w = jax.random.PRNGKey(0), draw(20, 7)
    leaf = OnChip(crossbar.program(key, w, IDEAL, config=CONFIG), key)
    np.testing.assert_allclose(quax.quaxify(lambda w: draw(4, 20) @ w)(leaf), draw(4, 20) @ w, rtol=1e-4, atol=1e-5)
    chips = crossbar.on_chip(key, {"w": w}, IDEAL, config=CONFIG)
    assert chips["w"].shape == (20, 7)


def test_half_precision_stays_what_the_network_sees(key: jax.Array) -> None:
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PLAIN)
    chips = crossbar.on_chip(key, params, IDEAL, config=CONFIG)
    found = quax.quaxify(plain)(chips, draw(4, 20).astype(jnp.bfloat16))
    assert chips["first"].dtype == found.dtype == jnp.bfloat16
    np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (found, plain(PLAIN, draw(4, 20)))), atol=0.2)


def test_what_writes_a_matrix_can_be_given(key: jax.Array) -> None:
    config = Config(adc_bits=6, adc_range="fixed")
    write = functools.partial(crossbar.program, adc_max=3.0)
    chips = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=config, write=write)
    np.testing.assert_array_equal(chips["first"].chip.adc_range, [[[-3.0, 3.0]]])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_slow(["linen, dense", "linen, convolutional", "nnx", "linen, scanned"], "linen, dense")
)
def test_a_calibrated_network_has_the_ranges_of_what_it_sees(name: str, key: jax.Array) -> None:
    net = network(name)
    run = jax.jit(quax.quaxify(net.apply)) if name.startswith("linen") else quax.quaxify(net.apply)
    chips = on_chips(key, net, GAUSSIAN, CALIBRATED)
    with pytest.raises(ValueError, match="be calibrated"):
        run(chips, net.x)
    found = crossbar.calibrate_network(jax.random.key(1), lambda params: run(params, net.x), chips, quantile=1.0)
    assert jax.tree.structure(run(found, net.x)) == jax.tree.structure(net.x)
    full_scales = [float(jnp.ravel(leaf.chip.dac_max)[0]) for leaf in chips_of(found).values()]
    assert float(jnp.abs(net.x).max()) in full_scales  # of the layer that the inputs enter
    wanted = net.apply(dense(found), net.x)
    assert 1e-6 < jnp.abs(run(found, net.x) - wanted).max() < 0.1 * jnp.abs(wanted).max()  # rounded, not clipped
    others = crossbar.on_chip(jax.random.key(2), net.params, GAUSSIAN, config=CALIBRATED, ranges=found, **net.options)
    for path, leaf in chips_of(others).items():
        np.testing.assert_array_equal(leaf.chip.adc_range, chips_of(found)[path].chip.adc_range)
    assert jnp.isfinite(run(others, net.x)).all()


def test_calibration_is_that_of_each_chip_by_itself(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, PLAIN, GAUSSIAN, config=CALIBRATED)
    x = draw(4, 20)
    found = crossbar.calibrate_network(jax.random.key(1), lambda params: quax.quaxify(plain)(params, x), chips)
    one = crossbar.calibrate(jax.random.key(1), x, chips["first"].chip)  # no read noise: the key does not matter
    np.testing.assert_allclose(found["first"].chip.adc_range, one.adc_range, rtol=1e-6)
