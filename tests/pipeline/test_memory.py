"""The contract of memories, one table: exact, crossbars, and one of the user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from support.tracing import count_traces

from nvcim_jax import crossbar, devices, pipeline

ARRAYS = crossbar.Config(rows=16, cols=8, weight_bits=6, cell_bits=2, weight_scale="column")


def _write(sigma, key, matrix):
    return {"held": matrix + sigma * jax.random.normal(key, matrix.shape)}


def _multiply(key, x, held):
    del key
    return x @ held["held"]


def _read(key, held):
    del key
    return held["held"]


def additive(sigma: float) -> pipeline.Memory:
    """A memory of one's own: Gaussian noise on every value."""
    return pipeline.Memory(Partial(_write, jnp.float32(sigma)), _multiply, _read)


def on_chips(sigma: float) -> pipeline.Memory:
    return pipeline.crossbar_memory(devices.get("Gaussian", sigma=sigma), ARRAYS)


MEMORIES = {"exact": lambda sigma: pipeline.exact_memory(), "crossbars": on_chips, "one's own": additive}


@pytest.fixture(params=MEMORIES, scope="module")
def make(request):
    return MEMORIES[request.param]


@pytest.fixture(scope="module")
def matrix() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (20, 5))


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (3, 20))


def use(memory, key, matrix, x):
    """Write, multiply, read."""
    write_key, times_key, read_key = jax.random.split(key, 3)
    held = memory.program(write_key, matrix)
    return memory.multiply(times_key, x, held), memory.read(read_key, held)


def test_shapes_and_the_values_without_noise(make, matrix, x) -> None:
    product, read = use(make(0.0), jax.random.key(2), matrix, x)
    assert (product.shape, read.shape) == ((3, 5), (20, 5))
    step = 0.5 / 31 * float(jnp.abs(matrix).max()) * 1.01  # half a step of 6 bits
    np.testing.assert_allclose(read, matrix, atol=step)
    np.testing.assert_allclose(product, x @ read, rtol=1e-4, atol=1e-4)


def test_jit_equals_eager_and_vmap_equals_a_loop(make, matrix, x) -> None:
    memory = pipeline.Memory(*map(Partial, make(0.1)))
    eager = use(memory, jax.random.key(2), matrix, x)
    jitted = jax.jit(use)(memory, jax.random.key(2), matrix, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), jitted, eager)
    keys = jax.random.split(jax.random.key(3), 3)
    many = jax.vmap(lambda key: use(memory, key, matrix, x))(keys)
    loop = [use(memory, key, matrix, x) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, stacked)


@pytest.mark.slow
def test_gradients_reach_the_matrix_and_the_inputs(make, matrix, x) -> None:
    loss = lambda matrix, x: jnp.square(use(make(0.1), jax.random.key(2), matrix, x)[0]).sum()  # noqa: E731
    for slope in jax.grad(loss, argnums=(0, 1))(matrix, x):
        assert bool(jnp.isfinite(slope).all())
        assert float(jnp.abs(slope).max()) > 1e-3


def test_another_number_compiles_nothing(make, lm, config) -> None:
    run = lambda sigma: pipeline.init(jax.random.key(0), lm, config=config, memory=make(sigma))  # noqa: E731
    run(0.1)
    with count_traces() as traced:
        run(0.2)
    assert traced == []


@pytest.mark.slow
def test_time_passes_for_chips_alone(lm, config, learnt) -> None:
    for state in (learnt.state, pipeline.init(jax.random.key(0), lm, config=config)):
        with pytest.raises(ValueError, match=r"`state\.arrays` must hold chips that drift"):
            pipeline.drift_state(state, 1.0)
    pcm = pipeline.crossbar_memory(devices.get("PCM"), ARRAYS)
    state = pipeline.init(jax.random.key(0), lm, config=config, memory=pcm)
    with pytest.raises(ValueError, match="t_s"):
        pipeline.drift_state(state, -1.0)
