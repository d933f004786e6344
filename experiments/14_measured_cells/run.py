"""Chips made of measured cells: four laws of the same records, against cells that were kept apart, and what they cost.

Command:  python -m experiments.14_measured_cells.run [--tiny] [--out FOLDER] [--parts cells product digits prompts]
          python -m experiments.14_measured_cells.plot FOLDER   (both in the root of the repository)
Time:     about 50 minutes on one busy core, most of it `prompts` (--tiny: about a minute of processor time).
Expect:   the records and the figures are in `results/`, with their commands beside them:
          - cells kept apart from the fit: of 192 Kolmogorov-Smirnov tests (levels by times) none beyond its limit at 5
            % over all of them for `trajectories` and `empirical`, 13 for `gaussian`; `student` 1. Beyond 4 sigma a
            second after programming: measured 0.7 %, `trajectories` 0.8 %, `gaussian` 0.005 %. Correlations between
            times: within 4 standard errors for `trajectories`, 78 to 85 off for laws whose cells keep their quantile.
          - a product, 1 s after programming: error 22.6 % by `trajectories`, 22.6 % by `gaussian`; for the worst 1 % of
            chips 23.9 and 23.5 %. A day: 35.5 and 35.8 %, worst 37.1 and 37.3 %. So a Gaussian of the same moments is
            off by 1 % of the error in the mean, and by 3 % at most for the worst chips (at 10 ms): many cells add up.
            Between 3.4 s and 100,000 s nothing was read, and there the laws assume different things: at 100 s 25.6 %
            by `trajectories`, log-linear for each cell, and 30.0 % by laws whose quantiles are.
          - `student`, fitted by greatest likelihood, is a bad law here: 31.8 % at 1 s, the worst 1 % of chips 73.7 %.
          - digits, trained plainly (98 % trained noise-aware): 97.3 % as programmed, 96.5 % at 1 s, 93.4 % a day later,
            the worst 1 % of chips 85.6 % (noise-aware: 97.6 %, worst 96.7 %). `gaussian`: 93.3 %, worst 84.9 %.
          - the store of NVCiM-PT (two streams, 20 chips each), trained for FeFET3: right answers 73.8 % as programmed,
            73.7 % a day later (exact memory 73.8 %); with the oracle's route 82.8 and 81.3 % (83.1 %). Laws
            differ by less than the spread over chips: averaging over cells and choosing among labels forgive the tails.

A cell of the memory is one of 16,292 measured RRAM cells (`rram_relaxation`), programmed with verification to 32 levels
and read until 100,000 s later. Parts: `cells` fits each law to one half of the cells and holds it against the other;
`product` and `digits` are the error of a product and the accuracy of a network against time, on the same matrices for
all laws; `prompts` is the store of NVCiM-PT as programmed, and a day later. A part that is finished is not done again.

Needs `rram_relaxation` (`python -m experiments.data`); the tiny variant simulates its measurement and needs nothing.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from experiments import data as public
from experiments.digits import run as digits
from experiments.records import measure_parts
from nvcim_jax import checks, crossbar, devices, files, montecarlo

__all__ = ["CONFIGS", "LAWS", "Config", "main", "simulate"]

LAWS = ("trajectories", "empirical", "student", "gaussian")
G_MAX_US = 40.0
LAYOUT = crossbar.Config(rows=64, weight_bits=6, cell_bits=5, dac_bits=8, adc_bits=8)
Record = dict[str, Any]


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        measured: Whether the cells are measured ones, or simulated.
        laws: Laws that are compared.
        cells: Cells that are simulated for each level, to compare with those kept apart.
        times_s: Times of the product and of the network.
        shape: Rows and columns of the product.
        num_chips: Chips of a point.
        num_steps: Steps of training of the network.
        num_streams: Streams of the store of prompts.
        num_prompt_chips: Chips of each.
        seed: Seed of all of it.
    """

    name: str = "full"
    measured: bool = True
    laws: tuple[str, ...] = LAWS
    cells: int = 20_000
    times_s: tuple[float, ...] = (0.0, 0.01, 1.0, 100.0, 3600.0, 86400.0)
    shape: tuple[int, int] = (128, 64)
    num_chips: int = 2000
    num_steps: int = 2000
    num_streams: int = 2
    num_prompt_chips: int = 20
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        measured=False,
        laws=("trajectories", "gaussian"),
        cells=500,
        times_s=(0.0, 10.0),
        shape=(64, 8),
        num_chips=16,
        num_steps=30,
        num_streams=1,
        num_prompt_chips=2,
    ),
}


def simulate(path: Path, seed: int, *, num_levels: int = 32, num_cells: int = 30) -> Path:
    """Write a measurement of cells whose spread grows with time and whose tails are heavy, one row a read."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell in range(num_levels * num_cells):
        level = cell % num_levels
        g_us = 1.2 * (level + rng.uniform(0.0, 1.0)) + 0.6
        for t_s, sigma in ((0.0, 0.0), (0.1, 0.8), (10.0, 0.8), (1000.0, 1.2)):
            g_us += sigma * rng.standard_t(4)
            rows.append({"cell": cell, "time_s": t_s, "level": level, "G (uS)": f"{g_us:.4f}"})
    return files.write(path, files.csv(rows))


def _records(config: Config, out: Path) -> Any:
    if not config.measured:
        return devices.read_records(simulate(out / "cells.csv", config.seed))
    folder = public.folder("rram_relaxation", "Or run --tiny.")
    columns = {"cell": 0, "t": 1, "g": 3, "level": 5}
    return devices.read_records(folder / "techC_relaxation.tsv.gz", columns=columns, units={"g": "S"})


def _fit(records: Any) -> Any:
    return devices.fit_records(records, g_max_us=G_MAX_US)


def _halves(records: Any, seed: int) -> tuple[Any, Any]:
    """Fit one half of the cells, and arrange the other at the same times."""
    mine = np.random.default_rng(seed).permutation(int(records.cell.max()) + 1) % 2 == 0

    def part(own: np.ndarray) -> Any:
        kept = own[records.cell]
        names = ("level", "g_us", "cell", "t_s")
        return records._replace(**{name: getattr(records, name)[kept] for name in names})

    fit = _fit(part(mine))
    apart = devices.fit_records(part(~mine), g_max_us=G_MAX_US, levels=fit.labels, times_s=fit.times_s.tolist())
    return fit, apart


def cells(config: Config, out: Path) -> Iterator[Record]:
    """Hold each law, fitted to one half of the cells, against the other half."""
    fit, apart = _halves(_records(config, out), config.seed)
    num_levels, num_times = apart.counts.shape
    reads = [
        np.where(apart.read, apart.g_us, np.nan)[a:b] for a, b in zip(apart.starts, apart.starts[1:], strict=False)
    ]
    yield {
        "kind": "measured",
        **_tails(reads),
        "correlation": _correlation(reads).tolist(),
        "times_s": fit.times_s.tolist(),
    }
    spread = _bootstrap(reads, config.seed)
    for law in config.laws:
        device = devices.from_records(fit, law=law)
        made = _simulated(fit, device, config.cells, config.seed)
        worst, beyond = 0.0, 0
        for i in range(num_levels):
            for k in range(num_times):
                mine = reads[i][:, k][np.isfinite(reads[i][:, k])]
                distance = float(np.asarray(stats.ks_2samp(mine, made[i][:, k]))[0])
                limit = _ks_limit(len(mine), int(fit.counts[i, k]), num_levels * num_times)
                worst, beyond = max(worst, distance / limit), beyond + (distance > limit)
        found = _correlation(made)
        score = np.abs(found - _correlation(reads)) / np.maximum(spread, 1e-9)
        off = score[~np.eye(num_times, dtype=bool)]
        yield {
            "kind": "law",
            "law": law,
            "worst_ks": float(worst),
            "ks_beyond": int(beyond),
            "ks_tests": num_levels * num_times,
            "correlation": found.tolist(),
            "worst_correlation_score": float(off.max()),
            **_tails(made),
        }


def _ks_limit(held: int, fitted: int, tests: int) -> float:
    """Return how far two samples of one distribution are apart in one of so many tests, at the level of 5 %."""
    return float(special.kolmogi(0.05 / tests)) * (1.0 / held + 1.0 / fitted) ** 0.5


def _simulated(fit: Any, device: devices.Device, num: int, seed: int) -> list[np.ndarray]:
    """Return simulated cells of each level at the times of the fit (levels, cells, times), microsiemens."""
    targets = jnp.asarray(fit.target_us / G_MAX_US, jnp.float32)[:, None]
    held = devices.program(jax.random.key(seed), jnp.repeat(targets, num, axis=1), device)
    aged = [np.asarray(devices.drift(held, float(t), device).g) * G_MAX_US for t in fit.times_s]
    return list(np.stack(aged, axis=2))


def _standard(levels: list[np.ndarray]) -> np.ndarray:
    """Return all cells as deviations from the mean of their level, in its standard deviations (cells, times)."""
    return np.concatenate([(g - np.nanmean(g, axis=0)) / np.nanstd(g, axis=0, ddof=1) for g in levels])


def _tails(levels: list[np.ndarray]) -> Record:
    """Return what lies beyond four standard deviations at each time, and quantiles."""
    z = _standard(levels)
    with np.errstate(invalid="ignore"):
        far = [float(np.mean(np.abs(column[np.isfinite(column)]) > 4.0)) for column in z.T]
    at = special.ndtr(np.linspace(-3.5, 3.5, 71))
    return {"beyond_4": far, "quantiles": [np.nanquantile(column, at).round(4).tolist() for column in z.T]}


def _correlation(levels: list[np.ndarray]) -> np.ndarray:
    """Return the correlation of cells between times, levels put together."""
    z = np.ma.masked_invalid(_standard(levels))
    return np.asarray(np.ma.corrcoef(z, rowvar=False).filled(np.nan))


def _bootstrap(levels: list[np.ndarray], seed: int, num: int = 100) -> np.ndarray:
    """Return standard errors of the correlations."""
    rng = np.random.default_rng(seed)
    drawn = [_correlation([g[rng.integers(0, len(g), len(g))] for g in levels]) for _ in range(num)]
    return np.std(drawn, axis=0)


def product(config: Config, out: Path) -> Iterator[Record]:
    """Measure the relative error of one product at each time, for each law."""
    fit = _fit(_records(config, out))
    weight_key, input_key = jax.random.split(jax.random.key(config.seed))
    weights = jax.random.normal(weight_key, config.shape)
    x = jax.random.normal(input_key, (32, config.shape[0]))
    exact = jnp.matmul(x, weights, precision="highest")

    def error(key: jax.Array, weights: jax.Array, device: devices.Device, x: jax.Array, exact: jax.Array) -> jax.Array:
        y, _ = crossbar.sample(key, x, crossbar.encode(weights, device, config=LAYOUT))
        return jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)

    for law, t_s, device in _aged(config, fit):
        mean, variance = crossbar.product_moments(x, crossbar.encode(weights, device, config=LAYOUT))
        square = float(jnp.sum((mean - exact) ** 2 + variance) / jnp.sum(exact**2))
        found = montecarlo.run(
            error, jax.random.key(config.seed + 1), config.num_chips, args=(weights, device, x, exact), progress=False
        )
        yield {"law": law, "t_s": t_s, **_over_chips(found.values, 0.99), "closed_form_rms": square**0.5}


def _aged(config: Config, fit: Any) -> Iterator[tuple[str, float, devices.Device]]:
    """Yield each law at each time, with a name in common so that they share programs."""
    for law in config.laws:
        for t_s in config.times_s:
            yield law, t_s, devices.from_records(fit, law=law, t_s=t_s, name="cells")


def _over_chips(values: Any, level: float) -> Record:
    """Return the mean over chips, and what the worst 1 % of them reach, with 95 % intervals."""
    values = np.asarray(values, np.float64)
    mean = montecarlo.mean_interval(values)
    rng = np.random.default_rng(0)
    drawn = np.quantile(values[rng.integers(0, len(values), (400, len(values)))], level, axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "mean": float(mean.estimate),
        "low": float(mean.low),
        "high": float(mean.high),
        "worst": float(np.quantile(values, level)),
        "worst_low": float(low),
        "worst_high": float(high),
        "num_chips": len(values),
    }


def network(config: Config, out: Path) -> Iterator[Record]:
    """Measure the accuracy of the digits network at each time, for each law, trained plainly and noise-aware."""
    fit = _fit(_records(config, out))
    held = digits.load(config.seed)
    model = digits.MODELS["dense"]
    own = digits.Config(num_steps=config.num_steps, seed=config.seed)

    def accuracy(key: jax.Array, params: Any, device: devices.Device, x: jax.Array, y: jax.Array) -> jax.Array:
        chips = crossbar.on_chip(key, params, device, config=LAYOUT)
        return jnp.mean(digits.quax.quaxify(model.apply)(chips, x).argmax(axis=1) == y)

    train_key, chip_key = jax.random.split(jax.random.key(config.seed))
    for training, noise in (("plain", None), ("noise-aware", devices.get("Gaussian", sigma=0.1))):
        params = digits.train(train_key, model, held, noise, own)
        digital = float(jnp.mean(model.apply(params, held.test_x).argmax(axis=1) == held.test_y))
        for law, t_s, device in _aged(config, fit):
            args = (params, device, held.test_x, held.test_y)
            found = montecarlo.run(accuracy, chip_key, config.num_chips, args=args, progress=False)
            yield {"training": training, "law": law, "t_s": t_s, "digital": digital, **_over_chips(found.values, 0.01)}


def prompts(config: Config, out: Path) -> Iterator[Record]:
    """Measure the store of NVCiM-PT, as programmed and a day later."""
    part = importlib.import_module("experiments.14_measured_cells.prompts")
    yield from part.measure(config, _fit(_records(config, out)), out / "prompts")


PARTS: dict[str, Callable[[Config, Path], Iterator[Record]]] = {
    "cells": cells,
    "product": product,
    "digits": network,
    "prompts": prompts,
}


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure chips made of measured cells.")
    parser.add_argument("--tiny", action="store_true", help="a few simulated cells, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/measured_cells/NAME by default")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    out = options.out or Path("runs/measured_cells") / config.name
    measure_parts("experiments.14_measured_cells.run", PARTS, options.parts, config, out, arguments=arguments)


if __name__ == "__main__":
    main()
