"""A memory in a file: every bit comes back, time passes for it, and what does not fit is named."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from nvcim_jax import crossbar, devices, io, pipeline, selection, study

LATER_S = 1e6


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool(jnp.array_equal(x, y)), a, b))
    )


@pytest.fixture(scope="module")
def aged(learnt, config, arrays):
    """Return a memory on PCM with a trained codec's layers, a correction, keys apart and half an hour behind it."""
    codec = selection.codec_init(jax.random.key(1), 32, code=8)
    config = dataclasses.replace(config, codec="autoencoder", code=8, tuning=config.tuning)
    store = learnt.state.store._replace(codec=codec)
    memory = study.corrected_memory(pipeline.crossbar_memory(devices.get("PCM", d2d_sigma=0.01, stuck_on=0.01), arrays))
    held = pipeline.program_store(jax.random.key(2), store, memory, config=config)
    held = held._replace(keys=held.keys._replace(gain=1.5 * held.keys.gain, offset=0.5 + held.keys.offset))
    return pipeline.drift_state(pipeline.State(store, held), 1800.0), config, memory


@pytest.mark.slow
def test_a_memory_comes_back_bit_for_bit(tmp_path, learnt, memory, config):
    path = io.save_state(tmp_path / "m.safetensors", learnt.state, config=config)
    state, found = io.load_state(path, memory, config=config)
    assert found == config
    assert equal(state, learnt.state)
    assert state.arrays.values.num_rows == learnt.state.arrays.values.num_rows
    assert os.listdir(tmp_path) == ["m.safetensors"]
    held = learnt.state.arrays._replace(values=jnp.ones((64, 4)), keys=jnp.ones((32, 4)))
    exact = learnt.state._replace(arrays=held)
    io.save_state(path, exact, config=config)  # in place of the first
    assert equal(io.load_state(path, pipeline.exact_memory())[0], exact)


@pytest.mark.slow
def test_a_drifting_chip_goes_on_where_it_was(tmp_path, aged):
    state, config, memory = aged
    path = io.save_state(tmp_path / "m.safetensors", state, config=config)
    loaded, found = io.load_state(path, memory)
    assert found == config
    assert equal(loaded, state)
    later, truth = (pipeline.drift_state(s, LATER_S) for s in (loaded, state))
    assert equal(later, truth)
    mended = pipeline.compensate_state(jax.random.key(5), later)
    assert equal(mended, pipeline.compensate_state(jax.random.key(5), truth))


def test_drift_is_the_crossbars_and_compensation_brings_values_back(aged):
    state, _, _ = aged
    later = pipeline.drift_state(state, LATER_S)
    for name in ("values", "keys"):
        assert equal(getattr(later.arrays, name).held, crossbar.drift(getattr(state.arrays, name).held, LATER_S))
    mended = pipeline.compensate_state(jax.random.key(0), later)

    def size(s):
        chip = s.arrays.values.held
        quiet = dataclasses.replace(chip, device=chip.device.replace(read=None))
        return jnp.abs(crossbar.read_back(jax.random.key(1), quiet)).mean()

    at_once = size(pipeline.drift_state(state, 0.0))
    assert size(later) < 0.7 * at_once  # nu is about .06: (1e6 / 20) ** -.06 = .52
    np.testing.assert_allclose(size(mended), at_once, rtol=0.1)


def test_wrong_files_are_named_in_one_line(tmp_path, learnt, memory, arrays, config):
    path = io.save_state(tmp_path / "m.safetensors", learnt.state, config=config)
    whole = path.read_bytes()

    def fails(message: str, file: Path = path, cells=memory, kind=ValueError, **wanted) -> None:
        with pytest.raises(kind, match=message) as caught:
            io.load_state(file, cells, **wanted)
        assert "\n" not in str(caught.value)

    fails("there is none", tmp_path / "n.safetensors", kind=FileNotFoundError)
    on = lambda device, own=arrays: pipeline.crossbar_memory(device, own)  # noqa: E731
    fails("`memory` must be on 'FeFET3', as in m.safetensors, but is on 'PCM'", cells=on(devices.get("PCM")))
    fails("but is on 'no crossbars'", cells=pipeline.exact_memory())
    fails("state of the cells", cells=on(devices.get("FeFET3", d2d_sigma=0.1)))
    wider = dataclasses.replace(arrays, adc_bits=5)
    fails("`memory` must have the layout", cells=on(devices.get("FeFET3"), wider))
    other = dataclasses.replace(config, search=selection.SearchConfig(measure="mips"))
    fails("with search.measure='ssa'", config=other)
    for size in (0, 5, 200, len(whole) - 1):
        short = tmp_path / "short.safetensors"
        short.write_bytes(whole[:size])
        fails("whole file", short)
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    fails("whole file", page)
    save_file({"embedding": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    fails("memory of this package", tmp_path / "model.safetensors")


def test_a_file_of_other_shapes_or_options_is_named(tmp_path, learnt, memory, config):
    from safetensors import safe_open

    path = io.save_state(tmp_path / "m.safetensors", learnt.state, config=config)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"store.filled": np.ones(3, bool)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"store.filled` must be bool \(4,\), but holds bool \(3,\)"):
        io.load_state(tmp_path / "a.safetensors", memory)
    del tensors["store.prompts"]
    save_file(tensors, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="no prompts"):
        io.load_state(tmp_path / "b.safetensors", memory)
    newer = metadata | {"config": metadata["config"].replace('"code"', '"codes"')}
    save_file(tensors, tmp_path / "c.safetensors", metadata=newer)
    with pytest.raises(ValueError, match="'codes'"):
        io.load_state(tmp_path / "c.safetensors", memory)


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path, learnt, config):
    with pytest.raises(FileNotFoundError, match="folder"):
        io.save_state(tmp_path / "none" / "m.safetensors", learnt.state, config=config)
    with pytest.raises(ValueError, match="capacity"):
        io.save_state(tmp_path / "m", learnt.state, config=dataclasses.replace(config, capacity=9))
    assert not os.listdir(tmp_path)
