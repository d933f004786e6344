"""One contract for all devices: jit = eager, vmap = loop, one trace over a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices

G = jnp.asarray([[0.05, 0.3, 0.55], [0.7, 0.9, 1.0]])


class _Compiled:
    """The life of a device, compiled; counts its traces."""

    def __init__(self, life) -> None:
        self.traces = 0
        self.life = life
        self.one = jax.jit(self._one)
        self.many = jax.jit(self._many)

    def _one(self, key: jax.Array, g: jax.Array, t_s: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
        self.traces += 1
        return self.life(key, g, t_s, device)

    def _many(self, keys: jax.Array, sigmas: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
        return jax.vmap(lambda key, sigma: self.life(key, G, jnp.float32(60.0), device.replace(sigma=sigma)))(
            keys, sigmas
        )


@pytest.fixture(scope="module")
def compiled(life) -> _Compiled:
    """Return one for the module, so that devices of one structure share a compilation."""
    return _Compiled(life)


@pytest.mark.slow
def test_jit_equals_eager(device: devices.Device, life, compiled: _Compiled) -> None:
    t_s = jnp.float32(3600.0)
    eager = life(jax.random.key(0), G, t_s, device)
    jitted = compiled.one(jax.random.key(0), G, t_s, device)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), eager, jitted)


@pytest.mark.slow
def test_vmap_equals_a_loop_over_chips_and_sigmas(device: devices.Device, compiled: _Compiled) -> None:
    sigmas = jnp.asarray([0.0, 0.05, 0.1, 0.3])
    mapped = compiled.many(jax.random.split(jax.random.key(1), 4), sigmas, device)
    for index, key in enumerate(jax.random.split(jax.random.key(1), 4)):
        one = compiled.one(key, G, jnp.float32(60.0), device.replace(sigma=sigmas[index]))
        for name, value in one.items():
            np.testing.assert_allclose(mapped[name][index], value, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("effects", [{}, {"d2d_sigma": 0.05, "stuck_on": 0.1}], ids=["plain", "lasting"])
def test_reprogramming_under_vmap_equals_a_loop(effects: dict) -> None:
    device = devices.get("PCM", **effects)

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


def test_sweeps_of_numbers_share_one_trace(device: devices.Device, compiled: _Compiled) -> None:
    results, counts = [], []
    for sigma, g_max_us, t_s in ((0.05, 10.0, 1.0), (0.1, 40.0, 60.0), (0.2, 100.0, 1e6)):
        spec = device.replace(sigma=sigma, g_max_us=g_max_us, on_off_ratio=g_max_us)
        results.append(compiled.one(jax.random.key(0), G, jnp.float32(t_s), spec)["programmed"])
        counts.append(compiled.traces)
    assert counts[0] == counts[-1]
    assert not np.allclose(results[0], results[1])
