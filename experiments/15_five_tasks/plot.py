"""Draw the five kinds of tasks and write their table, from saved records only.

Command:  python -m experiments.15_five_tasks.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   five_tasks.png and table.md in FOLDER.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.five_tasks import tasks
from experiments.five_tasks.measure import MAIN, read, summarise
from nvcim_jax import files, plots

__all__ = ["LOOKS", "figure", "main", "table"]

Record = dict[str, Any]


def _cell(row: Record | None, name: str, low: str, high: str) -> str:
    if row is None or row[name] is None:
        return "-"
    ends = "" if row[low] is None else f" [{row[low]:.2f}, {row[high]:.2f}]"
    count = f", {row['better_in']}/{row['domains']}" if name == "ahead" else ""
    return f"{row[name]:.2f}{ends}".replace("-0.00", "0.00") + count


def _lines(rows: Sequence[Record], columns: Sequence[tuple[str, str]], words: tuple[str, str, str]) -> list[str]:
    """Return one table: methods down, scores of tasks across."""
    found = {(row["device"], row["method"], row["task"], row["score"]): row for row in rows}
    order = ("none", "exact")
    names = list(dict.fromkeys((row["device"], row["method"]) for row in rows))
    names.sort(key=lambda name: order.index(name[0]) if name[0] in order else len(order))  # the sort is stable
    heads = [f"{task}, {tasks.METRICS.get(score, 'right domain found')}" for task, score in columns]
    made = [["memory", "method", *heads], ["---"] * (2 + len(heads))]
    for name in names:
        cells = [_cell(found.get((*name, *column)), *words) for column in columns]
        if any(cell != "-" for cell in cells):
            made.append([*name, *cells])
    return ["| " + " | ".join(line) + " |" for line in made]


def table(rows: Sequence[Record]) -> str:
    """Return the summary as Markdown: all scores, how far NVCiM-PT is ahead in the main ones, the search."""
    scores = list(dict.fromkeys((row["task"], row["score"]) for row in rows))
    main = [(task, score) for task, score in scores if MAIN[task] == score]
    streams = {row["task"]: row["streams"] for row in rows}
    number, chips = ", ".join(f"{task} {own}" for task, own in streams.items()), max(row["chips"] for row in rows)
    ends = ("mean", "low", "high")
    parts = [
        f"Means over streams ({number}), {chips} chips and domains; 95 % intervals over streams, none of a single one.",
        "",
        *_lines(rows, [column for column in scores if column[1] != "hit"], ends),
        "",
        "How much better NVCiM-PT on chips is, stream by stream (of an error: how much smaller), and in how many of",
        "the domains of all streams it is:",
        "",
        *_lines(rows, main, ("ahead", "ahead_low", "ahead_high")),
        "",
        "How often a prompt, or text, of the right domain was found:",
        "",
        *_lines(rows, [column for column in scores if column[1] == "hit"], ends),
    ]
    return "\n".join(parts) + "\n"


LOOKS = {
    "no language model": plots.COLOURS[4],
    "the model alone": "0.6",
    "on noisy chips": plots.COLOURS[5],
    "NVCiM-PT on noisy chips": plots.COLOURS[0],
}


def _look(row: Record) -> str:
    """Return which kind of row it is."""
    if row["method"] == "frozen":
        return "the model alone"
    if row["device"] == "none":
        return "no language model"
    return "NVCiM-PT on noisy chips" if row["method"] == "NVCiM-PT" else "on noisy chips"


def figure(rows: Sequence[Record]) -> Any:
    """Draw the main score of every task, a panel each: floors, the model alone, and methods on chips."""
    names = [task for task in MAIN if any(row["task"] == task for row in rows)]
    with plots.style():
        drawn = Figure(figsize=(1.0 + 1.6 * len(names), 2.9), dpi=300, layout="constrained")
        for column, task in enumerate(names):
            own = [
                row for row in rows if (row["task"], row["score"]) == (task, MAIN[task]) and row["device"] != "exact"
            ]
            own.sort(key=lambda row: list(LOOKS).index(_look(row)) if row["device"] == "none" else len(LOOKS))
            axes = drawn.add_subplot(1, len(names), column + 1)
            for i, row in enumerate(own):
                low, high = (row["mean"] if row[end] is None else row[end] for end in ("low", "high"))
                axes.barh(i, row["mean"], color=LOOKS[_look(row)], height=0.7)
                axes.plot([low, high], [i, i], "-", color="0.3", linewidth=0.8)
            axes.set_yticks(range(len(own)), [row["method"] for row in own], fontsize=5)
            axes.invert_yaxis()
            better = "\n(less is better)" if MAIN[task] == "mae" else ""
            axes.set_xlabel(tasks.METRICS[MAIN[task]] + better)
            axes.set_title(f"{task} ({own[0]['streams']})")
            axes.set_xlim(left=0.0)
            axes.grid(False, axis="y")
        shown = [Patch(color=colour, label=name) for name, colour in LOOKS.items()]
        drawn.legend(handles=shown, loc="outside lower center", ncols=len(shown))
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what a folder holds."""
    parser = argparse.ArgumentParser(description="Draw the five kinds of tasks.")
    parser.add_argument("folder", type=Path, help="folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    rows = summarise(read(folder))
    files.write(folder / "five_tasks.png", plots.png(figure(rows)))
    files.write(folder / "table.md", table(rows))
    print(f"Written: {folder / 'five_tasks.png'}, {folder / 'table.md'}")


if __name__ == "__main__":
    main()
