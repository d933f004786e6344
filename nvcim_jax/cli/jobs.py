"""The shards of a sweep as jobs: Slurm arrays, or processes of this machine, by submitit."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvcim_jax import checks, montecarlo
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.spec import Grid

if TYPE_CHECKING:
    from nvcim_jax.cli.sweep import Options

__all__ = ["run_shard", "submit"]


def run_shard(made: Grid, out: str, shard: tuple[int, int], command: str, placement: montecarlo.Placement) -> int:
    """Run one shard inside a job and return the number of its points; `command` is the one that does the same."""
    from nvcim_jax.cli.sweep import run_grid

    folder = Path(out) / f"shard-{shard[0]:04d}-of-{shard[1]:04d}"
    return len(run_grid(made, folder, command=command, shard=shard, placement=placement).points)


def submit(made: Grid, options: "Options") -> int:
    """Submit one job a shard; wait for them where they are processes of this machine.

    Returns:
        Exit code: 1 if a local job failed.

    Raises:
        ValueError: If submitit is missing, or the cluster is unknown.
    """
    checks.choice("--submit", options.submit, ("slurm", "local"))
    checks.integer("--shards", options.shards, high=made.instances)
    if options.half_width is not None:
        checks.fail("--half-width", "be left out with shards", "is given", "A shard does not know the others' values.")
    if options.submit == "slurm" and shutil.which("srun") is None:
        checks.fail("--submit", "be 'local' on a machine without Slurm", "is 'slurm', and there is no srun")
    try:
        import submitit
    except ModuleNotFoundError:
        checks.fail("--submit", "be left out without submitit", "is given", "Run pip install 'nvcim-jax[cluster]'.")
    executor = submitit.AutoExecutor(folder=options.out / "jobs", cluster=options.submit)
    limits: dict[str, Any] = {"timeout_min": options.timeout_min, "name": "nvcim-sweep"}
    if options.slurm_partition is not None:
        limits["slurm_partition"] = options.slurm_partition
    executor.update_parameters(**limits)
    placement = montecarlo.Placement(chunk=options.chunk, memory_budget_mb=options.memory_budget_mb)
    shards = [(k, options.shards) for k in range(1, options.shards + 1)]
    with executor.batch():
        jobs = [
            executor.submit(run_shard, made, str(options.out), shard, _command(options, shard), placement)
            for shard in shards
        ]
    print(f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}")
    print(f"when they have ended: nvcim merge {options.out}")
    if options.submit == "slurm":
        return 0
    failed = [job.job_id for job in jobs if job.exception() is not None]
    if failed:
        print(f"nvcim sweep: jobs {', '.join(failed)} failed, see {options.out / 'jobs'}", file=sys.stderr)
    return 1 if failed else 0


def _command(options: "Options", shard: tuple[int, int]) -> str:
    """Return the command that runs one shard here, to be kept with its records."""
    of_jobs = {"submit": None, "shards": 1, "slurm_partition": None, "timeout_min": 60}
    alone = dataclasses.replace(options, shard=f"{shard[0]}/{shard[1]}", **of_jobs)
    return command_line("sweep", alone, positional=("file",))
