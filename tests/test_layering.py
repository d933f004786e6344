"""The import table of the architecture, held against the code."""

import ast
import importlib
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
    "montecarlo": {"ops", "metrics"},
    "models": {"ops"},
    "tuning": {"ops", "models"},
    "selection": {"ops"},
    "compression": {"ops", "models"},
    "cost": {"ops", "devices", "crossbar", "models"},
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
    "io": {"ops", "metrics", "devices", "crossbar", "montecarlo", "models", "tuning", "selection", "pipeline"},
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


MODULES = {
    ".".join(("nvcim_jax", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def _room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _names_taken(path: Path) -> set[str]:
    """Return what a file takes from other rooms: "room.name" and "room.name.further", imported or as an attribute."""
    taken, rooms = set(), {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken |= {alias.name.removeprefix("nvcim_jax.") for alias in node.names if alias.name[:10] == "nvcim_jax."}
        elif isinstance(node, ast.ImportFrom) and node.module == "nvcim_jax":
            rooms |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nvcim_jax."):
            taken |= {f"{node.module.removeprefix('nvcim_jax.')}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms:
            taken.add(f"{rooms[node.value.id]}.{node.attr}")
    return {name for name in taken if name.split(".")[0] != _room_of(path)}


STUDY = {name: path for name, path in MODULES.items() if _room_of(path) == "study"}
"""The files of `study` see those of `pipeline`: both are one method, and its measurement."""
WALLED = {name: path for name, path in MODULES.items() if name not in STUDY}


@pytest.mark.parametrize("path", WALLED.values(), ids=WALLED)
def test_a_room_takes_only_what_another_shows(path: Path) -> None:
    """No reach-through: a room is what its `__all__` says, its files and everything else are its own."""
    for name in _names_taken(path):
        room, _, rest = name.partition(".")
        if rest and room != "__version__":
            shown = importlib.import_module(f"nvcim_jax.{room}").__all__
            assert rest in shown, f"{path.relative_to(ROOT)} takes {name}, which {room} does not show"


def _imported_at_once(path: Path) -> set[str]:
    """Return the modules that a file needs before it can be imported itself; imports in functions come later."""
    found = set()
    waiting = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= whole or {node.module or ""}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found & MODULES.keys()


def test_no_files_import_each_other_in_a_circle() -> None:
    needs = {name: _imported_at_once(path) for name, path in MODULES.items()}
    while ready := [name for name, wanted in needs.items() if not wanted]:
        for name in ready:
            del needs[name]
        needs = {name: wanted - set(ready) for name, wanted in needs.items()}
    assert not needs


@pytest.mark.parametrize("room", [room for room in _rooms() if (ROOT / room).is_dir()])
def test_a_room_has_at_most_thirty_names(room: str) -> None:
    assert len(importlib.import_module(f"nvcim_jax.{room}").__all__) <= 30


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_a_function_takes_at_most_nine_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            several = [given.vararg, given.kwarg]
            number = len(given.posonlyargs + given.args + given.kwonlyargs) + sum(a is not None for a in several)
            assert number <= 9, f"{path.relative_to(ROOT)}: {node.name} takes {number}"
