"""`nvcim sweep`: a grid of settings over device instances."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from nvcim_jax import checks, files, io, montecarlo
from nvcim_jax.cli import duration, figures, matrix
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.known import content
from nvcim_jax.cli.spec import Grid, also_set, read_grid
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result
from nvcim_jax.types import Records, Store, Work

__all__ = ["Options", "main", "run_grid"]

AUTOMATIC = montecarlo.Placement()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Run a grid of settings over device instances: the output error of one crossbar product.

    The same command goes on after an interruption. Numbers (sigma, d2d_sigma, stuck_on, stuck_off, on_off_ratio,
    drift_time_s, verified_share, residual_sigma) share one compiled program; every other axis (device, mapping,
    adc_bits, ..., mitigation=none,write_verify,column_factors,drift_compensation) is compiled once a value. All points
    see the same chips.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with [axes], [fixed], instances, seed."""
    axis: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An axis, name=value,value,...; may be repeated."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting common to all points, name=value; may be repeated."""
    device: str | None = None
    """Memory cell of all points, as --set device=...: a name, a file of nvcim device, or FILE@G_MAX_US of a table of
    measurements (default: FeFET3)."""
    sigma: float | None = None
    """Programming noise of all points, as --set sigma=... (default: the device's own)."""
    instances: int | None = None
    """Chips at each point (default: the file's, or 1000); the most of them with --half-width."""
    seed: int | None = None
    """Seed of the chips (default: the file's, or 0)."""
    out: Path = Path("runs/sweep")
    """Folder of the records."""
    shard: str | None = None
    """k/n: run the k-th of n ranges of chips, into OUT/shard-k-of-n."""
    submit: str | None = None
    """Submit the shards of --shards by submitit instead: slurm, or local (processes of this machine)."""
    shards: int = 1
    """Number of jobs for --submit."""
    slurm_partition: str | None = None
    """Partition of the jobs."""
    timeout_min: int = 60
    """Minutes that a job may take."""
    half_width: float | None = None
    """Stop each point when half the interval of its mean error is at most this (95 % confidence)."""
    chunk: int | None = None
    """Chips that a device computes in one call (default: chosen)."""
    memory_budget_mb: float = 1024.0
    """MiB that one call may take on a device."""
    plots: bool = True
    """Whether to draw the figures."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    words = also_set(options.set, options.device, options.sigma)
    made = read_grid(options.file, options.axis, words, options.instances, options.seed)
    if not made.axes and not made.fixed:
        checks.fail("--axis", "be given", "there is neither an axis nor a file", "For example --axis sigma=0.05,0.1.")
    if (options.out / "study.json").is_file():
        checks.fail("--out", "be a folder of its own", f"{options.out} holds a run", "Use another folder.")
    command = command_line("sweep", options, positional=("file",))
    shard = _shard(options.shard, made.instances)
    _of_jobs(options)
    if options.dry_run:
        return _planned(made, options, shard)
    if options.submit is not None:
        from nvcim_jax.cli.jobs import submit

        return submit(made, options)
    out = options.out if shard == (1, 1) else options.out / f"shard-{shard[0]:04d}-of-{shard[1]:04d}"
    found = run_grid(
        made,
        out,
        command=command,
        shard=shard,
        half_width=options.half_width,
        placement=montecarlo.Placement(chunk=options.chunk, memory_budget_mb=options.memory_budget_mb),
        said=options.said,
    )
    asked = [(point.settings, range(point.stats.num_instances)) for point in found.points]
    if shard == (1, 1):
        finish(options.out, command, options.plots, asked)
    print_result(options, io.summary(io.read_points(out, None if shard != (1, 1) else asked)))
    return 0


def _planned(made: Grid, options: Options, shard: tuple[int, int]) -> int:
    """Say how many chips and programs there would be, how long they take, and what would be written."""
    points = made.settings()
    programs = {tuple((n, str(v)) for n, v in point.items() if n not in matrix.NUMBERS) for point in points}
    num = made.instances if shard == (1, 1) else len(montecarlo.shard_range(made.instances, *shard))
    numbers = {name: float(points[0][name]) for name in matrix.NUMBERS if name in points[0]}
    metric, operands = matrix.build(points[0]), matrix.operands(points[0], made.seed)
    line, seconds = duration.chips(metric, (numbers, *operands), num * len(points), len(programs))
    jobs = "" if options.submit is None else f" in {options.shards} jobs, all together,"
    most = " at most," if options.half_width is not None else ""
    print(f"{len(points)} points,{jobs}{most} {num} chips each. {line}")
    names = ["sweep.json", "points/", "records.parquet", "summary.csv", *(["*.png"] if options.plots else [])]
    print(duration.nothing_done(options.out, names))
    plan = {"points": len(points), "chips": num * len(points), "programs": len(programs), "seconds": seconds}
    print_result(options, plan | {"out": str(options.out)})
    return 0


def _of_jobs(options: Options) -> None:
    """Refuse options of jobs where none is submitted."""
    if options.submit is None:
        for field in dataclasses.fields(Options):
            if field.name in ("shards", "slurm_partition", "timeout_min"):
                given = getattr(options, field.name)
                if given != field.default:
                    checks.fail(f"--{field.name.replace('_', '-')}", "be left out without --submit", f"is {given!r}")


def _shard(word: str | None, num_instances: int) -> tuple[int, int]:
    if word is None:
        return 1, 1
    parts = word.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        checks.fail("--shard", "be k/n", f"is {word!r}", "For example --shard 3/16.")
    shard, num_shards = (int(part) for part in parts)
    checks.integer("--shard", num_shards, high=num_instances, fix="The number behind the / is that of the shards.")
    checks.integer("--shard", shard, high=num_shards, fix="The number before the / is that of the shard.")
    return shard, num_shards


def run_grid(
    made: Grid,
    out: Path,
    *,
    command: str,
    shard: tuple[int, int] = (1, 1),
    half_width: float | None = None,
    placement: montecarlo.Placement = AUTOMATIC,
    said: Said = SPOKEN,
) -> montecarlo.Sweep:
    """Run a grid, or a shard of it, into a folder; a message on stderr says what was compiled."""
    axes, fixed = {name: list(values) for name, values in made.axes}, dict(made.fixed)
    precision = None if half_width is None else montecarlo.Precision(half_width=half_width, of="error")
    about = {"command": command, "shard": shard, **dataclasses.asdict(made)}
    points = io.points(
        files.folder("--out", out, make=False),
        config={"metric": "relative error of one product", **fixed, **_files(axes, fixed)},
    )

    def store(settings: dict[str, Any]) -> Store:
        return _noted(points(settings), out / "sweep.json", about)

    def build(settings: dict[str, Any]) -> Any:
        return matrix.build({**fixed, **settings})

    found = montecarlo.sweep(
        build,
        jax.random.key(made.seed),
        axes,
        made.instances if shard == (1, 1) else montecarlo.shard_range(made.instances, *shard),
        traced=tuple(name for name in axes if name in matrix.NUMBERS),
        args=lambda settings: matrix.operands({**fixed, **settings}, made.seed),
        precision=precision,
        store=store,
        placement=placement,
        progress=said.progress,
    )
    if said.quiet:
        return found
    print(f"{len(found.points)} points by {found.num_programs} compiled programs, records in {out}", file=sys.stderr)
    return found


def _noted(store: Store, path: Path, about: dict[str, Any]) -> Store:
    """Return the store of a point that says what was asked for, once the point is known to be of this sweep."""

    @contextlib.contextmanager
    def opened(work: Work, ids: range) -> Iterator[Records]:
        with store(work, ids) as found:
            files.write_json(path, about)
            yield found

    return opened


def _files(axes: dict[str, list[Any]], fixed: dict[str, Any]) -> dict[str, str]:
    """Return what must be noted of the device files that a grid names."""
    named = [*axes.get("device", []), fixed.get("device", matrix.DEFAULTS["device"])]
    noted = {name: content(name) for name in named if isinstance(name, str)}
    return {f"content of {name}": found["device_file"] for name, found in noted.items() if found}


def finish(out: Path, command: str, plots: bool, only: Sequence[tuple[dict[str, Any], range]] | None = None) -> None:
    """Write the tables of a sweep, print the summary, and draw the figures, of what was asked for alone."""
    records, summary = io.export(out, command=command, only=only)
    points = io.read_points(out, only)
    devices = [settings["device"] for settings, _ in points if "device" in settings]
    label = matrix.sigma_label(devices, io.records_about(records)["common"]).replace("\n", " ")
    print_table(io.summary(points), title=f"Relative error of a product over chips; {label}")
    if only is not None and (rest := io.left_out(out, only)):
        print(f"left out: {out} also holds {rest}")
    print(f"every chip: {records}\nsummary: {summary}")
    if plots:
        made, source = figures.of_sweep(records)
        for path in figures.save(made, out, source):
            print(f"figure: {path}")
