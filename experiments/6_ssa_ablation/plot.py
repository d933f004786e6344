"""Draw hit rates of keys and searches, and count their cells, from saved records only.

Command:  python -m experiments.6_ssa_ablation.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   ssa_keys.png and ssa_search.png, each where it was measured, and table.md (with the cells of a full store)
          in FOLDER.
"""

from typing import Any

from experiments.shift.draw import main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def keys(records: list[Record], rows: list[Record]) -> Any:
    """Draw the hit rate of each kind of key, with each measure."""
    del records
    own = [row for row in of_device(rows) if row["variant"].startswith("key-")]
    if not own:
        return None
    cut = {"variant": "key-", "method": "noise-aware, "}
    named = [row | {name: row[name].removeprefix(start) for name, start in cut.items()} for row in own]
    return plots.accuracy_bars(named, group="variant", value="hit", ylabel="own domain found (hit@1)")


def searches(records: list[Record], rows: list[Record]) -> Any:
    """Draw the hit rate of each way of the search, on chips and in exact memory."""
    del records
    own = [row for row in rows if row["variant"] == "search"]
    if not own:
        return None
    named = [row | {"device": f"{row['device']}, σ = {row['sigma']:g}"} for row in own]
    return plots.accuracy_bars(named, group="device", value="hit", ylabel="own domain found (hit@1)")


FIGURES = {"ssa_keys": keys, "ssa_search": searches}


if __name__ == "__main__":
    main(FIGURES, columns=("hit", "accuracy", "cells"))
