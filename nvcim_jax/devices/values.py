"""Value-level noise: the group's shortcut, which disturbs stored values without placing them on cells."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks
from nvcim_jax.devices.spec import Device, check_device
from nvcim_jax.ops import normal
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["value_noise"]

_OF_CELLS = ("d2d_sigma", "stuck_on", "stuck_off", "drift", "read")


@checked
def value_noise(key: Key, values: Float[Array, "*shape"], device: Device) -> Float[Array, "*shape"]:
    """Add the device's noise to values by the quarter of the largest one that each falls in.

    S + stop_gradient(max|S|) * sigma(L(|S| / max|S|)) * z, with L = L0 up to 1/4, L1 up to 1/2, L2 up to 3/4, L3 above.

    The buckets, their bounds and the scale by max|S| are in the group's published helper [C]; there signs, buckets
    and the scale interact in ways that are not meant, and this is the clean form of it [I]. For noise of cells, place
    the values on arrays with `nvcim_jax.crossbar`.

    Args:
        key: Key of this draw.
        values: Values to disturb, any shape.
        device: A device with a row of four levels, or one noise for all levels, around its targets, and with no other
            effect.

    Returns:
        Noisy values, of the same shape and type. The derivative to `values` is 1.

    Raises:
        ValueError: If the device has neither, or another effect.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nvcim_jax import devices
        >>> device = devices.get("FeFET6", sigma=0.1)
        >>> noise = devices.value_noise(jax.random.key(0), jnp.full(100_000, 2.0), device) - 2.0
        >>> print(f"{noise.std():.3f} {2 * 0.1 / (0.6 + 0.4 * 6**2) ** 0.5:.3f}")  # all values are in L3
        0.052 0.052

    References:
        Qin et al., arXiv:2411.08244, Section 2 and its published code; marks as in `nvcim_jax.devices.table`.
    """
    checks.key("key", key)
    check_device(device)
    checks.finite("values", values)
    law = device.programming
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(values), initial=0.0)).astype(jnp.float32)
    levels = None if law is None else law.levels
    if levels is not None and levels.sigma.shape[0] == 4:
        share = jax.lax.stop_gradient(jnp.abs(values)).astype(jnp.float32) / jnp.where(scale > 0, scale, 1.0)
        low = jnp.where(share > 0.25, levels.sigma[1], levels.sigma[0])
        relative = jnp.where(share > 0.5, jnp.where(share > 0.75, levels.sigma[3], levels.sigma[2]), low)
    elif law is not None and law.constant:
        relative = law.sigma(values)
    else:
        fix = "Use FeFET2, FeFET3, RRAM4, FeFET6, RRAM1 or Gaussian, or noise of cells by nvcim_jax.crossbar."
        checks.fail("device", "have four levels, or one noise for all", f"{device.name!r} has neither", fix)
    _check_alone(device)
    noise = scale * device.sigma * relative * normal(key, values.shape, rng=device.rng)
    return values + noise.astype(values.dtype)


def _check_alone(device: Device) -> None:
    """Refuse what belongs to cells, and what moves their mean: no value would show it."""
    law = device.programming
    away = "programming=device.programming.replace(mean=None)"
    found = {name: f"{name}=None" for name in _OF_CELLS if getattr(device, name) is not None}
    found |= {"a shift of its mean": away} if law is not None and law.mean is not None else {}
    for effect, change in found.items():
        fix = f"Take it away by device.replace({change}), or use noise of cells by nvcim_jax.crossbar."
        checks.fail("device", "have programming noise alone", f"{device.name!r} has {effect}", fix)
