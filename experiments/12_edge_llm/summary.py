"""What the records of the part `tuning` say: tables, differences to LoRA with intervals, speed at that accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import lines

__all__ = ["best", "compare", "main_reads", "speeds", "summarise", "table", "within"]

Record = dict[str, Any]
MEASURES = {"clinc5": "hits", "snips_slots": "exact", "wikitext2": "losses"}
"""Task -> what is compared, text by text."""


def main_reads(names: Sequence[str]) -> list[str]:
    """Return the ways to read that rates are chosen for: votes of all exits, and the last exit alone."""
    votes = [n for n in names if n in ("max", "mean")] or [n for n in names if not n.startswith("exit")]
    return votes + [n for n in names if n.startswith("exit")][-1:]


def best(rates: Sequence[Record]) -> dict[str, dict[int, dict[str, float]]]:
    """Return the rate with the lowest loss: method -> updates of a window -> way to read -> rate."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for method, stop in dict.fromkeys((r["method"], r["stop"]) for r in rates):
        own = [r for r in rates if (r["method"], r["stop"]) == (method, stop)]
        tried = sorted({r["rate"] for r in own})
        for name in main_reads(list(own[0]["reads"])):
            means = [float(np.mean([r["reads"][name] for r in own if r["rate"] == rate])) for rate in tried]
            means = [value if np.isfinite(value) else np.inf for value in means]
            found.setdefault(method, {}).setdefault(stop, {})[name] = tried[int(np.argmin(means))]
    return found


def _values(row: Record, measure: str) -> np.ndarray:
    """Return one number a text; a loss counts as a gain when it falls."""
    return -np.array(row["losses"]) if measure == "losses" else np.array([int(one) for one in row[measure]], float)


def compare(found: np.ndarray, base: np.ndarray, num: int = 5_000) -> list[float]:
    """Return the mean of paired differences and its 95 % interval: users drawn again, and texts of each.

    Args:
        found: Numbers of texts (users, texts).
        base: The same of what they are held against.
        num: Draws.

    Example:
        >>> compare(np.ones((2, 3)), np.zeros((2, 3)))
        [1.0, 1.0, 1.0]
    """
    rng, own = np.random.default_rng(0), found - base
    who = rng.integers(0, len(own), (num, len(own)))
    means = np.array([own[u[:, None], rng.integers(0, own.shape[1], (len(u), own.shape[1]))].mean() for u in who])
    return [round(float(v), 5) for v in (own.mean(), *np.quantile(means, [0.025, 0.975]))]


def _voters(name: str, exits: int) -> int:
    return 1 if name.startswith("exit") else 2 if name.endswith("of the upper two") else exits


def _rows(task: str, model: str, records: Sequence[Record], chosen: Any, base: dict[str, Record]) -> list[Record]:
    """Return one row for each method, number of updates and way to read."""
    rows, measure = [], MEASURES[task]
    for method, stop in dict.fromkeys((r["method"], r["stop"]) for r in records):
        own = [r for r in records if (r["method"], r["stop"]) == (method, stop)]
        names = list(own[0]["reads"])
        exits = sum(name.startswith("exit") for name in names)
        rates = chosen.get(method, {}).get(stop, {})
        for name in names:
            rate = rates.get(name, rates.get("mean", next(iter(rates.values()), own[0]["rate"])))
            mine = {r["user"]: r["reads"][name] for r in own if r["rate"] == rate}
            every = next(r.get("every", 1) for r in own if r["rate"] == rate)
            mine = {user: numbers for user, numbers in mine.items() if user in base} or mine
            row: Record = {"task": task, "model": model, "method": method, "read": name, "stop": stop, "rate": rate}
            row |= {"updates": stop * _voters(name, exits), "users": len(mine)}
            row["loss"] = round(float(np.mean([r["loss"] for r in mine.values()])), 4)
            for number in ("hits", "exact"):
                if number in next(iter(mine.values())):
                    row[number] = round(float(np.mean([_values(r, number).mean() for r in mine.values()])), 4)
            if measure == "losses":
                row["perplexity"] = round(float(np.exp(-np.mean([_values(r, measure) for r in mine.values()]))), 3)
            both = [user for user in mine if user in base]
            if both:  # each may hold each second text alone
                found = ((_values(mine[u], measure), every, _values(base[u], measure), base[u]["every"]) for u in both)
                pairs = [(own[:: max(m, n) // m], held[:: max(m, n) // n]) for own, m, held, n in found]
                own_values, base_values = (np.stack(part) for part in zip(*pairs, strict=True))
                row["over_lora"] = compare(own_values, base_values)
            rows.append(row)
    return rows


def summarise(folder: Path, steps: int) -> Record:
    """Return all rows of a folder of records; differences are to LoRA of the model as it is, after N updates.

    Args:
        folder: What `tuning` has written.
        steps: N.
    """
    found: Record = {"steps": steps, "rates": {}, "rows": [], "writing": []}
    for path in sorted(folder.glob("quality.*.jsonl")):
        task = path.name.split(".")[1]
        records = lines(path)
        chosen = best(lines(folder / f"rates.{task}.jsonl"))
        found["rates"][task] = chosen
        alone = lines(folder / f"quality.{task}.as_it_is.jsonl")
        held = [r for r in alone if (r["method"], r["stop"]) == ("lora", steps)]
        rate = chosen.get("lora", {}).get(steps, {}).get("exit 0", held[0]["rate"] if held else None)
        base = {r["user"]: r["reads"]["exit 0"] | {"every": r.get("every", 1)} for r in held if r["rate"] == rate}
        found["rows"] += _rows(task, records[0]["model"], records, chosen, base)
    for path in sorted(folder.glob("writing.*.jsonl")):
        task, records = path.name.split(".")[1], lines(path)
        found["writing"] += _writing(task, records[0]["model"], records, found["rates"].get(task, {}))
    return found


def _writing(task: str, model: str, records: Sequence[Record], chosen: Any) -> list[Record]:
    rows = []
    for method, stop in dict.fromkeys((r["method"], r["stop"]) for r in records):
        own = [r for r in records if (r["method"], r["stop"]) == (method, stop)]
        for name in own[0]["reads"]:
            rate = chosen.get(method, {}).get(stop, {}).get(name, own[0]["rate"])
            mine = [r["reads"][name] for r in own if r["rate"] == rate]
            means = {n: round(float(np.mean([r[n] for r in mine])), 4) for n in ("exact", "slot_f1")}
            about = {"task": task, "model": model, "method": method, "read": name, "stop": stop, "users": len(mine)}
            rows.append(about | means)
    return rows


def _variant(row: Record) -> str | None:
    """Return under which name the time of an update was taken, with stored streams; None where it was not."""
    small = row["model"] != "as it is"
    size = dict.fromkeys(("two windows", "last of two"), "windows of 15, stored")
    size |= dict.fromkeys(("three windows", "last of three"), "windows of 10, stored")
    if row["method"] == "lora":
        return "lora, 4 bits" if small else "lora"
    if row["method"] in size:
        return None if small else size[row["method"]]
    return "windows, stored, 4 bits" if small else "windows, stored"


def speeds(rows: Sequence[Record], costs: Record, steps: int) -> list[Record]:
    """Add how many times as fast as N updates of LoRA each row was tuned: median over rounds, the least, the most.

    `faster` is in time of processors, which other processes change less than that of the clock. A window's updates are
    those with stored streams, and once the streams of all of a user's texts.

    Args:
        rows: From `summarise`.
        costs: What the part `cost` has written.
        steps: N.
    """
    variants, added = costs["variants"], []

    def ratios(row: Record, name: str, clock: str) -> list[float]:
        below = 0.0 if row["method"] == "lora" else np.array(costs["stream"][clock])
        taken = row["updates"] * np.array(variants[name][clock]) + below
        ratio = steps * np.array(variants["lora"][clock]) / taken
        return [round(float(v), 3) for v in (np.median(ratio), ratio.min(), ratio.max())]

    for row in rows:
        name = _variant(row)
        if name is None or name not in variants or not row["updates"]:
            continue
        found = {"faster": ratios(row, name, "processor_seconds"), "by_the_clock": ratios(row, name, "seconds")}
        added.append(row | found | {"smaller": round(variants[name]["memory_of_lora_over_it"], 3)})
    return added


def within(rows: Sequence[Record], margin: float = 0.01) -> list[Record]:
    """Return the fastest row of each task and model that reaches LoRA less a margin: by its mean, and by its interval.

    Args:
        rows: From `speeds`.
        margin: How much less counts as equal: a point, or a hundredth of a nat.

    Returns:
        Rows (`found` says by which), the LoRA of fewer updates among them.
    """
    found = []
    for task, model in dict.fromkeys((r["task"], r["model"]) for r in rows):
        for full in (True, False):
            own = [r for r in rows if (r["task"], r["model"]) == (task, model) and "over_lora" in r]
            own = [r for r in own if (r["method"] == "lora") == full]
            for name, number in (("mean", 0), ("interval", 1)):
                good = [r for r in own if r["over_lora"][number] >= -margin]
                if good:
                    found.append(max(good, key=lambda r: r["faster"][0]) | {"found": name})
    return found


def table(rows: Sequence[Record]) -> str:
    """Return rows as Markdown by the shape of Edge-LLM's table 1: method, memory, time, and what was reached.

    Args:
        rows: From `speeds`.
    """
    lines = [
        "| task | model | method | read | updates | times less memory | times as fast | reached | over LoRA |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["hits"] if "hits" in row else row.get("exact", 0.0)
        value = f"{row['perplexity']:.2f}" if "perplexity" in row else f"{100 * share:.1f} %"
        scale = 1.0 if "perplexity" in row else 100.0
        over = "{:+.3g} [{:+.3g}, {:+.3g}]".format(*(scale * v for v in row["over_lora"])) if "over_lora" in row else ""
        cells = [row["task"], row["model"], row["method"], row["read"], str(row["updates"])]
        cells += [f"{row['smaller']:.2f}", f"{row['faster'][0]:.2f}", value, over]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
