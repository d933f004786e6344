"""Draw what adapters around noisy matrices win back, from saved records only.

Command:  python -m experiments.10_around_the_noise.plot FOLDER   (in the root of the repository)
Time:     2 s.
Expect:   around_the_noise.png and table.md in FOLDER: perplexity against noise and time, accuracy against noise.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, metrics, plots

__all__ = ["figure", "main", "table"]

Records = list[dict[str, Any]]
LINES = {"none": ":", "digital": "--", "one chip": "-.", "fresh chips": "-", "new": "--", "again": "-"}
WORDS = {
    "none": "no adapter",
    "digital": "tuned exactly",
    "one chip": "tuned on the chip",
    "fresh chips": "tuned for all chips",
    "new": "tuned when new",
    "again": "tuned again",
}


def _interval(record: dict[str, Any]) -> tuple[float, float, float]:
    """Return the mean over chips of what a record measured, and its interval; of perplexity, of its logarithm."""
    name = "nats" if "nats" in record["chips"][0] else "accuracy"
    found = metrics.interval([chip[name] for chip in record["chips"]])
    values = (found.mean, found.low, found.high)
    return tuple(np.exp(values)) if name == "nats" else values  # type: ignore[return-value]


def _panel(axes: Any, rows: Records, x: str, xlabel: str) -> None:
    names = [name for name in dict.fromkeys(row["adapter"] for row in rows) if name != "none"]
    for adapter, way in dict.fromkeys((row["adapter"], row["way"]) for row in rows):
        own = [row for row in rows if (row["adapter"], row["way"]) == (adapter, way)]
        colour = "0.3" if way == "none" else plots.COLOURS[names.index(adapter)]
        marker = "x" if way == "none" else plots.MARKERS[names.index(adapter)]
        mean, low, high = np.array([_interval(row) for row in own]).T
        shown = way == "none" and adapter not in ("none", *names[:1])
        label = None if shown else WORDS[way] if way == "none" else f"{adapter}, {WORDS[way]}"
        errors = np.stack([np.maximum(mean - low, 0), np.maximum(high - mean, 0)])
        axes.errorbar(
            [row[x] for row in own], mean, errors, color=colour, marker=marker, linestyle=LINES[way], label=label
        )
    axes.set(xlabel=xlabel, xscale="log")
    ticks = sorted({row[x] for row in rows})
    axes.set_xticks(ticks, [f"{100 * t:g} %" if x == "sigma" else plots.shown_time(t) for t in ticks])
    axes.minorticks_off()


def figure(records: Records) -> Any:
    """Draw a panel for each part that was measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    plain = FuncFormatter(lambda value, place: f"{value:g}")
    known = {"noise": "sigma", "drift": "t_s", "choose": "sigma"}
    found = [part for part in known if any(row["part"] == part for row in records)]
    with plots.style():
        page = Figure(figsize=(2.9 * len(found), 3.6), dpi=300, layout="constrained")
        for axes, part in zip(page.subplots(1, len(found), squeeze=False)[0], found, strict=True):
            rows = [row for row in records if row["part"] == part]
            xlabel = "time since programming, PCM" if part == "drift" else "noise σ of FeFET3 (share of full scale)"
            _panel(axes, rows, known[part], xlabel)
            axes.set_ylabel("accuracy, clinc5" if part == "choose" else "perplexity, WikiText-2")
            if part != "choose":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(plain)
                axes.yaxis.set_minor_formatter(plain)
            chips = len(rows[0]["chips"])
            axes.set_title("one chip" if chips == 1 else f"{chips} chips, 95 % intervals")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=1, handlelength=4.0)
    return page


def table(records: Records) -> str:
    """Return all means over chips as a Markdown table."""
    lines = ["| part | sigma | time | adapter | way | mean [95 % over chips] |", "|---|---|---|---|---|---|"]
    exact = {(row["part"], row["adapter"]): row["digital"] for row in records if "digital" in row}
    for (part, adapter), scores in exact.items():
        value = scores["accuracy"] if part == "choose" else np.exp(scores["nats"])
        lines.append(f"| {part} | 0 | | {adapter} | exact matrices | {value:.3g} |")
    for row in records:
        mean, low, high = _interval(row)
        t_s = "" if row.get("t_s") is None else plots.shown_time(row["t_s"])
        values = f"{mean:.3g} [{low:.3g}, {high:.3g}]" if np.isfinite(high) else f"{mean:.3g}"
        lines.append(f"| {row['part']} | {row['sigma']:g} | {t_s} | {row['adapter']} | {row['way']} | {values} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description="Draw adapters around a language model in noisy memory.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    options = parser.parse_args(arguments)
    records = read(options.folder)
    print(files.write(options.folder / "around_the_noise.png", plots.png(figure(records))))
    print(files.write(options.folder / "table.md", table(records)))


if __name__ == "__main__":
    main()
