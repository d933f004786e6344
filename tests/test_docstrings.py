"""Every public name explains itself: an example that runs, every argument by its name, what comes back."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NoReturn, is_typeddict

import pytest

import nvcim_jax

ROOMS = sorted(
    file.parent.name for file in Path(nvcim_jax.__file__).parent.glob("*/__init__.py") if file.parent.name != "cli"
)
SECTION = re.compile(r"^ {4}(Args|Attributes|Returns|Yields|Raises|Example|References):$", re.M)
ENTRY = re.compile(r"^ {8}([\w*`][\w*`/, ]*?)(?: \([^)]*\))?:(?: |$)", re.M)


def public(of_class: bool) -> list[Any]:
    found = []
    for room in ROOMS:
        module = importlib.import_module(f"nvcim_jax.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            wanted = isinstance(value, type) if of_class else inspect.isroutine(value) or hasattr(value, "__wrapped__")
            if wanted:
                found.append(pytest.param(value, id=f"{room}.{name}"))
    return found


def section(text: str, name: str) -> str | None:
    """Return what stands below a head of a docstring, None if it has no such head."""
    parts = SECTION.split("\n" + inspect.cleandoc(text).replace("\n", "\n    "))
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(name)


def entries(text: str | None) -> set[str]:
    """Return the names that a section explains; one line may explain several, "a, b: both"."""
    return {name.strip(" `*") for line in ENTRY.findall(text or "") for name in re.split(r"[,/]", line)}


@pytest.mark.parametrize("function", public(of_class=False))
def test_a_public_function_has_an_example_and_explains_its_arguments(function):
    text = function.__doc__ or ""
    assert ">>> " in (section(text, "Example") or "")
    assert "+SKIP" not in text
    signature = inspect.signature(function)
    assert entries(section(text, "Args")) == set(signature.parameters)
    if signature.return_annotation not in (None, "None", NoReturn):
        said = section(text, "Returns") or section(text, "Yields")
        assert said is not None or text.split()[0] in ("Return", "Yield")


@pytest.mark.parametrize("kind", public(of_class=True))
def test_a_public_class_explains_its_fields(kind):
    fields = getattr(kind, "_fields", None) or getattr(kind, "__dataclass_fields__", ())
    fields = kind.__annotations__ if is_typeddict(kind) else fields
    text = kind.__doc__ or ""
    assert text
    explained = entries(section(text, "Attributes")) | entries(section(text, "Args"))
    assert {name for name in fields if not name.startswith("_")} == explained
