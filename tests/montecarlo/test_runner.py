"""The engine: values do not depend on how they were computed, memory and compiles are bounded."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from support.params import mostly_slow
from support.tracing import count_traces

from nvcim_jax import montecarlo
from nvcim_jax.montecarlo import Placement, engine

SIGMA = 0.3
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter)(-start)?\("
)


def product_error(key: jax.Array, weights: jax.Array, sigma: jax.Array) -> jax.Array:
    """Squared error of one noisy product with the vector of ones; its mean is sigma^2 rows cols."""
    noise = sigma * jax.random.normal(key, weights.shape)
    return jnp.sum(jnp.square(jnp.sum((weights + noise) - weights, axis=0)))


def tree_metric(key: jax.Array, scale: jax.Array) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {"loss": scale * jax.random.normal(first), "logits": jax.random.normal(second, (3,))}


@pytest.fixture
def weights() -> jax.Array:
    return jnp.ones((24, 5))


def test_instance_is_the_function_of_its_folded_key(weights: jax.Array) -> None:
    with jax.debug_key_reuse(False):
        stats = montecarlo.run(product_error, jax.random.key(3), 5, args=(weights, jnp.float32(SIGMA)))
        one = [product_error(jax.random.fold_in(jax.random.key(3), i), weights, jnp.float32(SIGMA)) for i in range(5)]
    np.testing.assert_allclose(stats.values, np.asarray(one), rtol=1e-5)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_loop_gives_the_same_bits_for_every_chunk_and_mesh(
    key: jax.Array, weights: jax.Array, chunk: int | None, num_devices: int
) -> None:
    args = (weights, jnp.float32(SIGMA))
    reference = montecarlo.run(product_error, jax.random.key(9), 100, args=args, placement=Placement(chunk=16))
    place = Placement(chunk=chunk, mesh=montecarlo.instance_mesh(jax.devices()[:num_devices]))
    stats = montecarlo.run(product_error, jax.random.key(9), 37, args=args, placement=place)
    np.testing.assert_array_equal(stats.values, reference.values[:37])


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_vmap_gives_the_same_values_within_rounding(weights: jax.Array, chunk: int, num_devices: int) -> None:
    args = (weights, jnp.float32(SIGMA))
    reference = montecarlo.run(product_error, jax.random.key(9), 100, args=args, placement=Placement(chunk=16))
    place = Placement(chunk=chunk, mesh=montecarlo.instance_mesh(jax.devices()[:num_devices]), mapping="vmap")
    stats = montecarlo.run(product_error, jax.random.key(9), 37, args=args, placement=place)
    np.testing.assert_allclose(stats.values, reference.values[:37], rtol=2e-5)


def test_explicit_mesh_axes_work_and_further_axes_replicate(key: jax.Array) -> None:
    reference = montecarlo.run(tree_metric, jax.random.key(1), 9, args=(2.0,))
    mesh = jax.make_mesh((4, 2), ("instance", "model"))
    stats = montecarlo.run(tree_metric, jax.random.key(1), 9, args=(2.0,), placement=Placement(mesh=mesh))
    jax.tree.map(np.testing.assert_array_equal, stats.values, reference.values)


def test_range_of_ids_is_a_slice_of_the_whole(key: jax.Array) -> None:
    whole = montecarlo.run(tree_metric, jax.random.key(1), 50, args=(2.0,))
    part = montecarlo.run(tree_metric, jax.random.key(1), range(30, 43), args=(2.0,))
    np.testing.assert_array_equal(part.values["logits"], whole.values["logits"][30:43])


def test_statistics_match_numpy_and_the_closed_form(weights: jax.Array, key: jax.Array) -> None:
    stats = montecarlo.run(product_error, key, 4000, args=(weights, jnp.float32(SIGMA)), quantiles=(0.1, 0.9))
    truth = SIGMA**2 * weights.size
    assert abs(stats.mean - truth) < 5 * stats.standard_error
    values = stats.values.astype(np.float64)
    np.testing.assert_allclose(stats.standard_error, values.std(ddof=1) / np.sqrt(4000), rtol=1e-12)
    np.testing.assert_allclose(stats.quantiles, np.quantile(values, (0.1, 0.9)), rtol=1e-12)
    assert stats.num_instances == 4000


@pytest.mark.parametrize("mapping", ["loop", "vmap"])
def test_one_compile_for_chunks_keys_counts_and_numbers(mapping: str) -> None:
    def metric(key: jax.Array, scale: jax.Array) -> jax.Array:
        return scale * jax.random.normal(key)

    place = Placement(chunk=7, mapping=mapping)
    with count_traces() as made:
        for seed, count, scale in [(0, 20, 1.0), (1, 20, 2.0), (2, 3, 0.5), (3, 101, 4.0)]:
            montecarlo.run(metric, jax.random.key(seed), count, args=(jnp.float32(scale),), placement=place)
    assert made.count("jit(on_one_device)") == 1


def test_a_second_run_compiles_nothing() -> None:
    compiled = []

    def listen(event: str, seconds: float, **_: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    montecarlo.run(tree_metric, jax.random.key(1), 9, args=(2.0,), placement=Placement(chunk=5))
    jax.monitoring.register_event_duration_secs_listener(listen)
    other = jax.random.key(2)
    compiled.clear()
    montecarlo.run(tree_metric, other, 23, args=(3.0,), placement=Placement(chunk=5))
    assert compiled == []
    montecarlo.run(lambda key: jax.random.normal(key), other, 3, placement=Placement(chunk=5))  # noqa: PLW0108
    assert len(compiled) >= 1, "the listener hears compiles"


def test_the_memory_check_and_the_run_share_one_compile() -> None:
    compiled = []

    def listen(event: str, seconds: float, **_: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    def metric(key: jax.Array, scale: float) -> jax.Array:
        return scale * jnp.sum(jax.random.normal(key, (5,)))

    key = jax.random.key(1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    montecarlo.run(metric, key, 23, args=(3.0,), placement=Placement(chunk=5))
    assert len(compiled) == 1


def test_a_jitted_function_and_a_closure_work(key: jax.Array) -> None:
    scale = jnp.float32(2)
    stats = montecarlo.run(jax.jit(lambda k: scale * jax.random.normal(k)), key, 50)
    assert stats.values.shape == (50,)


@pytest.mark.parametrize("mapping", ["loop", "vmap"])
def test_the_map_over_eight_devices_has_no_collective(weights: jax.Array, mapping: str) -> None:
    mesh = montecarlo.instance_mesh()
    ids = np.zeros(8, np.uint32)
    mapped = engine.compiled_map(product_error, 4, mapping, mesh)
    text = mapped.lower(jax.random.key(0), ids, ids, (weights, jnp.float32(1))).compile().as_text()
    assert "fusion" in text
    assert not COLLECTIVE.findall(text)


def test_the_test_for_collectives_would_see_one() -> None:
    mesh = montecarlo.instance_mesh()
    ids = np.zeros(8, np.uint32)
    mapped = engine.compiled_map(lambda key: jax.lax.psum(jax.random.normal(key), "instance"), 4, "loop", mesh)
    text = mapped.lower(jax.random.key(0), ids, ids, ()).compile().as_text()
    assert COLLECTIVE.findall(text)


def test_nonfinite_instances_are_counted_and_never_averaged_in(key: jax.Array) -> None:
    def metric(key: jax.Array) -> dict[str, jax.Array]:
        value = jax.random.normal(key)
        return {"loss": jnp.where(value > 1, jnp.nan, value), "other": jnp.where(value < -1, jnp.inf, 1.0)}

    stats = montecarlo.run(metric, key, 500)
    good = np.isfinite(stats.values["loss"]) & np.isfinite(stats.values["other"])
    assert stats.num_nonfinite == 500 - good.sum() > 50
    np.testing.assert_allclose(stats.mean["loss"], stats.values["loss"][good].mean(dtype=np.float64))
    assert stats.mean["other"] == 1.0


def test_all_nonfinite_gives_nan_without_a_warning(key: jax.Array) -> None:
    stats = montecarlo.run(lambda k: jax.random.normal(k) * jnp.nan, key, 3)
    assert stats.num_nonfinite == 3
    assert np.isnan(stats.mean)
    assert np.isnan(stats.quantiles).all()


def test_without_values_the_statistics_are_those_of_the_values() -> None:
    full = montecarlo.run(tree_metric, jax.random.key(5), 3000, args=(2.0,), placement=Placement(chunk=64))
    thin = montecarlo.run(
        tree_metric, jax.random.key(5), 3000, args=(2.0,), placement=Placement(chunk=64), keep_values=False
    )
    assert thin.values is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), thin.mean, full.mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), thin.standard_error, full.standard_error)
    for name in ("loss", "logits"):
        ordered = np.sort(full.values[name], axis=0)[np.rint(np.asarray(full.quantile_levels) * 2999).astype(int)]
        np.testing.assert_allclose(thin.quantiles[name], ordered, rtol=2**-12)


def test_the_chunk_follows_from_the_budget(key: jax.Array) -> None:
    seen = []
    original = engine._call

    def metric(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, (2**16,))  # 256 KiB an instance

    def spy(fn, plan, *rest):
        seen.append(plan.chunk)
        return original(fn, plan, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_call", spy)
        stats = montecarlo.run(metric, key, 20, placement=Placement(memory_budget_mb=3.0))
    assert stats.values.shape == (20, 2**16)
    assert 1 < max(seen) <= 12


@pytest.mark.parametrize("mapping", ["loop", "vmap"])
def test_out_of_memory_halves_the_chunk_and_goes_on(mapping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = montecarlo.run(tree_metric, jax.random.key(8), 40, args=(1.0,), placement=Placement(mapping=mapping))
    original = engine._call

    def limited(fn, plan, *rest):
        if plan.chunk > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return original(fn, plan, *rest)

    monkeypatch.setattr(engine, "_call", limited)
    with pytest.warns(RuntimeWarning, match=r"16 instances a device; going on with 8|8 instances") as warned:
        stats = montecarlo.run(
            tree_metric, jax.random.key(8), 40, args=(1.0,), placement=Placement(chunk=16, mapping=mapping)
        )
    assert len(warned) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats.values, reference.values)


REFUSED = """
import resource, sys, warnings
import jax, jax.numpy as jnp, numpy as np
from nvcim_jax import montecarlo
from nvcim_jax.montecarlo import engine

def outputs(key):
    return jax.random.normal(key, (2**19,))  # 2 MiB an instance

def temporaries(key):
    x = jax.random.normal(key, (1024, 32))
    return jnp.tanh(x @ x.T)[::256, 7]  # 4 MiB an instance

fn, mapping = {"outputs": (outputs, "loop"), "temporaries": (temporaries, "vmap")}[sys.argv[1]]

def values(chunk):
    place = montecarlo.Placement(chunk=chunk, mapping=mapping)
    parts = montecarlo.engine.stream(fn, jax.random.key(3), range(40), placement=place)
    return [np.array(row[:: max(1, len(row) // 128)]) for part in parts for row in part.values]

small = values(4)
mesh, ids = montecarlo.instance_mesh(jax.devices()[:1]), np.zeros(1, np.uint32)
for chunk in (32, 16, 8):  # compiled before the limit, which is for the buffers alone
    engine.compiled_map(fn, chunk, mapping, mesh).lower(jax.random.key(3), ids, ids, ()).compile()
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20,) * 2)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    large = values(32)
print([str(w.message) for w in said])
print(np.array_equal(small, large) if mapping == "loop" else np.allclose(small, large, rtol=1e-5))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
@pytest.mark.parametrize("what", mostly_slow(["outputs", "temporaries"], "outputs"))
def test_memory_that_the_system_refuses_halves_the_chunk(what: str) -> None:
    # The limit is for buffers: unoptimised code is larger, and what is compiled under the limit might not fit.
    env = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", REFUSED, what], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    said, equal = done.stdout.splitlines()
    assert "Out of device memory with 32 instances a device; going on with 16." in said
    assert equal == "True"


def test_out_of_memory_with_one_instance_is_raised(key: jax.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(engine, "_call", never)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        montecarlo.run(tree_metric, key, 4, args=(1.0,), placement=Placement(chunk=1))


def metric(key: jax.Array) -> jax.Array:
    return jax.random.normal(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_instances": 0}, "`num_instances` must be an integer of at least 1"),
        ({"key": 0}, r"`key` must be one JAX random key, but is the int 0. Use jax.random.key\(0\)"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, r"`key` must be one JAX random key, but has shape \(2,\)"),
        ({"placement": {"chunk": 0}}, "`chunk` must be an integer of at least 1"),
        ({"placement": {"mesh": Mesh(np.asarray(jax.devices()), ("model",))}}, '`mesh` must have an axis "instance"'),
        ({"placement": {"mapping": "lop"}}, "Did you mean 'loop'"),
        ({"quantiles": (0.5, 1.5)}, "`quantiles` must lie in"),
        ({"placement": {"memory_budget_mb": 0.0}}, "`memory_budget_mb` must lie in"),
        ({"placement": {"memory_budget_mb": 1e-6}}, "`memory_budget_mb` must be at least 1, what one instance needs"),
        ({"args": ("text",)}, "`args` must hold arrays and numbers only"),
        ({"fn": lambda key: None}, "`fn` must return a number"),
        ({"fn": lambda key: key}, "`fn` must return real numbers"),
        ({"fn": lambda key: jnp.complex64(1j)}, "`fn` must return real numbers, but returns complex64"),
        ({"num_instances": range(2**32, 2**32 + 1)}, "`num_instances` must hold ids below"),
        ({"num_instances": range(0)}, "`num_instances` must be a range of ids that rise"),
    ],
)
def test_bad_input_gets_one_clear_line(change: dict, message: str) -> None:
    arguments = {"fn": metric, "key": jax.random.key(0), "num_instances": 3} | change
    positional = [arguments.pop(name) for name in ("fn", "key", "num_instances")]
    place = arguments.pop("placement", {})
    with pytest.raises(ValueError, match=message) as error:
        montecarlo.run(*positional, **arguments, placement=Placement(**place))
    assert "\n" not in str(error.value)


def test_an_old_key_gives_the_numbers_of_the_typed_one() -> None:
    old, typed = (
        montecarlo.run(jax.random.normal, key, 5).values for key in (jax.random.PRNGKey(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(old, typed)


def test_progress_is_shown_only_after_a_while(
    key: jax.Array, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    montecarlo.run(metric, jax.random.key(1), 10, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("nvcim_jax.progress._QUIET_S", -1.0)
    montecarlo.run(metric, jax.random.key(1), 10, progress=True)
    shown = capsys.readouterr()
    assert "10/10" in shown.err
    assert shown.out == ""


MILLION = """
import jax
from nvcim_jax import montecarlo

def metric(key):
    return jax.random.normal(key, (4,)).sum()

peaks = []
for num in (5000, 1_000_000):
    stats = montecarlo.run(metric, jax.random.key(0), num, keep_values=False)
    # not getrusage: its peak is at least the size of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    peaks.append(int(line.split()[1]) / 1024)
print(peaks[1] - peaks[0], float(stats.mean), float(stats.standard_error), float(stats.quantiles[4]))
"""


@pytest.mark.slow
def test_a_million_cheap_instances_take_no_more_memory_than_a_few() -> None:
    done = subprocess.run([sys.executable, "-c", MILLION], capture_output=True, text=True, check=True)
    growth_mb, mean, error, worst = (float(word) for word in done.stdout.split())
    assert growth_mb < 20
    assert abs(mean) < 5 * error
    assert error == pytest.approx(2e-3, rel=0.01)
    assert worst == pytest.approx(2 * 2.3263, rel=0.01)
