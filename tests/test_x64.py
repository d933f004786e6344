"""64-bit mode: every public function of the rooms without a model takes what NumPy and JAX then give by default."""

# ruff: noqa: E501 (a table of calls, one a line)
from typing import Any

import pytest

from nvcim_jax import data, devices, metrics, ops, selection

START = """
from nvcim_jax import data, devices, metrics, ops, selection
key, other = jax.random.key(0), jax.random.key(1)
x = jax.random.normal(key, (6, 4))
assert x.dtype == jnp.float64
g = jnp.linspace(0.0, 1.0, 5)
pcm = devices.get("PCM", d2d_sigma=0.1, stuck_on=0.1)
made = data.builtin_users(0, num_users=2, num_topics=3)
rows = [row for block in made.blocks for row in block.records] + [row for own in made.test.values() for row in own]
codec = selection.codec_init(key, 4, code=3)
R = np.array([[1.0, np.nan], [0.5, 1.0]])
CELLS = "cell,t_s,level,g_us\\n" + "".join(f"{c},{t},{c % 2},{5 + 30 * (c % 2) + 0.1 * c - 0.01 * t}\\n" for c in range(12) for t in (0, 100))
class Held(ops.Weight):
    matrix: jax.Array
    def aval(self): return jax.core.ShapedArray(self.matrix.shape, self.matrix.dtype)
ops.register_weight(Held, lambda w, x, axes: jnp.tensordot(x, w.matrix, (tuple(range(x.ndim - len(axes), x.ndim)), axes)))
"""
CALLS = {
    devices: {
        "Cells": "devices.program(key, g, pcm)._replace(t_s=jnp.zeros(()))",
        "Device": "devices.Device(sigma=np.float64(0.1), g_max_us=jnp.asarray(40.0), on_off_ratio=10)",
        "Drift": "devices.program(key, g, pcm.replace(drift=devices.Drift(mean=lambda g: 0.1 * g, std=0.01)))",
        "Law": "devices.program(key, g, pcm.replace(programming=devices.Law(sigma=lambda g: 0.1 + g, mean=lambda g: 0.9 * g)))",
        "BY_NAME": "[*devices.BY_NAME]",
        "Read": "devices.read(key, devices.program(other, g, pcm), pcm.replace(read=devices.Read(sigma=0.1)))",
        "cycle_key": "devices.cycle_key(key)",
        "drift": "jax.jit(devices.drift)(devices.program(key, g, pcm), 60.0, pcm)",
        "fit_table": "devices.fit_table(np.arange(40) % 2, np.arange(40.0), cell=np.arange(40) // 4)",
        "from_csv": "open('x64.csv', 'w').write('level,mean_us,sigma_us\\n0,1,1\\n1,39,1\\n'); devices.from_csv('x64.csv', g_max_us=40)",
        "fit_records": "open('x64.csv', 'w').write(CELLS); devices.fit_records(devices.read_records('x64.csv'), g_max_us=40.0, min_records=2)._asdict()",
        "from_records": "open('x64.csv', 'w').write(CELLS); [devices.drift(devices.program(key, g, d), 50.0, d) for law in ('trajectories', 'empirical', 'student', 'gaussian') for d in [devices.from_records(devices.read_records('x64.csv'), g_max_us=40.0, min_records=2, law=law)]]",
        "from_table": "devices.program(key, g, devices.from_table(g, g, 0.1 * g, g_max_us=40.0))",
        "get": "[jax.jit(devices.program)(key, g, devices.get(name)) for name in devices.names()]",
        "level_conductances": "devices.level_conductances(4, pcm)",
        "level_table": "devices.program(key, g, pcm.replace(programming=devices.level_table(g, 0.1 * g, g)))",
        "log_linear": "devices.log_linear(0.1, -0.01, low=0.0)(g)",
        "cell_moments": "devices.cell_moments(g, pcm)",
        "names": "devices.names()",
        "one_over_f": "devices.read(key, devices.program(other, g, pcm), pcm.replace(read=devices.one_over_f()))",
        "polynomial": "devices.program(key, g, pcm.replace(programming=devices.polynomial([0.1, 0.2])))",
        "program": "jax.vmap(lambda k: devices.program(k, g, pcm))(jax.random.split(key, 3))",
        "program_moments": "jax.jit(devices.program_moments)(g, pcm)",
        "programmed": "devices.programmed(g, jnp.ones(5), pcm, jnp.zeros(5))",
        "read": "jax.jit(devices.read)(key, devices.program(other, g, pcm), pcm)",
        "read_records": "open('x64.csv', 'w').write('level,g_us\\n0,1\\n1,39\\n'); devices.read_records('x64.csv')",
        "read_sigma": "devices.read_sigma(devices.program(key, g, pcm), pcm)",
        "reprogram": "jax.jit(devices.reprogram)(key, devices.program(other, g, pcm), g, pcm)",
        "sigma_of": "jax.grad(lambda s: devices.sigma_of(0.5, pcm.replace(sigma=s)))(0.1)",
        "value_noise": "devices.value_noise(key, x, devices.get('FeFET3'))",
    },
    ops: {
        "Part": "ops.understand(lambda w: jnp.ones((1, 6)) @ w[jnp.asarray(1)])(ops.Part(jnp.stack([x, x, x]), jnp.asarray(1), 2))",
        "Weight": "ops.understand(lambda w: x.T @ w)(Held(x))",
        "as_partial": "jax.jit(lambda f, x: f(x))(ops.as_partial(jnp.sqrt), x * x)",
        "centred_uniform": "[ops.centred_uniform(key, (3,), rng=rng) for rng in ops.RNGS]",
        "clip_inclusive": "ops.clip_inclusive(x, jnp.zeros(()), jnp.ones(()))",
        "descend": "__import__('optax'); ops.descend(key, x, lambda p, k, t: ((p**2).sum(), (p**2).sum()), __import__('optax').adam(0.1), num_steps=3)",
        "draw_batch": "ops.draw_batch(key, jnp.ones(3), 2)",
        "digits": "ops.digits(jnp.array([11.0]), base=4, num_digits=2)",
        "from_digits": "ops.from_digits(jnp.array([[3.0], [2.0]]), base=4)",
        "mirror": "ops.normal(ops.mirror(key), (3,))",
        "normal": "[ops.normal(key, (3,), rng=rng) for rng in ops.RNGS]",
        "Moments": "ops.Moments(jnp.zeros(()), jnp.zeros(4), jnp.zeros(4))",
        "moments_add": "jax.jit(ops.moments_add)(ops.moments_init((4,)), x)",
        "moments_init": "ops.moments_init((4,))",
        "moments_spread": "ops.moments_spread(ops.moments_add(ops.moments_init((4,)), x))",
        "normal_at": "ops.normal_at(key, jnp.arange(3, dtype=jnp.uint32))",
        "normal_pair": "ops.normal_pair(key, (3,))",
        "register_weight": "jax.grad(lambda w: ops.understand(lambda w: (x.T @ w).sum())(Held(w)))(x)",
        "relaxed_steps": "ops.relaxed_steps(key, x, jnp.zeros(()), jnp.ones(()), num_steps=jnp.asarray(15.0))",
        "patches": "ops.patches(x[None, :, :], (2,), (1,), [(0, 1)], (1,))",
        "reverse_mode": "ops.reverse_mode(key, lambda p, k, t: ((p**2).sum(), 0.0), x, 0)",
        "round_straight_through": "jax.grad(lambda x: ops.round_straight_through(x).sum())(x)",
        "understand": "ops.understand(jnp.add)(x, 1.0)",
        "uniform_steps": "ops.uniform_steps(x, -jnp.ones(()), jnp.ones(()), num_steps=4)",
    },
    selection: {
        "Clusters": "selection.representative(key, x, num=2)[1]._asdict()",
        "Codec": "jax.tree.map(jnp.asarray, codec)",
        "FitConfig": "selection.fit(key, codec, x, config=selection.FitConfig(num_steps=2, start='random'))",
        "FitInfo": "selection.fit(key, codec, x, config=selection.FitConfig(num_steps=2))[1]",
        "SearchConfig": "selection.num_key_rows(1, 8, config=selection.SearchConfig(storage='apart'))",
        "assignment_soft": "selection.assignment_soft(x, x[:2], temperature=1.0)",
        "codec_identity": "selection.encode(selection.codec_identity(), x)",
        "codec_init": "selection.codec_init(key, 4, code=3, hidden=(5,))",
        "codec_pca": "selection.codec_pca(key, codec, x)",
        "decode": "selection.decode(codec, selection.encode(codec, x))",
        "encode": "jax.jit(selection.encode)(codec, x)",
        "fit": "selection.fit(key, codec, x, config=selection.FitConfig(num_steps=3))",
        "fit_contrastive": "p = x.reshape(3, 2, 4); selection.fit_contrastive(key, codec, selection.Pairs(p, p, jnp.arange(3)), config=selection.FitConfig(num_steps=2))",
        "key_vector": "selection.key_vector(x, config=selection.SearchConfig(scales=(1, 2)))",
        "kmeans": "selection.kmeans(key, x, 2)",
        "num_key_rows": "selection.num_key_rows(1, 8, config=selection.SearchConfig())",
        "num_representatives": "selection.num_representatives(25)",
        "Pairs": "p = x.reshape(3, 2, 4); on = jnp.array([True, True, False]); selection.fit_contrastive(key, codec, selection.Pairs(p, p, jnp.arange(3), on, on), config=selection.FitConfig(num_steps=2, batch=2))",
        "Similarity": "selection.Similarity(key=jnp.ravel, query=lambda code, w: code.ravel()).key(x)",
        "similarity": "selection.similarity(selection.SearchConfig(measure='mips')).key(x)",
        "pick": "[selection.pick(x[0], kind=kind, temperature=0.5) for kind in selection.PICKS]",
        "pick_hard": "selection.pick_hard(x[0])",
        "pick_soft": "selection.pick_soft(x[0], 0.5)",
        "pick_straight_through": "selection.pick_straight_through(x[0], 0.5)",
        "pool_tokens": "selection.pool_tokens(x, jnp.ones(6, bool), 2)",
        "query_vector": "selection.query_vector(x, jnp.asarray((1.0, 0.8)), config=selection.SearchConfig(scales=(1, 2)))",
        "representative": "jax.jit(lambda k, x: selection.representative(k, x))(key, x)",
        "representative_soft": "selection.representative_soft(x, selection.representative(key, x, num=2)[1], temperature=0.1)",
    },
    metrics: {
        "MeanInterval": "metrics.interval(np.arange(3.0)).half_width",
        "Rouge": "metrics.Rouge(1.0, 0.5)",
        "accuracy": "metrics.accuracy(['a'], ['a'])",
        "forgetting": "metrics.forgetting(R)",
        "hierarchical_interval": "metrics.hierarchical_interval(np.ones((2, 3)))",
        "hit_rate": "metrics.hit_rate(np.array([0, 1]), np.array([0, 1]))",
        "interval": "metrics.interval([1.0, 2.0])",
        "lamp_evaluate": "metrics.lamp_evaluate({'a': '1'}, {'a': '2'}, task='LaMP_3', bootstrap=3, seed=0)",
        "macro_f1": "metrics.macro_f1(['a'], ['a'], ['a'])",
        "mean_absolute_error": "metrics.mean_absolute_error([1.0], [2.0])",
        "paired_interval": "metrics.paired_interval([1.0, 2.0], [2.0, 4.0])",
        "previously_seen": "metrics.previously_seen(R)",
        "previously_seen_mean": "metrics.previously_seen_mean(R)",
        "root_mean_squared_error": "metrics.root_mean_squared_error([1.0], [2.0])",
        "rouge": "metrics.rouge('a', 'a')",
        "student_quantile": "metrics.student_quantile(0.95, 3)",
    },
    data: {
        "Block": "made.blocks[0]._asdict()",
        "Record": "data.Record('a', 'u', 't', 'x', 'y', 'train')",
        "Stream": "made.current",
        "builtin_records": "data.builtin_records(0)",
        "builtin_users": "data.builtin_users(0)",
        "clinc5": "data.clinc5(rows)",
        "data_folder": "data.data_folder('nowhere')",
        "most_opposed": "data.most_opposed(rows, made.domains, 2, 1)",
        "permuted_users": "data.permuted_users(rows, made.domains, 2, None, np.random.default_rng(0))",
        "profile_pairs": "data.profile_pairs(data.Record('a', 'u', 'LaMP_7', 'x', 'y', 'val', {'profile': [{'text': 'a b c'}]}), seed=0)",
        "read_jsonl": "data.write_jsonl('x64.jsonl', rows); list(data.read_jsonl('x64.jsonl'))",
        "read_lamp": "open('dev_questions.json', 'w').write('[]'); open('dev_outputs.json', 'w').write('[]'); list(data.read_lamp('.', task='LaMP_3'))",
        "stream": "data.stream(rows, seed=0, config=data.StreamConfig(buffer_size=2))",
        "StreamConfig": "data.StreamConfig(buffer_size=2)",
        "write_jsonl": "data.write_jsonl('x64.jsonl', rows)",
        "write_predictions": "data.write_predictions('x64.json', 'LaMP_3', {'a': '1'})",
    },
}  # fmt: skip
# Types without values, and what its callers call.
NOT_CALLED = {
    "Gradient",
    "Loss",
    "Optimiser",
    "Rng",
    "refuse",
    "Cluster",
    "Pick",
}


@pytest.mark.slow
def test_every_public_function_runs(said_plainly: Any, tmp_path: Any) -> None:
    named = [(f"{room.__name__}.{name}", call) for room, calls in CALLS.items() for name, call in calls.items()]
    start = f"import os; os.chdir({str(tmp_path)!r})\n{START}\n"
    said = said_plainly([start + call for _, call in named], JAX_ENABLE_X64="1")
    wrong = [f"{name}: {': '.join(text)}" for (name, _), text in zip(named, said, strict=True) if text[0] != "nothing"]
    assert not wrong, "\n".join(wrong)


def test_every_public_function_is_called() -> None:
    for room, calls in CALLS.items():
        public = {name for name in room.__all__ if callable(getattr(room, name))}
        assert public - NOT_CALLED <= set(calls), room
