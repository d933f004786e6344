"""Draw the matrices R[t, i], from saved records only.

Command:  python -m experiments.4_domain_shift.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   domain_shift_block.png, domain_shift_return.png and table.md in FOLDER.
"""

from functools import partial
from typing import Any

from experiments.shift.draw import main
from nvcim_jax import plots, study

__all__ = ["FIGURES"]

Record = dict[str, Any]


METHODS = {
    "latest": "one prompt, latest buffer",
    "sequential": "one prompt, sequentially",
    "joint": "one prompt, jointly",
    "NVCiM-PT": "routed prompts on noisy chips",
}


def matrices(records: list[Record], rows: list[Record], kind: str) -> Any:
    """Draw R[t, i] of each method that was measured on one kind of stream."""
    del rows
    own = [record for record in records if record["kind"] == kind]
    measured = {record["method"] for record in own}
    panels = [plots.Panel(title, *study.shift_matrix(own, name)) for name, title in METHODS.items() if name in measured]
    if not panels:
        return None
    noisy = [record for record in own if record["device"] != "digital"]
    streams, chips = (len({record[name] for record in rows}) for name, rows in (("stream", own), ("instance", noisy)))
    places = ", ".join(dict.fromkeys(f"{record['device']} at σ = {record['sigma']:g}" for record in noisy))
    figure = plots.shift_heatmaps(panels)
    figure.suptitle(f"means over {streams} streams; routed prompts on {chips} chips of {places}", fontsize=6.5)
    return figure


FIGURES = {f"domain_shift_{kind}": partial(matrices, kind=kind) for kind in ("block", "return")}


if __name__ == "__main__":
    main(FIGURES, columns=("accuracy", "hit", "gap", "forgetting", "previously_seen"))
