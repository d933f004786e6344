"""Which number limits the task: gradients of a metric's mean and quantiles with respect to device parameters.

A metric that is a differentiable function of (noise, parameters), the noise drawn from a key that does not depend on
the parameters, is differentiated chip by chip. For the mean the gradient moves inside the expectation; for a quantile
it is the gradient of the chips that lie at the quantile:

    d E[f] / dp = E[df/dp],        d Q_q / dp = E[df/dp | f = Q_q].

Parameters are physical numbers (the sigma of each level, a drift time), or the bits of relaxed converters, which are
real numbers there (`crossbar.Bits`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.montecarlo.runner import QUANTILES, run
from nvcim_jax.montecarlo.statistics import Stats, finite_instances
from nvcim_jax.signature import checked
from nvcim_jax.types import Key, PyTree

__all__ = ["Sensitivity", "conditional_gradient", "sensitivity"]


class Sensitivity(NamedTuple):
    """Gradients of a metric's statistics; the trees have the structure of the parameters.

    Attributes:
        stats: Statistics of the metric itself.
        mean: Gradient of the mean.
        mean_error: Its standard error.
        quantiles: Gradient of each quantile, leading axis in the order of `stats.quantile_levels`.
        quantiles_error: Standard error of each, without the bias of the window (see `conditional_gradient`).
        elasticity: Change of the mean in percent for one percent of the parameter, p / E[f] dE[f]/dp: the largest in
            magnitude is what limits the task.
    """

    stats: Stats
    mean: PyTree
    mean_error: PyTree
    quantiles: PyTree
    quantiles_error: PyTree
    elasticity: PyTree


def conditional_gradient(values: np.ndarray, gradients: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    """Estimate E[gradient | value = Q_q] by a straight line through the instances around the quantile.

    The window holds the n^(4/5) min(q, 1 - q) instances nearest in rank; the line takes away the first order of the
    window's bias.

    Args:
        values: Metric of each instance (instances,).
        gradients: Its gradients (instances, ...).
        quantile: Level in (0, 1).

    Returns:
        The estimate (...) and its standard error (...).

    Example:
        >>> z = np.asarray(jax.random.normal(jax.random.key(0), (20_000,)), np.float64)
        >>> estimate, _ = conditional_gradient(2 * z, z, 0.95)  # f = s z: dQ/ds is the normal quantile, 1.645
        >>> print(f"{estimate:.2f}")
        1.6...

    References:
        Hong (2009), Estimating quantile sensitivities, Operations Research 57.
        Fan and Gijbels (1996), Local Polynomial Modelling, section 3.2.
    """
    checks.number("quantile", quantile, low=1e-9, high=1 - 1e-9)
    num = len(values)
    width = max(10, round(num**0.8 * min(quantile, 1 - quantile)))
    if num < 20:
        checks.fail("values", "hold at least 20 finite instances", f"holds {num}", "Run more instances.")
    order = np.argsort(values, kind="stable")
    first = int(np.clip(round(quantile * (num - 1)) - width // 2, 0, max(0, num - width)))
    near = order[first : first + width]
    at = float(np.quantile(values, quantile))
    distance = values[near] - at
    design = np.stack([np.ones(len(near)), distance], axis=1)
    if np.ptp(distance) == 0:
        design = design[:, :1]
    flat = gradients[near].reshape(len(near), -1).astype(np.float64)
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ flat
    residual = flat - design @ fitted
    variance = np.square(residual).sum(axis=0) / max(1, len(near) - design.shape[1]) * inverse[0, 0]
    shape = gradients.shape[1:]
    return fitted[0].reshape(shape), np.sqrt(variance).reshape(shape)


@checked
def sensitivity(
    fn: Callable[..., jax.Array],
    key: Key,
    num_instances: int,
    params: PyTree,
    *,
    args: tuple[Any, ...] = (),
    quantiles: tuple[float, ...] = QUANTILES,
    **options: Any,
) -> Sensitivity:
    """Differentiate the mean and the quantiles of a metric with respect to parameters, over common chips.

    Args:
        fn: Metric of one instance, `fn(key, params, *args)`, one number, differentiable in `params`; hard steps
            (rounding) need their relaxed or straight-through twins. It is compiled once for all values of `params`.
        key: One JAX random key.
        num_instances: Number of instances.
        params: Tree of float arrays, such as a device's sigma of each level, or {"drift_time_s": ...}.
        args: Further arguments, not differentiated.
        quantiles: Levels in (0, 1).
        **options: `placement`, `store`, `progress` of `run`.

    Returns:
        `Sensitivity`, in float64.

    Raises:
        ValueError: If the metric is not one float, or fewer than 20 instances are finite.

    Example:
        >>> found = sensitivity(lambda key, p: p["sigma"] ** 2 * jax.random.normal(key) ** 2 + p["offset"],
        ...                     jax.random.key(0), 10_000, {"sigma": 0.5, "offset": 0.1})
        >>> print(f"{found.mean['sigma']:.1f}, {found.mean['offset']:.1f}")  # 2 sigma E[N^2] = 1, and 1
        1.0, 1.0
    """
    checks.number("quantiles", np.asarray(quantiles), low=1e-9, high=1 - 1e-9)
    params = jax.tree.map(lambda p: jnp.asarray(p, float), params)
    metric = functools.partial(_with_gradient, fn)
    stats = run(metric, key, num_instances, args=(params, *args), quantiles=quantiles, **options)
    values = stats.values["value"]
    good = finite_instances(stats.values)
    value, gradient = (jax.tree.map(lambda leaf: leaf[good], stats.values[n]) for n in ("value", "gradient"))
    around = [jax.tree.map(lambda g, q=q: conditional_gradient(value, g, q), gradient) for q in quantiles]

    def stacked(part: int) -> PyTree:
        picked = [jax.tree.map(lambda pair: pair[part], a, is_leaf=lambda x: isinstance(x, tuple)) for a in around]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *picked)

    mean = stats.mean["gradient"]
    own = stats._replace(
        mean=stats.mean["value"],
        standard_error=stats.standard_error["value"],
        standard_deviation=stats.standard_deviation["value"],
        quantiles=stats.quantiles["value"],
        values=values,
    )
    elasticity = jax.tree.map(lambda p, g: np.asarray(p, np.float64) * g / own.mean, params, mean)
    error = stats.standard_error["gradient"]
    return Sensitivity(own, mean, error, stacked(0), stacked(1), elasticity)


def _with_gradient(fn: Callable[..., jax.Array], key: jax.Array, params: PyTree, *args: Any) -> dict[str, PyTree]:
    def metric(p: PyTree) -> jax.Array:
        value = fn(key, p, *args)
        if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            found = f"returns shape {jnp.shape(value)} of {value.dtype}"
            checks.fail("fn", "return one float number to be differentiated", found)
        return value

    value, gradient = jax.value_and_grad(metric)(params)
    return {"value": value, "gradient": gradient}
