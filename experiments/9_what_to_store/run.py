"""What to keep in noisy memory: prompts, prefixes, LoRA or (IA)3 of equally many values, on FeFET3 at sigma 0.1.

Command:  python -m experiments.9_what_to_store.run [--config full|smollm2|rates] [--tiny] [--out FOLDER]
              [--streams 0 1 ..] [--model PATH]
          python -m experiments.9_what_to_store.plot FOLDER   (both in the root of the repository)
Time:     about five minutes of one core a stream with the bundled model (--tiny: a minute of processor time).
Expect:   `results/` (three of five streams, bundled model): prompts, LoRA and (IA)3 give the very same answers, .73 on
          chips with or without noise in training, a prefix .72 to .73; told the domain .80. `--config smollm2` was not
          run.

An adapter of each kind is tuned for each group of a buffer, stored as rows in the memory, found there by the same keys
and read back. All kinds store equally many values: 4,096 with the bundled model (a prompt of 16 tokens, a prefix of 2,
LoRA of rank 1 on q and v, (IA)3), 57,600 with SmolLM2 (100 tokens, 5, rank 1, (IA)3). Prompts are bounded as the preset
says; the others are not, and start from text or as published.

Learning rates were chosen on other intents of the same domains (`--config rates`, records in `results/rates`): the
smallest of those that are level.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "KINDS", "NAME"]

NAME = "9_what_to_store"

KINDS: dict[str, dict[str, Any]] = {
    "prompt": {"num_virtual": 16},
    "prefix": {"tunes": "prefix", "num_virtual": 2, "start": "text", "bound": float("inf"), "learning_rate": 1e-1},
    "lora": {"tunes": "lora", "rank": 1, "start": "text", "bound": float("inf"), "learning_rate": 1e-2},
    "ia3": {"tunes": "ia3", "start": "text", "bound": float("inf"), "learning_rate": 3e-2},
}
"""Changes to a preset, for the bundled model's 4,096 values."""

LONG = {
    "prompt": {"num_virtual": 100},
    "prefix": {"num_virtual": 5, "learning_rate": 1e-2},
    "lora": {"learning_rate": 1.65e-3},
    "ia3": {"learning_rate": 2e-2},
}
"""The same for SmolLM2's 57,600, at the rates of `experiments/fine_tuning`."""

METHODS = ("No-Miti(MIPS)", "NVP*(MIPS)", "NVCiM-PT", "oracle route")
FULL = Settings(methods=METHODS, baselines=("frozen", "1-NN text"))
REAL = replace(SMOLLM2, methods=METHODS, baselines=("frozen", "1-NN text"), num_streams=3, num_instances=5)
RATES = {"prefix": (3e-3, 1e-2, 3e-2, 1e-1), "lora": (3e-3, 1e-2, 3e-2, 1e-1), "ia3": (1e-2, 3e-2, 1e-1)}
OTHER = Settings(
    first_intent=5, num_streams=2, num_instances=5, num_test=10, methods=("NVP*(MIPS)", "oracle route"), digital=False
)

CONFIGS = {
    "full": {name: changed(FULL, **fields) for name, fields in KINDS.items()},
    "smollm2": {name: changed(REAL, **{**fields, **LONG.get(name, {})}) for name, fields in KINDS.items()},
    "rates": {
        f"{name} {rate:g}": changed(OTHER, **{**KINDS[name], "learning_rate": rate})
        for name, rates in RATES.items()
        for rate in rates
    },
    "tiny": {
        name: changed(TINY, **{**fields, "num_virtual": 2}, methods=("NVCiM-PT",)) for name, fields in KINDS.items()
    },
}
"""One variant a kind of adapter."""


if __name__ == "__main__":
    main(NAME, CONFIGS)
