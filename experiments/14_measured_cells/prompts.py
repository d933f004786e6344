"""The store of NVCiM-PT on chips of measured cells: as programmed, and a day later. See run.py beside this file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.shift import settings
from nvcim_jax import devices, study

__all__ = ["measure"]

DAY_S = 86400.0
METHODS = ("NVP*(MIPS)", "NVCiM-PT", "oracle route")


def measure(config: Any, fit: Any, out: Path) -> Iterator[dict[str, Any]]:
    """Yield the summary of each method on each law; prompts are trained for FeFET3 at sigma 0.1, once for all laws."""
    chosen = settings.changed(settings.Settings() if config.measured else settings.TINY, methods=METHODS)
    (lm, text), later = settings.language_model(chosen), min(DAY_S, float(fit.times_s[-1]))
    places = [
        devices.from_records(fit, law=law, t_s=t_s, name=f"{law}, {when}")
        for law in config.laws
        for when, t_s in (("as programmed", 0.0), ("a day later", later))
    ]
    design = study.Design(
        methods={name: settings.METHODS[name] for name in METHODS},
        baselines=(),
        num_instances=config.num_prompt_chips,
        digital=True,
        train_device=devices.get("FeFET3", sigma=0.1),
    )
    streams = settings.streams(chosen, range(config.num_streams))
    study.run(out, jax.random.key(config.seed), streams, lm, text, places, preset=chosen.preset, design=design)
    records = study.read(out)
    for row in study.summarise(records):
        own = [r for r in records if (r["device"], r["method"]) == (row["device"], row["method"])]
        yield {**row, "worst": _worst(own)}


def _worst(records: Sequence[dict[str, Any]]) -> float:
    """Return the accuracy of the worst chip, mean over its domains and the stream's last block."""
    chips: dict[tuple[Any, ...], list[float]] = {}
    last = max(r["block"] for r in records)
    for r in records:
        if r["block"] == last and r["role"] != "unseen":
            chips.setdefault((r["stream"], r["instance"]), []).append(r["accuracy"])
    return min(sum(values) / len(values) for values in chips.values())
