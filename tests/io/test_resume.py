"""Records survive a kill, refuse another run and another process, and lose nothing on a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import io, montecarlo
from nvcim_jax.io import records
from nvcim_jax.types import Table, Work

SLOW_RUN = """
import sys, time
import jax, jax.numpy as jnp
from nvcim_jax import io, montecarlo

def metric(key, scale):
    def turn(i, x):
        return jnp.tanh(x + 0.01)
    x = jax.lax.fori_loop(0, 400, turn, jax.random.normal(key, (256,)))
    return {"loss": scale * x.sum(), "parts": x[:3]}

print("ready", flush=True)
montecarlo.run(metric, jax.random.key(4), int(sys.argv[2]), args=(2.0,), placement=montecarlo.Placement(chunk=16),
               store=io.folder(sys.argv[1], config={"sigma": 0.1}, save_every_s=0.0))
print("done", flush=True)
"""


def metric(key: jax.Array, scale: float) -> dict[str, jax.Array]:
    x = jax.random.normal(key, (4,))
    return {"loss": scale * x.sum(), "parts": x[:3]}


def _run(folder: Path, num: int = 40, scale: float = 2.0, **options):
    store = io.folder(folder, **({"config": {"sigma": 0.1}, "save_every_s": 0.0} | options))
    place = montecarlo.Placement(chunk=8)
    return montecarlo.run(metric, jax.random.key(4), num, args=(scale,), placement=place, store=store)


def test_resumed_values_are_those_of_an_unbroken_run(tmp_path: Path) -> None:
    whole = montecarlo.run(metric, jax.random.key(4), 40, args=(2.0,))
    _run(tmp_path, 17)
    assert records.finished(tmp_path)[-1].stop == 17
    stats = _run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, stats.values, whole.values)
    again = _run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.values, whole.values)


def test_a_finished_run_is_read_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(tmp_path)
    monkeypatch.setattr("nvcim_jax.montecarlo.engine._call", None)
    second = _run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, first.values, second.values)


def test_gaps_anywhere_are_filled(tmp_path: Path) -> None:
    whole = _run(tmp_path)
    files = sorted((tmp_path / "chunks").iterdir())
    files[1].unlink()
    files[3].unlink()
    stats = _run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, stats.values, whole.values)


def test_records_hold_id_and_every_value(tmp_path: Path) -> None:
    stats = _run(tmp_path, save_every_s=1e9)
    assert len(records.finished(tmp_path)) == 1
    table = records.read(tmp_path)
    assert table.instance.tolist() == list(range(40))
    np.testing.assert_array_equal(table.columns["loss"], stats.values["loss"])
    np.testing.assert_array_equal(table.columns["parts"], stats.values["parts"])
    assert table.columns["loss"].dtype == np.float32


def test_another_run_is_refused_with_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path)
    with pytest.raises(ValueError, match=r"config.sigma \(0.1 there, 0.2 here\)") as error:
        _run(tmp_path, config={"sigma": 0.2})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"args.0 \('2.0' there, '3.0' here\)"):
        _run(tmp_path, scale=3.0)
    with pytest.raises(ValueError, match=r"key.data"):
        montecarlo.run(metric, jax.random.key(5), 4, args=(2.0,), store=io.folder(tmp_path, config={"sigma": 0.1}))
    monkeypatch.setattr("nvcim_jax.__version__", "99.0")
    with pytest.raises(ValueError, match=r"versions.nvcim-jax \('.*' there, '99.0' here\)"):
        _run(tmp_path)


def test_configs_of_dataclasses_and_arrays_are_compared() -> None:
    def of(sigma: float):
        return io.fingerprint({"sigma": jnp.asarray([sigma, 1.0])}, Work(None, jax.random.key(0), (jnp.ones(3),)))

    assert io.difference(of(0.5), of(0.5)) == []
    assert io.difference(of(0.5), of(0.25)) == ["config.sigma ([0.5, 1.0] there, [0.25, 1.0] here)"]
    with pytest.raises(ValueError, match="`config` must hold plain values"):
        io.fingerprint({"sigma": object()}, Work(None, jax.random.key(0), ()))


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom nvcim_jax import io\n"
        "with io.locked(pathlib.Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid}"):
            _run(tmp_path)
        holder.kill()
    _run(tmp_path)


def test_a_full_disk_loses_no_finished_chunk(tmp_path: Path) -> None:
    limit = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import nvcim_jax.files as r\nkeep = r.write\ncalls = []\n"
        "def write(path, content):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 5: resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "    return keep(path, content)\n"
        "r.write = write\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limit + SLOW_RUN, str(tmp_path), "160"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "What was finished before is kept" in done.stderr
    kept = records.finished(tmp_path)
    assert kept
    assert kept[-1].stop < 160
    assert not list((tmp_path / "chunks").glob(".*"))
    before = records.read(tmp_path)
    after = _resume_slow_run(tmp_path, 160)
    np.testing.assert_array_equal(after.columns["loss"][: len(before.instance)], before.columns["loss"])
    assert len(after.instance) == 160


def _resume_slow_run(folder: Path, num: int) -> Table:
    subprocess.run([sys.executable, "-c", SLOW_RUN, str(folder), str(num)], check=True, capture_output=True)
    return records.read(folder)


def _kill_and_resume(tmp_path: Path, kills: int, num: int) -> None:
    """Kill a run `kills` times at random moments of its writing, then let it end; compare with an unbroken one."""
    chooser = random.Random(20241112)
    broken = tmp_path / "broken"
    landed = 0
    for _ in range(kills):
        command = [sys.executable, "-c", SLOW_RUN, str(broken), str(num)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            before = len(list((broken / "chunks").glob("*"))) if broken.exists() else 0
            while process.poll() is None and len(list((broken / "chunks").glob("*"))) == before:
                time.sleep(0.005)
            time.sleep(chooser.uniform(0.0, 0.2))
            landed += process.poll() is None
            os.kill(process.pid, signal.SIGKILL)
    assert landed == kills, "the run ended before it was killed"
    table = _resume_slow_run(broken, num)
    unbroken = _resume_slow_run(tmp_path / "unbroken", num)
    np.testing.assert_array_equal(table.instance, unbroken.instance)
    for name, column in table.columns.items():
        np.testing.assert_array_equal(column, unbroken.columns[name])
    one, two = (json.loads((tmp_path / f / "run.json").read_text()) for f in ("broken", "unbroken"))
    assert one == two


def test_killed_twice_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, kills=2, num=3000)


@pytest.mark.slow
def test_killed_ten_times_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, kills=10, num=20_000)
