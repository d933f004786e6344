"""What `fuzzing` draws wrong inputs from, and a call that runs for every public function."""

ROOMS = (
    "devices",
    "crossbar",
    "montecarlo",
    "io",
    "data",
    "metrics",
    "ops",
    "selection",
    "plots",
    "models",
    "tuning",
    "pipeline",
    "study",
    "cost",
    "compression",
)

NUMBERS = ("-1", "0", "2.5", "1e30", "10**30", "-1e-30", "float('nan')", "float('inf')", "-float('inf')")
TYPES = (
    "'text'", "''", "b'bytes'", "{}", "{'rows': 8}", "[]", "()", "None", "1j", "True", "[1, 'a']", "object()",
    "np.zeros((2, 3, 4, 5))", "np.zeros(0)", "np.array('a')", "np.full((2, 2), np.nan)", "[None]", "lambda *a: None",
    "range(3)", "np.random", "Path('x')", "jnp.zeros((3, 3), bool)", "[[1, 2], [3]]", "jax.random.key(3)",
)  # fmt: skip
GOOD_KEYS = ("jax.random.PRNGKey(0)", "jax.random.key(0, impl='rbg')", "jax.random.key(0, impl='unsafe_rbg')")
BAD_KEYS = (
    "0", "None", "'text'", "jnp.zeros(2)", "np.uint32(7)", "jax.random.split(jax.random.key(0), 3)",
    "jax.random.PRNGKey(0)[None]",
)  # fmt: skip
KEYS = (*GOOD_KEYS, *BAD_KEYS)
FILES = ("folder", "missing", "empty", "binary", "bom", "html", "png", "cut")
WRONG = (*NUMBERS, *TYPES)

SETUP = """
K = jax.random.key(0)
D = nv.devices.get("FeFET6", sigma=0.1)
PCM = nv.devices.get("PCM")
C = nv.crossbar.Config(rows=8, cols=4, cell_bits=2, weight_bits=4, adc_bits=6, dac_bits=6)
W = jax.random.normal(K, (8, 3))
X = jax.random.normal(jax.random.key(1), (2, 8))
V = np.linspace(0.1, 0.9, 40)
G = jnp.array([[0.1, 0.5], [0.0, 1.0]])
TECH, CPU = nv.cost.technology("RRAM-22nm"), nv.cost.machines.get("edge-8GB")
ROW = nv.data.Record("1", "ann", "t", "a film", "good", "train")
ROWS = list(nv.data.builtin_records(0, num_users=2, num_topics=2, num_train=8, num_test=4))


def cells_file():
    path = Path(__import__("tempfile").mkdtemp()) / "cells.csv"
    reads = [(c, t, c % 2, 5.0 + 30 * (c % 2) + 0.1 * c - 0.01 * t) for c in range(12) for t in (0.0, 10.0, 100.0)]
    lines = ["cell,t_s,level,g_us", *(",".join(map(str, read)) for read in reads)]
    path.write_text(chr(10).join(lines))
    return path


def metric(key, *args):
    return jax.random.normal(key)


def on_x(key, x, *args):
    return x * jnp.abs(jax.random.normal(key))
"""

LATER = {
    "TARGET": "nv.crossbar.encode(W, D, config=C)",
    "CHIP": "nv.crossbar.program(K, W, D, config=C)",
    "DRIFTING": "nv.crossbar.program(K, W, PCM, config=C)",
    "CALIBRATED": "nv.crossbar.program(K, W, D, config=dataclasses.replace(C, adc_range='calibrated'))",
    "CELLS": "nv.devices.program(K, G, PCM)",
    "RECORDS": "nv.devices.read_records(cells_file())",
    "CELL_FIT": "nv.devices.fit_records(nv.devices.read_records(cells_file()), g_max_us=40.0, min_records=2)",
    "SMALL_LM": "nv.models.init(K, config=nv.models.Config(vocab_size=8, width=8, num_layers=2, num_heads=2, "
    "mlp_width=8))",
    "BLOCK_BITS": "nv.compression.Policy(np.array([3, 4]), np.array([0.5, 0.5]))",
    "ERRORS": "nv.compression.Table(np.array([1.0, 2.0]), np.array([2.0, 1.0]), bits=4, sparsity=0.5)",
    "STATS": "nv.montecarlo.run(metric, K, 4)",
}
"""What only some calls need, made when one does."""

CALLS: dict[str, str] = {
    "compression.sensitivity": "lm=SMALL_LM, tokens=jnp.ones((2, 4), int), bits=4, sparsity=0.5, relative=False",
    "compression.luc": "table=ERRORS, bits=4, sparsity=0.5, form='insensitivity', cap=1.0",
    "compression.uniform": "num_layers=2, bits=4, sparsity=0.5",
    "compression.random": "key=K, policy=BLOCK_BITS",
    "compression.apply": "lm=SMALL_LM, policy=BLOCK_BITS, tokens=jnp.ones((2, 4), int), method='magnitude', "
    "quantiser='absmax'",
    "compression.in_loop": "lm=SMALL_LM, policy=BLOCK_BITS, parts=('weights',), clip=None",
    "compression.memory": "lm=SMALL_LM, policy=BLOCK_BITS",
    "compression.pack": "lm=nv.compression.apply(SMALL_LM, BLOCK_BITS, method='magnitude')",
    "compression.magnitude": "w=W, sparsity=0.5",
    "compression.wanda": "w=W, second=W @ W.T, sparsity=0.5",
    "compression.sparsegpt": "w=W, second=W @ W.T, sparsity=0.5",
    "compression.gptq": "w=W, second=W @ W.T, bits=4",
    "compression.quantise": "x=X, bits=4, axis=-1, clip=None",
    "compression.to_codes": "w=W, bits=4",
    "cost.search": "config=C, num_stored=3, on=TECH, values=8, periphery=nv.cost.Periphery()",
    "cost.search_digital": "num_stored=3, on=CPU, values=8, bits=16, level='dram'",
    "cost.digital": "macs=10.0, moved_bytes=10.0, level=nv.cost.machines.level_of(CPU, 'dram'), on=CPU, weight_bits=8, "
    "activation_bits=8",
    "cost.layer": "shape=(8, 3), config=C, on=TECH, tokens=2, periphery=nv.cost.Periphery()",
    "cost.program": "shape=(8, 3), config=C, on=TECH, pulses=3",
    "cost.read_back": "num_codes=2, config=C, on=TECH, values=8, periphery=nv.cost.Periphery()",
    "cost.model": "lm=nv.models.Config(vocab_size=8, width=8, num_layers=1, num_heads=2, mlp_width=8), config=C, "
    "on=TECH, host=CPU, bits=4, context=8, periphery=nv.cost.Periphery()",
    "cost.model_digital": "lm=nv.models.Config(vocab_size=8, width=8, num_layers=1, num_heads=2, mlp_width=8), on=CPU, "
    "bits=4, activation_bits=8, context=8, density=0.5",
    "cost.technology": "name='RRAM-22nm', node_nm=22.0",
    "cost.converter_energy": "bits=8, on=TECH, sample_time=1e-8",
    "cost.lossless_bits": "rows=8, input_bits=1, cell_bits=2, signed=False",
    "cost.draw": "key=K, specification=TECH, num_draws=20",
    "cost.break_even": "config=C, on=TECH, machine=CPU, quantity='energy', ratio=1.0, values=8, level='dram', "
    "periphery=nv.cost.Periphery()",
    "cost.memory": "config=nv.models.Config(vocab_size=8, width=8, num_layers=1, num_heads=2, mlp_width=8), "
    "work=nv.cost.Work(), packed=False",
    "cost.Periphery": "columns_per_adc=8, arrays_at_once=None, lossless=False",
    "devices.get": "name='FeFET6', sigma=0.1, g_max_us=40.0, on_off_ratio=10.0, d2d_sigma=0.1, stuck_on=0.1, "
    "stuck_off=0.1, drift=None, read=None, clip=True, rng='counter'",
    "devices.cycle_key": "key=K",
    "devices.cell_moments": "g=G, device=D",
    "devices.drift": "cells=CELLS, t_s=60.0, device=PCM",
    "devices.fit_table": "level=[0, 1] * 20, g_us=V, cell=None, target_us=None, num_levels=2, min_records=10",
    "devices.from_csv": "path=FILE, g_max_us=40.0, on_off_ratio=10.0, num_levels=4, min_records=10",
    "devices.fit_records": "records=RECORDS, g_max_us=40.0, levels=None, times_s=None, limits=(-0.1, 1.5), "
    "min_records=2",
    "devices.from_records": "records=CELL_FIT, g_max_us=40.0, law='trajectories', t_s=10.0",
    "devices.from_table": "levels=[0.0, 1.0], mean=[0.0, 1.0], sigma=[0.1, 0.1], g_max_us=40.0, on_off_ratio=10.0, "
    "d2d_sigma=0.1, stuck_on=0.1, stuck_off=0.1, clip=True, rng='counter'",
    "devices.level_conductances": "num_levels=4, device=D",
    "devices.level_table": "levels=[0.0, 1.0], sigma=[0.1, 0.1], mean=None",
    "devices.log_linear": "offset=0.1, slope=0.1, low=0.0, high=1.0",
    "devices.one_over_f": "scale=0.01, exponent=0.65, floor=0.001, ceiling=0.2, t_read_s=1e-7, t0_s=20.0",
    "devices.polynomial": "coefficients=[0.1, 0.2]",
    "devices.program": "key=K, g=G, device=D",
    "devices.program_moments": "g=G, device=D",
    "devices.programmed": "g=G, z=G, device=D, offset=None",
    "devices.read": "key=K, cells=CELLS, device=PCM",
    "devices.read_records": "path=FILE, columns={'g': 0, 'level': 1}, units={'g': 'uS'}",
    "devices.read_sigma": "cells=CELLS, device=PCM",
    "devices.reprogram": "key=K, cells=CELLS, g=G, device=PCM",
    "devices.sigma_of": "g=G, device=D",
    "devices.value_noise": "key=K, values=W, device=D",
    "crossbar.Config": "rows=8, cols=4, mapping='differential', weight_bits=4, cell_bits=2, weight_scale='column', "
    "slices='rows', dac_bits=6, dac_range='absmax', dac_bits_per_cycle=1, adc_bits=6, adc_range='max', "
    "adc_code='signed', adc_before_subtraction=False",
    "crossbar.Converters": "dac_bits=6, dac_range='absmax', dac_bits_per_cycle=1, adc_bits=6, adc_range='max'",
    "crossbar.Wires": "row_ohm=1.0, col_ohm=1.0",
    "crossbar.Bits": "dac=6.5, adc=6.5",
    "crossbar.calibrate": "key=K, x=X, chip=CALIBRATED, quantile=0.99",
    "crossbar.chip_axes": "chip=CHIP",
    "crossbar.column_factors": "outputs=X, reference=X, ridge=1e-6",
    "crossbar.compensate": "key=K, chip=DRIFTING",
    "crossbar.drift": "chip=DRIFTING, t_s=60.0",
    "crossbar.encode": "weights=W, device=D, config=C, dac_max=None, adc_max=None, adc_min=None",
    "crossbar.geometry": "shape=(8, 3), config=C",
    "crossbar.matmul": "key=K, x=X, chip=CHIP, converters=None, bits=None",
    "crossbar.product_moments": "x=X, target=TARGET",
    "crossbar.program": "key=K, weights=W, device=D, config=C, dac_max=None, adc_max=None, adc_min=None, wires=None",
    "crossbar.program_verified": "key=K, weights=W, verified=W > 0, device=D, residual_sigma=0.01, config=C",
    "crossbar.read_back": "key=K, chip=CHIP",
    "crossbar.report": "shape=(8, 3), config=C",
    "crossbar.reprogram": "key=K, chip=CHIP, weights=W",
    "crossbar.sample": "key=K, x=X, target=TARGET, sampling='device', converters=None, bits=None",
    "crossbar.selected": "importance=W, share=0.5",
    "crossbar.transfer_matrix": "conductance=G, row_resistance=jnp.float32(0.1), col_resistance=jnp.float32(0.1)",
    "crossbar.write": "key=K, target=TARGET, wires=None",
    "montecarlo.Placement": "chunk=2, mapping='loop', mesh=None, memory_budget_mb=100.0",
    "montecarlo.Precision": "half_width=0.1, kind='mean', of=None, relative=False, level=0.95, quantile=0.5, "
    "bound=None, larger_is_better=False, min_instances=100",
    "montecarlo.antithetic": "fn=metric",
    "montecarlo.antithetic_mean": "values={'plain': V, 'mirrored': V}",
    "montecarlo.control_variate": "values=V, control=V + V ** 2, known_mean=0.5",
    "montecarlo.grid": "axes={'a': [1, 2]}",
    "montecarlo.instance_mesh": "devices=None",
    "montecarlo.linearised": "fn=metric",
    "montecarlo.mean_interval": "values=V, level=0.95",
    "montecarlo.paired": "first=metric, second=metric",
    "montecarlo.quantile_interval": "values=V, quantile=0.5, level=0.95",
    "montecarlo.run": "fn=metric, key=K, num_instances=4, args=(), quantiles=(0.5,), keep_values=True, "
    "placement=nv.montecarlo.Placement(), progress=None, store=None",
    "montecarlo.run_until": "fn=metric, key=K, precision=nv.montecarlo.Precision(half_width=1.0), max_instances=200, "
    "args=(), quantiles=(0.5,), placement=nv.montecarlo.Placement(), progress=None, store=None",
    "montecarlo.sensitivity": "fn=on_x, key=K, num_instances=24, params=0.5, args=(), quantiles=(0.5,)",
    "montecarlo.shard_range": "num_instances=10, shard=1, num_shards=3",
    "montecarlo.stats_of_values": "values=V, levels=(0.5,)",
    "montecarlo.stream": "fn=metric, key=K, ids=range(3), args=(), placement=nv.montecarlo.Placement()",
    "montecarlo.sweep": "build=lambda settings: metric, key=K, axes={'a': [1, 2]}, num_instances=3, traced=('a',), "
    "args=(), precision=None, store=None",
    "montecarlo.Good": "bound=0.5, larger_is_better=False, share=0.5, level=0.95",
    "montecarlo.tolerance": "fn=on_x, key=K, num_instances=8, good=nv.montecarlo.Good(bound=0.5, share=0.5), "
    "between=(0.0, 9.0), args=(), resolution=0.5, store=None",
    "montecarlo.yield_interval": "values=V, bound=0.5, level=0.95, larger_is_better=False",
    "io.difference": "there={}, here={}",
    "io.export": "folder=FILE, command='x', only=None, larger_is_better=None",
    "io.folder": "path=FILE, config=None, save_every_s=1.0",
    "io.holds": "path=FILE",
    "io.left_out": "folder=FILE, only=[]",
    "io.load_state": "path=FILE, device=D, config=None",
    "io.load_device": "path=FILE",
    "io.merge": "sources=[FILE], target=FILE, num_instances=3, rtol=1e-5",
    "io.merge_points": "sources=[FILE], target=FILE, num_instances=3, rtol=1e-5",
    "io.point_name": "settings={'a': 1}",
    "io.points": "path=FILE, config=None, save_every_s=1.0",
    "io.read": "folder=FILE",
    "io.read_points": "folder=FILE, only=None",
    "io.read_records": "path=FILE",
    "io.records_about": "path=FILE",
    "io.save_device": "path=FILE, device=D",
    "io.summarise_records": "path=FILE",
    "io.summary": "points=[], quantiles=(0.5,)",
    "io.write_records": "folder=FILE, rows=[{'instance': 0}], axes=[], command='x', of='sweep', larger_is_better=None",
    "data.Record": "id='1', user_or_domain='a', task='t', input='x', output='y', split='train'",
    "data.builtin_records": "seed=0, num_users=2, num_topics=2, num_train=4, num_test=2, num_words=1, own_words=False",
    "data.builtin_users": "seed=0, kind='block', num_users=2, buffer_size=4, num_blocks=None, num_topics=2, "
    "num_train=4, num_test=2, num_words=1, own_words=False, hold_out=False",
    "data.clinc5": "records=ROWS, num_labels=1, first=0",
    "data.data_folder": "name=''",
    "data.most_opposed": "records=ROWS, names=['a', 'b'], num_users=2, min_rows=1",
    "data.permuted_users": "records=ROWS, domains=['a'], num_users=2, labels=None, rng=np.random.default_rng(0)",
    "data.profile_pairs": "record=ROW, task='LaMP_2M', seed=0, distractors=()",
    "data.read_jsonl": "path=FILE",
    "data.read_lamp": "source=FILE, outputs=None, task=None, split=None",
    "data.stream": "records=ROWS, seed=0, config=nv.data.StreamConfig(buffer_size=4), domains=None, labels=None, "
    "unseen=None",
    "data.StreamConfig": "kind='block', buffer_size=4, num_blocks=1, num_users=2, shuffle_domains=False, "
    "num_test=None, split='test'",
    "data.write_jsonl": "path=FILE, records=ROWS",
    "data.write_predictions": "path=FILE, task='LaMP_2M', predictions={'1': 'a'}",
    "metrics.accuracy": "golds=['a'], preds=['a']",
    "metrics.forgetting": "R=np.eye(2), current=None",
    "metrics.hierarchical_interval": "values=np.eye(3), level=0.95",
    "metrics.hit_rate": "found=[1, 2], truth=[1, 3]",
    "metrics.interval": "values=V, level=0.95",
    "metrics.lamp_evaluate": "golds=FILE, preds=FILE, task='LaMP_2M', bootstrap=None, seed=None, level=0.95",
    "metrics.macro_f1": "golds=['a'], preds=['a'], labels=['a']",
    "metrics.mean_absolute_error": "golds=V, preds=V",
    "metrics.paired_interval": "first=V, second=V ** 2, level=0.95",
    "metrics.previously_seen": "R=np.eye(2), current=None",
    "metrics.previously_seen_mean": "R=np.eye(2), current=None",
    "metrics.root_mean_squared_error": "golds=V, preds=V",
    "metrics.rouge": "gold='a b', pred='a'",
    "metrics.student_quantile": "level=0.95, freedom=3",
}
"""A call that runs, for each function: one argument of it is then made wrong. Others get nothing but wrong ones."""
