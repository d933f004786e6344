"""How far a cost is known: its spread over the ranges of its constants, and which of them it rests on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nvcim_jax import checks, crossbar
from nvcim_jax.cost.machines import Machine
from nvcim_jax.cost.product import PERIPHERY, Periphery
from nvcim_jax.cost.search import search, search_digital
from nvcim_jax.cost.technologies import Technology
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["Band", "Headline", "bands", "break_even", "draw", "headline", "sensitivities"]

QUANTILES = (0.05, 0.5, 0.95)
MOST_STORED = 2**40


class Band(NamedTuple):
    """Quantiles over draws of the constants.

    Attributes:
        low: 5 % of the draws lie below.
        median: Half of them.
        high: 95 % of them.
    """

    low: Any
    median: Any
    high: Any


class Headline(NamedTuple):
    """A ratio of costs with everything that must stand beside it.

    Attributes:
        value: At the default of every constant.
        band: Over their ranges.
        num_stored: Stored prompts that it holds for.
        recalled: Constants that it depends on and that nobody has checked ("machine.constant").
        sensitivities: "technology.constant" -> d log ratio / d log constant, the largest first.
    """

    value: float
    band: Band
    num_stored: int
    recalled: tuple[str, ...]
    sensitivities: dict[str, float]

    def __str__(self) -> str:
        rests = f"; rests on recalled, unchecked numbers: {', '.join(self.recalled)}" if self.recalled else ""
        spread = f"{self.band.low:.3g} to {self.band.high:.3g}, 5-95 %"
        return f"{self.value:.3g} ({spread}) at {self.num_stored:,} stored prompts{rests}"


def draw(key: Key, specification: Any) -> Any:
    """Return a technology or machine whose constants are drawn from their ranges, log-uniform and independent.

    A constant without a range, or that a user gave as a number, keeps its value.
    """
    values = dict(specification.values)
    keys = jax.random.split(key, len(specification.records))
    for own, (name, record) in zip(keys, specification.records, strict=True):
        if record.low < record.high:
            low, high = jnp.log(jnp.float32(record.low)), jnp.log(jnp.float32(record.high))
            values[name] = jnp.exp(low + (high - low) * jax.random.uniform(own, dtype=jnp.float32))
    return specification.replace(values=values)


@checked
def bands(key: Key, cost_of: Callable[..., Any], *specifications: Any, num_draws: int = 4096) -> Any:
    """Return the 5, 50 and 95 % quantiles of a cost over the ranges of all constants.

    Args:
        key: Key of the draws.
        cost_of: `cost_of(*specifications)`: any tree of numbers, such as a bill, traced.
        *specifications: Technologies and machines.
        num_draws: Draws, mapped by vmap.

    Returns:
        The tree with a `Band` in place of every number.

    Example:
        >>> from nvcim_jax import cost
        >>> chip = cost.technology("RRAM-22nm")
        >>> found = cost.bands(jax.random.key(0), lambda on: on.values["converter_energy_factor"], chip)
        >>> print(f"{found.low:.1f} {found.median:.1f} {found.high:.1f}")  # log-uniform from 1/4 to 4
        0.3 1.0 3.4
    """
    checks.integer("num_draws", num_draws, low=20)

    def one(own: Key) -> Any:
        keys = jax.random.split(own, len(specifications))
        return cost_of(*[draw(k, each) for k, each in zip(keys, specifications, strict=True)])

    found = jax.jit(jax.vmap(one))(jax.random.split(key, num_draws))
    return jax.tree.map(_quantiles, found)


def _quantiles(values: Float[Array, " draws"]) -> Band:
    return Band(*(float(q) for q in jnp.quantile(values, jnp.asarray(QUANTILES, jnp.float32))))


@checked
def sensitivities(cost_of: Callable[..., Any], *specifications: Any) -> dict[str, float]:
    """Return d log cost / d log constant of every constant that matters, the largest first.

    1 means that twice the constant is twice the cost; 0 (left out) that it does not matter here.

    Args:
        cost_of: `cost_of(*specifications)`: one number above 0, traced.
        *specifications: Technologies and machines.

    Example:
        >>> from nvcim_jax import cost
        >>> edge = cost.machines.get("edge-8GB")
        >>> cost.sensitivities(lambda machine: machine.values["call"] ** 2, edge)
        {'edge-8GB.call': 2.0}
    """
    values = [one.values for one in specifications]

    def logarithm(values: list[dict[str, Any]]) -> Any:
        made = [one.replace(values=own) for one, own in zip(specifications, values, strict=True)]
        return jnp.log(jnp.asarray(cost_of(*made), jnp.float32))

    gradients = jax.jit(jax.grad(logarithm))(values)
    found = {
        f"{one.name}.{name}": float(slope * one.values[name])
        for one, own in zip(specifications, gradients, strict=True)
        for name, slope in own.items()
    }
    return dict(sorted(((n, s) for n, s in found.items() if s != 0.0), key=lambda item: -abs(item[1])))


@checked
def headline(
    key: Key, ratio_of: Callable[..., Any], *specifications: Any, num_stored: int, num_draws: int = 4096
) -> Headline:
    """Return a ratio with its band, the number of stored prompts, and the unchecked numbers that it rests on.

    Args:
        key: Key of the draws.
        ratio_of: `ratio_of(*specifications)`: one number above 0, traced.
        *specifications: Technologies and machines.
        num_stored: Stored prompts that the ratio holds for.
        num_draws: Draws.

    Example:
        >>> from nvcim_jax import cost
        >>> edge = cost.machines.get("edge-8GB")
        >>> print(cost.headline(jax.random.key(0), lambda one: 1e6 * one.values["call"], edge, num_stored=1000))
        1 (0.336 to 2.68, 5-95 %) at 1,000 stored prompts; rests on recalled, unchecked numbers: edge-8GB.call
    """
    checks.integer("num_stored", num_stored)
    slopes = sensitivities(ratio_of, *specifications)
    marks = {f"{one.name}.{name}": record.mark for one in specifications for name, record in one.records}
    return Headline(
        value=float(ratio_of(*specifications)),
        band=bands(key, ratio_of, *specifications, num_draws=num_draws),
        num_stored=num_stored,
        recalled=tuple(name for name in slopes if marks[name] == "R"),
        sensitivities=slopes,
    )


@checked
def break_even(
    config: crossbar.Config,
    *,
    on: Technology,
    machine: Machine,
    quantity: str = "latency",
    ratio: float = 1.0,
    values: int = 48,
    level: str | None = None,
    periphery: Periphery = PERIPHERY,
) -> int | None:
    """Return the fewest stored prompts from which the machine takes `ratio` times what the chip takes.

    Args:
        config: Options of the crossbar.
        on: The technology of the chip.
        machine: The digital machine.
        quantity: "latency" or "energy".
        ratio: How many times as much.
        values: Values of a key.
        level: Memory that holds the store of the machine, see `search_digital`.
        periphery: What stands around the arrays.

    Returns:
        The number; None where no store that the machine's memories hold reaches it.

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, mapping="offset_digital",
        ...     slices="rows", dac_bits=17, dac_bits_per_cycle=1, adc_bits=8)
        >>> chip, cpu = cost.technology("RRAM-22nm"), cost.machines.get("orin-agx-30W")
        >>> found = cost.break_even(config, on=chip, machine=cpu, level="dram")
        >>> print(f"{found / 1e3:.1f} thousand")  # t BW / (2 V) = 6.9 thousand, less the microsecond of a call
        6.3 thousand
    """
    checks.choice("quantity", quantity, ("energy", "latency"))
    checks.number("ratio", ratio, low=0.0, low_open=True)
    part = "latency_s" if quantity == "latency" else "energy_j"

    def reached(num: int) -> bool:
        digital = search_digital(num, on=machine, values=values, level=level)
        chip = search(config, num, on=on, values=values, periphery=periphery)
        return float(getattr(digital, part)) >= ratio * float(getattr(chip, part))

    sizes = {name: record.value for name, record in machine.records}
    most = min(MOST_STORED, int(sizes[f"{machine.levels[-1]}_size"] * 8 / (16 * values)))
    high = 1
    while not reached(high):
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > max(1, low // 1000):  # to a thousandth, or exactly where few are stored
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
