"""`nvcim report`: its intervals against the closed form, and one line for a folder without records."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support.study_records import CHIPS, records

from nvcim_jax import cli, io
from nvcim_jax.cli import figures
from nvcim_jax.cli.chip_means import chip_means
from nvcim_jax.cli.report import table


def test_one_stream_gets_the_interval_of_its_chips_and_several_that_of_the_streams() -> None:
    means = np.array([np.mean(chip) for chip in CHIPS])
    row = table(records(1))[0]
    # Student with two degrees of freedom: 4.3027
    half = 4.302653 * means.std(ddof=1) / 3**0.5
    assert row["accuracy"] == pytest.approx(means.mean())
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((means.mean() - half, means.mean() + half))
    assert (row["hit"], row["hit_low"], row["hit_high"]) == pytest.approx((0.75, 0.75, 0.75))
    row = table(records(2))[0]
    # Two stream means 0.1 apart, one degree of freedom: 12.7062 * 0.1 / sqrt(2) / sqrt(2)
    half = 12.706205 * 0.05
    assert row["accuracy"] == pytest.approx(means.mean() - 0.05)
    assert row["accuracy_high"] - row["accuracy"] == pytest.approx(half, rel=1e-5)


def test_table_and_figures_come_from_the_records_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records(1))
    (tmp_path / "records.jsonl").write_text(lines, encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "NVCiM-PT" in said
    assert "0.700" in said
    written = {path.name for path in tmp_path.iterdir()} - {"records.jsonl"}
    assert written == {"accuracy.png", "hit.png"}
    assert all(str(tmp_path / name) in said for name in written)
    # `plot` draws the same; `--json` gives the rows
    for name in written:
        (tmp_path / name).unlink()
    assert cli.main(["plot", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} - {"records.jsonl"} == written
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--no-plots", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["accuracy"] for row in rows] == [pytest.approx(0.7)]


def _whole(folder: Path, streams: int) -> Path:
    """Write the records of some streams as one table."""
    made = [row | {"device": name, "method": name} for name in ("FeFET3", "digital") for row in records(streams)]
    values = ("instance", "queries", "accuracy", "hit")
    axes = [name for name in made[0] if name not in values]
    return io.write_records(folder, made, axes=axes, command="nvcim run --seed 3", of="study")


def test_report_and_plot_read_the_table_of_a_run_as_that_of_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _whole(tmp_path, 2)
    assert cli.main(["report", str(tmp_path), "--no-plots", "--json"]) == 0
    (row,) = [row for line in capsys.readouterr().out.splitlines() if (row := json.loads(line))["method"] == "FeFET3"]
    assert row["accuracy"] == pytest.approx(0.65)
    assert cli.main(["plot", str(tmp_path), "--metric", "hit"]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"hit_ecdf.png", "hit_violin.png"}
    with pytest.importorskip("PIL.Image", reason="matplotlib brings it").open(tmp_path / "hit_ecdf.png") as picture:
        assert hashlib.sha256((tmp_path / "records.parquet").read_bytes()).hexdigest() in picture.info["Source"]
    capsys.readouterr()
    for words, said in (
        ("--metric error", "`--metric` must be one of accuracy, hit"),
        ("--bound .5", "`--metric` must be given with --x, --bound or --larger-is-better of a run"),
        ("--metric hit --x sigma", "`--x` must be one of"),
        ("--metric hit --bound nan", "`--bound` must lie in"),
        ("--metric hit --bound .5", "no axis with several numbers"),
    ):
        assert cli.main(["plot", str(tmp_path), *words.split()]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_a_run_and_a_sweep_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = io.write_records(tmp_path, [{"sigma": 0.1, "instance": 0, "error": 0.2}], axes=("sigma",), command="x")
    before = path.read_bytes()
    assert cli.main(["run", "--out", str(tmp_path)]) == 2
    assert "`--out` must be a folder of its own" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.unlink()
    _study(tmp_path)
    assert cli.main(["sweep", "--axis", "sigma=.1", "--out", str(tmp_path)]) == 2
    assert "holds a run. Use another folder." in capsys.readouterr().err
    assert not path.exists()


def test_rows_of_ones_own_are_reported_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chips = np.random.default_rng(0).uniform(size=(2, 50))
    rows = [
        {"sigma": sigma, "instance": i, "recall": float(value)}
        for sigma, own in zip((0.1, 0.2), chips, strict=True)
        for i, value in enumerate(own)
    ]
    path = io.write_records(tmp_path, rows, axes=("sigma",), command="python mine.py", larger_is_better=("recall",))
    assert cli.main(["report", str(tmp_path), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["sigma"], row["metric"], row["num_instances"]) for row in found] == [
        (0.1, "recall", 50),
        (0.2, "recall", 50),
    ]
    assert [row["mean"] for row in found] == pytest.approx(chips.mean(1))
    names = {"recall_ecdf", "recall_violin", "recall_against_sigma", "recall_yield_sigma"}
    assert {path.stem for path in tmp_path.glob("*.png")} == names
    with pytest.importorskip("PIL.Image", reason="matplotlib brings it").open(tmp_path / "recall_ecdf.png") as picture:
        assert "command: python mine.py" in picture.info["Source"]
    # nothing is said of them that they do not say, such as a device
    assert figures.of_sweep(path)[0]["recall_ecdf"].get_suptitle() == "50 chips each"
    io.write_records(tmp_path, rows, axes=("sigma",), command="python mine.py", of="study")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "must hold the records of a study, but has no kind" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-9])
    assert cli.main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert said.count("\n") == 1


def test_the_spread_over_chips_is_of_their_means_after_the_last_buffer(tmp_path: Path) -> None:
    earlier = [row | {"block": 0, "accuracy": 0.0} for row in records(2)]
    rows = chip_means([*earlier, *records(2)])
    assert [row["accuracy"] for row in rows] == pytest.approx([0.6, 0.6, 0.9, 0.5, 0.5, 0.8])
    drawn, source = figures.of_run_chips(rows, _whole(tmp_path, 2), "nvcim run --seed 3", "accuracy")
    assert source["command"] == "nvcim run --seed 3"
    (axes,) = drawn["accuracy_ecdf"].axes
    assert [line.get_label() for line in axes.lines] == ["stream 0", "stream 1"]
    assert list(axes.lines[1].get_xdata()) == pytest.approx([0.5, 0.5, 0.8])
    assert "FeFET3, sigma 0.1; 3 chips each" in drawn["accuracy_ecdf"].get_suptitle()


@pytest.mark.parametrize(("make", "message"), [(True, "must hold records.jsonl"), (False, "must name a folder")])
def test_a_folder_without_records_gets_one_line(
    make: bool, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if make:
        folder.mkdir()
    assert cli.main(["report", str(folder)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("nvcim report: ")
    assert said.err.count("\n") == 1
    assert message in said.err


def _study(folder: Path) -> Path:
    """Write three methods on two streams, with the file that says how many records there must be."""
    made = [
        {**r, "method": method, "stream": s}
        for method in ("frozen", "NVP*(MIPS)", "NVCiM-PT")
        for s in (0, 1)
        for r in records(1)
    ]
    place = ("kind", "stream", "device", "sigma", "trained_for", "method")
    units = list(dict.fromkeys(tuple(r[name] for name in place) for r in made))
    about = {"fingerprint": {}, "units": [[*unit, 6] for unit in units]}
    (folder / "study.json").write_text(json.dumps(about), encoding="utf-8")
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made), encoding="utf-8")
    return path


@pytest.mark.parametrize("size", [1, 999, 3000, 5000, 7000])
def test_a_cut_file_of_records_is_counted_and_shows_no_mean_over_what_is_missing(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _study(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    there = whole[:size].count(b"\n")
    code = cli.main(["report", str(tmp_path), "--no-plots"])
    said = capsys.readouterr()
    assert f"{there} of 36 records are there" in said.out + said.err
    finished = there // 12  # rows of the table: six records of each of two streams
    assert code == (1 if finished else 2)
    assert sum("FeFET3, sigma" in line for line in said.out.splitlines()) == finished


def test_a_damaged_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _study(tmp_path)
    lines = path.read_bytes().split(b"\n")
    for damage in (b'{"kind": "blo', b"\xff\xfe\x00", b"[1, 2]", b"null"):
        path.write_bytes(b"\n".join([*lines[:4], damage, *lines[5:]]))
        assert cli.main(["report", str(tmp_path), "--no-plots"]) == 2
        said = capsys.readouterr().err
        assert f"line 5 of {path} is damaged. Delete that line" in said
        assert said.count("\n") == 1


def test_folders_that_are_not_parts_of_one_study_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(name: str, stream: int, rank: int = 1) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        made = [row | {"stream": stream} for row in records(1)]
        unit = [made[0][field] for field in ("kind", "stream", "device", "sigma", "trained_for", "method")]
        about = {"fingerprint": {"config": {"preset": {"rank": rank}, "streams": {}}}, "units": [[*unit, len(made)]]}
        (tmp_path / name / "study.json").write_text(json.dumps(about), encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in made)
        (tmp_path / name / "records.jsonl").write_text(lines, encoding="utf-8")

    words = ["report", str(tmp_path), "--no-plots"]
    part("a", 0)
    part("b", 1)
    assert cli.main(words) == 0
    assert "2 x 3" in capsys.readouterr().out
    part("b", 0)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    found = f"NVCiM-PT on stream 0 and FeFET3 stands in {tmp_path / 'a'} and {tmp_path / 'b'}"
    assert f"`FOLDER` must hold each unit once, but {found}. Read each" in said
    part("b", 1, rank=2)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "must hold parts of one study" in said
    assert "the setting preset.rank (1 there, 2 here)" in said
