"""The import table of the architecture, held against the code."""

import ast
from pathlib import Path

import pytest

import nvcim_jax

ROOT = Path(nvcim_jax.__file__).parent
BASE = {"types", "checks", "files", "progress", "signature"}

# room -> rooms it may import, besides itself and the base
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "checks": set(),
    "signature": set(),
    "files": set(),
    "progress": set(),
    "ops": set(),
    "devices": {"ops"},
    "crossbar": {"ops", "devices"},
    "montecarlo": {"ops"},
    "models": {"ops"},
    "tuning": {"ops", "models"},
    "selection": {"ops"},
    "compression": {"ops", "models"},
    "cost": {"devices"},
    "metrics": set(),
    "pipeline": {
        "ops",
        "devices",
        "crossbar",
        "montecarlo",
        "models",
        "tuning",
        "selection",
        "compression",
        "metrics",
    },
    "study": {
        "ops",
        "devices",
        "crossbar",
        "montecarlo",
        "models",
        "tuning",
        "selection",
        "metrics",
        "pipeline",
        "io",
    },
    "data": set(),
    "plots": set(),
    "io": {"ops", "devices", "montecarlo", "models", "selection", "pipeline"},
    "cli": {"*"},
}


def _rooms() -> list[str]:
    return sorted(
        path.stem
        for path in ROOT.iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())
    )


def _imports(path: Path) -> set[str]:
    """Return the names of the rooms that the files of one room import."""
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    rooms = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: write imports in full"
                names = [node.module or ""]
                if node.module == "nvcim_jax":
                    names = [f"nvcim_jax.{alias.name}" for alias in node.names]
            else:
                continue
            rooms |= {name.split(".")[1] for name in names if name.startswith("nvcim_jax.")}
    return rooms


@pytest.mark.parametrize("room", _rooms())
def test_room_imports_only_what_the_table_allows(room: str) -> None:
    assert room in ALLOWED, f"{room} is not in the table of rooms"
    allowed = ALLOWED[room]
    if "*" in allowed:
        return
    path = ROOT / room if (ROOT / room).is_dir() else ROOT / f"{room}.py"
    assert _imports(path) <= allowed | BASE | {room, "__version__"}


@pytest.mark.parametrize("room", [r for r in _rooms() if r not in {"data", "io", "plots", "study", "cli"}])
def test_numeric_rooms_use_neither_numpys_random_numbers_nor_the_environment(room: str) -> None:
    path = ROOT / room if (ROOT / room).is_dir() else ROOT / f"{room}.py"
    for file in [path] if path.is_file() else path.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "np.random" not in text, file
        assert "os.environ" not in text, file


def test_the_root_has_at_most_thirty_names() -> None:
    assert len(nvcim_jax.__all__) <= 30
