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

__all__ = ["Band", "Headline", "Span", "bands", "break_even", "draw", "headline", "sensitivities"]

QUANTILES = (0.05, 0.5, 0.95)
MOST_OCTAVES = 34
MOST_DRAWS = 10**7


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


def _check_specifications(*given: Any) -> None:
    if not given:
        checks.fail("specifications", "hold a technology or a machine at least", "is empty")
    for one in given:
        if not isinstance(one, Technology | Machine):
            fix = "See nv.cost.technology and nv.cost.machines.get."
            checks.fail("specifications", "be technologies and machines", f"holds {checks.shown(one)}", fix)


@checked
def draw(key: Key, specification: Any, num_draws: int) -> Any:
    """Return a technology or machine with its constants drawn from their ranges, log-uniform and independent.

    A constant without a range, or that a user gave as a number, keeps its value. Every leaf gets an axis of draws, over
    which `jax.vmap` maps any cost; one draw of many costs keeps their differences free of the noise of drawing.

    Args:
        key: Key of the draws.
        specification: Technology or machine.
        num_draws: Draws.

    Example:
        >>> from nvcim_jax import cost
        >>> drawn = draw(jax.random.key(0), cost.technology("RRAM-22nm"), 100)
        >>> drawn.values["read_time"].shape
        (100,)
    """
    _check_specifications(specification)
    checks.integer("num_draws", num_draws, high=MOST_DRAWS)
    return jax.vmap(lambda own: _drawn(own, specification))(jax.random.split(key, num_draws))


def _drawn(key: Key, specification: Any) -> Any:
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
        >>> print(f"{found.low:.1f} {found.median:.1f}")  # log-uniform from 1/4 to 4
        0.3 1.0
    """
    _check_specifications(*specifications)
    checks.integer("num_draws", num_draws, low=20, high=MOST_DRAWS)

    keys = jax.random.split(key, len(specifications))
    drawn = [draw(own, each, num_draws) for own, each in zip(keys, specifications, strict=True)]
    return jax.tree.map(_quantiles, jax.jit(jax.vmap(cost_of))(*drawn))


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
    _check_specifications(*specifications)
    values = [one.values for one in specifications]

    def logarithm(values: list[dict[str, Any]]) -> Any:
        made = [one.replace(values=own) for one, own in zip(specifications, values, strict=True)]
        found = cost_of(*made)
        checks.real("cost_of", found, "Return one number.")
        checks.shape("cost_of", found, (), fix="Return one number.")
        return jnp.log(jnp.asarray(found, jnp.float32))

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
        1 (0.337 to 2.68, 5-95 %) at 1,000 stored prompts; rests on recalled, unchecked numbers: edge-8GB.call
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


class Span(NamedTuple):
    """Numbers of stored prompts.

    Attributes:
        first: The fewest.
        last: The most; None where it goes on as far as the memories of the machine reach.
    """

    first: int
    last: int | None


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
) -> tuple[Span, ...]:
    """Return for how many stored prompts the machine takes at least `ratio` times what the chip takes.

    The ratio of latencies grows with the store, that of energies may fall, as what a call costs is shared by more of
    them, and rise again where the store leaves a cache. It is looked at where the store doubles, and the ends of each
    span are found to a thousandth between.

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
        The spans, as far as the machine's memories reach; empty where nothing reaches the ratio.

    Raises:
        ValueError: If an option has no such value, or the memory holds not a single prompt.

    Example:
        >>> from nvcim_jax import cost
        >>> config = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, mapping="offset_digital",
        ...     slices="rows", dac_bits=17, dac_bits_per_cycle=1, adc_bits=8)
        >>> chip, cpu = cost.technology("RRAM-22nm"), cost.machines.get("orin-agx-30W")
        >>> found = cost.break_even(config, on=chip, machine=cpu, level="dram")
        >>> print(f"{found[0].first / 1e3:.1f} thousand")  # t BW / (2 V) = 6.9 thousand, less the microsecond of a call
        6.3 thousand
    """
    checks.choice("quantity", quantity, ("energy", "latency"))
    checks.number("ratio", ratio, low=0.0, low_open=True)
    checks.integer("values", values)
    if level is not None:
        checks.choice("level", level, machine.levels)
    part = "latency_s" if quantity == "latency" else "energy_j"
    plain_chip, plain_machine = _plain(on), _plain(machine)

    def reached(num: int) -> bool:
        digital = search_digital(num, on=plain_machine, values=values, level=level)
        chip = search(config, num, on=plain_chip, values=values, periphery=periphery)
        return float(getattr(digital, part)) >= ratio * float(getattr(chip, part))

    sizes = {name: record.value for name, record in machine.records}
    last = level or machine.levels[-1]
    octaves = int(sizes[f"{last}_size"] * 8 / (16 * values)).bit_length()
    tried = {2**i: reached(2**i) for i in range(min(max(octaves, 1), MOST_OCTAVES))}
    spans, start = [], None
    for num, found in tried.items():
        if found and start is None:
            start = 1 if num == 1 else _end(reached, num // 2, num)
        elif not found and start is not None:
            spans.append(Span(start, _end(reached, num, num // 2)))
            start = None
    return (*spans, Span(start, None)) if start is not None else tuple(spans)


def _plain(specification: Any) -> Any:
    """Return a technology or machine of Python's numbers: many searches, one at a time, cost no dispatch."""
    return specification.replace(values={name: float(value) for name, value in specification.values.items()})


def _end(reached: Callable[[int], bool], outside: int, inside: int) -> int:
    """Return the number nearest to `outside` that is still inside, to a thousandth."""
    while abs(inside - outside) > max(1, min(inside, outside) // 1000):
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if reached(middle) else (inside, middle)
    return inside
