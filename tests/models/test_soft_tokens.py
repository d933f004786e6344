"""Soft tokens: which channels hold what, and that a checkpoint keeps its layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import models

LAYOUT = models.SoftTokens(label=(0, 4), examples=(6, 8), label_decay=0.5, size=0.2)


def test_each_part_stands_in_its_channels():
    x, y = jax.random.normal(jax.random.key(0), (2, 3, 8))
    soft = models.soft_tokens(x, y, layout=LAYOUT)
    np.testing.assert_allclose(jnp.sqrt(jnp.square(soft).mean(axis=1)), jnp.full(3, 0.2), rtol=1e-4)
    assert not soft[:, 4:6].any()
    for part, truth in ((soft[:, :4], y[:, :4]), (soft[:, 6:], x[:, :2])):
        np.testing.assert_allclose(
            part / np.linalg.norm(part, axis=1, keepdims=True),
            truth / np.linalg.norm(truth, axis=1, keepdims=True),
            atol=1e-5,
        )
        # equal shares: each part has half of the squared length
        np.testing.assert_allclose(np.square(part).sum(axis=1), np.full(3, 8 * 0.2**2 / 2), rtol=1e-4)


def test_shares_and_size():
    x, y = jax.random.normal(jax.random.key(1), (2, 2, 8))
    only = models.soft_tokens(x, y, jnp.array([[1.0, 0.0], [0.0, 1.0]]), layout=LAYOUT)
    assert not only[0, :6].any()
    assert not only[1, 4:].any()
    free = models.soft_tokens(x, y, layout=models.SoftTokens(), size=0.5)
    mixed = x / np.linalg.norm(x, axis=1, keepdims=True) + y / np.linalg.norm(y, axis=1, keepdims=True)
    np.testing.assert_allclose(free, mixed / np.linalg.norm(mixed, axis=1, keepdims=True) * 0.5 * 8**0.5, rtol=1e-3)


def test_a_checkpoint_keeps_its_layout(tmp_path):
    config = models.Config(vocab_size=64, width=32, num_layers=1, num_heads=2, mlp_width=32)
    lm = models.init(jax.random.key(0), config=config)
    for i, layout in enumerate((models.SoftTokens(), LAYOUT)):
        models.save(tmp_path / str(i), lm.replace(soft_tokens=layout))
        assert models.load(tmp_path / str(i))[0].soft_tokens == layout
        assert ("soft_tokens" in (tmp_path / str(i) / "config.json").read_text()) == bool(i)
    broken = tmp_path / "1" / "config.json"
    broken.write_text(broken.read_text().replace('"label_decay"', '"label_decy"'))
    with pytest.raises(ValueError, match="label_decay"):
        models.load(tmp_path / "1")


def test_bad_layouts_are_named():
    with pytest.raises(ValueError, match="examples"):
        models.SoftTokens(examples=(4, 4))
    with pytest.raises(ValueError, match="label_decay"):
        models.SoftTokens(label_decay=0.0)
    with pytest.raises(ValueError, match="channels below 4"):
        models.soft_tokens(jnp.ones(4), jnp.ones(4), layout=LAYOUT)
