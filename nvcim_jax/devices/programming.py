"""The law of one programming: its noise at a conductance, its result for given normals, its moments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from nvcim_jax import checks
from nvcim_jax.devices.spec import Device, check_device
from nvcim_jax.signature import checked

__all__ = [
    "Moments",
    "cell_moments",
    "law_values",
    "level_conductances",
    "mean_of",
    "program_moments",
    "programmed",
    "sigma_of",
    "uncut",
]

# So many sigmas above 0 nothing is cut, and so many below everything.
_FAR = 100.0


def law_values(name: str, law: Partial, g: Float[Array, "*cells"], *rest: Any) -> Float[Array, "*cells"]:
    """Return what a law says of every conductance.

    Raises:
        ValueError: If it returns another shape.
    """
    value = jnp.asarray(law(g, *rest), jnp.float32)
    if value.shape not in ((), g.shape):
        checks.fail(name, "return the shape of the conductances", f"returns {value.shape} for {g.shape}")
    return jnp.broadcast_to(value, g.shape)


@checked
def sigma_of(g: Num[ArrayLike, "*cells"], device: Device) -> Float[Array, "*cells"]:
    """Return the cycle-to-cycle standard deviation of programming conductance g.

    Args:
        g: Target conductances, normalised to g_max, any shape.
        device: The device.

    Returns:
        Standard deviations in units of g_max, of the shape of `g`; 0 for a device that programs exactly. Times
        `device.g_max_us` they are microsiemens.

    Example:
        >>> from nvcim_jax import devices
        >>> fefet = devices.get("FeFET6", sigma=0.01)
        >>> row = devices.sigma_of(devices.level_conductances(4, fefet), fefet)
        >>> print([f"{sigma:.4f}" for sigma in row.tolist()])  # the printed table: .0026 .0155 .0155 .0026
        ['0.0026', '0.0155', '0.0155', '0.0026']
    """
    check_device(device)
    g = jnp.asarray(g, jnp.float32)
    if device.programming is None:
        return jnp.zeros_like(g)
    return device.sigma * law_values("programming.sigma", device.programming.sigma, g)


@checked
def mean_of(g: Num[ArrayLike, "*cells"], device: Device) -> Float[Array, "*cells"]:
    """Return the expected conductance when g is programmed, before the cut at 0.

    Args:
        g: Target conductances, normalised to g_max, any shape.
        device: The device.

    Returns:
        What the law says of g; without such a law, g itself.
    """
    check_device(device)
    g = jnp.asarray(g, jnp.float32)
    if device.programming is None or device.programming.mean is None:
        return g
    return law_values("programming.mean", device.programming.mean, g)


@checked
def level_conductances(num_levels: int, device: Device) -> Float[Array, " num_levels"]:
    """Return the conductances of evenly spaced levels, g_min + (1 - g_min) * level / (num_levels - 1).

    Args:
        num_levels: How many, at least 2.
        device: The device, for its g_min.

    Raises:
        ValueError: If there are fewer than two levels, or more than the device can hold.

    Example:
        >>> from nvcim_jax import devices
        >>> devices.level_conductances(3, devices.get("ideal", on_off_ratio=5.0)).tolist()
        [0.2..., 0.6..., 1.0]
    """
    check_device(device)
    checks.integer("num_levels", num_levels, low=2, high=device.num_levels)
    step = jnp.arange(num_levels, dtype=jnp.float32) / (num_levels - 1)
    return device.g_min + (1.0 - device.g_min) * step


@checked
def programmed(
    g: Num[ArrayLike, "*cells"],
    z: Float[Array, "*cells"],
    device: Device,
    offset: Float[Array, "*cells"] | None = None,
) -> Float[Array, "*cells"]:
    """Return the conductance that programming g gives for the standard normals z.

    max(mean_of(g) + noise + offset, 0), where the noise is sigma_of(g) * z, or what another law makes of z; without
    the maximum where `device.clip` is False: one elementwise
    expression, without randomness, faults or drift.

    Args:
        g: Target conductances, normalised to g_max, any shape.
        z: Standard normal numbers of the same shape.
        device: The device.
        offset: Device-to-device offsets of the cells, in units of g_max.

    Returns:
        Conductances in units of g_max.

    Example:
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> device = devices.get("Gaussian", sigma=0.1, clip=True)
        >>> print(devices.programmed(jnp.array([0.5, 0.5, 0.1]), jnp.array([0.0, 1.0, -2.0]), device))  # cut at 0
        [0.5 0.6 0. ]
    """
    for name, array in (("z", z), ("offset", offset)):
        if array is not None:
            checks.broadcast(name, array, np.shape(g))
    value = uncut(g, z, device, offset)
    return jnp.maximum(value, 0.0) if device.clip else value


def uncut(g: Any, z: jax.Array, device: Device, offset: jax.Array | None) -> Float[Array, "*cells"]:
    """Return what `programmed` does before the cut at 0."""
    value = mean_of(g, device)
    law = device.programming
    if law is not None and law.noise is None:
        value = value + sigma_of(g, device) * z
    elif law is not None:
        noise: Any = law.noise
        value = value + device.sigma * law_values("programming.noise", noise, jnp.asarray(g, jnp.float32), z)
    return value if offset is None else value + offset


class Moments(NamedTuple):
    """Mean and variance of cells over chips.

    The variance is unit**2 times a relative one that does not vanish with it, so that standard deviations, and with
    them every drawn output, have their exact gradient to sigma at sigma = 0 too.

    Attributes:
        mean: In units of g_max.
        unit: What the noise is proportional to: sigma, or sqrt(sigma**2 + d2d_sigma**2).
        relative_variance: Variance of a cell in units of `unit` squared.
    """

    mean: Float[Array, "*cells"]
    unit: Float[Array, ""]
    relative_variance: Float[Array, "*cells"]


@checked
def cell_moments(g: Num[ArrayLike, "*cells"], device: Device) -> Moments:
    """Return the moments of one healthy cell's conductance after programming g, over chips.

    Args:
        g: Target conductances, normalised to g_max, any shape.
        device: The device; stuck cells are not counted.

    Raises:
        ValueError: If noise that is not Gaussian is cut at 0: two moments say not what is left.

    Example:
        >>> from nvcim_jax import devices
        >>> found = devices.cell_moments(0.5, devices.get("Gaussian", sigma=0.3, d2d_sigma=0.4, clip=False))
        >>> print(f"{found.mean:.1f} {found.unit:.1f} {found.relative_variance:.1f}")  # sqrt(0.3^2 + 0.4^2)
        0.5 0.5 1.0
    """
    law = device.programming
    if device.clip and law is not None and not law.gaussian:
        found = f"is {device.name!r}, whose noise is neither Gaussian nor free of the cut at 0"
        checks.fail("device", "have moments in closed form", found, "Use device.replace(clip=False), or sample.")
    mean = mean_of(g, device)
    cycle = jnp.zeros_like(mean)
    if device.programming is not None:
        cycle = law_values("programming.sigma", device.programming.sigma, jnp.asarray(g, jnp.float32))
    unit, relative = device.sigma, cycle**2
    if device.d2d_sigma is not None:
        unit, from_cycle, from_device = _shares(device.sigma, device.d2d_sigma)
        relative = relative * from_cycle + from_device
    return _rectified(mean, unit, relative) if device.clip else Moments(mean, unit, relative)


def _shares(sigma: jax.Array, d2d: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sqrt(a^2 + b^2), and the shares of a^2 and b^2 in it; a + b where both are 0, for its slopes there."""
    square = sigma**2 + d2d**2
    silent = square <= 0
    total = jnp.where(silent, 1.0, square)
    unit = jnp.where(silent, sigma + d2d, jnp.sqrt(total))
    return unit, jnp.where(silent, 1.0, sigma**2 / total), jnp.where(silent, 0.0, d2d**2 / total)


def _rectified(mean: Float[Array, "*cells"], unit: Float[Array, ""], relative: Float[Array, "*cells"]) -> Moments:
    """Return the moments of max(x, 0) for a normal x, exact where the variance is 0.

    With a = mean / sigma, e = pdf(a) - a cdf(-a) and h = a + e = max(a, 0) + pdf(a) - |a| cdf(-|a|): sigma h and
    sigma^2 (cdf(a) - e h), in a form that does not cancel where the mean is many sigmas above 0 or below.
    """
    varies = relative > 0
    size = jnp.where(varies, jnp.sqrt(jnp.where(varies, relative, 1.0)), 0.0)
    sigma = unit * size
    far = jnp.where(mean == 0, 0.0, jnp.sign(mean) * _FAR)
    a = jnp.where(sigma > 0, jnp.clip(mean / jnp.where(sigma > 0, sigma, 1.0), -_FAR, _FAR), far)
    beyond = norm.pdf(a) - jnp.abs(a) * norm.cdf(-jnp.abs(a))
    excess = norm.pdf(a) - a * norm.cdf(-a)
    rectified = jnp.maximum(norm.cdf(a) - excess * (jnp.maximum(a, 0.0) + beyond), 0.0)
    return Moments(jnp.maximum(mean, 0.0) + sigma * beyond, unit, relative * rectified)


@checked
def program_moments(
    g: Num[ArrayLike, "*cells"], device: Device
) -> tuple[Float[Array, "*cells"], Float[Array, "*cells"]]:
    """Return mean and variance of one cell's conductance after programming g, over chips.

    Cycle-to-cycle and device-to-device noise together, cut at 0 where the device is, mixed with the stuck cells:
    closed forms, no sampling.

    Args:
        g: Target conductances, normalised to g_max, any shape.
        device: The device.

    Returns:
        Mean, in units of g_max, and variance, in units of g_max squared.

    Example:
        >>> from nvcim_jax import devices
        >>> device = devices.get("Gaussian", sigma=0.1, clip=True)
        >>> mean, variance = devices.program_moments(0.0, device)
        >>> print(f"{mean:.5f} {variance:.6f}")  # sigma / sqrt(2 pi) and sigma^2 (1/2 - 1/(2 pi))
        0.03989 0.003408
    """
    mean, unit, relative = cell_moments(g, device)
    variance = unit**2 * relative
    stuck = ((device.stuck_on, jnp.ones(())), (device.stuck_off, device.g_min))
    parts = [(fraction, level) for fraction, level in stuck if fraction is not None]
    if not parts:
        return mean, variance
    healthy = 1.0 - sum(fraction for fraction, _ in parts)
    total = healthy * mean + sum(fraction * level for fraction, level in parts)
    spread = healthy * (variance + (mean - total) ** 2)
    return total, spread + sum(fraction * (level - total) ** 2 for fraction, level in parts)
