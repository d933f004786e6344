"""A kill, an interrupt and a full disk: nothing finished is lost, and the same command ends as without a break."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.params import mostly_slow

from nvcim_jax import cli, io

SWEEP = "--axis sigma=0.05,0.1 --set device=Gaussian --set inputs=16 --set outputs=8 --set batch=2"
TOLERANCE = "--max-error 0.3 --set device=Gaussian --set inputs=16 --set outputs=8 --resolution 0.1"
PRODUCT = "--inputs 16 --outputs 8 --batch 2"
COMMANDS = {
    "sweep": f"sweep {SWEEP} --no-plots --instances 400",
    "tolerance": f"tolerance {TOLERANCE} --instances 400",
    "product": f"product {PRODUCT} --instances 400",
}

# Chunks are saved one by one, and slowly, so that a signal meets the writing.
SLOW = """
import functools, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # off where a shell runs tests in the background
from nvcim_jax import cli, files, io
from nvcim_jax.io import store
from nvcim_jax.montecarlo import engine
files_write = files.write
def write(path, content):
    time.sleep(0.05)
    return files_write(path, content)
files.write = write
engine._next_count = lambda count, elapsed_s, plan: 20
store.folder = functools.partial(store.folder, save_every_s=0.0)
io.folder = store.folder
sys.exit(cli.main(sys.argv[1:]))
"""


def _start(words: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, *words.split(), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _records(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(out.rglob("*.csv"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(COMMANDS, "sweep"))
def test_a_killed_command_goes_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "broken"
    with _start(COMMANDS[name], out) as process:
        while process.poll() is None and len(list(out.rglob("chunks/*.parquet"))) < 2:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
    kept = sum(len(part) for path in out.rglob("chunks") for part in _finished(path.parent))
    assert kept >= 20
    assert not _records(out), "nothing incomplete stands as a result"
    assert cli.main([*COMMANDS[name].split(), "--out", str(out)]) == 0
    broken = capsys.readouterr().out
    assert cli.main([*COMMANDS[name].split(), "--out", str(tmp_path / "whole")]) == 0
    whole = capsys.readouterr().out
    assert _records(out) == _records(tmp_path / "whole")
    if name == "tolerance":
        assert broken == whole


def _finished(folder: Path) -> list[range]:
    from nvcim_jax.io import records

    return records.finished(folder)


@pytest.mark.slow
def test_an_interrupted_product_says_what_is_true(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _start(COMMANDS["product"], out) as process:
        while process.poll() is None and not list(out.rglob("chunks/*.parquet")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith(f"what is finished is in {out}, and the same command goes on from there.")
    assert io.holds(out)


# Files are full from the sixth on that is replaced: where no small disk can be mounted.
LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from nvcim_jax import files
keep, calls = files.replacing, []
def replacing(path):
    calls.append(path)
    if len(calls) == 6: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    return keep(path)
files.replacing = replacing
"""


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Callable[[], None] | None]:
    """Mount a disk of 48 KiB on a folder, and yield what makes room on it; None where this may not be done."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return

    def make_room() -> None:
        subprocess.run(["mount", "-o", "remount,size=50M", str(folder)], check=True)

    try:
        yield make_room
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs limits on the size of files")
@pytest.mark.parametrize("name", mostly_slow(COMMANDS, "sweep"))
def test_a_full_disk_gets_one_line_and_keeps_what_is_finished(name: str, tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as make_room:
        out = tmp_path / "disk" / "out"
        words = [*COMMANDS[name].split(), "--out", str(out)]
        script = SLOW if make_room else LIMIT + SLOW
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        said = done.stderr.splitlines()[-1]
        assert said.startswith(f"nvcim {name}: Could not write {out}")
        assert said.endswith("What was finished before is kept: make room and run the same command again.")
        assert "Traceback" not in done.stderr
        assert io.holds(out)
        assert not _records(out)
        assert list(out.rglob("chunks/*.parquet"))
        if make_room:
            assert "No space left on device" in said
            make_room()
        assert cli.main(words) == 0
