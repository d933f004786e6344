"""Devices whose cells are measured ones, or follow what was fitted to them: four laws of the same records."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nvcim_jax import checks
from nvcim_jax.devices import recorded
from nvcim_jax.devices.cellfit import CellFit, fit_records
from nvcim_jax.devices.measured import LevelFit, from_fit
from nvcim_jax.devices.spec import Device, Law, Relaxation
from nvcim_jax.devices.student import NUM_KNOTS, StudentFit, fit_student, quantiles
from nvcim_jax.signature import checked

__all__ = ["LAWS", "from_records", "student_fits"]

LAWS = ("trajectories", "empirical", "gaussian", "student")
_EFFECTS = ("name", "citation", "on_off_ratio", "d2d_sigma", "stuck_on", "stuck_off", "read", "clip", "rng")
_OF_FIT = ("levels", "times_s", "limits", "min_records")
_POINTS = 64 * (NUM_KNOTS - 1) + 1  # for integrals over the quantile functions that are tabulated at knots


class _Tables(NamedTuple):
    """What a law is made of, in units of g_max: means (K, L), and deviations from them as the law holds them."""

    means: np.ndarray
    deviations: np.ndarray


@checked
def from_records(
    records: Any,
    *,
    g_max_us: float | None = None,
    law: str | None = None,
    t_s: float | None = None,
    **options: Any,
) -> Device:
    """Make a device of measured cells.

    A law is linear between levels, and between times linear in log time (in time before the second). A cell keeps its
    place among the measured ones for life:

    - `trajectories`: a cell is one measured cell of its level, with all its reads: tails, relaxation and what a cell
      does at one time given another are the measured ones. Between two levels it is a cell of one of them, with the
      probability of its nearness.
    - `empirical`: a cell is a quantile of the records of its level, at each time, and of those between levels.
    - `student`: a quantile of Student's distribution, fitted to each level and time by greatest likelihood.
    - `gaussian`: one of a Gaussian of the same mean and standard deviation.

    Of the last three each cell stays at its quantile, so that they know nothing of how cells overtake each other. With
    `sigma` other than 1 the first read varies so many times as much, and changes since then stay the measured ones.
    `crossbar.program` gives the distribution of the first reads, which is what write-verify left, `drift` the rest.

    Nothing is cut at 0 by default, as the instrument cut nothing; then `crossbar.product_moments` is exact. Gradients
    pass to time, sigma, inputs, and to weights: through the means of `trajectories`, through means and quantiles of
    the others.

    Args:
        records: From `read_records`, or a fit of them from `fit_records`; or one of levels alone from `fit_table`,
            which makes a Gaussian device, with the further options of `from_table`, and levels evenly spaced where no
            target is known.
        g_max_us: Greatest conductance, microsiemens: the unit of the device; that of the fit where one is given.
        law: One of the four; None: `trajectories` where the records name cells, else `empirical`; `gaussian` for a fit
            by `fit_table`.
        t_s: None: the device as it is programmed, which changes with time. Seconds: as it is so long after
            programming, and stays; with this alone `product_moments` and output sampling know about time.
        **options: Those of `fit_records` (`levels`, `times_s`, `limits`, `min_records`), and `name`, `citation`,
            `on_off_ratio` (by default that of the lowest level), `d2d_sigma` (by default that of the records where
            they tell), `stuck_on`, `stuck_off`, `read`, `clip` and `rng` of a device.

    Returns:
        The device, with as many levels as there are in the records.

    Raises:
        ValueError: If the records do not name cells (`trajectories`), a level has too few reads for the law, or a time
            lies beyond the last one.
        TypeError: If an option does not exist.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from nvcim_jax import devices
        >>> from nvcim_jax.devices.records import Records
        >>> level, first = np.repeat([0, 1], 2), np.array([9.0, 11.0, 38.0, 42.0])
        >>> records = Records(np.tile(level, 2), np.concatenate([first, first - 4.0]), np.tile(np.arange(4), 2), None,
        ...                   ("off", "on"), t_s=np.repeat([0.0, 100.0], 4))
        >>> device = devices.from_records(records, g_max_us=40.0, min_records=2)
        >>> cells = devices.program(jax.random.key(0), jnp.full(1000, 0.25), device)
        >>> later = devices.drift(cells, 100.0, device)
        >>> print(jnp.unique(jnp.round(cells.g * 40)), jnp.unique(jnp.round(later.g * 40)))
        [ 9. 11.] [5. 7.]
    """
    if isinstance(records, LevelFit):
        return _from_levels(records, g_max_us, law, t_s, options)
    of_fit = {name: options.pop(name) for name in _OF_FIT if name in options}
    known = [*_EFFECTS, *_OF_FIT]
    checks.options("from_records", [name for name in options if name not in known], known)
    fit = records if isinstance(records, CellFit) else _fitted(records, g_max_us, of_fit)
    if isinstance(records, CellFit) and (of_fit or g_max_us not in (None, fit.g_max_us)):
        checks.fail("records", "be records where they are fitted in another way", "is a fit", "Call fit_records again.")
    law = ("trajectories" if fit.followed else "empirical") if law is None else law
    checks.choice("law", law, LAWS)
    if law == "trajectories" and not fit.followed:
        checks.fail("records", "name the cell of each read for law='trajectories'", "name none", "Use law='empirical'.")
    tables = _TABLES[law](fit)
    times = fit.times_s.astype(np.float32)
    relaxation = None
    if t_s is not None:
        checks.number("t_s", t_s, low=0.0, high=float(times[-1]) * 1.00001, unit="s", fix="Nothing is known later.")
        at = [np.asarray(recorded.at_time(jnp.asarray(times), jnp.asarray(part), jnp.float32(t_s))) for part in tables]
        now = _Tables(*at)
    else:
        now = _Tables(tables.means[0], tables.deviations[0])
        relaxation = _relaxation(law, fit, tables) if len(times) > 1 else None
    return _device(fit, law, _law(law, fit, now), relaxation, options)


def _from_levels(fit: LevelFit, g_max_us: Any, law: str | None, t_s: Any, options: dict[str, Any]) -> Device:
    """Make a Gaussian device of means and standard deviations of levels."""
    if law not in (None, "gaussian") or t_s is not None:
        fix = "Make it of records by read_records and fit_records."
        checks.fail("records", "be records for another law than 'gaussian', and for times", "is a fit of levels", fix)
    if g_max_us is None:
        checks.fail("g_max_us", "be given with a fit of levels", "is missing", "Give it in microsiemens.")
    return from_fit(fit, g_max_us=g_max_us, **options)


def _fitted(records: Any, g_max_us: float | None, options: dict[str, Any]) -> CellFit:
    if g_max_us is None:
        checks.fail("g_max_us", "be given with records", "is missing", "Give it in microsiemens.")
    return fit_records(records, g_max_us=g_max_us, **options)


def _device(fit: CellFit, law: str, made: Law, relaxation: Relaxation | None, options: dict[str, Any]) -> Device:
    lowest = fit.target_us[0]
    several = len(fit.labels) > 1
    ratio = fit.g_max_us / lowest if several and lowest > 0 else float("inf")
    d2d = fit.d2d_sigma_us / fit.g_max_us if fit.d2d_sigma_us else None
    stem = fit.source.split(".")[0] or "measured"
    given = {"name": f"{stem}, {law}", "clip": False, "on_off_ratio": ratio, "d2d_sigma": d2d} | options
    return Device(
        programming=made,
        drift=relaxation,
        sigma=1.0,
        g_max_us=fit.g_max_us,
        num_levels=len(fit.labels) if several else None,
        sigma_unit="measured",
        **given,
    )


# Levels that are off an even spacing by less than this share of a step count as evenly spaced: a target between two
# levels then mixes their records by so much otherwise. The mean is that of the target and its shift all the same.
_EVEN = 0.15


def _at(fit: CellFit) -> np.ndarray:
    """Return the targets of the levels, or the first and the last of them where they are evenly spaced."""
    at = (fit.target_us / fit.g_max_us).astype(np.float32)
    even = np.linspace(at[0], at[-1], len(at))
    step = (at[-1] - at[0]) / max(len(at) - 1, 1)
    return at[[0, -1]] if len(at) > 2 and np.abs(at - even).max() < _EVEN * step else at


def _spread(fit: CellFit, per_level: np.ndarray) -> np.ndarray:
    """Give each row what its level has, along the last axis."""
    return np.repeat(per_level, np.diff(fit.starts), axis=-1)


def _enough(fit: CellFit, least: int, law: str) -> None:
    """Refuse a level and time with fewer reads than the law needs."""
    level, k = np.unravel_index(fit.counts.argmin(), fit.counts.shape)
    if fit.counts[level, k] < least:
        where = f"of level {fit.labels[level]!r} at {fit.times_s[k]:g} s"
        found = f"there {'is' if fit.counts[level, k] == 1 else 'are'} {fit.counts[level, k]} {where}"
        fix = "Leave the level or the time out, by levels= or times_s=."
        checks.fail("records", f"hold {least} reads of each level and time for law={law!r}", found, fix)


def _trajectories(fit: CellFit) -> _Tables:
    rows = fit.g_us.T / fit.g_max_us
    means = np.stack([rows[:, a:b].mean(axis=1) for a, b in zip(fit.starts, fit.starts[1:], strict=False)], axis=1)
    return _Tables(means, rows - _spread(fit, means))


def _empirical(fit: CellFit) -> _Tables:
    _enough(fit, 1, "empirical")
    reads = np.where(fit.read, fit.g_us, np.nan) / fit.g_max_us
    rows = np.empty((reads.shape[1], reads.shape[0]))
    for a, b in zip(fit.starts, fit.starts[1:], strict=False):
        for k in range(len(rows)):
            known = np.sort(reads[a:b, k][np.isfinite(reads[a:b, k])])
            # as many quantiles as there are cells: all of them where all were read
            rows[k, a:b] = known[((np.arange(b - a) + 0.5) / (b - a) * len(known)).astype(int)]
    means = np.stack([rows[:, a:b].mean(axis=1) for a, b in zip(fit.starts, fit.starts[1:], strict=False)], axis=1)
    return _Tables(means, rows - _spread(fit, means))


def _gaussian(fit: CellFit) -> _Tables:
    _enough(fit, 2, "gaussian")
    return _Tables(fit.mean_us.T / fit.g_max_us, fit.sigma_us.T / fit.g_max_us)


def student_fits(fit: CellFit) -> list[list[StudentFit]]:
    """Return Student's distribution of each level and time, in microsiemens."""
    _enough(fit, 2, "student")
    parts = zip(fit.starts, fit.starts[1:], strict=False)
    reads = [np.where(fit.read[a:b], fit.g_us[a:b], np.nan) for a, b in parts]
    return [[fit_student(mine[:, k][np.isfinite(mine[:, k])]) for k in range(mine.shape[1])] for mine in reads]


def _student(fit: CellFit) -> _Tables:
    found = student_fits(fit)
    means = np.array([[one.location for one in times] for times in found]).T
    knots = np.array([[quantiles(one) for one in times] for times in found]).transpose(1, 0, 2)
    return _Tables(means / fit.g_max_us, knots / fit.g_max_us)


_TABLES = {"trajectories": _trajectories, "empirical": _empirical, "gaussian": _gaussian, "student": _student}


def _f32(value: np.ndarray) -> Any:
    return jnp.asarray(np.asarray(value), jnp.float32)


def _law(law: str, fit: CellFit, now: _Tables) -> Law:
    """Return the law of cells at one time: the mean of each level, and deviations from it."""
    at, starts = _f32(_at(fit)), jnp.asarray(fit.starts, jnp.int32)
    mean = Partial(recorded.mean_of_levels, at, _f32(now.means - fit.target_us / fit.g_max_us))
    if law == "gaussian":
        return Law(sigma=Partial(recorded.level_sigma, at, _f32(now.deviations)), mean=mean)
    if law == "student":
        tabled = _f32(now.deviations)
        sigma = Partial(recorded.quantiles_sigma, at, *map(_f32, _knot_moments(now.deviations)))
        return Law(sigma=sigma, mean=mean, noise=Partial(recorded.knots_noise, at, tabled))
    parts = [now.deviations[a:b] for a, b in zip(fit.starts, fit.starts[1:], strict=False)]
    if law == "trajectories":
        variance = _f32(np.array([np.mean(np.square(part, dtype=np.float64)) for part in parts]))
        sigma = Partial(recorded.cells_sigma, at, variance)
        return Law(sigma=sigma, mean=mean, noise=Partial(recorded.cells_noise, at, starts, _f32(now.deviations)))
    variance, common = (_f32(value) for value in _step_moments(parts))
    sigma = Partial(recorded.quantiles_sigma, at, variance, common)
    return Law(sigma=sigma, mean=mean, noise=Partial(recorded.quantiles_noise, at, starts, _f32(now.deviations)))


def _knot_moments(knots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances (L,), and covariances with the next level (L,), of quantile functions tabulated at knots.

    Over normal numbers and not over shares: of heavy tails most of the variance may lie in one share of 1e5.
    """
    z = np.linspace(-recorded.LAST_KNOT, recorded.LAST_KNOT, _POINTS)
    weight = np.exp(-(z**2) / 2.0)
    weight /= weight.sum()
    values = np.array([np.interp(z, recorded.knots_of(knots.shape[1]), row) for row in knots])
    following = np.concatenate([values[1:], values[-1:]])
    return values**2 @ weight, values * following @ weight


def _step_moments(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of quantile functions that are steps of 1 / n: exact, over the steps of both."""
    variance = np.array([np.mean(np.square(part, dtype=np.float64)) for part in parts])
    common = variance.copy()
    for level, (low, high) in enumerate(itertools.pairwise(parts)):
        edges = np.union1d(np.arange(len(low) + 1) / len(low), np.arange(len(high) + 1) / len(high))
        middle = (edges[1:] + edges[:-1]) / 2
        at = (np.minimum((middle * len(part)).astype(int), len(part) - 1) for part in (low, high))
        common[level] = np.sum(np.diff(edges) * low[next(at)].astype(np.float64) * high[next(at)])
    return variance, common


def _relaxation(law: str, fit: CellFit, tables: _Tables) -> Relaxation:
    """Return how cells of a law change with time."""
    at, starts, times = _f32(_at(fit)), jnp.asarray(fit.starts, jnp.int32), _f32(fit.times_s)
    means, deviations = map(_f32, tables)
    if law == "gaussian":
        change = Partial(recorded.gaussian_change, at, times, means, deviations)
    elif law == "student":
        change = Partial(recorded.knots_change, at, times, means, deviations)
    else:
        fn = recorded.cells_change if law == "trajectories" else recorded.quantiles_change
        change = Partial(fn, at, starts, times, means, deviations)
    return Relaxation(change=change, last_s=float(times[-1]))
