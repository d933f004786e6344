"""The table of a study: means with intervals over streams, gaps to the oracle, paired differences, forgetting."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nvcim_jax import checks, metrics
from nvcim_jax.signature import checked

__all__ = ["shift_matrix", "summarise"]

PLACE = ("kind", "device", "sigma", "trained_for")
Record = dict[str, Any]
Rows = dict[tuple[int, int], list[Record]]


def _rounded(value: float) -> float | None:
    """Return a number that JSON has: infinite ends of a single stream, and what was not measured, become None."""
    return float(value) if math.isfinite(value) else None


def _by_run(records: Sequence[Record]) -> Rows:
    """Return the records of each (stream, instance)."""
    found: Rows = {}
    for record in records:
        found.setdefault((record["stream"], record["instance"]), []).append(record)
    return found


def _matrix(runs: Rows, value: Callable[[list[Record]], float]) -> np.ndarray:
    """Return one value a run, (streams, instances)."""
    streams, instances = sorted({s for s, _ in runs}), sorted({i for _, i in runs})
    missing = [(s, i) for s in streams for i in instances if (s, i) not in runs]
    if missing:
        found = f"stream {missing[0][0]} lacks instance {missing[0][1]}"
        checks.fail("records", "have the same instances of every stream", found, "Let the study finish.")
    return np.array([[value(runs[s, i]) for i in instances] for s in streams])


def _at_end(rows: list[Record], name: str) -> float:
    """Return the mean over the domains that came in buffers, after the last block."""
    last = max(row["block"] for row in rows)
    values = [row[name] for row in rows if row["block"] == last and row["role"] != "unseen" and row[name] is not None]
    return float(np.mean(values)) if values else float("nan")


def _unseen(rows: list[Record]) -> float:
    last = max(row["block"] for row in rows)
    values = [row["accuracy"] for row in rows if row["block"] == last and row["role"] == "unseen"]
    return float(np.mean(values)) if values else float("nan")


def _matrix_of_run(rows: list[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return R[block, domain] of one run, without the unseen domain, and the column of each block's own domain."""
    names = list(dict.fromkeys(row["domain"] for row in rows if row["role"] != "unseen"))
    blocks = sorted({row["block"] for row in rows})
    R = np.full((len(blocks), len(names)), np.nan)
    current = np.zeros(len(blocks), np.int64)
    for row in rows:
        if row["role"] != "unseen":
            R[blocks.index(row["block"]), names.index(row["domain"])] = row["accuracy"]
            current[blocks.index(row["block"])] = names.index(row["current"])
    return R, current


@checked
def shift_matrix(records: Sequence[Record], method: str, **place: Any) -> tuple[np.ndarray, list[str], list[str]]:
    """Return the mean accuracy R[t, i] on domain i after block t, over streams and chips.

    Domain i of a stream is the i-th that occurs in its records, whatever its name.

    Args:
        records: Records of a study with `every_block`.
        method: Name of the method.
        **place: Further fields to choose by, such as `device="FeFET3"`.

    Returns:
        R (blocks, domains), the domain of each block, and the domains; one that is not the same in all streams is
        called by its place, "domain 1".

    Raises:
        ValueError: If there is no such record, or the streams have another number of domains or come back to others.

    Example:
        >>> scores = {0: {"a": 0.9, "b": 0.1}, 1: {"a": 0.7, "b": 0.8}}  # block -> domain -> accuracy
        >>> rows = [
        ...     {"method": "ours", "block": t, "current": "ab"[t], "domain": name, "accuracy": share}
        ...     for t, row in scores.items()
        ...     for name, share in row.items()
        ... ]
        >>> R, blocks, domains = shift_matrix(rows, "ours")
        >>> R.tolist(), blocks, domains  # what is left of "a" after block "b": 0.7
        ([[0.9, 0.1], [0.7, 0.8]], ['a', 'b'], ['a', 'b'])
    """
    rows = [r for r in records if r["method"] == method and all(r[name] == value for name, value in place.items())]
    if not rows:
        checks.fail("method", "have records", f"there are none of {method!r} with {place}")
    domains: dict[Any, dict[str, int]] = {}  # of each stream, the places of its domains
    orders: dict[Any, dict[int, int]] = {}  # of each stream, the place of the domain of each block
    for row in rows:
        places = domains.setdefault(_stream(row), {})
        places.setdefault(row["domain"], len(places))
    for row in rows:
        orders.setdefault(_stream(row), {})[row["block"]] = domains[_stream(row)][row["current"]]
    first = next(iter(domains))
    for stream, places in domains.items():
        if (len(places), orders[stream]) != (len(domains[first]), orders[first]):
            found = f"stream {stream[1]} has another than stream {first[1]}"
            checks.fail("records", "have one order of domains in all streams", found, "Choose by kind= or stream=.")
    cells: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        cells.setdefault((row["block"], domains[_stream(row)][row["domain"]]), []).append(row["accuracy"])
    names = zip(*domains.values(), strict=True)
    labels = [own[0] if len(set(own)) == 1 else f"domain {i}" for i, own in enumerate(names, 1)]
    blocks = sorted(orders[first])
    R = np.array([[np.mean(cells[block, i]) for i in range(len(labels))] for block in blocks])
    return R, [labels[orders[first][block]] for block in blocks], labels


def _stream(row: Record) -> tuple[Any, Any]:
    return row.get("kind"), row.get("stream")


def _interval(values: np.ndarray, level: float, name: str) -> Record:
    """Return mean and ends as three entries, None where a run has no such value."""
    if np.isnan(values).any():
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    found = metrics.hierarchical_interval(values, level)
    ends = {f"{name}_low": _rounded(found.low), f"{name}_high": _rounded(found.high)}
    return {name: _rounded(found.mean), **ends}


def _difference(first: np.ndarray, second: np.ndarray | None, level: float, name: str) -> Record:
    """Return the paired difference first - second; one that has no chips stands against every chip of the other."""
    if second is None or len(first) != len(second):
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    wide = max(first.shape[1], second.shape[1])
    if {first.shape[1], second.shape[1]} - {1, wide}:
        checks.fail("records", "have as many instances of every method", f"have {first.shape[1]} and {second.shape[1]}")
    shape = (len(first), wide)
    return _interval(np.broadcast_to(first, shape) - np.broadcast_to(second, shape), level, name)


@checked
def summarise(
    records: Sequence[Record],
    *,
    against: str = "NVCiM-PT",
    oracle: str = "oracle route",
    level: float = 0.95,
) -> list[Record]:
    """Return one row for each method and place, in the order of the records.

    An accuracy is the mean over the domains of the buffers after the last block. Intervals are Student's over the
    streams, each averaged over its chips first (`metrics.hierarchical_interval`): chips of one stream share prompts.

    Args:
        records: Records of a study.
        against: Method that the others are compared with, chip by chip: `difference` = other - this one.
        oracle: Method that bounds a search; `gap` = oracle - other.
        level: Confidence of the intervals.

    Returns:
        Rows with `kind`, `device`, `sigma`, `trained_for`, `method`, `streams`, `instances`, `accuracy`, `hit`, `gap`,
        `difference`, `loss` (what noise costs: accuracy at the smallest sigma that was measured, minus this, chip by
        chip), `unseen`, and, where several blocks were measured, `forgetting` and `previously_seen`; each but
        the first seven with `_low` and `_high`. What was not measured, or is infinite with one stream, is None.

    Raises:
        ValueError: If there is no record, or a stream lacks instances.

    Example:
        >>> made = [{"kind": "block", "stream": s, "device": "X", "sigma": 0.1, "trained_for": "", "method": m,
        ...          "block": 0, "instance": 0, "domain": "a", "role": "current", "accuracy": a, "hit": 1.0}
        ...         for m, values in (("NVCiM-PT", (.6, .8)), ("other", (.5, .5))) for s, a in enumerate(values)]
        >>> [(row["method"], round(row["accuracy"], 3), round(row["difference"], 3)) for row in summarise(made)]
        [('NVCiM-PT', 0.7, 0.0), ('other', 0.5, -0.2)]
    """
    if not records:
        checks.fail("records", "hold at least one record", "is empty")
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((*(record[name] for name in PLACE), record["method"]), []).append(record)
    ends = {name: _matrix(_by_run(rows), lambda run: _at_end(run, "accuracy")) for name, rows in groups.items()}
    made = []
    for name, rows in groups.items():
        runs, accuracy = _by_run(rows), ends[name]
        bound, reference = (_partner(name, other, ends) for other in (oracle, against))
        row = dict(zip((*PLACE, "method"), name, strict=True))
        row |= {"streams": accuracy.shape[0], "instances": accuracy.shape[1]}
        row |= _interval(accuracy, level, "accuracy")
        row |= _interval(_matrix(runs, lambda run: _at_end(run, "hit")), level, "hit")
        row |= _negative(_difference(accuracy, bound, level, "gap"), "gap")
        row |= _difference(accuracy, reference, level, "difference")
        row |= _negative(_difference(accuracy, _least_noise(name, ends), level, "loss"), "loss")
        row |= _interval(_matrix(runs, _unseen), level, "unseen")
        row |= _over_blocks(runs, level)
        made.append(row)
    return made


def _negative(row: Record, name: str) -> Record:
    """Turn this - oracle into oracle - this."""
    mean, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    flip = lambda value: None if value is None else 0.0 - value  # noqa: E731
    return {name: flip(mean), f"{name}_low": flip(high), f"{name}_high": flip(low)}


def _over_blocks(runs: Rows, level: float) -> Record:
    """Return what several blocks tell."""
    made: Record = {}
    for name, value in (("forgetting", metrics.forgetting), ("previously_seen", metrics.previously_seen_mean)):
        several = all(len({row["block"] for row in rows}) > 1 for rows in runs.values())
        found = _matrix(runs, lambda run, f=value: f(*_matrix_of_run(run))) if several else np.full((1, 1), np.nan)
        made |= _interval(found, level, name)
    return made


def _least_noise(name: tuple[Any, ...], ends: dict[tuple[Any, ...], np.ndarray]) -> np.ndarray | None:
    """Return the values of the same method on the same device at the smallest sigma, if several were measured."""
    kind, device, _, *rest = name
    same = {key[2]: values for key, values in ends.items() if key[:2] == (kind, device) and [*key[3:]] == rest}
    return same[min(same)] if len(same) > 1 else None


def _partner(name: tuple[Any, ...], other: str, ends: dict[tuple[Any, ...], np.ndarray]) -> np.ndarray | None:
    """Return the values of another method at the same place; what it was trained for may differ if it is the one."""
    kind, device, sigma, trained, _ = name
    exact = ends.get((kind, device, sigma, trained, other))
    if exact is not None:
        return exact
    near = [values for key, values in ends.items() if key[:3] == (kind, device, sigma) and key[4] == other]
    return near[0] if len(near) == 1 else None
