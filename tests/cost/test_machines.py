"""Machines: what stands behind each number, how they are chosen and changed, and the rates that follow."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cost
from nvcim_jax.cost import constants, host, machines
from nvcim_jax.cost.constants import MARKS

UNITS = {"W/m2", "s", "J", "W", "m2", "B", "B/s", "J/B", "1/s", "V", "S", "1", "m", "F"}
TABLED = [name for name in machines.names() if name != machines.THIS_HOST]


@pytest.mark.parametrize("name", TABLED)
def test_every_number_has_a_unit_a_range_a_source_and_a_mark(name: str) -> None:
    machine = machines.get(name)
    assert set(dict(machine.records)) == set(machine.values)
    for key, one in machine.records:
        assert one.unit in UNITS, key
        assert one.mark in MARKS, key
        assert len(one.source) > 3, key
        assert 0 < one.low <= one.value <= one.high < math.inf, key
        assert math.isclose(float(machine.values[key]), one.value, rel_tol=1e-6)
    for level in machine.levels:
        units = [dict(machine.records)[f"{level}_{part}"].unit for part in ("size", "bandwidth", "energy")]
        assert units == ["B", "B/s", "J/B"]
    assert all(dict(machine.records)[f"macs_{width}"].unit == "1/s" for width in machine.widths)


@pytest.mark.parametrize("name", TABLED)
def test_farther_memories_are_larger_slower_and_dearer(name: str) -> None:
    levels = machines.levels_of(machines.get(name))
    for near, far in itertools.pairwise(levels):
        assert float(near.size_bytes) < float(far.size_bytes)
        assert float(near.bandwidth) > float(far.bandwidth)
        assert float(near.energy) < float(far.energy)


@pytest.mark.parametrize(
    ("name", "constant", "value"),
    [
        ("orin-agx-MAXN", "macs_32", 422e9 / 2),  # 12 cores x 2.2 GHz x 16 operations
        ("orin-agx-MAXN", "macs_8", 1.69e12 / 2),
        ("orin-agx-30W", "dram_bandwidth", 60e9),
        ("orin-agx-15W", "dram_bandwidth", 40e9),  # 136.5 x 60 / 204.8
        ("orin-agx-MAXN-gpu", "dram_bandwidth", 156e9),
        ("orin-nx-25W-gpu", "dram_bandwidth", 78e9),  # half the bus
        ("orin-agx-MAXN-gpu", "macs_32", 5.3e12 / 2),
        ("orin-agx-MAXN-gpu", "macs_8", 85e12 / 2),
        ("orin-agx-50W-gpu", "macs_8", 27e12),
        ("orin-agx-50W-gpu", "mac_energy", 1.9e-12),
        ("edge-8GB", "dram_bandwidth", 25.6e9),
        ("edge-8GB", "ssd_bandwidth", 2e9),
    ],
)
def test_numbers_known_by_hand(name: str, constant: str, value: float) -> None:
    assert float(machines.get(name).values[constant]) == pytest.approx(value, rel=0.02)


def test_the_rate_follows_the_width_that_runs() -> None:
    cpu, edge = machines.get("orin-agx-30W"), machines.get("edge-8GB")
    assert machines.native_width(cpu, 5, 8) == machines.native_width(cpu, 8, 3) == 8
    assert machines.native_width(cpu, 9, 8) == 16
    assert float(machines.macs_per_s(cpu, 5, 8)) == float(machines.macs_per_s(cpu, 8, 8))
    assert float(machines.macs_per_s(edge, 4, 4) / machines.macs_per_s(edge, 8, 8)) == pytest.approx(4.0)
    # twice the width of both operands: the product costs four times as much, the addition as much
    ratio = float(machines.mac_energy(edge, 16, 16) / machines.mac_energy(edge, 8, 8))
    assert ratio == pytest.approx((0.8 + 0.03) / 0.23, rel=1e-6)
    assert float(machines.mac_energy(cpu, 5, 8)) == float(machines.mac_energy(cpu, 8, 8))
    with pytest.raises(ValueError, match="`weight_bits` must be an integer of at least 1 and at most 32"):
        machines.macs_per_s(cpu, 33, 8)


def test_the_nearest_memory_that_holds_it() -> None:
    machine = machines.get("orin-agx-30W")  # 8 x 64 kB, 8 x 256 kB, 2 x 2 MB
    found = [machines.level_holding(machine, size).name for size in (0, 512e3, 512e3 + 1, 2.1e6, 4.1e6, 65e9)]
    assert found == ["l1", "l1", "l2", "l3", "dram", "ssd"]
    with pytest.raises(ValueError, match="`size_bytes` must fit into the ssd of orin-agx-30W"):
        machines.level_holding(machine, 1e13)
    with pytest.raises(ValueError, match="`name` must be one of dram, l1, l2, l3, ssd"):
        machines.level_of(machine, "l4")


def test_constants_are_replaced_by_name_and_say_so() -> None:
    machine = machines.get("edge-8GB", dram_bandwidth=51.2e9)
    record = dict(machine.records)["dram_bandwidth"]
    assert record.mark == "U"
    assert record.low == record.high == 51.2e9
    own = cost.Constant(3e9, 1e9, 4e9, "B/s", "a data sheet", "P")
    assert dict(machines.get("edge-8GB", ssd_bandwidth=own).records)["ssd_bandwidth"] == own
    with pytest.raises(TypeError, match="Did you mean 'dram_bandwidth'"):
        machines.get("edge-8GB", dram_bandwith=1.0)
    with pytest.raises(ValueError, match="`dram_bandwidth` must lie in"):
        machines.get("edge-8GB", dram_bandwidth=-1.0)
    with pytest.raises(ValueError, match="Did you mean 'edge-8GB'"):
        machines.get("edge-8gb")
    with pytest.raises(ValueError, match="must lie in its range"):
        constants.stated(1.0, "s", "nowhere", "P", low=2.0, high=3.0)
    with pytest.raises(ValueError, match="`mark` must be one of"):
        constants.stated(1.0, "s", "nowhere", "X")


def test_a_machine_is_a_tree_that_sweeps_and_differentiates() -> None:
    def seconds(bandwidth: jax.Array) -> jax.Array:
        machine = machines.get("edge-8GB", dram_bandwidth=bandwidth)
        return 1e9 / machines.level_of(machine, "dram").bandwidth

    rates = jnp.asarray([1e9, 2e9, 4e9])
    assert jax.vmap(seconds)(rates).tolist() == pytest.approx([1.0, 0.5, 0.25])
    assert float(jax.grad(seconds)(jnp.float32(1e9)) * 1e9) == pytest.approx(-1.0)
    machine = machines.get("edge-8GB")
    traced = jax.jit(lambda one: machines.macs_per_s(one, 8, 8))(machine)
    assert float(traced) == pytest.approx(0.8e12)


def test_the_table_shows_every_constant() -> None:
    rows = cost.constant_table(machines.get("edge-8GB"), machines.get("stm32h743"))
    assert {row["of"] for row in rows} == {"edge-8GB", "stm32h743"}
    assert len(rows) == sum(len(machines.get(name).records) for name in ("edge-8GB", "stm32h743"))
    assert set(rows[0]) == {"of", "constant", "value", "low", "high", "unit", "mark", "source"}


def test_this_host_is_measured() -> None:
    machine = machines.get(machines.THIS_HOST)
    marks = {name: record.mark for name, record in machine.records}
    assert all(mark == "M" for name, mark in marks.items() if name.endswith("_bandwidth") or name == "macs_32")
    assert all(mark == "R" for name, mark in marks.items() if name.endswith("_energy"))  # nothing here can measure it
    rates = [float(level.bandwidth) for level in machines.levels_of(machine)]
    assert rates == sorted(rates, reverse=True)
    assert 1e8 < rates[-1] < 1e12
    assert 1e8 < float(machines.macs_per_s(machine, 8, 8)) < 1e13  # no product of integers is faster here
    assert float(machine.values["call"]) < 1e-3


def test_a_call_is_timed_by_its_fastest_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls of 4, 1 and 4 seconds by a clock of the test's own; the fourth would start after the budget."""
    now, calls = [0.0], iter([4.0, 1.0, 4.0])
    monkeypatch.setattr(host, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def run() -> None:
        now[0] += next(calls)

    assert host.fewest(run, 8.5) == 1.0
    assert now[0] == 9.0
