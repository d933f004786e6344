"""Draw the two figures of the digits on noisy chips, from saved records only.

Command:  python -m experiments.digits.plot FOLDER   (the folder that run.py has written)
Time:     2 s.
Expect:   digits_sigma.png (accuracy against programming noise) and digits_chips.png (accuracy of every chip) in FOLDER.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["chips_figure", "main", "sigma_figure"]

Records = list[dict[str, Any]]
_LINES = {"plain": "-", "noise-aware": "--"}


def _series(records: Records) -> dict[tuple[str, str], Records]:
    found: dict[tuple[str, str], Records] = {}
    for record in records:
        found.setdefault((record["model"], record["training"]), []).append(record)
    return found


def sigma_figure(records: Records) -> Any:
    """Draw the mean accuracy with its interval, and what 95 % of the chips reach, against programming noise."""
    figure, axes = plots.new_figure(height_in=2.7)
    models = list(dict.fromkeys(record["model"] for record in records))
    for (model, training), rows in _series(records).items():
        colour, marker = (of[models.index(model)] for of in (plots.COLOURS, plots.MARKERS))
        x, y, low, high, least = (
            np.array([row[name] for row in rows])
            for name in ("sigma", "accuracy", "low", "high", "reached_by_95_percent")
        )
        label, line = f"{model}, {training}", _LINES[training]
        errors = np.stack([y - low, high - y])
        axes.errorbar(x, y, errors, color=colour, marker=marker, linestyle=line, label=label, capsize=1.5)
        axes.fill_between(x, least, y, color=colour, alpha=0.08 if training == "plain" else 0.16, linewidth=0)
    axes.set_xlabel("programming noise σ (share of g$_\\mathrm{max}$)")
    axes.set_ylabel("accuracy on the test set")
    chips = records[0]["num_chips"]
    axes.set_title(f"Gaussian cells; {chips:,} chips; shade: 95 % of chips", fontsize=6.5)
    axes.set_ylim(0.0, 1.0)
    figure.legend(loc="outside lower center", ncols=2, handlelength=2.6)
    return figure


def chips_figure(records: Records) -> Any:
    """Draw the share of chips that reach an accuracy, at the noise whose values are kept."""
    figure, axes = plots.new_figure(height_in=2.7)
    kept = [record for record in records if record["values"] is not None]
    models = list(dict.fromkeys(record["model"] for record in records))
    for (model, training), (row,) in _series(kept).items():
        values = np.sort(row["values"])
        reach = 1.0 - np.arange(len(values)) / len(values)
        axes.step(
            values,
            reach,
            where="pre",
            color=plots.COLOURS[models.index(model)],
            linestyle=_LINES[training],
            label=f"{model}, {training}",
        )
    axes.axhline(0.95, color="0.5", linewidth=0.6, linestyle=":")
    axes.set_xlabel(f"accuracy on the test set at σ = {kept[0]['sigma']:g}")
    axes.set_ylabel("share of chips that reach it")
    axes.set_title(f"Gaussian cells; {len(kept[0]['values']):,} chips; dotted: 95 % of them", fontsize=6.5)
    axes.set_ylim(0.0, 1.02)
    figure.legend(loc="outside lower center", ncols=2, handlelength=2.6)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description="Draw the digits on noisy chips.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    options = parser.parse_args(arguments)
    records = read(options.folder)
    for name, draw in (("digits_sigma", sigma_figure), ("digits_chips", chips_figure)):
        with plots.style():
            figure = draw(records)
        print(files.write(options.folder / f"{name}.png", plots.png(figure)))


if __name__ == "__main__":
    main()
