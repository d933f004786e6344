"""How far a product is off on noisy hardware: against sigma, device, weight bits, ADC bits and array rows.

Command:  python -m experiments.1_output_error.run [--tiny] [--out FOLDER]
          python -m experiments.1_output_error.plot FOLDER   (both in the root of the repository)
Time:     about 6 minutes of processor time, 18 minutes on two busy cores (--tiny: half a minute of processor time).
Expect:   - sigma 0.1: 58.0 % for an analog pair (textbook 57.97 %), 34.4 % for 16 bit in 2-bit cells of FeFET6, 133 %
            with an offset column in place of the pair.
          - devices at sigma 0.1, pairs: RRAM1 33.5 %, FeFET2 63.7 %, FeFET3 49.5 %, RRAM4 41.8 %, FeFET6 34.4 %.
          - weight bits at sigma 0.02: more bits stop helping where noise sets in, at 6.7 % with 1-bit cells. With more
            bits a cell a highest slice that is partly filled wastes the range of its cell: 2-bit cells have 9.3 % at 7
            bits, but 18.9 % at 6 and 18.0 % at 16.
          - ADC: within 5 % of an ideal one (7.05 %) from 6 bits with the range of each read, from 7 bits with a
            calibrated range; with the largest possible range 8 bits still give 47 %.
          - array rows: no effect with the range of each read (11 %); with the largest possible range 13 % at 16 rows,
            45 % at 256; wires of 1 ohm between cells: none up to 64 rows, 12.4 % at 128, 22.3 % at 256.
          - theory: 109 of the 110 intervals with a spread hold it, no point is off by more than 1.4 %.

The error is the relative RMS error over chips, sqrt(mean |y - x W|^2 / |x W|^2), with the 95 % interval of that mean;
W and x are normal. Beside every point stands what is expected without drawing a chip (`theory.py`). Records go to
FOLDER as JSON lines and CSV, with the command, versions and seed in `run.json`; `plot.py` reads only those.
"""

import argparse
import dataclasses
import importlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.records import origin
from nvcim_jax import checks, crossbar, devices, files, montecarlo

__all__ = ["CONFIGS", "Config", "main", "run"]

theory: Any = importlib.import_module("experiments.1_output_error.theory")


@checks.frozen_config
class Config:
    """What is swept, and over how many chips.

    Attributes:
        name: Name of this configuration.
        rows: Rows of the matrix.
        cols: Columns of the matrix.
        batch: Inputs that each chip is read with.
        num_chips: Chips of a point.
        num_chips_wires: Chips of a point with wire resistance, which costs a solve a chip.
        sigmas: Programming noise, relative to g_max.
        devices: Names of the table.
        weight_bits: Bits of a weight, sign included.
        cell_bits: Bits of a cell, a series each.
        adc_bits: Bits of a conversion.
        array_rows: Word lines of an array.
        wire_ohm: Resistance of one segment of wire, ohm.
        seed: Seed of the matrix, the inputs and the chips.
    """

    name: str = "full"
    rows: int = 384
    cols: int = 128
    batch: int = 32
    num_chips: int = 100
    num_chips_wires: int = 30
    sigmas: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    devices: tuple[str, ...] = (
        "RRAM1",
        "FeFET2",
        "FeFET3",
        "RRAM4",
        "FeFET6",
        "RRAMWan2022-1d",
        "RRAMMilo2021",
        "PCM-CrossSim",
        "PCM",
    )
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
    cell_bits: tuple[int, ...] = (1, 2, 4)
    adc_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 10, 12)
    array_rows: tuple[int, ...] = (16, 32, 64, 128, 256)
    wire_ohm: float = 1.0
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        rows=32,
        cols=16,
        batch=4,
        num_chips=30,
        num_chips_wires=30,
        sigmas=(0.05, 0.1),
        devices=("FeFET6",),
        weight_bits=(4,),
        cell_bits=(2,),
        adc_bits=(6,),
        array_rows=(16,),
    ),
}


# At module level, so that one compilation serves all points with the same options.
encode = jax.jit(crossbar.encode)


class Point(NamedTuple):
    """One point of a figure: where it stands, and what hardware it is measured on.

    Attributes:
        figure: Name of the figure.
        series: Name of its series.
        x: Position: a number, or the index of a name.
        device: The memory cells.
        options: Options of the crossbar.
        wires: Resistances, or None.
        expected: Which theory gives the expected error: "moments", "textbook", or None where it is not known.
        label: Name of the position where it is no number.
    """

    figure: str
    series: str
    x: float
    device: devices.Device
    options: dict[str, Any]
    wires: crossbar.Wires | None = None
    expected: str | None = "moments"
    label: str = ""


class Problem(NamedTuple):
    """One product and its exact result."""

    weights: jax.Array
    x: jax.Array
    truth: jax.Array


def problem(rows: int, cols: int, batch: int, seed: int) -> Problem:
    """Draw a matrix and a batch of inputs from the normal distribution."""
    weight_key, input_key = jax.random.split(jax.random.key(seed))
    weights = jax.random.normal(weight_key, (rows, cols), jnp.float32)
    x = jax.random.normal(input_key, (batch, rows), jnp.float32)
    return Problem(weights, x, jnp.matmul(x, weights, precision="highest"))


def squared_error(
    key: jax.Array, x: jax.Array, truth: jax.Array, target: crossbar.Target, wires: crossbar.Wires | None
) -> jax.Array:
    """Return |y - truth|^2 / |truth|^2 of one chip; what changes along a sweep of sigma compiles nothing anew."""
    if wires is None:
        y, _ = crossbar.sample(key, x, target)
    else:
        write_key, read_key = jax.random.split(key)
        y, _ = crossbar.matmul(read_key, x, crossbar.write(write_key, target, wires=wires))
    return jnp.sum((y - truth) ** 2) / jnp.sum(truth**2)


def measure(point: Point, made: Problem, num_chips: int, seed: int) -> dict[str, Any]:
    """Measure one point and return its record."""
    config = crossbar.Config(**point.options)
    range_key, chip_key = jax.random.split(jax.random.key(seed + 1))
    started = time.perf_counter()
    target = encode(made.weights, point.device, config=config)
    if config.adc_range == "calibrated":
        target = _calibrated(range_key, made.x, target)
    arguments = (made.x, made.truth, target, point.wires)
    stats = montecarlo.run(squared_error, chip_key, num_chips, args=arguments, progress=False)
    interval = montecarlo.mean_interval(stats.values)
    return {
        "figure": point.figure,
        "series": point.series,
        "x": point.x,
        "label": point.label,
        "relative_rms_error": math.sqrt(interval.estimate),
        "low": math.sqrt(max(interval.low, 0.0)),
        "high": math.sqrt(interval.high),
        "expected": _expected(point, made, target),
        "num_chips": stats.num_instances,
        "num_nonfinite": stats.num_nonfinite,
        "seconds": round(time.perf_counter() - started, 3),
        "device": point.device.name,
        "sigma": float(point.device.sigma),
        "wire_ohm": None if point.wires is None else float(point.wires.row_ohm),
        "options": point.options,
        "chips": [round(math.sqrt(value), 7) for value in stats.values.tolist()],
    }


def _calibrated(key: jax.Array, x: jax.Array, target: crossbar.Target) -> crossbar.Target:
    """Take the ranges of the converters from one chip, for all chips."""

    @jax.jit
    def find(key: jax.Array, x: jax.Array, target: crossbar.Target) -> jax.Array | None:
        write_key, read_key = jax.random.split(key)
        chip = crossbar.write(write_key, target)
        return crossbar.calibrate(read_key, x, chip).adc_range

    return dataclasses.replace(target, adc_range=find(key, x, target))


def _expected(point: Point, made: Problem, target: crossbar.Target) -> float | None:
    if point.expected == "textbook":
        return theory.textbook_error(made.x, made.weights, float(point.device.sigma))
    if point.expected is None or point.device.read is not None:
        return None
    return theory.expected_error(made.x, made.truth, target)


CONVERTERS = {"dac_bits": 8, "adc_bits": 8}
SLICED = {"weight_bits": 16, "cell_bits": 2, **CONVERTERS}


def sigma_points(config: Config) -> Iterator[Point]:
    """Yield the error against programming noise: analog and sliced weights, pairs and offsets, clipped and not."""
    series = (
        ("analog pair, ideal converters", "Gaussian", False, {}, "textbook"),
        ("analog pair, clipped at 0, 8-bit converters", "Gaussian", True, CONVERTERS, "moments"),
        ("FeFET6, 16 bit in 2-bit cells, pair", "FeFET6", False, SLICED, "moments"),
        ("FeFET6, 16 bit in 2-bit cells, offset", "FeFET6", False, {**SLICED, "mapping": "offset"}, "moments"),
    )
    for name, device, clip, options, law in series:
        for sigma in config.sigmas:
            yield Point("sigma", name, sigma, devices.get(device, sigma=sigma, clip=clip), options, expected=law)


def device_points(config: Config) -> Iterator[Point]:
    """Yield the error of every device: cells in pairs, cells with an offset column, and value-level noise."""
    for i, name in enumerate(config.devices):
        device = devices.get(name)
        options = {**SLICED, "cell_bits": 1 if device.num_levels == 2 else 2}
        yield Point("device", "pair of cells", i, device, options, label=name)
        yield Point("device", "cell and offset column", i, device, {**options, "mapping": "offset"}, label=name)
        if device.num_levels is not None:
            value = {**options, "noise": "value"}
            yield Point("device", "value-level noise", i, device, value, expected=None, label=name)


def weight_bits_points(config: Config) -> Iterator[Point]:
    """Yield the error against the bits of a weight, for cells of several bits; ideal converters."""
    cases = [(f"{bits}-bit cells, σ = 0.02", devices.get("Gaussian", sigma=0.02), bits) for bits in config.cell_bits]
    for name, device, cell_bits in [*cases, ("rounding alone", devices.get("ideal"), config.cell_bits[0])]:
        for bits in config.weight_bits:
            yield Point("weight_bits", name, bits, device, {"weight_bits": bits, "cell_bits": cell_bits})


def adc_bits_points(config: Config) -> Iterator[Point]:
    """Yield the error against the bits of a conversion, for each way to set its range, and for none."""
    device, options = devices.get("FeFET6", sigma=0.02), {"weight_bits": 8, "cell_bits": 2, "dac_bits": 8}
    ranges = {"absmax": "range of each read", "calibrated": "range calibrated", "max": "largest possible range"}
    for adc_range, name in ranges.items():
        for bits in config.adc_bits:
            yield Point("adc_bits", name, bits, device, {**options, "adc_bits": bits, "adc_range": adc_range})
    yield Point("adc_bits", "ideal ADC", 0, device, options)


def array_rows_points(config: Config) -> Iterator[Point]:
    """Yield the error against the word lines of an array: analog pairs, converters of few bits, resistive wires."""
    device, ohm = devices.get("Gaussian", sigma=0.02), config.wire_ohm
    for name, bits, adc_range in (
        ("4-bit ADC, range of each read", 4, "absmax"),
        ("8-bit ADC, range of each read", 8, "absmax"),
        ("8-bit ADC, largest possible range", 8, "max"),
    ):
        for rows in config.array_rows:
            options = {"rows": rows, "dac_bits": 8, "adc_bits": bits, "adc_range": adc_range}
            yield Point("array_rows", name, rows, device, options)
    for rows in config.array_rows:
        options, wires = {"rows": rows, **CONVERTERS}, crossbar.Wires(jnp.float32(ohm), jnp.float32(ohm))
        name = f"8-bit ADC, wires of {ohm:g} Ω between cells"
        yield Point("array_rows", name, rows, device, options, wires, expected=None)


SWEEPS = (sigma_points, device_points, weight_bits_points, adc_bits_points, array_rows_points)


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Measure every point and yield its record."""
    whole = problem(config.rows, config.cols, config.batch, config.seed)
    # The figure of array rows has as many rows as the largest array, and few columns: a solve for wires grows fast.
    narrow = problem(max(config.array_rows), min(config.cols, 32), config.batch, config.seed)
    for sweep in SWEEPS:
        for point in sweep(config):
            chips = config.num_chips if point.wires is None else config.num_chips_wires
            yield measure(point, narrow if point.figure == "array_rows" else whole, chips, config.seed)


def save(records: list[dict[str, Any]], rests: dict[str, Any], out: Path) -> list[Path]:
    """Write the records and what they rest on, each file whole or not at all."""
    flat = [{name: value for name, value in record.items() if name not in ("chips", "options")} for record in records]
    rows = [row | {"options": json.dumps(record["options"])} for row, record in zip(flat, records, strict=True)]
    contents = {
        "records.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "records.csv": files.csv(rows),
        "run.json": json.dumps(rests, indent=1) + "\n",
    }
    return [files.write(out / name, content) for name, content in contents.items()]


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure the error of a noisy product.")
    parser.add_argument("--tiny", action="store_true", help="a few small points, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/1_output_error/NAME by default")
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    out = options.out or Path("runs/1_output_error") / config.name
    out.mkdir(parents=True, exist_ok=True)
    started, records = time.perf_counter(), []
    for record in run(config):
        records.append(record)
        known = "-" if record["expected"] is None else f"{record['expected']:.5f}"
        place = f"{record['figure']} {record['label'] or record['x']}"
        print(f"{place:28s} {record['series']:46s} {record['relative_rms_error']:.5f} expected {known}", flush=True)
    rests = origin("experiments.1_output_error.run", arguments, config, started)
    print("Written:", *(str(path) for path in save(records, rests, out)), sep="\n  ")


if __name__ == "__main__":
    main()
