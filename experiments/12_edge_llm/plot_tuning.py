"""Figures of the part `tuning`; `plot.py` beside this file draws them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import plots

__all__ = ["FIGURES"]


def quality(folder: Path) -> Any:
    """Draw the loss of every method and way of reading, one panel a task."""
    rows = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["rows"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with plots.style():
        figure, first = plots.new_figure(2.6 * max(len(tasks), 1) + 1.0, 3.0)
        first.remove()
        for column, task in enumerate(tasks):
            axes = figure.add_subplot(1, len(tasks), column + 1)
            own = [row for row in rows if row["task"] == task]
            names = [row["method"] + (f", {row['read']}" if row["read"] else "") for row in own]
            shown = "accuracy" if "accuracy" in own[0] else "loss"
            axes.barh(range(len(own)), [row[shown] for row in own], color=plots.COLOURS[column % len(plots.COLOURS)])
            axes.set_yticks(range(len(own)), names)
            axes.invert_yaxis()
            axes.set(title=task, xlabel="right answers" if shown == "accuracy" else "loss (nats a token)")
    return figure


def cost(folder: Path) -> Any:
    """Draw how many times faster and smaller than LoRA each variant is: measured here, and by the schedule."""
    measured = json.loads((folder / "cost.json").read_text(encoding="utf-8"))["variants"]
    planned = json.loads((folder / "schedule.json").read_text(encoding="utf-8"))["machines"]
    bars = {f"{name} (here)": (v["faster_than_lora"][0], v["memory_of_lora_over_it"]) for name, v in measured.items()}
    for machine, variants in planned.items():
        bars |= {f"{name} ({machine})": (v["faster"], v["smaller"]) for name, v in variants.items() if name != "lora"}
    with plots.style():
        figure, axes = plots.new_figure(5.0, 0.3 * len(bars) + 0.8)
        at = np.arange(len(bars))
        for i, (label, shift) in enumerate((("faster", -0.2), ("less memory", 0.2))):
            axes.barh(at + shift, [pair[i] for pair in bars.values()], 0.38, color=plots.COLOURS[i], label=label)
        axes.axvline(1.0, color="0.4", linestyle=":", linewidth=0.8)
        axes.set_yticks(at, list(bars))
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="times LoRA at full depth of the model as it is")
        axes.legend()
    return figure


FIGURES = {"quality": quality, "cost": cost}
"""Name of a figure -> what draws it from the folder of the part."""
