"""What was trained is kept: asked for again it is read, for anything else it is made, and records stay the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import study
from nvcim_jax.study import trained
from nvcim_jax.types import Work


def make_work(seed: int = 0, device: object = None) -> Work:
    return Work(None, jax.random.key(seed), {"device": device})


def test_a_training_is_read_where_it_is_kept_and_made_for_anything_else(tmp_path) -> None:
    session, made = study.Session(trained=tmp_path / "trained"), []

    def make() -> tuple[jax.Array, jax.Array]:
        made.append(1)
        return jnp.arange(3.0), jnp.asarray(7, jnp.int32)

    like = (jnp.zeros(3), jnp.zeros((), jnp.int32))
    for number, (work, settings) in enumerate(
        [
            (make_work(), {"rate": 0.1}),
            (make_work(1), {"rate": 0.1}),
            (make_work(), {"rate": 0.2}),
            (make_work(device=jnp.ones(2)), {"rate": 0.1}),
        ],
        1,
    ):
        for _ in range(2):
            found = trained.kept(session, work, settings, make, like)
            np.testing.assert_array_equal(found[0], [0.0, 1.0, 2.0])
            assert int(found[1]) == 7
            assert found[1].dtype == jnp.int32
        assert len(made) == number
    assert len(list(session.trained.glob("*.safetensors"))) == 4
    trained.kept(study.Session(), make_work(), {"rate": 0.1}, make, like)
    assert len(made) == 5


def test_a_damaged_file_is_named(tmp_path) -> None:
    session = study.Session(trained=tmp_path)
    trained.kept(session, make_work(), {}, lambda: (jnp.ones(2),), (jnp.zeros(2),))
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"`trained` must hold whole files.*Delete it"):
        trained.kept(session, make_work(), {}, lambda: (jnp.ones(2),), (jnp.zeros(2),))


def test_options_become_plain_values() -> None:
    found = trained.plain({"bound": float("inf"), "design": study.Design(baselines=("frozen",))._asdict()})
    assert found["bound"] == "infinite"
    assert found["design"]["baselines"] == ["frozen"]
