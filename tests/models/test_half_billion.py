"""A checkpoint shaped like a model of half a billion parameters loads and runs within 4.5 GB."""

import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from nvcim_jax import models

CONFIG = models.Config(
    vocab_size=151_936,
    width=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    mlp_width=4864,
    family="qwen2",
    qkv_bias=True,
)
CODE = """
import sys
import jax, jax.numpy as jnp
from nvcim_jax import models
lm, _ = models.load(sys.argv[1])
ids = jnp.arange(64, dtype=jnp.int32)[None]
run = jax.jit(lambda lm, ids: models.forward(lm, models.embed(lm, ids))[0])
logits = run(lm, ids)
assert bool(jnp.isfinite(logits).all()) and logits.shape == (1, 64, 151936)
# not getrusage: its peak is at least the size of the process that started this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(lm.config.num_params, int(peak.split()[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_half_a_billion_parameters_run_within_four_and_a_half_gigabytes(tmp_path: Path) -> None:
    draws = 0.02 * np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    params = jax.tree.map(
        lambda shape: np.resize(draws, shape).astype(ml_dtypes.bfloat16),
        CONFIG.shapes,
        is_leaf=lambda a: isinstance(a, tuple),
    )
    models.save(tmp_path, models.LM(params, CONFIG))
    del params
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    root = Path(models.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    number, gibibytes = done.stdout.split()
    print(f"{int(number):,} parameters, peak {float(gibibytes):.2f} GiB")
    assert int(number) > 490_000_000
    assert float(gibibytes) * 2**30 <= 4.5e9
