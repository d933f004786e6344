"""Shared by the tests of devices: golden files, limits of five standard errors, all devices and all they can do."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import devices

EVERYTHING = {
    "d2d_sigma": 0.05,
    "stuck_on": 0.05,
    "stuck_off": 0.1,
    "drift": devices.Drift(mean=devices.log_linear(0.05, -0.01), std=0.01),
    "read": devices.one_over_f(),
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

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Return a loader of the outputs of other simulators by the number of the case."""

    def load(case: str) -> dict[str, np.ndarray]:
        (file,) = GOLDEN.glob(f"{case}_*.npz")
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture
def assert_moments() -> Callable[..., None]:
    """Return a check that samples have a mean and a variance within five standard errors."""

    def check(samples: object, mean: object, variance: object) -> None:
        """Samples (num_samples, ...); the standard error of the variance comes from the fourth moment."""
        values = np.asarray(samples, np.float64)
        mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
        count = values.shape[0]
        spread = values.var(axis=0, ddof=1)
        fourth = ((values - values.mean(axis=0)) ** 4).mean(axis=0)
        mean_error = np.sqrt(spread / count)
        variance_error = np.sqrt(np.maximum(fourth - spread**2, 0.0) / count)
        rounding = 1e-6
        assert np.all(np.abs(values.mean(axis=0) - mean) < 5 * mean_error + rounding)
        assert np.all(np.abs(spread - variance) < 5 * variance_error + rounding * (variance + 1e-6))

    return check


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> devices.Device:
    """Return one device; without its name, so that devices of one structure share their compilations."""
    return DEVICES[request.param].replace(name="", citation="", num_levels=None)


@pytest.fixture(scope="session")
def life() -> Callable[..., dict[str, jax.Array]]:
    """Return one function of everything that a device can do."""
    return _life


def _life(key: jax.Array, g: jax.Array, t_s: jax.Array, device: devices.Device) -> dict[str, jax.Array]:
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
