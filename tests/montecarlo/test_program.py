"""What a metric computes is told apart from another by its values, and from itself never."""

import functools
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcim_jax import montecarlo
from nvcim_jax.montecarlo.program import program

KEY = jax.random.key(0)
TABLE = jnp.asarray([1.0, 2.0, 4.0])


def build(scale: float, shift: float, steps: int, table: np.ndarray):
    table = jnp.asarray(table, jnp.float32)

    def metric(key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        y = jax.lax.scan(lambda c, _: (jnp.tanh(c * scale), None), x, None, length=steps)[0]
        chosen = jax.lax.cond(y > 0, lambda: y, lambda: y + shift)
        return {"loss": chosen + jnp.sum(table * jax.random.normal(key, table.shape))}

    return metric


numbers = st.floats(0.25, 4.0, width=32)
settings_of_a_metric = st.tuples(numbers, numbers, st.integers(1, 3), st.lists(numbers, min_size=2, max_size=3))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(settings_of_a_metric, settings_of_a_metric)
def test_metrics_are_equal_where_their_settings_are(a: tuple, b: tuple) -> None:
    one, two = (program(build(s, h, n, np.asarray(t)), KEY, (1.0,)) for s, h, n, t in (a, b))
    assert (one == two) == (a == b)
    assert one == program(build(*a[:3], np.asarray(a[3])), jax.random.key(5), (2.0,))


CODE = """
import jax, jax.numpy as jnp
from nvcim_jax.montecarlo.program import program
table = jnp.asarray([1.0, 2.0, 4.0])
def metric(key, x):
    y = jax.nn.gelu(x * table) + jax.nn.relu(jax.random.normal(key, (3,)))
    return {"b": jnp.linalg.norm(y), "a": jax.lax.while_loop(lambda c: c < 9, lambda c: c * 2, y.sum())}
print(program(metric, jax.random.key(3), (2.0,)))
"""


@pytest.mark.slow
def test_two_processes_describe_a_metric_alike() -> None:
    said = [
        subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": str(seed), "PATH": "", "PYTHONPATH": ":".join(sys.path)} for seed in (1, 2))
    ]
    assert said[0] == said[1]
    assert "float32[3] sha256" in said[0]


@jax.jit
def _drawn_inside(x: jax.Array) -> jax.Array:
    return x * np.float32(np.random.default_rng().normal())


def _drawn_array(key: jax.Array) -> jax.Array:
    return jnp.sum(jax.random.normal(key, (3,)) + jnp.asarray(np.random.default_rng().normal(size=3), jnp.float32))


def _timed(key: jax.Array) -> jax.Array:
    return jax.random.normal(key) * np.float32(time.perf_counter())


def _other_turns(key: jax.Array) -> jax.Array:
    x = jax.random.normal(key)
    for _ in range(random.randrange(1, 10**6) % 97 + 1):
        x = jnp.sin(x)
    return x


@pytest.mark.parametrize("metric", [lambda k: _drawn_inside(jax.random.normal(k)), _drawn_array, _timed, _other_turns])
def test_what_is_drawn_while_a_metric_is_traced_is_refused(metric) -> None:
    random.seed(1)
    with pytest.raises(ValueError, match=r"`fn` must compute the same whenever it is traced.*jax\.random") as error:
        montecarlo.run(metric, KEY, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda key: "good", "`fn` must return a number, an array or a tree of arrays, but returns 'good'"),
        (lambda key: {"loss": jax.random.normal(key), "name": "a"}, "but returns 'a'"),
        (lambda key: jax.random.normal(key) * (1 + 1j), "`fn` must return real numbers, but returns complex64"),
        (lambda key: object(), "but returns a object"),
        (lambda key: None, "returns none"),
    ],
)
def test_what_is_no_number_is_named(metric, message: str) -> None:
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        montecarlo.run(metric, KEY, 3)


def test_partials_of_equal_settings_are_one_program() -> None:
    traces = []

    def metric(key: jax.Array, *, scale: float) -> jax.Array:
        traces.append(scale)
        return scale * jax.random.normal(key)

    for scale in (2.0, 2.0, 3.0):
        montecarlo.run(functools.partial(metric, scale=scale), KEY, 5)
    assert traces == [2.0] * 3 + [3.0] * 3


def _solved(key: jax.Array) -> jax.Array:
    a = jnp.eye(3) + 0.1 * jax.random.normal(key, (3, 3))
    return jnp.linalg.solve(a, jnp.ones(3)).sum() + jnp.linalg.eigvalsh(a @ a.T)[0]


def _rooted(key: jax.Array) -> jax.Array:
    x = jax.random.normal(key)
    return jax.lax.custom_root(lambda y: y - x, 0.0, lambda f, y: y - f(y), lambda g, y: y / g(1.0))


def _branched(key: jax.Array) -> jax.Array:
    first, second = jax.random.split(key)
    x = jnp.sort(jax.random.normal(first, (4, 4)))
    y = jax.vmap(lambda row: jax.lax.switch(jnp.argmax(row) % 2, [jnp.sum, jnp.max], row))(x)
    convolved = jax.scipy.signal.convolve(y, jnp.ones(2), mode="same")
    return jnp.quantile(jax.checkpoint(jnp.tanh)(convolved), 0.3) + jax.random.gamma(second, 2.0)


def _with_gradient(key: jax.Array) -> jax.Array:
    return jax.grad(lambda x: jnp.sum(jnp.linalg.inv(jnp.eye(2) + x * jax.random.normal(key, (2, 2)))))(0.1)


@pytest.mark.parametrize("metric", [_solved, _rooted, _branched, _with_gradient])
def test_what_jax_offers_is_the_same_at_every_trace(metric) -> None:
    with jax.debug_key_reuse(False):
        assert np.isfinite(montecarlo.run(metric, KEY, 3).values).all()


def test_partials_of_equal_numbers_of_other_kinds_are_programs_of_their_own() -> None:
    def metric(c: object, key: jax.Array) -> jax.Array:
        del key
        return jnp.float32(jnp.asarray(c).dtype == jnp.int32) + jnp.float32(jnp.signbit(jnp.float32(c)))

    values = (1, 1.0, True, 0.0, -0.0)
    found = [float(montecarlo.run(functools.partial(metric, v), KEY, 3, progress=False).mean) for v in values]
    assert found == [1.0, 0.0, 0.0, 0.0, 1.0]
