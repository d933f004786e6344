"""Accuracy of prompts against the learning rate, one panel a bound: trained and read with and without noise.

Command:  python -m experiments.presets.plot FOLDER   (in the root of the repository, after run.py)
Expect:   one PNG for each grid of the folder.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nvcim_jax import checks, files, plots

__all__ = ["figure", "main"]

Record = dict[str, Any]


def figure(records: Sequence[Record], title: str) -> Any:
    """Draw one grid; exact memory is dashed and hollow, FeFET3 at sigma 0.1 solid."""
    bounds = sorted({r["bound"] for r in records}, key=lambda bound: bound or float("inf"))
    kinds = sorted({(r["start"], r["noise"]) for r in records})
    with plots.style():
        drawn = Figure(figsize=(2.2 * len(bounds) + 1.0, 3.2), dpi=200, layout="constrained")
        first = None
        for column, bound in enumerate(bounds):
            axes = first = drawn.add_subplot(1, len(bounds), column + 1, sharey=first)
            for i, (start, noise) in enumerate(kinds):
                own = sorted(
                    (r for r in records if (r["bound"], r["start"], r["noise"]) == (bound, start, noise)),
                    key=lambda r: r["rate"],
                )
                rates, how = [r["rate"] for r in own], "noise-aware" if noise else "plain"
                look: Any = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
                name = f"{how}, start from {start}" if column == 0 else None
                axes.plot(rates, [r["noisy"] for r in own], "-", label=name, **look)
                axes.plot(rates, [r["exact"] for r in own], ":", markerfacecolor="none", **look)
            rates = sorted({r["rate"] for r in records})
            axes.set(xscale="log", xlabel="learning rate", ylim=(0.0, 1.0))
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
            axes.set_title("no bound" if bound is None else f"entries up to {bound:g}")
            if column == 0:
                axes.set_ylabel("accuracy in the own domain")
            else:
                axes.tick_params(labelleft=False)
        drawn.suptitle(f"{title}: on FeFET3 at sigma 0.1 (solid), in exact memory (dotted)")
        drawn.legend(loc="outside lower center", ncols=2)
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw every grid of a folder."""
    parser = argparse.ArgumentParser(description="Draw the candidates of presets.")
    parser.add_argument("folder", type=Path, help="folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    path = checks.file("folder", folder / "presets.json")
    grids = json.loads(path.read_text(encoding="utf-8"))["grids"]
    written = [files.write(folder / f"{name}.png", plots.png(figure(rows, name))) for name, rows in grids.items()]
    print("Written:", *written, sep="\n  ")


if __name__ == "__main__":
    main()
