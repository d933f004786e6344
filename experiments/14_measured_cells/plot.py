"""Draw the figures of saved records: quantiles and correlations of cells, errors and accuracies against time.

Command:  python -m experiments.14_measured_cells.plot FOLDER   (in the root of the repository)
Time:     2 s.
Expect:   cells.png, product.png and digits.png beside the records that `run.py` has written.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["main"]

Records = list[dict[str, Any]]
LINES = {"trajectories": "-", "empirical": "--", "student": ":", "gaussian": "-."}


def cells_figure(records: Records) -> Any:
    """Draw quantiles of cells kept apart (marks) and of each law (lines) at the first, a middle and the last time."""
    measured, laws = records[0], records[1:]
    z = np.linspace(-3.5, 3.5, 71)
    times = measured["times_s"]
    with plots.style():
        figure, axes = plots.new_figure(3.35, 3.0)
        axes.plot(z, z, ":", color="0.4", linewidth=0.8)
        for i, k in enumerate(sorted({0, len(times) // 2, len(times) - 1})):
            marks = {"marker": plots.MARKERS[i], "linestyle": "none", "markersize": 2.5, "color": plots.COLOURS[i]}
            axes.plot(z, measured["quantiles"][k], **marks, label=f"measured, {plots.shown_time(float(times[k]))}")
            for law in laws:
                axes.plot(z, law["quantiles"][k], LINES[law["law"]], linewidth=0.9, color=plots.COLOURS[i])
        for law in laws:
            axes.plot([], [], LINES[law["law"]], color="0.3", label=law["law"])
        axes.set(xlabel="quantile of a Gaussian (σ)", ylabel="deviation within a level (σ)", ylim=(-10, 10))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def against_time(panels: dict[str, Records], ylabel: str, factor: float) -> Any:
    """Draw the mean over chips (filled marks) and the worst 1 % (open ones) of each law against time."""
    from matplotlib.figure import Figure

    with plots.style():
        figure = Figure(figsize=(3.35 * len(panels), 2.7), dpi=300, layout="constrained")
        for column, (title, own) in enumerate(panels.items()):
            times = sorted({r["t_s"] for r in own})
            axes = figure.add_subplot(1, len(panels), column + 1)
            for i, law in enumerate(dict.fromkeys(r["law"] for r in own)):
                mine = [r for r in own if r["law"] == law]
                style: Any = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
                axes.plot(times, [factor * r["mean"] for r in mine], "-", label=law if column == 0 else None, **style)
                worst = np.array([[r["worst"], r["worst_low"], r["worst_high"]] for r in mine]).T * factor
                axes.errorbar(
                    times, worst[0], np.abs(worst[1:] - worst[0]), linestyle="--", markerfacecolor="none", **style
                )
            positive = [t for t in times if t > 0]
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
            axes.set_xticks([0.0, *(10.0**n for n in range(-2, 6, 2) if positive[0] <= 10.0**n <= positive[-1])])
            axes.minorticks_off()
            axes.set(xlabel="time since programming (s)", ylabel=ylabel)
            axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw saved records.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    product, network = read(folder, "product"), read(folder, "digits")
    by_training = {name: [r for r in network if r["training"] == name] for name in ("plain", "noise-aware")}
    figures = {
        "cells": cells_figure(read(folder, "cells")),
        "product": against_time({"mean (lines) and worst 1 % (dashed)": product}, "relative error (%)", 100.0),
        "digits": against_time(by_training, "accuracy (%)", 100.0),
    }
    for name, figure in figures.items():
        print(f"written to {files.write(folder / f'{name}.png', plots.png(figure))}")


if __name__ == "__main__":
    main()
