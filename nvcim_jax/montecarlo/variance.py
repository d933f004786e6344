"""Variance reduction that stays exact: antithetic keys, and control variates with a known mean.

Both leave the expected value what it is and report the gain as an *effective number of instances*: how many
independent plain instances would give the same standard error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import checks
from nvcim_jax.ops import mirror
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["Reduced", "antithetic", "antithetic_mean", "control_variate", "linearised"]


class Reduced(NamedTuple):
    """A mean with reduced variance.

    Attributes:
        mean: Unbiased estimate of the mean.
        standard_error: Its standard error.
        effective_instances: Plain instances that would give this standard error.
        num_evaluations: Evaluations of the metric that were spent.
        coefficient: Multiple of the control that was subtracted; None for antithetic pairs.
    """

    mean: float
    standard_error: float
    effective_instances: float
    num_evaluations: int
    coefficient: float | None


def as_floats(value: PyTree) -> PyTree:
    """Return truth values and integers as float32, of which halves and differences are what they say.

    Example:
        >>> as_floats(jnp.uint8(2)) - as_floats(jnp.uint8(3))
        Array(-1., dtype=float32)
    """

    def one(leaf: Any) -> Any:
        return leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.asarray(leaf, jnp.float32)

    return jax.tree.map(one, value)


@checked
def antithetic(fn: Callable[..., PyTree]) -> Callable[..., dict[str, PyTree]]:
    """Return the metric of a chip and its mirror image: "mean" of both, and each as "first" and "second".

    Every cell that is one standard deviation high on the first is one low on the second (`ops.mirror`), so what is odd
    in the noise cancels: exactly where `fn` draws by `ops.normal`, as every device does with either generator, and up
    to rounding where it draws by `jax.random.normal`. The mean is unbiased whatever `fn` does; a metric that is even in
    the noise, such as a squared error, gains nothing: both of a pair say the same, and one would do.

    Args:
        fn: Metric of one instance, `fn(key, *args)`.

    Example:
        >>> from nvcim_jax import montecarlo
        >>> metric = montecarlo.antithetic(lambda key: jnp.exp(0.1 * jax.random.normal(key)))
        >>> found = montecarlo.antithetic_mean(montecarlo.run(metric, jax.random.key(0), 2000).values)
        >>> print(f"{found.mean:.3f}")  # exp(0.005) = 1.005
        1.005
        >>> found.effective_instances > 20 * found.num_evaluations
        True

    References:
        Hammersley and Morton (1956), A new Monte Carlo technique: antithetic variates.
    """

    def pair(key: jax.Array, *args: Any) -> dict[str, PyTree]:
        first, second = as_floats(fn(jax.random.clone(key), *args)), as_floats(fn(mirror(key), *args))
        return {"mean": jax.tree.map(lambda a, b: (a + b) / 2, first, second), "first": first, "second": second}

    return pair


@checked
def antithetic_mean(values: dict[str, PyTree], of: Callable[[PyTree], np.ndarray] = lambda tree: tree) -> Reduced:
    """Return the mean over antithetic pairs, and what the pairing gained.

    Args:
        values: Values of a run of `antithetic(fn)`: "mean", "first" and "second".
        of: Picks one number an instance from a tree, such as `lambda v: v["loss"]`.

    Returns:
        `Reduced`; without any correlation between the two, `effective_instances` is about `num_evaluations`.

    Example:
        >>> first, second = np.array([0.0, 2.0, 4.0, 6.0]), np.array([6.0, 4.0, 1.0, 1.0])
        >>> found = antithetic_mean({"mean": (first + second) / 2, "first": first, "second": second})
        >>> print(found.mean, f"{found.standard_error**2:.4f}")  # pairs 3, 3, 2.5, 3.5: their variance 1/6, over 4
        3.0 0.0417
        >>> print(f"{found.effective_instances:.0f} of {found.num_evaluations}")  # (20/3 + 6) / 2 over 1/24
        152 of 8
    """
    for name in ("mean", "first", "second"):
        if name not in values:
            checks.fail("values", "be those of a run of antithetic(fn)", f"have no {name!r}")
    pairs, first, second = (np.asarray(of(values[name]), np.float64) for name in ("mean", "first", "second"))
    good = np.isfinite(first) & np.isfinite(second)
    pairs, plain = pairs[good], (first[good].var(ddof=1) + second[good].var(ddof=1)) / 2
    error2 = pairs.var(ddof=1) / len(pairs)
    return Reduced(float(pairs.mean()), float(np.sqrt(error2)), float(np.divide(plain, error2)), 2 * len(pairs), None)


@checked
def control_variate(values: np.ndarray, control: np.ndarray, known_mean: float) -> Reduced:
    """Return the mean of `values` corrected by a control whose mean is known: mean(f - b (c - E[c])).

    The coefficient b of each half of the instances is fitted on the other half, so it is independent of what it
    multiplies and the estimate is unbiased at any size.

    Args:
        values: Metric f, one number an instance.
        control: Control c of the same instances.
        known_mean: E[c].

    Raises:
        ValueError: If the shapes differ or there are fewer than 10 finite instances.

    Example:
        >>> z = np.asarray(jax.random.normal(jax.random.key(0), (4000,)), np.float64)
        >>> found = control_variate(np.exp(0.2 * z), z, 0.0)
        >>> bool(abs(found.mean - np.exp(0.02)) < 5 * found.standard_error)
        True
        >>> found.effective_instances > 30 * found.num_evaluations
        True

    References:
        Lavenberg and Welch (1981); Avramidis and Wilson (1993), A splitting scheme for control variates.
    """
    f, c = np.asarray(values, np.float64), np.asarray(control, np.float64) - known_mean
    checks.rank("values", f, 1, "(instances,)")
    checks.shape("control", c, f.shape, "(instances,)")
    good = np.isfinite(f) & np.isfinite(c)
    f, c = f[good], c[good]
    if len(f) < 10:
        checks.fail("values", "hold at least 10 finite instances, to fit the coefficient", f"holds {len(f)}")
    halves = np.arange(len(f)) % 2
    b = [_slope(f[halves == half], c[halves == half]) for half in (1, 0)]  # fitted on the other half
    corrected = f - np.where(halves == 0, b[0], b[1]) * c
    error2 = corrected.var(ddof=1) / len(f)
    effective = float(np.divide(f.var(ddof=1), error2))
    return Reduced(float(corrected.mean()), float(np.sqrt(error2)), effective, len(f), float(np.mean(b)))


def _slope(f: np.ndarray, c: np.ndarray) -> float:
    spread = np.square(c - c.mean()).sum()
    return float(((c - c.mean()) * f).sum() / spread) if spread > 0 else 0.0


@checked
def linearised(fn: Callable[[PyTree], jax.Array]) -> Callable[[PyTree], dict[str, jax.Array]]:
    """Return "value" f(noise) and "control" f'(0) noise: a control variate from the linearised output, of mean zero.

    Args:
        fn: Output (a scalar) as a function of noise of mean zero, differentiable at zero.

    Example:
        >>> found = linearised(lambda noise: jnp.exp(noise).sum())(jnp.array([0.1, -0.3]))
        >>> print(f"{found['control']:.3f}")  # exp'(0) = 1 for each: 0.1 - 0.3
        -0.200
    """

    def both(noise: PyTree) -> dict[str, jax.Array]:
        origin = jax.tree.map(jnp.zeros_like, noise)
        return {"value": fn(noise), "control": jax.jvp(fn, (origin,), (noise,))[1]}

    return both
