"""Draw accuracy against memory of every method of fine-tuning, and write the table, from saved records only.

Command:  python -m experiments.11_memory_and_accuracy.plot FOLDER   (in the root of the repository)
Time:     2 s.
Expect:   memory_and_accuracy.png and table.md in FOLDER.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["figure", "main", "rows", "table"]

Records = list[dict[str, Any]]
MEASURES = {"accuracy": "clinc5", "exact": "snips_slots", "slot_f1": "snips_slots", "perplexity": "wikitext2"}


def rows(records: Records, costs: Records) -> Records:
    """Return one row for each method: means over tasks of a kind and seeds, beside what it costs."""
    found = []
    of_method = {row["method"]: row for row in costs}
    for name in dict.fromkeys(record["method"] for record in records):
        row: dict[str, Any] = {"method": name}
        for measure, task in MEASURES.items():
            own = [r for r in records if r["method"] == name and r["task"].startswith(task) and measure in r]
            values = [r["nats"] if measure == "perplexity" else r[measure] for r in own]
            mean = float(np.mean(values)) if values else None
            row[measure] = float(np.exp(mean)) if measure == "perplexity" and mean is not None else mean
        cost = of_method.get(name, {})
        found.append(row | {part: cost.get(part) for part in ("stored_values", "temporaries", "seconds_a_step")})
    return found


def table(found: Records) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| method | stored | temporaries, MB | s a step | accuracy, clinc5 | exact, snips | slot F1 | perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for row in found:
        peak = None if row["temporaries"] is None else row["temporaries"] / 1e6
        cells = (
            row["method"],
            shown(row["stored_values"], ",d"),
            shown(peak, ".1f"),
            shown(row["seconds_a_step"], ".3g"),
            *(shown(row[name], ".2f") for name in ("accuracy", "exact", "slot_f1")),
            shown(row["perplexity"], ".1f"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(found: Records) -> Any:
    """Draw what each method is good for against its temporaries and against what it stores."""
    from matplotlib.figure import Figure

    points = [row for row in found if row["temporaries"]]
    alone = next((row for row in found if not row["temporaries"]), None)
    with plots.style():
        page = Figure(figsize=(6.9, 3.1), dpi=300, layout="constrained")
        left, right = page.subplots(1, 2, sharey=True)
        for i, row in enumerate(points):
            if row["accuracy"] is None:
                continue
            style: Any = {
                "color": plots.COLOURS[i % len(plots.COLOURS)],
                "marker": plots.MARKERS[i // len(plots.COLOURS)],
                "linestyle": "none",
                "markersize": 5.0,
            }
            left.plot(row["temporaries"] / 1e6, row["accuracy"], label=row["method"], **style)
            right.plot(row["stored_values"], row["accuracy"], **style)
        for axes, xlabel in ((left, "temporaries of an update (MB)"), (right, "stored values")):
            axes.set(xscale="log", xlabel=xlabel)
            if alone is not None and alone["accuracy"] is not None:
                axes.axhline(alone["accuracy"], color="0.4", linestyle=":", linewidth=0.8)
        left.set_ylabel("accuracy, clinc5\n(dotted: the model alone)")
        page.legend(loc="outside lower center", ncols=5)
    return page


def main(arguments: list[str] | None = None) -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description="Draw methods of fine-tuning.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    options = parser.parse_args(arguments)
    found = rows(read(options.folder), read(options.folder, "costs"))
    print(files.write(options.folder / "memory_and_accuracy.png", plots.png(figure(found))))
    print(files.write(options.folder / "table.md", table(found)))


if __name__ == "__main__":
    main()
