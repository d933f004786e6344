"""Programming noise: its curve against other simulators, its moments against integrals and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from nvcim_jax import devices
from nvcim_jax.ops import normal

# One compilation a shape is faster than one a shape and operation; the contracts hold the two together.
program = jax.jit(devices.program)


@pytest.mark.parametrize(
    ("name", "case"),
    [("RRAMMilo2021", "RRAMMilo"), ("RRAMWan2022-CrossSim", "RRAMWan"), ("PCM-CrossSim", "PCMJoshi")],
)
def test_noise_curves_equal_crosssims(name: str, case: str, golden) -> None:
    truth, device = golden("07"), devices.get(name)
    sigma = devices.sigma_of(jnp.asarray(truth[f"{case}_g_norm"], jnp.float32), device)
    np.testing.assert_allclose(sigma, truth[f"{case}_sigma_norm"], rtol=1e-5)
    np.testing.assert_allclose(sigma * device.g_max_us, truth[f"{case}_sigma_uS"], rtol=1e-5)


def test_pcm_noise_curve_equals_aihwkits(golden) -> None:
    truth, device = golden("08"), devices.get("PCM")
    sigma = devices.sigma_of(jnp.asarray(truth["g"] / 25.0, jnp.float32), device)
    np.testing.assert_allclose(sigma * device.g_max_us, truth["prog_sigma"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "descending_us"),
    [
        ("RRAMWan2022-1s", (-16.815, 45.393, -43.853, 16.030, 0.348)),
        ("RRAMWan2022-1d", (-16.458, 47.095, -50.773, 22.086, 0.701)),
        ("RRAMWan2022-2d", (-11.934, 37.062, -43.507, 20.274, 0.782)),
    ],
)
def test_wan_noise_is_the_published_polynomial_in_microsiemens(name: str, descending_us: tuple[float, ...]) -> None:
    device, r = devices.get(name), np.linspace(0, 1, 41)
    sigma_us = devices.sigma_of(jnp.asarray(r, jnp.float32), device) * device.g_max_us
    np.testing.assert_allclose(sigma_us, np.maximum(np.polyval(descending_us, r), 0.0), rtol=3e-5)


def test_a_negative_polynomial_is_no_noise() -> None:
    device = devices.get("Gaussian").replace(programming=devices.polynomial([-1.0, 2.0]))
    np.testing.assert_allclose(devices.sigma_of(jnp.asarray([0.0, 0.5, 1.0]), device), [0.0, 0.0, 0.1], atol=1e-8)


@pytest.mark.parametrize("num_levels", [1, 2, 5, 64, 65, 200])
def test_tables_interpolate_linearly_and_stay_constant_outside(num_levels: int) -> None:
    rng = np.random.default_rng(num_levels)
    at = np.sort(rng.uniform(0.05, 0.95, num_levels)).astype(np.float32)
    row = rng.uniform(0.0, 1.0, num_levels).astype(np.float32)
    table = devices.level_table(jnp.asarray(at), sigma=jnp.asarray(row))
    device = devices.get("Gaussian", sigma=0.5).replace(programming=table)
    g = np.concatenate([np.linspace(0, 1, 301), at]).astype(np.float32)
    np.testing.assert_allclose(devices.sigma_of(g, device), 0.5 * np.interp(g, at, row), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in devices.names() if name != "ideal"])
@pytest.mark.parametrize("g_max_us", [5.0, 160.0])
def test_physical_noise_scales_with_g_max(name: str, g_max_us: float, key, assert_moments) -> None:
    device = devices.get(name, g_max_us=g_max_us, clip=False)
    g = jnp.broadcast_to(jnp.asarray([0.3, 0.6, 1.0]), (20_000, 3))
    read_back_us = program(key, g, device).g * device.g_max_us
    default = devices.get(name)
    sigma_us = devices.sigma_of(g[0], default) * default.g_max_us * (g_max_us / default.g_max_us)
    assert_moments(read_back_us / g_max_us, g[0], (sigma_us / g_max_us) ** 2)


def test_programmed_is_the_formula(key) -> None:
    table = devices.level_table([0.0, 0.5, 1.0], sigma=[1.0, 2.0, 1.0], mean=[0.1, 0.5, 0.8])
    device = devices.get("Gaussian", sigma=0.3, clip=True).replace(programming=table)
    z_key, offset_key = jax.random.split(key)
    g = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
    z, offset = normal(z_key, g.shape), 0.1 * normal(offset_key, g.shape)
    sigma = 0.3 * np.array([1.0, 1.5, 2.0, 1.5, 1.0])
    raw = np.array([0.1, 0.3, 0.5, 0.65, 0.8]) + sigma * np.asarray(z)
    np.testing.assert_allclose(devices.programmed(g, z, device), np.maximum(raw, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(devices.programmed(g, z, device.replace(clip=False)), raw, rtol=1e-5, atol=1e-6)
    shifted = np.maximum(raw + np.asarray(offset), 0)
    np.testing.assert_allclose(devices.programmed(g, z, device, offset), shifted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(devices.programmed(g, z, devices.get("ideal")), g)


def test_integer_conductances_keep_their_noise(key) -> None:
    device = devices.get("Gaussian", sigma=0.1)
    whole = program(jax.random.clone(key), jnp.asarray([0, 1, 1, 0]), device).g
    np.testing.assert_array_equal(whole, program(key, jnp.asarray([0.0, 1.0, 1.0, 0.0]), device).g)
    assert float(jnp.abs(whole - jnp.round(whole)).max()) > 1e-3


@pytest.mark.parametrize("sigma", [1e-4, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("g", [0.0, 1e-3, 0.05, 0.3, 1.0])
def test_clipped_moments_equal_the_integral(sigma: float, g: float) -> None:
    device = devices.get("Gaussian", sigma=sigma, clip=True)
    mean, variance = devices.program_moments(g, device)
    density = stats.norm(g, sigma).pdf
    span = (max(0.0, g - 12 * sigma), g + 12 * sigma)
    true_mean = integrate.quad(lambda x: x * density(x), *span, points=[g], limit=200)[0]
    below = stats.norm.cdf(-g / sigma)
    inside = integrate.quad(lambda x: (x - true_mean) ** 2 * density(x), *span, points=[g], limit=200)[0]
    np.testing.assert_allclose(mean, true_mean, rtol=1e-5)
    np.testing.assert_allclose(variance, inside + below * true_mean**2, rtol=2e-5)


def test_clipped_moments_below_zero_stay_positive() -> None:
    table = devices.level_table([0.0, 1.0], sigma=[0.1, 0.1], mean=[-0.2, 1.0])
    device = devices.get("Gaussian", sigma=1.0, clip=True).replace(programming=table)
    mean, variance = devices.program_moments(0.0, device)
    truth = stats.norm(-0.2, 0.1)
    true_mean = truth.expect(lambda x: x, lb=0.0)
    np.testing.assert_allclose(mean, true_mean, rtol=1e-4)
    np.testing.assert_allclose(variance, truth.expect(lambda x: x**2, lb=0.0) - true_mean**2, rtol=1e-3)


def test_moments_without_noise_are_exact_and_differentiable() -> None:
    device = devices.get("ideal", clip=True)
    mean, variance = devices.program_moments(jnp.asarray([0.0, 0.5]), device)
    np.testing.assert_array_equal(mean, [0.0, 0.5])
    np.testing.assert_array_equal(variance, [0.0, 0.0])

    def total(sigma: jax.Array) -> jax.Array:
        return sum(map(jnp.sum, devices.program_moments(jnp.asarray([0.0, 0.5]), devices.get("PCM", sigma=sigma))))

    assert np.isfinite(jax.grad(total)(jnp.float32(0.0)))


@pytest.mark.slow
@pytest.mark.parametrize("name", devices.names())
@pytest.mark.parametrize(
    "effects",
    [{}, {"d2d_sigma": 0.05}, {"stuck_on": 0.05, "stuck_off": 0.1}, {"d2d_sigma": 0.1, "stuck_off": 0.2, "clip": True}],
    ids=["alone", "d2d", "faults", "all"],
)
def test_moments_equal_those_of_samples(name: str, effects: dict, key, assert_moments) -> None:
    device = devices.get(name, **effects)
    g = jnp.asarray([float(device.g_min), 0.25, 0.5, 1.0])
    samples = program(key, jnp.broadcast_to(g, (50_000, 4)), device).g
    assert_moments(samples, *devices.program_moments(g, device))


def test_cells_of_crosssims_chips_have_the_moments_of_the_closed_form(golden) -> None:
    truth, chips = golden("06"), 4000
    g = jnp.asarray(np.maximum(truth["w"], 0.0) / np.abs(truth["w"]).max())
    mean, variance = devices.program_moments(g, devices.get("Gaussian", sigma=0.05, clip=True))
    std = np.sqrt(np.asarray(variance))
    assert np.all(np.abs(truth["gpos_mean"] - mean) < 5 * std / np.sqrt(chips) + 1e-6)
    # half a Gaussian has kurtosis 6.04 (a whole one 3), and var(std) = std^2 (kurtosis - 1) / 4n
    assert np.all(np.abs(truth["gpos_std"] - std) < 5 * std * np.sqrt(5.04 / 4 / chips))


def test_cells_have_independent_noise_even_at_one_level(key) -> None:
    samples = program(key, jnp.full((20_000, 4), 0.5), devices.get("FeFET6")).g
    correlation = np.corrcoef(np.asarray(samples).T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
