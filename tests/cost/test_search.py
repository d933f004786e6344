"""The search on a chip and on machines: a test vector, closed forms in float64, units, doubling, refusals."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cost, crossbar
from nvcim_jax.cost import machines
from nvcim_jax.cost.constants import MARKS
from nvcim_jax.cost.converter import conversion_time, converter_area
from nvcim_jax.cost.product import count
from nvcim_jax.cost.technologies import node_factors

STACKED = crossbar.Config(
    rows=384,
    cols=128,
    weight_bits=16,
    cell_bits=2,
    mapping="offset_digital",
    slices="rows",
    dac_bits=17,
    dac_bits_per_cycle=1,
    adc_bits=8,
)
SLICED = dataclasses.replace(STACKED, slices="columns")
BARE = {"sense_factor": 1.0, "layout_factor": 1.0}
CHIP = cost.technology("RRAM-22nm")


def changed(config: crossbar.Config, **options: Any) -> crossbar.Config:
    return dataclasses.replace(config, **options)


def test_the_vector_of_1024_codes_of_48_values() -> None:
    """16 bits on 2-bit cells, bit-serial, 8 columns a converter of 8 bits, 5 uS at 0.2 V for 10 ns."""
    bill = cost.search(STACKED, 1024, on=cost.technology("RRAM-22nm", **BARE))
    assert bill.operations.num_arrays == 8
    assert bill.operations.num_conversions == 131_072
    close = {"rel": 0.01}
    assert float(bill.latency_s) == pytest.approx(10.5e-6, **close)
    energy = [float(part) * 1e9 for part in bill.energy[:4]]
    assert energy == pytest.approx([110.9, 12.6, 7.4, 6.6], **close)
    assert sum(energy) == pytest.approx(137.5, **close)
    sliced = cost.search(SLICED, 1024, on=cost.technology("RRAM-22nm", **BARE))
    assert sliced.operations.num_arrays == 64
    assert float(sliced.latency_s) == pytest.approx(1.3e-6, rel=0.02)
    assert [float(part) * 1e9 for part in sliced.energy[:4]] == pytest.approx([110.9, 12.6, 7.4, 6.6], **close)


def test_the_converter_at_four_widths_and_at_a_gigahertz() -> None:
    found = [float(cost.converter_energy(bits, CHIP, sample_time=1e-8)) for bits in (4, 6, 8, 10)]
    assert found == pytest.approx([0.46e-12, 0.53e-12, 0.85e-12, 1.63e-12], rel=0.02)
    assert float(cost.converter_energy(10, CHIP, sample_time=1e-9)) == pytest.approx(6.9e-12, rel=0.02)
    assert float(converter_area(8, CHIP)) == pytest.approx(2200e-12, rel=0.03)
    assert float(conversion_time(8, CHIP)) == pytest.approx(9e-9)
    older = cost.technology("RRAM-22nm", node_nm=44.0)
    ratio = float(cost.converter_energy(8, older) / cost.converter_energy(8, CHIP))
    assert ratio == pytest.approx(2**1.88, rel=1e-4)


def by_hand(config: crossbar.Config, num: int, values: int, on: cost.Technology, columns: int) -> dict[str, float]:
    """The formulas again, in float64, for cells without pairs."""
    c = {name: float(value) for name, value in on.values.items()}
    stacked = config.slices == "rows"
    bits, step = 16, config.dac_bits_per_cycle or 16
    slices, planes = 8, math.ceil(16 / step)
    rows, cols = config.rows or 0, config.cols or 0
    row_tiles = math.ceil(values / (rows // 8)) if stacked else math.ceil(values / rows)
    col_tiles = math.ceil(num / (cols if stacked else cols // 8))
    arrays = row_tiles * col_tiles
    steps = planes * (slices if stacked else 1)
    conversions = row_tiles * slices * planes * num
    b = config.adc_bits or 0
    f = 1.0 / ((b + 1) * c["converter_bit_time"])
    merit = min(213.78 - 2.872 * math.log(f), 128.31 + 3.2205 * b)
    law = 0.5e-12 * 10 ** ((6.02 * b + 1.76 - merit) / 10)
    law *= math.exp(24.58 + 1.88 * math.log(c["node"] * 1e9) - 2.829 * math.log(b))
    area = math.exp(1.346 + 0.9933 * math.log(c["node"] * 1e9) + 0.1807 * math.log(f) + 0.2991 * math.log(law * 1e12))
    share = (step - 1) / 7
    drive = c["driver_energy"] ** (1 - share) * c["dac_energy"] ** share
    width = c["driver_area"] ** (1 - share) * c["dac_area"] ** share
    z, num_adc = c["layout_factor"], arrays * math.ceil(cols / columns)
    drives = values * planes * (slices if stacked else 1) * col_tiles
    in_bits, out_bits = values * 17, 32 * arrays
    found = {
        "buffer": in_bits / c["bus_bits"] * c["clock_time"],
        "read": steps * c["sense_factor"] * c["read_time"],
        "convert": steps * columns / f,
        "merge": math.ceil(math.log2(row_tiles)) * c["clock_time"],
        "select": math.ceil(math.log2(num)) * c["clock_time"],
        "converters": z * conversions * law * c["converter_energy_factor"],
        "cells_j": z * values * num * slices * planes * c["read_voltage"] ** 2 * c["conductance"] * c["read_time"],
        "drivers": z * drives * drive,
        "shift_add": z * (conversions + (row_tiles - 1) * num) * c["shift_add_energy"],
        "buffers": (in_bits + out_bits) * c["buffer_energy"],
        "network": (in_bits * col_tiles + out_bits * 0.5 * arrays**0.5) * c["network_energy"],
        "select_j": num * c["compare_energy"],
        "cells_m2": arrays * rows * cols * c["cell_area"],
        "converters_m2": num_adc * area * 1e-12 * c["converter_area_factor"],
        "drivers_m2": arrays * rows * width,
        "shift_add_m2": num_adc * c["shift_add_area"],
        "buffers_m2": (in_bits + 32 * num) * c["buffer_area"],
    }
    del bits
    return found


@pytest.mark.parametrize("columns", [1, 8])
@pytest.mark.parametrize("values", [48, 84])
@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("config", [STACKED, SLICED], ids=["stacked", "sliced"])
def test_every_item_is_its_formula(config: crossbar.Config, step: int, values: int, columns: int) -> None:
    config = changed(config, dac_bits_per_cycle=step)
    bill = cost.search(config, 300, on=CHIP, values=values, periphery=cost.Periphery(columns_per_adc=columns))
    expected = by_hand(config, 300, values, CHIP, columns)
    for part, suffix in ((bill.latency, ""), (bill.energy, "_j"), (bill.area, "_m2")):
        for name, found in part._asdict().items():
            if name != "leakage":
                key = name + suffix if name + suffix in expected else name
                assert float(found) == pytest.approx(expected[key], rel=2e-4), (key, suffix)
    leak = float(bill.idle_power)
    assert leak == pytest.approx(650.0 * float(bill.area_m2 - bill.area.cells), rel=1e-4)
    assert float(bill.energy.leakage) == pytest.approx(leak * float(bill.latency_s), rel=1e-4)


def test_totals_are_the_sums_of_their_items() -> None:
    bill = cost.search(STACKED, 1000, on=CHIP)
    for whole, parts in ((bill.latency_s, bill.latency), (bill.energy_j, bill.energy), (bill.area_m2, bill.area)):
        assert float(whole) == pytest.approx(sum(map(float, parts)), rel=1e-6)
        assert all(float(part) >= 0 for part in parts)
    digital = cost.search_digital(1000, on=machines.get("orin-agx-30W"))
    assert float(digital.latency_s) == pytest.approx(sum(map(float, digital.latency)), rel=1e-6)
    assert float(digital.energy_j) == pytest.approx(sum(map(float, digital.energy)), rel=1e-6)


def rescaled(spec: Any, units: dict[str, float]) -> Any:
    """The same thing in other units: every number by the factor of its unit, those of the converter's law included."""
    factors = {"converter_energy_factor": units["J"], "converter_area_factor": units["m2"]}
    values = {name: value * factors.get(name, units[one.unit]) for (name, one), value in _pairs(spec)}
    return spec.replace(values=values)


def _pairs(spec: Any) -> list[tuple[tuple[str, cost.Constant], Any]]:
    return [((name, one), spec.values[name]) for name, one in spec.records]


@pytest.mark.parametrize("time", [1.0, 3.0])
def test_every_item_has_the_unit_that_it_says(time: float) -> None:
    """Another second, joule, metre, volt and byte: each item moves as its own unit, whatever it is made of."""
    joule, square, volt, byte = 5.0, 7.0, 11.0, 13.0
    units = {"s": time, "J": joule, "m2": square, "V": volt, "S": joule / (volt**2 * time), "B": byte, "1": 1.0}
    units |= {"W": joule / time, "W/m2": joule / time / square, "B/s": byte / time, "J/B": joule / byte}
    units |= {"1/s": 1 / time, "m": 1.0}  # the node and the rate are inside the law of the converter
    plain = cost.search(STACKED, 300, on=CHIP, values=84)
    other = cost.search(STACKED, 300, on=rescaled(CHIP, units), values=84)
    for mine, theirs, factor in ((plain.latency, other.latency, time), (plain.energy, other.energy, joule)):
        for name, found in theirs._asdict().items():
            if name == "leakage" and time != 1.0:
                continue  # through the area of a converter, whose law knows its rate
            assert float(found) == pytest.approx(factor * float(getattr(mine, name)), rel=1e-5), name
    if time == 1.0:
        for name, found in other.area._asdict().items():
            assert float(found) == pytest.approx(square * float(getattr(plain.area, name)), rel=1e-5), name
    chips = (CHIP, rescaled(CHIP, units))
    both = [(cost.program((48, 128), STACKED, on=c), cost.read_back(8, STACKED, on=c)) for c in chips]
    for mine, theirs in zip(*both, strict=True):
        for name in ("cells", "sensing"):
            seconds = float(getattr(theirs.latency, name)) / float(getattr(mine.latency, name))
            joules = float(getattr(theirs.energy, name)) / float(getattr(mine.energy, name))
            assert seconds == pytest.approx(time, rel=1e-5), name
            assert joules == pytest.approx(joule, rel=1e-5), name
    machine = machines.get("edge-8GB")
    mine = cost.search_digital(10_000, on=machine, level="dram")
    level = machines.level_of(rescaled(machine, units), "dram")
    moved = 10_000 * 96 * byte
    theirs = cost.digital(macs=480_000.0, moved_bytes=moved, level=level, on=rescaled(machine, units))
    for name, found in theirs.latency._asdict().items():
        assert float(found) == pytest.approx(time * float(getattr(mine.latency, name)), rel=1e-5), name
    for name, found in theirs.energy._asdict().items():
        assert float(found) == pytest.approx(joule * float(getattr(mine.energy, name)), rel=1e-5), name


def test_doubling_doubles_what_it_must_and_nothing_else() -> None:
    one, two = (cost.search(STACKED, num, on=CHIP) for num in (512, 1024))
    assert two.operations.num_arrays == 2 * one.operations.num_arrays
    for name in ("converters", "cells", "drivers", "shift_add", "select"):
        assert float(getattr(two.energy, name)) == pytest.approx(2 * float(getattr(one.energy, name)), rel=1e-5)
    for name in ("cells", "converters", "drivers", "shift_add"):
        assert float(getattr(two.area, name)) == pytest.approx(2 * float(getattr(one.area, name)), rel=1e-5)
    for name in ("buffer", "read", "convert", "merge"):  # arrays work side by side
        assert float(getattr(two.latency, name)) == float(getattr(one.latency, name))
    in_turn = cost.search(STACKED, 1024, on=CHIP, periphery=cost.Periphery(arrays_at_once=4))
    assert float(in_turn.latency.convert) == pytest.approx(2 * float(two.latency.convert))
    assert float(in_turn.energy.converters) == float(two.energy.converters)


def test_doubling_the_columns_of_a_converter_doubles_its_time_and_halves_the_converters() -> None:
    few, many = (cost.search(STACKED, 1024, on=CHIP, periphery=cost.Periphery(columns_per_adc=m)) for m in (8, 16))
    assert float(many.latency.convert) == pytest.approx(2 * float(few.latency.convert))
    assert float(many.area.converters) == pytest.approx(float(few.area.converters) / 2, rel=1e-5)
    assert float(many.energy.converters) == float(few.energy.converters)


def test_doubling_a_cells_conductance_and_the_voltage() -> None:
    plain = cost.search(STACKED, 1024, on=CHIP).energy
    for changes, factor in (({"conductance": 10e-6}, 2), ({"read_voltage": 0.4}, 4)):
        other = cost.search(STACKED, 1024, on=cost.technology("RRAM-22nm", **changes)).energy
        assert float(other.cells) == pytest.approx(factor * float(plain.cells), rel=1e-5)
        assert float(other.converters) == float(plain.converters)


def test_pairs_double_cells_and_share_converters() -> None:
    single = count((48, 1024), STACKED)
    pairs = count((48, 1024), changed(STACKED, mapping="differential"))
    assert pairs.num_arrays == 2 * single.num_arrays
    assert pairs.num_cells == 2 * single.num_cells
    assert pairs.num_converters == single.num_converters
    apart = count((48, 1024), changed(STACKED, mapping="differential", adc_before_subtraction=True))
    assert apart.num_converters == 2 * single.num_converters
    assert apart.num_conversions == 2 * pairs.num_conversions
    side = count((48, 1024), changed(SLICED, mapping="differential"))
    assert side.num_conversions == pairs.num_conversions
    # every converter is as busy as every other: conversions / (converters x steps) is what it does in a step
    for found in (single, pairs, apart):
        assert found.num_conversions == found.num_converters * found.num_steps * found.conversions_in_turn


def test_pooled_copies_take_1_75_times_the_cells() -> None:
    shared, apart = (cost.search(STACKED, 128, on=CHIP, values=rows) for rows in (48, 84))
    assert apart.operations.num_cells / shared.operations.num_cells == 1.75
    assert apart.operations.num_arrays == 2  # whole arrays: the copies of 36 values take one of their own
    assert float(apart.latency.merge) == pytest.approx(1e-9)


def test_bits_that_lose_nothing() -> None:
    assert cost.lossless_bits(48, 1, 2) == 8
    assert cost.lossless_bits(384, 1, 2) == 11
    assert cost.lossless_bits(48, 8, 2) == 16
    for rows, step, cell in ((48, 1, 2), (5, 3, 1), (384, 8, 4), (1, 1, 1)):
        worst = rows * (2**step - 1) * (2**cell - 1)
        assert 2 ** cost.lossless_bits(rows, step, cell) > worst >= 2 ** (cost.lossless_bits(rows, step, cell) - 1)
    keep = cost.Periphery(lossless=True)
    with pytest.raises(ValueError, match=r"hold every sum of 48 rows, 9 bits, .* adc_bits=8. Use adc_bits=9"):
        cost.search(STACKED, 100, on=CHIP, periphery=keep)
    bill = cost.search(changed(STACKED, adc_bits=9), 100, on=CHIP, periphery=keep)  # what the message says works
    assert bill.operations.lossless_bits == 9
    analog = count((48, 4), crossbar.Config(dac_bits=8, adc_bits=8), periphery=keep)
    assert analog.lossless_bits is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dac_bits": None, "dac_bits_per_cycle": None}, "have dac_bits, the bits of an input, but has None"),
        ({"adc_bits": None}, "have adc_bits from 4 to 16, but has None"),
        ({"adc_bits": 3}, "have adc_bits from 4 to 16, but has 3"),
        ({"adc_bits": 17}, "have adc_bits from 4 to 16, but has 17"),
    ],
)
def test_converters_that_cannot_be_priced_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cost.search(changed(STACKED, **options), 100, on=CHIP)


def test_what_is_impossible_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`cell_area` must lie in"):
        cost.technology("RRAM-22nm", cell_area=-1e-12)
    with pytest.raises(ValueError, match="Did you mean 'RRAM-22nm'"):
        cost.technology("RRAM-22")
    with pytest.raises(TypeError, match="Did you mean 'cell_area'"):
        cost.technology("RRAM-22nm", cel_area=1e-12)
    with pytest.raises(ValueError, match=r"`node_nm` must lie in \[14, 130\] nm"):
        cost.technology("RRAM-22nm", node_nm=7.0)
    with pytest.raises(ValueError, match="`num_stored` must be an integer"):
        cost.search(STACKED, 0, on=CHIP)
    with pytest.raises(ValueError, match="`columns_per_adc` must be"):
        cost.Periphery(columns_per_adc=0)
    with pytest.raises(ValueError, match="`bits` must lie in"):
        cost.converter_energy(2, CHIP)


@pytest.mark.parametrize("name", cost.technology_names())
def test_every_number_of_a_technology_has_a_source_and_a_mark(name: str) -> None:
    tech = cost.technology(name)
    assert set(dict(tech.records)) == set(tech.values)
    for key, one in tech.records:
        assert one.mark in MARKS, key
        assert len(one.source) > 2, key
        assert 0 < one.low <= one.value <= one.high < math.inf, key


def test_nodes_are_those_of_the_table_and_between_them_monotone() -> None:
    assert node_factors(32.0, 22.0) == (0.446, 0.55)
    assert node_factors(22.0, 22.0) == (1.0, 1.0)
    forth, back = node_factors(65.0, 14.0), node_factors(14.0, 65.0)
    assert [a * b for a, b in zip(forth, back, strict=True)] == pytest.approx([1.0, 1.0])
    steps = [node_factors(22.0, node)[0] for node in (14.0, 18.0, 22.0, 28.0, 32.0, 50.0, 90.0, 130.0)]
    assert steps == sorted(steps)  # energy grows with the node
    older, newer = (cost.search(STACKED, 1024, on=cost.technology("RRAM-22nm", node_nm=n)) for n in (65.0, 22.0))
    assert float(older.energy_j) > float(newer.energy_j)
    assert float(older.area_m2) > float(newer.area_m2)
    assert float(older.latency_s) == pytest.approx(float(newer.latency_s))


def test_machines_search_by_a_roofline() -> None:
    machine = machines.get("orin-agx-30W")
    level = machines.level_of(machine, "dram")
    bill = cost.search_digital(100_000, on=machine, level="dram")
    rate = float(machines.macs_per_s(machine, 16, 16))
    products, moved = 4.8e6 / rate, 9.6e6 / float(level.bandwidth)
    assert float(bill.latency_s) == pytest.approx(1e-6 + max(products, moved), rel=1e-5)
    static = float(machine.values["static_power"]) * float(bill.latency_s)
    expected = 9.6e6 * 40e-12 + 4.8e6 * float(machines.mac_energy(machine, 16, 16)) + static
    assert float(bill.energy_j) == pytest.approx(expected, rel=1e-5)
    assert float(bill.bound_j) == pytest.approx(30.0 * float(bill.latency_s), rel=1e-5)
    # what is held nearer is found sooner, and the nearest memory that has room is taken
    warm = cost.search_digital(10_000, on=machine)
    assert float(warm.latency_s) < float(cost.search_digital(10_000, on=machine, level="dram").latency_s)
    slow = cost.search_digital(1000, on=machines.get("stm32h743"))
    assert float(slow.latency.products) > 0.0
    assert float(slow.latency_s) > 10 * float(cost.search_digital(1000, on=machine).latency_s)


def test_a_memory_that_holds_no_store_is_named() -> None:
    machine = machines.get("orin-agx-30W")
    said = r"`level` must hold the store, 9.6e\+10 B, but the l1 of orin-agx-30W has 5.12e\+05 B. Give a memory farther"
    with pytest.raises(ValueError, match=said):
        cost.search_digital(10**9, on=machine, level="l1")
    assert float(cost.search_digital(5333, on=machine, level="l1").latency_s) > 0  # 512 kB
    chip, nothing = cost.technology("RRAM-22nm"), machines.get("orin-agx-30W", l1_size=90.0)
    with pytest.raises(ValueError, match="`level` must hold the store, 96 B, but the l1 of orin-agx-30W has 90 B"):
        cost.break_even(STACKED, on=chip, machine=nothing, level="l1")


def test_break_even_is_where_the_derivation_puts_it() -> None:
    """Without call and caches: N = t BW / (2 V), 6.6k codes at 60 GB/s."""
    machine = machines.get("orin-agx-30W", call=1e-12, dram_bandwidth=60e9, efficiency=100.0)
    chip = float(cost.search(STACKED, 1024, on=cost.technology("RRAM-22nm", **BARE)).latency_s)
    even = chip * 60e9 / 96
    assert even == pytest.approx(6.6e3, rel=0.02)
    digital = cost.search_digital(round(even), on=machine, level="dram")
    assert float(digital.latency_s) == pytest.approx(chip, rel=0.01)


def test_costs_are_traced_and_differentiated() -> None:
    def energy(on: cost.Technology) -> jax.Array:
        return jnp.asarray(cost.search(STACKED, 1000, on=on).energy_j)

    gradient = jax.grad(energy)(CHIP).values
    assert all(bool(jnp.isfinite(part)) for part in gradient.values())
    per_cell = gradient["conductance"] * CHIP.values["conductance"]
    assert float(per_cell) == pytest.approx(float(cost.search(STACKED, 1000, on=CHIP).energy.cells), rel=1e-4)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2.0 * leaf]), CHIP)
    found = jax.jit(jax.vmap(energy))(many)
    assert found.shape == (2,)
    assert float(found[0]) == pytest.approx(float(energy(CHIP)), rel=1e-5)
