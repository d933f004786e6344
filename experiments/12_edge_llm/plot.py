"""Draw the figures of saved records, part by part.

Command:  python -m experiments.12_edge_llm.plot FOLDER   (in the root of the repository)
Time:     3 s.
Expect:   luc/sensitivity.png, luc/perplexity.png, tuning/quality.png, tuning/table.md and cost/cost.png beside the
          records that `run.py` has written; a part that is not there is left out.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import lines
from nvcim_jax import checks, files, plots

__all__ = ["FIGURES", "main"]

Records = list[dict[str, Any]]


def sensitivity(folder: Path) -> Any:
    """Draw both sensitivities of each block, one panel a model: the middle draw, and the spread over draws."""
    records = lines(folder / "sensitivity.jsonl")
    chosen = sorted({r["bits"] for r in records})[len({r["bits"] for r in records}) // 2]
    models = list(dict.fromkeys(r["model"] for r in records))
    with plots.style():
        figure, first = plots.new_figure(3.35 * max(len(models), 1), 2.6)
        first.remove()
        for column, model in enumerate(models):
            axes = figure.add_subplot(1, len(models), column + 1)
            own = [r for r in records if (r["model"], r["bits"]) == (model, chosen)]
            for i, part in enumerate(("quantisation", "pruning")):
                values = np.array([r[part] for r in own])
                label = (
                    f"{chosen} bits" if part == "quantisation" else f"{100 * own[0]['pruned']:.0f} % of weights at 0"
                )
                at = np.arange(values.shape[1])
                axes.plot(at, values.mean(0), plots.MARKERS[i] + "-", color=plots.COLOURS[i], label=label)
                axes.fill_between(at, values.min(0), values.max(0), color=plots.COLOURS[i], alpha=0.3, linewidth=0)
                axes.axhline(values.mean(), color=plots.COLOURS[i], linestyle=":", linewidth=0.7)
            axes.set(yscale="log", xlabel="block", title=model)
            axes.xaxis.get_major_locator().set_params(integer=True)
            if column == 0:
                axes.set_ylabel("mean squared error\nof the block's output")
                figure.legend(loc="outside lower center", ncols=2)
    return figure


def perplexity(folder: Path) -> Any:
    """Draw the perplexity of each policy, for each B, with intervals over windows and the model as it is."""
    luc = importlib.import_module("experiments.12_edge_llm.luc")
    rows = luc.summarise(lines(folder / "perplexity.jsonl"))
    base = next(row for row in rows if row["policy"] == "as it is")["perplexity"][0]
    mine = [r for r in rows if (r["pruner"], r["quantiser"], r["activations"]) == ("sparsegpt", "absmax", False)]
    bits = sorted({r["bits"] for r in mine}, reverse=True)
    with plots.style():
        figure, axes = plots.new_figure(3.35, 2.6)
        for i, policy in enumerate((*luc.POLICIES, luc.LAST, luc.RELATIVE)):
            own = [r for r in mine if r["policy"] == policy]
            at = [bits.index(r["bits"]) + 0.09 * (i - 2.5) for r in own]
            value, low, high = np.array([r["perplexity"] for r in own]).T
            style: Any = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i], "linestyle": "none"}
            axes.errorbar(at, value, [value - low, high - value], linewidth=0.8, label=policy, **style)
        axes.axhline(base, color="0.4", linestyle=":", linewidth=0.8)
        axes.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
        axes.set(yscale="log", ylabel="perplexity", xlim=(-0.5, len(bits) - 0.5))
        figure.legend(loc="outside lower center", ncols=2)
    return figure


plot_tuning: Any = importlib.import_module("experiments.12_edge_llm.plot_tuning")

FIGURES: dict[str, dict[str, Callable[[Path], Any]]] = {
    "luc": {"sensitivity": sensitivity, "perplexity": perplexity},
    "cost": plot_tuning.COST,
    "tuning": plot_tuning.TUNING,
}
"""Part -> name of a figure -> what draws it from the folder of the part."""


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw saved records.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    parts = [name for name in FIGURES if (folder / name).is_dir()]
    if not parts:
        checks.fail("folder", f"hold a part: {', '.join(FIGURES)}", f"{folder} does not", "Run run.py first.")
    for part in parts:
        for name, draw in FIGURES[part].items():
            print(f"written to {files.write(folder / part / f'{name}.png', plots.png(draw(folder / part)))}")


if __name__ == "__main__":
    main()
