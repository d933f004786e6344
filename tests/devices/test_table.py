"""The table of devices against its sources, and what `get` accepts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices

# The paper's table at sigma = 0.01, rounded as printed there.
PRINTED = {
    "RRAM1": (0.0100, 0.0100, 0.0100, 0.0100),
    "FeFET2": (0.0067, 0.0135, 0.0135, 0.0067),
    "FeFET3": (0.0049, 0.0146, 0.0146, 0.0049),
    "RRAM4": (0.0038, 0.0151, 0.0151, 0.0038),
    "FeFET6": (0.0026, 0.0155, 0.0155, 0.0026),
}
FACTOR = {"FeFET2": 2.0, "FeFET3": 3.0, "RRAM4": 4.0, "FeFET6": 6.0}


@pytest.mark.parametrize("name", PRINTED)
def test_level_noise_rounds_to_the_printed_table(name: str) -> None:
    device = devices.get(name, sigma=0.01)
    row = devices.sigma_of(jnp.asarray([0.0, 1 / 3, 2 / 3, 1.0]), device)
    np.testing.assert_array_equal(np.round(np.asarray(row, np.float64), 4), PRINTED[name])


@pytest.mark.parametrize("name", FACTOR)
def test_level_noise_is_the_formula_with_the_factor_of_the_device(name: str) -> None:
    s, device = FACTOR[name], devices.get(name, sigma=0.1)
    row = devices.sigma_of(devices.level_conductances(4, device), device)
    norm = np.sqrt(0.6 + 0.4 * s**2)
    np.testing.assert_allclose(row, 0.1 * np.array([1, s, s, 1]) / norm, rtol=2e-6)
    # what the root in the formula is for: with these weights the mean variance is sigma^2 for every s
    np.testing.assert_allclose(0.6 * row[0] ** 2 + 0.4 * row[1] ** 2, 0.01, rtol=1e-5)


def test_the_five_devices_of_the_paper_come_first_and_hold_the_levels_it_says() -> None:
    assert devices.names()[:5] == ("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6")
    assert [devices.get(name).num_levels for name in devices.names()[:5]] == [2, 4, 4, 4, 4]


@pytest.mark.parametrize("name", devices.names())
def test_every_device_is_cited_and_made_of_strong_float32_arrays(name: str) -> None:
    device = devices.get(name)
    assert device.name == name
    assert device.citation
    leaves = jax.tree.leaves(device)
    assert len(leaves) >= 3
    for leaf in leaves:
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


@pytest.mark.parametrize(
    ("name", "g_max_us", "on_off_ratio", "sigma"),
    [
        ("FeFET6", 100.0, np.inf, 0.1),
        ("PCM", 25.0, np.inf, 1.0),
        ("PCM-CrossSim", 25.0, 100.0, 1.0),
        ("RRAMWan2022-1s", 40.0, np.inf, 1.0),
        ("RRAMWan2022-CrossSim", 39.0, 39.0, 1.0),
        ("RRAMMilo2021", 225.0, 4.5, 1.0),
        ("Gaussian", 100.0, np.inf, 0.1),
        ("ideal", 100.0, np.inf, 0.0),
    ],
)
def test_defaults_of_the_table(name: str, g_max_us: float, on_off_ratio: float, sigma: float) -> None:
    device = devices.get(name)
    assert float(device.g_max_us) == g_max_us
    assert float(device.on_off_ratio) == on_off_ratio
    np.testing.assert_allclose(device.sigma, sigma, rtol=1e-7)


def test_only_the_physical_fits_are_cut_at_zero() -> None:
    cut = {name for name in devices.names() if devices.get(name).clip}
    assert cut == {name for name in devices.names() if name.startswith(("PCM", "RRAMWan", "RRAMMilo"))}
    assert devices.get("FeFET6", clip=True).clip


def test_an_override_replaces_the_default_and_nothing_else() -> None:
    drift, read = devices.Drift(mean=0.05), devices.Read(sigma=0.01)
    device = devices.get("FeFET6", sigma=0.2, g_max_us=30.0, d2d_sigma=0.03, stuck_on=0.01, drift=drift, read=read)
    for value, expected in ((device.sigma, 0.2), (device.g_max_us, 30.0), (device.d2d_sigma, 0.03)):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert device.stuck_off is None
    assert device.drift is drift
    assert device.read is read
    plain = devices.get("FeFET6")
    assert plain.d2d_sigma is plain.stuck_on is plain.stuck_off is plain.drift is plain.read is None
    np.testing.assert_array_equal(device.programming.levels.sigma, plain.programming.levels.sigma)


def test_levels_of_a_finite_ratio_keep_their_own_noise() -> None:
    device = devices.get("FeFET6", on_off_ratio=10.0)
    levels = devices.level_conductances(4, device)
    np.testing.assert_allclose(levels, [0.1, 0.4, 0.7, 1.0], rtol=1e-6)
    infinite = devices.get("FeFET6")
    row = devices.sigma_of(devices.level_conductances(4, infinite), infinite)
    np.testing.assert_allclose(devices.sigma_of(levels, device), row, rtol=1e-5)


def test_replacing_the_ratio_moves_the_levels_as_get_does() -> None:
    wanted, plain = devices.get("FeFET6", on_off_ratio=5.0), devices.get("FeFET6")
    levels = devices.level_conductances(4, wanted)
    for device in (plain.replace(on_off_ratio=5.0), devices.get("FeFET6", on_off_ratio=20.0).replace(on_off_ratio=5.0)):
        np.testing.assert_array_equal(device.programming.levels.conductance, wanted.programming.levels.conductance)
        np.testing.assert_array_equal(devices.sigma_of(levels, device), devices.sigma_of(levels, wanted))
    back = plain.replace(on_off_ratio=5.0).replace(on_off_ratio=np.inf)
    np.testing.assert_array_equal(back.programming.levels.conductance, plain.programming.levels.conductance)

    def noise(ratio: jax.Array, replaces: bool) -> jax.Array:
        device = plain.replace(on_off_ratio=ratio) if replaces else devices.get("FeFET6", on_off_ratio=ratio)
        return devices.sigma_of(0.5, device)

    ratios = jnp.asarray([5.0, 10.0])
    slopes = [jax.jit(jax.vmap(jax.value_and_grad(partial(noise, replaces=which))))(ratios) for which in (True, False)]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-6)
    assert np.all(np.asarray(slopes[0]) != 0.0)
    with pytest.raises(ValueError, match=r"`on_off_ratio` must lie in \(1, inf\]"):
        plain.replace(on_off_ratio=0.0)


def test_levels_that_were_measured_stay_where_they_were() -> None:
    table = devices.from_table([0.1, 0.4, 0.7, 1.0], None, [0.01, 0.02, 0.02, 0.01], g_max_us=40.0, on_off_ratio=10.0)
    moved = table.replace(on_off_ratio=5.0)
    np.testing.assert_array_equal(moved.programming.levels.conductance, table.programming.levels.conductance)
    law = devices.get("FeFET6").programming
    given = table.replace(on_off_ratio=5.0, programming=law)
    np.testing.assert_array_equal(given.programming.levels.conductance, law.levels.conductance)


def test_g_min_is_zero_for_an_infinite_ratio_with_finite_gradients() -> None:
    value, slope = jax.value_and_grad(lambda ratio: devices.get("FeFET6", on_off_ratio=ratio).g_min)(
        jnp.float32(jnp.inf)
    )
    assert float(value) == 0.0
    assert float(slope) == 0.0
    slope = jax.grad(lambda ratio: devices.get("FeFET6", on_off_ratio=ratio).g_min)(jnp.float32(10.0))
    np.testing.assert_allclose(slope, -0.01, rtol=1e-6)


def test_get_works_inside_transformations() -> None:
    def noise(sigma: jax.Array) -> jax.Array:
        return devices.sigma_of(0.5, devices.get("FeFET6", sigma=sigma, d2d_sigma=sigma, stuck_on=sigma))

    sigmas = jnp.asarray([0.05, 0.1])
    mapped = jax.jit(jax.vmap(noise))(sigmas)
    np.testing.assert_allclose(mapped, [noise(sigma) for sigma in sigmas], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(noise)(sigmas[1]), mapped[1] / 0.1, rtol=1e-5)


def test_python_numbers_and_lists_in_specs_become_strong_arrays() -> None:
    device = devices.get("Gaussian").replace(sigma=0.3, drift=devices.Drift(mean=0.05))
    table = devices.level_table([0.0, 1.0], sigma=[1.0, 2.0])
    for leaf in (device.sigma, device.drift.t0_s, *jax.tree.leaves((device.drift, table))):
        assert leaf.dtype == jnp.float32
        assert not leaf.weak_type


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: devices.get("FeFET7"),
            r"Argument `name` must be one of .*, but is 'FeFET7'\. Did you mean 'FeFET6'\?",
        ),
        (lambda: devices.get("gaussian"), r"Did you mean 'Gaussian'\?"),
        (lambda: devices.get("FeFET6", sigma=-0.1), r"Argument `sigma` must lie in \[0, .*but is -0\.1"),
        (lambda: devices.get("FeFET6", sigma=float("nan")), "Argument `sigma` must be finite"),
        (lambda: devices.get("FeFET6", sigma=float("inf")), "Argument `sigma` must be finite"),
        (lambda: devices.get("FeFET6", sigma=jnp.ones(3)), r"Argument `sigma` must have shape \(\), .*jax\.vmap"),
        (lambda: devices.get("FeFET6", g_max_us=0.0), r"Argument `g_max_us` must lie in \(0, "),
        (
            lambda: devices.get("FeFET6", on_off_ratio=1.0),
            r"Argument `on_off_ratio` must lie in \(1, inf\], but is 1\.",
        ),
        (
            lambda: devices.get("FeFET6", on_off_ratio=0.0),
            r"Argument `on_off_ratio` must lie in \(1, inf\], but is 0\.",
        ),
        (lambda: devices.get("FeFET6", d2d_sigma=-1.0), r"Argument `d2d_sigma` must lie in \[0, "),
        (lambda: devices.get("FeFET6", stuck_on=1.5), r"Argument `stuck_on` must lie in \[0, 1\]"),
        (lambda: devices.get("FeFET6", stuck_on=0.6, stuck_off=0.6), r"leave room for stuck_off.*their sum is 1\.2"),
        (
            lambda: devices.get("ideal", sigma=0.1),
            r"`sigma` must be left out.*'ideal' programs exactly.*get\('Gaussian'",
        ),
        (lambda: devices.get("Gaussian", rng="philox"), r"Argument `rng` must be one of counter, threefry"),
        (lambda: devices.level_conductances(5, devices.get("FeFET6")), r"`num_levels` .* at most 4, but is 5"),
        (lambda: devices.level_conductances(3, devices.get("RRAM1")), r"`num_levels` .* at most 2, but is 3"),
        (lambda: devices.level_conductances(1, devices.get("PCM")), r"`num_levels` must be an integer of at least 2"),
    ],
)
def test_bad_input_is_named_with_the_fix(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_misspelt_option_is_an_error_that_suggests_the_right_one() -> None:
    with pytest.raises(TypeError, match=r"get has no option `d2d_sgima`\. Did you mean 'd2d_sigma'\?"):
        devices.get("FeFET6", d2d_sgima=0.1)
