"""Draw accuracy against the size of a buffer, from saved records only.

Command:  python -m experiments.5_buffer_size.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   buffer_size.png and table.md in FOLDER.
"""

from typing import Any

from experiments.shift.draw import main
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def curves(records: list[Record], rows: list[Record]) -> Any:
    """Draw the mean accuracy of every method with the band of its interval."""
    del records
    sized = [row | {"buffer": int(row["variant"].removeprefix("buffer-"))} for row in rows]
    return plots.accuracy_curves(sized, x="buffer", xlabel="records of a buffer", ylabel="accuracy over all domains")


FIGURES = {"buffer_size": curves}


if __name__ == "__main__":
    main(FIGURES)
