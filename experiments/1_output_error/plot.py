"""Draw the five figures of the error of a noisy product, from saved records only.

Command:  python -m experiments.1_output_error.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   error_sigma.png, error_device.png, error_weight_bits.png, error_adc_bits.png, error_array_rows.png in FOLDER.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["draw", "main"]

Records = list[dict[str, Any]]


def curves(records: Records, figure: str) -> list[plots.Curve]:
    """Return the series of one figure, in the order they were measured."""
    chosen = [record for record in records if record["figure"] == figure]
    made = []
    for name in dict.fromkeys(record["series"] for record in chosen):
        rows = [record for record in chosen if record["series"] == name]
        known = [math.nan if row["expected"] is None else row["expected"] for row in rows]
        made.append(
            plots.Curve(
                label=name,
                x=np.array([row["x"] for row in rows], float),
                error=np.array([row["relative_rms_error"] for row in rows]),
                low=np.array([row["low"] for row in rows]),
                high=np.array([row["high"] for row in rows]),
                expected=np.array(known, float),
            )
        )
    return made


def sigma_figure(records: Records) -> Any:
    """Draw the error against programming noise."""
    found = curves(records, "sigma")
    label = "programming noise σ (share of g$_\\mathrm{max}$)"
    return plots.error_curves(found, xlabel=label, x_log=True, xticks=found[0].x.tolist(), legend_columns=1)


def device_figure(records: Records) -> Any:
    """Draw the error of every device."""
    rows = sorted({(record["x"], record["label"]) for record in records if record["figure"] == "device"})
    return plots.error_groups(curves(records, "device"), [label for _, label in rows])


def weight_bits_figure(records: Records) -> Any:
    """Draw the error against the bits of a weight."""
    found = curves(records, "weight_bits")
    return plots.error_curves(found, xlabel="weight bits, sign included", xticks=found[0].x.tolist())


def adc_bits_figure(records: Records) -> Any:
    """Draw the error against the bits of a conversion, with the level that no ADC goes below."""
    *found, ideal = curves(records, "adc_bits")
    floor = (float(ideal.error[0]), "ideal ADC")
    return plots.error_curves(found, xlabel="ADC bits", xticks=found[0].x.tolist(), floor=floor)


def array_rows_figure(records: Records) -> Any:
    """Draw the error against the word lines of an array."""
    found = curves(records, "array_rows")
    ticks = found[0].x.tolist()
    return plots.error_curves(found, xlabel="word lines of one array", x_log=True, xticks=ticks, legend_columns=1)


FIGURES = {
    "error_sigma": sigma_figure,
    "error_device": device_figure,
    "error_weight_bits": weight_bits_figure,
    "error_adc_bits": adc_bits_figure,
    "error_array_rows": array_rows_figure,
}


def draw(folder: Path) -> list[Path]:
    """Draw all figures of a folder into it, and return the paths."""
    records, paths = read(folder), []
    for name, figure in FIGURES.items():
        path = folder / f"{name}.png"
        files.write(path, plots.png(figure(records)))
        paths.append(path)
    return paths


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw the figures of the error of a noisy product.")
    parser.add_argument("folder", type=Path, help="folder that run.py has written")
    print("Written:", *draw(parser.parse_args(arguments).folder), sep="\n  ")


if __name__ == "__main__":
    main()
