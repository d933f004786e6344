"""`nvcim product` as a user meets it: its files, its numbers against the closed form, and one line for bad input."""

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
from nvcim_jax.cli import entry, main, matrix
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.product import FILES, Options

SMALL = "--inputs 24 --outputs 8 --batch 4 --rows 16 --cols 16 --weight-bits 4 --cell-bits 2 --slices arrays"
IDEAL_CONVERTERS = "--dac-bits None --adc-bits None"


def _run(words: str | list[str]) -> tuple[int, str, str]:
    """Run the command with JAX as users have it, and return exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    given = shlex.split(words) if isinstance(words, str) else words
    users = (jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False))
    with contextlib.ExitStack() as stack:
        for setting in (*users, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
            stack.enter_context(setting)
        code = main(given)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of one small study, and what it printed."""
    out = tmp_path_factory.mktemp("product") / "first"
    words = f"product --device FeFET3 --sigma 0.1 {SMALL} {IDEAL_CONVERTERS} --instances 200 --seed 3 --out {out}"
    code, said, err = _run(words)
    assert code == 0, err
    return out, said


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
    found = json.loads((out / "product.json").read_text(encoding="utf-8"))["statistics"]
    np.testing.assert_allclose(found["mean_relative_error"], error.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["standard_error"], error.std(ddof=1) / 200**0.5, rtol=1e-5)
    np.testing.assert_allclose(found["quantiles"]["0.95"], np.quantile(error, 0.95), rtol=1e-6)
    assert found["nonfinite"] == 0


def test_without_converters_the_error_is_that_of_the_closed_form(done: tuple[Path, str]) -> None:
    out, _ = done
    squares = _errors(out) ** 2
    truth = json.loads((out / "product.json").read_text(encoding="utf-8"))["statistics"][
        "rms_relative_error_closed_form"
    ]
    assert abs(squares.mean() - truth**2) < 5 * squares.std(ddof=1) / len(squares) ** 0.5


def test_arrays_and_cells_are_those_counted_by_hand(done: tuple[Path, str]) -> None:
    hardware = json.loads((done[0] / "product.json").read_text(encoding="utf-8"))["hardware"]
    # 3 bits are 2 slices, 24 rows are 2 row tiles, pairs lie apart; 8 of 16 bit lines are used
    assert hardware["num_arrays"] == 2 * 2 * 2
    assert hardware["num_cells_used"] == 24 * 8 * 2 * 2


def test_the_saved_command_repeats_the_chips_bit_for_bit(done: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = done
    words = shlex.split(json.loads((out / "product.json").read_text(encoding="utf-8"))["command"])
    assert words[:2] == ["nvcim", "product"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert _run(words[1:])[0] == 0
    assert (tmp_path / "again" / "chips.csv").read_bytes() == (out / "chips.csv").read_bytes()


def test_every_option_is_in_the_command() -> None:
    own = matrix.Product(sigma=0.25)
    words = shlex.split(command_line("product", Options(product=own, overwrite=True, out=Path("a b")), in_full=True))
    assert words[words.index("--sigma") + 1] == "0.25"
    assert words[words.index("--out") + 1] == "a b"
    given = {word.replace("--no-", "--") for word in words if word.startswith("--")}
    named = {*vars(own), *vars(own.arrays), *vars(Options())} - {"product", "arrays", "said", "dry_run"}
    assert given == {f"--{name.replace('_', '-')}" for name in named}
    assert entry.parse(Options, "nvcim product", words[2:]) == Options(product=own, overwrite=True, out=Path("a b"))


def test_a_sweep_gives_the_very_chips(done: tuple[Path, str], tmp_path: Path) -> None:
    pairs = zip(*[iter(shlex.split(f"{SMALL} {IDEAL_CONVERTERS} --device FeFET3"))] * 2, strict=True)
    fixed = " ".join(f"--set {flag[2:].replace('-', '_')}={value.lower()}" for flag, value in pairs)
    fixed = fixed.replace("fefet3", "FeFET3")
    code, _, err = _run(f"sweep --axis sigma=0.1 {fixed} --instances 200 --seed 3 --no-plots --out {tmp_path}")
    assert code == 0, err
    ((_, table),) = nv_io.read_points(tmp_path)
    np.testing.assert_allclose(table.columns["error"], _errors(done[0]), rtol=1e-6)


def test_what_has_no_number_is_no_result(tmp_path: Path) -> None:
    code, _, err = _run(f"product {SMALL} --device Gaussian --sigma 1e30 --instances 3 --out {tmp_path / 'out'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "`--sigma` must lie in" in err


@pytest.mark.parametrize("sizes", ["--inputs 1000000 --outputs 100000", "--inputs 100000 --outputs 20000"])
def test_a_size_beyond_the_budget_is_refused_before_anything_is_allocated(sizes: str, tmp_path: Path) -> None:
    code, _, err = _run(f"product {sizes} --out {tmp_path / 'out'}")
    assert (code, err.count("\n")) == (2, 1)
    assert "`--memory-budget-mb` must be at least" in err
    assert not (tmp_path / "out").exists()


BAD = {
    "an unknown device": ("--device FeFET7", "Did you mean 'FeFET6'?"),
    "a misspelt mapping": ("--mapping diferential", "Did you mean 'differential'?"),
    "no chips": ("--instances 0", "Argument `--instances` must be an integer of at least 1"),
    "zero bits": ("--adc-bits 0", "Use None for the ideal case."),
    "more levels than the device has": ("--device RRAM1 --cell-bits 3", "Use cell_bits=1"),
    "a share above 1": ("--stuck-on 1.5", "Argument `--stuck-on` must lie in [0, 1]"),
    "a noise of a device that has none": ("--device ideal --sigma 0.1", "Argument `--sigma` must be left out"),
    "a sampling that is not exact": ("--sampling output_joint", "Use sampling='device'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_code_2_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = BAD[name]
    code = main(["product", *shlex.split(words), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("nvcim product: ")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "expected"), [("--adc-bit 8", "--adc-bits"), ("--instances many", "--instances")])
def test_words_that_are_no_options_get_one_line_too(words: str, expected: str, tmp_path: Path) -> None:
    code, _, err = _run(f"product {words} --out {tmp_path / 'out'}")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_or_not_writable_is_refused_and_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    small = [*shlex.split(SMALL), "--instances", "2"]
    for out, expected in ((tmp_path, "holds mine.txt"), (tmp_path / "mine.txt" / "x", "mine.txt is a file")):
        assert main(["product", *small, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_an_earlier_study_and_keeps_other_files(done: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "product.json").write_text("old", encoding="utf-8")
    code, _, err = _run(f"product {SMALL} --adc-range calibrated --instances 2 --overwrite --out {tmp_path}")
    assert code == 0, err
    assert json.loads((tmp_path / "product.json").read_text(encoding="utf-8"))["settings"]["adc_range"] == "calibrated"
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "keep"
