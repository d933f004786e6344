"""Draw accuracies by the noise of training, from saved records only.

Command:  python -m experiments.7_noise_laws.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   noise_laws.png and table.md in FOLDER.
"""

from typing import Any

from experiments.shift.draw import main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def bars(records: list[Record], rows: list[Record]) -> Any:
    """Draw the accuracy behind the right prompt and behind the one found, with and without noise on the chip."""
    del records
    named = [row | {"bar": f"{row['method']}, σ = {row['sigma']:g}"} for row in of_device(rows)]
    return plots.accuracy_bars(named, group="variant", by="bar", ylabel="accuracy over all domains")


FIGURES = {"noise_laws": bars}


if __name__ == "__main__":
    main(FIGURES, columns=("accuracy", "hit", "gap", "difference", "loss"))
