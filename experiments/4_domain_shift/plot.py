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
    return plots.shift_heatmaps(panels) if panels else None


FIGURES = {f"domain_shift_{kind}": partial(matrices, kind=kind) for kind in ("block", "return")}


if __name__ == "__main__":
    main(FIGURES, columns=("accuracy", "hit", "gap", "forgetting", "previously_seen"))
