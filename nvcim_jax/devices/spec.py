"""What a device is: numbers of its physics as array leaves, names and choices as static facts.

Everything is normalised: a conductance g lies in [0, 1] and stands for g * g_max, and every sigma is in the same
unit, so a physical standard deviation scales with `g_max_us` by construction.

A spec takes Python numbers and lists, and holds strong float32 arrays: it can be swept, mapped and differentiated
without a new trace.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nvcim_jax.types import Scalar

__all__ = [
    "Device",
    "Drift",
    "GaussianRead",
    "LevelTable",
    "OneOverFRead",
    "Polynomial",
    "PowerLawDrift",
    "Programming",
    "Read",
]

# JAX rebuilds a spec with whatever a transformation puts in its leaves (axes, batches, None), so the run-time
# check of shapes must let everything pass; once made by a user a `Number` is a `Scalar` and a `Row` an array (L,).
Number: TypeAlias = Scalar | Any
Row: TypeAlias = jax.Array | Any


def _strengthen(spec: Any) -> None:
    """Turn Python floats and lists of numbers into strong float32 arrays, in place."""
    for name in spec.__dataclass_fields__:
        value = getattr(spec, name)
        # An int may be an axis of `jax.vmap`: it stays.
        if isinstance(value, float | np.floating | list | tuple):
            object.__setattr__(spec, name, jnp.asarray(value, jnp.float32))


@struct.dataclass
class LevelTable:
    """Programming noise known at a few conductances, linear in between, constant outside.

    Attributes:
        conductance: Target conductances (L,), rising, in [0, 1].
        sigma: Noise at each, relative to the device's `sigma` (L,), at least 0.
        mean: Expected conductance after programming at each (L,); None where it is the target itself.
    """

    conductance: Row
    sigma: Row
    mean: Row | None = None

    def __post_init__(self) -> None:
        _strengthen(self)


@struct.dataclass
class Polynomial:
    """Programming noise as a polynomial of the target conductance, cut at 0.

    sigma(g) = device.sigma * max(sum_i coefficients[i] * g**i, 0)

    Attributes:
        coefficients: Ascending (n,), relative to g_max. One coefficient is a noise that is the same at every level.
    """

    coefficients: Row

    def __post_init__(self) -> None:
        _strengthen(self)


@struct.dataclass
class PowerLawDrift:
    """Conductance that falls as a power of time, with an exponent of its own in every cell.

    g(t) = g_programmed * ((t + t0) / t0) ** -nu,  nu = |mean + std * z|, z standard normal, drawn once at programming,
    mean = clip(mean_slope * ln(g_programmed) + mean_offset, mean_low, mean_high), std in the same way.

    The defaults of all fields but the two offsets make both constants: `PowerLawDrift(mean_offset=0.05)`.

    Attributes:
        mean_offset: Mean exponent at g = 1, before the limits.
        std_offset: Standard deviation of the exponent over cells at g = 1, before the limits.
        mean_slope: Change of the mean per unit of ln g.
        std_slope: Change of the standard deviation per unit of ln g.
        mean_low: Lower limit of the mean.
        mean_high: Upper limit of the mean.
        std_low: Lower limit of the standard deviation.
        std_high: Upper limit of the standard deviation.
        t0_s: Time from programming to the reference read, seconds; t counts from that read.
    """

    mean_offset: Number
    std_offset: Number = 0.0
    mean_slope: Number = 0.0
    std_slope: Number = 0.0
    mean_low: Number = 0.0
    mean_high: Number = float("inf")
    std_low: Number = 0.0
    std_high: Number = float("inf")
    t0_s: Number = 20.0

    def __post_init__(self) -> None:
        _strengthen(self)


@struct.dataclass
class OneOverFRead:
    """Read noise with a 1/f spectrum, accumulated since programming.

    sigma = |g| * min(scale / max(g_programmed ** exponent, floor), ceiling) * sqrt(ln((t + t0 + t_read) / (2 t_read)))

    Attributes:
        scale: Relative noise at g_programmed = 1.
        exponent: Power of the conductance.
        floor: Least value of the power, so that an empty cell stays finite.
        ceiling: Greatest relative noise.
        t_read_s: Duration of one read, seconds.
        t0_s: Time from programming to the reference read, seconds.
    """

    scale: Number = 0.0088
    exponent: Number = 0.65
    floor: Number = 1e-3
    ceiling: Number = 0.2
    t_read_s: Number = 250e-9
    t0_s: Number = 20.0

    def __post_init__(self) -> None:
        _strengthen(self)


@struct.dataclass
class GaussianRead:
    """Read noise of one size for every cell, drawn anew at each read.

    Attributes:
        sigma: Standard deviation relative to g_max.
    """

    sigma: Number

    def __post_init__(self) -> None:
        _strengthen(self)


Programming: TypeAlias = LevelTable | Polynomial
Drift: TypeAlias = PowerLawDrift
Read: TypeAlias = OneOverFRead | GaussianRead


@struct.dataclass
class Device:
    """One kind of memory cell: how it is programmed, how it drifts, how it is read, how it fails.

    An effect that is None does not exist: it draws nothing, and a call that asks for it raises.
    `device.replace(drift=None)` takes one away; `devices.get` adds one.

    Attributes:
        sigma: Global factor of the programming noise. For the five devices of NVCiM-PT and `Gaussian` it is relative
            to g_max; for devices fitted to measurements it is a multiplier, 1 by default.
        g_max_us: Greatest conductance, microsiemens.
        on_off_ratio: g_max / g_min; infinite where an empty cell conducts nothing.
        programming: Cycle-to-cycle noise of one programming; None programs exactly.
        d2d_sigma: Device-to-device noise: standard deviation of an offset that a cell keeps for life, in units
            of g_max.
        stuck_on: Fraction of cells that stay at g = 1 whatever is programmed.
        stuck_off: Fraction of cells that stay at g_min.
        drift: Change in time.
        read: Noise of one read.
        name: Name in the table, or the caller's.
        citation: Where the numbers come from.
        num_levels: Number of levels a cell can hold; None where it is continuous.
        clip: Whether programmed, drifted and read conductances are cut at 0.
        rng: Generator of all its noise, see `nvcim_jax.ops.normal`.
    """

    sigma: Number
    g_max_us: Number
    on_off_ratio: Number
    programming: Programming | None = None
    d2d_sigma: Number | None = None
    stuck_on: Number | None = None
    stuck_off: Number | None = None
    drift: Drift | None = None
    read: Read | None = None
    name: str = struct.field(pytree_node=False, default="custom")
    citation: str = struct.field(pytree_node=False, default="")
    num_levels: int | None = struct.field(pytree_node=False, default=None)
    clip: bool = struct.field(pytree_node=False, default=True)
    rng: str = struct.field(pytree_node=False, default="counter")

    def __post_init__(self) -> None:
        _strengthen(self)

    @property
    def g_min(self) -> Scalar:
        """Least conductance, 1 / on_off_ratio: 0 where the ratio is infinite."""
        return 1.0 / self.on_off_ratio
