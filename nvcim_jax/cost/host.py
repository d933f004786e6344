"""This machine, measured: bandwidth against size on one core, and the rate of a float32 product."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from nvcim_jax.cost.constants import Constant, stated
from nvcim_jax.cost.machine_table import Made, level_constants

__all__ = ["bandwidths", "fewest", "measured", "product_rate"]

SIZES = (16_384, 131_072, 1_048_576, 8_388_608, 134_217_728)
"""Bytes that are read again and again: from what every core keeps near to what no cache holds."""

_ENERGY = (1e-12, 3e-12, 10e-12, 20e-12, 60e-12)
_ROWS = 512


def fewest(run: Callable[[], object], budget_s: float) -> float:
    """Return the least seconds of a call, tried again for a while: anything longer was something else's time."""
    best, end = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def bandwidths(sizes: Sequence[int] = SIZES, budget_s: float = 0.1) -> tuple[float, ...]:
    """Return the bytes a second at which one core reads arrays of so many bytes, over and over."""
    found = []
    for size in sizes:
        held = np.ones(size // 4, np.float32)
        repeats = max(1, 2**20 // size)

        def run(held: np.ndarray = held, repeats: int = repeats) -> None:
            for _ in range(repeats):
                np.dot(held, held)

        found.append(size * repeats / fewest(run, budget_s))
    return tuple(found)


def product_rate(rows: int = _ROWS, budget_s: float = 0.2) -> float:
    """Return the multiply-accumulates a second of a float32 product of square matrices."""
    left = np.ones((rows, rows), np.float32)
    return rows**3 / fewest(lambda: left @ left, budget_s)


def measured() -> Made:
    """Return this machine: what was measured now, and guesses of the energies, which nothing here can measure."""
    constants: dict[str, Constant] = {}
    rates = bandwidths()
    # A nearer memory is faster: what the clock says otherwise is the time of other processes.
    rates = tuple(max(rates[i:]) for i in range(len(rates)))
    names = (*(f"cache{size // 1024}k" for size in SIZES[:-1]), "dram")
    for name, size, rate, energy in zip(names, SIZES, rates, _ENERGY, strict=True):
        holds = (
            stated(8e9, "B", "at least 8 GB", "R") if name == "dram" else stated(float(size), "B", "size tried", "M")
        )
        constants |= level_constants(
            name,
            holds,
            stated(rate, "B/s", f"one core reads {size} B again and again (np.dot)", "M"),
            stated(energy, "J/B", "usual for a memory of that size", "R", low=energy / 3, high=energy * 3),
        )
    constants |= {
        "macs_32": stated(product_rate(), "1/s", f"float32 product of {_ROWS} x {_ROWS} (np.matmul)", "M"),
        "mac_energy": stated(1e-12, "J", "a laptop's core; 8 by 8 bits", "R", low=0.3e-12, high=3e-12),
        "efficiency": stated(1.0, "1", "the rate is measured, not a peak", "M"),
        "call": stated(fewest(_empty_call, 0.02), "s", "np.dot of four numbers", "M"),
        "static_power": stated(5.0, "W", "a laptop's package", "R", low=1.0, high=15.0),
        "mode_power": stated(28.0, "W", "a laptop's package", "R", low=15.0, high=65.0),
    }
    return Made(constants, names, (32,), storage=False)


_FOUR = np.ones(4, np.float32)


def _empty_call() -> object:
    return np.dot(_FOUR, _FOUR)
