"""Edge-LLM on real small models, part by part: see the file of each part for what it measures and what to expect.

Command:  python -m experiments.12_edge_llm.run [PART ...] [--tiny] [--also FILE ...] [--out FOLDER]
          python -m experiments.12_edge_llm.plot FOLDER   (both in the root of the repository)
Time:     `luc`: about 25 minutes of one core (--tiny: a minute); `tuning`: 30 (two). Set OPENBLAS_NUM_THREADS=1: on a
          busy machine its threads wait for each other in every Cholesky factor.
Expect:   `luc.py` and `tuning.py` say it for their part; records in `results/PART/`, with their command.

Every part writes its records to FOLDER/PART, line after line, and goes on from there when it is called again.
Needs `wikitext2` and `clinc150` (`python -m experiments.data`); the tiny variants need nothing.
"""

import argparse
import importlib
import platform
import shlex
import sys
import time
from pathlib import Path

import jax

import nvcim_jax as nv
from nvcim_jax import files

__all__ = ["PARTS", "main"]

PARTS = ("luc", "tuning")
"""Files beside this one, each with `measure(options, out) -> the configuration, as a dictionary`."""


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure Edge-LLM, part by part.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(PARTS)}; all by default")
    parser.add_argument("--tiny", action="store_true", help="a small model and little text, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/edge_llm by default")
    parser.add_argument("--also", nargs="+", default=[], help="`luc`: other models whose blocks are looked at")
    options = parser.parse_args(arguments)
    for name in options.parts:
        nv.checks.choice("PART", name, PARTS)
    out = options.out or Path("runs/edge_llm") / ("tiny" if options.tiny else "full")
    for name in options.parts or PARTS:
        started = time.perf_counter()
        config = importlib.import_module(f"experiments.12_edge_llm.{name}").measure(options, out / name)
        about = {
            "command": shlex.join(["python", "-m", "experiments.12_edge_llm.run", *(arguments or sys.argv[1:])]),
            "config": config,
            "seconds_of_the_last_call": round(time.perf_counter() - started, 1),
            "versions": {"nvcim_jax": nv.__version__, "jax": jax.__version__, "python": platform.python_version()},
            "device": jax.devices()[0].device_kind,
        }
        files.write_json(out / name / "about.json", about)
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
