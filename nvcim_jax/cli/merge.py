"""`nvcim merge`: join the shards of a sweep."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from nvcim_jax import checks, files, io
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.sweep import finish
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["Options", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Join the shards of a sweep into one; tell gaps and duplicates, refuse conflicting values.

    The exit code is 1 when chips are missing.
    """

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the sweep; the result goes here."""
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders to join (default: OUT/shard-*)."""
    instances: int | None = None
    """Chips expected at each point (default: what the shards were asked for)."""
    rtol: float = 1e-5
    """Relative difference up to which two values of one chip are the same."""
    plots: bool = True
    """Whether to draw the figures."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    sources = options.sources or tuple(sorted(options.out.glob("shard-*")))
    if not sources:
        checks.fail("sources", "name one folder at least", f"{options.out} holds no shard-*")
    abouts = [_about(source / "sweep.json") for source in sources if (source / "sweep.json").is_file()]
    expected = options.instances or max((about["instances"] for about in abouts), default=None)
    found = io.merge_points(sources, options.out, num_instances=expected, rtol=options.rtol)
    for name, merged in found.items():
        gaps = ", ".join(f"{gap.start}-{gap.stop - 1}" for gap in merged.gaps)
        if gaps:
            print(f"nvcim merge: {name}: chips {gaps} are missing", file=sys.stderr)
        if merged.num_duplicates:
            print(f"{name}: {merged.num_duplicates} chips were there twice, with equal values")
    own = command_line("merge", options, positional=("out", "sources"))
    command = " && ".join([*(about["command"] for about in abouts), own])
    if abouts:
        files.write_json(options.out / "sweep.json", {"command": command, **_asked(abouts), "instances": expected})
    finish(options.out, command, options.plots)
    print_result(options, io.summary(io.read_points(options.out)))
    return 1 if any(merged.gaps for merged in found.values()) else 0


def _asked(abouts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the shards were asked for together: axes with the values of all, and what they have in common."""
    axes: dict[str, dict[Any, None]] = {}
    for about in abouts:
        for name, values in about["axes"].items():
            axes.setdefault(name, {}).update(dict.fromkeys(values))
    joined = [[name, list(values)] for name, values in axes.items()]
    return {"axes": joined, "fixed": [*map(list, abouts[0]["fixed"].items())], "seed": abouts[0]["seed"]}


def _about(path: Path) -> dict[str, Any]:
    """Return what was asked for when a shard was made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        asked = {"axes": dict(found["axes"]), "fixed": dict(found["fixed"]), "seed": int(found["seed"])}
        return {"command": str(found["command"]), "instances": int(found["instances"])} | asked
    except (ValueError, TypeError, KeyError):
        checks.fail("sources", "hold what `nvcim sweep` wrote", f"{path} is damaged", "Run that shard again.")
