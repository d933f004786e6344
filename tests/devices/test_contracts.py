"""One contract for all devices: jit = eager, vmap = loop, one trace over a sweep, right gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices

EVERYTHING = {
    "d2d_sigma": 0.05,
    "stuck_on": 0.05,
    "stuck_off": 0.1,
    "drift": devices.PowerLawDrift(mean_offset=0.05, std_offset=0.01, mean_slope=-0.01),
    "read": devices.OneOverFRead(),
}
MEASURED = devices.from_table(
    [0.0, 0.3, 0.6, 1.0], [0.03, 0.3, 0.58, 0.97], [0.02, 0.05, 0.04, 0.03], g_max_us=60.0, name="table"
)
DEVICES = {
    **{name: devices.get(name) for name in devices.names()},
    "all effects": devices.get("FeFET6", **EVERYTHING),
    "all effects, cut at 0": devices.get("FeFET3", **EVERYTHING, clip=True, on_off_ratio=20.0),
    "table": MEASURED,
}
G = jnp.asarray([[0.05, 0.3, 0.55], [0.7, 0.9, 1.0]])


def life(key: jax.Array, g: jax.Array, t_s: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
    """Return everything that a device can do, in physical units."""
    program_key, read_key = jax.random.split(key)
    cells = devices.program(program_key, g, device)
    seen = {"programmed": cells.g}
    if device.drift is not None:
        cells = devices.drift(cells, t_s, device)
        seen["drifted"] = cells.g
    if device.read is not None:
        seen["read"] = devices.read(read_key, cells, device)
    mean, variance = devices.program_moments(g, device)
    seen |= {"sigma": devices.sigma_of(g, device), "mean": mean, "std": jnp.sqrt(variance + 1e-12)}
    return {name: value * device.g_max_us for name, value in seen.items()}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> devices.Device:
    """Return one device; without its name, so that devices of one structure share their compilations."""
    return DEVICES[request.param].replace(name="", citation="", num_levels=None)


traces = 0


@jax.jit
def compiled_life(key: jax.Array, g: jax.Array, t_s: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
    global traces
    traces += 1
    return life(key, g, t_s, device)


def test_jit_equals_eager(device: devices.Device) -> None:
    t_s = jnp.float32(3600.0)
    eager = life(jax.random.key(0), G, t_s, device)
    compiled = compiled_life(jax.random.key(0), G, t_s, device)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), eager, compiled)


@jax.jit
def _mapped_life(keys: jax.Array, sigmas: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
    return jax.vmap(lambda key, sigma: life(key, G, jnp.float32(60.0), device.replace(sigma=sigma)))(keys, sigmas)


def test_vmap_equals_a_loop_over_chips_and_sigmas(device: devices.Device) -> None:
    sigmas = jnp.asarray([0.0, 0.05, 0.1, 0.3])
    mapped = _mapped_life(jax.random.split(jax.random.key(1), 4), sigmas, device)
    for index, key in enumerate(jax.random.split(jax.random.key(1), 4)):
        one = compiled_life(key, G, jnp.float32(60.0), device.replace(sigma=sigmas[index]))
        for name, value in one.items():
            np.testing.assert_allclose(mapped[name][index], value, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["FeFET6", "all effects, cut at 0"])
def test_reprogramming_under_vmap_equals_a_loop(name: str) -> None:
    device = DEVICES[name]

    def twice(key: jax.Array) -> devices.Cells:
        first_key, second_key = jax.random.split(key)
        return devices.reprogram(second_key, devices.program(first_key, G, device), G, device)

    mapped = jax.jit(jax.vmap(twice))(jax.random.split(jax.random.key(1), 3))
    one = jax.jit(twice)
    for index, key in enumerate(jax.random.split(jax.random.key(1), 3)):
        for batch, single in zip(jax.tree.leaves(mapped), jax.tree.leaves(one(key)), strict=True):
            np.testing.assert_allclose(batch[index], single, rtol=1e-5, atol=1e-6)


def test_a_whole_spec_maps_over_its_leaves(device: devices.Device) -> None:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), device).replace(sigma=jnp.asarray([0.1, 0.2]))
    sigma = jax.vmap(lambda one: devices.sigma_of(G, one))(stacked)
    np.testing.assert_allclose(sigma[1], 2 * sigma[0], rtol=1e-6)


def test_sweeps_of_numbers_share_one_trace(device: devices.Device) -> None:
    results, counts = [], []
    for sigma, g_max_us, t_s in ((0.05, 10.0, 1.0), (0.1, 40.0, 60.0), (0.2, 100.0, 1e6)):
        spec = device.replace(sigma=sigma, g_max_us=g_max_us, on_off_ratio=g_max_us)
        results.append(compiled_life(jax.random.key(0), G, jnp.float32(t_s), spec)["programmed"])
        counts.append(traces)
    assert counts[0] == counts[-1]
    assert not np.allclose(results[0], results[1])


def _loss(numbers: dict, device: devices.Device) -> jax.Array:
    """Return a number that depends on every leaf, smoothly but for faults and cuts."""
    spec = device.replace(**numbers["spec"])
    seen = life(jax.random.key(2), numbers["g"], numbers["t_s"], spec)
    return sum(jnp.sum(jnp.sin(0.05 * value)) for value in seen.values())


loss, slopes_of = jax.jit(_loss), jax.jit(jax.grad(_loss))


def _numbers(device: devices.Device) -> dict:
    names = ("sigma", "g_max_us", "on_off_ratio", "programming", "d2d_sigma", "stuck_on", "stuck_off", "drift", "read")
    values = {name: getattr(device, name) for name in names}
    spec = {name: value for name, value in values.items() if value is not None}
    return {"spec": spec, "g": G, "t_s": jnp.float32(100.0)}


def test_gradients_are_finite_and_reach_g_sigma_and_g_max(device: devices.Device) -> None:
    slopes = slopes_of(_numbers(device), device)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
    assert np.all(np.asarray(slopes["g"]) != 0)
    assert float(slopes["spec"]["g_max_us"]) != 0
    if device.programming is not None:
        assert float(slopes["spec"]["sigma"]) != 0
        assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(slopes["spec"]["programming"]))
    if device.drift is not None:
        assert float(slopes["t_s"]) != 0
        assert any(float(leaf) != 0 for leaf in jax.tree.leaves(slopes["spec"]["drift"]))


def test_gradients_equal_finite_differences(device: devices.Device) -> None:
    numbers = _numbers(device)
    numbers["spec"]["on_off_ratio"] = jnp.float32(20.0)
    slopes = slopes_of(numbers, device)
    entries, structure = jax.tree.flatten(numbers)
    for index, (value, slope) in enumerate(zip(entries, jax.tree.leaves(slopes), strict=True)):
        if not np.isfinite(value).all():
            continue
        step = np.where(value == 0, 2e-4, 2e-3 * np.abs(value))
        # every entry of a leaf moves by a step of its own size, so that one difference checks all of them
        around = [[*entries[:index], value + sign * step, *entries[index + 1 :]] for sign in (1, -1)]
        above, below = (loss(jax.tree.unflatten(structure, moved), device) for moved in around)
        numeric = (above - below) / 2
        np.testing.assert_allclose(np.sum(np.asarray(slope) * step), numeric, rtol=2e-2, atol=2e-5)


def test_gradient_to_g_is_one_plus_the_slope_of_the_noise(device: devices.Device) -> None:
    if device.stuck_on is not None:
        return
    h = 1e-3
    inside = jnp.asarray([0.1, 0.45, 0.8])
    z = jnp.asarray([0.5, -1.0, 2.0])
    slope = jax.vmap(jax.grad(lambda g, z: devices.programmed(g, z, device)))(inside, z)
    numeric = (devices.programmed(inside + h, z, device) - devices.programmed(inside - h, z, device)) / (2 * h)
    np.testing.assert_allclose(slope, numeric, rtol=1e-2, atol=1e-3)
