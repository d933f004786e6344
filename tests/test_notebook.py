"""The notebook is valid, carries no outputs, and runs from top to bottom without a network."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import jax
import pytest

PATH = Path(__file__).parents[1] / "experiments" / "notebooks" / "quickstart.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]


def _code() -> list[str]:
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_file_is_a_notebook_of_version_4_5_without_outputs() -> None:
    found = json.loads(PATH.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    for cell in found["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
        assert set(cell) == wanted


def test_it_is_plain_python_that_needs_no_notebook_to_run() -> None:
    lines = [line for source in _code() for line in source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("%", "!"))]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_without_a_network(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("the notebook must not need a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("subprocess.run", refuse)  # nothing is installed where the package is there
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    # users have JAX's defaults, not this suite's strict ones
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        for i, source in enumerate(_code()):
            exec(compile(source, f"{PATH.name}, code cell {i + 1}", "exec"), names)
    printed = capsys.readouterr().out
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed)
    assert len(losses) == 2
    assert all(float(last) < float(first) for first, last in losses), printed
    with_prompts, without = map(float, re.findall(r"with prompts ([\d.]+), without ([\d.]+)", printed)[0])
    assert with_prompts > without, printed
    assert set(names["sigmas"]) == {0.0, 0.1, 0.2, 0.3}
    assert all(0 <= value <= 1 for rows in names["curves"].values() for row in rows for value in row)
    assert not list(tmp_path.iterdir()), "a notebook that is tried out leaves nothing behind"
