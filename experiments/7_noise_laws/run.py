"""Which noise to train with: none, value-level, cell-level or censored, with and without a bound on prompts.

Command:  python -m experiments.7_noise_laws.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.7_noise_laws.plot FOLDER   (both in the root of the repository)
Time:     about 10 minutes on two busy cores in two processes; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`.

Training meets sigma 0.1 of FeFET3 in the form that is named; the test is always cell by cell, at sigma 0 and 0.1. The
route of the oracle shows the prompts alone, that of NVCiM-PT the search as well. One prompt holds a whole buffer, after
320 updates: prompts of a few alike records lose so little to noise that nothing can be told from them (3_sigma_sweep).

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "NAME"]

NAME = "7_noise_laws"

LAWS = ("none", "value", "cell", "censored")
BOUNDS = {"bounded": 0.4, "free": float("inf")}

SAME: dict[str, Any] = {
    "sigmas": (0.0, 0.1),
    "train_sigma": 0.1,
    "methods": ("NVCiM-PT", "oracle route"),
    "digital": False,
    "num_test": 10,
}
BASE = changed(
    Settings(),
    **SAME,
    num_prompts=1,
    train_on="buffer",
    tuning={"num_steps": 320, "batch": 5},
)
REAL = replace(SMOLLM2, **SAME, num_streams=3, num_instances=5)

CONFIGS = {
    "full": {f"{law}-{name}": changed(BASE, noise=law, bound=bound) for law in LAWS for name, bound in BOUNDS.items()},
    "smollm2": {
        f"{law}-{name}": changed(REAL, noise=law, bound=bound)
        for law in LAWS
        for name, bound in {"bounded": REAL.preset.bound, "free": float("inf")}.items()
    },
    "tiny": {
        f"{law}-bounded": changed(TINY, sigmas=(0.0, 0.1), train_sigma=0.1, noise=law, methods=("NVCiM-PT",))
        for law in ("none", "value")
    },
}
"""Four laws by two bounds."""


if __name__ == "__main__":
    main(NAME, CONFIGS, columns=("accuracy", "hit", "gap", "difference", "loss"))
