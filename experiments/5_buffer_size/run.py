"""Accuracy against the size of a buffer, 10 to 50 records, on FeFET3 at sigma 0.1.

Command:  python -m experiments.5_buffer_size.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.5_buffer_size.plot FOLDER   (both in the root of the repository)
Time:     about 7 minutes on two busy cores in two processes; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`;
          those of `--config smollm2` (a quarter of an hour of a core a size and stream) in `results/smollm2`.

The number of prompts of a buffer grows with the root of its size. The records of a small buffer are the first of a
large one, so that sizes are compared on the same streams.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "NAME"]

NAME = "5_buffer_size"

SIZES = (10, 20, 25, 30, 40, 50)

SAME: dict[str, Any] = {
    "methods": ("NVP*(MIPS)", "NVCiM-PT", "oracle route"),
    "baselines": ("1-NN text",),
    "digital": False,
    "num_test": 10,
}
BASE = Settings(**SAME)
REAL = replace(SMOLLM2, **SAME, num_streams=3, num_instances=5)

CONFIGS = {
    "full": {f"buffer-{size}": changed(BASE, buffer_size=size) for size in SIZES},
    "smollm2": {f"buffer-{size}": changed(REAL, buffer_size=size) for size in (10, 25, 50)},
    "tiny": {
        f"buffer-{size}": changed(TINY, buffer_size=size, methods=("NVCiM-PT",), baselines=("1-NN text",))
        for size in (4, 6)
    },
}
"""One variant a size."""


if __name__ == "__main__":
    main(NAME, CONFIGS)
