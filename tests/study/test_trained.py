"""What was trained is kept: asked for again it is read, for anything else it is made, and records stay the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import data, devices, models, pipeline, study
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


def test_memories_that_differ_in_keys_are_tuned_once(tmp_path, lm) -> None:
    """Records are those of a study that keeps nothing; a bound, which rows do depend on, tunes again."""
    text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
    stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
    preset = pipeline.Preset(noise="value").changed(
        config={"num_virtual": 2, "num_prompts": 1, "capacity": 2, "codec": "identity", "tuning": {"num_steps": 2}}
    )
    noisy = {"noisy": study.Method(training="noise")}
    num, design = len(stream.blocks), study.Design(methods=noisy, baselines=(), num_instances=1)
    places = [devices.get("FeFET3", sigma=0.1)]

    def records(preset: pipeline.Preset, session: study.Session) -> list[dict[str, Any]]:
        how: Any = {"preset": preset, "design": design, "session": session}
        return list(study.measure(jax.random.key(5), [stream], lm, text, places, **how))

    session, other = study.Session(trained=tmp_path), preset.changed(config={"keys": "centroid", "key_centre": True})
    for own, files in ((preset, 1 + num), (other, 1), (other, 0), (preset.changed(bound=0.1), 1 + num)):
        before = len(list(tmp_path.iterdir()))
        found = records(own, session)
        assert len(list(tmp_path.iterdir())) == before + files  # one of all stores, one of the rows of each buffer
        if own is other:
            assert found == records(other, study.Session())


class Stop(Exception):
    """The process is killed."""


@pytest.mark.parametrize("kind", ["latest", "sequential", "joint"])
def test_one_prompt_goes_on_at_the_buffer_where_it_was(tmp_path, lm, kind) -> None:
    """A killed training keeps the buffers before; what was made of it is that of a training without a break."""
    text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
    stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
    preset = pipeline.Preset().changed(config={"num_virtual": 2, "num_prompts": 1, "tuning": {"num_steps": 2}})
    design = study.Design(methods={}, baselines=(kind,), every_block=True)

    def records(session: study.Session) -> list[dict[str, Any]]:
        how: Any = {"preset": preset, "design": design, "session": session}
        return list(study.measure(jax.random.key(5), [stream], lm, text, [], **how))

    def kill(count: int, note: str) -> None:
        if note.endswith(f"training {kind}, block 2"):
            raise Stop

    with pytest.raises(Stop):
        records(study.Session(kill, tmp_path))
    said: list[str] = []
    found = records(study.Session(lambda count, note: said.append(note), tmp_path))
    assert [note for note in said if "training" in note] == [f"stream {stream.seed}: training {kind}, block 2"]
    assert found == records(study.Session())
    assert len(list(tmp_path.iterdir())) == 2


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
