"""What the search is made of: measure, axis, weights, storage and kind of key, with the cells that each takes.

Command:  python -m experiments.6_ssa_ablation.run [--tiny] [--out FOLDER] [--streams 0 1 ..] [--model PATH]
          python -m experiments.6_ssa_ablation.plot FOLDER   (both in the root of the repository)
Time:     about 15 minutes on two busy cores in two processes; --config smollm2: an hour a stream on a slow busy core,
          half of it for prompts that all variants share; --tiny: a few seconds after compiling.
Expect:   the table and the records are in `results/` beside this file, with the command that made them in `run.json`;
          those of `--config smollm2` in `results/smollm2`.

Prompts are tuned noise-aware on FeFET3 at sigma 0.1. `hit` is the number to look at: the share of queries that find a
prompt of their own domain, among four. The published method does not say which axis is pooled, how scales are stored,
or what is stored as the key. What keys are made of was chosen on the variants `intents-*`, other intents of the same
domains than everywhere else.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing. Processes with different `--streams`
and the same `--out` share the work; a run that was stopped goes on where it was.
"""

from dataclasses import replace
from typing import Any

from experiments.shift.measure import main
from experiments.shift.settings import METHODS, SMOLLM2, TINY, Settings, changed

__all__ = ["CONFIGS", "NAME"]

NAME = "6_ssa_ablation"

KEYS = {
    "prompt": {"keys": "prompt"},
    "anchored": {"keys": "anchored", "anchor": 1.0},
    "contrastive": {"keys": "contrastive", "codec": "autoencoder"},
    "representative": {"keys": "representative"},
    "centroid": {"keys": "centroid"},
    "centroid-not-centred": {"keys": "centroid", "key_centre": False},
    "centroid-not-clipped": {"keys": "centroid", "key_clip": None},
    "centroid-by-input": {"keys": "centroid", "cluster_by": "input"},
    "centroid-by-input-not-centred": {"keys": "centroid", "cluster_by": "input", "key_centre": False},
}
"""Kinds of keys, centred and clipped; the last of them without one or the other, and of clusters by inputs alone."""


SEARCHES = tuple(name for name in METHODS if name.startswith("SSA "))
"""Axis, storage and weights of the scales 1, 2, 4, all on the same stored prompts."""

BASE = Settings(methods=("noise-aware, MIPS", "noise-aware, cosine", "noise-aware, SSA"), num_test=10)

REAL = replace(SMOLLM2, methods=BASE.methods, num_test=10, num_streams=3, num_instances=5)
REAL_KEYS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "one-key": {"num_keys": 1},
    "not-spread": {"key_spread": False},
    "not-centred": {"key_centre": False},
    "representative": {"keys": "representative", "num_keys": 1},
    "prompt": {"keys": "prompt", "num_keys": 1, "key_spread": False},
}

CONFIGS = {
    "full": {
        **{f"key-{name}": changed(BASE, **key) for name, key in KEYS.items()},
        **{
            f"intents-{first + 1}-{first + 5}": changed(
                BASE, first_intent=first, methods=("noise-aware, MIPS",), baselines=("1-NN text",)
            )
            for first in (5, 10)
        },
        # Pooling over tokens needs keys of several tokens.
        "search": changed(BASE, key_tokens=8, methods=("noise-aware, MIPS", *SEARCHES)),
    },
    "smollm2": {
        **{f"key-{name}": changed(REAL, **key) for name, key in REAL_KEYS.items()},
        "search": changed(REAL, num_keys=1, key_tokens=8, methods=("noise-aware, MIPS", *SEARCHES)),
    },
    "tiny": {
        "key-representative": changed(TINY, methods=("noise-aware, SSA",)),
        "search": changed(TINY, methods=("noise-aware, MIPS", "SSA features, apart, 1 1 1")),
    },
}
"""Kinds of keys, each with three measures; twelve ways of the scaled search on the mean features of a cluster."""


if __name__ == "__main__":
    main(NAME, CONFIGS, columns=("hit", "accuracy", "cells"))
