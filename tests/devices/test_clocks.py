"""The three clocks, each alone and with the others; drift and read against aihwkit's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nvcim_jax import devices

# One compilation a shape is faster than one a shape and operation; the contracts hold the two together.
program = jax.jit(devices.program)
reprogram = jax.jit(devices.reprogram)
read = jax.jit(devices.read)
drift = jax.jit(devices.drift)

DRIFT = devices.Drift(mean=0.05, std=0.02)
EFFECTS = {
    "cycle": {},
    "d2d": {"d2d_sigma": 0.05},
    "faults": {"stuck_on": 0.1, "stuck_off": 0.2},
    "drift": {"drift": DRIFT},
    "read": {"read": devices.Read(sigma=0.02)},
}
G = 0.5


def _device(*effects: str, **options) -> devices.Device:
    """Return a device with exactly these effects."""
    chosen = {name: value for effect in effects for name, value in EFFECTS[effect].items()}
    return devices.get("Gaussian" if "cycle" in effects else "ideal", **chosen, **options)


def _signatures(device: devices.Device, effects: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return what each effect did, apart from the others."""
    cells = program(jax.random.key(3), jnp.full((64, 16), G), device)
    seen = {}
    healthy = np.ones((64, 16), bool) if cells.fault is None else np.asarray(cells.fault == 0)
    if "cycle" in effects:
        offset = 0.0 if cells.d2d is None else cells.d2d
        seen["cycle"] = np.asarray(cells.g - G - offset)
    for effect, leaf in (("d2d", cells.d2d), ("faults", cells.fault), ("drift", cells.nu)):
        assert (leaf is not None) == (effect in effects)
        if leaf is not None:
            seen[effect] = np.asarray(leaf)
    if "read" in effects:
        seen["read"] = np.asarray(read(jax.random.key(4), cells, device) - cells.g)
    if not {"cycle", "d2d"} & set(effects):
        np.testing.assert_array_equal(np.asarray(cells.g)[healthy], G)
    return {name: np.where(healthy, values, 0) if name != "faults" else values for name, values in seen.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(EFFECTS, 2)))
def test_each_effect_acts_alone_and_the_same_beside_another(first: str, second: str) -> None:
    both = _signatures(_device(first, second), (first, second))
    for name in (first, second):
        alone = _signatures(_device(name), (name,))[name]
        assert np.abs(alone).max() > 0
        expected = alone
        if name != "faults" and "faults" in both:
            expected = np.where(both["faults"] == 0, alone, 0)
        np.testing.assert_allclose(both[name], expected, atol=2e-7)


def test_a_device_without_effects_keeps_its_conductances(key) -> None:
    cells = program(key, jnp.full((3, 4), G), devices.get("ideal"))
    np.testing.assert_array_equal(cells.g, G)
    assert cells.g_programmed is cells.nu is cells.d2d is cells.fault is None
    assert float(cells.t_s) == 0.0


@pytest.mark.parametrize("rng", ["counter", "threefry"])
def test_the_generator_is_the_devices_and_the_same_key_gives_the_same_cells(rng: str) -> None:
    device = _device(*EFFECTS, rng=rng)
    first, second, other = (program(jax.random.key(i), jnp.full((8, 8), G), device) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert np.all(np.asarray(first.nu != other.nu) | (np.asarray(first.fault) != 0) | (np.asarray(other.fault) != 0))
    generator = program(jax.random.key(0), jnp.full((8, 8), G), device.replace(rng="counter"))
    assert bool((generator.nu == first.nu).all()) == (rng == "counter")


@pytest.mark.parametrize("d2d_sigma", [None, 0.05])
def test_programming_one_chip_twice_has_the_covariance_of_its_offsets(d2d_sigma: float | None, key) -> None:
    device = devices.get("Gaussian", sigma=0.1, d2d_sigma=d2d_sigma)
    count = 100_000
    first_key, second_key = jax.random.split(key)
    first = program(first_key, jnp.full(count, 0.5), device)
    second = reprogram(second_key, first, jnp.full(count, 0.25), device)
    a, b = np.asarray(first.g) - 0.5, np.asarray(second.g) - 0.25
    truth = 0.0 if d2d_sigma is None else d2d_sigma**2
    variance = 0.1**2 + truth
    error = np.sqrt((variance**2 + truth**2) / count)
    assert abs(np.mean(a * b) - truth) < 5 * error
    for sample in (a, b):
        assert abs(sample.var() - variance) < 5 * variance * np.sqrt(2 / count)


def test_reprogramming_keeps_offsets_and_faults_and_draws_the_rest_anew(key) -> None:
    device = _device(*EFFECTS)
    first_key, second_key = jax.random.split(key)
    first = drift(program(first_key, jnp.full((50, 50), G), device), 100.0, device)
    second = reprogram(second_key, first, jnp.full((50, 50), G), device)
    np.testing.assert_array_equal(first.d2d, second.d2d)
    np.testing.assert_array_equal(first.fault, second.fault)
    healthy = np.asarray(first.fault == 0)
    assert np.mean(np.asarray(first.g_programmed == second.g_programmed)[healthy]) < 0.01
    assert np.mean(np.asarray(first.nu == second.nu)[healthy]) < 0.01
    assert float(second.t_s) == 0.0
    np.testing.assert_array_equal(second.g, second.g_programmed)


@pytest.mark.parametrize(("on", "off"), [(0.02, 0.1), (None, 0.3), (0.3, None), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_fractions_and_places_of_stuck_cells(on: float | None, off: float | None, key) -> None:
    device = devices.get("Gaussian", sigma=0.01, on_off_ratio=10.0, stuck_on=on, stuck_off=off)
    count = 100_000
    cells = program(key, jnp.full(count, G), device)
    fault, g = np.asarray(cells.fault), np.asarray(cells.g)
    assert fault.dtype == np.int8
    for sign, fraction, level in ((1, on or 0.0, 1.0), (-1, off or 0.0, 0.1)):
        stuck = fault == sign
        assert abs(stuck.mean() - fraction) <= 5 * np.sqrt(fraction * (1 - fraction) / count)
        np.testing.assert_allclose(g[stuck], level, rtol=1e-6)
    assert np.all(np.abs(g[fault == 0] - G) < 0.08)
    # independent from cell to cell: neighbours are stuck together as often as chance says
    share = (fault != 0).mean()
    together = np.mean((fault[1:] != 0) & (fault[:-1] != 0))
    assert abs(together - share**2) <= 5 * np.sqrt(3 * share**2 * (1 - share) / count)


def test_stuck_cells_do_not_drift_and_are_read_with_noise(key) -> None:
    program_key, read_key = jax.random.split(key)
    device = _device("faults", "drift", "read")
    cells = program(program_key, jnp.full(10_000, G), device)
    later = drift(cells, 1e6, device)
    stuck = np.asarray(cells.fault != 0)
    np.testing.assert_array_equal(np.asarray(later.g)[stuck], np.asarray(cells.g)[stuck])
    assert np.all(np.asarray(later.g)[~stuck] < G)
    seen = np.asarray(read(read_key, later, device) - later.g)
    assert abs(seen[stuck].std() / 0.02 - 1) < 5 / np.sqrt(2 * stuck.sum())


def _exponents(g: jax.Array, device: devices.Device) -> tuple[jax.Array, jax.Array]:
    return device.drift.mean(g), device.drift.std(g)


def test_pcm_drift_exponents_equal_aihwkits(golden) -> None:
    truth = golden("08")
    mean, std = _exponents(jnp.asarray(truth["g"] / 25.0, jnp.float32), devices.get("PCM"))
    np.testing.assert_allclose(mean, truth["nu_mean"], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(mean + std), truth["nu_mean_plus_std"], rtol=1e-5)


def test_pcm_drift_and_read_equal_aihwkits_at_every_time(golden) -> None:
    truth, device = golden("08"), devices.get("PCM")
    g = jnp.asarray(truth["g"] / 25.0, jnp.float32)
    start = devices.Cells(g, g, jnp.asarray(truth["nu_mean"], jnp.float32), None, None, jnp.zeros(()))
    for t_s, drifted, with_read in zip(
        truth["t_inference"], truth["g_drift"], truth["g_drift_plus_1sigma_read"], strict=True
    ):
        cells = drift(start, float(t_s), device)
        np.testing.assert_allclose(cells.g * device.g_max_us, drifted, rtol=1e-5)
        seen = (cells.g + devices.read_sigma(cells, device)) * device.g_max_us
        np.testing.assert_allclose(seen, with_read, rtol=1e-5)


@pytest.mark.parametrize("g", [0.0, 0.02, 0.3, 1.0])
def test_exponents_follow_the_folded_normal(g: float, key, assert_moments) -> None:
    device = devices.get("PCM", sigma=0.0)
    cells = program(key, jnp.full(100_000, g), device)
    mean, std = (float(value) for value in _exponents(jnp.float32(g), device))
    folded = stats.foldnorm(mean / std, scale=std)
    assert_moments(cells.nu, folded.mean(), folded.var())


def test_drifted_conductance_has_the_mean_of_the_lognormal(key, assert_moments) -> None:
    law = devices.Drift(mean=0.2, std=0.02, t0_s=10.0)
    device = devices.get("ideal", drift=law)
    cells = drift(program(key, jnp.full(100_000, G), device), 990.0, device)
    # ten standard deviations above 0 the exponent is plainly normal, and the conductance lognormal
    truth = stats.lognorm(0.02 * np.log(100.0), scale=G * np.exp(-0.2 * np.log(100.0)))
    assert_moments(cells.g, truth.mean(), truth.var())


def test_drift_time_is_absolute_and_zero_changes_nothing(key) -> None:
    device = devices.get("PCM")
    cells = program(key, jnp.linspace(0.1, 1.0, 50), device)
    np.testing.assert_array_equal(drift(cells, 0.0, device).g, cells.g)
    once = drift(cells, 1e5, device)
    twice = drift(drift(cells, 60.0, device), 1e5, device)
    jax.tree.map(np.testing.assert_array_equal, once, twice)
    assert float(once.t_s) == 1e5
    assert np.all(np.asarray(once.g) < np.asarray(cells.g))
    np.testing.assert_array_equal(drift(once, 0, device).g, cells.g)


def test_each_read_is_new_and_leaves_the_cells_as_they_are(key, assert_moments) -> None:
    device = devices.get("PCM")
    program_key, first_key, second_key = jax.random.split(key, 3)
    cells = drift(program(program_key, jnp.full(50_000, 0.8), device), 3600.0, device)
    first, second = (read(read_key, cells, device) for read_key in (first_key, second_key))
    sigma = devices.read_sigma(cells, device)
    for seen in (first, second):
        assert_moments((seen - cells.g) / sigma, 0.0, 1.0)
    noise = np.stack([first - cells.g, second - cells.g])
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(50_000)


def test_read_noise_without_drift_uses_the_conductance_itself(key) -> None:
    device = devices.get("PCM").replace(drift=None)
    cells = program(key, jnp.linspace(0.0, 1.0, 20), device)
    relative = np.minimum(0.0088 / np.maximum(np.asarray(cells.g, np.float64) ** 0.65, 1e-3), 0.2)
    expected = cells.g * relative * np.sqrt(np.log((20 + 250e-9) / 500e-9))
    np.testing.assert_allclose(devices.read_sigma(cells, device), expected, rtol=1e-5)


@pytest.mark.parametrize("clip", [True, False])
def test_reads_and_programming_are_cut_at_zero_where_the_device_is(clip: bool, key) -> None:
    program_key, read_key = jax.random.split(key)
    device = _device("cycle", "drift", "read", clip=clip)
    cells = program(program_key, jnp.zeros(1000), device)
    later = drift(cells, 60.0, device)
    seen = read(read_key, later, device)
    for g in (cells.g, later.g, seen):
        assert bool((g >= 0).all()) == clip


NO_EFFECT = [name for name in devices.names() if name != "PCM"]


@pytest.mark.parametrize("name", NO_EFFECT)
def test_a_call_that_has_no_effect_raises(name: str, key) -> None:
    program_key, read_key = jax.random.split(key)
    device = devices.get(name)
    cells = program(program_key, jnp.full(3, G), device)
    with pytest.raises(ValueError, match=rf"`device` must have drift, but '{name}' has none\. Give it one"):
        drift(cells, 60.0, device)
    with pytest.raises(ValueError, match=rf"`device` must have read noise, but '{name}' has none\. Give it one"):
        read(read_key, cells, device)


def test_bad_input_to_the_clocks_is_named(key) -> None:
    keys = iter(jax.random.split(key, 9))
    plain, pcm = devices.get("Gaussian"), devices.get("PCM")
    cells = devices.program(next(keys), jnp.full((2, 3), G), plain)
    with pytest.raises(ValueError, match="`g` must be finite, but has 1 NaN or infinite values of 3"):
        devices.program(next(keys), jnp.asarray([0.1, jnp.nan, 0.2]), plain)
    with pytest.raises(ValueError, match=r"`g` must lie in \[0, 1\], but is 25\. Divide by g_max"):
        devices.program(next(keys), jnp.asarray([25.0]), plain)
    with pytest.raises(ValueError, match=r"`g` must have shape of the cells = \(2, 3\), but has shape \(3, 2\)"):
        devices.reprogram(next(keys), cells, jnp.full((3, 2), G), plain)
    with pytest.raises(ValueError, match="be that of the cells, which were made without offsets, but it has offsets"):
        devices.reprogram(next(keys), cells, jnp.full((2, 3), G), devices.get("Gaussian", d2d_sigma=0.1))
    faulty = devices.program(next(keys), jnp.full((2, 3), G), devices.get("Gaussian", stuck_on=0.1))
    with pytest.raises(ValueError, match="be that of the cells, which were made with faults, but it has no faults"):
        devices.reprogram(next(keys), faulty, jnp.full((2, 3), G), plain)
    with pytest.raises(ValueError, match="`cells` must be programmed with a device that drifts"):
        devices.drift(cells, 60.0, pcm)
    drifting = devices.program(next(keys), jnp.full((2, 3), G), pcm)
    with pytest.raises(ValueError, match=r"`t_s` must lie in \[0, inf\] s, but is -1 s"):
        devices.drift(drifting, -1.0, pcm)
