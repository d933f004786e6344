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
    with pytest.raises(ValueError, match=r"the setting sigma \(0.1 there, 0.2 here\)") as error:
        _run(tmp_path, config={"sigma": 0.2})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"argument 0 \(2.0 there, 3.0 here\)"):
        _run(tmp_path, scale=3.0)
    with pytest.raises(ValueError, match=r"differs in the seed \(4 there, 5 here\): "):
        montecarlo.run(metric, jax.random.key(5), 4, args=(2.0,), store=io.folder(tmp_path, config={"sigma": 0.1}))
    monkeypatch.setattr("nvcim_jax.__version__", "99.0")
    with pytest.raises(ValueError, match=r"the version of nvcim-jax \('.*' there, '99.0' here\)"):
        _run(tmp_path)


def test_configs_of_dataclasses_and_arrays_are_compared() -> None:
    def of(sigma: float):
        return io.fingerprint({"sigma": jnp.asarray([sigma, 1.0])}, Work(None, jax.random.key(0), (jnp.ones(3),)))

    assert io.difference(of(0.5), of(0.5)) == []
    assert io.difference(of(0.5), of(0.25)) == ["the setting sigma ([0.5, 1.0] there, [0.25, 1.0] here)"]
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_killed_ten_times_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, kills=10, num=20_000)


def _scaled(scale: float, table: tuple[float, ...] = (1.0, 2.0)):
    values = jnp.asarray(table)
    return lambda key: scale * jnp.sum(values * jax.random.normal(key, (2,)))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: _scaled(0.25), r"the metric \(a number in it: 0.5 there, 0.25 here\)"),
        (
            lambda: _scaled(0.5, (1.0, 3.0)),
            r"the metric \(other values in an array that it closes over, float32\[2\]\)",
        ),
        (lambda: lambda key: jax.random.normal(key), r"the metric \(it computes something else\)"),  # noqa: PLW0108
    ],
)
def test_another_metric_is_refused_in_words(other, words: str, tmp_path: Path) -> None:
    first = montecarlo.run(_scaled(0.5), jax.random.key(0), 20, store=io.folder(tmp_path))
    with pytest.raises(ValueError, match=words) as error:
        montecarlo.run(other(), jax.random.key(0), 20, store=io.folder(tmp_path))
    assert "sha256" not in str(error.value)
    again = montecarlo.run(_scaled(0.5), jax.random.key(0), 20, store=io.folder(tmp_path))
    np.testing.assert_array_equal(first.values, again.values)


def test_every_difference_is_said_in_words(tmp_path: Path) -> None:
    def metric(key: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sum(w * jax.random.normal(key, w.shape))

    montecarlo.run(metric, jax.random.key(7), 4, args=(jnp.ones((3, 2)),), store=io.folder(tmp_path))
    for key, w, words in (
        (8, jnp.ones((3, 2)), r"differs in the seed \(7 there, 8 here\): "),
        (7, jnp.zeros((3, 2)), r"differs in argument 0 \(other values in a float32\[3, 2\]\)"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            montecarlo.run(metric, jax.random.key(key), 4, args=(w,), store=io.folder(tmp_path))
        assert "sha256" not in str(error.value)
    store = io.folder(tmp_path)
    with pytest.raises(ValueError, match=r"argument 0 \(float32\[3, 2\] there, float32\[2\] here\)"):
        montecarlo.run(metric, jax.random.key(7), 4, args=(jnp.ones(2),), store=store)
    with pytest.raises(ValueError, match=r"differs in the seed"):
        montecarlo.run(metric, jax.random.key(7, impl="rbg"), 4, args=(jnp.ones((3, 2)),), store=store)


def test_what_builds_the_metric_of_a_sweep_is_compared_too(tmp_path: Path) -> None:
    def sweep(power: int):
        def build(_: dict):
            return lambda key, numbers: numbers["sigma"] * jax.random.normal(key) ** power

        axes = {"sigma": [0.1, 0.2]}
        return montecarlo.sweep(build, jax.random.key(0), axes, 8, traced=("sigma",), store=io.points(tmp_path))

    sweep(1)
    with pytest.raises(ValueError, match=r"the metric \(it computes something else\)"):
        sweep(2)


def test_a_bisection_goes_on_from_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(key: jax.Array, x: jax.Array) -> jax.Array:
        return x * jnp.abs(jax.random.normal(key))

    def found():
        good = montecarlo.Good(bound=1.0, share=0.9)
        how = {"good": good, "between": (0.0, 2.0), "resolution": 0.1, "store": io.points(tmp_path)}
        return montecarlo.tolerance(spread, jax.random.key(0), 100, **how)

    first = found()
    monkeypatch.setattr("nvcim_jax.montecarlo.engine._call", None)  # nothing is computed again
    assert found() == first


def test_damaged_files_and_files_in_place_of_folders_are_named(tmp_path: Path) -> None:
    _run(tmp_path / "a", 16)
    chunk = next((tmp_path / "a" / "chunks").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:50])
    for call in (lambda: _run(tmp_path / "a", 16), lambda: io.read(tmp_path / "a")):
        with pytest.raises(ValueError, match=r"must hold whole records, but .*parquet is damaged.*Delete it") as error:
            call()
        assert "\n" not in str(error.value)
    chunk.unlink()
    _run(tmp_path / "a", 16)
    (tmp_path / "a" / "run.json").write_text('{"fingerprint": {')
    with pytest.raises(ValueError, match=r"must hold a whole run.json, but .*run.json is damaged"):
        _run(tmp_path / "a", 16)
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"`folder` must be a folder, but .*file is a file"):
            _run(path, 4)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    _run(tmp_path, 8)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match=r"Could not write .* \(Read-only file system\). Choose a folder"):
        _run(tmp_path, 16)
    monkeypatch.undo()
    assert io.read(tmp_path).instance.tolist() == list(range(8))
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupt_keeps_what_is_computed(tmp_path: Path) -> None:
    def stop(count: int, note: str = "") -> None:
        raise KeyboardInterrupt

    store = io.folder(tmp_path, save_every_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        montecarlo.run(metric, jax.random.key(4), 40, args=(2.0,), placement=montecarlo.Placement(chunk=8), store=store,
                       progress=stop)  # fmt: skip
    assert io.read(tmp_path).instance.tolist() == list(range(8))
    assert io.holds(tmp_path)
