"""Draw the main table, from saved records only.

Command:  python -m experiments.2_nvm_table.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   nvm_table.png and table.md in FOLDER.
"""

from typing import Any

from experiments.shift.draw import levels_of, main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def bars(records: list[Record], rows: list[Record]) -> Any:
    """Draw the accuracy of every method on every device, with baselines that need none."""
    del records
    levels = levels_of(rows, ("frozen", "latest", "1-NN text"))
    return plots.accuracy_bars(of_device(rows), levels=levels, ylabel="accuracy over all domains")


FIGURES = {"nvm_table": bars}


if __name__ == "__main__":
    main(FIGURES)
