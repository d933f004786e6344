"""Every family against transformers + torch: committed outputs always, torch itself where it is installed."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NAMES = sorted(json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8")))
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


def _outputs(lm: models.LM, ids: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return what make_golden.py keeps of torch."""

    @jax.jit
    def run(lm, x, mask, weights):
        def inner(x):
            logits, info = models.forward(lm, models.Inputs(x, mask), exits=(1,))
            return (logits * weights).sum(), (logits, info.hidden[0])

        (_, kept), gradient = jax.value_and_grad(inner, has_aux=True)(x)
        return *kept, gradient

    x = models.embed(lm, jnp.asarray(ids))
    logits, hidden, gradient = run(lm, x, jnp.asarray(mask), jnp.asarray(weights))
    return {"logits": np.asarray(logits), "hidden": np.asarray(hidden), "gradient": np.asarray(gradient)}


def _compare(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], mask: np.ndarray) -> None:
    real = mask.astype(bool)
    for name, value in found.items():
        # Logits absolutely; what has no natural size, as a share of its largest value.
        scale = 1.0 if name == "logits" else max(1.0, float(np.abs(wanted[name]).max()))
        assert np.abs(value[real] - wanted[name][real]).max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_the_committed_ones(name, checkpoint, example, weights, golden) -> None:
    lm, _ = models.load(checkpoint(name))
    ids, mask, _ = example
    wanted = {key: golden[f"{name}/{key}"] for key in ("logits", "hidden", "gradient")}
    _compare(_outputs(lm, ids, mask, weights), wanted, mask)


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_the_way_through_config_json(name, checkpoint) -> None:
    from nvcim_jax.models.files.hf_config import config_from_hf, config_to_hf

    config = models.load_config(checkpoint(name))
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


def _torch_tools():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("make_golden", Path(__file__).with_name("make_golden.py"))
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_torch(name, checkpoint, example, weights, golden) -> None:
    tools = _torch_tools()
    lm, _ = models.load(checkpoint(name))
    ids, mask, _ = example
    raw, tensors = (json.loads((GOLDEN / file).read_text())[name] for file in ("configs.json", "tensors.json"))
    wanted = tools.torch_outputs(tools.torch_model(raw, tensors))
    _compare(_outputs(lm, ids, mask, weights), wanted, mask)
    assert (wanted["greedy"] == golden[f"{name}/greedy"]).all()


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_transformers_opens_what_save_writes(name, checkpoint: Callable, tmp_path: Path, example) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    lm, _ = models.load(checkpoint(name))
    models.save(tmp_path / "saved", lm)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    ids = example[0]
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    logits, _ = models.forward(lm, models.embed(lm, jnp.asarray(ids)))
    assert np.abs(np.asarray(logits) - wanted).max() <= TOLERANCE
