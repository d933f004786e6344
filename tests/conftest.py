"""Strict settings for every test: what JAX can be asked to refuse, it is asked to refuse."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Eight forced host devices, so that meshes are real in the tests; and machine code that is made quickly, not code that
# runs fast, since most of the time of the tests goes into compiling: without the optimiser, and with the older emitters
# of fused loops, which take a third of the time. What is set outside counts more (.ci/nightly sets what users have).
# Must come before jax is imported.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import optax
import pytest
from jaxtyping import install_import_hook

# Shapes and dtypes of public signatures are checked at run time here, and only here.
install_import_hook("nvcim_jax", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# What is traced and compiled stays alive, in millions of small objects: looking through them for garbage as often as
# Python does by default took a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 50, 50)


@pytest.fixture
def key() -> jax.Array:
    """Return a fresh key; a test splits it once at its top."""
    return jax.random.key(20241112)


MOST_MAPPED = 55_000
"""Mapped pieces of memory of a process from which compiled programs are dropped: Linux allows 65,530, every program
takes some, and a worker that reaches the limit dies while it compiles."""


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs() -> Iterator[None]:
    """Drop all compiled programs after a file of tests, where they have become too many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MOST_MAPPED:
        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what takes longest first, so that no worker is left with it while the others have ended."""
    items.sort(key=lambda item: "test_experiments" not in item.nodeid)


_SAY = """
import json, sys
for call in json.load(sys.stdin):
    try:
        exec("import jax, jax.numpy as jnp, numpy as np, nvcim_jax as nv\\n" + call, {})
        print(json.dumps(["nothing", ""]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="session")
def said_plainly() -> Callable[..., list[tuple[str, str]]]:
    """Return what pieces of code raise in a Python of their own, without the run-time check of types of the tests."""

    def said(calls: Sequence[str], **environment: str) -> list[tuple[str, str]]:
        done = subprocess.run(
            [sys.executable, "-c", _SAY],
            input=json.dumps(list(calls)),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        )
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    return said


def _as_others_wrote_it(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of another package promote dtypes: the strictness is for our own code."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return fn(*args, **kwargs)

    return call


optax.tree.bias_correction = _as_others_wrote_it(optax.tree.bias_correction)  # raises a float to an integer step
