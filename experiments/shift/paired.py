"""Differences stream by stream between rows of an experiment on domain shift, from saved records only.

Command:  python -m experiments.shift.paired FOLDER ROW ROW [--variant NAME]
          python -m experiments.shift.paired FOLDER ROW [ROW ...] --against OTHER   (both in the root of the repository)
Time:     2 s.
Expect:   the mean difference with its 95 % interval over streams; with --against, the root mean square and the largest
          difference between the same rows of two runs, over rows and streams.

A row is METHOD, METHOD@DEVICE or METHOD@DEVICE@SIGMA ("NVCiM-PT@FeFET3@0.1"); without a device it is in exact memory.
What is compared is the mean over domains and chips after the last buffer, of the streams that both sides have.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.shift.measure import read
from nvcim_jax import checks, metrics

__all__ = ["difference", "main", "of_row"]

Record = dict[str, Any]


def of_row(records: Sequence[Record], row: str) -> dict[int, float]:
    """Return the accuracy of each stream after its last buffer.

    Raises:
        ValueError: If there is no such row.
    """
    method, device, sigma = (*row.split("@"), "", "")[:3]
    own = [r for r in records if (r["method"], r["device"]) == (method, device or "digital")]
    own = [r for r in own if not sigma or abs(r["sigma"] - float(sigma)) < 1e-6]
    if not own:
        checks.fail("ROW", "be a row of the records", f"{row} is none")
    last = max(r["block"] for r in own)
    found: dict[int, list[float]] = {}
    for record in own:
        if record["block"] == last:
            found.setdefault(record["stream"], []).append(record["accuracy"])
    return {stream: float(np.mean(values)) for stream, values in found.items()}


def difference(records: Sequence[Record], first: str, second: str) -> np.ndarray:
    """Return the difference of two rows for each stream that both have (streams,)."""
    a, b = of_row(records, first), of_row(records, second)
    return np.array([a[stream] - b[stream] for stream in sorted(set(a) & set(b))])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print from the command line."""
    parser = argparse.ArgumentParser(description="Compare rows of an experiment stream by stream.")
    parser.add_argument("folder", type=Path, help="folder with the records")
    parser.add_argument("rows", nargs="+", metavar="ROW", help="METHOD, METHOD@DEVICE or METHOD@DEVICE@SIGMA")
    parser.add_argument("--variant", help="the variant; needed where there are several")
    parser.add_argument("--against", type=Path, help="another run's folder: the same rows of both are compared")
    chosen = parser.parse_args(arguments)
    records = _of_variant(read(chosen.folder), chosen.variant)
    if chosen.against is not None:
        other = _of_variant(read(chosen.against), chosen.variant)
        pairs = [(of_row(records, row), of_row(other, row)) for row in chosen.rows]
        gaps = np.array([a[s] - b[s] for a, b in pairs for s in sorted(set(a) & set(b))])
        print(f"{len(gaps)} pairs: root mean square {np.sqrt(np.mean(gaps**2)):.3f}, largest {np.abs(gaps).max():.3f}")
        return
    if len(chosen.rows) != 2:
        checks.fail("ROW", "be two rows, or --against be given", f"there are {len(chosen.rows)}")
    gaps = difference(records, *chosen.rows)
    found = metrics.interval(gaps)
    print(f"{' - '.join(chosen.rows)}: {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] over {len(gaps)} streams")


def _of_variant(records: Sequence[Record], variant: str | None) -> list[Record]:
    names = list(dict.fromkeys(record["variant"] for record in records))
    if variant is None and len(names) > 1:
        checks.fail("--variant", f"be one of {', '.join(names)}", "none is given")
    return [record for record in records if variant is None or record["variant"] == variant]


if __name__ == "__main__":
    main()
