"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


SLOW = "is_block_matrix"
"""What the blocks that compile for long have in them: all matrices of a language model on chips."""


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow) if SLOW in block else block for block in BLOCKS],
    ids=lambda block: block.splitlines()[0][:40],
)
def test_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # users have JAX's defaults, not this suite's strict ones
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        exec(compile(block, str(README), "exec"), {"__name__": "__main__"})


def test_there_is_something_to_run() -> None:
    assert BLOCKS
