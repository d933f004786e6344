"""Speed of the laws of measured cells: one product on a fresh chip of 1024 x 1024, against Gaussian noise.

Command:  python -m experiments.benchmarks.measured_cells [--out FILE]   (in the root of the repository)
Time:     two minutes of processor time.
Expect:   results/measured_cells.json beside this file: milliseconds of processor time for a product of 64 vectors, in
          one thread, and their ratio to the Gaussian law of the same records. At most 3 for `trajectories` and
          `empirical`; to a Gaussian of one sigma, which needs no table at all, it is between 3 and 4.

The records are simulated: 32 levels of 500 cells. Processor time is counted, since a machine may be busy; the least of
several runs is taken.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvcim_jax import crossbar, devices, files

__all__ = ["main", "measure"]

SIZE, BATCH, CHIPS, REPEATS = 1024, 64, 8, 7
LEVELS, CELLS = 32, 500


def records() -> Any:
    """Return simulated records with heavy tails."""
    rng = np.random.default_rng(0)
    level = np.repeat(np.arange(LEVELS), CELLS)
    g_us = 0.6 + 1.25 * level + rng.uniform(0.0, 1.2, level.size) + 0.5 * rng.standard_t(4, level.size)
    rows = [{"cell": i, "level": int(own), "g_us": g} for i, (own, g) in enumerate(zip(level, g_us, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        return devices.read_records(files.write(Path(folder) / "cells.csv", files.csv(rows)))


def measure() -> dict[str, float]:
    """Return milliseconds of processor time of one product on a fresh chip, by law."""
    fit = devices.fit_records(records(), g_max_us=40.0)
    laws = {law: devices.from_records(fit, law=law) for law in ("gaussian", "student", "empirical", "trajectories")}
    config = crossbar.Config(rows=256, dac_bits=8, adc_bits=8)
    weights = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    x = jax.random.normal(jax.random.key(1), (BATCH, SIZE))

    @jax.jit
    def products(keys: jax.Array, x: jax.Array, target: crossbar.Target) -> jax.Array:
        return jax.lax.map(lambda key: crossbar.sample(key, x, target)[0].sum(), keys)

    found = {}
    for name, device in {"one sigma": devices.get("Gaussian", sigma=0.05, clip=True), **laws}.items():
        target, best = crossbar.encode(weights, device, config=config), float("inf")
        for turn in range(REPEATS + 1):
            keys = jax.random.split(jax.random.key(turn), CHIPS)
            started = time.process_time()
            products(keys, x, target).block_until_ready()
            best = min(best, (time.process_time() - started) / CHIPS) if turn else best
        found[name] = round(1e3 * best, 2)
        print(f"{name:14s} {found[name]:6.1f} ms", flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure the speed of laws of measured cells.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "measured_cells.json")
    options = parser.parse_args(arguments)
    found = measure()
    about: dict[str, Any] = {
        "command": "python -m experiments.benchmarks.measured_cells",
        "size": SIZE,
        "batch": BATCH,
        "milliseconds": found,
        "ratio to the Gaussian law of the same records": {n: round(t / found["gaussian"], 2) for n, t in found.items()},
        "ratio to a Gaussian of one sigma": {n: round(t / found["one sigma"], 2) for n, t in found.items()},
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    files.write(options.out, json.dumps(about, indent=1) + "\n")
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
