"""Schedules: bytes against loops that are really run, times against a clock, sizes against XLA; what they choose."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import compression, cost, models
from nvcim_jax.cost.gemm import STATIONARY, Gemm, best_tiling, sizes, tile_bytes, traffic

CONFIG = models.Config(vocab_size=256, width=64, num_layers=4, num_heads=4, num_kv_heads=2, mlp_width=128)
EDGE = cost.machines.get("edge-8GB")
ORDERS = {"outputs": "mnk", "weights": "knm", "inputs": "mkn"}
"""Loops from the outermost to the innermost: what the innermost does not count stays."""


def counted(gemm: Gemm, tile: tuple[int, int, int], order: str, hold: bool = False) -> float:
    """Return the bytes that loops over tiles really move; with `hold`, a tile that comes twice in a row stays."""
    spans = {
        axis: [(at, min(at + t, size)) for at in range(0, size, t)]
        for axis, size, t in zip("mkn", (gemm.m, gemm.k, gemm.n), tile, strict=True)
    }
    _, weights, _ = sizes(gemm, True)
    each = {"mk": gemm.activation_bits / 8, "kn": weights / (gemm.k * gemm.n)}
    stays = {"mnk": "mn", "knm": "kn", "mkn": "mk"}.get(order) if not hold else None
    held: dict[str, Any] = {}
    moved, open_sums = 0.0, set()
    for step in itertools.product(*(spans[axis] for axis in order)):
        at = dict(zip(order, step, strict=True))
        area = {pair: np.prod([at[axis][1] - at[axis][0] for axis in pair]) for pair in ("mk", "kn", "mn")}
        for pair, size in each.items():
            place = tuple(at[axis] for axis in pair)
            if held.get(pair) != place or not (hold or pair == stays):
                moved += area[pair] * size
            held[pair] = place
        place = (at["m"], at["n"])
        if held.get("mn") != place or not (hold or stays == "mn"):
            moved += 4 * area["mn"] if place in open_sums else 0  # the sum so far comes back
        last = at["k"] == spans["k"][-1]
        leaves = last or not (hold or stays == "mn")
        if leaves:
            moved += area["mn"] * (gemm.activation_bits / 8 if last else 4)
        held["mn"], _ = place, open_sums.add(place)
    return moved


@pytest.mark.parametrize("kept", STATIONARY)
@pytest.mark.parametrize("gemm", [Gemm(6, 5, 7, 4, 8, 0.5), Gemm(3, 8, 2, 16, 16)], ids=["sparse", "dense"])
def test_bytes_are_those_of_the_loops(gemm, kept) -> None:
    tiles = np.array(list(itertools.product((1, 2, 4, 5), (1, 3, 5, 8), (1, 2, 7))))
    tiles = tiles[(tiles <= (gemm.m, gemm.k, gemm.n)).all(axis=1)]
    found = traffic(gemm, tiles, True)[:, STATIONARY.index(kept)]
    np.testing.assert_allclose(found, [counted(gemm, tuple(t), ORDERS[kept]) for t in tiles])


@pytest.mark.parametrize("room", [40, 90, 400])
def test_the_best_is_that_of_all_tiles_and_all_orders_of_loops(room) -> None:
    """A machine that multiplies in no time: every tile, all six orders, tiles stay where they come twice in a row."""
    gemm = Gemm(6, 4, 3, 8, 8)
    machine = cost.machines.get("edge-8GB", sram_size=float(room), macs_8=1e30)
    found = best_tiling(gemm, machine, "dram")
    wanted = min(
        counted_by_runs(gemm, tile, "".join(order))
        for tile in itertools.product(range(1, 7), range(1, 5), range(1, 4))
        if tile_bytes(gemm, np.array([tile]), True, False)[0] <= room
        for order in itertools.permutations("mkn")
    )
    assert found.moved_bytes == pytest.approx(wanted)
    assert tile_bytes(gemm, np.array([found.tile]), True, found.overlap)[0] <= room


def counted_by_runs(gemm: Gemm, tile: tuple[int, int, int], order: str) -> float:
    """Return the bytes of one order of loops, where a tile is moved only when another one takes its place."""
    steps = [range(-(-size // t)) for size, t in zip((gemm.m, gemm.k, gemm.n), tile, strict=True)]
    length = dict(zip("mkn", tile, strict=True))
    whole = dict(zip("mkn", (gemm.m, gemm.k, gemm.n), strict=True))
    rows = [dict(zip(order, at, strict=True)) for at in itertools.product(*(steps["mkn".index(a)] for a in order))]
    moved = 0.0
    for pair, size in (("mk", 1), ("kn", 1), ("mn", 4)):
        seen = set()
        for key, run in itertools.groupby(rows, key=lambda at, pair=pair: tuple(at[a] for a in pair)):
            area = np.prod([min(length[a], whole[a] - i * length[a]) for a, i in zip(pair, key, strict=True)])
            done = list(run)[-1]["k"] == steps[1][-1]
            if pair != "mn":
                moved += size * area
            else:
                moved += area * ((4 if key in seen else 0) + (1 if done else 4))
            seen.add(key)
    return moved


def test_a_product_that_fits_moves_what_xla_says() -> None:
    gemm = Gemm(32, 64, 48, 16, 16)
    a, w = jnp.zeros((32, 64), jnp.float16), jnp.zeros((64, 48), jnp.float16)
    analysis = jax.jit(lambda a, w: a @ w).lower(a, w).compile().cost_analysis()
    assert analysis is not None
    moved = traffic(gemm, np.array([[32, 64, 48]]), True).min()
    assert moved == (a.size + w.size + 32 * 48) * 2
    # A CPU multiplies float16 as float32: it counts the bytes of these, too.
    assert moved <= analysis["bytes accessed"] <= 6 * moved
    assert analysis["flops"] == pytest.approx(2 * 32 * 64 * 48, rel=0.05)


def macs(plan: Any) -> float:
    return sum(i.times * i.gemm.m * i.gemm.k * i.gemm.n for i in plan.items)


def test_products_are_those_of_the_compiled_model() -> None:
    """XLA's count of a forward pass, two operations a product; what is left are norms, softmax and activations."""
    lm = models.init(jax.random.key(0), config=CONFIG)

    def run(ids: jax.Array, lm: models.LM) -> jax.Array:
        x = models.embed(lm, ids)
        for i in range(CONFIG.num_layers):  # XLA counts a scan once, whatever its length
            x, _ = models.hidden(lm, x, start=i, stop=i + 1)
        return models.head(lm, x)

    analysis = jax.jit(run).lower(jnp.ones((2, 32), jnp.int32), lm).compile().cost_analysis()
    assert analysis is not None
    plan = cost.schedule(lm, batch=2, tokens=32, on=EDGE, predicted=32)
    assert analysis["flops"] == pytest.approx(2 * macs(plan), rel=0.1)
    assert plan.time_s == pytest.approx(sum(i.time_s for i in plan.items))


def test_a_window_runs_what_it_tunes() -> None:
    given: dict[str, Any] = {"batch": 2, "tokens": 32, "on": EDGE}
    whole, low, high = (cost.schedule(CONFIG, window=w, **given) for w in ((0, 4), (0, 2), (2, 4)))
    back = {i.block for i in high.items if i.name.endswith("'") and i.name != "head'"}
    assert back == {2, 3}
    assert {i.block for i in low.items} == {-1, 0, 1}
    forward = macs(cost.schedule(CONFIG, **given)) - 2 * 64 * 256
    assert macs(high) - macs(low) == pytest.approx(forward / 2)
    assert low.time_s < high.time_s < whole.time_s
    assert high.stores.activations < 0.6 * whole.stores.activations


def test_a_machine_starts_once_for_all_texts_and_heads() -> None:
    """On a machine that multiplies and moves in no time only starts are left: nine products a block."""
    idle = cost.machines.get("edge-8GB", macs_8=1e30, call=1.0, dram_bandwidth=1e30)
    forward, step = (cost.schedule(CONFIG, batch=3, tokens=16, on=idle, window=w) for w in (None, (2, 4)))
    assert (forward.order, forward.time_s) == (
        "row",
        pytest.approx(4 * 9 + 1, rel=1e-5),
    )  # 7 matrices, scores and values
    assert step.time_s == pytest.approx(4 * 9 + 2 + 2 * (7 + 4), rel=1e-5)
    # back, scores and values are two products each
    assert next(i.times for i in step.items if i.name == "scores'") == 2 * 3 * 4


def test_what_bits_and_zeros_are_worth_is_the_machines() -> None:
    """Edge-LLM's accelerator gains from both; a CPU of native widths moves fewer bits, and multiplies as before."""
    gemm = {"m": 256, "k": 512, "n": 512, "activation_bits": 8}
    dense, small = (Gemm(weight_bits=b, sparsity=p, **gemm) for b, p in ((8, 0.0), (4, 0.5)))
    edge, orin = EDGE, cost.machines.get("orin-agx-30W")
    fast, slow = (best_tiling(g, edge, "dram").compute_s for g in (small, dense))
    assert fast == pytest.approx(0.25 * slow)
    far = orin.levels[-2]
    assert best_tiling(small, orin, far).compute_s == pytest.approx(best_tiling(dense, orin, far).compute_s)
    assert sizes(small, False)[1] == 0.5 * sizes(dense, False)[1]
    assert sizes(small, True)[1] == 0.375 * sizes(dense, True)[1]


def test_blocks_have_bits_and_zeros_of_their_own() -> None:
    bits, zeros = (4, 5, 4, 5), (0.5, 0.4, 0.6, 0.5)
    plan = cost.schedule(CONFIG, batch=1, tokens=16, on=EDGE, bits=bits, sparsity=zeros, activation_bits=8)
    found = {i.block: (i.gemm.weight_bits, i.gemm.sparsity) for i in plan.items if i.name == "up"}
    assert found == dict(enumerate(zip(bits, zeros, strict=True)))
    dense = cost.schedule(CONFIG, batch=1, tokens=16, on=EDGE)
    assert plan.energy_j < dense.energy_j
    assert plan.moved_bytes < dense.moved_bytes


def test_rows_read_weights_once_and_columns_need_less_room() -> None:
    given: dict[str, Any] = {"batch": 8, "tokens": 16}
    assert cost.schedule(CONFIG, on=EDGE, **given).order == "row"
    column = cost.schedule(CONFIG, on=cost.machines.get("edge-8GB", call=1e-12, dram_bandwidth=1e15), **given)
    assert sum(column.stores) <= sum(cost.schedule(CONFIG, on=EDGE, **given).stores)


def test_what_does_not_fit_comes_from_behind() -> None:
    roomy = cost.schedule(CONFIG, batch=1, tokens=16, on=EDGE)
    assert roomy.stored_s == 0
    assert roomy.placement["weights"].share == (1.0, 0.0)
    tight = cost.machines.get("edge-8GB", dram_size=1.2e5)
    plan = cost.schedule(CONFIG, batch=1, tokens=16, on=tight)
    share = plan.placement["weights"].share[1]
    assert 0 < share < 1
    assert sum(plan.placement["activations"].share) == pytest.approx(1.0)
    assert plan.stored_s == pytest.approx(share * plan.stores.weights / float(EDGE.values["ssd_bandwidth"]))
    window = cost.schedule(CONFIG, batch=1, tokens=16, on=tight, window=(3, 4))
    read = [i for i in roomy.items if i.name not in ("scores", "values")]
    blocks, head = (sum(sizes(i.gemm, True)[1] for i in read if i.block == block) for block in (0, -1))
    spilled = window.placement["weights"].share[1] * (5 * blocks + 2 * head)  # a block is run back, and the head
    assert window.stored_s == pytest.approx(spilled / float(EDGE.values["ssd_bandwidth"]))
    with pytest.raises(ValueError, match=r"`on` must hold weights and activations, but edge-8GB has no room"):
        cost.schedule(CONFIG, batch=1, tokens=16, on=cost.machines.get("edge-8GB", dram_size=1e3, ssd_size=1e3))


def test_activations_that_do_not_fit_are_written_and_read_again() -> None:
    """Nine tenths of what a window keeps lie on the SSD, whose bandwidth then decides; with room nothing does."""
    given: dict[str, Any] = {"batch": 1, "tokens": 2048, "window": (0, 4)}
    roomy = cost.schedule(CONFIG, on=EDGE, **given)
    assert roomy.stored_s == 0
    tight = cost.machines.get("edge-8GB", dram_size=0.1 * sum(roomy.stores), ssd_bandwidth=1e8)
    plan = cost.schedule(CONFIG, on=tight, **given)
    share = plan.placement["activations"].share[1]
    stream, logits = 2 * 2048 * 64, 2 * 256
    kept = plan.stores.activations - stream - logits
    behind = 2 * share * (kept + 4 * stream + logits)
    assert share > 0.8
    assert plan.stored_s == pytest.approx(behind / 1e8 + weights_behind(plan) / 1e8, rel=1e-6)
    assert plan.time_s == plan.stored_s
    slower = cost.schedule(CONFIG, on=cost.machines.get("edge-8GB", dram_size=0.1 * sum(roomy.stores)), **given)
    assert slower.time_s < plan.time_s


@pytest.mark.parametrize("window", [None, (0, 4)])
def test_what_every_block_writes_and_reads_comes_from_behind(window) -> None:
    """Half of the nearest store lies on the SSD: the stream of a forward pass, or the gradients of a step."""
    given: dict[str, Any] = {"batch": 1, "tokens": 2048, "window": window}
    needed = cost.schedule(CONFIG, on=EDGE, **given).stores
    nearest = needed.activations if window is None else needed.gradients
    plan = cost.schedule(CONFIG, on=cost.machines.get("edge-8GB", dram_size=0.5 * nearest, ssd_bandwidth=1e8), **given)
    stream, scores, logits = 2 * 2048 * 64, 2 * 2048 * 2048, 2 * 256  # of one head: the widest product here
    each = 2 * (4 * (stream + scores) + logits)
    kept = plan.stores.activations - stream - logits
    behind = 0.5 * each if window is None else 0.5 * each + 2 * (kept + 4 * stream + logits)
    assert plan.placement["weights"].share == (0.0, 1.0)
    assert plan.stored_s == pytest.approx((behind + weights_behind(plan)) / 1e8)
    assert plan.time_s == plan.stored_s


def weights_behind(plan: Any) -> float:
    """Return the bytes of weights of a window over all blocks that come from behind, read forward and back."""
    return plan.placement["weights"].share[1] * sum(
        sizes(i.gemm, True)[1] for i in plan.items if i.name.rstrip("'") not in ("scores", "values")
    )


def test_a_machine_without_storage_works_in_its_last_memory() -> None:
    given = {f"cache{n}k_bandwidth": 1e11 for n in (16, 128, 1024, 8192)} | {"dram_bandwidth": 1e9, "call": 1e-9}
    host = cost.machines.get("this-host", macs_32=1e12, **given)
    plan = cost.schedule(CONFIG, batch=8, tokens=512, on=host, window=(0, 4))
    assert plan.placement["activations"] == (("dram",), (1.0,))
    wanted = sum(i.times * best_tiling(i.gemm, host, "dram").time_s for i in plan.items)
    assert plan.time_s == pytest.approx(wanted, rel=1e-3)  # a product of all heads is started once
    assert cost.schedule(CONFIG, batch=1, tokens=8, on=host).placement["weights"].level[0] == "cache1024k"


def test_logits_are_held_and_their_gradients() -> None:
    """The difference that predicted tokens make is XLA's, of a step whose logits are its greatest array."""
    config = dataclasses.replace(CONFIG, vocab_size=8192, width=32, num_layers=2, mlp_width=32)
    lm = models.init(jax.random.key(0), config=config)

    def loss(lm: models.LM, ids: jax.Array, at: jax.Array) -> jax.Array:
        x = models.hidden(lm, models.embed(lm, ids), at=at)[0]
        return models.token_losses(models.head(lm, x), jnp.zeros(at.shape, jnp.int32)).sum()

    found = []
    for predicted in (1, 63):
        ids, at = jnp.ones((8, 63), jnp.int32), jnp.tile(jnp.arange(predicted), (8, 1))
        run = jax.jit(jax.grad(loss)).lower(lm, ids, at).compile()
        analysis = run.memory_analysis()
        assert analysis is not None
        stores = cost.schedule(lm, batch=8, tokens=63, on=EDGE, window=(0, 2), predicted=predicted).stores
        found.append((analysis.temp_size_in_bytes, stores.activations + stores.gradients))
    (temporaries, stored), more = found[0], found[1]
    logits = 8 * 62 * 8192
    assert more[1] - stored == pytest.approx(2 * 2 * logits, rel=0.2)  # at 2 bytes a number
    assert 0.5 < (more[0] - temporaries) / (2 * (more[1] - stored)) < 2.0  # XLA's have 4


def test_a_compressed_model_brings_its_bits_and_zeros() -> None:
    lm = models.init(jax.random.key(0), config=CONFIG)
    policy = compression.Policy(np.array([4, 5, 3, 4]), np.array([0.5, 0.25, 0.5, 0.75]))
    small = compression.apply(lm, policy, method="magnitude")
    given: dict[str, Any] = {"batch": 1, "tokens": 16, "on": EDGE}
    wanted = [(int(b), p) for b, p in zip(*policy, strict=True)]
    for own in (small, compression.pack(small)):
        found = {i.block: i.gemm for i in cost.schedule(own, **given).items if i.name == "up"}
        for block, (bits, zeros) in enumerate(wanted):
            assert found[block].weight_bits == bits
            assert zeros <= found[block].sparsity < zeros + 0.2  # some more are rounded to zero
    told = cost.schedule(small, bits=[b for b, _ in wanted], sparsity=[p for _, p in wanted], **given)
    assert {i.block: i.gemm.sparsity for i in told.items if i.name == "up"} == {i: p for i, (_, p) in enumerate(wanted)}
    assert cost.schedule(lm, **given).stores == cost.schedule(CONFIG, **given).stores
    mixed = small.replace(
        params={**small.params, "layers": {**small.params["layers"], "up": lm.params["layers"]["up"]}}
    )
    with pytest.raises(ValueError, match=r"`bits` must be given where not all matrices are codes: layers\.up"):
        cost.schedule(mixed, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": (4, 4)}, "`bits` must be one, or one for each of 4 blocks, but are 2"),
        ({"bits": 32}, "`bits` must lie in"),
        ({"bits": 4.5}, "`bits` must be whole, but are 4.5"),
        ({"bits": (4, 4, 4.5, 4)}, "`bits` must be whole, but are 4.5"),
        ({"sparsity": 1.5}, "`sparsity` must lie in"),
        ({"window": (2, 2)}, "`window` must be an integer of at least 3"),
        ({"predicted": 17}, "`predicted` must be an integer of at least 1 and at most 16"),
        ({"batch": 0}, "`batch` must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(given, said) -> None:
    with pytest.raises(ValueError, match=said):
        cost.schedule(CONFIG, **({"batch": 1, "tokens": 16, "on": EDGE} | given))


def test_gpt2_has_no_gate() -> None:
    plain = dataclasses.replace(CONFIG, family="gpt2", gated=False, positions="learned", norm="layer", num_kv_heads=4)
    assert "gate" not in {i.name for i in cost.schedule(plain, batch=1, tokens=16, on=EDGE).items}


CLOCK = """
import json
import numpy as np
from nvcim_jax import cost
from nvcim_jax.cost.gemm import Gemm, best_tiling
from nvcim_jax.cost.host import fewest, product_rate

gemms, rates, taken = [Gemm(256, 576, 1536, 32, 32), Gemm(1024, 512, 512, 32, 32), Gemm(64, 2048, 1024, 32, 32)], [], []
ones = lambda *shape: np.ones(shape, np.float32)
for _ in range(4):
    rates.append(product_rate())
    taken.append([fewest(lambda a=ones(g.m, g.k), w=ones(g.k, g.n): a @ w, 0.3) for g in gemms])
machine = cost.machines.get("this-host", macs_32=max(rates))
bytes_of = lambda g: 4 * (g.m * g.k + g.k * g.n + g.m * g.n)
plans = [best_tiling(g, machine, cost.machines.level_holding(machine, bytes_of(g)).name) for g in gemms]
print(json.dumps([seconds / plan.time_s for seconds, plan in zip(np.min(taken, axis=0), plans)]))
"""


@pytest.mark.slow
def test_this_machine_takes_what_is_said_within_a_factor_of_two() -> None:
    """NumPy's float32 products by one thread, the fastest of several rounds: other processes take time from them."""
    one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", CLOCK], env=os.environ | one, capture_output=True, text=True, check=True
    )
    for ratio in json.loads(run.stdout):
        assert 0.5 < ratio < 2.0
