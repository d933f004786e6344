"""The three clocks of a cell's noise: programming once, drift in time, every read.

What belongs to a cell for life (its offset, its fault) is drawn in `program` and kept by `reprogram`; what belongs to
one programming (cycle-to-cycle noise, drift exponent) is drawn in both; what belongs to a read is drawn in `read`.
Each effect has a key of its own, so none of them changes the draw of another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int8, Num

from nvcim_jax import checks
from nvcim_jax.devices.programming import law_values, uncut
from nvcim_jax.devices.spec import Device, Drift, Relaxation, check_device
from nvcim_jax.ops import normal
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Cells", "cycle_key", "drift", "program", "read", "read_sigma", "reprogram"]

# How far outside [0, 1] a conductance may lie by rounding.
_ROUNDING = 1e-5


class Cells(NamedTuple):
    """Physical cells after programming; every array has the shape of the conductances.

    Attributes:
        g: Conductances now, in units of g_max.
        g_programmed: Conductances just after programming, before the cut at 0 where the device relaxes; None where it
            does not drift.
        nu: Drift exponents; None where the device has no law of exponents.
        d2d: Lasting offsets; None where the device has no device-to-device noise.
        fault: +1 stuck on, -1 stuck off, 0 healthy; None where no fraction of stuck cells is given.
        t_s: Seconds since programming.
        target: Conductances that were asked for; None where the device does not relax as it was measured.
        z: Place of each cell among those that were measured, as a standard normal number; None likewise.
    """

    g: Float[Array, "*cells"]
    g_programmed: Float[Array, "*cells"] | None
    nu: Float[Array, "*cells"] | None
    d2d: Float[Array, "*cells"] | None
    fault: Int8[Array, "*cells"] | None
    t_s: Float[Array, ""]
    target: Float[Array, "*cells"] | None = None
    z: Float[Array, "*cells"] | None = None


class _Keys(NamedTuple):
    """One key an effect, always split in this order."""

    cycle: Key
    device: Key
    fault: Key
    exponent: Key


def _checked(g: Num[ArrayLike, "*cells"]) -> Float[Array, "*cells"]:
    """Return conductances as float32; a little outside [0, 1] is rounding, more is an error."""
    checks.finite("g", g)
    if checks.is_concrete(g):
        inside = np.clip(np.asarray(g), 0, 1)
        near = np.abs(np.asarray(g) - inside) <= _ROUNDING
        checks.number("g", np.where(near, inside, np.asarray(g)), low=0.0, high=1.0, fix="Divide by g_max.")
    return jnp.asarray(g, jnp.float32)


def _draw_faults(key: Key, shape: tuple[int, ...], device: Device) -> Int8[Array, "*cells"] | None:
    """Draw which cells are stuck: the two tails of one normal number."""
    if device.stuck_on is None and device.stuck_off is None:
        return None
    z = normal(key, shape, rng=device.rng)
    fault = jnp.zeros(shape, jnp.int8)
    if device.stuck_off is not None:
        fault = jnp.where(z > -ndtri(device.stuck_off), jnp.int8(-1), fault)
    if device.stuck_on is not None:
        fault = jnp.where(z < ndtri(device.stuck_on), jnp.int8(1), fault)
    return fault


def _drift_of(device: Device) -> Drift | Relaxation:
    check_device(device)
    if device.drift is None:
        fix = "Give it one, such as get(name, drift=Drift(mean=0.05))."
        checks.fail("device", "have drift", f"{device.name!r} has none", fix)
    return device.drift


def _settle(
    keys: _Keys,
    g: Float[Array, "*cells"],
    d2d: Float[Array, "*cells"] | None,
    fault: Int8[Array, "*cells"] | None,
    device: Device,
) -> Cells:
    """Program cells whose lasting properties are known."""
    relaxes = isinstance(device.drift, Relaxation)
    exact = device.programming is None and not relaxes
    z = jnp.zeros_like(g) if exact else normal(keys.cycle, g.shape, rng=device.rng)
    free = uncut(g, z, device, d2d)
    settled = jnp.maximum(free, 0.0) if device.clip else free
    if fault is not None:
        settled, free = (jnp.where(fault > 0, 1.0, jnp.where(fault < 0, device.g_min, one)) for one in (settled, free))
    kept, nu = None, None
    if relaxes:
        # uncut: what is below 0 now may be above it later
        return Cells(settled, free, None, d2d, fault, jnp.zeros((), jnp.float32), g, z)
    if isinstance(device.drift, Drift):
        mean = law_values("drift.mean", device.drift.mean, settled)
        std = law_values("drift.std", device.drift.std, settled)
        nu = jnp.abs(mean + std * normal(keys.exponent, g.shape, rng=device.rng))
        # A stuck cell does not move.
        kept, nu = settled, nu if fault is None else jnp.where(fault == 0, nu, 0.0)
    return Cells(settled, kept, nu, d2d, fault, jnp.zeros((), jnp.float32))


@checked
def cycle_key(key: Key) -> Key:
    """Return the key from which `program` draws its cycle-to-cycle noise.

    For a caller that draws the normals itself, to fuse them with `programmed` and what follows.

    Args:
        key: The key that `program` would be given; it counts as used.

    Returns:
        One key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices, ops
        >>> g, device = jnp.full(4, 0.5), devices.get("Gaussian", sigma=0.1)
        >>> z = ops.normal(devices.cycle_key(jax.random.key(0)), (4,), rng=device.rng)
        >>> cells = devices.program(jax.random.key(0), g, device)
        >>> bool((devices.programmed(g, z, device) == cells.g).all())  # the same draw
        True
    """
    return _Keys(*jax.random.split(key, len(_Keys._fields))).cycle


@checked
def program(key: Key, g: Num[ArrayLike, "*cells"], device: Device) -> Cells:
    """Program a new piece of hardware, with its own faults and offsets, to the conductances g.

    Args:
        key: Key of this piece of hardware and this programming.
        g: Target conductances, normalised to g_max, in [g_min, 1], any shape.
        device: The device.

    Returns:
        The cells, at t = 0.

    Raises:
        ValueError: If a conductance is not finite, or outside [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> cells = devices.program(jax.random.key(0), jnp.full(100_000, 0.5), devices.get("Gaussian", sigma=0.1))
        >>> print(f"{cells.g.std():.2f}")  # sigma
        0.10
    """
    checks.key("key", key)
    check_device(device)
    g = _checked(g)
    keys = _Keys(*jax.random.split(key, len(_Keys._fields)))
    d2d = None
    if device.d2d_sigma is not None:
        d2d = device.d2d_sigma * normal(keys.device, g.shape, rng=device.rng)
    return _settle(keys, g, d2d, _draw_faults(keys.fault, g.shape, device), device)


@checked
def reprogram(key: Key, cells: Cells, g: Num[ArrayLike, "*cells"], device: Device) -> Cells:
    """Program the same physical cells again: their offsets and faults stay, the rest is drawn anew.

    Args:
        key: Key of this programming.
        cells: The cells.
        g: New target conductances, of the shape of the cells.
        device: The device they were made of.

    Returns:
        The cells, at t = 0.

    Raises:
        ValueError: If a conductance is not finite or outside [0, 1], if the shape differs from the cells', or if the
            cells were made of a device without the offsets or faults of this one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> device = devices.get("Gaussian", sigma=0.0, d2d_sigma=0.1, clip=False)
        >>> cells = devices.program(jax.random.key(0), jnp.full(4, 0.2), device)
        >>> again = devices.reprogram(jax.random.key(1), cells, jnp.full(4, 0.7), device)
        >>> print(again.g - cells.g)  # each cell keeps its offset
        [0.5 0.5 0.5 0.5]
    """
    checks.key("key", key)
    check_device(device)
    g = _checked(g)
    checks.shape("g", g, cells.g.shape, "of the cells")
    faulty = device.stuck_on is not None or device.stuck_off is not None
    for effect, wanted, found in (
        ("offsets", device.d2d_sigma is not None, cells.d2d),
        ("faults", faulty, cells.fault),
    ):
        if wanted != (found is not None):
            here, there = ("has", "without") if wanted else ("has no", "with")
            fix = "Pass the device that they were programmed with."
            checks.fail("device", f"be that of the cells, which were made {there} {effect}", f"it {here} {effect}", fix)
    keys = _Keys(*jax.random.split(key, len(_Keys._fields)))
    return _settle(keys, g, cells.d2d, cells.fault, device)


@checked
def drift(cells: Cells, t_s: Num[ArrayLike, ""], device: Device) -> Cells:
    """Let time pass: the cells as they are t_s seconds after programming.

    g(t) = g_programmed * ((t + t0) / t0) ** -nu, or, for a device of measured cells, g_programmed and the change that
    was measured. The time is absolute: drifting twice to the same time changes nothing.

    Args:
        cells: The cells, at any time.
        t_s: Seconds since programming, at least 0.
        device: The device, with `drift`.

    Returns:
        The cells at `t_s`.

    Raises:
        ValueError: If the device does not drift, the time is negative, or it lies beyond the last that was measured
            (where it is traced, that last one holds).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> law = devices.Drift(mean=0.05, t0_s=20.0)
        >>> device = devices.get("ideal", drift=law)
        >>> cells = devices.program(jax.random.key(0), jnp.ones(1), device)
        >>> print(f"{devices.drift(cells, 180.0, device).g[0]:.4f} {10**-0.05:.4f}")  # (200 / 20) ** -0.05
        0.8913 0.8913
    """
    law = _drift_of(device)
    checks.number("t_s", t_s, low=0.0, unit="s")
    checks.finite("t_s", t_s)
    if isinstance(law, Relaxation):
        return _relax(cells, t_s, device, law)
    if cells.nu is None or cells.g_programmed is None:
        fix = "Program them with the device that drifts."
        checks.fail("cells", "be programmed with a device that drifts", "they have no exponents", fix)
    t_s = jnp.asarray(t_s, jnp.float32)
    g = cells.g_programmed * jnp.exp(-cells.nu * jnp.log1p(t_s / law.t0_s))
    return cells._replace(g=jnp.maximum(g, 0.0) if device.clip else g, t_s=t_s)


def _relax(cells: Cells, t_s: ArrayLike, device: Device, law: Relaxation) -> Cells:
    """Return cells that went the way of the measured ones."""
    if cells.g_programmed is None or cells.target is None or cells.z is None:
        fix = "Program them with the device that relaxes."
        checks.fail("cells", "be programmed with a device of measured cells", "they keep no measured cell", fix)
    if checks.is_concrete(law.last_s) and np.ndim(law.last_s) == 0:
        fix = "Nothing is known beyond the last time that was measured."
        checks.number("t_s", t_s, low=0.0, high=float(law.last_s) * (1.0 + _ROUNDING), unit="s", fix=fix)
    t_s = jnp.asarray(t_s, jnp.float32)
    change = law_values("drift.change", law.change, cells.target, cells.z, t_s)
    # a stuck cell does not move
    change = change if cells.fault is None else jnp.where(cells.fault == 0, change, 0.0)
    g = cells.g_programmed + change
    return cells._replace(g=jnp.maximum(g, 0.0) if device.clip else g, t_s=t_s)


@checked
def read_sigma(cells: Cells, device: Device) -> Float[Array, "*cells"]:
    """Return the standard deviation of one read of each cell, before the cut at 0.

    Args:
        cells: The cells, at their time.
        device: The device, with `read`.

    Returns:
        Standard deviations in units of g_max.

    Raises:
        ValueError: If the device has no read noise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> device = devices.get("PCM", sigma=0.0)
        >>> cells = devices.program(jax.random.key(0), jnp.ones(1), device)
        >>> print(f"{devices.read_sigma(cells, device)[0]:.5f}")  # 0.0088 sqrt(ln((20 s + 250 ns) / 500 ns))
        0.03682
    """
    check_device(device)
    law = device.read
    if law is None:
        fix = "Give it one, such as get(name, read=Read(sigma=0.01)), or use cells.g."
        checks.fail("device", "have read noise", f"{device.name!r} has none", fix)
    origin = cells.g if cells.g_programmed is None else cells.g_programmed
    return law_values("read.sigma", law.sigma, cells.g, origin, cells.t_s)


@checked
def read(key: Key, cells: Cells, device: Device) -> Float[Array, "*cells"]:
    """Return the conductances that one read sees.

    Args:
        key: Key of this read.
        cells: The cells, which the read leaves as they are.
        device: The device, with `read`.

    Returns:
        Conductances in units of g_max, cut at 0 where the device is.

    Raises:
        ValueError: If the device has no read noise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> device = devices.get("ideal", read=devices.Read(sigma=0.02))
        >>> cells = devices.program(jax.random.key(0), jnp.full(100_000, 0.5), device)
        >>> print(f"{devices.read(jax.random.key(1), cells, device).std():.3f}")  # sigma
        0.020
    """
    checks.key("key", key)
    check_device(device)
    g = cells.g + read_sigma(cells, device) * normal(key, cells.g.shape, rng=device.rng)
    return jnp.maximum(g, 0.0) if device.clip else g
