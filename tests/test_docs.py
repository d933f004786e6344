"""The Python of every page under docs/ runs as it stands, block after block."""

import re
from pathlib import Path

import jax
import pytest

from nvcim_jax import tuning

WORDS = {"command_line", "design", "papers", "results", "results_bundled", "other_simulators"}
"""Pages without a line of Python."""

PAGES = sorted(page for page in (Path(__file__).parents[1] / "docs").glob("*.md") if page.stem not in WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    # users have JAX's defaults, not this suite's strict ones
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        for block in blocks:
            exec(compile(block, str(page), "exec"), names)


def test_the_kinds_that_the_page_on_adapters_names_are_there() -> None:
    page = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if 'kind="' in line)
    names = re.findall(r'"(\w+)"', line)
    assert len(names) > 1
    for kind in names:
        tuning.zeroth_order(eps=1e-2, kind=kind)
