"""A language model in noisy memory: ideal chips are the model itself, drawn outputs have the moments of cells."""

import importlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices, models

run: Any = importlib.import_module("experiments.8_model_on_chips.run")
CONFIG = models.Config(vocab_size=64, width=32, num_layers=3, num_heads=2, mlp_width=48)
IDEAL = devices.get("ideal").replace(name="cells", citation="")


@pytest.fixture(scope="module")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=CONFIG, scale=0.1)


@pytest.fixture(scope="module")
def ids() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (2, 12), 0, 64)


def nats(lm: models.LM, ids: jax.Array, device: devices.Device, **parts: Any) -> float:
    how = {"kinds": run.KINDS, "blocks": (0, 3), "ages": "none", "sampling": "device"} | parts
    return float(run._nats(jax.random.key(2), lm, ids, device, jnp.float32(0.0), **how))


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(0, 3), (1, 2)])
def test_ideal_chips_are_the_model_itself(lm, ids, blocks, monkeypatch) -> None:
    monkeypatch.setattr(run, "LAYOUT", crossbar.Config(rows=16, cols=16, weight_scale="column"))
    exact = float(models.loss(lm, models.embed(lm, ids), ids)[0])
    assert nats(lm, ids, IDEAL, blocks=blocks) == pytest.approx(exact, abs=1e-5)


@pytest.mark.slow
def test_only_what_was_chosen_is_noisy(lm, ids) -> None:
    noisy = devices.get("Gaussian", sigma=0.1).replace(name="cells", citation="")
    chips = run.on_chips(jax.random.key(0), lm, noisy, jnp.float32(0.0), ("q",), "none")
    kinds = {name: type(leaf).__name__ for name, leaf in chips.params["layers"].items() if leaf.ndim == 3}
    assert [name for name, kind in kinds.items() if kind == "OnChip"] == ["q"]
    half = nats(lm, ids, noisy, blocks=(0, 1))
    assert half != nats(lm, ids, noisy, blocks=(1, 2))


def test_drawn_outputs_have_the_moments_of_cells() -> None:
    w = jax.random.normal(jax.random.key(0), (1, 64, 6))
    x = jax.random.normal(jax.random.key(1), (1, 64))
    device = devices.get("Gaussian", sigma=0.1)
    layout = crossbar.Config(rows=256, cols=256, weight_scale="column")

    def one(key: jax.Array) -> jax.Array:
        drawn = run.Drawn(w[0], key, device)
        return run._draw(drawn, x, (0,))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LAYOUT", layout)
        values = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(2), 4000)))
    mean, variance = (
        np.asarray(part[0]) for part in crossbar.product_moments(x, crossbar.encode(w[0], device, config=layout))
    )
    error = np.sqrt(variance / len(values))
    assert (np.abs(values.mean(axis=0) - mean) < 5 * error).all()
    of_variance = variance * np.sqrt(2 / (len(values) - 1))
    assert (np.abs(values.var(axis=0, ddof=1) - variance) < 5 * of_variance).all()


def test_points_are_named_once_and_in_the_order_of_the_figures() -> None:
    found = run.points(run.CONFIGS["full"], 30)
    assert len(set(found)) == len(found)
    assert [point.part for point in found[:5]] == ["sigma"] * 5
    groups = [point.blocks for point in found if point.blocks is not None]
    assert groups[0][0] == 0
    assert groups[-1][1] == 30
    assert all(a[1] == b[0] for a, b in itertools.pairwise(groups))
