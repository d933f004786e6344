"""Figures and table of the parts `tuning` and `cost`; `plot.py` beside this file draws them."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from nvcim_jax import files, plots

__all__ = ["COST", "TUNING"]

summary: Any = importlib.import_module("experiments.12_edge_llm.summary")

LABELS = {
    "clinc5": "accuracy over LoRA, points",
    "snips_slots": "exact match over LoRA, points",
    "wikitext2": "nats a token below LoRA",
}
LINES = (
    (("lora",), "exit 0", "LoRA"),
    (("windows",), "max", "five windows, max"),
    (("windows",), "mean", "five windows, mean"),
    (("windows", "upper windows"), "max of the upper two", "upper two of five, max"),
    (("windows", "upper windows", "last window"), "last", "last window alone"),
    (("three windows", "last of three"), "last", "last of three"),
    (("two windows", "last of two"), "last", "last of two"),
    (("windowed prefix",), "mean", "windowed prefix, mean"),
)
"""Methods, way to read, name of a line."""


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a summary with their speed; without it where no time was taken."""
    found, costs = _json(folder / "summary.json"), folder.parent / "cost" / "cost.json"
    if costs.is_file():
        return summary.speeds(found["rows"], _json(costs), found["steps"])
    return [row for row in found["rows"] if row["updates"]]


def quality(folder: Path) -> Any:
    """Draw what is reached over LoRA's N updates against the speed, one panel a task; the claim is a corner."""
    rows = _rows(folder)
    timed = [row for row in rows if "faster" in row]
    close = summary.within(timed)
    text = [
        summary.table(timed),
        "",
        "The fastest within a point (a hundredth of a nat) of LoRA, by mean, then by interval:",
        "",
    ]
    files.write(folder / "table.md", "\n".join([*text, summary.table(close), ""]))
    tasks, handles = list(dict.fromkeys(row["task"] for row in rows)), ([], [])
    with plots.style():
        figure, first = plots.new_figure(3.0 * len(tasks) + 1.0, 3.8)
        first.remove()
        for column, task in enumerate(tasks):
            axes = figure.add_subplot(1, max(len(tasks), 1), column + 1)
            _panel(axes, [row for row in rows if row["task"] == task])
            axes.set(title=task, xscale="log", xlabel="times as fast as N updates of LoRA", ylabel=LABELS[task])
            if task == tasks[0]:
                handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=min(len(tasks) + 1, 3))
    return figure


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    scale = 1.0 if rows[0]["task"] == "wikitext2" else 100.0
    for i, (methods, name, label) in enumerate(LINES):
        for model, style in (("as it is", "-"), ("LUC", ":")):
            own = [r for r in rows if r["model"] == model and r["method"] in methods and "over_lora" in r]
            exits = [r["read"] for r in own if r["read"].startswith("exit")]
            wanted = max(exits, default="") if name == "last" else name
            own = sorted((r for r in own if r["read"] == wanted), key=lambda r: r["updates"])
            if not own:
                continue
            at = [r["faster"][0] if "faster" in r else 1.0 / r["updates"] for r in own]
            value, low, high = scale * np.array([r["over_lora"] for r in own]).T
            colour = plots.COLOURS[i % len(plots.COLOURS)]
            shown = label if model == "as it is" else f"{label}, LUC"
            kind: Any = {"color": colour, "marker": plots.MARKERS[i % len(plots.MARKERS)], "linestyle": style}
            if model != "as it is":
                kind["markerfacecolor"] = "white"
            axes.errorbar(at, value, [value - low, high - value], linewidth=0.8, markersize=3, label=shown, **kind)
    axes.axhline(0.0, color="0.4", linewidth=0.6)
    if scale > 1.0:
        axes.axhline(-1.0, color="0.4", linestyle=":", linewidth=0.6)
    axes.axvline(2.92, color="0.4", linestyle=":", linewidth=0.6)


def cost(folder: Path) -> Any:
    """Draw how many times faster and smaller than LoRA each variant is: measured here, and by the schedule."""
    measured, planned = _json(folder / "cost.json")["variants"], _json(folder / "schedule.json")["machines"]
    clock = "faster_in_processor_time"
    bars = {f"{name} (here)": (v[clock][0], v["memory_of_lora_over_it"]) for name, v in measured.items()}
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


TUNING = {"quality": quality}
"""Name of a figure -> what draws it from the folder of the part `tuning`."""

COST = {"cost": cost}
"""The same of the part `cost`."""
