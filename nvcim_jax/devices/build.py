"""The one place where a device is put together: numbers checked by name, then made strong float32 arrays."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.devices.spec import Device, Drift, GaussianRead, OneOverFRead, PowerLawDrift, Programming, Read
from nvcim_jax.ops import RNGS

__all__ = ["build"]

_INFINITE = float("inf")
# name: least value, greatest value, whether the least is excluded
_RANGES: dict[str, tuple[float, float, bool]] = {
    "sigma": (0.0, _INFINITE, False),
    "g_max_us": (0.0, _INFINITE, True),
    "on_off_ratio": (1.0, _INFINITE, True),
    "d2d_sigma": (0.0, _INFINITE, False),
    "stuck_on": (0.0, 1.0, False),
    "stuck_off": (0.0, 1.0, False),
}


def _strong(name: str, value: ArrayLike | None) -> jax.Array | None:
    """Check one number and return it as a strong float32 scalar; None stays None."""
    if value is None:
        return None
    low, high, low_open = _RANGES[name]
    checks.shape(name, value, (), fix="Use jax.vmap over devices for several values.")
    checks.number(name, value, low=low, high=high, low_open=low_open)
    if name != "on_off_ratio":
        checks.finite(name, value)
    return jnp.asarray(value, jnp.float32)


def _check_stuck(stuck_on: ArrayLike | None, stuck_off: ArrayLike | None) -> None:
    """Check that the two fractions leave room for each other."""
    given = [value for value in (stuck_on, stuck_off) if value is not None]
    if all(map(checks.is_concrete, given)):
        total = sum(float(jnp.asarray(value)) for value in given)
        if total > 1.0:
            checks.fail("stuck_on", "leave room for stuck_off, with a sum of at most 1", f"their sum is {total:g}")


def _check_law(argument: str, law: Any, kinds: tuple[type, ...]) -> None:
    if law is not None and not isinstance(law, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        checks.fail(argument, f"be a {expected}", f"is {law!r}")


def build(
    *,
    programming: Programming | None,
    sigma: ArrayLike,
    g_max_us: ArrayLike,
    on_off_ratio: ArrayLike,
    d2d_sigma: ArrayLike | None,
    stuck_on: ArrayLike | None,
    stuck_off: ArrayLike | None,
    drift: Drift | None,
    read: Read | None,
    **static: Any,
) -> Device:
    """Return a device of checked numbers.

    Args:
        programming: Law of the programming noise.
        sigma: Its global factor, at least 0.
        g_max_us: Greatest conductance, microsiemens, above 0.
        on_off_ratio: Above 1, may be infinite.
        d2d_sigma: At least 0, or None.
        stuck_on: In [0, 1], or None.
        stuck_off: In [0, 1], or None; the two together at most 1.
        drift: Law of drift, or None.
        read: Law of read noise, or None.
        **static: The static fields of `Device`.

    Returns:
        The device, every number a strong float32 array.

    Raises:
        ValueError: If a number is out of range, or a law of the wrong kind.
    """
    checks.choice("rng", static["rng"], RNGS)
    _check_law("drift", drift, (PowerLawDrift,))
    _check_law("read", read, (OneOverFRead, GaussianRead))
    device = Device(
        sigma=_strong("sigma", sigma),
        g_max_us=_strong("g_max_us", g_max_us),
        on_off_ratio=_strong("on_off_ratio", on_off_ratio),
        programming=programming,
        d2d_sigma=_strong("d2d_sigma", d2d_sigma),
        stuck_on=_strong("stuck_on", stuck_on),
        stuck_off=_strong("stuck_off", stuck_off),
        drift=drift,
        read=read,
        **static,
    )
    _check_stuck(stuck_on, stuck_off)
    return device
