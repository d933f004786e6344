"""Any adapter's rows in the memory: coded, programmed, searched, read back, and the model adapted by what is read."""

import dataclasses
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import crossbar, devices, io, pipeline, tuning
from nvcim_jax.cli import entry, run

FINE = crossbar.Config(rows=64, cols=8, weight_bits=16, cell_bits=2, weight_scale="column")


@pytest.fixture(scope="module", params=["prefix", "lora", "ia3"])
def config(request, config) -> pipeline.Config:
    return dataclasses.replace(config, tunes=request.param, rank=1)


@pytest.mark.slow
def test_rows_are_stored_found_and_read_back(lm, text, buffers, config, tmp_path) -> None:
    adapter, memory = config.adapter(), pipeline.crossbar_memory(devices.get("ideal"), FINE)
    state = pipeline.init(jax.random.key(0), lm, config=config, memory=memory)
    buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)
    state, info = pipeline.observe(jax.random.key(1), state, buffer, lm, config=config, memory=memory)
    assert state.store.prompts.shape[1:] == adapter.rows_shape(lm)
    assert float(info.tuned.losses[:, -1].mean()) < float(info.tuned.losses[:, 0].mean())
    read = pipeline.read_prompts(jax.random.key(2), state.store, state.arrays, memory)
    size = float(jnp.abs(state.store.prompts).max())
    np.testing.assert_allclose(read[:2], state.store.prompts[:2], atol=size * 1e-3)
    queries = pipeline.make_queries([buffers[0][0].input], lm, text, config=config, labels=["yes", "no"])
    logs, answered = pipeline.choose(jax.random.key(3), state, queries, lm, config=config, memory=memory)
    slot = int(answered.found.slots[0])
    wanted = pipeline.rank(state.store.prompts[slot][None], queries, lm, adapter=adapter)
    np.testing.assert_allclose(logs, wanted, atol=0.02)
    path = io.save_state(tmp_path / "m.safetensors", state, config=config)
    again, options = io.load_state(path, memory)
    assert options == config
    np.testing.assert_array_equal(again.store.prompts, state.store.prompts)
    room = pipeline.capacity(lm.config, config, FINE)
    num_rows, width = adapter.rows_shape(lm)
    assert room.value_arrays == crossbar.report((num_rows * width, config.capacity), FINE).num_arrays


@pytest.mark.slow
def test_a_bound_is_on_what_is_stored(lm, text, buffers) -> None:
    """(IA)3's factors are about one, and its rows about zero: bounded, it still begins where the model is."""
    changes = {"codec": "identity", "capacity": 3, "num_virtual": 2, "tuning": {"num_steps": 30, "batch": None}}
    preset = pipeline.presets["pretrained"].changed(config={"tunes": "ia3", **changes})
    losses = {}
    for bound in (preset.bound, 0.05):
        config, parts = preset.config, preset.changed(bound=bound).parts(None)
        buffer = pipeline.make_buffer(buffers[0], lm, text, config=config)
        state = pipeline.init(jax.random.key(0), lm, config=config, **parts)
        state, info = pipeline.observe(jax.random.key(1), state, buffer, lm, config=config, **parts)
        losses[bound] = info.tuned.losses[0]
        assert float(info.tuned.largest.max()) <= bound + 1e-6
        assert bound > 1 or float(info.tuned.largest.max()) > 0.9 * bound
    bare = tuning.answer_loss((), lm, buffer.examples, jnp.ones(len(buffer.examples.ids)), adapter=tuning.frozen())
    for found in losses.values():
        np.testing.assert_allclose(found[0], bare, rtol=1e-4)


@pytest.mark.parametrize("tunes", ["prefix", "lora", "ia3"])
@pytest.mark.parametrize("name", ["bundled", "pretrained"])
def test_a_command_and_a_preset_tune_another_adapter_alike(name, tunes) -> None:
    found = run.read(["--preset", name, "--adapter", tunes])
    assert isinstance(found, run.Options)
    assert found.chosen == pipeline.presets[name].changed(config={"tunes": tunes, "start": "text"})
    assert (found.chosen.bound, found.chosen.learning_rate) == (float("inf"), pipeline.presets[name].rates[tunes])
    own = pipeline.presets[name].changed(bound=0.3, learning_rate=1.0, config={"tunes": tunes})
    assert (own.bound, own.learning_rate) == (0.3, 1.0)


@pytest.mark.parametrize("words", [["--config.tunes", "ia3"], ["--config.tunes=ia3"], ["ia3.toml"]])
def test_both_options_of_an_adapter_are_the_same(words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ia3.toml").write_text('[config]\ntunes = "ia3"\n', encoding="utf-8")
    found, wanted = run.read(words), run.read(["--adapter", "ia3"])
    assert isinstance(found, run.Options)
    assert isinstance(wanted, run.Options)
    assert found.chosen == wanted.chosen
    assert (found.chosen.bound, found.chosen.learning_rate) == (float("inf"), 0.03)
    found = dataclasses.replace(found, file=None)
    assert run.read(shlex.split(entry.command_line("run", found))[2:]) == found


def test_two_adapters_are_refused() -> None:
    for one, other in (("lora", "prompt"), ("prompt", "lora")):
        with pytest.raises(ValueError, match=f"`--adapter` must be that of --config.tunes, '{other}', but is '{one}'"):
            run.read(["--adapter", one, "--config.tunes", other])


def test_keys_that_are_given_with_an_adapter_count() -> None:
    for option in ("--adapter", "--config.tunes"):
        found = run.read(["--preset", "paper", option, "lora", "--config.keys", "centroid"])
        assert isinstance(found, run.Options)
        assert (found.chosen.config.keys, found.chosen.learning_rate) == ("centroid", 1.65e-3)


@pytest.mark.parametrize("name", [*pipeline.presets])
def test_a_preset_finds_its_numbers_again_in_every_direction(name) -> None:
    preset = pipeline.presets[name].changed(config={"keys": "centroid"})
    for first in ("prefix", "lora", "ia3"):
        other = preset.changed(config={"tunes": first, "start": "text"})
        for tunes in ("prompt", "prefix", "lora", "ia3"):
            found = other.changed(config={"tunes": tunes, "start": preset.config.start})
            assert found == preset.changed(config={"tunes": tunes})
        assert other.changed(bound=0.3, learning_rate=1.0, config={"tunes": "prompt"}).bound == 0.3
        own = other.changed(bound=0.3, learning_rate=1.0).changed(config={"tunes": "prompt"})
        assert (own.bound, own.learning_rate) == (0.3, 1.0)


def test_the_paper_takes_the_rates_of_the_model_that_it_is_made_for() -> None:
    found = run.read(["--preset", "paper", "--made-for", "bundled", "--adapter", "lora", "--config.keys", "centroid"])
    assert isinstance(found, run.Options)
    assert found.chosen.learning_rate == pipeline.presets["bundled"].rates["lora"]


def test_a_prompt_alone_is_its_own_key(config) -> None:
    with pytest.raises(ValueError, match=r"`keys` must be apart from the values with tunes='.*', but are 'prompt'"):
        dataclasses.replace(config, keys="prompt")
