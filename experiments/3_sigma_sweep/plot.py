"""Draw accuracy against programming noise, from saved records only.

Command:  python -m experiments.3_sigma_sweep.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   sigma_sweep.png (prompts that are bounded), sigma_free.png, one_prompt.png and table.md in FOLDER.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from experiments.shift.draw import main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def curves(records: list[Record], rows: list[Record], kinds: Mapping[str, str]) -> Any:
    """Draw the mean accuracy of every method with the band of its interval."""
    del records
    own = [row for row in of_device(rows) if row["variant"] in kinds]
    named = [row | {"method": row["method"] + kinds[row["variant"]]} for row in own]
    return plots.accuracy_curves(named, ylabel="accuracy over all domains") if named else None


FIGURES = {
    "sigma_sweep": partial(curves, kinds={"bounded": ""}),
    "sigma_free": partial(curves, kinds={"free": ""}),
    "one_prompt": partial(curves, kinds={"one-prompt": ""}),
}


if __name__ == "__main__":
    main(FIGURES, columns=("accuracy", "hit", "gap", "difference", "loss"))
