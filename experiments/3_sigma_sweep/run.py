"""Accuracy against programming noise from 0 to 0.125, on FeFET3: what noise-aware training is worth.

Command:  python -m experiments.3_sigma_sweep.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.3_sigma_sweep.plot FOLDER   (both in the root of the repository)
Time:     about 30 minutes on two busy cores in two processes; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`;
          those of `--config smollm2` in `results/smollm2` (`bounded` five streams, `free` three: it was stopped).

Noise-aware training meets sigma 0.1 whatever sigma it is tested at. All points of a stream share their chips, scaled.
`bounded`: prompts are clipped; `free`: they are not, as without any mitigation. In both a prompt holds a few records,
mostly of one answer. `one-prompt`: one prompt holds a whole buffer, five answers, without a bound, after 320 updates.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace

from experiments.shift.measure import main
from experiments.shift.settings import SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "NAME"]

NAME = "3_sigma_sweep"

SIGMAS = (0.0, 0.025, 0.05, 0.075, 0.1, 0.125)

BOUNDED = Settings(
    sigmas=SIGMAS,
    train_sigma=0.1,
    methods=("plain, MIPS", "NVP*(MIPS)", "NVCiM-PT", "oracle route"),
    digital=False,
)
FREE = changed(BOUNDED, bound=float("inf"), methods=("No-Miti(MIPS)", "NVP*(MIPS)"))
ONE = changed(
    FREE,
    num_prompts=1,
    train_on="buffer",
    tuning={"num_steps": 320, "batch": 5},
    methods=("plain, SSA", "NVCiM-PT", "oracle route, plain", "oracle route"),
)

REAL = replace(
    SMOLLM2,
    sigmas=SIGMAS,
    train_sigma=0.1,
    digital=False,
    methods=("plain, SSA", "NVCiM-PT", "oracle route, plain", "oracle route"),
)

CONFIGS = {
    "full": {"bounded": BOUNDED, "free": FREE, "one-prompt": ONE},
    "smollm2": {
        "bounded": REAL,
        "free": changed(REAL, bound=float("inf")),
    },
    "tiny": {
        "bounded": changed(TINY, sigmas=(0.0, 0.1), train_sigma=0.1),
        "free": changed(TINY, sigmas=(0.0, 0.1), bound=float("inf"), methods=("No-Miti(MIPS)",)),
    },
}
"""One device; prompts that are held in and not; and prompts that have much to lose."""


if __name__ == "__main__":
    main(NAME, CONFIGS, columns=("accuracy", "hit", "gap", "difference", "loss"))
