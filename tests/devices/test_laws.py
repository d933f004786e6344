"""Laws as functions: a user's own behaves as the library's, sweeps without a new trace, and is looked at."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from nvcim_jax import crossbar, devices
from nvcim_jax.devices.programming import mean_of

G = jnp.linspace(0.0, 1.0, 9)


def bow(g: jax.Array, a: Any) -> jax.Array:
    """Return a curve with its top in the middle."""
    return 1.0 + a * g * (1.0 - g)


def _device(law: devices.Law, **options: Any) -> devices.Device:
    return devices.get("Gaussian", sigma=0.1, **options).replace(programming=law)


def test_a_function_is_the_noise_relative_to_sigma() -> None:
    law = devices.Law(sigma=Partial(bow, a=2.0), mean=lambda g: 0.9 * g)
    device = _device(law)
    np.testing.assert_allclose(devices.sigma_of(G, device), 0.1 * (1 + 2 * G * (1 - G)), rtol=1e-6)
    np.testing.assert_allclose(mean_of(G, device), 0.9 * G, rtol=1e-6)
    mean, variance = devices.program_moments(G, device)
    np.testing.assert_allclose(mean, 0.9 * G, rtol=1e-6)
    np.testing.assert_allclose(variance, (0.1 * (1 + 2 * G * (1 - G))) ** 2, rtol=1e-5)


def test_a_user_written_four_level_law_is_the_tables(key: jax.Array) -> None:
    levels, row = np.linspace(0, 1, 4, dtype=np.float32), np.asarray([1.0, 2.0, 2.0, 1.0], np.float32)
    own = _device(devices.Law(sigma=lambda g: jnp.interp(g, levels, row)))
    table = _device(devices.level_table(levels, row))
    g = jnp.asarray(levels)
    np.testing.assert_allclose(
        devices.program(jax.random.clone(key), g, own).g, devices.program(key, g, table).g, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("number", [0.3, 1, np.float64(0.5), jnp.asarray(0.2)])
def test_a_number_is_the_same_everywhere(number: Any) -> None:
    law = devices.Law(sigma=number)
    assert law.constant
    np.testing.assert_allclose(devices.sigma_of(G, _device(law)), 0.1 * np.float32(number), rtol=1e-6)


def test_which_laws_are_the_same_everywhere_is_known() -> None:
    assert devices.polynomial([0.5]).constant
    assert devices.get("RRAM1").programming.constant
    for law in (devices.polynomial([0.5, 0.1]), devices.Law(sigma=bow), devices.Law(sigma=1.0, mean=lambda g: g)):
        assert not law.constant
    w, x = jnp.ones((3, 2)), jnp.ones((1, 3))
    target = crossbar.encode(w, _device(devices.Law(sigma=Partial(bow, a=1.0))), config=crossbar.Config())
    with pytest.raises(ValueError, match="output_joint"):
        crossbar.sample(jax.random.key(0), x, target, sampling="output_joint")
    target = crossbar.encode(w, _device(devices.Law(sigma=Partial(lambda g, a: a, a=1.0))), config=crossbar.Config())
    with pytest.raises(ValueError, match="output_joint"):  # what a function gives is not known without its value
        crossbar.sample(jax.random.key(0), x, target, sampling="output_joint")


def test_numbers_of_a_law_sweep_map_and_differentiate_in_one_trace() -> None:
    traces = []

    @jax.jit
    def noise(device: devices.Device) -> jax.Array:
        traces.append(1)
        return devices.sigma_of(0.5, device)

    found = [float(noise(_device(devices.Law(sigma=Partial(bow, a=a))))) for a in (0.5, jnp.float32(1.0), 2.0)]
    np.testing.assert_allclose(found, [0.1 * (1 + a / 4) for a in (0.5, 1.0, 2.0)], rtol=1e-6)
    assert len(traces) == 1

    def of(a: jax.Array) -> jax.Array:
        return devices.sigma_of(0.5, _device(devices.Law(sigma=Partial(bow, a=a))))

    np.testing.assert_allclose(jax.vmap(of)(jnp.asarray([0.0, 4.0])), [0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(of)(1.0), 0.025, rtol=1e-6)


def test_bound_numbers_become_strong_and_text_is_refused() -> None:
    (leaf,) = jax.tree.leaves(devices.Law(sigma=Partial(bow, a=0.3)))
    assert leaf.dtype == jnp.float32
    assert not leaf.weak_type
    with pytest.raises(ValueError, match=r"`sigma` must bind numbers alone .* binds 'x'\. .*functools\.partial"):
        devices.Law(sigma=Partial(bow, a="x"))
    devices.Law(sigma=Partial(functools.partial(bow, a=1)))


@pytest.mark.slow
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=9, unique=True),
    st.lists(st.floats(0, 2, width=32), min_size=9, max_size=9),
)
@settings(max_examples=30, deadline=None)
def test_a_table_passes_through_its_rows(at: list[float], row: list[float]) -> None:
    at = sorted(at)
    if min(np.diff(at)) < 1e-3:
        return
    law = devices.level_table(at, row[: len(at)])
    device = devices.get("Gaussian", sigma=1.0).replace(programming=law)
    np.testing.assert_allclose(devices.sigma_of(np.float32(at), device), row[: len(at)], atol=1e-4)
    np.testing.assert_array_equal(law.levels.conductance, np.float32(at))


def test_a_users_drift_and_read(key: jax.Array) -> None:
    drift = devices.Drift(mean=Partial(lambda g, a: a * g, a=0.1))
    read = devices.Read(sigma=Partial(lambda g, g_programmed, t_s, a: a * g_programmed * jnp.log1p(t_s), a=0.02))
    device = devices.get("ideal", drift=drift, read=read)
    keys = jax.random.split(key)
    cells = devices.drift(devices.program(keys[0], jnp.full(50_000, 0.5), device), 180.0, device)
    np.testing.assert_allclose(cells.g, 0.5 * 10**-0.05, rtol=1e-5)
    seen = devices.read(keys[1], cells, device)
    wanted = 0.02 * 0.5 * np.log(181.0)
    assert abs(float(seen.std()) / wanted - 1) < 5 / np.sqrt(1e5)


WRONG = {
    "a negative law": (
        lambda: _device(devices.Law(sigma=lambda g: g - 0.5)),
        r"`programming\.sigma` must lie in \[0, ",
    ),
    "negative at a level": (
        lambda: devices.get("FeFET3").replace(programming=devices.Law(sigma=lambda g: 0.3 - g)),
        r"`programming\.sigma` must lie in \[0, .* but is -0\.0333",
    ),
    "infinite": (lambda: _device(devices.Law(sigma=lambda g: 1 / g)), r"`programming\.sigma` must be finite"),
    "NaN in the mean": (lambda: _device(devices.Law(1.0, mean=lambda g: g / 0)), r"`programming\.mean` must be finite"),
    "another shape": (
        lambda: _device(devices.Law(sigma=lambda g: g[:2])),
        r"`programming\.sigma` must return the shape of the conductances, but returns \(2,\) for \(17,\)",
    ),
    "complex values": (
        lambda: _device(devices.Law(sigma=lambda g: g.astype(jnp.complex64))),
        r"`programming\.sigma` must hold real",
    ),
    "a negative exponent": (
        lambda: devices.get("PCM", drift=devices.Drift(mean=lambda g: -g)),
        r"`drift\.mean` must lie in \[0, ",
    ),
    "a negative read": (
        lambda: devices.get("PCM", read=devices.Read(sigma=lambda g, p, t: g - 1)),
        r"`read\.sigma` must lie in \[0, .*of that at first, and of the time",
    ),
    "a negative number": (lambda: devices.Law(sigma=-0.1), r"`sigma` must lie in \[0, inf\], but is -0\.1"),
    "text for a law": (lambda: devices.Law(sigma="bow"), r"`sigma` must be a number or a function .* is 'bow'"),
    "nothing for a law": (lambda: devices.Law(sigma=None), r"`sigma` must be a number or a function .* is None"),
    "a row for a law": (lambda: devices.Law(sigma=[0.1, 0.2]), r"`sigma` must have shape \(\).*level_table"),
    "a time of zero": (lambda: devices.Drift(mean=0.1, t0_s=0.0), r"`t0_s` must lie in \(0, "),
    "a negative floor": (lambda: devices.one_over_f(floor=-1.0), r"`floor` must lie in \(0, "),
    "a read before programming": (
        lambda: devices.one_over_f(t0_s=0.0),
        r"`t0_s` must lie in \(2\.5e-07, inf\] s, but is 0 s\. Give a t0_s above t_read_s",
    ),
    "no coefficient": (lambda: devices.polynomial([]), "`num_levels` must be an integer of at least 1"),
    "levels that fall": (lambda: devices.level_table([1.0, 0.0], [1.0, 1.0]), "`levels` must rise"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_law_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_traced_law_passes_until_its_values_are_there() -> None:
    def of(a: jax.Array) -> jax.Array:
        return devices.sigma_of(G, _device(devices.Law(sigma=Partial(lambda g, a: g * a, a=a))))

    np.testing.assert_allclose(jax.jit(of)(-1.0), -0.1 * G, rtol=1e-6)
    with pytest.raises(ValueError, match=r"returns \(2,\) for \(9,\)"):
        jax.jit(lambda g: devices.sigma_of(g, _device(devices.Law(sigma=lambda g: g if g.shape == (17,) else g[:2]))))(
            G
        )


# Changes of a device, as they are written, and the error.
REPLACED = {
    "programming='FeFET3'": "`programming` must be a Law or None, but is 'FeFET3'. Use devices.Law(sigma=...)",
    "programming=jnp.sin": "`programming` must be a Law or None, but is a ",
    "read=nv.devices.Drift(mean=0.1)": "`read` must be a Read or None, but is a Drift. Use devices.Read(sigma=...)",
    "drift=0.05": "`drift` must be a Drift or None, but is 0.05. Use devices.Drift(mean=...)",
    "sigma=0.1j": "`sigma` must be a real number, but is 0.1j",
    "sigma='0.1'": "`sigma` must be a real number, but is '0.1'",
    "sigma=True": "`sigma` must be a real number, but is True",
    "sigma=None": "`sigma` must be a real number, but is None",
    "sigma=[0.1, 0.2]": "`sigma` must have shape (), but has shape (2,). Use jax.vmap over devices",
    "sigma=jnp.complex64(1)": "`sigma` must be a real number",
    "sigma=float('inf')": "`sigma` must be finite",
    "d2d_sigma=-1.0": "`d2d_sigma` must lie in [0, 1e+06], but is -1",
    "g_max_us=float('nan')": "`g_max_us` must be finite",
    "sigma=1e30": "`sigma` must lie in [0, 1e+06], but is 1e+30",
    "stuck_on=0.6, stuck_off=0.6": "leave room for stuck_off",
    "rng='philox'": "`rng` must be one of",
    "num_levels=2.5": "`num_levels` must be an integer of at least 2, but is 2.5",
    "clip='yes'": "`clip` must be True or False, but is 'yes'",
    "sigma_unit='uS'": "`sigma_unit` must be one of g_max, measured",
}
_CELLS = "nv.devices.program(jax.random.key(1), jnp.float32(0.5), nv.devices.get('PCM'))"
# What is no device where one is expected.
NO_DEVICE = {
    "nv.devices.sigma_of(0.5, 'FeFET3')": "is 'FeFET3'. Use devices.get('FeFET3')",
    "nv.devices.program_moments(0.5, None)": "is None. Use devices.get('FeFET3')",
    "nv.devices.programmed(jnp.ones(2), jnp.ones(2), 'PCM')": "is 'PCM'. Use devices.get('PCM')",
    "nv.devices.level_conductances(4, 'PCM')": "is 'PCM'",
    "nv.devices.program(jax.random.key(0), 0.5, 'PCM')": "is 'PCM'",
    f"nv.devices.reprogram(jax.random.key(0), {_CELLS}, 0.5, {{}})": "is a dict",
    f"nv.devices.drift({_CELLS}, 1.0, 'PCM')": "is 'PCM'",
    f"nv.devices.read(jax.random.key(0), {_CELLS}, 'PCM')": "is 'PCM'",
    f"nv.devices.read_sigma({_CELLS}, 'PCM')": "is 'PCM'",
    "nv.devices.value_noise(jax.random.key(0), jnp.ones(2), 'PCM')": "is 'PCM'",
}


# What is no key where one is expected.
NO_KEY = (
    "nv.devices.program(0, 0.5, nv.devices.get('PCM'))",
    "nv.devices.reprogram(jax.random.PRNGKey, None, 0.5, nv.devices.get('PCM'))",
    "nv.devices.read(None, None, nv.devices.get('PCM'))",
    "nv.devices.value_noise('key', jnp.ones(2), nv.devices.get('FeFET3'))",
)


def test_what_is_no_key_is_said(said_plainly: Any) -> None:
    for kind, text in said_plainly(NO_KEY):
        assert kind == "ValueError"
        assert "Argument `key` must be" in text


def test_replace_checks_as_get_does(said_plainly: Any) -> None:
    found = said_plainly([f"nv.devices.get('Gaussian').replace({changes})" for changes in REPLACED])
    for (kind, text), wanted in zip(found, REPLACED.values(), strict=True):
        assert (kind, "\n" in text) == ("ValueError", False)
        assert wanted in text


def test_a_name_where_a_device_is_expected_is_said(said_plainly: Any) -> None:
    for (kind, text), wanted in zip(said_plainly(NO_DEVICE), NO_DEVICE.values(), strict=True):
        assert kind == "ValueError"
        assert f"Argument `device` must be a devices.Device, but {wanted}" in text


def test_a_misspelt_field_is_named() -> None:
    with pytest.raises(TypeError, match=r"Device\.replace has no option `sgima`\. Did you mean 'sigma'\?"):
        devices.get("Gaussian").replace(sgima=0.1)


def test_a_complex_sigma_is_refused_while_traced() -> None:
    with pytest.raises(ValueError, match="`sigma` must"):
        jax.jit(lambda s: devices.get("Gaussian", sigma=s).sigma)(0.1j)


def test_what_sigma_means_is_said() -> None:
    assert devices.get("FeFET3").sigma_label == "sigma (share of g_max)"
    assert devices.get("PCM").sigma_label == "sigma (multiple of the measured noise)"
    assert {
        name: devices.get(name).sigma_unit for name in devices.names() if not devices.get(name).clip
    } == dict.fromkeys(("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6", "Gaussian", "ideal"), "g_max")
