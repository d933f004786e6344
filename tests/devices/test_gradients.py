"""Gradients of everything a device can do: finite, present, and equal to finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices

G = jnp.asarray([[0.05, 0.3, 0.55], [0.7, 0.9, 1.0]])


@pytest.fixture(scope="module")
def value_and_slopes(life):
    """Return a compiled number that depends on every leaf, smoothly but for faults and cuts, and its slopes."""

    def loss(numbers: dict, device: devices.Device) -> jax.Array:
        seen = life(jax.random.key(2), numbers["g"], numbers["t_s"], device.replace(**numbers["spec"]))
        return sum(jnp.sum(jnp.sin(0.05 * value)) for value in seen.values())

    return jax.jit(jax.value_and_grad(loss))


def _numbers(device: devices.Device) -> dict:
    names = ("sigma", "g_max_us", "on_off_ratio", "programming", "d2d_sigma", "stuck_on", "stuck_off", "drift", "read")
    values = {name: getattr(device, name) for name in names}
    spec = {name: value for name, value in values.items() if value is not None}
    return {"spec": spec, "g": G, "t_s": jnp.float32(100.0)}


@pytest.mark.slow
def test_gradients_are_finite_and_reach_g_sigma_and_g_max(device: devices.Device, value_and_slopes) -> None:
    _, slopes = value_and_slopes(_numbers(device), device)
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


def test_gradients_equal_finite_differences(device: devices.Device, value_and_slopes) -> None:
    numbers = _numbers(device)
    numbers["spec"]["on_off_ratio"] = jnp.float32(20.0)
    _, slopes = value_and_slopes(numbers, device)
    entries, structure = jax.tree.flatten(numbers)
    for index, (value, slope) in enumerate(zip(entries, jax.tree.leaves(slopes), strict=True)):
        if not np.isfinite(value).all():
            continue
        step = np.where(value == 0, 2e-4, 2e-3 * np.abs(value))
        # every entry of a leaf moves by a step of its own size, so that one difference checks all of them
        around = [[*entries[:index], value + sign * step, *entries[index + 1 :]] for sign in (1, -1)]
        above, below = (value_and_slopes(jax.tree.unflatten(structure, moved), device)[0] for moved in around)
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
