"""Records of a small study, by hand."""

from typing import Any

__all__ = ["CHIPS", "records"]

CHIPS = ([0.5, 0.7], [0.4, 0.8], [0.9, 0.9])


def records(streams: int) -> list[dict[str, Any]]:
    """Return two domains of one method on the chips of one device, each stream a tenth worse than the one before."""
    place = {"kind": "block", "device": "FeFET3", "sigma": 0.1, "trained_for": "FeFET3 0.1", "method": "NVCiM-PT"}
    return [
        {**place, "stream": s, "block": 1, "current": "b", "instance": i, "domain": domain, "role": role, "queries": 10}
        | {"accuracy": chip[k] - 0.1 * s, "hit": 1.0 if k else 0.5}
        for s in range(streams)
        for i, chip in enumerate(CHIPS)
        for k, (domain, role) in enumerate((("a", "previous"), ("b", "current")))
    ]
