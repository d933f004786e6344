"""Each notebook is valid, carries no outputs, and runs from top to bottom without a network."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def _code(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in _read(name)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_file_is_a_notebook_of_version_4_5_without_outputs(name: str) -> None:
    found = _read(name)
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


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_plain_python_that_needs_no_notebook_to_run(name: str) -> None:
    lines = [line for source in _code(name) for line in source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("%", "!"))]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Return a function that runs a notebook without a network, and returns its names and what it printed."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("the notebook must not need a network")

    def one(name: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr("subprocess.run", refuse)  # nothing is installed where the package is there
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {"__name__": "__main__"}
        # users have JAX's defaults, not this suite's strict ones
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
            for i, source in enumerate(_code(name)):
                exec(compile(source, f"{name}, code cell {i + 1}", "exec"), names)
        assert not list(tmp_path.iterdir()), "a notebook that is tried out leaves nothing behind"
        return names, capsys.readouterr().out

    return one


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    names, printed = run("quickstart")
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed)
    assert len(losses) == 2
    assert all(float(last) < float(first) for first, last in losses), printed
    with_prompts, without = map(float, re.findall(r"with prompts ([\d.]+), without ([\d.]+)", printed)[0])
    assert with_prompts > without, printed
    assert set(names["sigmas"]) == {0.0, 0.1, 0.2, 0.3}
    assert all(0 <= value <= 1 for rows in names["curves"].values() for row in rows for value in row)


@pytest.mark.slow
def test_measured_cells_run_from_top_to_bottom(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    names, printed = run("measured_cells")
    # Weights of four bits are off by themselves; the day adds to it.
    assert 0 < names["errors"][0.0] < names["errors"][60.0] < names["errors"][86400.0]
    shares = {name: float(share) for name, share in re.findall(r"(\w+): beyond 4 sigma ([\d.]+) %", printed)}
    assert 0.5 < shares["trajectories"] / shares["measured"] < 2
    assert shares["gaussian"] < 0.1 < shares["measured"]
    mean = names["study"]["trajectories"][0]
    assert all(abs(names["study"][law][0] / mean - 1) < 0.05 for law in ("empirical", "gaussian"))
