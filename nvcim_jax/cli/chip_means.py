"""The records of a run chip by chip, and its table."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PLACE", "chip_means", "table"]

PLACE = ("kind", "device", "sigma", "trained_for", "method")
"""What makes a row of the table."""

VALUES = ("accuracy", "hit")


def chip_means(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each place, stream and chip: means over the domains of the buffers, after the last of them.

    Args:
        records: Records of a study.

    Returns:
        `PLACE`, `stream`, `instance`, `accuracy` and `hit`; None where a value was not measured.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in (*PLACE, "stream", "instance")), []).append(record)
    made = []
    for place, own in found.items():
        last = max(record["block"] for record in own)
        row: dict[str, Any] = dict(zip((*PLACE, "stream", "instance"), place, strict=True))
        for name in VALUES:
            ends = (record for record in own if record["block"] == last and record["role"] != "unseen")
            values = [record[name] for record in ends if record[name] is not None]
            row[name] = sum(values) / len(values) if values else None
        made.append(row)
    return made


def table(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a summary, with intervals over the chips where there is only one stream.

    Chips of one stream share its prompts: such an interval says how far chips differ, not streams.

    Args:
        records: Records of a study.

    Returns:
        Rows of `study.summarise`.
    """
    from nvcim_jax import metrics, study

    rows, chips = study.summarise(records), chip_means(records)
    for row in rows:
        if row["streams"] > 1 or row["instances"] < 2:
            continue
        own = [chip for chip in chips if all(chip[name] == row[name] for name in PLACE)]
        for name in VALUES:
            values = [chip[name] for chip in own if chip[name] is not None]
            if values:
                found = metrics.interval(values)
                row[f"{name}_low"], row[f"{name}_high"] = float(found.low), float(found.high)
    return rows
