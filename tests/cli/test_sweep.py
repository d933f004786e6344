"""Sweep, shards, merge, figures: from the command line to records and back."""

import csv
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nvcim_jax import cli, io, montecarlo
from nvcim_jax.cli import figures, matrix
from nvcim_jax.cli.spec import read_grid

BARE = " ".join(f"--set {name}=none" for name in ("rows", "cols", "weight_bits", "dac_bits", "adc_bits"))
"""Analog weights on one array without converters, so that every number is that of the noise alone."""
SMALL = f"{BARE} --set inputs=16 --set outputs=8 --set batch=2 --instances 12"
AXES = "--axis device=Gaussian,FeFET6 --axis sigma=0.05,0.1"


def _main(words: str) -> int:
    return cli.main(words.split())


def _values(folder: Path) -> dict[str, np.ndarray]:
    points = io.read_points(folder)
    return {json.dumps(settings): table.columns["error"] for settings, table in points}


@pytest.mark.slow
def test_a_sweep_writes_table_records_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(f"sweep {AXES} {SMALL} --out {tmp_path}") == 0
    out, err = capsys.readouterr()
    assert "4 points by 2 compiled programs" in err
    assert "FeFET6" in out
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert len(rows) == 4
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.num_rows == 48
    assert table.schema.metadata[b"command"].decode().startswith("nvcim sweep --axis device=Gaussian,FeFET6")
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {f"error_{what}.png" for what in ("ecdf", "violin", "against_sigma", "yield_sigma")}
    before = _values(tmp_path)
    assert _main(f"sweep {AXES} {SMALL} --out {tmp_path} --no-plots") == 0
    for name, values in _values(tmp_path).items():
        np.testing.assert_array_equal(values, before[name])


def test_another_setting_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _main(f"sweep --axis sigma=0.1 {SMALL} --out {tmp_path} --no-plots")
    capsys.readouterr()
    assert _main(f"sweep --axis sigma=0.1 {SMALL} --set adc_bits=8 --out {tmp_path} --no-plots") == 2
    assert "the setting adc_bits (None there, 8 here)" in capsys.readouterr().err


@pytest.mark.slow
def test_points_of_another_sweep_are_refused_beside_those_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"sweep {BARE} --set inputs=4 --set outputs=2 --set batch=1 --instances 2 --no-plots"
    for sigma in ("0.1", "0.2"):  # an axis may grow
        assert _main(f"{words} --axis sigma={sigma} --out {tmp_path / 'a'}") == 0
    capsys.readouterr()
    for other, said in (
        ("--seed 7", r"the seed (0 there, 7 here)"),
        ("--device PCM", "the setting device (nothing there, 'PCM' here)"),
        ("--set inputs=5", "the setting inputs (4 there, 5 here)"),
    ):
        assert _main(f"{words} --axis sigma=0.3 {other} --out {tmp_path / 'a'}") == 2
        err = capsys.readouterr().err
        assert f"sigma=0.1 differs in {said}. Use another folder" in err
        assert err.count("\n") == 1
    assert len(list((tmp_path / "a" / "points").iterdir())) == 2
    assert _main(f"{words} --axis sigma=0.3 --seed 7 --out {tmp_path / 'b'}") == 0
    capsys.readouterr()
    assert _main(f"merge {tmp_path / 'c'} {tmp_path / 'a'} {tmp_path / 'b'}") == 2
    assert "sigma=0.3 differs in the seed (0 there, 7 here)" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    (tmp_path / "b" / "points" / "sigma=0.3").rename(tmp_path / "a" / "points" / "sigma=0.3")
    with pytest.raises(ValueError, match=r"must hold the points of the sweep of .*sigma=0.1 alone"):
        io.read_points(tmp_path / "a")


@pytest.mark.slow
def test_the_device_of_a_file_stands_in_every_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "grid.toml", tmp_path / "out"
    fixed = 'device = "PCM"\nsigma = 0.5\ninputs = 4\noutputs = 2\nbatch = 1\nweight_bits = 4\n'
    file.write_text(f"instances = 4\nseed = 3\n[axes]\nadc_bits = [6, 8]\n[fixed]\n{fixed}", encoding="utf-8")
    for shard in ("1/2", "2/2"):
        assert _main(f"sweep {file} --shard {shard} --out {out}") == 0
    capsys.readouterr()
    assert _main(f"merge {out} --no-plots") == 0
    assert "over chips; sigma (multiple of the measured noise)" in capsys.readouterr().out
    drawn = figures.of_sweep(out / "records.parquet")[0]["error_ecdf"]
    assert drawn.get_suptitle().startswith("PCM, sigma 0.5 (multiple of the measured noise); 4 chips each")
    merged, shard = (json.loads((path / "sweep.json").read_text()) for path in (out, out / "shard-0001-of-0002"))
    assert {name: shard[name] for name in ("axes", "fixed", "seed", "instances")}.items() <= merged.items()
    file.write_text(f"[axes]\nsigma = [0.5, 1.0]\n[fixed]\n{fixed.replace('sigma = 0.5', '')}", encoding="utf-8")
    assert _main(f"sweep {file} --instances 4 --out {tmp_path / 'sigma'} --no-plots") == 0
    drawn = figures.of_sweep(tmp_path / "sigma" / "records.parquet")[0]["error_against_sigma"]
    assert drawn.axes[0].get_xlabel() == "sigma (multiple of the measured noise)"
    assert drawn.get_suptitle().startswith("PCM; sigma (multiple of the measured noise)")


@pytest.mark.slow
def test_shards_merge_into_the_whole_and_gaps_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _main(f"sweep {AXES} {SMALL} --out {tmp_path / 'whole'} --no-plots")
    for k in (1, 3):
        assert _main(f"sweep {AXES} {SMALL} --shard {k}/3 --out {tmp_path / 'parts'}") == 0
    capsys.readouterr()
    assert _main(f"merge {tmp_path / 'parts'} --no-plots") == 1
    assert "chips 4-7 are missing" in capsys.readouterr().err
    assert _main(f"sweep {AXES} {SMALL} --shard 2/3 --out {tmp_path / 'parts'}") == 0
    assert _main(f"merge {tmp_path / 'parts'} --no-plots") == 0
    whole, parts = _values(tmp_path / "whole"), _values(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


def test_a_file_says_the_same_as_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'instances = 12\n[axes]\ndevice = ["Gaussian", "FeFET6"]\nsigma = [0.05, 0.1]\n[fixed]\ninputs = 16\n'
    )
    words = read_grid(None, ["device=Gaussian,FeFET6", "sigma=0.05,0.1"], ["inputs=16"], 12)
    assert read_grid(file) == words
    changed = read_grid(file, ["sigma=1,2"], ["device=PCM"], seed=3)
    assert changed.settings() == [{"device": "PCM", "inputs": 16, "sigma": s} for s in (1.0, 2.0)]
    assert changed.seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes = 3", r"`axes` must be a table, but is 3. Write \[axes\]"),
        ("[axis]\nsigma = [1.0]", "`axis` must be one of.*Did you mean 'axes'"),
        ("[axes]\nsigma = 0.1", "`axes.sigma` must be a list"),
        ("[axes\n", "`file` must be a TOML file"),
        ("instances = 1.5\n[axes]\nsigma = [0.1]", "`instances` must be an integer"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_grid(tmp_path / "grid.toml")


@pytest.mark.slow
def test_methods_are_an_axis_over_common_chips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--axis mitigation=none,write_verify,column_factors,drift_compensation --axis drift_time_s=60,1e7 "
        f"{BARE} --set device=PCM --set inputs=64 --set outputs=16 --set batch=4 --instances 40"
    )
    assert _main(f"sweep {words} --out {tmp_path} --no-plots") == 0
    assert "8 points by 4 compiled programs" in capsys.readouterr().err
    points = {(s["mitigation"], s["drift_time_s"]): t.columns["error"] for s, t in io.read_points(tmp_path)}
    for mitigation in ("column_factors", "drift_compensation"):
        difference = points["none", 1e7] - points[mitigation, 1e7]
        assert difference.mean() > 5 * difference.std(ddof=1) / len(difference) ** 0.5
        assert points["none", 1e7].std() > 0


@pytest.mark.slow
def test_write_verify_reaches_the_residual_noise_and_leaves_the_chips(tmp_path: Path) -> None:
    words = (
        "--axis mitigation=none,write_verify --axis verified_share=0,1 --set residual_sigma=0.02 --set sigma=0.1 "
        f"{BARE} --set device=Gaussian --set inputs=64 --set outputs=16 --set batch=4 --instances 50"
    )
    assert _main(f"sweep {words} --out {tmp_path} --no-plots") == 0
    points = {(s["mitigation"], s["verified_share"]): t.columns["error"] for s, t in io.read_points(tmp_path)}
    plain = points["none", 0.0]
    np.testing.assert_allclose(points["write_verify", 0.0], plain, rtol=1e-5)
    # the noise is linear where nothing is clipped: a fifth of it, chip by chip
    np.testing.assert_allclose(points["write_verify", 1.0], plain / 5, rtol=1e-3)


def test_converters_are_calibrated_where_the_range_asks_for_it(tmp_path: Path) -> None:
    words = (
        f"--axis adc_range=calibrated,max {BARE} --set adc_bits=6 --set device=ideal --set inputs=64 "
        "--set outputs=16 --set batch=4 --instances 5"
    )
    assert _main(f"sweep {words} --out {tmp_path} --no-plots") == 0
    points = {s["adc_range"]: t.columns["error"] for s, t in io.read_points(tmp_path)}
    assert points["calibrated"].mean() < 0.3 * points["max"].mean()


def test_points_stop_at_a_half_width(tmp_path: Path) -> None:
    words = f"{SMALL} --instances 5000 --set device=Gaussian --axis sigma=0.02,0.2 --half-width 0.004"
    assert _main(f"sweep {words} --out {tmp_path} --no-plots") == 0
    counts = [len(values) for values in _values(tmp_path).values()]
    assert counts[0] == 200
    assert 200 < counts[1] < 5000


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs the extra `cluster`")
def test_local_jobs_run_the_shards(tmp_path: Path) -> None:
    words = f"sweep --axis sigma=0.1 {SMALL} --out {tmp_path} --submit local --shards 2"
    done = subprocess.run(
        [sys.executable, "-m", "nvcim_jax.cli", *words.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 jobs" in done.stdout
    about = json.loads((tmp_path / "shard-0002-of-0002" / "sweep.json").read_text())
    assert about["command"] == f"nvcim {words.removesuffix(' --submit local --shards 2')} --shard 2/2"
    assert _main(f"merge {tmp_path} --no-plots") == 0
    _main(f"sweep --axis sigma=0.1 {SMALL} --out {tmp_path / 'whole'} --no-plots")
    for one, two in zip(_values(tmp_path).values(), _values(tmp_path / "whole").values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_number_in_a_figure_can_be_traced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, which matplotlib brings")
    _main(f"sweep --axis sigma=0.05,0.1 {SMALL} --out {tmp_path}")
    (tmp_path / "error_ecdf.png").unlink()
    assert _main(f"plot {tmp_path} --bound 0.3") == 0
    with image.open(tmp_path / "error_ecdf.png") as picture:
        source = picture.info["Source"]
    digest = hashlib.sha256((tmp_path / "records.parquet").read_bytes()).hexdigest()
    assert digest in source
    assert "command: nvcim sweep --axis sigma=0.05,0.1" in source
    assert _main(f"plot {tmp_path} --metric eror") == 2
    assert "Did you mean 'error'" in capsys.readouterr().err


def test_error_of_gaussian_cells_is_the_closed_form() -> None:
    import jax
    import jax.numpy as jnp

    ideal = dict.fromkeys(("rows", "cols", "weight_bits", "dac_bits", "adc_bits"))
    settings = {"device": "Gaussian", "inputs": 64, "outputs": 32, "batch": 4, "weight_scale": "tensor", **ideal}
    weights, x = matrix.operands(settings)
    stats = montecarlo.run(
        lambda key, w, x: jnp.square(matrix.build(settings)(key, {"sigma": jnp.float32(0.02)}, w, x)["error"]),
        jax.random.key(0),
        400,
        args=(weights, x),
    )
    # each column of each vector: sigma^2 * 2 * w_max^2 * sum x^2
    noise = 32 * 2 * (0.02 * float(jnp.abs(weights).max())) ** 2 * float(jnp.square(x).sum())
    truth = noise / float(jnp.square(x @ weights).sum())
    assert abs(stats.mean - truth) < 5 * stats.standard_error


def test_tolerance_prints_what_the_product_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{SMALL} --set device=Gaussian --instances 500 --max-error 0.3 --resolution 0.01"
    words = f"{words} --out {tmp_path}"
    assert _main(f"tolerance {words}") == 0
    out = capsys.readouterr().out
    assert "share of good chips" in out
    assert "sigma <= 0.0" in out
    assert "sure up to 0.0" in out
    assert _main(f"tolerance {words} --high 0.001") == 2
    assert "Raise the greatest x" in capsys.readouterr().err


def test_sensitivity_names_the_property_that_limits(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{SMALL} --set device=Gaussian --instances 300 --of sigma=0.1 --of d2d_sigma=0.01"
    assert _main(f"sensitivity {words}") == 0
    out = capsys.readouterr().out
    assert out.index(" sigma ") < out.index("d2d_sigma")


@pytest.mark.slow
def test_sensitivity_to_bits_levels_and_time_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{SMALL} --instances 200 --set device=FeFET6 --set sigma=0.02 --set adc_range=max"
    assert _main(f"sensitivity {words} --of level_sigma --of adc_bits=5.5 --of dac_bits=6") == 0
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if "│" in line}
    assert [name for name in rows if name.startswith("level_sigma at g = ")] != []
    assert sum(name.startswith("level_sigma") for name in rows) == 4
    assert float(rows["adc_bits"][0]) == 5.5
    assert float(rows["adc_bits"][1]) < float(rows["dac_bits"][1]) < 0  # an ADC of 5.5 bits limits this product
    assert _main(f"sensitivity {SMALL} --instances 50 --set device=PCM --of drift_time_s=3600 --of adc_bits=6") == 0
    assert "drift_time_s" in capsys.readouterr().out


def test_sensitivity_to_bits_agrees_with_the_error_of_hard_converters(capsys: pytest.CaptureFixture[str]) -> None:
    """The slope at 6.5 bits is that between hard converters of 6 and 7 bits, of the logarithm of the error."""
    common = f"{BARE} --set device=ideal --set inputs=64 --set outputs=64 --set batch=64 --set adc_range=max"
    assert _main(f"sensitivity {common} --instances 20 --of adc_bits=6.5") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if " adc_bits " in line).split("│")
    relative = float(row[-2]) / 6.5  # percent of the mean for 1 % of the bits, to d ln(mean) / d bits
    import jax

    errors = []
    for bits in (6, 7):
        settings = {
            "device": "ideal", "inputs": 64, "outputs": 64, "batch": 64, "adc_range": "max", "adc_bits": bits,
            **dict.fromkeys(("rows", "cols", "weight_bits", "dac_bits"))
        }  # fmt: skip
        metric = matrix.build(settings)
        errors.append(float(metric(jax.random.key(0), {}, *matrix.operands(settings))["error"]))
    assert relative == pytest.approx(np.log(errors[1] / errors[0]), rel=0.05)


def test_a_damaged_description_of_a_shard_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shard-0001-of-0002").mkdir()
    for content in ("{", "[]", '{"command": "x"}'):
        (tmp_path / "shard-0001-of-0002" / "sweep.json").write_text(content)
        assert _main(f"merge {tmp_path} --no-plots") == 2
        said = capsys.readouterr().err
        assert "sweep.json is damaged" in said
        assert said.count("\n") == 1


def test_what_is_reported_is_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{SMALL} --out {tmp_path} --no-plots --set device=Gaussian"
    assert _main(f"sweep --axis sigma=0.1 {words} --instances 20") == 0
    capsys.readouterr()
    assert _main(f"sweep --axis sigma=0.1 {words} --instances 10") == 0
    assert f"left out: {tmp_path} also holds 10 further instances of these" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "records.parquet").num_rows == 10
    assert _main(f"sweep --axis sigma=0.2,0.1 {words} --instances 12") == 0
    assert "also holds 8 further instances of these" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert [(row["sigma"], row["num_instances"]) for row in rows] == [("0.2", "12"), ("0.1", "12")]
    assert _main(f"sweep --axis sigma=0.2 {words} --instances 12") == 0
    assert "also holds 1 other points" in capsys.readouterr().out


def test_another_seed_is_refused_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"sweep --axis sigma=0.1 {SMALL} --out {tmp_path} --no-plots"
    assert _main(words) == 0
    capsys.readouterr()
    assert _main(f"{words} --seed 1") == 2
    said = capsys.readouterr().err
    assert "differs in the seed (0 there, 1 here)" in said
    assert json.loads((tmp_path / "sweep.json").read_text())["seed"] == 0
    assert "sha256" not in said
    assert said.count("\n") == 1


def test_a_tolerance_goes_on_from_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{SMALL} --set device=Gaussian --instances 100 --max-error 0.3 --resolution 0.1 --out {tmp_path}"
    assert _main(f"tolerance {words}") == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("nvcim_jax.montecarlo.engine._call", None)  # nothing is computed again
    assert _main(f"tolerance {words}") == 0
    assert capsys.readouterr().out == first


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sweep --axis sigma=0.1,0.2", "tolerance --max-error 0.3 --set device=Gaussian"])
def test_an_interrupt_says_what_is_true(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvcim_jax.montecarlo import engine

    call, calls = engine._call, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return call(*given)

    monkeypatch.setattr(engine, "_call", interrupted)
    words = f"{command} {SMALL} --out {tmp_path / 'out'}"
    allowed = 0
    assert _main(words) == 130
    assert f"interrupted; nothing is finished yet in {tmp_path / 'out'}." in capsys.readouterr().err
    calls.clear()
    allowed = 2
    assert _main(words) == 130
    assert "and the same command goes on from there." in capsys.readouterr().err
    assert io.holds(tmp_path / "out")


def test_yields_know_which_way_is_good() -> None:
    from nvcim_jax.plots import chips

    columns = {"sigma": np.repeat([0.1, 0.2], 100), "instance": np.tile(np.arange(100), 2)}
    columns["accuracy"] = np.concatenate([np.linspace(0.8, 1.0, 100), np.linspace(0.5, 0.7, 100)])
    records = chips.Records(columns, ("sigma",), {})
    assert chips.larger_is_better(records, "accuracy")
    assert not chips.larger_is_better(records, "loss")
    assert chips.larger_is_better(records._replace(source={"larger_is_better": "loss"}), "loss")
    # what 95 % of the chips reach at sigma 0.1, the better setting
    assert chips._reached(-columns["accuracy"], records) == pytest.approx(-0.81, abs=0.003)
    figure = chips.yield_curve(records, "accuracy", "sigma")
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([0.95, 0.0], abs=0.011)
