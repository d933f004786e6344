"""Draw the figure of a saved record: fitted against true noise of every level.

Command:  python -m experiments.measured_device.plot RECORD.json   (in the root of the repository)
Time:     2 s.
Expect:   RECORD.png beside the record, which `run.py` has written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a figure goes to a file, on machines without a screen too
import matplotlib.pyplot as plt
import numpy as np

__all__ = ["Z_95", "main", "plot"]

# Half width of a 95 % interval in standard errors.
Z_95 = 1.959964


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw fitted sigma with its 95 % interval over the true curve, and the shift of the mean beside it."""
    # Okabe-Ito colours, which the colour-blind tell apart; truth and fit also differ by mark
    blue, orange = "#0072B2", "#D55E00"
    target = np.array(record["target_us"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.0, 3.2), layout="constrained")
    panels = (
        (left, record["true_sigma_us"], record["sigma_us"], record["sigma_error_us"], "sigma of one programming (µS)"),
        (
            right,
            np.array(record["true_mean_us"]) - target,
            np.array(record["mean_us"]) - target,
            record["mean_error_us"],
            "mean minus target (µS)",
        ),
    )
    for axes, truth, fitted, error, label in panels:
        axes.plot(target, truth, "--s", color=orange, markerfacecolor="none", label="truth")
        bars = Z_95 * np.array(error)
        axes.errorbar(target, fitted, yerr=bars, fmt="o", color=blue, capsize=3, markersize=4, label="fit, 95 %")
        axes.set_xlabel("target conductance (µS)")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0.0)
    left.legend(frameon=False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw a saved record.")
    parser.add_argument("record", type=Path, help="the JSON file that run.py has written")
    path = parser.parse_args(arguments).record
    plot(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))
    print(f"written to {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
