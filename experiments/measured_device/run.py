"""From your own measurements to a device: fit sigma(level) of repeated programming records, with its uncertainty.

Command:  python -m experiments.measured_device.run [--tiny] [--out FOLDER]   (in the root of the repository)
Time:     about 10 s on two cores (--tiny: about 5 s).
Expect:   a CSV file of records (simulated here, with known truth), a table and a figure of fitted against true sigma.
          Every fitted number lies within a few of its standard errors of the truth; with the default config all eight
          95 % intervals of sigma hold it. The device built of the file then programs cells with the fitted moments.

Replace the simulated file by yours: a CSV with the columns `level`, `g_us`, and optionally `cell` and `target_us`.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measured_device.plot import Z_95, plot
from nvcim_jax import checks, devices, files

__all__ = ["CONFIGS", "Config", "main", "run", "simulate", "table"]


@checks.frozen_config
class Config:
    """What is measured, and how often.

    Attributes:
        name: Name of this configuration, and of its files.
        levels_us: Target conductances, microsiemens.
        shift_us: True difference of the mean from the target.
        sigma_us: True cycle-to-cycle noise of each level.
        d2d_us: True standard deviation of the cells' offsets.
        num_cells: Cells on the simulated chip.
        repeats: Programmings of each cell to each level.
        num_programmed: Cells programmed with the fitted device, to check it.
        seed: Seed of the simulated measurement.
    """

    name: str = "default"
    levels_us: tuple[float, ...] = (2.0, 7.0, 12.0, 18.0, 24.0, 29.0, 35.0, 40.0)
    shift_us: tuple[float, ...] = (0.3, 0.2, 0.1, 0.0, 0.0, -0.2, -0.5, -0.9)
    sigma_us: tuple[float, ...] = (0.3, 0.9, 1.4, 1.7, 1.8, 1.6, 1.2, 0.7)
    d2d_us: float = 0.6
    num_cells: int = 64
    repeats: int = 10
    num_programmed: int = 20_000
    seed: int = 0


CONFIGS = {
    "default": Config(),
    "tiny": Config(name="tiny", num_cells=12, repeats=4, num_programmed=2_000),
}


def simulate(config: Config, path: Path) -> None:
    """Write the records of a simulated measurement as a probe station would: one line a programming."""
    rng = np.random.default_rng(config.seed)
    offsets = config.d2d_us * rng.normal(size=config.num_cells)
    truth = zip(config.levels_us, config.shift_us, config.sigma_us, strict=True)
    rows = []
    for level, (target, shift, sigma) in enumerate(truth):
        g_us = target + shift + offsets[:, None] + sigma * rng.normal(size=(config.num_cells, config.repeats))
        common = {"level": level, "target_us": target}
        rows += [common | {"cell": cell, "g_us": f"{g:.4f}"} for cell, row in enumerate(g_us) for g in row]
    files.write(path, files.csv(rows))


def _check_device(config: Config, fit: Any, device: devices.Device) -> list[float]:
    """Return, for each level, how far programmed cells are from the fitted mean, in standard errors."""
    targets = jnp.asarray(config.levels_us) / device.g_max_us
    g = jnp.broadcast_to(targets, (config.num_programmed, len(config.levels_us)))
    samples_us = np.asarray(devices.program(jax.random.key(config.seed), g, device).g * device.g_max_us)
    mean, variance = devices.program_moments(g[0], device)
    error = np.sqrt(np.asarray(variance) / config.num_programmed) * float(device.g_max_us)
    return ((samples_us.mean(axis=0) - np.asarray(mean * device.g_max_us)) / error).tolist()


def run(config: Config, out: Path) -> dict[str, Any]:
    """Simulate, fit, build the device, and return the record of it all; files go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{config.name}_records.csv"
    simulate(config, path)
    records = devices.read_records(path)
    fit = devices.fit_table(records.level, records.g_us, cell=records.cell, target_us=records.target_us)
    device = devices.from_csv(path, g_max_us=max(config.levels_us), name=config.name)
    truth = np.array(config.sigma_us)
    inside = np.abs(fit.sigma_us - truth) < Z_95 * fit.sigma_error_us
    record = {
        "config": config.name,
        "target_us": list(config.levels_us),
        "true_mean_us": (np.array(config.levels_us) + np.array(config.shift_us)).tolist(),
        "mean_us": fit.mean_us.tolist(),
        "mean_error_us": fit.mean_error_us.tolist(),
        "true_sigma_us": truth.tolist(),
        "sigma_us": fit.sigma_us.tolist(),
        "sigma_error_us": fit.sigma_error_us.tolist(),
        "counts": fit.counts.tolist(),
        "inside_95": inside.tolist(),
        "true_d2d_us": config.d2d_us,
        "d2d_us": fit.d2d_sigma_us,
        "d2d_error_us": fit.d2d_error_us,
        "device_mean_score": _check_device(config, fit, device),
    }
    files.write_json(out / f"{config.name}.json", record)
    return record


def table(record: dict[str, Any]) -> str:
    """Return the table of fitted against true values, in microsiemens."""
    lines = ["target  true sigma  fitted sigma (s.e.)  in 95 %   true mean  fitted mean (s.e.)  records"]
    for i, target in enumerate(record["target_us"]):
        sigma = f"{record['sigma_us'][i]:.3f} ({record['sigma_error_us'][i]:.3f})"
        mean = f"{record['mean_us'][i]:.3f} ({record['mean_error_us'][i]:.3f})"
        inside = "yes" if record["inside_95"][i] else "no"
        lines.append(
            f"{target:6.1f}  {record['true_sigma_us'][i]:10.3f}  {sigma:>19}  {inside:>7}"
            f"  {record['true_mean_us'][i]:10.3f}  {mean:>18}  {record['counts'][i]:7d}"
        )
    d2d = f"{record['d2d_us']:.3f} ({record['d2d_error_us']:.3f})"
    lines.append(f"device-to-device sigma: true {record['true_d2d_us']:.3f}, fitted {d2d}, all in microsiemens")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Fit a device to repeated programming records.")
    parser.add_argument("--tiny", action="store_true", help="a smaller measurement, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("runs/measured_device"), help="folder of the results")
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "default"]
    record = run(config, options.out)
    plot(record, options.out / f"{config.name}.png")
    print(table(record))
    worst = max(abs(score) for score in record["device_mean_score"])
    print(f"the fitted device: means of {config.num_programmed} programmed cells within {worst:.1f} standard errors")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
