"""Every method on five devices at sigma 0.1: the main table of the paper, on real text with the bundled model.

Command:  python -m experiments.2_nvm_table.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.2_nvm_table.plot FOLDER   (both in the root of the repository)
Time:     about 30 minutes on two busy cores in two processes; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`.

Buffers of 25 records, four domains, one after the other; after the last buffer every domain is asked. All methods of a
stream meet the same chips. The bound on prompts is the same for all methods. "end-to-end" trains prompts, codec and
search weights together through the noisy pipeline, which goes beyond the paper.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import METHODS, SMOLLM2, TINY, Settings, changed
from nvcim_jax import study

__all__ = ["CONFIGS", "NAME"]

NAME = "2_nvm_table"

BASELINES = ("frozen", "latest", "sequential", "joint", "1-NN text", "1-NN own domain")

TABLE = Settings(
    devices=("RRAM1", "FeFET2", "FeFET3", "RRAM4", "FeFET6"),
    methods=tuple(study.METHODS),
    baselines=BASELINES,
    end_to_end_steps=40,
)

SAME: dict[str, Any] = {
    "methods": ("SWV", "CxDNN", "CorrectNet", "No-Miti(MIPS)", "NVP*(MIPS)", "NVCiM-PT"),
    "baselines": (),
    "digital": False,
    "num_test": 10,
}
DEVICES = replace(TABLE, **SAME, end_to_end_steps=0)
REAL = replace(SMOLLM2, methods=tuple(study.METHODS), baselines=BASELINES)

CONFIGS = {
    "full": {
        "devices": DEVICES,
        "identity": changed(TABLE, devices=("FeFET3",)),
        "autoencoder": changed(TABLE, devices=("FeFET3",), codec="autoencoder", baselines=()),
    },
    "smollm2": {
        "identity": REAL,
        "free": changed(REAL, bound=float("inf"), baselines=()),
        "devices": replace(REAL, **SAME, num_streams=3, num_instances=5, devices=TABLE.devices),
        "autoencoder": changed(REAL, codec="autoencoder", baselines=(), num_streams=3, num_instances=5),
    },
    "tiny": {
        "table": changed(TINY, devices=("FeFET3", "FeFET6"), baselines=("frozen", "latest", "1-NN text")),
    },
}
"""`devices`: the rows of the paper's table on its five devices. `identity`: on one of them, with two bounds on any
search, baselines without a device, and joint training. `autoencoder`: the same behind 48 values a token."""

assert set(TABLE.methods) <= set(METHODS)


if __name__ == "__main__":
    main(NAME, CONFIGS)
