"""`nvcim merge`: join the shards of a sweep."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from nvcim_jax import checks, io
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
    commands = " && ".join(about["command"] for about in abouts)
    own = command_line("merge", options, positional=("out", "sources"))
    finish(options.out, f"{commands} && {own}", options.plots)
    print_result(options, io.summary(io.read_points(options.out)))
    return 1 if any(merged.gaps for merged in found.values()) else 0


def _about(path: Path) -> dict[str, Any]:
    """Return what was asked for when a shard was made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"command": str(found["command"]), "instances": int(found["instances"])}
    except (ValueError, TypeError, KeyError):
        checks.fail("sources", "hold what `nvcim sweep` wrote", f"{path} is damaged", "Run that shard again.")
