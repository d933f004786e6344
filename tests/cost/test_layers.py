"""Matrices, programming, reading back and whole models on chips, against sums made by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cost, crossbar, models
from nvcim_jax.cost import machines

CONFIG = crossbar.Config(rows=384, cols=128, weight_bits=8, cell_bits=2, dac_bits=8, dac_bits_per_cycle=1, adc_bits=8)
CHIP = cost.technology("RRAM-22nm")
HOST = machines.get("orin-nano-15W")
LM = models.Config(vocab_size=512, width=64, num_layers=3, num_heads=4, num_kv_heads=2, mlp_width=160)


def number(value: Any) -> float:
    return float(value)


def test_a_layer_counts_its_arrays_and_adds_its_row_tiles() -> None:
    bill = cost.layer((800, 300), CONFIG, on=CHIP)  # 3 x 3 tiles, 4 slices, pairs
    done = bill.operations
    assert done.num_arrays == 3 * 3 * 4 * 2
    assert done.num_cells == 800 * 300 * 4 * 2
    assert done.num_steps == 7  # parts of an input of 8 bits with its sign
    assert done.num_conversions == 3 * 4 * 7 * 300
    sums = done.num_conversions + 2 * 300  # two further row tiles
    expected = number(CHIP.values["layout_factor"] * CHIP.values["shift_add_energy"]) * sums
    assert number(bill.energy.shift_add) == pytest.approx(expected, rel=1e-5)
    assert number(bill.latency.merge) == pytest.approx(2e-9)
    assert number(bill.latency.select) == number(bill.energy.select) == 0.0


def test_tokens_follow_each_other_in_the_same_arrays() -> None:
    one, ten = (cost.layer((800, 300), CONFIG, on=CHIP, tokens=n) for n in (1, 10))
    assert number(ten.latency_s) == pytest.approx(10 * number(one.latency_s), rel=1e-5)
    assert number(ten.energy_j) == pytest.approx(10 * number(one.energy_j), rel=1e-5)
    assert number(ten.area_m2) == number(one.area_m2)


def test_twice_the_outputs_are_twice_the_arrays_and_no_more_time() -> None:
    one, two = (cost.layer((384, cols), CONFIG, on=CHIP) for cols in (128, 256))
    assert two.operations.num_arrays == 2 * one.operations.num_arrays
    assert number(two.energy.converters) == pytest.approx(2 * number(one.energy.converters), rel=1e-5)
    assert number(two.latency.convert) == number(one.latency.convert)


def test_programming_is_pulses_and_verifications() -> None:
    plain = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows", mapping="offset_digital")
    bill = cost.program((48, 128), plain, on=CHIP, pulses=8)
    cells = 8 * 48 * 128
    assert bill.cells.num_cells == cells
    assert number(bill.energy.cells) / cells == pytest.approx(64e-12, rel=1e-5)  # 8 x 2 V^2 x 20 uS x 100 ns
    check = 0.2**2 * 5e-6 * 10e-9 + number(cost.converter_energy(4, CHIP))
    assert number(bill.energy.sensing) / cells == pytest.approx(8 * check, rel=1e-5)
    assert number(bill.latency_s) == pytest.approx(cells / 128 * 8 * (100e-9 + 13e-9), rel=1e-5)
    measured = cost.program((48, 128), plain, on=CHIP)
    assert number(measured.energy_j) == pytest.approx(25 / 8 * number(bill.energy_j), rel=1e-5)
    three = cost.program((48, 128), dataclasses.replace(plain, cell_bits=3), on=CHIP)
    assert number(three.energy_j) / three.cells.num_cells == pytest.approx(
        137 / 8 * number(bill.energy_j) / cells, rel=1e-5
    )
    two = cost.program((96, 128), plain, on=CHIP, pulses=8)
    assert number(two.energy_j) == pytest.approx(2 * number(bill.energy_j), rel=1e-5)
    with pytest.raises(ValueError, match="`pulses` must be given, but is left out with 4 bits a cell"):
        cost.program((48, 128), dataclasses.replace(plain, cell_bits=4), on=CHIP)
    with pytest.raises(ValueError, match="left out with analog cells"):
        cost.program((48, 128), crossbar.Config(), on=CHIP)
    assert cost.program((48, 128), crossbar.Config(), on=CHIP, pulses=3).cells.num_cells == 2 * 48 * 128
    with pytest.raises(ValueError, match="`pulses` must lie in"):
        cost.program((48, 128), plain, on=CHIP, pulses=0)


def test_reading_back_goes_row_by_row() -> None:
    stacked = crossbar.Config(rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows", mapping="offset_digital")
    bill = cost.read_back(20, stacked, on=CHIP)
    steps = 8 * 48 * 2  # 20 columns x 8 a converter / 128 columns: two turns
    assert number(bill.latency_s) == pytest.approx(steps * 13e-9, rel=1e-5)
    each = 0.2**2 * 5e-6 * 10e-9 + number(cost.converter_energy(4, CHIP))
    assert number(bill.energy_j) == pytest.approx(20 * 8 * 48 * each, rel=1e-5)
    sliced = cost.read_back(20, dataclasses.replace(stacked, slices="columns"), on=CHIP)
    assert number(sliced.latency_s) == pytest.approx(48 * 10 * 13e-9, rel=1e-5)  # 160 columns: ten turns
    assert number(sliced.energy_j) == pytest.approx(number(bill.energy_j), rel=1e-5)


def test_a_model_is_the_sum_of_its_matrices() -> None:
    found = cost.model(LM, CONFIG, on=CHIP, host=HOST)
    one = {name: cost.layer(size[1:], CONFIG, on=CHIP) for name, size in LM.shapes["layers"].items() if len(size) == 3}
    head = cost.layer((64, 512), CONFIG, on=CHIP)
    assert found.cells.num_cells == 3 * sum(b.operations.num_cells for b in one.values()) + head.operations.num_cells
    assert found.cells.num_arrays == 3 * sum(b.operations.num_arrays for b in one.values()) + head.operations.num_arrays
    area = 3 * sum(number(b.area_m2) for b in one.values()) + number(head.area_m2)
    assert number(found.area_m2) == pytest.approx(area, rel=1e-5)
    times = {name: number(b.latency_s) for name, b in one.items()}
    block = max(times[n] for n in "qkv") + times["o"] + max(times["gate"], times["up"]) + times["down"]
    assert number(found.latency.matrices) == pytest.approx(3 * block, rel=1e-5)
    assert number(found.latency.head) == pytest.approx(number(head.latency_s), rel=1e-5)
    for name in ("converters", "cells", "drivers", "shift_add", "buffers", "network"):
        expected = 3 * sum(number(getattr(b.energy, name)) for b in one.values()) + number(getattr(head.energy, name))
        assert number(getattr(found.energy, name)) == pytest.approx(expected, rel=1e-5), name
    idle = 3 * sum(number(b.idle_power) for b in one.values()) + number(head.idle_power)
    assert number(found.energy.leakage) == pytest.approx(idle * number(found.latency_s), rel=1e-4)
    assert number(found.tokens_per_s) == pytest.approx(1 / number(found.latency_s), rel=1e-6)
    for whole, parts in ((found.latency_s, found.latency), (found.energy_j, found.energy), (found.area_m2, found.area)):
        assert number(whole) == pytest.approx(sum(map(number, parts)), rel=1e-6)
    lm = models.init(jax.random.key(0), config=LM)
    assert number(cost.model(lm, CONFIG, on=CHIP, host=HOST).energy_j) == number(found.energy_j)


def test_attention_grows_with_the_context_and_stays_digital() -> None:
    short, long = (cost.model(LM, CONFIG, on=CHIP, host=HOST, context=n) for n in (100, 200))
    assert number(long.energy.converters) == number(short.energy.converters)
    assert number(long.latency.matrices) == number(short.latency.matrices)
    assert number(long.energy.attention) > number(short.energy.attention)
    assert number(long.latency.attention) > number(short.latency.attention)


def test_the_bits_of_each_block_are_its_slices() -> None:
    mixed = cost.model(LM, CONFIG, on=CHIP, host=HOST, bits=(3, 5, 7))
    base = mixed.blocks[0].cells.num_cells  # 2 bits of magnitude in one cell of a pair
    assert [block.cells.num_cells for block in mixed.blocks] == [base, 2 * base, 3 * base]
    assert number(mixed.blocks[2].energy_j) > number(mixed.blocks[1].energy_j) > number(mixed.blocks[0].energy_j)
    assert number(mixed.blocks[2].area_m2) == pytest.approx(3 * number(mixed.blocks[0].area_m2), rel=0.02)
    same = cost.model(LM, CONFIG, on=CHIP, bits=8)  # beside an Orin Nano at 15 W
    assert number(same.energy_j) == number(cost.model(LM, CONFIG, on=CHIP, host=HOST).energy_j)
    with pytest.raises(ValueError, match="`bits` must be one for each of 3 blocks, but are 2"):
        cost.model(LM, CONFIG, on=CHIP, host=HOST, bits=(4, 4))
    with pytest.raises(ValueError, match="`bits` must be an integer of at least 2"):
        cost.model(LM, CONFIG, on=CHIP, host=HOST, bits=1)
    for bits in (4.5, (4.0, 4.5, 4.0)):
        with pytest.raises(ValueError, match=r"`bits` must be an integer of at least 2 and at most 24, but is 4\.5"):
            cost.model_digital(LM, on=HOST, bits=bits)
    with pytest.raises(ValueError, match="`bits` must be given where config has no weight_bits"):
        cost.model(LM, dataclasses.replace(CONFIG, weight_bits=None), on=CHIP, host=HOST)
    with pytest.raises(ValueError, match="`lm` must be"):
        cost.model("SmolLM2", CONFIG, on=CHIP, host=HOST)


def test_a_model_on_a_machine_moves_every_weight_once() -> None:
    edge = machines.get("edge-8GB", call=1e-12)
    lm = dataclasses.replace(LM, width=512, num_heads=8, head_dim=64, mlp_width=2048, vocab_size=8192)
    eight, four = (cost.model_digital(lm, on=edge, bits=b) for b in (8, 4))
    weights = sum(size[1] * size[2] for size in lm.shapes["layers"].values() if len(size) == 3)
    moved = 3 * weights + 512 * 8192
    dram = machines.level_of(edge, "dram")
    cache = 3 * 2 * 512 * 2 * 64 * 2  # of 3 blocks: keys and values of 512 tokens, two heads of 64 channels, 16 bits
    sram = machines.level_holding(edge, cache)
    expected = moved * number(dram.energy) + cache * number(sram.energy)
    assert number(eight.energy.movement) == pytest.approx(expected, rel=1e-4)
    # half the bits: half the bytes; this machine also multiplies twice as fast
    rest = cache * number(sram.energy)
    assert number(four.energy.movement) - rest == pytest.approx((number(eight.energy.movement) - rest) / 2, rel=1e-4)
    assert number(four.latency_s) < number(eight.latency_s)
    sparse = cost.model_digital(lm, on=edge, bits=8, density=0.5)
    assert number(sparse.latency.products) < number(eight.latency.products)
    cpu = machines.get("orin-agx-30W")
    dense, holes = (cost.model_digital(lm, on=cpu, bits=8, density=d) for d in (1.0, 0.5))
    assert number(holes.latency.products) == pytest.approx(number(dense.latency.products), rel=1e-6)
    assert number(holes.energy.movement) < number(dense.energy.movement)
    held = machines.level_holding(cpu, moved)  # half of 8 bits, and one that says which half
    saved = number(dense.energy.movement) - number(holes.energy.movement)
    assert saved == pytest.approx(3 * weights * 3 / 8 * number(held.energy), rel=1e-3)


def test_models_and_layers_are_traced() -> None:
    def joules(on: cost.Technology) -> jax.Array:
        return jnp.asarray(cost.model(LM, CONFIG, on=on, host=HOST).energy_j)

    gradient = jax.grad(joules)(CHIP).values
    assert all(bool(jnp.isfinite(part)) for part in gradient.values())
    assert number(gradient["converter_energy_factor"]) > 0.0
    assert number(gradient["write_voltage"]) == 0.0


@pytest.mark.slow
def test_a_large_model_is_counted_in_full() -> None:
    """More cells and conversions than 32 bits hold, inside jit too."""
    lm = cost.PUBLISHED["Mistral-7B-GPTQ"]
    found = jax.jit(lambda on: cost.model(lm, CONFIG, on=on, host=HOST))(CHIP)
    assert found.cells.num_cells > 8 * 7e9
    assert number(found.energy_j) > 0
    assert number(found.area_m2) == pytest.approx(number(cost.model(lm, CONFIG, on=CHIP, host=HOST).area_m2), rel=1e-5)
