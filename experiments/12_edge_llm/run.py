"""Edge-LLM on real small models, part by part: see the file of each part for what it measures and what to expect.

Command:  python -m experiments.12_edge_llm.run [PART ...] [--tiny] [--also FILE ...] [--out FOLDER]
              [--config full|processor] [--tasks TASK ...] [--methods METHOD ...] [--models MODEL ...]
              [--compressed FOLDER]
          python -m experiments.12_edge_llm.plot FOLDER   (both in the root of the repository)
Time:     each part says it. Set OPENBLAS_NUM_THREADS=1 for `luc`: on a busy machine its threads wait for each other in
          every Cholesky factor.
Expect:   `luc.py`, `cost.py` and `tuning.py` say it for their part; records in `results/PART/`, with their command.

`tuning` can be divided over processes with one --out: by tasks, or by models, whose records are files of their own.

Every part writes its records to FOLDER/PART, line after line, and goes on from there when it is called again.
Needs `wikitext2` and `clinc150` (`python -m experiments.data`); the tiny variants need nothing.
"""

import argparse
import importlib
import time
from pathlib import Path

import nvcim_jax as nv
from experiments.records import origin
from nvcim_jax import files

__all__ = ["PARTS", "main"]

PARTS = ("luc", "cost", "tuning")
"""Files beside this one, each with `measure(options, out) -> the configuration, as a dictionary`."""


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure Edge-LLM, part by part.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(PARTS)}; all by default")
    parser.add_argument("--tiny", action="store_true", help="a small model and little text, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/edge_llm by default")
    parser.add_argument("--also", nargs="+", default=[], help="`luc`: other models whose blocks are looked at")
    parser.add_argument("--config", default="full", choices=["full", "processor"], help="`tuning`: how much")
    parser.add_argument("--tasks", nargs="+", default=[], help="`tuning`: clinc5, snips_slots, wikitext2")
    parser.add_argument("--methods", nargs="+", default=[], help="`tuning`: lora, windows, 'windowed prefix', ...")
    parser.add_argument("--models", nargs="+", default=[], help="`tuning`: 'as it is', uniform, LUC")
    parser.add_argument("--compressed", type=Path, help="`tuning`: folder of the compressed models; beside the records")
    options = parser.parse_args(arguments)
    for name in options.parts:
        nv.checks.choice("PART", name, PARTS)
    out = options.out or Path("runs/edge_llm") / ("tiny" if options.tiny else "full")
    for name in options.parts or PARTS:
        started = time.perf_counter()
        config = importlib.import_module(f"experiments.12_edge_llm.{name}").measure(options, out / name)
        about = origin("experiments.12_edge_llm.run", arguments, config, started)
        files.write_json(out / name / "about.json", about)
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
