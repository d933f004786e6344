"""Draw the perplexity of a language model in noisy memory, from saved records only.

Command:  python -m experiments.8_model_on_chips.plot FOLDER   (in the root of the repository)
Time:     3 s.
Expect:   model_on_chips.png in FOLDER: against noise, against time, and with parts of the model on chips alone.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["figure", "main", "read"]

Records = list[dict[str, Any]]


def _perplexity(rows: Records) -> tuple[np.ndarray, np.ndarray]:
    """Return exp of the mean loss, and how far its interval reaches down and up (2, points)."""
    mean, low, high = (np.exp([row[name] for row in rows]) for name in ("nats", "low", "high"))
    return mean, np.stack([mean - low, high - mean])


def _line(axes: Any, x: list[float], rows: Records, number: int, label: str, **style: Any) -> None:
    mean, errors = _perplexity(rows)
    look = {"color": plots.COLOURS[number], "marker": plots.MARKERS[number], "capsize": 1.5} | style
    axes.errorbar(x, mean, errors, label=label, **look)


def _against_sigma(axes: Any, records: Records) -> None:
    swept = [row for row in records if row["part"] == "sigma"]
    usual = swept[0]["tokens"]
    names = list(dict.fromkeys((row["device"], row["tokens"]) for row in swept))
    for number, (device, tokens) in enumerate(names):
        rows = [row for row in swept if (row["device"], row["tokens"]) == (device, tokens)]
        label = device if tokens == usual else f"{device}, {tokens} tokens"
        _line(axes, [row["sigma"] for row in rows], rows, number, label)
        axes.axhline(np.exp(rows[0]["clean"]), color="0.5", linewidth=0.6, linestyle=":")
    rows = [row for row in records if row["part"] == "sampling"]
    if rows:
        label = f"{rows[0]['device']}, outputs drawn"
        _line(
            axes, [r["sigma"] for r in rows], rows, 0, label, linestyle="none", markerfacecolor="none", markersize=6.0
        )
    axes.set(xscale="log", yscale="log", xlabel="programming noise σ (share of full scale)", ylabel="perplexity")
    ticks = sorted({row["sigma"] for row in swept})
    axes.set_xticks(ticks, [f"{100 * sigma:g} %" for sigma in ticks])
    axes.minorticks_off()


def _against_time(axes: Any, records: Records) -> None:
    measured = [row for row in records if row["part"] == "measured"]
    times = {"1s": 1.0, "1d": 86400.0, "2d": 172800.0}
    lines: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for row in measured:
        name, _, day = row["device"].partition("-")
        label = f"{name}, {row['sigma']:g} of its noise" + (", compensated" if row["compensated"] else "")
        lines.setdefault(label, []).append((times[day] if row["t_s"] is None else row["t_s"], row))
    for number, (label, found) in enumerate(lines.items()):
        _line(axes, [t for t, _ in found], [row for _, row in found], number, label)
    if measured:
        axes.axhline(np.exp(measured[0]["clean"]), color="0.5", linewidth=0.6, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="time since programming (s)", ylabel="perplexity")


def _bars(axes: Any, rows: Records, labels: list[str], xlabel: str) -> None:
    mean, errors = _perplexity(rows)
    clean = np.exp(rows[0]["clean"]) if rows else 1.0
    more = 100.0 * (mean / clean - 1.0)
    axes.bar(range(len(rows)), more, yerr=100.0 * errors / clean, color=plots.COLOURS[0], width=0.7, capsize=2)
    axes.set_xticks(range(len(rows)), labels)
    axes.set(xlabel=xlabel, ylabel="more perplexity (%)")
    axes.grid(axis="x", visible=False)


def figure(records: Records) -> Any:
    """Draw all four panels."""
    from matplotlib.figure import Figure

    with plots.style():
        page = Figure(figsize=(6.9, 5.2), dpi=300, layout="constrained")
        panels = page.subplots(2, 2)
        _against_sigma(panels[0, 0], records)
        _against_time(panels[0, 1], records)
        where = [row for row in records if row["part"] == "where"]
        kinds = [row for row in where if row["blocks"] is None]
        groups = [row for row in where if row["blocks"] is not None]
        _bars(panels[1, 0], kinds, [row["kinds"][0] for row in kinds], "the only matrices on chips")
        names = [f"{row['blocks'][0] + 1}-{row['blocks'][1]}" for row in groups]
        _bars(panels[1, 1], groups, names, "the only blocks on chips")
        if where:
            at = f"{where[0]['device']}, σ = {where[0]['sigma']:g}"
            for axes in panels[1]:
                axes.set_title(at)
        chips = len(records[0]["values"])
        panels[0, 0].set_title(f"{chips} chips a point, 95 % intervals")
        panels[0, 1].set_title("dotted: digital")
        for axes in panels[0]:
            axes.legend(loc="best")
    return page


def main(arguments: list[str] | None = None) -> None:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description="Draw a language model in noisy memory.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    options = parser.parse_args(arguments)
    print(files.write(options.folder / "model_on_chips.png", plots.png(figure(read(options.folder)))))


if __name__ == "__main__":
    main()
