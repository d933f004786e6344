"""The known devices, each with the numbers of its source, and `get`, which makes a spec of one.

Marks for what is cited as NVCiM-PT (Qin et al., DATE 2025, arXiv:2411.08244): [C] confirmed in a primary source of
the group (paper or published code), [S] stated by a secondary source, [I] inferred here.

- The law of the level noise and the factors s = 1, 2, 4, 6 are [C], s = 3 of FeFET3 is [I].
- That the five come from two RRAM and one FeFET measurement and two extrapolated devices is [S]; that the global
  sigma multiplies the row is [I]; its default of 0.1 is the paper's main setting [S].
- `g_max_us` and `on_off_ratio` of these five, of `Gaussian` and of `ideal` are in no source: 100 microsiemens and an
  infinite ratio are assumptions of this library. Results in normalised units do not depend on g_max.
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from nvcim_jax import checks
from nvcim_jax.devices import curves
from nvcim_jax.devices.laws import level_table, log_linear, one_over_f, polynomial
from nvcim_jax.devices.spec import Device, Drift, Effects, Law, Read, check_effects
from nvcim_jax.signature import checked
from nvcim_jax.types import Scalar

__all__ = ["get", "names"]

_NVCIM_PT = "Qin et al., NVCiM-PT, DATE 2025, arXiv:2411.08244 [law C, marks in nvcim_jax.devices.table]"
_JOSHI = "Joshi et al., Nature Communications 11:2473, 2020"
_WAN = "Wan et al., Nature 608:504-512, 2022"
_MILO = "Milo et al., IRPS 2021, Fig. 4 (IGVVA-100)"
_INFINITE = float("inf")


class _Row(NamedTuple):
    """One device of the table; `programming` is made from g_min, because levels span [g_min, 1]."""

    citation: str
    programming: Callable[[Scalar], Law | None]
    sigma: float = 1.0
    g_max_us: float = 100.0
    on_off_ratio: float = _INFINITE
    num_levels: int | None = None
    clip: bool = True
    drift: Drift | None = None
    read: Read | None = None
    sigma_unit: str = "measured"


def _four_levels(factor: float) -> Callable[[Scalar], Law]:
    """Return the row sigma(L0, L3) = 1, sigma(L1, L2) = s, both over sqrt(0.6 + 0.4 s^2)."""
    norm = (0.6 + 0.4 * factor**2) ** 0.5
    row = (1.0 / norm, factor / norm, factor / norm, 1.0 / norm)

    def make(g_min: Scalar) -> Law:
        law = level_table(curves.even_levels(g_min, 4), row)
        return law.replace(sigma=Partial(curves.on_even_levels, *law.sigma.args))

    return make


def _polynomial(*coefficients: float, scale: float = 1.0) -> Callable[[Scalar], Law]:
    """Return a polynomial of g whose coefficients are given in units of g_max / scale."""
    return lambda g_min: polynomial([c / scale for c in coefficients])


def _polynomial_us(*coefficients: float, g_max_us: float) -> Callable[[Scalar], Law]:
    """Return sigma(G), both in microsiemens, as a polynomial of g = G / g_max, relative to g_max."""
    return lambda g_min: polynomial([c * g_max_us ** (i - 1) for i, c in enumerate(coefficients)])


def _exact(g_min: Scalar) -> None:
    """Return no programming noise."""


def _nvcim_pt(programming: Callable[[Scalar], Law], num_levels: int = 4) -> _Row:
    return _Row(_NVCIM_PT, programming, sigma=0.1, num_levels=num_levels, clip=False, sigma_unit="g_max")


def _wan(day: str, *coefficients_us: float) -> _Row:
    citation = f"{_WAN}; 4th-order fit {day} after programming as in aihwkit's ReRamWan2022NoiseModel, g_max 40 uS"
    return _Row(citation, _polynomial(*coefficients_us, scale=40.0), g_max_us=40.0)


# Joshi et al.: exponents and 1/f noise as in aihwkit's PCMLikeNoiseModel; t0 is the first read, 20 s.
_PCM_DRIFT = Drift(
    mean=log_linear(0.0244, -0.0155, low=0.049, high=0.1),
    std=log_linear(-0.0059, -0.0125, low=0.008, high=0.045),
    t0_s=20.0,
)

_TABLE: dict[str, _Row] = {
    "RRAM1": _nvcim_pt(_polynomial(1.0), num_levels=2),
    "FeFET2": _nvcim_pt(_four_levels(2.0)),
    "FeFET3": _nvcim_pt(_four_levels(3.0)),
    "RRAM4": _nvcim_pt(_four_levels(4.0)),
    "FeFET6": _nvcim_pt(_four_levels(6.0)),
    "PCM": _Row(
        f"{_JOSHI}; programming, drift and 1/f read as in aihwkit's PCMLikeNoiseModel, g_max 25 uS",
        _polynomial(0.26348, 1.9650, -1.1731, scale=25.0),
        g_max_us=25.0,
        drift=_PCM_DRIFT,
        read=one_over_f(),
    ),
    "PCM-CrossSim": _Row(
        f"{_JOSHI}, Fig. 3b; quadratic fit of CrossSim's PCMJoshi, 0.25 to 25 uS",
        _polynomial_us(0.28638599, 0.07585724, -0.00178767, g_max_us=25.0),
        g_max_us=25.0,
        on_off_ratio=100.0,
    ),
    "RRAMWan2022-1s": _wan("1 s", 0.348, 16.030, -43.853, 45.393, -16.815),
    "RRAMWan2022-1d": _wan("1 day", 0.701, 22.086, -50.773, 47.095, -16.458),
    "RRAMWan2022-2d": _wan("2 days", 0.782, 20.274, -43.507, 37.062, -11.934),
    "RRAMWan2022-CrossSim": _Row(
        f"{_WAN}, Extended Data Fig. 3; cubic fit of CrossSim's RRAMWan at 1 s, 1 to 39 uS",
        _polynomial_us(1.053, 2.374e-1, -1.167e-2, 1.536e-4, g_max_us=39.0),
        g_max_us=39.0,
        on_off_ratio=39.0,
    ),
    "RRAMMilo2021": _Row(
        f"{_MILO}; linear fit of CrossSim's RRAMMilo, 50 to 225 uS",
        _polynomial_us(4.782321, -0.009107, g_max_us=225.0),
        g_max_us=225.0,
        on_off_ratio=4.5,
    ),
    "Gaussian": _Row(
        "Generic: one sigma for every conductance", _polynomial(1.0), sigma=0.1, clip=False, sigma_unit="g_max"
    ),
    "ideal": _Row("Generic: every effect absent", _exact, sigma=0.0, clip=False, sigma_unit="g_max"),
}


def names() -> tuple[str, ...]:
    """Return the names of the known devices.

    Example:
        >>> from nvcim_jax import devices
        >>> devices.names()[:5]
        ('RRAM1', 'FeFET2', 'FeFET3', 'RRAM4', 'FeFET6')
    """
    return tuple(_TABLE)


@checked
def get(
    name: str,
    *,
    sigma: ArrayLike | None = None,
    g_max_us: ArrayLike | None = None,
    on_off_ratio: ArrayLike | None = None,
    **effects: Unpack[Effects],
) -> Device:
    """Return a device of the table, with some of its numbers replaced.

    `RRAM1`, `FeFET2`, `FeFET3`, `RRAM4`, `FeFET6` are the devices of NVCiM-PT: unclipped Gaussian noise with
    standard deviation sigma / sqrt(0.6 + 0.4 s^2) at the outer two of four levels and s times that at the inner
    two (confirmed); a finite `on_off_ratio` moves the levels, which keep their noise, evenly into [g_min, 1]
    (inferred). Which facts are confirmed, second-hand or inferred, and which defaults are assumptions, is in the head
    of this module.
    The measured devices (`PCM`, `RRAMWan2022-*`, `RRAMMilo2021`) keep the shape of their fit: another `g_max_us`
    stretches the curve, sigma and conductance alike.

    Args:
        name: One of `names()`.
        sigma: Global factor of the programming noise. The five devices of NVCiM-PT and `Gaussian`: relative to g_max,
            0.1 by default. Measured devices: a multiplier, 1 by default (`device.sigma_unit` tells which).
        g_max_us: Greatest conductance, microsiemens, above 0.
        on_off_ratio: g_max / g_min, above 1; may be infinite.
        **effects: `d2d_sigma` (standard deviation of a cell's lasting offset, relative to g_max), `stuck_on`,
            `stuck_off` (fractions of cells stuck at g = 1 and at g_min, in [0, 1]), `drift`, `read` (laws, in place of
            the device's own), `clip` (whether conductances are cut at 0), `rng` (generator of the noise, see
            `nvcim_jax.ops.normal`). None leaves the device as it is; to take a law away: `device.replace(drift=None)`.

    Returns:
        The device.

    Raises:
        ValueError: If the name is unknown, a number is out of range, or a device without noise is given a sigma.
        TypeError: If an option does not exist.

    Example:
        >>> from nvcim_jax import devices
        >>> device = devices.get("FeFET6", sigma=0.1)
        >>> print(f"{devices.sigma_of(0.0, device):.4f} {0.1 / (0.6 + 0.4 * 6**2) ** 0.5:.4f}")
        0.0258 0.0258
        >>> devices.get("FeFET7")
        Traceback (most recent call last):
        ...
        ValueError: Argument `name` must be one of ..., but is 'FeFET7'. Did you mean 'FeFET6'?

    References:
        Qin et al., NVCiM-PT: an NVCiM-assisted prompt tuning framework for edge LLMs, arXiv:2411.08244; the citations
        of the other devices are in `device.citation`.
    """
    check_effects("get", effects, ("sigma", "g_max_us", "on_off_ratio"))
    checks.choice("name", name, _TABLE)
    row = _TABLE[name]
    if sigma is not None and row.programming is _exact:
        checks.fail("sigma", "be left out", f"{name!r} programs exactly", "Use get('Gaussian', sigma=...).")
    ratio = row.on_off_ratio if on_off_ratio is None else on_off_ratio
    checks.number("on_off_ratio", ratio, low=1.0, low_open=True)
    own = {"drift": row.drift, "read": row.read, "clip": row.clip}
    return Device(
        programming=row.programming(1.0 / jnp.asarray(ratio, jnp.float32)),
        sigma=row.sigma if sigma is None else sigma,
        g_max_us=row.g_max_us if g_max_us is None else g_max_us,
        on_off_ratio=ratio,
        name=name,
        citation=row.citation,
        num_levels=row.num_levels,
        sigma_unit=row.sigma_unit,
        **own | {effect: value for effect, value in effects.items() if value is not None},  # type: ignore[arg-type]
    )
