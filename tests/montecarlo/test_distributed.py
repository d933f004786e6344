"""Two processes on the loopback compute what one does."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nvcim_jax import io, montecarlo

WORKER = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import numpy as np
from nvcim_jax import io, montecarlo

def metric(key, scale):
    z = jax.random.normal(key, (5,))
    return {"loss": scale * z.sum(), "parts": z[:2]}

assert jax.process_count() == 2 and jax.device_count() == 4
folder = sys.argv[3] if len(sys.argv) > 3 else None
place = montecarlo.Placement(chunk=4, mesh=montecarlo.instance_mesh())
store = None if folder is None else io.folder(folder, save_every_s=0.0)
stats = montecarlo.run(metric, jax.random.key(4), 45, args=(np.float32(2.0),), placement=place, store=store)
found = {"loss": stats.values["loss"], "parts": stats.values["parts"], "mean": stats.mean["loss"]}
np.savez(f"{sys.argv[4]}/{sys.argv[2]}.npz", **found)
"""


def metric(key: jax.Array, scale: np.float32) -> dict[str, jax.Array]:
    z = jax.random.normal(key, (5,))
    return {"loss": scale * z.sum(), "parts": z[:2]}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _two_processes(folder: Path, out: Path) -> None:
    address = f"127.0.0.1:{_free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(i), str(folder), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, err) in zip(running, ended, strict=True):
        assert process.returncode == 0, err[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="collectives between CPU processes are tested on Linux")
def test_two_processes_equal_one_and_resume(tmp_path: Path) -> None:
    one = montecarlo.run(metric, jax.random.key(4), 45, args=(np.float32(2.0),))
    _two_processes(tmp_path / "records", tmp_path)
    for process in (0, 1):
        found = np.load(tmp_path / f"{process}.npz")
        np.testing.assert_allclose(found["loss"], one.values["loss"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found["parts"], one.values["parts"], rtol=1e-6)
        assert found["mean"] == pytest.approx(one.mean["loss"], rel=1e-6)
        found.close()
    table = io.read(tmp_path / "records")
    assert table.instance.tolist() == list(range(45))
    np.testing.assert_allclose(table.columns["loss"], one.values["loss"], rtol=1e-6, atol=1e-6)
