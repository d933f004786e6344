"""`nvcim device`: from a file of measurements to a table, figures and a device that the other commands take."""

import contextlib
import csv
import io
import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from nvcim_jax import io as nv_io
from nvcim_jax.cli import main
from nvcim_jax.cli.device import FILES

SMALL = "--inputs 8 --outputs 4 --batch 2 --rows 8 --cols 8 --weight-bits 3 --cell-bits 2 --instances 4"


def _run(words: str) -> tuple[int, str, str]:
    """Run the command with JAX as users have it, and return exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    users = (jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False))
    with contextlib.ExitStack() as stack:
        for setting in (*users, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
            stack.enter_context(setting)
        code = main(shlex.split(words))
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a measurement in kohm, without headings, of four states in words and one nobody asked for."""
    rng = np.random.default_rng(0)
    lines = []
    for cell in range(200):
        g_us = (2.0, 10.0, 20.0, 30.0)[cell % 4] + rng.normal(scale=0.3)
        for t_min in (0, 1, 1000):
            lines.append(f"{1e3 / abs(g_us + 0.2 * t_min**0.3 * rng.normal())}|{'ABCD'[cell % 4]}|{cell}|{t_min}")
    lines += ["nan|A|900|0", "33.3|E|901|0"]
    path = tmp_path_factory.mktemp("measured") / "bench.7.txt"
    path.write_text("\n".join(lines))
    return path


COLUMNS = "--column r=0 --column level=1 --column cell=2 --column t=3 --unit r=kohm --unit t=min"


@pytest.fixture(scope="module")
def done(cells: Path) -> tuple[Path, str]:
    """Return the folder that the command wrote, and what it said."""
    out = cells.parent / "out"
    code, said, err = _run(f"device {cells} {COLUMNS} --g-max-us 32 --out {out}")
    assert code == 0, err
    return out, said


@pytest.mark.slow
def test_everything_that_is_written_is_listed(done: tuple[Path, str]) -> None:
    out, said = done
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "bench.device.npz"])
    for path in out.iterdir():
        assert str(path) in said
    for name in ("levels.png", "spread.png", "quantiles.png"):
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    about = json.loads((out / "device.json").read_text())
    assert about["levels"] == ["A", "B", "C", "D"]
    assert about["times_s"] == [0.0, 60.0, 60000.0]


def test_the_table_says_what_was_measured_and_left_out(done: tuple[Path, str]) -> None:
    out, said = done
    with open(out / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["records"] for row in rows} == {"50"}
    assert 0.2 < float(rows[0]["sigma"]) < 0.4
    assert "left out: 1 no finite conductance" in said
    assert "left out: 1 cells of levels with fewer than 10" in said
    assert "targets: not in the file" in said


@pytest.mark.slow
def test_every_command_takes_the_file(done: tuple[Path, str], tmp_path: Path) -> None:
    device = done[0] / "bench.device.npz"
    errors = {}
    for t_s in (0, 60000):
        out = tmp_path / f"product-{t_s}"
        code, said, err = _run(f"product --device {device} --drift-time-s {t_s} {SMALL} --out {out}")
        assert code == 0, err
        assert "bench, trajectories, sigma 1" in said
        errors[t_s] = json.loads((out / "product.json").read_text())["statistics"]["mean_relative_error"]
    assert errors[60000] > 1.2 * errors[0]
    fixed = " ".join(f"--set {word}" for word in (f"device={device}", "inputs=8", "outputs=4", "batch=2"))
    code, _, err = _run(f"sweep --axis sigma=0,1 {fixed} --instances 4 --no-plots --out {tmp_path / 'sweep'}")
    assert code == 0, err
    code, said, err = _run(f"sensitivity --of sigma=1 {fixed} --instances 24")
    assert code == 0, err


def test_a_run_does_not_go_on_with_another_file_of_that_name(done: tuple[Path, str], tmp_path: Path) -> None:
    path = tmp_path / "a.device.npz"
    device = nv_io.load_device(done[0] / "bench.device.npz")
    nv_io.save_device(path, device)
    words = f"sweep --axis sigma=0,1 --set device={path} --set inputs=8 --set outputs=4 --set batch=2 --instances 4"
    assert _run(f"{words} --no-plots --out {tmp_path / 'out'}")[0] == 0
    nv_io.save_device(path, device.replace(g_max_us=50.0))
    code, _, err = _run(f"{words} --no-plots --out {tmp_path / 'out'}")
    assert code == 2
    assert err.count("\n") == 1


def test_wrong_input_is_one_line(cells: Path, done: tuple[Path, str], tmp_path: Path) -> None:
    own = f"--out {tmp_path / 'out'}"
    for words, message in {
        f"device {cells} {COLUMNS} {own}": "`--g-max-us` must be given, but is missing; 99 % of the reads are up to 3",
        f"device {cells} {COLUMNS} --g-max-us 0.03 {own}": "`--g-max-us` must lie near the greatest conductances",
        f"device {cells} --g-max-us 32 {own}": "`--column` must be given for a file without headings",
        f"device {cells} --column r --g-max-us 32 {own}": "`--column` must be name=value, but is 'r'",
        f"device {cells} {COLUMNS} --g-max-us 32 --law normal {own}": "`--law` must be one of",
        f"device {cells} {COLUMNS} --g-max-us 32 --level Z {own}": "`--level` must be one of",
        f"device {cells} {COLUMNS} --g-max-us 32 --out {done[0]}": "`--out` must be a new or empty folder",
        f"device nowhere.csv --g-max-us 32 {own}": "must name a file",
        f"product --device nowhere.device.npz {own}": "`--device` must name a file",
        f"product --device {cells} {own}": "must be given for a file without headings",
        f"product --device FeFET7 {own}": "Did you mean 'FeFET6'",
        f"product --device {done[0]}/bench.device.npz --drift-time-s 1e9 {SMALL} {own}": "must lie in [0, 60000.6] s",
    }.items():
        code, _, err = _run(words)
        assert code == 2, words
        assert message in err
        assert err.count("\n") == 1, err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("command", ["sweep --axis sigma=0.1 --no-plots", "run --dry-run"])
@pytest.mark.parametrize(("content", "said"), [("", "hold rows of records"), ("a,b\n", "under its headings")])
def test_a_table_that_is_no_device_is_said_of_the_option(command: str, content: str, said: str, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text(content, encoding="utf-8")
    code, _, err = _run(f"{command} --device {table}@40 --out {tmp_path / 'out'}")
    assert code == 2
    assert "Argument `--device` must" in err
    assert said in err
    assert not (tmp_path / "out").exists()
