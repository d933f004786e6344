"""What the tests of crossbars share."""

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator of the test's own, so that its data are the same whichever tests are run."""
    return np.random.default_rng(7)
