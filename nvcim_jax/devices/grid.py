"""From single reads to programmed cells by times: which reads belong to one programming, and what was not read."""

from typing import NamedTuple

import numpy as np

from nvcim_jax.devices.records import Records

__all__ = ["Grid", "fill", "times_of", "to_grid"]

_FEW_TIMES = 16  # so many distinct times are all meant
_ENOUGH = 10  # reads that tell a distribution
_GAP, _SPAN = 1.3, 2.0  # of times that are one: a ratio between neighbours, and between the first and the last


class Grid(NamedTuple):
    """Programmed cells by times.

    Attributes:
        g_us: Conductances (R, K), NaN where not read.
        level: Level of each (R,).
        cell: Cell of each (R,); the row's own number where the file names no cells.
        merged: Reads that were averaged with another of the same cell and time.
    """

    g_us: np.ndarray
    level: np.ndarray
    cell: np.ndarray
    merged: int


def times_of(t_s: np.ndarray | None, times_s: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of a table (K,), and which of them each read belongs to; NaN-free seconds.

    Up to 16 different times are taken as they are. More are gathered: neighbours that differ by less than 30 % are one
    time, or, where they form no groups, those within a factor of two; a group's time is its median. To times that are
    given each read counts by its nearness in log time, where 0 stands for a tenth of the time after it.
    """
    if t_s is None:
        return np.zeros(1), np.zeros(0, np.int64)
    if times_s is not None:
        places = _places(times_s)
        nearest = np.abs(np.maximum(_log(t_s), places[0])[:, None] - places[None, :]).argmin(axis=1)
        return times_s, nearest
    found, which = np.unique(np.maximum(t_s, 0.0), return_inverse=True)
    if len(found) <= _FEW_TIMES:
        return found, which
    first = int(found[0] == 0.0)
    group = np.zeros(len(found), np.int64)
    positive = found[first:]
    chained = np.concatenate([[0], np.cumsum(positive[1:] > _GAP * positive[:-1])])
    ends = np.flatnonzero(np.diff(chained, append=chained[-1] + 1))
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (positive[ends] > _SPAN * positive[starts]).any():
        chained = _octaves(positive)
    group[first:] = chained + first
    read = group[which]
    return np.array([np.median(np.maximum(t_s, 0.0)[read == k]) for k in range(group[-1] + 1)]), read


def _octaves(times: np.ndarray) -> np.ndarray:
    group, begin, number = np.zeros(len(times), np.int64), times[0], 0
    for i, time in enumerate(times):
        if time >= _SPAN * begin:
            begin, number = time, number + 1
        group[i] = number
    return group


def _log(t_s: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(t_s, 1e-12))


def _places(times_s: np.ndarray) -> np.ndarray:
    """Return where times lie in log time; 0 at a tenth of the one after it."""
    return _log(np.where(times_s > 0, times_s, times_s[min(1, len(times_s) - 1)] / 10.0))


def to_grid(records: Records, which: np.ndarray, num_times: int) -> Grid:
    """Put reads in rows, one a programming of a cell: by `cycle`, or by the order of reads at the first time."""
    if records.cell is None:
        g_us = np.full((len(records.g_us), num_times), np.nan)
        g_us[np.arange(len(g_us)), which if which.size else 0] = records.g_us
        return Grid(g_us, records.level, np.arange(len(g_us)), 0)
    which = which if which.size else np.zeros(len(records.g_us), np.int64)
    key = records.cell * (records.level.max() + 1) + records.level
    key = np.unique(key, return_inverse=True)[1]
    cycle = _cycles(key, which) if records.cycle is None else records.cycle
    of_row = key * (int(cycle.max()) + 1) + cycle
    first, row = np.unique(of_row, return_index=True, return_inverse=True)[1:]
    sums, counts = np.zeros((len(first), num_times)), np.zeros((len(first), num_times))
    np.add.at(sums, (row, which), records.g_us)
    np.add.at(counts, (row, which), 1.0)
    g_us = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)
    return Grid(g_us, records.level[first], records.cell[first], int((counts - 1.0).clip(0.0).sum()))


def _cycles(key: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Number the programmings of a cell to a level: as many as it was read at the first time, in the file's order."""
    order = np.lexsort((np.arange(len(key)), which, key))
    same = np.concatenate([[False], (np.diff(key[order]) == 0) & (np.diff(which[order]) == 0)])
    begin = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    place = np.empty(len(key), np.int64)
    place[order] = np.arange(len(order)) - begin
    programmed = np.bincount(key[which == 0], minlength=int(key.max()) + 1)
    return np.minimum(place, np.maximum(programmed, 1)[key] - 1)


def fill(g_us: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Return the rows of one level with reads in place of what was not read, where that can be said.

    A missing read lies on the line (in log time) between the cell's reads before and after it, and as far off that line
    as that of the cell, read at all three times, whose change between them is most alike; after the last read or before
    the first it has the change of the cell that was nearest then. Where no other cell was read so, the line itself
    counts; a row that is then still not known stays NaN. Last, where ten cells or more were read, those that are filled
    in take the quantiles of what was read by their rank: so the tails of that time are the measured ones.
    """
    found, read = g_us.copy(), np.isfinite(g_us)
    place = _places(times_s)
    for k in range(g_us.shape[1]):
        missing = np.flatnonzero(~read[:, k]).tolist()
        known = np.isfinite(found)
        for row in missing:
            before = np.flatnonzero(known[row, :k]).tolist()
            after = (k + 1 + np.flatnonzero(read[row, k + 1 :])).tolist()
            at = [*before[-1:], *after[:1]]
            if at:
                found[row, k] = _filled(found, row, k, at, place, read)
        _rank(found[:, k], read[:, k])
    return found


def _rank(values: np.ndarray, read: np.ndarray) -> None:
    """Give what is filled in the quantiles of what was read."""
    filled = np.flatnonzero(~read & np.isfinite(values))
    known = np.sort(values[read])
    if len(known) >= _ENOUGH and len(filled):
        order = filled[np.argsort(values[filled], kind="stable")]
        values[order] = known[((np.arange(len(order)) + 0.5) / len(order) * len(known)).astype(int)]


def _filled(
    found: np.ndarray, row: int, k: int, at: list[int], place: np.ndarray, read: np.ndarray
) -> np.floating | float:
    own = found[row, at]
    donors = np.flatnonzero(read[:, [k, *at]].all(axis=1))
    there = found[donors][:, at]
    if len(at) == 1:
        if not donors.size:
            return np.nan
        nearest = np.abs(there[:, 0] - own[0]).argmin()
        return own[0] + found[donors[nearest], k] - there[nearest, 0]
    w = (place[k] - place[at[0]]) / (place[at[1]] - place[at[0]])
    line = own[0] + w * (own[1] - own[0])
    if not donors.size:
        return line
    nearest = np.abs((there[:, 1] - there[:, 0]) - (own[1] - own[0])).argmin()
    return line + found[donors[nearest], k] - (there[nearest, 0] + w * (there[nearest, 1] - there[nearest, 0]))
