"""`nvcim study` as a user meets it: its files, its numbers against the closed form, and one line for bad input."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nvcim_jax.cli import main
from nvcim_jax.cli.study import FILES, Options, command

SMALL = "--inputs 24 --outputs 8 --batch 4 --rows 16 --cols 16 --weight-bits 4 --cell-bits 2"
IDEAL_CONVERTERS = "--dac-bits None --adc-bits None"


def _run(words: str | list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command as users do: a process of its own, without the settings of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONUTF8": "1"}
    arguments = shlex.split(words) if isinstance(words, str) else words
    return subprocess.run(
        [sys.executable, "-m", "nvcim_jax.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of one small study, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "first"
    ran = _run(f"study --device FeFET3 --sigma 0.1 {SMALL} {IDEAL_CONVERTERS} --instances 200 --seed 3 --out {out}")
    assert ran.returncode == 0, ran.stderr
    return out, ran.stdout


def _errors(folder: Path) -> np.ndarray:
    with open(folder / "chips.csv", encoding="utf-8", newline="") as file:
        return np.array([float(row["relative_error"]) for row in csv.DictReader(file)])


def test_everything_that_is_written_is_listed_and_nothing_else_is_there(done: tuple[Path, str]) -> None:
    out, printed = done
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    for name in FILES:
        assert str(out / name) in printed
        assert (out / name).stat().st_size > 0
    assert (out / "error.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_both_records_hold_the_same_chips_and_the_summary_is_theirs(done: tuple[Path, str]) -> None:
    out, _ = done
    error = _errors(out)
    lines = [json.loads(line) for line in (out / "chips.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["relative_error"] for line in lines] == error.tolist()
    assert [line["instance"] for line in lines] == list(range(200))
    found = json.loads((out / "study.json").read_text(encoding="utf-8"))["statistics"]
    np.testing.assert_allclose(found["mean_relative_error"], error.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["standard_error"], error.std(ddof=1) / 200**0.5, rtol=1e-5)
    np.testing.assert_allclose(found["quantiles"]["0.95"], np.quantile(error, 0.95), rtol=1e-6)
    assert found["nonfinite"] == 0


def test_without_converters_the_error_is_that_of_the_closed_form(done: tuple[Path, str]) -> None:
    out, _ = done
    squares = _errors(out) ** 2
    truth = json.loads((out / "study.json").read_text(encoding="utf-8"))["statistics"]["rms_relative_error_closed_form"]
    assert abs(squares.mean() - truth**2) < 5 * squares.std(ddof=1) / len(squares) ** 0.5


def test_arrays_and_cells_are_those_counted_by_hand(done: tuple[Path, str]) -> None:
    hardware = json.loads((done[0] / "study.json").read_text(encoding="utf-8"))["hardware"]
    # 3 bits are 2 slices, 24 rows are 2 row tiles, pairs lie apart; 8 of 16 bit lines are used
    assert hardware["num_arrays"] == 2 * 2 * 2
    assert hardware["num_cells_used"] == 24 * 8 * 2 * 2


def test_the_saved_command_repeats_the_chips_bit_for_bit(done: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = done
    words = shlex.split(json.loads((out / "study.json").read_text(encoding="utf-8"))["command"])
    assert words[:2] == ["nvcim", "study"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert _run(words[1:]).returncode == 0
    assert (tmp_path / "again" / "chips.csv").read_bytes() == (out / "chips.csv").read_bytes()


def test_every_option_is_in_the_command() -> None:
    words = shlex.split(command(Options(overwrite=True, out=Path("a b"), sigma=0.25)))
    assert words[words.index("--sigma") + 1] == "0.25"
    assert words[words.index("--out") + 1] == "a b"
    assert {word for word in words if word.startswith("--")} == {
        f"--{name.replace('_', '-')}" for name in vars(Options())
    }


BAD = {
    "an unknown device": ("--device FeFET7", "Did you mean 'FeFET6'?"),
    "a misspelt mapping": ("--mapping diferential", "Did you mean 'differential'?"),
    "no chips": ("--instances 0", "Argument `instances` must be an integer of at least 1"),
    "zero bits": ("--adc-bits 0", "Use None for the ideal case."),
    "more levels than the device has": ("--device RRAM1", "Use cell_bits=1"),
    "a share above 1": ("--stuck-on 1.5", "Argument `stuck_on` must lie in [0, 1]"),
    "a noise of a device that has none": ("--device ideal --sigma 0.1", "Argument `sigma` must be left out"),
    "a sampling that is not exact": ("--sampling output_joint", "Use sampling='device'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_code_2_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = BAD[name]
    code = main(["study", *shlex.split(words), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("nvcim study: ")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "expected"), [("--adc-bit 8", "--adc-bits"), ("--instances many", "--instances")])
def test_words_that_are_no_options_get_one_line_too(words: str, expected: str, tmp_path: Path) -> None:
    ran = _run(f"study {words} --out {tmp_path / 'out'}")
    assert ran.returncode == 2
    assert expected in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_or_not_writable_is_refused_and_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    small = [*shlex.split(SMALL), "--instances", "2"]
    for out, expected in ((tmp_path, "holds mine.txt"), (tmp_path / "mine.txt" / "x", "a folder that can be written")):
        assert main(["study", *small, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_an_earlier_study_and_keeps_other_files(done: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "study.json").write_text("old", encoding="utf-8")
    ran = _run(f"study {SMALL} --adc-range calibrated --instances 2 --overwrite --out {tmp_path}")
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["options"]["adc_range"] == "calibrated"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "keep"
