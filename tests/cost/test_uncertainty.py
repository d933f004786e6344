"""Bands against closed forms, sensitivities against the shares of a bill, and headlines that say what they rest on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cost, crossbar
from nvcim_jax.cost import machines

CONFIG = crossbar.Config(
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
CHIP = cost.technology("RRAM-22nm")
CPU = machines.get("orin-agx-30W")


def test_draws_are_log_uniform_between_the_ends_of_each_range() -> None:
    many = cost.draw(jax.random.key(0), CHIP, 2000)
    for name, record in CHIP.records:
        values = jnp.log(many.values[name])
        low, high = math.log(record.low), math.log(record.high)
        if low == high:
            assert float(jnp.std(values)) < 1e-5
            continue
        assert low - 1e-4 <= float(values.min()) <= float(values.max()) <= high + 1e-4
        width = (high - low) / math.sqrt(12)
        assert abs(float(values.mean()) - (low + high) / 2) < 5 * width / math.sqrt(2000), name
        assert float(values.std()) == pytest.approx(width, rel=0.1), name
    pairs = jnp.corrcoef(jnp.log(many.values["conductance"]), jnp.log(many.values["read_time"]))
    assert abs(float(pairs[0, 1])) < 5 / math.sqrt(2000)  # independent


@pytest.mark.slow
def test_the_band_of_a_product_of_two_constants() -> None:
    """log(a b) of two log-uniform numbers is a trapezium, whose quantiles are known."""
    found = cost.bands(
        jax.random.key(0), lambda on: on.values["read_time"] * on.values["cell_area"], CHIP, num_draws=20_000
    )
    ends = [[math.log(r.low), math.log(r.high)] for n, r in CHIP.records if n in ("read_time", "cell_area")]
    (a, b), (c, d) = sorted(ends, key=lambda e: e[1] - e[0])
    narrow, wide = b - a, d - c
    low = a + c + math.sqrt(2 * 0.05 * narrow * wide)  # the corner: x^2 / (2 narrow wide) = 0.05
    assert math.log(found.low) == pytest.approx(low, abs=0.05)
    assert math.log(found.high) == pytest.approx(b + d - (low - a - c), abs=0.05)
    assert found.low < found.median < found.high


@pytest.mark.slow
def test_a_band_is_a_tree_and_the_same_again() -> None:
    def bill(on: cost.Technology) -> Any:
        found = cost.search(CONFIG, 1000, on=on)
        return {"s": found.latency_s, "energy": found.energy}

    once, again = (cost.bands(jax.random.key(0), bill, CHIP, num_draws=50) for _ in range(2))
    assert once == again
    plain = cost.search(CONFIG, 1000, on=CHIP)
    assert once["s"].low < float(plain.latency_s) < once["s"].high
    assert once["energy"].converters.low < float(plain.energy.converters) < once["energy"].converters.high
    fixed = cost.bands(
        jax.random.key(0), lambda on: on.values["read_time"], cost.technology("RRAM-22nm", read_time=1e-8)
    )
    assert fixed.low == fixed.high  # what a user gives has no range
    with pytest.raises(ValueError, match="`num_draws` must be an integer of at least 20"):
        cost.bands(jax.random.key(0), bill, CHIP, num_draws=3)


def test_sensitivities_are_the_shares_of_the_bill() -> None:
    slopes = cost.sensitivities(lambda on: cost.search(CONFIG, 1000, on=on).energy_j, CHIP)
    bill = cost.search(CONFIG, 1000, on=CHIP)
    total = float(bill.energy_j)
    assert slopes["RRAM-22nm.conductance"] == pytest.approx(float(bill.energy.cells) / total, rel=1e-4)
    assert slopes["RRAM-22nm.read_voltage"] == pytest.approx(2 * float(bill.energy.cells) / total, rel=1e-4)
    assert slopes["RRAM-22nm.converter_energy_factor"] == pytest.approx(float(bill.energy.converters) / total, rel=1e-3)
    assert "RRAM-22nm.write_voltage" not in slopes  # no part of a search
    sizes = [abs(slope) for slope in slopes.values()]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_a_headline_says_how_many_are_stored_and_what_nobody_checked() -> None:
    def ratio(on: cost.Technology, machine: cost.Machine) -> Any:
        digital = cost.search_digital(100_000, on=machine, level="dram")
        return digital.latency_s / cost.search(CONFIG, 100_000, on=on).latency_s

    found = cost.headline(jax.random.key(0), ratio, CHIP, CPU, num_stored=100_000, num_draws=200)
    assert found.value == pytest.approx(float(ratio(CHIP, CPU)))
    assert found.band.low < found.value < found.band.high
    assert "orin-agx-30W.dram_bandwidth" in found.recalled
    assert all(dict(CPU.records)[name.split(".")[1]].mark == "R" for name in found.recalled)
    assert "at 100,000 stored prompts; rests on recalled, unchecked numbers: orin-agx-30W" in str(found)
    checked = machines.get("orin-agx-30W", dram_bandwidth=60e9, call=1e-6)
    assert cost.headline(jax.random.key(0), ratio, CHIP, checked, num_stored=100_000, num_draws=20).recalled == ()


def ratio_at(num: int, quantity: str) -> float:
    chip, digital = cost.search(CONFIG, num, on=CHIP), cost.search_digital(num, on=CPU, level="dram")
    return float(getattr(digital, quantity)) / float(getattr(chip, quantity))


def test_from_where_a_machine_takes_longer_than_a_chip() -> None:
    (even,) = cost.break_even(CONFIG, on=CHIP, machine=CPU, level="dram")
    assert even.last is None  # as far as its memory reaches
    assert ratio_at(even.first, "latency_s") >= 1.0
    assert ratio_at(int(even.first * 0.998), "latency_s") < 1.0
    (far,) = cost.break_even(CONFIG, on=CHIP, machine=CPU, level="dram", ratio=120.0)
    assert far.first > 100 * even.first  # a call of a microsecond is on both sides


def test_a_ratio_of_energies_may_fall_with_the_store() -> None:
    """What a call costs is shared by more prompts: sixty times hold for few of them."""
    (found,) = cost.break_even(CONFIG, on=CHIP, machine=CPU, quantity="energy", ratio=60.0, level="dram")
    assert found.first == 1
    assert found.last is not None
    assert ratio_at(found.last, "energy_j") >= 60.0
    assert ratio_at(int(found.last * 1.01), "energy_j") < 60.0


def test_a_ratio_may_be_reached_twice() -> None:
    """From the nearest memory: for few prompts, not for more, and again where the store leaves the caches."""
    first, *rest = cost.break_even(CONFIG, on=CHIP, machine=CPU, quantity="energy", ratio=40.0)
    assert first.last is not None
    assert rest[0].first > first.last
    for num, wanted in ((first.last, True), (2 * first.last, False), (rest[0].first, True)):
        digital, chip = cost.search_digital(num, on=CPU), cost.search(CONFIG, num, on=CHIP)
        assert (float(digital.energy_j) >= 40.0 * float(chip.energy_j)) == wanted


def test_where_nothing_reaches_a_ratio() -> None:
    slow = machines.get("stm32h743")
    assert cost.break_even(CONFIG, on=CHIP, machine=slow, ratio=1e6, level="flash") == ()
    with pytest.raises(ValueError, match="`quantity` must be one of energy, latency"):
        cost.break_even(CONFIG, on=CHIP, machine=CPU, quantity="area")
