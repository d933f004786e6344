"""What commands say: the result alone, nothing, or what they would do; options by the names that they were given."""

import json
from pathlib import Path

import pytest

from nvcim_jax import devices
from nvcim_jax.cli import COMMANDS, duration, entry, main
from nvcim_jax.cli.known import content, known_device
from nvcim_jax.cli.voice import by_option

SMALL = "--set inputs=16 --set outputs=8 --instances 12"
LONG = ("run", "sweep", "product", "tolerance", "tune", "compress", "edge")
SPEAKING = (*LONG, "sensitivity", "cost", "merge", "report")


def call(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(words.split())
    return code, *capsys.readouterr()


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells.csv"
    rows = [f"{level},{5 + 5 * level + 0.02 * (cell - 10)}" for level in range(8) for cell in range(20)]
    path.write_text("\n".join(["level,G (uS)", *rows]))
    return path


def test_one_vocabulary() -> None:
    for name in SPEAKING:
        assert name in COMMANDS
        fields = entry.load(name).Options.__dataclass_fields__
        assert "said" in fields, name
        assert ("dry_run" in fields) == (name in LONG), name
    defaults = {name: entry.load(name).Options for name in ("run", "product")}
    assert defaults["run"]().device == defaults["product"]().product.device == "FeFET3"
    for name in ("sweep", "tolerance", "sensitivity"):
        assert "device" in entry.load(name).Options.__dataclass_fields__


def test_a_sweep_as_json_and_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"sweep --axis sigma=0.05,0.1 --device Gaussian {SMALL} --out {tmp_path / 's'} --no-plots"
    code, said, err = call(f"{words} --dry-run", capsys)
    assert (code, err) == (0, "")
    assert "2 points, 12 chips each. 24 chips: about" in said
    assert "Nothing was written" in said
    assert not (tmp_path / "s").exists()
    code, said, _ = call(f"{words} --json", capsys)
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["sigma"] for row in rows] == [0.05, 0.1]
    assert rows[0]["mean"] < rows[1]["mean"]
    assert call(f"{words} --quiet", capsys) == (0, "", "")
    about = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert "--quiet" not in about["command"]
    assert "--device Gaussian" in about["command"]
    # the folder of a sweep is one for `report`, too
    code, said, _ = call(f"report {tmp_path / 's'} --no-plots --json", capsys)
    assert code == 0
    assert [json.loads(line) for line in said.splitlines()] == [pytest.approx(row) for row in rows]


def test_dry_runs_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, wanted in {
        f"tolerance --max-error 0.5 --device Gaussian {SMALL}": "At most 12 values of sigma. 144 chips: about",
        "product --inputs 16 --outputs 8 --instances 12 --device Gaussian": "12 chips: about",
        "run": "rows of the table. About",
    }.items():
        code, said, err = call(f"{words} --dry-run", capsys)
        assert (code, err) == (0, "")
        assert wanted in said
        assert f"into runs/{words.split()[0]}: " in said
    assert not list(tmp_path.iterdir())


def test_chips_take_as_many_times_as_long(monkeypatch) -> None:
    clock = iter([0.0, 3.0, 3.0, 4.0])  # 2 s of compiling, 1 s of 10 chips
    monkeypatch.setattr(duration.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(duration.montecarlo, "run", lambda *args, **options: None)
    line, seconds = duration.chips(lambda key: key, (), 1000, programs=3, tried=10)
    assert seconds == pytest.approx(100 + 6)
    assert line == "1,000 chips: about 1.8 minutes here, by 10 of the first point; 3 compiled."


@pytest.mark.slow
def test_a_table_of_measurements_is_a_device(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = known_device(f"{cells}@40", sigma=0.5)
    assert float(found.g_max_us) == 40
    assert float(found.sigma) == 0.5
    before = content(f"{cells}@40")
    made = devices.from_records(devices.fit_records(devices.read_records(cells), g_max_us=40.0))
    assert found.name == made.name
    words = f"product --inputs 16 --outputs 8 --instances 4 --out {tmp_path / 'p'} --device"
    code, said, err = call(f"{words} {cells}@40 --json", capsys)
    assert code == 0, err
    assert json.loads(said)["settings"]["device"] == f"{cells}@40"
    code, said, err = call(f"{words} {cells}", capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "`--device` must be FILE@G_MAX_US" in err
    assert f"{cells}@40" in err  # the fix, which works
    cells.write_text(cells.read_text() + "\n0,5.5")
    assert content(f"{cells}@40") != before


def test_messages_name_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jsonl").write_text("a")
    (tmp_path / "bad-1.gguf").write_text("x")
    (tmp_path / "headless.csv").write_text("x,y\n1,2\n")
    for words, wanted in {
        f"run --data {tmp_path}/bad.jsonl": "`--data` must hold one JSON object a line",
        f"run --model {tmp_path}/bad-1.gguf": "`--model` must be a whole GGUF file",
        f"tune {tmp_path}/bad.jsonl": "`DATA` must hold one JSON object a line",
        f"edge {tmp_path}/bad.jsonl": "`DATA` must hold one JSON object a line",
        f"compress {tmp_path}/none.txt": "`TEXT` must name a file",
        "cost --technology X": "`--technology` must be one of",
        "tolerance --max-error 0.1 --low 1 --high 0": "`--low and --high` must be the least and the greatest",
        "tolerance --max-error 0.1 --share 2": "`--share` must lie in",
        f"device {tmp_path}/headless.csv --g-max-us 40": "Name it: --column g=HEADING",
        "sweep --axis sigma=0.1,x": "`sigma` must be a number",  # the user's own word
    }.items():
        code, said, err = call(words, capsys)
        assert (code, said, err.count("\n")) == (2, "", 1), err
        assert wanted in err


def test_an_unknown_argument_keeps_its_name() -> None:
    module = entry.load("tune")
    assert by_option("Argument `rank` must be 1.", module.Options, [], {}) == "Argument `--rank` must be 1."
    for message in ("Argument `other` must be 1.", "Argument `--rank` must be 1.", "There is none."):
        assert by_option(message, module.Options, [], {}) == message
