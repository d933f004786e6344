"""What domain shift costs: accuracy on every domain after every buffer, for one prompt and for routed prompts.

Command:  python -m experiments.4_domain_shift.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.4_domain_shift.plot FOLDER   (both in the root of the repository)
Time:     about 12 minutes on two busy cores in two processes; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`;
          those of `--config smollm2 --variants block` in `results/smollm2`; of `--variants return`, two streams so
          far, about 100 minutes of a core each, in `results/smollm2_return`.

R[t, i] is the accuracy on domain i after block t. `block`: four domains, one after the other; `return`: the first comes
back after every other. One prompt is tuned on the latest buffer, sequentially, or jointly on all buffers so far (which
no device with bounded memory can); NVCiM-PT keeps a prompt of every representative and searches.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "NAME"]

NAME = "4_domain_shift"

SAME: dict[str, Any] = {
    "methods": ("NVCiM-PT", "oracle route", "random route"),
    "baselines": ("latest", "sequential", "joint", "1-NN text"),
    "every_block": True,
    "digital": False,
}
BLOCK = Settings(**SAME)

CONFIGS = {
    "full": {"block": BLOCK, "return": changed(BLOCK, kind="return")},
    "smollm2": {
        "block": replace(SMOLLM2, **SAME),
        "return": replace(SMOLLM2, **SAME, kind="return", num_streams=3, num_instances=5),
    },
    "tiny": {
        "block": changed(TINY, every_block=True, methods=("NVCiM-PT",), baselines=("latest",)),
        "return": changed(TINY, every_block=True, methods=("NVCiM-PT",), baselines=("latest",), kind="return"),
    },
}
"""The same records in two orders."""


if __name__ == "__main__":
    main(NAME, CONFIGS, columns=("accuracy", "hit", "gap", "forgetting", "previously_seen"))
