"""`nvcim device`: a file of measured cells to a table, figures, and a device that every command takes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nvcim_jax
from nvcim_jax import checks, devices, files, io, plots
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.spec import value_of
from nvcim_jax.cli.tables import print_table

__all__ = ["FILES", "Options", "main"]

NAMES = {
    "path": "FILE",
    "columns": "--column",
    "units": "--unit",
    "levels": "--level",
    "times_s": "--time",
    'columns={"g": ...}': "--column g=HEADING",
}
"""Options of what the library calls otherwise."""

FILES = ("table.csv", "levels.png", "spread.png", "quantiles.png", "device.json")
_CELLS = 20_000  # simulated for the figures, of all levels together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Make a device of measured cells: each row of FILE is one read of one cell.

    Any tidy table: CSV, TSV, semicolons, bars or blanks between columns, with a header or without, .gz, .parquet. For
    example: nvcim device cells.tsv.gz --column cell=0 --column t=1 --column g=3 --column level=5 --unit g=S --g-max-us
    40. The device file is then the --device of every command.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The measurements."""
    g_max_us: float | None = None
    """Greatest conductance, microsiemens: the unit of the device. Needed."""
    column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Which column holds what, name=heading or name=number from 0: g or r, level or target, cell, t, cycle; may be
    repeated. None: found by the headings."""
    unit: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Unit of a column that its heading does not say, name=unit: S, mS, uS, nS, ohm, kohm, Mohm; s, ms, us, min, h, d;
    may be repeated."""
    law: str | None = None
    """trajectories, empirical, student or gaussian. None: trajectories, or empirical without a column of cells."""
    t_s: float | None = None
    """The device as it is so many seconds after programming, for good. None: as programmed, changing with time."""
    level: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A level that was asked for, by the file's name for it; may be repeated. None: all."""
    time: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """A nominal time, seconds; may be repeated. None: found from the reads."""
    low: float = -0.1
    """Lowest read that is taken for one, a share of g_max."""
    high: float = 1.5
    """Highest."""
    min_records: int = 10
    """Least number of programmed cells of a level."""
    name: str | None = None
    """Name of the device. None: that of the file, and the law."""
    out: Path = Path("runs/device")
    """Folder of the results, new or empty."""
    overwrite: bool = False
    """Replace earlier results in that folder."""


def main(options: Options) -> int:
    """Run the command and return its exit code.

    Raises:
        ValueError: If the file, or an option, is wrong.
    """
    records = devices.read_records(
        options.file, columns=_pairs("--column", options.column) or None, units=_pairs("--unit", options.unit) or None
    )
    if options.g_max_us is None:
        found = f"is missing; 99 % of the reads are up to {np.quantile(records.g_us, 0.99):.3g} uS"
        checks.fail("--g-max-us", "be given", found, "Give the greatest conductance of a level, in microsiemens.")
    fit = devices.fit_records(
        records,
        g_max_us=options.g_max_us,
        levels=options.level or None,
        times_s=options.time or None,
        limits=(options.low, options.high),
        min_records=options.min_records,
    )
    named: dict[str, Any] = {} if options.name is None else {"name": options.name}
    device = devices.from_records(fit, law=options.law, t_s=options.t_s, **named)
    _prepare(options)
    rows = table(fit)
    print_table(rows, title=f"{records.source}: {len(fit.g_us)} programmed cells; conductances in microsiemens")
    print(judged(fit))
    made = device if options.t_s is None else devices.from_records(fit, law=options.law)
    written = [
        io.save_device(options.out / f"{_stem(options.file)}{io.DEVICE_SUFFIX}", device),
        files.write(options.out / "table.csv", files.csv(rows)),
        *(files.write(options.out / name, plots.png(figure)) for name, figure in _figures(fit, made).items()),
        files.write_json(options.out / "device.json", _about(options, fit, device)),
    ]
    print("Written:", *(f"  {path}" for path in written), sep="\n")
    print(f"Use it: nvcim product --device {written[0]}")
    return 0


def _pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            checks.fail(
                option, "be name=value", f"is {word!r}", f"For example {option} g={3 if 'c' in option else 'S'}."
            )
        value = value_of(text)
        found[name] = value if isinstance(value, int) and not isinstance(value, bool) else text
    return found


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or "cells"


def _prepare(options: Options) -> None:
    files.folder("--out", options.out)
    there = sorted(path.name for path in options.out.iterdir())
    if there and not options.overwrite:
        fix = "Give another --out, or --overwrite to replace earlier results."
        checks.fail("--out", "be a new or empty folder", f"{options.out} holds {there[0]}", fix)


def table(fit: Any) -> list[dict[str, Any]]:
    """Return one row for each level and time of a fit."""
    rows = []
    for i, label in enumerate(fit.labels):
        for k, t_s in enumerate(fit.times_s.tolist()):
            rows.append(
                {
                    "level": label,
                    "target": float(fit.target_us[i]),
                    "time": plots.shown_time(t_s),
                    "records": int(fit.counts[i, k]),
                    **{
                        name: None if not np.isfinite(value) else float(value)
                        for name, value in (
                            ("mean", fit.mean_us[i, k]),
                            ("± mean", fit.mean_error_us[i, k]),
                            ("sigma", fit.sigma_us[i, k]),
                            ("± sigma", fit.sigma_error_us[i, k]),
                            ("sigma / g_max (%)", 100 * fit.sigma_us[i, k] / fit.g_max_us),
                            ("excess kurtosis", fit.kurtosis[i, k]),
                            ("beyond 4 sigma (%)", 100 * fit.beyond_4[i, k]),
                        )
                    },
                }
            )
    return rows


def judged(fit: Any) -> str:
    """Return what was left out, and what looks wrong and counts."""
    lines = [f"left out: {count} {what}" for what, count in fit.left_out.items()]
    lines += [f"kept: {count} {what}" for what, count in fit.kept.items()]
    if not fit.target_known:
        lines.append("targets: not in the file; that of a level is the mean of its first reads")
    if fit.d2d_sigma_us is not None:
        error = f"{fit.d2d_error_us:.3g}"
        lines.append(f"device-to-device sigma: {fit.d2d_sigma_us:.4g} ± {error} uS; sigma above is cycle-to-cycle")
    return "\n".join(lines) or "left out: nothing"


def simulated(fit: Any, device: devices.Device, times_s: Sequence[float], num_cells: int = _CELLS) -> np.ndarray:
    """Return simulated cells of all levels at some times (times, levels, cells), microsiemens."""
    count = max(num_cells // len(fit.labels), 200)
    targets = jnp.asarray(fit.target_us / fit.g_max_us, jnp.float32)
    cells = devices.program(jax.random.key(0), jnp.repeat(targets[:, None], count, axis=1), device)
    aged = [cells.g if device.drift is None else devices.drift(cells, float(t), device).g for t in times_s]
    return np.asarray(jnp.stack(aged)) * fit.g_max_us


def _figures(fit: Any, device: devices.Device) -> dict[str, Any]:
    times, title = fit.times_s.tolist(), f"{device.name}"
    reads = np.where(fit.read, fit.g_us, np.nan)
    parts = list(zip(fit.starts, fit.starts[1:], strict=False))

    def of_level(k: int) -> list[np.ndarray]:
        mine = [reads[a:b, k] for a, b in parts]
        return [v[np.isfinite(v)] if np.isfinite(v).any() else np.zeros(1) for v in mine]

    made = simulated(fit, device, times)
    shown = sorted({0, len(times) // 2, len(times) - 1})
    sigmas = {"measured": fit.sigma_us, "simulated": made.std(axis=2).T}
    measured, drawn = {}, {}
    for k in shown:
        spread = [(v - v.mean()) / (v.std() or 1.0) for v in of_level(k)]
        measured[times[k]] = np.concatenate(spread)
        flat = (made[k] - made[k].mean(axis=1, keepdims=True)) / np.maximum(made[k].std(axis=1, keepdims=True), 1e-12)
        drawn[times[k]] = flat.ravel()
    ends = sorted({0, len(times) - 1})
    return {
        "levels.png": plots.cell_levels(
            fit.labels, {times[k]: of_level(k) for k in ends}, ylabel="conductance (µS)", title=fit.source
        ),
        "spread.png": plots.cell_spread(times, sigmas, ylabel="sigma of a level (µS)", title=title),
        "quantiles.png": plots.cell_quantiles(measured, {device.name.split(", ")[-1]: drawn}, title=fit.source),
    }


def _about(options: Options, fit: Any, device: devices.Device) -> dict[str, Any]:
    return {
        "command": command_line("device", options, positional=("file",), in_full=True),
        "device": device.name,
        "levels": list(fit.labels),
        "targets_us": fit.target_us.tolist(),
        "times_s": fit.times_s.tolist(),
        "left_out": dict(fit.left_out),
        "kept": dict(fit.kept),
        "d2d_sigma_us": fit.d2d_sigma_us,
        "versions": {"nvcim_jax": nvcim_jax.__version__, "jax": jax.__version__, "numpy": np.__version__},
    }
