"""Parameters of which a few are tried by every run of the tests, and the others by the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(params: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the parameters, all but the quick ones marked slow."""
    found = list(params)
    missing = [one for one in quick if one not in found]
    assert not missing, missing
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in found]
