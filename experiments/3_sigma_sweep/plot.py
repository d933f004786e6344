"""Draw accuracy against programming noise, from saved records only.

Command:  python -m experiments.3_sigma_sweep.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   sigma_sweep.png and table.md in FOLDER.
"""

from typing import Any

from experiments.shift.draw import main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def curves(records: list[Record], rows: list[Record]) -> Any:
    """Draw the mean accuracy of every method with the band of its interval."""
    del records
    kinds = {"bounded": "", "free": ", no bound", "free-long": ", no bound, 160 updates"}
    named = [row | {"method": row["method"] + kinds[row["variant"]]} for row in of_device(rows)]
    return plots.accuracy_curves(named, ylabel="accuracy over all domains")


FIGURES = {"sigma_sweep": curves}


if __name__ == "__main__":
    main(FIGURES)
