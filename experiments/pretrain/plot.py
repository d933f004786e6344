"""Draw the losses of a pretraining run from its log.

    python experiments/pretrain/plot.py runs/pretrain

Takes two seconds; writes losses.png into the folder. Expect both curves to fall throughout, that of the text slowly.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import tyro


def main(folder: tyro.conf.Positional[Path]) -> None:
    """Draw losses.png from log.jsonl.

    Args:
        folder: Folder of the run.
    """
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    # A run that was killed may have logged steps twice: the later record counts.
    by_step = {record["step"]: record for record in records}
    steps = sorted(by_step)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, label in (("text", "plain text"), ("answer", "answers of episodes")):
        axes.plot(steps, [by_step[step][name] for step in steps], marker=".", label=label)
    axes.set(xlabel="updates", ylabel="loss (nats a token)", title="Pretraining the bundled language model")
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=120)
    print(f"written: {folder / 'losses.png'}")


if __name__ == "__main__":
    tyro.cli(main)
