"""What records of measured cells say: trajectories by level and time, their moments and tails, what was left out."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.devices.grid import Grid, fill, times_of, to_grid
from nvcim_jax.devices.measured import offsets_of
from nvcim_jax.devices.records import Records
from nvcim_jax.signature import checked

__all__ = ["CellFit", "fit_records"]

LIMITS = (-0.1, 1.5)


class CellFit(NamedTuple):
    """Measured cells by level and time; rows are programmed cells in the order of their levels, rising.

    Attributes:
        labels: Names of the levels (L,).
        target_us: Conductance of each level (L,), microsiemens: what was asked for, or the mean of the first reads.
        target_known: Whether the file says what was asked for.
        times_s: Times (K,), seconds since programming; the first stands for programming itself.
        starts: First row of each level, and the number of rows (L + 1,).
        g_us: Conductances (R, K), microsiemens, without the cells' lasting offsets where these are known; what was not
            read is filled in where cells are followed, else NaN.
        read: What was read (R, K).
        cell: Cell of each row (R,).
        followed: Whether the file names cells, so that a row is a trajectory.
        counts: Reads (L, K).
        mean_us: Their mean (L, K), and the standard error of it.
        mean_error_us: See above.
        sigma_us: Their standard deviation (L, K), and the standard error of it, from the fourth moment.
        sigma_error_us: See above.
        kurtosis: Excess of the fourth moment over a Gaussian's (L, K).
        beyond_4: Share of reads beyond four standard deviations (L, K); a Gaussian's is 0.00006.
        d2d_sigma_us: Standard deviation of the cells' lasting offsets, and its standard error; None without cells that
            were programmed repeatedly.
        d2d_error_us: See above.
        left_out: Rows, reads and cells that do not count, by reason.
        kept: What looks wrong and counts, by kind.
        g_max_us: Greatest conductance of the device.
        source: Name of the file.
    """

    labels: tuple[str, ...]
    target_us: np.ndarray
    target_known: bool
    times_s: np.ndarray
    starts: np.ndarray
    g_us: np.ndarray
    read: np.ndarray
    cell: np.ndarray
    followed: bool
    counts: np.ndarray
    mean_us: np.ndarray
    mean_error_us: np.ndarray
    sigma_us: np.ndarray
    sigma_error_us: np.ndarray
    kurtosis: np.ndarray
    beyond_4: np.ndarray
    d2d_sigma_us: float | None
    d2d_error_us: float | None
    left_out: Mapping[str, int]
    kept: Mapping[str, int]
    g_max_us: float
    source: str


@checked
def fit_records(
    records: Any,
    *,
    g_max_us: float,
    levels: Sequence[Any] | None = None,
    times_s: Sequence[float] | None = None,
    limits: tuple[float, float] = LIMITS,
    min_records: int = 10,
) -> CellFit:
    """Arrange records of measured cells by level and time, and say what they hold.

    What looks wrong follows a rule. Reads outside `limits` (shares of g_max) are left out; those below 0 or above g_max
    within them are kept. Levels are left out that lie beyond g_max, that have fewer than `min_records` cells, or that
    `levels` does not name. Both are counted, in `left_out` and `kept`. Several reads of a cell at one time are
    averaged; several at the first time are programmings of their own, as those of a column `cycle` are, and their
    common offset is taken out of the cell as device-to-device noise.

    Args:
        records: From `read_records`.
        g_max_us: Greatest conductance of the device, microsiemens.
        levels: Labels of the levels that were asked for; None: all.
        times_s: Nominal times, rising; each read counts to the nearest in log time, where 0 stands for a tenth of the
            time after it. None: found from the reads.
        limits: Lowest and highest read that is taken for one, shares of g_max.
        min_records: Least number of programmed cells of a level.

    Returns:
        The fit.

    Raises:
        ValueError: If the records are in another unit than g_max, no level is left, or none of the cells of a level is
            known at every time.

    Example:
        >>> import numpy as np
        >>> from nvcim_jax import devices
        >>> from nvcim_jax.devices.records import Records
        >>> level, g_us = np.repeat([0, 1], 3), np.array([1.0, 2.0, 3.0, 38.0, 39.0, 40.0])
        >>> records = Records(level, g_us, None, None, ("off", "on"))
        >>> fit = devices.fit_records(records, g_max_us=40.0, min_records=3)
        >>> fit.mean_us.ravel().tolist(), fit.sigma_us.ravel().tolist()
        ([2.0, 39.0], [1.0, 1.0])
    """
    if not isinstance(records, Records):
        checks.fail("records", "be records", f"is {checks.shown(records)}", "Read them with devices.read_records.")
    checks.number("g_max_us", g_max_us, low=0.0, low_open=True, unit="uS")
    checks.integer("min_records", min_records)
    _check_limits(limits)
    _check_unit(records, g_max_us)
    left_out, kept = dict(records.left_out), {}
    times, which = times_of(records.t_s, _checked_times(times_s))
    grid = to_grid(records, which, len(times))
    if grid.merged:
        kept["reads averaged with others of their cell and time"] = grid.merged
    grid = _within(grid, limits, g_max_us, left_out, kept)
    order = _levels(records, grid, levels, (g_max_us, min_records), left_out)
    rows, starts = _sorted_rows(grid, [level for level, _ in order])
    read = np.isfinite(grid.g_us[rows])
    g_us = _complete(grid.g_us[rows], starts, times) if records.cell is not None else grid.g_us[rows]
    whole = np.isfinite(g_us).all(axis=1) if records.cell is not None else np.isfinite(g_us).any(axis=1)
    if not whole.all():
        left_out["cells too rarely read to be followed"] = int((~whole).sum())
        starts = np.concatenate([[0], np.cumsum(whole)])[starts]
        rows, read, g_us = rows[whole], read[whole], g_us[whole]
        _check_followed([records.labels[level] for level, _ in order], starts)
    filled = int((~read).sum()) if records.cell is not None else 0
    if filled:
        kept["reads filled in between those of their cell"] = filled
    cell = grid.cell[rows]
    g_us, d2d = _without_offsets(g_us, cell, starts) if records.cell is not None else (g_us, (None, None))
    return CellFit(
        labels=tuple(records.labels[level] for level, _ in order),
        target_us=np.array([target for _, target in order]),
        target_known=records.target_us is not None,
        times_s=times,
        starts=starts,
        g_us=g_us,
        read=read,
        cell=cell,
        followed=records.cell is not None,
        **_moments(np.where(read, g_us, np.nan), starts),
        d2d_sigma_us=d2d[0],
        d2d_error_us=d2d[1],
        left_out=left_out,
        kept=kept,
        g_max_us=float(g_max_us),
        source=records.source,
    )


def _check_followed(labels: Sequence[Any], starts: np.ndarray) -> None:
    """Check that some cell of each level is known at every time."""
    empty = np.flatnonzero(np.diff(starts) == 0).tolist()
    if empty:
        found = f"hold none of {labels[empty[0]]!r}"
        fix = "Leave the level out by levels=, or a time by times_s=."
        checks.fail("records", "hold a cell of each level that is known at every time", found, fix)


def _check_limits(limits: tuple[float, float]) -> None:
    if len(limits) != 2 or not limits[0] <= 0.0 < 1.0 <= limits[1]:
        checks.fail("limits", "be a share of at most 0 and one of at least 1", f"is {limits}")


def _checked_times(times_s: Sequence[float] | None) -> np.ndarray | None:
    if times_s is None:
        return None
    times = np.asarray(times_s, np.float64)
    checks.rank("times_s", times, 1, "(times,)")
    checks.finite("times_s", times)
    if times.size == 0 or times[0] < 0 or (np.diff(times) <= 0).any():
        checks.fail("times_s", "rise from at least 0", f"is {times.tolist()}")
    return times


def _check_unit(records: Records, g_max_us: float) -> None:
    """Check that most reads lie where they can, given g_max: kohm read as ohm do not."""
    top = float(np.quantile(records.g_us, 0.95)) / g_max_us
    if not 0.01 <= top <= 1.5:
        fix = "Give the unit of the file, and g_max_us in microsiemens."
        checks.fail("g_max_us", "lie near the greatest conductances", f"these reach {top:.3g} of it", fix)


def _within(
    grid: Grid, limits: tuple[float, float], g_max_us: float, left_out: dict[str, int], kept: dict[str, int]
) -> Grid:
    """Leave out reads beyond the limits, and count those that look wrong."""
    share = grid.g_us / g_max_us
    with np.errstate(invalid="ignore"):
        outside = (share < limits[0]) | (share > limits[1])
        odd = {"reads below 0": (share < 0) & ~outside, "reads above g_max": (share > 1) & ~outside}
    if outside.any():
        left_out[f"reads beyond {limits[0]:g} to {limits[1]:g} of g_max"] = int(outside.sum())
    kept.update({kind: int(found.sum()) for kind, found in odd.items() if found.any()})
    return grid._replace(g_us=np.where(outside, np.nan, grid.g_us))


def _levels(
    records: Records,
    grid: Grid,
    wanted: Sequence[Any] | None,
    needed: tuple[float, int],
    left_out: dict[str, int],
) -> list[tuple[int, float]]:
    """Return the levels that count with their targets, rising."""
    g_max_us, min_records = needed
    asked = None if wanted is None else [str(label) for label in wanted]
    for label in asked or ():
        checks.choice("levels", label, records.labels)
    found = []
    for level, label in enumerate(records.labels):
        mine = grid.g_us[grid.level == level]
        first = mine[np.isfinite(mine).any(axis=1)]
        if asked is not None and label not in asked:
            _count(left_out, "cells of levels that were not asked for", len(mine))
            continue
        if len(first) < min_records:
            if asked is not None:
                fix = "Measure more, or lower min_records."
                checks.fail("records", f"hold {min_records} cells of each level", f"{len(first)} are of {label!r}", fix)
            _count(left_out, f"cells of levels with fewer than {min_records}", len(mine))
            continue
        column = next(k for k in range(mine.shape[1]) if np.isfinite(mine[:, k]).any())
        target = float(np.nanmean(mine[:, column])) if records.target_us is None else float(records.target_us[level])
        if not 0.0 <= target <= g_max_us:
            _count(left_out, "cells of levels beyond 0 to g_max", len(mine))
            continue
        found.append((level, target))
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        checks.fail("records", f"hold a level of {min_records} cells within g_max", f"hold none: {why}")
    found.sort(key=lambda one: one[1])
    for (low, a), (high, b) in itertools.pairwise(found):
        if not b > a:
            names = f"{records.labels[low]!r} and {records.labels[high]!r} are both {a:g} uS"
            checks.fail("records", "hold levels of different conductances", names)
    return found


def _count(left_out: dict[str, int], reason: str, number: int) -> None:
    left_out[reason] = left_out.get(reason, 0) + number


def _sorted_rows(grid: Grid, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the levels one after another, without those that were never read, and where each begins."""
    usable = np.isfinite(grid.g_us).any(axis=1)
    parts = [np.flatnonzero((grid.level == level) & usable) for level in order]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])])


def _complete(g_us: np.ndarray, starts: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    return np.concatenate([fill(g_us[a:b], times_s) for a, b in itertools.pairwise(starts)])


def _without_offsets(
    g_us: np.ndarray, cell: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, tuple[float | None, float | None]]:
    """Take the offsets that cells keep out of their rows, where cells were programmed repeatedly to a level.

    What is left of a cell's n records varies by (n - 1) / n too little, which is made up for; changes in time stay.
    """
    level = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    names, number = np.unique(cell, return_inverse=True)
    pairs = np.unique(number * len(starts) + level, return_inverse=True)[1]
    again = np.bincount(level, np.bincount(pairs)[pairs] > 1, minlength=len(starts) - 1)
    if len(names) < 2 or (again == 0).any():
        return g_us, (None, None)
    mean = np.bincount(level, g_us[:, 0]) / np.bincount(level)
    residual = g_us[:, 0] - mean[level]
    d2d, error = offsets_of(level, g_us[:, 0], number, residual)
    counts = np.bincount(number)[number]
    offset = (np.bincount(number, residual) / np.bincount(number))[number]
    if d2d == 0.0:
        return g_us, (d2d, error)
    widen = np.sqrt(counts / np.maximum(counts - 1.0, 1.0))
    first = mean[level] + np.where(counts > 1, (residual - offset) * widen, residual)
    return g_us + (first - g_us[:, 0])[:, None], (d2d, error)


def _moments(reads: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the moments of the reads of each level and time, with their standard errors."""
    shape = len(starts) - 1, reads.shape[1]
    names = ("counts", "mean_us", "mean_error_us", "sigma_us", "sigma_error_us", "kurtosis", "beyond_4")
    found = {name: np.full(shape, np.nan) for name in names}
    for level, (a, b) in enumerate(itertools.pairwise(starts)):
        for k in range(shape[1]):
            values = reads[a:b, k][np.isfinite(reads[a:b, k])]
            for name, value in zip(names, _of_sample(values), strict=True):
                found[name][level, k] = value
    found["counts"] = found["counts"].astype(np.int64)
    return found


def _of_sample(values: np.ndarray) -> tuple[float, ...]:
    count, nan = len(values), float("nan")
    if count == 0:
        return (0.0, nan, nan, nan, nan, nan, nan)
    mean = float(values.mean())
    if count == 1:
        return (1.0, mean, nan, nan, nan, nan, nan)
    sigma = float(values.std(ddof=1))
    if sigma == 0.0:
        return (float(count), mean, 0.0, 0.0, 0.0, nan, 0.0)
    z = (values - mean) / sigma
    kurtosis = float((z**4).mean()) - 3.0
    error = sigma * (max(kurtosis + 2.0, 0.0) / (4.0 * count)) ** 0.5
    return (float(count), mean, sigma / count**0.5, sigma, error, kurtosis, float((np.abs(z) > 4.0).mean()))
