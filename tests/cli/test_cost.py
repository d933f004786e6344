"""`nvcim cost`: its table, figures and records, its options, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest

from nvcim_jax import cli, cost, pipeline
from nvcim_jax.cli.cost import FILES


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["cost", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_it_prints_a_bill_and_ratios_and_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--stored", "500", "--draws", "20", "--machine", "edge-8GB", "--out", str(tmp_path)]
    code, said, err = _call(words, capsys)
    assert code == 0, err
    for part in ("converters", "leakage", "500 stored prompts", "Reading 8 codes back", "edge-8GB"):
        assert part in said
    assert "at 500 stored prompts; rests on recalled, unchecked numbers: edge-8GB." in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    about = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    bill = cost.search(pipeline.Preset().arrays, 500, on=cost.technology("RRAM-22nm"))
    assert sum(about["bill"]["energy"].values()) == pytest.approx(float(bill.energy_j), rel=1e-5)
    assert about["ratios"][0]["stored"] == 500
    assert about["ratios"][0]["low"] < about["ratios"][0]["times the chip"] < about["ratios"][0]["high"]
    assert {row["mark"] for row in about["constants"]} <= set("PASDMUR")
    assert about["command"].startswith("nvcim cost ")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()))
    assert {row["of"] for row in rows} == {"RRAM-22nm", "edge-8GB"}
    assert all(float(row["low"]) < float(row["high"]) for row in rows)
    latency = [float(row["value"]) for row in rows if row["of"] == "edge-8GB" and row["quantity"] == "latency"]
    assert latency == sorted(latency)


def test_constants_are_printed_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--constant", "read_time=2e-8", "--constant", "edge-8GB.call=3e-6", "--machine", "edge-8GB"]
    code, said, _ = _call(["--constants", *given, "--out", str(tmp_path / "no")], capsys)
    assert code == 0
    lines = {line.split("│")[2].strip(): line for line in said.splitlines() if line.count("│") > 5}
    assert "2e-08" in lines["read_time"]
    assert " U " in lines["read_time"]
    assert "3e-06" in lines["call"]
    assert "ISAAC" in said
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--technology", "RRAM-22"], "Did you mean 'RRAM-22nm'"),
        (["--machine", "orin"], "must be one of"),
        (["--level", "drma"], "Did you mean 'dram'"),
        (["--machine", "stm32h743", "--stored", "999999999"], "fit into the ssd of stm32h743"),
        (["--adc-bits", "3"], "have adc_bits from 4 to 16, but has 3"),
        (["--lossless"], "hold every sum of 48 rows"),
        (["--machine", "orin-agx30W"], "`--machine` must be one of"),
        (["--technology", "FeFET-22"], "`--technology` must be one of"),
        (["--constant", "read_time"], "must be NAME=VALUE"),
        (["--constant", "read_tme=1e-9"], "Did you mean 'read_time'"),
        (["--constant", "cell_area=-1"], "`cell_area` must lie in"),
        (["--constant", "moon.call=1"], "name one of the machines"),
        (["--stored", "0"], "`--stored` must be an integer"),
        (["--node-nm", "5"], "`--node-nm` must lie in"),
        (["--draws", "1"], "`--draws` must be an integer of at least 20"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, err = _call([*words, "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert said == ""
    assert err.startswith("nvcim cost: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "out").exists()
