"""Draw the main table, from saved records only.

Command:  python -m experiments.2_nvm_table.plot FOLDER   (the folder that run.py has written)
Time:     3 s.
Expect:   nvm_table.png (all devices), identity.png (one device, more rows), autoencoder.png, each where it was
          measured, and table.md in FOLDER.
"""

from functools import partial
from typing import Any

from experiments.shift.draw import levels_of, main, of_device
from nvcim_jax import plots

__all__ = ["FIGURES"]

Record = dict[str, Any]


def bars(records: list[Record], rows: list[Record], variants: tuple[str, ...]) -> Any:
    """Draw the accuracy of every method on every device, with baselines that need none."""
    del records
    chosen = [row for row in rows if row["variant"] in variants]
    if not chosen:
        return None
    levels = levels_of(chosen, ("frozen", "latest", "1-NN text"))
    return plots.accuracy_bars(of_device(chosen), levels=levels, ylabel="accuracy over all domains")


FIGURES = {
    "nvm_table": partial(bars, variants=("devices", "table")),
    "identity": partial(bars, variants=("identity", "table")),
    "autoencoder": partial(bars, variants=("autoencoder", "table")),
}


if __name__ == "__main__":
    main(FIGURES)
