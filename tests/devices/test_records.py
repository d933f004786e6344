"""Files of measured cells in every layout that people write, and one line for what cannot be read."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvcim_jax import devices

# cell, seconds, level, microsiemens
ROWS = [(c, t, c % 2, 10.0 + 20.0 * (c % 2) + c - 0.5 * (t > 0)) for c in range(4) for t in (0.0, 60.0)]
G_US = np.array([row[3] for row in ROWS])


def _lines(row: str, header: str = "") -> str:
    body = "\n".join(row.format(c=c, t=t, level=level, g=g, r=1e3 / g) for c, t, level, g in ROWS)
    return (header + "\n" if header else "") + body + "\n"


LAYOUTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "headings with units": ("a.csv", _lines("{c},{t},{level},{g}", "cell,t_s,level,g_us"), {}),
    "other words": ("a.csv", _lines("{g},{level},{t},{c}", "Conductance (uS),State,time [s],Device ID"), {}),
    "kohm": ("a.csv", _lines("{r!r},{level},{t},{c}", "Resistance [kOhm],state,time,cell"), {}),
    "kohm in the name": ("a.csv", _lines("{r!r},{level},{t},{c}", "resistance_kohm,state,time,cell"), {}),
    "no header, numbers": (
        "a.tsv",
        _lines("{g}e-6\t{c}\t{t}\t{level}"),
        {"columns": {"g": 0, "cell": 1, "t_s": 2, "level": 3}, "units": {"g": "S"}},
    ),
    "blanks and comments": (
        "a.txt",
        "# probe station\n% 3\n" + _lines("{c}  {t} {level}   {g}"),
        {"columns": {"cell": 0, "t": 1, "level": 2, "g": 3}, "units": {"g": "uS"}},
    ),
    "semicolons, decimal commas": (
        "a.csv",
        _lines("{c};{t};{level};{g}", "cell;time (s);level;G (µS)").replace(".", ","),
        {},
    ),
    "bars": ("a.txt", _lines("{c}|{t}|{level}|{g}", "cell|t|level|g"), {"units": {"g": "uS"}}),
    "an index": ("a.csv", _lines("7,{c},{t},{level},{g}", ",cell,t_s,level,g_us"), {}),
    "ohm given as g": (
        "a.csv",
        _lines("{c},{t},{level},{r!r}", "cell,t,level,x"),
        {"columns": {"cell": "cell", "t": "t", "level": "level", "g": "x"}, "units": {"g": "kohm"}},
    ),
    "minutes": ("a.csv", _lines("{c},{t},{level},{g}", "cell,time_min,level,g_us").replace(",60.0,", ",1.0,"), {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_layout_gives_the_same_records(layout: str, packed: bool, tmp_path: Path) -> None:
    name, text, options = LAYOUTS[layout]
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    records = devices.read_records(path, **options)
    np.testing.assert_allclose(records.g_us, G_US, rtol=1e-9)
    np.testing.assert_array_equal(records.level, [row[2] for row in ROWS])
    np.testing.assert_array_equal(records.cell, [row[0] for row in ROWS])
    np.testing.assert_allclose(records.t_s, [row[1] for row in ROWS])
    assert records.labels == ("0", "1")
    assert records.left_out == {}


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("cell", "t_s", "level", "g_us")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))), tmp_path / "a.parquet")
    np.testing.assert_allclose(devices.read_records(tmp_path / "a.parquet").g_us, G_US)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ValueError, match=r"must be a Parquet file, but .*b\.parquet is none"):
        devices.read_records(tmp_path / "b.parquet")


def test_levels_are_words_or_targets(tmp_path: Path) -> None:
    path = tmp_path / "words.csv"
    path.write_text("state,g (uS)\nHRS,1\nLRS,40\nHRS,1.5\n")
    records = devices.read_records(path)
    assert records.labels == ("HRS", "LRS")
    assert records.level.tolist() == [0, 1, 0]
    path.write_text("target_us,g_us\n10.0,9\n30,31\n10,11\n")
    records = devices.read_records(path)
    assert records.labels == ("10", "30")
    assert records.target_us is not None
    assert records.target_us.tolist() == [10.0, 30.0]


def test_rows_that_are_no_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    rows = ["0,5,a", "0,,a", "1,nan,a", "1,OVLD,b", "-3,5,b", "x,5,b", "2,7,", "1,6,b", "1,2", "2,inf,a"]
    path.write_text("t_s,r_kohm,level\n" + "\n".join(rows))
    records = devices.read_records(path)
    assert records.g_us.tolist() == [200.0, pytest.approx(1e3 / 6)]
    assert dict(records.left_out) == {
        "another number of fields": 1,
        "no finite conductance": 4,
        "no level": 1,
        "no finite time": 1,
        "time before programming": 1,
    }


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no unit": ("level,g\n0,1\n1,2\n", {}, "`units` must say the unit of column 'g', but nothing says it"),
    "another unit": ("level,g_us\n0,1\n1,2\n", {"units": {"g": "S"}}, "agree with the heading .* says uS"),
    "no such unit": ("level,g\n0,1\n1,2\n", {"units": {"g": "uF"}}, "`units` must be one of .* but is 'uF'"),
    "siemens that are none": ("level,g\n0,1\n1,20\n", {"units": {"g": "S"}}, "greatest is 1.98e\\+07 uS"),
    "no levels": ("cell,g_us\n0,1\n1,2\n", {}, "have a column of levels or targets, .* has cell, g_us"),
    "no header": ("0,1\n1,2\n", {}, "`columns` must be given for a file without headings"),
    "no such column": ("level,g_us\n0,1\n", {"columns": {"g": "gus", "level": "level"}}, "Did you mean 'g_us'"),
    "beyond the columns": ("0,1\n1,2\n", {"columns": {"g": 5, "level": 0}}, "'a.csv' has 2 columns"),
    "a column of nothing known": (
        "level,g_us\n0,1\n",
        {"columns": {"gee": 0}},
        "`columns` must be one of cell, cycle, g",
    ),
    "one column": ("level\n0\n1\n", {}, "have two columns at least"),
    "no rows": ("level,g_us\n", {}, "hold rows of records"),
    "no records": (
        "level,g_us\n0,nan\n1,nan\n",
        {},
        "hold one record at least, .* holds 2 rows, of which 2 with no finite conductance",
    ),
    "several targets": (
        "level,target_us,g_us\n0,1,1\n0,2,1\n",
        {},
        "one target for each level, .* several of level '0'",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(mistake: str, tmp_path: Path) -> None:
    text, options, message = REFUSED[mistake]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        devices.read_records(tmp_path / "a.csv", **options)
    assert "\n" not in str(caught.value)
