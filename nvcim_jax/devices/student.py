"""Student's distribution, fitted to records by greatest likelihood, with standard errors; and its quantile function."""

from typing import NamedTuple

import numpy as np

from nvcim_jax.devices.recorded import knots_of

__all__ = ["NUM_KNOTS", "StudentFit", "fit_student", "quantiles"]

LEAST_FREEDOM, MOST_FREEDOM = 2.1, 1000.0
"""Between these the degrees of freedom are sought: below the first there is hardly a variance, at the second the
distribution is Gaussian to three digits."""
_NUM_GRID = 24
_NUM_STEPS = 25
NUM_KNOTS = 217


class StudentFit(NamedTuple):
    """Location, scale and degrees of freedom, each with its standard error."""

    location: float
    location_error: float
    scale: float
    scale_error: float
    freedom: float
    freedom_error: float

    @property
    def sigma(self) -> float:
        """Standard deviation."""
        return self.scale * (self.freedom / (self.freedom - 2.0)) ** 0.5


def fit_student(values: np.ndarray) -> StudentFit:
    """Fit Student's distribution.

    For each of a grid of degrees of freedom v, location and scale by expectation and maximisation, with the weights
    (v + 1) / (v + z^2); the best v is refined by a parabola in ln v. Standard errors are from the expected information.

    Args:
        values: Records (n,), two at least.

    References:
        K. L. Lange, R. J. A. Little, J. M. G. Taylor, "Robust statistical modeling using the t distribution", Journal
        of the American Statistical Association 84:881-896, 1989, for the iteration and the information.
    """
    values = np.asarray(values, np.float64)
    unit = float(np.std(values))
    if unit == 0.0:
        return StudentFit(float(values[0]), 0.0, 0.0, 0.0, MOST_FREEDOM, float("inf"))
    centre = float(np.median(values))
    x = (values - centre) / unit
    grid = np.geomspace(LEAST_FREEDOM, MOST_FREEDOM, _NUM_GRID)
    location, scale, likelihood = _profile(x, grid)
    best = int(np.argmax(likelihood))
    if 0 < best < _NUM_GRID - 1:
        a, b, c = likelihood[best - 1 : best + 2]
        shift = 0.5 * (a - c) / (a - 2.0 * b + c) if a - 2.0 * b + c < 0 else 0.0
        step = np.log(grid[1] / grid[0])
        grid = np.array([np.exp(np.log(grid[best]) + shift * step)])
        location, scale, _ = _profile(x, grid)
        best = 0
    freedom, at, size = float(grid[best]), float(location[best]), float(scale[best])
    errors = _errors(len(x), size, freedom)
    return StudentFit(centre + unit * at, unit * errors[0], unit * size, unit * errors[1], freedom, errors[2])


def _profile(x: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return location, scale and likelihood for each number of degrees of freedom."""
    from scipy.special import gammaln

    v = freedom[:, None]
    location, scale = np.zeros((len(v), 1)), np.full((len(v), 1), 0.7)
    for _ in range(_NUM_STEPS):
        weight = (v + 1.0) / (v + ((x - location) / scale) ** 2)
        location = (weight * x).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
        # divided by the sum of the weights, not their number: the same fixed point, reached sooner (Kent et al. 1994)
        square = (weight * (x - location) ** 2).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
        scale = np.sqrt(np.maximum(square, 1e-12))
    z2 = ((x - location) / scale) ** 2
    constant = gammaln((v + 1) / 2) - gammaln(v / 2) - 0.5 * np.log(v * np.pi) - np.log(scale)
    likelihood = len(x) * constant[:, 0] - ((v + 1) / 2 * np.log1p(z2 / v)).sum(axis=1)
    return location[:, 0], scale[:, 0], likelihood


def _errors(count: int, scale: float, v: float) -> tuple[float, float, float]:
    """Return standard errors of location, scale and degrees of freedom; infinite where the last are at an end."""
    from scipy.special import polygamma

    location = scale * ((v + 3.0) / (count * (v + 1.0))) ** 0.5
    of_scale = 2.0 * count * v / ((v + 3.0) * scale**2)
    if v >= 0.99 * MOST_FREEDOM or v <= 1.01 * LEAST_FREEDOM:
        return location, of_scale**-0.5, float("inf")
    curve = float(polygamma(1, v / 2) - polygamma(1, (v + 1) / 2))
    of_freedom = count * (curve / 4.0 - (v + 5.0) / (2.0 * v * (v + 1.0) * (v + 3.0)))
    both = -2.0 * count / (scale * (v + 1.0) * (v + 3.0))
    determinant = of_scale * of_freedom - both**2
    if not determinant > 0:
        return location, of_scale**-0.5, float("inf")
    return location, (of_freedom / determinant) ** 0.5, (of_scale / determinant) ** 0.5


def quantiles(fit: StudentFit) -> np.ndarray:
    """Return the distribution's quantiles less its location at the normal numbers of the knots (NUM_KNOTS,)."""
    from scipy import stats

    z = np.array(knots_of(NUM_KNOTS))
    upper = stats.t.isf(stats.norm.sf(np.abs(z)), fit.freedom)
    return fit.scale * np.where(z < 0, -upper, upper)
