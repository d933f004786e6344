"""Draw the figures of saved records: costs against the store, items, what is worth its cost, and SmolLM2 on chips.

Command:  python -m experiments.13_cost.plot FOLDER   (in the root of the repository)
Time:     4 s.
Expect:   latency.png, energy.png, sensitivities_*.png, items.png, adapters.png, space_energy.png, space_latency.png and
          model.png beside the records that `run.py` has written.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import read
from nvcim_jax import files, plots

__all__ = ["main"]

Records = list[dict[str, Any]]
OPTIONS = ("rows", "slices", "dac_bits_per_cycle", "weight_bits", "cell_bits", "adc_bits", "columns_per_adc")
NAMES = {
    "weight_bits": "{}-bit weights",
    "cell_bits": "{}-bit cells",
    "columns_per_adc": "{} to a converter",
}


def against_the_store(records: Records, quantity: str, names: tuple[str, ...], times: float) -> Any:
    """Draw latency or energy against the number of stored prompts, and the reported multiple of the first chip."""
    factor, unit = {"latency": (1e6, "µs"), "energy": (1e9, "nJ")}[quantity]
    rows = [r for r in records if r["kind"] == "curve" and r["quantity"] == quantity]
    curves = []
    for i, name in enumerate(name for name in names if any(r["of"] == name for r in rows)):
        own = [r for r in rows if r["of"] == name]
        x = np.array([r["stored"] for r in own], float)
        value, low, high = (factor * np.array([r[part] for r in own]) for part in ("value", "low", "high"))
        curves.append(plots.CostCurve(name, x, value, low, high))
        if i == 0:
            curves.append(plots.CostCurve(f"{times:g} x {name}", x, times * value, low, high, dashed=True))
    return plots.cost_curves(curves, xlabel="stored prompts", ylabel=f"{quantity} of one search ({unit})")


def sensitivities(records: Records, quantity: str) -> Any:
    """Draw what a ratio rests on, for the first layout, at the middle number of prompts."""
    rows = [r for r in records if r["kind"] == "ratio" and r["quantity"] == quantity]
    chosen = rows[len({r["stored"] for r in rows}) // 2]
    label = f"d log ({quantity} ratio) / d log constant, {chosen['stored']:,} prompts"
    return plots.cost_sensitivities(chosen["sensitivities"], xlabel=label)


def band_of(bands: Records, kind: str, record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the bands of one record."""
    return next(b for b in bands if b["kind"] == kind and all(b[key] == record[key] for key in keys))


def items(records: Records, bands: Records) -> Any:
    """Draw the energy of one search among 1,000 prompts by item; the whole with its band stands in the name."""
    rows = [r for r in records if r["kind"] == "search"]
    bills = {}
    for r in rows:
        whole = sum(r["energy"].values())
        band = band_of(bands, "search", r, ("of", "layout"))
        low, high = 1e9 * band["energy_j_low"], 1e9 * band["energy_j_high"]
        name = f"{r['of']}\n{r['layout']}: {1e9 * whole:,.0f} nJ ({low:,.0f}-{high:,.0f})"
        bills[name] = {k: 100 * v / whole for k, v in r["energy"].items()}
    return plots.cost_bars(bills, xlabel="share of the energy, 1,000 prompts (%)", totals=False)


def adapters(records: Records, bands: Records) -> Any:
    """Draw the energy of writing one adapter and of reading it back."""
    rows = [r for r in records if r["kind"] == "adapter"]
    bills = {}
    for r in rows:
        band = band_of(bands, "adapter", r, ("of", "codec"))
        low, high = 1e6 * band["total_j_low"], 1e6 * band["total_j_high"]
        name = f"{r['of']}, {r['codec']}\n(5-95 %: {low:,.{0 if low > 10 else 1}f}-{high:,.0f})"
        bills[name] = {"write once": 1e6 * r["write_j"], "read back 100 times": 1e8 * r["read_j"]}
    return plots.cost_bars(bills, xlabel="energy of one adapter of SmolLM2-135M (µJ)")


def space(records: Records, bands: Records, cost_name: str, xlabel: str, group: tuple[str, ...]) -> Any:
    """Draw accuracy against a cost, and what nothing else beats."""
    exact, factor = next(r for r in records if r["kind"] == "exact"), {"energy_j": 1e9, "latency_s": 1e6}[cost_name]
    points = [r for r in records if r["kind"] == "point"]
    if cost_name == "energy_j":  # which sharing of converters does not change
        points = [r for r in points if r["columns_per_adc"] == 8]
    groups = []
    for value in sorted({tuple(r[part] for part in group) for r in points}):
        own = [r for r in points if tuple(r[part] for part in group) == value]
        numbers = (np.array([r[part] for r in own], float) for part in (cost_name, "accuracy", "error"))
        cost, accuracy, error = numbers
        found = [band_of(bands, "space", r, OPTIONS) for r in own]
        low, high = (factor * np.array([b[f"{cost_name}_{end}"] for b in found]) for end in ("low", "high"))
        label = ", ".join(NAMES[part].format(n) for part, n in zip(group, value, strict=True))
        groups.append(plots.Frontier(label, factor * cost, 100 * accuracy, 100 * error, low, high))
    floor = (100 * exact["accuracy"], "exact memory")
    return plots.cost_frontier(groups, xlabel=xlabel, ylabel="right searches (%)", floor=floor)


def model(records: Records, bands: Records) -> Any:
    """Draw perplexity against the energy and the area of SmolLM2's blocks, policy by policy."""
    from matplotlib.figure import Figure

    exact = math.exp(next(r for r in records if r["kind"] == "exact")["nats"])
    rows = [r for r in records if r["kind"] == "policy"]
    with plots.style():
        figure = Figure(figsize=(6.7, 2.8), dpi=300, layout="constrained")
        panels = (("block_energy_j", 1e6, "energy of a token in the blocks (µJ)"), ("area_m2", 1e6, "area (mm²)"))
        for column, (part, factor, label) in enumerate(panels):
            axes = figure.add_subplot(1, 2, column + 1)
            for i, kind in enumerate(("uniform", "LUC")):
                own = sorted([r for r in rows if r["policy"].startswith(kind)], key=lambda r: r["mean_bits"])
                x = [factor * r[part] for r in own]
                chips = [math.exp(float(np.mean(r["chip_nats"]))) for r in own]
                look: Any = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
                first = column == 0
                axes.plot(x, chips, "-", label=f"{kind}, on chips" if first else None, **look)
                rounded = [math.exp(r["rounded_nats"]) for r in own]
                name = f"{kind}, without noise" if first else None
                axes.plot(x, rounded, "--", markerfacecolor="none", label=name, **look)
                for r, a, b in zip(own, x, chips, strict=True):
                    spread = [math.exp(nats) for nats in r["chip_nats"]]
                    axes.vlines(a, min(spread), max(spread), color=plots.COLOURS[i], linewidth=0.8)
                    beside = (4, 4) if i == 0 else (5, -8)
                    axes.annotate(r["policy"].split()[1], (a, b), beside, textcoords="offset points", fontsize=6)
            axes.axhline(exact, color="0.5", linestyle=":", linewidth=0.8, label="as it is" if column == 0 else None)
            band = band_of(bands, "model", rows[0], ("policy",))
            low, high = (band[f"{part}_{end}"] / rows[0][part] for end in ("low", "high"))
            axes.set(xlabel=f"{label}; 5-95 %: × {low:.2f} to {high:.2f}", ylabel="perplexity of SmolLM2-135M")
        figure.legend(loc="outside lower center", ncols=5)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Draw saved records.")
    parser.add_argument("folder", type=Path, help="the folder that run.py has written")
    folder = parser.parse_args(arguments).folder
    parts = ("search", "items", "space", "model", "bands")
    found, priced, points, policies, bands = (read(folder, name) for name in parts)
    chips = ("stacked, bit by bit", "sliced, bit by bit", "stacked, 8 bits at once")
    machines = tuple(dict.fromkeys(r["of"] for r in found if r["kind"] == "curve" and r["of"] not in chips))
    figures = {
        "latency": against_the_store(found, "latency", (*chips[:2], *machines[:5]), 120.0),
        "energy": against_the_store(found, "energy", (*chips[:1], chips[2], *machines[:5]), 60.0),
        "sensitivities_latency": sensitivities(found, "latency"),
        "sensitivities_energy": sensitivities(found, "energy"),
        "items": items(priced, bands),
        "adapters": adapters(priced, bands),
        "space_energy": space(points, bands, "energy_j", "energy of one search (nJ)", ("weight_bits", "cell_bits")),
        "space_latency": space(points, bands, "latency_s", "latency of one search (µs)", ("columns_per_adc",)),
        "model": model(policies, bands),
    }
    for name, figure in figures.items():
        print(f"written to {files.write(folder / f'{name}.png', plots.png(figure))}")


if __name__ == "__main__":
    main()
