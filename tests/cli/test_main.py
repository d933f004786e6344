"""The frame of the command line: help without heavy imports, one line and exit code 2 for bad input."""

import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvcim_jax import cli
from nvcim_jax.cli import entry
from nvcim_jax.cli.voice import flags


def _call(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _call("--help", capsys)
    assert (code, err) == (0, "")
    for name in ("sweep", "merge", "tolerance", "sensitivity", "plot"):
        assert f"\n  {name} " in out
    script = (
        "import sys\nfrom nvcim_jax import cli\ncli.main(['--help'])\n"
        "heavy = ('tyro', 'matplotlib', 'pyarrow', 'transformers', 'nvcim_jax.cli.sweep')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_words_is_help_and_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from nvcim_jax import __version__

    assert _call("", capsys)[:2] == _call("--help", capsys)[:2]
    assert _call("--version", capsys) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n in cli._commands()])
def test_every_command_has_options_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"nvcim_jax.cli.{name}")
    assert dataclasses.is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen
    code, out, err = _call(f"{name} --help", capsys)
    assert (code, err) == (0, "")
    assert f"usage: nvcim {name}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("swep", "no command 'swep'. Did you mean 'sweep'?"),
        ("sweep --instance 3", "Perhaps you meant --instances"),
        ("sweep --instances many", "--instances"),
        ("sweep", "`--axis` must be given"),
        ("sweep --axis sigma", "`--axis` must be name=value, but is 'sigma'"),
        ("sweep --axis sigm=0.1", "`sigm` must be a setting of a product.*Did you mean 'sigma'"),
        ("sweep --axis device=FeFET7", "Did you mean 'FeFET6'"),
        ("sweep --axis sigma=0.1 --sigma 0.2", "`--axis` must name what has no other value, but sigma is both"),
        ("sweep --axis sigma=0.1 --set sigma=0.2", "`--axis` must name what has no other value"),
        (
            "sweep --axis sigma=0.1 --axis sigma=0.2",
            "`--axis` must name each axis once, but names sigma 2 times. Give.* sigma=0.1,0.2",
        ),
        ("sweep --axis sigma=0.1,-0.1", "`sigma` must lie in"),
        ("sweep --axis sigma=0.1,x", "`sigma` must be a number"),
        ("sweep --axis sigma=0.1,0.1", "`axes.sigma` must hold each value once"),
        ("sweep --axis adc_bits=8,0", "`adc_bits` must be an integer"),
        ("sweep --axis mapping=diferential", "Did you mean 'differential'"),
        ("sweep --axis drift_time_s=1.0", "`drift_time_s` must be left out for a device without drift"),
        ("sweep --axis sampling=output_joint --set device=PCM", "`sampling` must be 'device'"),
        ("sweep --axis sigma=0.1 --shard 3-16", "`--shard` must be k/n"),
        ("sweep --axis sigma=0.1 --shard 0/2", "`--shard` must be an integer of at least 1 and at most 2, but is 0"),
        ("sweep --axis sigma=0.1 --shard 1/0", "`--shard` must be an integer of at least 1 and at most 1000, but is 0"),
        ("sweep --axis sigma=0.1 --shard 3/2", "`--shard` must be an integer of at least 1 and at most 2, but is 3"),
        ("sweep --axis sigma=0.1 --shards 4", "`--shards` must be left out without --submit, but is 4"),
        ("sweep --axis sigma=0.1 --slurm-partition gpu", "`--slurm-partition` must be left out without --submit"),
        ("sweep --axis sigma=0.1 --instances 0", "`--instances` must be an integer of at least 1"),
        ("sweep no_such_file.toml", "`FILE` must be a TOML file"),
        ("sweep --axis sigma=0.1 --submit cloud", "`--submit` must be one of local, slurm"),
        ("sweep --axis sigma=0.1 --submit slurm", "`--submit` must be 'local' on a machine without Slurm"),
        ("merge no_such_folder", "`SOURCES` must name one folder at least"),
        ("tolerance", "--max-error"),
        ("tolerance --max-error 0.1 --of noise", "`--of` must be one of"),
        ("tolerance --max-error 1e300", "`--max-error` must lie in .0, 1., but is 1e\\+300. An output of zero"),
        ("tolerance --max-error 0.1 --sigma 0.2", "`--sigma` must be left out with --of sigma, but is 0.2"),
        ("tolerance --max-error 0.1 --of stuck_on --set stuck_on=0.2", "`--set` must leave out what --of names"),
        ("sensitivity --of sigma=0.1 --set sigma=0.3", "`--set` must leave out what --of names, but is sigma=0.3"),
        ("sensitivity --set sigma=0.3", "For example --of sigma=VALUE"),
        ("sensitivity --of sigma", "`--of` must be name=value, but is 'sigma'. For example --of sigma=0.1"),
        ("sensitivity --of stuck_on=0.1", "`--of` must be one of"),
        ("sensitivity --of adc_bits=many", "`adc_bits` must be a number"),
        ("sensitivity --of adc_bits=1.5", "`adc_bits` must lie in"),
        ("sensitivity --of level_sigma=0.1", "`--of` must be level_sigma alone"),
        (
            "sensitivity --of level_sigma --set device=Gaussian",
            "`level_sigma` must be of a device whose noise is a table",
        ),
        ("sweep --axis mitigation=none,write_verfy", "Did you mean 'write_verify'"),
        ("sweep --axis mitigation=drift_compensation --set device=PCM", "`drift_time_s` must be given"),
        ("sweep --axis verified_share=2", "`verified_share` must lie in"),
        ("plot no_such_folder", "`FOLDER` must hold records.parquet or records.jsonl"),
    ],
)
def test_bad_input_gets_one_line_and_code_two(
    words: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, out, err = _call(words, capsys)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("nvcim")
    assert re.search(message, err)
    assert not list(tmp_path.iterdir()), "bad input leaves nothing behind"


def test_the_manual_says_which_commands_have_an_option() -> None:
    text = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1]: re.findall(r"`(\w+)`", row.split("|")[2]) for row in text.splitlines() if "|" in row}
    made = {name: flags(importlib.import_module(f"nvcim_jax.cli.{name}").Options) for name in cli.COMMANDS}
    have = lambda option: {name for name, known in made.items() if option in known}  # noqa: E731
    assert set(rows[" `--seed` "]) == have("--seed")
    assert set(rows[" `--out` "]) - {"report", "plot"} == have("--out") | {"merge"}
    assert set(rows[" `--no-plots` "]) == have("--plots")
    assert have("--json") | set(rows[" `--json` "]) == set(made)
    assert not have("--json") & set(rows[" `--json` "])
    assert set(rows[" `--quiet` "]) == have("--quiet")
    assert set(rows[" `--dry-run` "]) == have("--dry-run")


def test_traceback_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="must be given"):
        cli.main(["--traceback", "sweep"])


def test_command_line_gives_the_same_options_again() -> None:
    from nvcim_jax.cli.sweep import Options

    words = ["grid.toml", "--axis", "sigma=0.1,0.2", "--axis", "device=PCM", "--instances", "7", "--no-plots"]
    options = entry.parse(Options, "nvcim sweep", words)
    line = entry.command_line("sweep", options, positional=("file",))
    assert line == "nvcim sweep " + " ".join(words)


@pytest.mark.parametrize(
    "words",
    [
        ["product", "--device", "FeFETT9"],
        ["run", "--device", "FeFETT9"],
        ["sweep", "--axis", "sigma=0.1", "--set", "device=qqqqq"],
    ],
)
def test_an_unknown_device_is_named_once_by_its_option(words: list[str], tmp_path: Path, capsys) -> None:
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "device` must be one of" in said
    assert "`name`" not in said
    assert said.count("FeFET6, Gaussian") == 1


def test_a_picture_given_as_data_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n")
    assert cli.main(["run", "--data", str(tmp_path / "x.png"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Argument `--data` must name a folder of LaMP, a questions file (.json) or JSON lines (.jsonl)" in said
    assert "but is x.png" in said


@pytest.mark.slow
def test_a_terminal_without_a_character_loses_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "nvcim_jax.cli", "product", "--instances", "3", "--inputs", "8", "--outputs", "4"]
    words += ["--rows", "8", "--cols", "8", "--weight-bits", "4"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mean +- standard error" in done.stdout
    assert "sigma 0.1 (share of g_max)" in done.stdout
    assert (tmp_path / "out" / "product.json").is_file()


def test_ctrl_c_while_modules_load_waits_for_them_and_gets_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(name: str) -> None:
        signal.raise_signal(signal.SIGINT)
        loaded.append(name)

    monkeypatch.setattr(entry, "load", load)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # off in the background of a shell
    try:
        code, out, err = _call("plot x", capsys)
    finally:
        left = signal.signal(signal.SIGINT, before)
    assert left is signal.default_int_handler
    assert (code, out, err) == (130, "", "nvcim: interrupted before anything was computed.\n")
    assert loaded == ["plot"]
