"""Devices from measurements: a table, or repeated programming records from which the table is fitted."""

from typing import NamedTuple, Unpack

import numpy as np
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.devices.laws import Row, level_table
from nvcim_jax.devices.spec import Device, Effects, check_effects
from nvcim_jax.signature import checked

__all__ = ["LevelFit", "fit_table", "from_fit", "from_table", "offsets_of"]


class LevelFit(NamedTuple):
    """Noise of each level, estimated from records; standard errors are of the estimate beside them.

    Attributes:
        target_us: Conductance asked for (L,), microsiemens; None where the records do not say.
        mean_us: Mean conductance after programming (L,), microsiemens.
        mean_error_us: Its standard error (L,).
        sigma_us: Cycle-to-cycle standard deviation (L,), microsiemens.
        sigma_error_us: Its standard error (L,), sigma / sqrt(2 x degrees of freedom), for Gaussian records.
        counts: Number of records (L,).
        d2d_sigma_us: Standard deviation of the cells' lasting offsets, microsiemens; None without a cell column.
        d2d_error_us: Its standard error; infinite where the estimate is 0, as it is of one cell a level.
    """

    target_us: np.ndarray | None
    mean_us: np.ndarray
    mean_error_us: np.ndarray
    sigma_us: np.ndarray
    sigma_error_us: np.ndarray
    counts: np.ndarray
    d2d_sigma_us: float | None
    d2d_error_us: float | None


@checked
def from_table(
    levels: Row,
    mean: Row | None,
    sigma: Row,
    *,
    g_max_us: ArrayLike,
    on_off_ratio: ArrayLike = float("inf"),
    name: str = "measured",
    citation: str = "",
    **effects: Unpack[Effects],
) -> Device:
    """Make a device of a measured table.

    Args:
        levels: Target conductances in units of g_max (L,), rising, in [0, 1], at least two.
        mean: Mean conductances after programming, in units of g_max (L,); None where they are the targets.
        sigma: Cycle-to-cycle standard deviations in units of g_max (L,), at least 0.
        g_max_us: Greatest conductance, microsiemens.
        on_off_ratio: g_max / g_min.
        name: Name of the device.
        citation: Where the numbers come from.
        **effects: `d2d_sigma`, `stuck_on`, `stuck_off`, `drift`, `read`, `clip`, `rng`, as in `get`; conductances are
            cut at 0 by default.

    Returns:
        The device, with `sigma` = 1 as the multiplier of the measured noise and as many levels as the table.

    Raises:
        ValueError: If the rows differ in length, are not finite, or the levels do not rise within [0, 1].
        TypeError: If an option does not exist.

    Example:
        >>> from nvcim_jax import devices
        >>> device = devices.from_table([0.0, 0.5, 1.0], [0.02, 0.5, 0.97], [0.01, 0.05, 0.03], g_max_us=40.0)
        >>> print(f"{devices.sigma_of(0.25, device) * device.g_max_us:.1f} uS")  # halfway from .01 to .05, of 40 uS
        1.2 uS
    """
    check_effects("from_table", effects, ("g_max_us", "on_off_ratio", "name", "citation"))
    checks.rank("levels", levels, 1, "(levels,)")
    num_levels = np.shape(levels)[0]
    checks.integer("num_levels", num_levels, low=2, fix="Give a level for g_min and one for g_max at least.")
    law = level_table(levels, sigma, mean)
    if mean is not None and checks.is_concrete(mean):
        _check_unit("mean", float(np.max(np.asarray(mean))), "units of g_max")
    checks.number("sigma", sigma, high=1.0, fix="Divide by g_max.")
    return Device(
        programming=law,
        sigma=1.0,
        g_max_us=g_max_us,
        on_off_ratio=on_off_ratio,
        name=name,
        citation=citation,
        num_levels=num_levels,
        sigma_unit="measured",
        **{effect: value for effect, value in effects.items() if value is not None},  # type: ignore[arg-type]
    )


# The greatest mean of a measurement, as a share of g_max: beyond these it is in another unit.
_LEAST_TOP, _GREATEST_TOP = 0.01, 1.1


def _check_unit(argument: str, top: float, unit: str = "microsiemens") -> None:
    """Check that the greatest mean lies where it can in units of g_max; siemens in place of microsiemens do not."""
    if not _LEAST_TOP <= top <= _GREATEST_TOP:
        found = f"its greatest is {top:.3g} of it"
        fix = f"Give both in {unit}." if unit == "microsiemens" else "Divide by g_max."
        checks.fail(argument, f"reach {_LEAST_TOP:g} to {_GREATEST_TOP:g} of g_max", found, fix)


def _sums(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the sums of `values` by the integer `keys`."""
    return np.bincount(keys, weights=values)


def _checked_levels(level: Row, num_levels: int | None) -> tuple[np.ndarray, int]:
    """Return the levels as integers from 0, and how many there are."""
    levels = np.asarray(level)
    checks.rank("level", levels, 1, "(records,)")
    if levels.size == 0 or not np.issubdtype(levels.dtype, np.integer) or levels.min() < 0:
        checks.fail("level", "hold integers from 0", f"has {levels.size} entries of type {levels.dtype}")
    found = int(levels.max()) + 1
    if num_levels is None:
        num_levels = found
    checks.integer("num_levels", num_levels, low=max(2, found), fix="It is the number of levels in the records.")
    return levels, num_levels


def _check_counts(counts: np.ndarray, min_records: int) -> None:
    """Check that every level has enough records."""
    missing = np.flatnonzero(counts == 0).tolist()
    if missing:
        fix = "Number the levels from 0 without gaps, or measure the missing ones."
        checks.fail("level", f"hold every level from 0 to {len(counts) - 1}", f"has no record of {missing}", fix)
    few = np.flatnonzero(counts < max(min_records, 2)).tolist()
    if few:
        found = f"has {int(counts[few[0]])} of level {few[0]}"
        checks.fail("level", f"hold at least {max(min_records, 2)} records of each", found, "Measure more of it.")


def _pooled_variance(
    levels: np.ndarray, values: np.ndarray, cells: np.ndarray | None, num_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of each level within its cells, and the degrees of freedom it rests on."""
    groups = levels if cells is None else np.unique(cells * num_levels + levels, return_inverse=True)[1]
    sizes = np.bincount(groups)
    within = values - (_sums(groups, values) / sizes)[groups]
    # each record of a group of n carries (n - 1) / n of a degree of freedom
    freedom = np.rint(np.bincount(levels, weights=1.0 - 1.0 / sizes[groups], minlength=num_levels))
    if (freedom < 1).any():
        fix = "Program each cell to each level twice or more, or leave the cells out."
        checks.fail("cell", "be programmed repeatedly", f"no cell has two records of level {freedom.argmin()}", fix)
    return _sums(levels, within**2) / freedom, freedom


def _parts(cells: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return which part of the design each cell belongs to, from 0: cells that share levels, directly or by others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_cells = int(cells.max()) + 1
    size = num_cells + int(levels.max()) + 1
    graph = coo_array((np.ones(len(cells)), (cells, num_cells + levels)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][:num_cells], return_inverse=True)[1]


def _offsets(residual: np.ndarray, cells: np.ndarray, levels: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """Return the standard deviation of the cells' offsets, freed of the records' own noise, and its standard error.

    E[var of the cells' mean residuals] = d2d^2 + mean over cells of (sum of the variances of its n records) / n^2.
    The means of the levels take one degree of freedom for each part of the design: one where cells were programmed to
    all levels, as many as levels where each cell was programmed to one.
    """
    counts = np.bincount(cells)
    part = _parts(cells, levels)
    means = _sums(cells, residual) / counts
    freedom = len(counts) - (int(part.max()) + 1)
    if freedom == 0:
        return 0.0, float("inf")
    observed = float(np.sum((means - (_sums(part, means) / np.bincount(part))[part]) ** 2)) / freedom
    squared = observed - float(np.mean(_sums(cells, noise) / counts**2))
    error = observed * (2.0 / freedom) ** 0.5
    return (squared**0.5, error / (2.0 * squared**0.5)) if squared > 0 else (0.0, float("inf"))


def offsets_of(level: np.ndarray, values: np.ndarray, cells: np.ndarray, residual: np.ndarray) -> tuple[float, float]:
    """Return the standard deviation of the cells' offsets and its standard error; cells are numbered from 0."""
    variance, _ = _pooled_variance(level, values, cells, int(level.max()) + 1)
    return _offsets(residual, cells, level, variance[level])


def _checked_cells(cell: Row, length: int) -> np.ndarray:
    """Return the cells of the records, numbered from 0 without gaps."""
    checks.shape("cell", cell, (length,), "of level")
    names, numbers = np.unique(np.asarray(cell), return_inverse=True)
    checks.integer("number of cells", len(names), low=2, fix="Leave the cells out where there is one.")
    return numbers


@checked
def fit_table(
    level: Row,
    g_us: Row,
    *,
    cell: Row | None = None,
    target_us: Row | None = None,
    num_levels: int | None = None,
    min_records: int = 10,
) -> LevelFit:
    """Fit mean and sigma of each level to records of repeated programming.

    Without `cell` the records of a level are one sample: sigma is their standard deviation, which then holds whatever
    differs between the cells that were measured. With `cell` the cycle-to-cycle sigma is pooled within each cell and
    level, and the offsets that cells keep come out apart as `d2d_sigma_us`, whether each cell was programmed to all
    levels or to one. Records that the instrument cut at 0 make the sigma of the lowest level too small.

    Args:
        level: Level that was asked for, of each record (records,), integers from 0.
        g_us: Conductance read back (records,), microsiemens.
        cell: Which cell it was (records,), any labels; None if unknown.
        target_us: Conductance of each level that was asked for (L,), microsiemens; kept in the fit.
        num_levels: Number of levels; by default the greatest level plus one.
        min_records: Least number of records a level.

    Returns:
        The fit, with counts and standard errors.

    Raises:
        ValueError: If a level is missing or has too few records, if a number is not finite, or if no cell was
            programmed twice to the same level.

    Example:
        >>> import numpy as np
        >>> from nvcim_jax import devices
        >>> fit = devices.fit_table([0, 0, 0, 1, 1, 1], [1.0, 2.0, 3.0, 8.0, 10.0, 12.0], min_records=3)
        >>> fit.mean_us.tolist(), fit.sigma_us.tolist()
        ([2.0, 10.0], [1.0, 2.0])
    """
    levels, num_levels = _checked_levels(level, num_levels)
    checks.shape("g_us", g_us, levels.shape, "of level")
    checks.finite("g_us", g_us, "Drop the records that failed.")
    values = np.asarray(g_us, dtype=np.float64)
    counts = np.bincount(levels, minlength=num_levels)
    _check_counts(counts, min_records)
    cells = None if cell is None else _checked_cells(cell, levels.size)
    variance, freedom = _pooled_variance(levels, values, cells, num_levels)
    mean = _sums(levels, values) / counts
    mean_variance = variance / counts
    d2d, d2d_error = None, None
    if cells is not None:
        d2d, d2d_error = _offsets(values - mean[levels], cells, levels, variance[levels])
        group, sizes = np.unique(cells * num_levels + levels, return_inverse=True, return_counts=True)[1:]
        mean_variance = mean_variance + d2d**2 * _sums(levels, sizes[group]) / counts**2
    return LevelFit(
        target_us=_checked_targets(target_us, num_levels),
        mean_us=mean,
        mean_error_us=np.sqrt(mean_variance),
        sigma_us=np.sqrt(variance),
        sigma_error_us=np.sqrt(variance / (2.0 * freedom)),
        counts=counts,
        d2d_sigma_us=d2d,
        d2d_error_us=d2d_error,
    )


def _checked_targets(target_us: Row | None, num_levels: int) -> np.ndarray | None:
    """Return the targets of the levels, which rise."""
    if target_us is None:
        return None
    checks.shape("target_us", target_us, (num_levels,), "(levels,)")
    checks.finite("target_us", target_us)
    targets = np.asarray(target_us, dtype=np.float64)
    if not (np.diff(targets) > 0).all():
        checks.fail("target_us", "rise from level to level", f"is {targets.tolist()}")
    return targets


@checked
def from_fit(
    fit: LevelFit,
    *,
    g_max_us: float,
    on_off_ratio: float | None = None,
    name: str = "measured",
    citation: str = "",
    **effects: Unpack[Effects],
) -> Device:
    """Make a device of fitted levels.

    Args:
        fit: The fit; its `d2d_sigma_us` is taken over where there is one.
        g_max_us: Greatest conductance, microsiemens: the unit of the device.
        on_off_ratio: g_max / g_min; by default that of the lowest target, and infinite without targets.
        name: Name of the device.
        citation: Where the records come from.
        **effects: Further arguments of `from_table`, such as `drift`.

    Returns:
        The device. Without targets in the fit its levels are evenly spaced from g_min to 1.

    Raises:
        ValueError: If a target lies above `g_max_us`, or the greatest mean far from it, as siemens do.
    """
    checks.number("g_max_us", g_max_us, low=0.0, low_open=True)
    lowest = 0.0 if fit.target_us is None else float(fit.target_us[0])
    default = g_max_us / lowest if lowest > 0 else float("inf")
    ratio = default if on_off_ratio is None else on_off_ratio
    if fit.target_us is None:
        levels = np.linspace(1.0 / ratio, 1.0, len(fit.mean_us))
    else:
        checks.number("target_us", fit.target_us, low=0.0, high=g_max_us, unit="uS", fix="Raise g_max_us.")
        levels = fit.target_us / g_max_us
    _check_unit("mean_us", float(np.max(fit.mean_us)) / g_max_us)
    if fit.d2d_sigma_us is not None:
        effects = {"d2d_sigma": fit.d2d_sigma_us / g_max_us, **effects}
    return from_table(
        levels,
        fit.mean_us / g_max_us,
        fit.sigma_us / g_max_us,
        g_max_us=g_max_us,
        on_off_ratio=ratio,
        name=name,
        citation=citation,
        **effects,
    )
