"""Inputs at the edge of what makes sense, each with its right value: zeros, nothing to measure, repeats, no noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.chips import make_key, product
from support.params import mostly_slow

from nvcim_jax import crossbar, devices, ops

RNG = np.random.default_rng(12)
W = RNG.uniform(-1, 1, (30, 6)).astype("f4")
X = RNG.standard_normal((4, 30)).astype("f4")
MAPPINGS = ("differential", "offset", "offset_digital")


# Zeros.


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["cell", "value"])
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("weight_scale", ["column", "tensor"])
def test_columns_of_zeros_give_zero_and_their_weights_a_gradient(
    rng: np.random.Generator, noise: str, mapping: str, weight_scale: str
) -> None:
    if noise == "value" and mapping != "differential":
        return
    device = devices.get("Gaussian", sigma=0.1)
    config = crossbar.Config(mapping=mapping, weight_scale=weight_scale, noise=noise, weight_bits=6, cell_bits=2)
    w = W.copy()
    w[:, [1, 4]] = 0.0
    silent = [1, 4] if weight_scale == "column" else list(range(6))
    w = w if weight_scale == "column" else np.zeros_like(w)
    v = rng.standard_normal((4, 6)).astype("f4")

    def product(w: jax.Array, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        chip = crossbar.program(make_key(), w, device, config=config)
        target = crossbar.encode(w, device, config=config)
        y = crossbar.matmul(make_key(1), x, chip)[0]
        return (y * v).sum(), (y, crossbar.read_back(make_key(2), chip), crossbar.sample(make_key(3), x, target)[0])

    both = jax.jit(jax.grad(product, argnums=(0, 1), has_aux=True))
    (to_w, to_x), outputs = both(jnp.asarray(w), jnp.asarray(X))
    for output in outputs:
        np.testing.assert_array_equal(output[:, jnp.asarray(silent)], 0.0)
    np.testing.assert_allclose(to_w[:, jnp.asarray(silent)], (X.T @ v)[:, silent], rtol=1e-4, atol=1e-4)
    assert bool(jnp.isfinite(to_x).all())
    if weight_scale == "tensor":
        assert float(jnp.abs(to_x).max()) < 1e-9
        assert not jnp.any(crossbar.encode(w, device, config=config).scale)


def test_columns_of_next_to_nothing_are_as_good_as_others() -> None:
    config = crossbar.Config(weight_scale="column")
    small = W * np.float32(1e-30)
    chip = crossbar.program(make_key(), small, devices.get("ideal"), config=config)
    np.testing.assert_allclose(product(X, chip) * 1e30, X @ W, atol=1e-5)


def test_inputs_of_zero_and_a_zero_row_have_finite_gradients() -> None:
    w, x = W.copy(), X.copy()
    w[3], x[0], x[:, 5] = 0.0, 0.0, 0.0
    config = crossbar.Config(rows=16, weight_bits=6, cell_bits=2, dac_bits=6, dac_bits_per_cycle=1, adc_bits=8)

    def loss(x: jax.Array, w: jax.Array, sigma: jax.Array) -> jax.Array:
        target = crossbar.encode(w, devices.get("Gaussian", sigma=sigma), config=config)
        return jnp.square(crossbar.sample(make_key(), x, target)[0]).sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(jnp.asarray(x), jnp.asarray(w), jnp.float32(0.0))
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert float(jnp.abs(grads[0][0]).max()) == 0.0  # outputs of a zero input are zero, and so is their pull


def _own_code(v: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    return ops.uniform_steps(v, low, high, num_steps=2**bits - 1)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, crossbar.Bits(adc=8.0)], ids=["hard", "relaxed"])
@pytest.mark.parametrize("code", ["symmetric", "uniform", _own_code])
def test_an_array_without_outputs_adds_nothing(code: Any, bits: crossbar.Bits | None) -> None:
    """A converter that takes its range from the read has none there, and zero need not be a code of it."""
    if bits is not None and callable(code):
        return
    products = []
    for w in (W, W[:15]):
        config = crossbar.Config(rows=15, adc_bits=8, adc_code=code, adc_before_subtraction=bits is None)
        target = crossbar.encode(w, devices.get("ideal"), config=config)
        x = X[:, : len(w)] * (np.arange(len(w)) < 15)
        slope = jax.grad(lambda x, t=target: crossbar.sample(make_key(), x, t, bits=bits)[0].sum())(jnp.zeros_like(x))
        assert bool(jnp.isfinite(slope).all())
        np.testing.assert_array_equal(crossbar.sample(make_key(), 0.0 * x, target, bits=bits)[0], 0.0)
        products.append(crossbar.sample(make_key(), x, target, bits=bits)[0])
    np.testing.assert_allclose(products[0], products[1], rtol=1e-5, atol=1e-6)


# Nothing to measure.


@pytest.mark.slow
def test_ranges_and_factors_where_there_is_nothing_to_measure(rng: np.random.Generator) -> None:
    config = crossbar.Config(rows=15, adc_bits=8, adc_range="calibrated", dac_bits=8, dac_range="calibrated")
    chip = crossbar.program(make_key(), np.concatenate([W[:15], 0 * W[15:]]), devices.get("ideal"), config=config)
    found = crossbar.calibrate(make_key(2), np.zeros((5, 30)), chip)
    assert float(found.dac_max) == 1.0
    np.testing.assert_array_equal(found.adc_range, np.broadcast_to([-1.0, 1.0], (2, 1, 2)))
    uniform = crossbar.Config(adc_bits=8, adc_range="calibrated", adc_code="uniform")
    chip = crossbar.program(make_key(), np.full((3, 1), 1.0), devices.get("ideal"), config=uniform)
    chip = crossbar.calibrate(make_key(2), np.ones((4, 3)), chip)  # one output, 3, again and again
    np.testing.assert_allclose(product(np.ones(3), chip), 3.0, rtol=1e-6)
    exact = rng.standard_normal((20, 3)).astype("f4") * np.array([1.0, 1e-4, 1.0], "f4")
    outputs = exact * np.array([0.5, 2.0, 0.0], "f4")
    factors = crossbar.column_factors(outputs, exact, ridge=1e-12)
    np.testing.assert_allclose(factors, [2.0, 0.5, 1.0], rtol=1e-3)
    tiny = crossbar.column_factors(outputs * np.float32(1e-14), exact * np.float32(1e-14), ridge=0.0)
    np.testing.assert_allclose(tiny, [2.0, 0.5, 1.0], rtol=1e-3)
    # a column too weak for the ridge stays as it is
    np.testing.assert_allclose(crossbar.column_factors(outputs * np.float32([1, 1e-4, 1]), exact)[1], 1.0, atol=0.02)


# No noise.


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["device", "pair", "output_joint", "output_marginal", "moment_matched"])
@pytest.mark.parametrize("effects", mostly_slow([{}, {"d2d_sigma": 0.0}], {}), ids=["plain", "d2d"])
def test_the_slope_to_sigma_at_no_noise_is_the_draw_itself(
    rng: np.random.Generator, sampling: str, effects: dict[str, Any]
) -> None:
    x = rng.standard_normal((3, 32)).astype("f4")
    w = rng.standard_normal((32, 4)).astype("f4")

    def product(sigma: jax.Array) -> jax.Array:
        target = crossbar.encode(w, devices.get("Gaussian", sigma=sigma, **effects), config=crossbar.Config())
        return crossbar.sample(make_key(5), x, target, sampling=sampling)[0]

    run = jax.jit(product)
    difference = (run(jnp.float32(1e-3)) - run(jnp.float32(0.0))) / 1e-3
    assert float(jnp.abs(difference).max()) > 1.0
    for slope in (jax.jacfwd(product), jax.jacrev(product)):
        np.testing.assert_allclose(jax.jit(slope)(jnp.float32(0.0)), difference, atol=5e-3)


@pytest.mark.slow
def test_the_slope_at_no_noise_knows_the_cut_at_zero(rng: np.random.Generator) -> None:
    """Moments of clipped cells: an erased cell moves by sigma / sqrt(2 pi)."""
    x = rng.standard_normal((3, 32)).astype("f4")
    w = (rng.choice([-1.0, 1.0], (32, 4)) * rng.uniform(0.2, 1.0, (32, 4))).astype("f4")  # far from the cut, or on it

    def product(sigma: jax.Array) -> jax.Array:
        target = crossbar.encode(w, devices.get("Gaussian", sigma=sigma, clip=True), config=crossbar.Config())
        return crossbar.sample(make_key(5), x, target, sampling="moment_matched")[0]

    difference = (product(jnp.float32(1e-3)) - product(jnp.float32(0.0))) / 1e-3
    np.testing.assert_allclose(jax.jacfwd(product)(jnp.float32(0.0)), difference, atol=1e-2)


# Arrays.


@pytest.mark.slow
@pytest.mark.parametrize("slices", ["arrays", "rows", "columns"])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_rows_behind_others_are_solved_as_rows_alone(rng: np.random.Generator, mapping: str, slices: str) -> None:
    """A matrix smaller than its array is the same part of that array wherever its rows lie."""
    device = devices.get("ideal", on_off_ratio=10.0)
    options: dict[str, Any] = {"rows": 16, "cols": 24, "weight_bits": 4, "cell_bits": 2, "mapping": mapping}
    config = crossbar.Config(slices=slices, **options)
    wires = crossbar.Wires(row_ohm=20.0, col_ohm=20.0)
    room = crossbar.geometry((100, 5), config).rows_per_array
    first, last = np.full((room, 5), 1.0, "f4"), rng.uniform(-1, 1, (3, 5)).astype("f4")
    last[0] = 1.0
    x = rng.standard_normal((2, 3)).astype("f4")
    alone = crossbar.program(make_key(), last, device, config=config, wires=wires)
    behind = crossbar.program(make_key(), np.concatenate([first, last]), device, config=config, wires=wires)
    np.testing.assert_allclose(
        product(np.concatenate([np.zeros((2, room), "f4"), x], axis=1), behind), product(x, alone), rtol=1e-4, atol=1e-5
    )
    found = crossbar.report((3, 5), config)
    assert (found.array_rows, found.array_cols) == (16, 24)


def test_a_short_last_tile_has_the_largest_range_of_its_own_rows() -> None:
    config = crossbar.Config(rows=16, adc_bits=6, adc_range="max")
    w, x = np.ones((3, 2), "f4"), np.array([0.3, 1.0, 0.2], "f4")
    alone = crossbar.program(make_key(), w, devices.get("ideal"), config=config)
    behind = crossbar.program(
        make_key(), np.concatenate([np.ones((16, 2), "f4"), w]), devices.get("ideal"), config=config
    )
    np.testing.assert_allclose(product(np.concatenate([np.zeros(16, "f4"), x]), behind), product(x, alone), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adc_range", ["absmax", "fixed", "calibrated"])
@pytest.mark.parametrize("before", [False, True])
def test_every_column_tile_has_a_range_of_its_own(rng: np.random.Generator, adc_range: str, before: bool) -> None:
    w = rng.standard_normal((64, 64)).astype("f4")
    w[:, :8] *= 4
    x = rng.standard_normal((50, 64)).astype("f4")
    config = crossbar.Config(cols=8, adc_bits=5, adc_range=adc_range, adc_before_subtraction=before)
    given: dict[str, Any] = {}
    if adc_range == "fixed":
        given["adc_max"] = np.where(np.arange(8) == 0, 4.0, 1.0)[None]
    chip = crossbar.program(make_key(), w, devices.get("ideal"), config=config, **given)
    if adc_range == "calibrated":
        chip = crossbar.calibrate(make_key(2), x, chip)
        assert chip.adc_range.shape == (1, 8, 2)
    error = np.linalg.norm(product(x, chip) - x @ w, axis=0) / np.linalg.norm(x @ w, axis=0)
    assert abs(error[8:].mean() / error[:8].mean() - 1) < 0.3


@pytest.mark.slow
def test_a_column_tile_alone_is_that_tile_among_others() -> None:
    config = crossbar.Config(cols=4, adc_bits=5, mapping="offset", adc_before_subtraction=True, rows=16)
    for adc_range in ("absmax", "max", "calibrated"):
        own = crossbar.Config(**{**vars(config), "adc_range": adc_range})
        reads = []
        w = np.where(np.abs(W) == np.abs(W).max(), 0.5, W)
        w[0, [0, 3]] = 1.0  # the same scale in both tiles
        for columns in (slice(None), slice(3, 6)):
            chip = crossbar.program(make_key(), w[:, columns], devices.get("ideal"), config=own)
            if adc_range == "calibrated":
                chip = crossbar.calibrate(make_key(2), X, chip)
            reads.append(product(X, chip))
        np.testing.assert_allclose(reads[0][:, 3:], reads[1], rtol=1e-5, atol=1e-5)


# Repeats.


def test_equal_inputs_meet_one_chip_when_outputs_are_drawn_jointly(rng: np.random.Generator) -> None:
    device = devices.get("Gaussian", sigma=0.1)
    w = rng.standard_normal((50, 400)).astype("f4")
    x = rng.standard_normal((2, 50)).astype("f4")
    near = x[0] + np.float32(1e-3) * x[1]
    target = crossbar.encode(w, device, config=crossbar.Config())
    y, _ = crossbar.sample(make_key(), np.stack([x[0], x[0], near, 0 * near]), target, sampling="output_joint")
    noise = np.asarray(y) - np.stack([x[0], x[0], near, 0 * near]) @ w
    scale = float(np.abs(w).max())
    assert np.abs(noise[0] - noise[1]).max() < 1e-5 * np.abs(noise[0]).max()
    assert np.abs(noise[3]).max() == 0.0
    truth = 0.1 * scale * 2**0.5 * 1e-3 * np.linalg.norm(x[1])
    assert abs((noise[2] - noise[0]).std() / truth - 1) < 5 / (2 * 400) ** 0.5
    assert np.abs(noise[2] - noise[0]).max() > 0


# Any shape, any converters, any number of bits of the machine.


def test_inputs_of_any_leading_shape(rng: np.random.Generator) -> None:
    config = crossbar.Config(rows=16, dac_bits=6, adc_bits=8)
    chip = crossbar.program(make_key(), W, devices.get("Gaussian", sigma=0.05), config=config)
    x = rng.standard_normal((2, 3, 4, 30)).astype("f4")
    whole = product(x, chip)
    assert whole.shape == (2, 3, 4, 6)
    np.testing.assert_allclose(whole[1, 2, 3], product(x[1, 2, 3], chip), atol=1e-5)
    target = crossbar.encode(W, devices.get("Gaussian", sigma=0.05), config=config)
    assert crossbar.sample(make_key(), x, target)[0].shape == (2, 3, 4, 6)
    assert [m.shape for m in crossbar.product_moments(x, target)] == [(2, 3, 4, 6)] * 2
    y, info = crossbar.matmul(make_key(1), np.zeros((0, 30), "f4"), chip)
    assert y.shape == (0, 6)
    assert not np.isnan(info.dac_clipped)


def test_a_read_may_have_other_converters_and_never_another_layout() -> None:
    device = devices.get("Gaussian", sigma=0.05)
    fine = crossbar.Config(rows=16, weight_bits=6, cell_bits=2, dac_bits=8, adc_bits=10)
    coarse = crossbar.Converters(dac_bits=4, adc_bits=5)
    chip = crossbar.program(make_key(), W, device, config=fine)
    same = crossbar.program(make_key(), W, device, config=crossbar.Config(**{**vars(fine), **vars(coarse)}))
    np.testing.assert_array_equal(crossbar.matmul(make_key(1), X, chip, converters=coarse)[0], product(X, same))
    np.testing.assert_array_equal(
        crossbar.matmul(make_key(1), X, chip, converters=fine.converters)[0], product(X, chip)
    )
    ranged = crossbar.Config(adc_bits=8, adc_range="calibrated")
    chip = crossbar.calibrate(make_key(2), X, crossbar.program(make_key(), W, device, config=ranged))
    plain = crossbar.program(make_key(), W, device, config=crossbar.Config())
    # a range that is there is not used by a converter that sets its own, and not taken by one of another kind
    absmax = crossbar.Converters(adc_bits=8)
    one, other = (crossbar.matmul(make_key(1), X, c, converters=absmax)[0] for c in (chip, plain))
    np.testing.assert_array_equal(one, other)
    for wanted in ({"adc_range": "fixed"}, {"adc_range": "calibrated", "adc_code": "uniform"}):
        with pytest.raises(ValueError, match=r"`converters` must have adc_(range|code)="):
            crossbar.matmul(make_key(1), X, chip, converters=crossbar.Converters(adc_bits=8, **wanted))
    value = crossbar.program(make_key(), W, device, config=crossbar.Config(noise="value"))
    with pytest.raises(ValueError, match=r"`adc_before_subtraction` must be False with noise='value'"):
        crossbar.matmul(make_key(1), X, value, converters=crossbar.Converters(adc_bits=8, adc_before_subtraction=True))


def test_stacked_chips_are_mapped_scanned_and_read_one_by_one() -> None:
    config = crossbar.Config(rows=16, weight_bits=4, cell_bits=2, adc_bits=8)
    device = devices.get("PCM", sigma=0.5)
    keys = jax.random.split(make_key(), 3)
    chips = jax.vmap(lambda k: crossbar.program(k, W, device, config=config))(keys)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(chips)} == {3}
    read = jax.random.split(make_key(1), 3)
    mapped = jax.vmap(lambda k, c: crossbar.matmul(k, X, c)[0])(read, chips)
    _, scanned = jax.lax.scan(lambda _, kc: (None, crossbar.matmul(kc[0], X, kc[1])[0]), None, (read, chips))
    alone = crossbar.matmul(read[1], X, jax.tree.map(lambda leaf: leaf[1], chips))[0]
    np.testing.assert_allclose(scanned, mapped, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mapped[1], alone, rtol=1e-4, atol=1e-4)
    assert np.abs(mapped[0] - mapped[1]).max() > 1e-2


_X64 = """
d = nv.devices.get("PCM", sigma=0.5)
w = np.random.default_rng(0).standard_normal((20, 6))
x = np.random.default_rng(1).standard_normal((4, 20))
k = jax.random.split(jax.random.key(0), 8)
cb = nv.crossbar
wires = cb.Wires(row_ohm=1.0, col_ohm=1.0)
for code in ("symmetric", "uniform"):
    for cols in (None, 8):
        c = cb.Config(rows=16, cols=cols, weight_bits=4, cell_bits=2, dac_bits=6, dac_range="calibrated", adc_bits=8,
                      adc_range="calibrated", adc_code=code)
        chip = cb.program(k[0], w, d, config=c, wires=wires if cols is None else None)
        chip = cb.calibrate(k[1], x, cb.compensate(k[2], cb.drift(chip, 100.0)))
        y, info = cb.matmul(k[3], x, chip, bits=cb.Bits(dac=5.5, adc=6.5))
        y = cb.matmul(k[3], x, chip)[0]
        assert y.dtype == np.float32 and np.isfinite(y).all()
        cb.read_back(k[4], cb.reprogram(k[5], chip, w))
v = cb.program_verified(k[0], w, cb.selected(np.abs(w), 0.5), d, 0.1, config=cb.Config())
cb.column_factors(x, x)
g = nv.devices.get("Gaussian", sigma=0.1)
for s in ("device", "pair", "output_joint", "output_marginal", "moment_matched"):
    t = cb.encode(w, g, config=cb.Config(rows=16))
    assert np.isfinite(cb.sample(k[6], x, t, sampling=s)[0]).all()
    jax.grad(lambda x: cb.sample(k[6], x, t, sampling=s)[0].sum())(x)
cb.product_moments(x, t)
value = cb.program(k[0], w, g, config=cb.Config(noise="value", adc_bits=8))
cb.matmul(k[7], x, value)
cb.transfer_matrix(np.ones((3, 2)), np.float64(0.1), np.float64(0.1))
cb.report((20, 6), c)
"""


@pytest.mark.slow
def test_everything_runs_in_64_bit_mode(said_plainly: Any) -> None:
    assert said_plainly([_X64], JAX_ENABLE_X64="1") == [("nothing", "")]


_SETUP = """
from nvcim_jax.crossbar import *
from nvcim_jax.crossbar import Config, Converters
k, w, d, c = jax.random.key(0), np.eye(3, dtype="f4"), nv.devices.get("ideal"), Config()
chip, fixed = program(k, w, d, config=c), Config(adc_bits=8, adc_range="fixed")
"""
_NO_KEY = "Argument `key` must be one JAX random key, but "
PLAIN_WORDS = {
    "program(0, w, d, config=c)": _NO_KEY + "is the int 0. Use jax.random.key(0).",
    "matmul(1, w, chip)": _NO_KEY + "is the int 1",
    "matmul(jax.random.split(k), w, chip)": _NO_KEY + "has shape (2,)",
    "program_verified(3, w, w > 0, d, 0.1, config=c)": _NO_KEY,
    "program(k, w, 'FeFET3', config=c)": "must be a devices.Device, but is 'FeFET3'. Use devices.get('FeFET3').",
    "program(k, w, d, config={'adc_bits': 8})": "Argument `config` must be a crossbar.Config, but is a dict",
    "report((3, 3), {})": "Argument `config` must be a crossbar.Config, but is a dict",
    "program_verified(k, w, w > 0, d, 0.1, config={})": "Argument `config` must be a crossbar.Config",
    "program(k, w * 1j, d, config=c)": "Argument `weights` must be an array of real numbers",
    "matmul(k, w * 1j, chip)": "Argument `x` must be an array of real numbers",
    "matmul(k, w, chip, converters=c)": "Argument `converters` must be a crossbar.Converters or None, but is a Config",
    "matmul(k, w, chip, converters={})": "Argument `converters` must be a crossbar.Converters or None, but is a dict",
    "matmul(k, w, w)": "Argument `chip` must be a crossbar.Chip, but is an array",
    "sample(k, w, w)": "Argument `target` must be a crossbar.Target, but is an array",
    "program_verified(k, w, w > 0, d, 0.1, config=fixed)": "Pass adc_max=",
    "program(k, w, d, config=fixed, adc_max=np.ones(2))": "`adc_max` must have shape () or (1,) or (1, 1), but has",
}


def test_wrong_arguments_are_said_plainly(said_plainly: Any) -> None:
    said = said_plainly([_SETUP + call for call in PLAIN_WORDS])
    for (call, wanted), (kind, message) in zip(PLAIN_WORDS.items(), said, strict=True):
        assert kind == "ValueError", (call, kind, message)
        assert wanted in message, (call, message)


def test_the_range_that_a_message_asks_for_is_taken() -> None:
    config = crossbar.Config(adc_bits=8, adc_range="fixed")
    verified = np.ones(W.shape, bool)
    chip = crossbar.program_verified(make_key(), W, verified, devices.get("Gaussian"), 0.0, config=config, adc_max=30.0)
    np.testing.assert_allclose(product(X, chip), X @ W, atol=2.0)


def test_every_kind_of_key_makes_a_chip() -> None:
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        chip = crossbar.program(key, W, devices.get("Gaussian", sigma=0.1), config=crossbar.Config())
        assert np.isfinite(product(X, chip)).all()
