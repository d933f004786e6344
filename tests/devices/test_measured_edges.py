"""Measured cells at the edges: heavy tails, reads soon after programming, cells that cannot be followed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nvcim_jax import devices
from nvcim_jax.devices import four_laws, recorded
from nvcim_jax.devices.records import Records


def test_moments_of_heavy_tails_are_those_of_what_is_drawn(assert_moments: Any) -> None:
    """Most of the variance lies far out, where a table of equally likely quantiles has no entry."""
    shares = (np.arange(2000) + 0.5) / 2000
    targets = np.array([2.0, 11.0])
    g_us = targets[:, None] + np.array([[0.1], [0.2]]) * stats.t.ppf(shares, np.array([[2.2], [2.6]]))
    records = Records(np.repeat([0, 1], 2000), g_us.ravel(), None, targets, ("a", "b"))
    fit = devices.fit_records(records, g_max_us=11.0)
    assert four_laws.student_fits(fit)[0][0].freedom < 2.3
    device = devices.from_records(fit, law="student", t_s=0.0)
    assert device.programming is not None
    noise = jax.jit(device.programming.noise)
    z = np.linspace(-recorded.LAST_KNOT, recorded.LAST_KNOT, 1_000_001)
    density = np.exp(-(z**2) / 2) / (2 * np.pi) ** 0.5
    for g in (2.0 / 11.0, 0.5, 1.0):
        mean, variance = devices.program_moments(g, device)
        drawn = np.asarray(noise(jnp.full(z.shape, g), jnp.asarray(z, jnp.float32)), np.float64)
        np.testing.assert_allclose(variance, np.trapezoid(drawn**2 * density, z), rtol=1e-3)
        cells = jax.jit(devices.program)(jax.random.key(5), jnp.full(200_000, g), device)
        assert_moments(cells.g, mean, variance)


def test_reads_soon_after_programming_count_to_the_time_zero() -> None:
    rng = np.random.default_rng(0)
    t_s = np.tile([5.0, 3600.0, 86400.0], 40)
    records = Records(np.zeros(120, int), rng.normal(20.0, 1.0, 120), np.repeat(np.arange(40), 3), None, ("a",), t_s)
    found = devices.fit_records(records, g_max_us=40.0, times_s=[0.0, 3600.0, 86400.0])
    assert found.counts.tolist() == [[40, 40, 40]]
    assert "reads averaged with others of their cell and time" not in found.kept


def test_a_level_of_which_no_cell_can_be_followed_is_refused() -> None:
    level, cell, time = (a.ravel() for a in np.indices((4, 40, 3)))
    g_us = np.array([2.0, 11.0, 24.0, 38.0])[level] + np.random.default_rng(0).normal(size=level.size)
    t_s = np.array([0.0, 1.0, 100.0])[time]
    records = Records(level, g_us, cell + 40 * level, None, ("a", "b", "c", "d"), t_s)
    kept = (records.level != 2) | (records.t_s == 0.0)
    thinned = records._replace(**{name: getattr(records, name)[kept] for name in ("level", "g_us", "cell", "t_s")})
    with pytest.raises(ValueError, match=r"known at every time, but hold none of 'c'\. Leave the level out by levels="):
        devices.fit_records(thinned, g_max_us=40.0)
    assert devices.fit_records(thinned, g_max_us=40.0, levels=["a", "b", "d"]).labels == ("a", "b", "d")
