"""Shared by the tests of devices: golden files, and limits of five standard errors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
