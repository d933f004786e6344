"""Draw the accuracy of each kind of adapter in exact and in noisy memory, from saved records only.

Command:  python -m experiments.9_what_to_store.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   what_to_store.png and table.md in FOLDER.
"""

from typing import Any

import numpy as np

from experiments.shift.draw import main
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


@plots.style()
def bars(records: list[Record], rows: list[Record]) -> Any:
    """Draw the mean accuracy of every kind, a bar for each method, with its interval."""
    kinds = list(dict.fromkeys(row["variant"] for row in rows))
    stored = [row for row in rows if row["cells"] is not None]
    names = list(dict.fromkeys((row["device"], row["method"]) for row in stored))
    width = 0.8 / max(len(names), 1)
    figure, axes = plots.new_figure(width_in=7.0, height_in=3.2)
    for i, (device, method) in enumerate(names):
        own = {row["variant"]: row for row in stored if (row["device"], row["method"]) == (device, method)}
        place = [k + (i - (len(names) - 1) / 2) * width for k in range(len(kinds)) if kinds[k] in own]
        mean = np.array([own[kind]["accuracy"] for kind in kinds if kind in own])
        ends = [[own[kind][f"accuracy_{end}"] for kind in kinds if kind in own] for end in ("low", "high")]
        errors = None if any(v is None for end in ends for v in end) else np.abs(np.array(ends) - mean)
        shade: Any = {"color": plots.COLOURS[[m for _, m in names].index(method) % len(plots.COLOURS)]}
        exact = device == "digital"
        axes.bar(
            place,
            mean,
            0.9 * width,
            yerr=errors,
            alpha=0.4 if exact else 1.0,
            **shade,
            error_kw={"linewidth": 0.7},
            label=f"{method}, {'exact memory' if exact else device}",
        )
    levels = {row["method"]: row["accuracy"] for row in rows if row["cells"] is None}
    for (name, level), line in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="0.3", linestyle=line, linewidth=0.8, label=name)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="accuracy over all domains", ylim=(0.0, 1.0))
    axes.grid(axis="x", visible=False)
    chips = len({record["instance"] for record in records if record["device"] != "digital"})
    streams = len({record["stream"] for record in records})
    axes.set_title(f"{streams} streams, {chips} chips, 95 % intervals over streams; equally many stored values")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


FIGURES = {"what_to_store": bars}


if __name__ == "__main__":
    main(FIGURES)
