"""What a device is: numbers of its physics as array leaves, laws as functions, names and choices as static facts.

Everything is normalised: a conductance g lies in [0, 1] and stands for g * g_max, and every sigma is in the same
unit, so a physical standard deviation scales with `g_max_us` by construction.

A spec takes Python numbers, and holds strong float32 arrays: it can be swept, mapped and differentiated without a new
trace. A law is a function of the conductance; the numbers that `jax.tree_util.Partial` binds are leaves too. A plain
number stands for the function that is the same everywhere.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.devices import curves, recorded
from nvcim_jax.devices.tree import function_of, replaced, spec, strong
from nvcim_jax.ops import RNGS
from nvcim_jax.signature import checked
from nvcim_jax.types import Scalar

__all__ = [
    "BY_NAME",
    "Device",
    "Drift",
    "Effects",
    "Law",
    "Levels",
    "Read",
    "Relaxation",
    "check_device",
    "check_effects",
]

# Given as numbers or functions, held as `Scalar` and `Partial`; JAX puts anything in their place.
Number: TypeAlias = Scalar | Any
Function: TypeAlias = Partial | Any

# What the global sigma of a device is, in words.
_SIGMA_UNITS = {"g_max": "share of g_max", "measured": "multiple of the measured noise"}

# name: least value, whether it is excluded, greatest value
_RANGES: dict[str, tuple[float, bool, float]] = {
    "sigma": (0.0, False, 1e6),
    "g_max_us": (0.0, True, float("inf")),
    "on_off_ratio": (1.0, True, float("inf")),
    "d2d_sigma": (0.0, False, 1e6),
    "stuck_on": (0.0, False, 1.0),
    "stuck_off": (0.0, False, 1.0),
}
_ALWAYS = ("sigma", "g_max_us", "on_off_ratio")
_OWN = (*curves.OWN, *recorded.OWN)
# Conductances at which a user's law is looked at where the device has no levels.
_NUM_POINTS = 17


class Levels(NamedTuple):
    """The rows of a table of levels (L,): targets, their relative noise, what is expected there (None: the target)."""

    conductance: jax.Array
    sigma: jax.Array
    mean: jax.Array | None


@spec
class Law:
    """Programming noise as functions of the target conductance.

    programmed = mean(g) + device.sigma * noise(g, z), z standard normal; noise = sigma(g) * z where none is given.

    Attributes:
        sigma: `f(g)`: noise relative to the device's `sigma`, at least 0, of the shape of g; or one number.
        mean: `f(g)`: expected conductance after programming; None where it is the target itself.
        noise: `f(g, z)`: noise that is not Gaussian, as a function of a standard normal number, elementwise, of mean 0
            and standard deviation sigma(g) over z; None: sigma(g) * z.

    Raises:
        ValueError: If a part is neither a function nor a number of at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.tree_util import Partial
        >>> from nvcim_jax import devices
        >>> def bow(g, a):
        ...     return 1.0 + a * g * (1.0 - g)
        >>> device = devices.get("Gaussian", sigma=0.1).replace(programming=devices.Law(sigma=Partial(bow, a=2.0)))
        >>> print(devices.sigma_of(jnp.asarray([0.0, 0.5]), device))  # 0.1 and 0.1 (1 + 2 / 4)
        [0.1  0.15]
    """

    sigma: Function
    mean: Function | None = None
    noise: Function | None = None

    def replace(self, **changes: Any) -> "Law":
        """Return one with some fields changed, checked as when it is made."""
        return replaced(self, changes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", function_of("sigma", self.sigma))
        for name in ("mean", "noise"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, function_of(name, getattr(self, name)))

    @property
    def gaussian(self) -> bool:
        """Whether the noise is a normal number times sigma(g)."""
        return self.noise is None

    @property
    def constant(self) -> bool:
        """Whether the noise is the same at every conductance, known without its value."""
        flat = self.sigma.func is curves.polynomial and np.shape(self.sigma.args[0]) == (1,)
        return self.mean is None and self.gaussian and (flat or self.sigma.func is curves.everywhere)

    @property
    def levels(self) -> Levels | None:
        """The rows of a law made by `level_table`; None for any other."""
        if self.sigma.func not in (curves.on_levels, curves.on_even_levels) or not self.gaussian:
            return None
        at, sigma = self.sigma.args
        return Levels(at, sigma, None if self.mean is None else self.mean.args[1])


@spec
class Drift:
    """Conductance that falls as a power of time, with an exponent of its own in every cell.

    g(t) = g_programmed * ((t + t0) / t0) ** -nu,  nu = |mean(g_programmed) + std(g_programmed) * z|, z standard normal,
    drawn once at programming.

    Attributes:
        mean: `f(g)`: mean exponent of cells programmed to g; or one number. `log_linear` makes the usual function.
        std: `f(g)`: standard deviation of the exponent over cells; or one number.
        t0_s: Time from programming to the reference read, seconds, above 0; t counts from that read.
    """

    mean: Function
    std: Function = 0.0
    t0_s: Number = 20.0

    def replace(self, **changes: Any) -> "Drift":
        """Return one with some fields changed, checked as when it is made."""
        return replaced(self, changes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", function_of("mean", self.mean))
        object.__setattr__(self, "std", function_of("std", self.std))
        object.__setattr__(self, "t0_s", strong("t0_s", self.t0_s, low=0.0, low_open=True, unit="s"))


@spec
class Relaxation:
    """Conductance that goes its own way after programming, as it was measured.

    g(t) = g_programmed + change(g, z, t), g the target and z the normal number that programming drew for the cell: the
    place of the cell among those that were measured, which it keeps.

    Attributes:
        change: `f(g, z, t_s)`: change since programming, elementwise in g and z.
        last_s: The last time that it is known at, seconds.
    """

    change: Function
    last_s: Number = float("inf")

    def replace(self, **changes: Any) -> "Relaxation":
        """Return one with some fields changed, checked as when it is made."""
        return replaced(self, changes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "change", function_of("change", self.change))
        object.__setattr__(self, "last_s", strong("last_s", self.last_s, low=0.0, unit="s"))


@spec
class Read:
    """Noise drawn anew at each read.

    Attributes:
        sigma: `f(g, g_programmed, t_s)`: standard deviation of a read, relative to g_max, of the shape of g; or one
            number. `one_over_f` makes the law of phase-change memory.
    """

    sigma: Function

    def replace(self, **changes: Any) -> "Read":
        """Return one with some fields changed, checked as when it is made."""
        return replaced(self, changes)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", function_of("sigma", self.sigma))


class Effects(TypedDict, total=False):
    """What a device may have besides its programming noise, and how its noise is made: keywords of `get`, `from_table`.

    Attributes:
        d2d_sigma: Standard deviation of a cell's lasting offset, relative to g_max.
        stuck_on: Fraction of cells stuck at g = 1, in [0, 1].
        stuck_off: Fraction of cells stuck at g_min, in [0, 1].
        drift: Law of drift.
        read: Law of read noise.
        clip: Whether conductances are cut at 0.
        rng: Generator of the noise, see `nvcim_jax.ops.normal`.
    """

    d2d_sigma: ArrayLike | None
    stuck_on: ArrayLike | None
    stuck_off: ArrayLike | None
    drift: Drift | Relaxation | None
    read: Read | None
    clip: bool | None
    rng: str


def check_effects(owner: str, effects: Effects, others: Iterable[str]) -> None:
    """Check that a function that takes effects got no other keyword; the nearest right one is named.

    Raises:
        TypeError: If it did.

    Example:
        >>> check_effects("get", {"stuck_onn": 0.1}, ["sigma"])
        Traceback (most recent call last):
        ...
        TypeError: get has no option `stuck_onn`. Did you mean 'stuck_on'?
    """
    checks.options(owner, effects.keys() - Effects.__annotations__.keys(), {*others, *Effects.__annotations__})


@spec
class Device:
    """One kind of memory cell: how it is programmed, how it drifts, how it is read, how it fails.

    An effect that is None does not exist: it draws nothing, and a call that asks for it raises.
    `device.replace(drift=None)` takes one away; `devices.get` adds one.

    Attributes:
        sigma: Global factor of the programming noise, in [0, 1e6]; `sigma_unit` says of what.
        g_max_us: Greatest conductance, microsiemens, above 0.
        on_off_ratio: g_max / g_min, above 1; infinite where an empty cell conducts nothing.
        programming: Cycle-to-cycle noise of one programming; None programs exactly.
        d2d_sigma: Device-to-device noise: standard deviation of an offset that a cell keeps for life, in units
            of g_max.
        stuck_on: Fraction of cells that stay at g = 1 whatever is programmed.
        stuck_off: Fraction of cells that stay at g_min.
        drift: Change in time: a power law, or what was measured.
        read: Noise of one read.
        name: Name in the table, or the caller's.
        citation: Where the numbers come from.
        num_levels: Number of levels a cell can hold; None where it is continuous.
        clip: Whether programmed, drifted and read conductances are cut at 0.
        rng: Generator of all its noise, see `nvcim_jax.ops.normal`.
        sigma_unit: "g_max": sigma is a share of g_max (the five devices of NVCiM-PT, `Gaussian`); "measured": it
            multiplies a measured noise (PCM, RRAM, tables), 1 by default.

    Raises:
        ValueError: If a number is out of range, an effect of another kind, or a law negative or not finite at a level.
    """

    sigma: Number
    g_max_us: Number
    on_off_ratio: Number
    programming: Law | None = None
    d2d_sigma: Number | None = None
    stuck_on: Number | None = None
    stuck_off: Number | None = None
    drift: Drift | Relaxation | None = None
    read: Read | None = None
    name: str = dataclasses.field(default="custom", metadata={"static": True})
    citation: str = dataclasses.field(default="", metadata={"static": True})
    num_levels: int | None = dataclasses.field(default=None, metadata={"static": True})
    clip: bool = dataclasses.field(default=True, metadata={"static": True})
    rng: str = dataclasses.field(default="counter", metadata={"static": True})
    sigma_unit: str = dataclasses.field(default="g_max", metadata={"static": True})

    def replace(self, **changes: Any) -> "Device":
        """Return one with some fields changed, checked as when it is made.

        Levels that `get` spreads over [g_min, 1] go with `on_off_ratio`; those of a table stay where they are.
        """
        made = replaced(self, changes)
        law = made.programming
        moves = "on_off_ratio" in changes and "programming" not in changes
        if not moves or law is None or law.sigma.func is not curves.on_even_levels:
            return made
        at, row = law.sigma.args
        at = curves.even_levels(made.g_min, at.shape[-1])
        return replaced(made, {"programming": law.replace(sigma=Partial(curves.on_even_levels, at, row))})

    def __post_init__(self) -> None:
        _check_facts(self)
        shapes = [np.shape(getattr(self, name)) for name in _ALWAYS]
        # a batch of devices, made by `jax.vmap` or `jax.tree.map`, keeps its axes
        shape = () if () in shapes else shapes[0]
        for name, (low, low_open, high) in _RANGES.items():
            value: Any = getattr(self, name)
            if value is None and name not in _ALWAYS:
                continue
            if name != "on_off_ratio":
                checks.finite(name, value)
            made = strong(name, value, low=low, low_open=low_open, high=high)
            checks.shape(name, value, shape, fix="Use jax.vmap over devices for several values.")
            object.__setattr__(self, name, made)
        _check_stuck(self)
        if shape == ():
            _check_laws(self)

    @staticmethod
    def instead_of(value: Any) -> str:
        """Return what to do instead of giving a value that is no device: its name, say."""
        return f"Use devices.get({value if isinstance(value, str) else 'FeFET3'!r})."

    @property
    def g_min(self) -> Scalar:
        """Least conductance, 1 / on_off_ratio: 0 where the ratio is infinite."""
        return 1.0 / self.on_off_ratio

    @property
    def sigma_label(self) -> str:
        """The global sigma in words, for an axis or a title: "sigma (share of g_max)"."""
        return f"sigma ({_SIGMA_UNITS[self.sigma_unit]})"


@checked
def check_device(device: Any, argument: str = "device") -> None:
    """Check that an argument is a device, not its name.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_device("FeFET3")
        Traceback (most recent call last):
        ...
        ValueError: Argument `device` must be a devices.Device, but is 'FeFET3'. Use devices.get('FeFET3').
    """
    if not isinstance(device, Device):
        checks.fail(argument, "be a devices.Device", f"is {checks.shown(device)}", Device.instead_of(device))


def _check_facts(device: Device) -> None:
    """Check what is static, and the kinds of the effects."""
    checks.choice("rng", device.rng, RNGS)
    checks.choice("sigma_unit", device.sigma_unit, _SIGMA_UNITS)
    if device.num_levels is not None:
        checks.integer("num_levels", device.num_levels, low=2, fix="Use None where a cell is continuous.")
    if not isinstance(device.clip, bool | np.bool_):
        checks.fail("clip", "be True or False", f"is {device.clip!r}")
    for name, kind in (("programming", Law), ("drift", Drift), ("read", Read)):
        law = getattr(device, name)
        if law is not None and not isinstance(law, (kind, Relaxation) if kind is Drift else kind):
            part = "mean" if kind is Drift else "sigma"
            fix = f"Use devices.{kind.__name__}({part}=...), with a number or a function of the conductance."
            found = repr(law) if isinstance(law, str | float | int) else f"a {type(law).__name__}"
            checks.fail(name, f"be a {kind.__name__} or None", f"is {found}", fix)


def _check_stuck(device: Device) -> None:
    """Check that the two fractions leave room for each other."""
    given = [value for value in (device.stuck_on, device.stuck_off) if value is not None]
    if all(map(checks.is_concrete, given)):
        total = float(np.max(sum(np.asarray(value, np.float64) for value in given)))
        if total > 1.0 + 1e-6:
            checks.fail("stuck_on", "leave room for stuck_off, with a sum of at most 1", f"their sum is {total:g}")


def _users(device: Device) -> Iterator[tuple[str, Any, float, int]]:
    """Yield the laws that are not the library's own: name, function, least value, number of arguments."""
    law, drift, read = device.programming, device.drift, device.read
    found: Sequence[tuple[str, Any, float, int]] = (
        ("programming.sigma", law and law.sigma, 0.0, 1),
        ("programming.mean", law and law.mean, -float("inf"), 1),
        ("programming.noise", law and law.noise, -float("inf"), 2),
        ("drift.mean", drift.mean if isinstance(drift, Drift) else None, 0.0, 1),
        ("drift.std", drift.std if isinstance(drift, Drift) else None, 0.0, 1),
        ("read.sigma", read and read.sigma, 0.0, 3),
    )
    return (part for part in found if part[1] is not None and part[1].func not in _OWN)


def _check_laws(device: Device) -> None:
    """Look at the values of a user's laws at the levels, where its numbers are known."""
    for name, law, low, num_arguments in _users(device):
        if not all(map(checks.is_concrete, jax.tree.leaves((law, device.on_off_ratio)))):
            continue
        with jax.ensure_compile_time_eval():
            g = jnp.linspace(1.0 / device.on_off_ratio, 1.0, device.num_levels or _NUM_POINTS)
            value = law(*(g, g, jnp.zeros(()))[:num_arguments])
        fix = (
            f"It is a function of the conductance{'' if num_arguments == 1 else ', of that at first, and of the time'}."
        )
        if np.shape(value) not in ((), g.shape):
            checks.fail(name, "return the shape of the conductances", f"returns {np.shape(value)} for {g.shape}", fix)
        if checks.is_concrete(value):
            checks.finite(name, value, fix)
            checks.number(name, value, low=low, fix=fix)


BY_NAME: dict[str, Any] = {
    **{kind.__name__: kind for kind in (Device, Drift, Law, Read, Relaxation)},
    **{function.__name__: function for function in _OWN},
}
"""What a device is made of, by name: kinds and functions of the library, for a file to refer to."""
