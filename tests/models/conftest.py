"""Tiny random checkpoints of every family, made from a NumPy seed."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

collect_ignore = ["make_golden.py"]  # a script that needs torch, not a test

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
CONFIGS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8"))
TENSORS: dict[str, dict[str, list[int]]] = {}
if (GOLDEN / "tensors.json").is_file():
    TENSORS = json.loads((GOLDEN / "tensors.json").read_text(encoding="utf-8"))


def random_tensor(name: str, shape: tuple[int, ...], centre: float = 1.0) -> np.ndarray:
    """Draw a tensor whose values depend on its name only; the scales of norms around `centre`."""
    draws = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        return (0.1 * draws + (0.0 if name.endswith("bias") else centre)).astype(np.float32)
    return (0.12 * draws).astype(np.float32)


def write_checkpoint(folder: Path, raw: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Write config.json and model.safetensors; `tensors` gives shapes or arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    centre = 0.0 if raw["model_type"].startswith("gemma") else 1.0  # Gemma's norms add one
    arrays = {
        name: value if isinstance(value, np.ndarray) else random_tensor(name, tuple(value), centre)
        for name, value in tensors.items()
    }
    save_file(arrays, folder / "model.safetensors")
    return folder


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return token ids (3, 12), their mask (one padded on the left, one on the right), and positions."""
    rng = np.random.default_rng(7)
    ids = rng.integers(2, 64, (3, 12))
    mask = np.ones((3, 12), np.int64)
    mask[1, :4] = 0
    mask[2, 9:] = 0
    return ids, mask, np.maximum(mask.cumsum(1) - 1, 0)


def direction() -> np.ndarray:
    """Return fixed weights (3, 12, 64) whose inner product with the logits is differentiated."""
    return np.random.default_rng(8).standard_normal((3, 12, 64)).astype(np.float32) * inputs()[1][..., None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes the tiny checkpoint of a name in configs.json."""
    return lambda name: write_checkpoint(tmp_path / name, CONFIGS[name], TENSORS[name])


@pytest.fixture
def write() -> Callable[..., Path]:
    """Return `write_checkpoint`."""
    return write_checkpoint


@pytest.fixture
def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `inputs()` in JAX's integers."""
    ids, mask, positions = inputs()
    return ids.astype(np.int32), mask.astype(np.int32), positions.astype(np.int32)


@pytest.fixture
def weights() -> np.ndarray:
    """Return `direction()`."""
    return direction()
