"""What experiments keep: lines, what they rest on, parts that are finished; rows compared stream by stream."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import records
from experiments.shift import paired


def test_lines_come_back_and_a_folder_without_them_is_refused(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2.5, "b": [1, 2]}]
    assert records.lines(tmp_path / "records.jsonl") == []
    with pytest.raises(ValueError, match=r"`folder` must hold records\.jsonl"):
        records.read(tmp_path)
    records.write(tmp_path / "records.jsonl", rows)
    assert records.read(tmp_path) == rows


def test_finished_parts_are_left_alone(tmp_path: Path) -> None:
    made = []

    def part(config, out):
        made.append(config["size"])
        yield {"value": config["size"]}

    for size in (3, 4):
        chosen = {"chosen": ["one"] if size == 3 else ["one", "two"], "config": {"size": size}}
        records.measure_parts("experiments.x.run", {"one": part, "two": part}, **chosen, out=tmp_path, arguments=["-a"])
    assert made == [3, 4]
    assert [records.read(tmp_path, name) for name in ("one", "two")] == [[{"value": 3}], [{"value": 4}]]
    about = json.loads((tmp_path / "two.json").read_text("utf-8"))
    assert (about["command"], about["config"]) == ("python -m experiments.x.run -a", {"size": 4})


def _row(stream: int, method: str, device: str, sigma: float, block: int, accuracy: float) -> dict:
    return {"stream": stream, "method": method, "device": device, "sigma": sigma, "block": block, "accuracy": accuracy}


def test_rows_are_compared_after_the_last_buffer_where_both_are() -> None:
    rows = [
        *(
            _row(s, "A", "X", 0.1, b, a)
            for s, b, a in ((0, 0, 0.0), (0, 1, 0.5), (0, 1, 0.7), (1, 1, 0.9), (2, 1, 0.1))
        ),
        _row(0, "A", "X", 0.2, 1, 0.0),
        *(_row(s, "B", "digital", 0.0, 1, a) for s, a in ((0, 0.2), (1, 0.3))),
    ]
    np.testing.assert_allclose(paired.difference(rows, "A@X@0.1", "B"), [0.4, 0.6])
    assert paired.of_row(rows, "A@X")[0] == pytest.approx(0.4)  # every sigma
    with pytest.raises(ValueError, match="`ROW` must be a row of the records, but C is none"):
        paired.of_row(rows, "C")
