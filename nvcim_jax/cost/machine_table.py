"""The numbers of known machines, each with its source.

Clocks, cores and memory clocks of the Jetson Orin modules: NVIDIA's nvpmodel files, as the LineageOS repository for
"concord" holds them. Bytes and rates are of all cores that a mode leaves on.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from nvcim_jax.cost.constants import Constant, stated

__all__ = ["MACHINES", "Made", "level_constants"]

_NVPMODEL = "NVIDIA nvpmodel (LineageOS concord)"
_A78AE = "NVIDIA Jetson AGX Orin technical brief v1.2: 64 kB L1 and 256 kB L2 a core, 2 MB L3 a cluster of four"
_HOROWITZ = "M. Horowitz, ISSCC 2014"
_LPDDR5 = "LPDDR5, 5 (4-8) pJ/b"
_STRESS = "NVIDIA developer forum 323456: rail VDD_CPU_CV under a CPU stress test"


class Made(NamedTuple):
    """The constants of a machine, and its static facts, in the order of `Machine`."""

    constants: dict[str, Constant]
    levels: tuple[str, ...]
    widths: tuple[int, ...]
    scales_with_bits: bool = False
    exploits_sparsity: bool = False
    storage: bool = True


def level_constants(name: str, size: Constant, bandwidth: Constant, energy: Constant) -> dict[str, Constant]:
    """Return the three constants of one memory."""
    return {f"{name}_size": size, f"{name}_bandwidth": bandwidth, f"{name}_energy": energy}


def _share(value: float, unit: str, source: str, mark: str, factor: float) -> Constant:
    """Return a constant known up to a factor."""
    return stated(value, unit, source, mark, low=value / factor, high=value * factor)


def _caches(cores: int, clock: float) -> dict[str, Constant]:
    """Return the caches of A78AE cores together; bytes a cycle and energies are recalled."""
    clusters = -(-cores // 4)
    sizes = {"l1": 64e3 * cores, "l2": 256e3 * cores, "l3": 2e6 * clusters}
    per_cycle, energy = {"l1": 32.0, "l2": 24.0, "l3": 12.0}, {"l1": 1.0e-12, "l2": 3e-12, "l3": 10e-12}
    found: dict[str, Constant] = {}
    for name, size in sizes.items():
        found |= level_constants(
            name,
            stated(size, "B", _A78AE, "S"),
            _share(per_cycle[name] * cores * clock, "B/s", f"{per_cycle[name]:g} B a cycle and core", "R", 2.0),
            _share(energy[name], "J/B", f"SRAM of that size, from {_HOROWITZ}, scaled", "R", 3.0),
        )
    return found


def _dram(gigabytes: float, emc_hz: float, bus_bits: int, share: Constant) -> dict[str, Constant]:
    """Return LPDDR5: 2 f bus / 8 bytes a second, of which a share is reached."""
    peak = 2 * emc_hz * bus_bits / 8
    source = f"2 x {emc_hz / 1e6:g} MHz x {bus_bits} b ({_NVPMODEL}) x reachable share: {share.source}"
    return level_constants(
        "dram",
        stated(gigabytes * 1e9, "B", "NVIDIA Jetson module data sheet", "S"),
        stated(peak * share.value, "B/s", source, share.mark, low=peak * share.low, high=peak * share.high),
        stated(40e-12, "J/B", _LPDDR5, "R", low=32e-12, high=64e-12),
    )


_SSD = level_constants(
    "ssd",
    stated(1e12, "B", "a drive of 1 TB", "R"),
    stated(2e9, "B/s", "Edge-LLM (arXiv:2406.15758), Fig. 4b", "P", low=1e9, high=4e9),
    stated(1.5e-9, "J/B", "1.5 (1-3) nJ/B", "R", low=1e-9, high=3e-9),
)
_CPU_SHARE = stated(0.293, "1", "60 (40-120) of 204.8 GB/s by the CPU alone", "R", low=0.195, high=0.586)
_GPU_SHARE = stated(0.762, "1", "156 of 204.8 GB/s (jetson-mem-bench: 60-80 %)", "S", low=0.6, high=0.8)
_EFFICIENCY = stated(0.5, "1", "0.3-0.7 of the peak", "R", low=0.3, high=0.7)


def _orin_cpu(
    *, cores: int, clock: float, emc: float, bus: int, gigabytes: float, watts: float, cpu_watts: Constant
) -> Made:
    """Return the CPU of an Orin module: 8 float32, 16 float16 and 32 int8 multiply-accumulates a cycle and core."""
    source = f"{cores} cores at {clock / 1e9:g} GHz ({_NVPMODEL}) x {{}} MAC a cycle"
    rates = {
        f"macs_{width}": stated(cores * clock * each, "1/s", source.format(each), "R")
        for width, each in ((8, 32), (16, 16), (32, 8))
    }
    each = cpu_watts.value / rates["macs_8"].value
    constants = {
        **_caches(cores, clock),
        **_dram(gigabytes, emc, bus, _CPU_SHARE),
        **_SSD,
        **rates,
        "mac_energy": _share(each, "J", f"{cpu_watts.value:g} W ({cpu_watts.source}) / peak rate", "R", 3.0),
        "efficiency": _EFFICIENCY,
        "call": stated(1e-6, "s", "a loop that is warm", "R", low=0.3e-6, high=3e-6),
        "static_power": stated(cpu_watts.value * 0.3, "W", "30 % of the CPU's power", "R", low=0.1, high=watts),
        "mode_power": stated(watts, "W", _NVPMODEL, "P"),
    }
    return Made(constants, ("l1", "l2", "l3", "dram", "ssd"), (8, 16, 32))


def _orin_gpu(*, tpc: int, clock: float, emc: float, bus: int, gigabytes: float, watts: float) -> Made:
    """Return the GPU of an Orin module: 256 float32 and 4096 dense int8 multiply-accumulates a cycle and TPC."""
    source = f"{tpc} TPC at {clock / 1e6:g} MHz ({_NVPMODEL}), from 5.3 TFLOP/s and 85 int8 TOP/s at 8 x 1.3 GHz"
    rates = {
        f"macs_{width}": stated(tpc * clock * each, "1/s", source, "S")
        for width, each in ((8, 4096), (16, 2048), (32, 256))
    }
    constants = {
        **level_constants(
            "l2",
            stated(4e6 if tpc > 4 else 2e6, "B", "NVIDIA Jetson AGX Orin technical brief v1.2: 4 MB", "S"),
            _share(128.0 * tpc * clock, "B/s", "128 B a cycle and TPC", "R", 2.0),
            _share(10e-12, "J/B", f"SRAM of that size, from {_HOROWITZ}, scaled", "R", 3.0),
        ),
        **_dram(gigabytes, emc, bus, _GPU_SHARE),
        **_SSD,
        **rates,
        "mac_energy": _share(watts / rates["macs_8"].value, "J", f"{watts:g} W / int8 peak", "D", 3.0),
        "efficiency": _EFFICIENCY,
        "call": stated(10e-6, "s", "the start of a kernel", "R", low=3e-6, high=30e-6),
        "static_power": stated(0.3 * watts, "W", "30 % of the mode's power", "R", low=0.1 * watts, high=watts),
        "mode_power": stated(watts, "W", _NVPMODEL, "P"),
    }
    return Made(constants, ("l2", "dram", "ssd"), (8, 16, 32))


def _snapdragon() -> Made:
    """Return the CPU of a phone of 2023: 1 + 5 + 2 cores, LPDDR5X, UFS 4.0."""
    chip = "Qualcomm Snapdragon 8 Gen 3 (announced 2023-10-24): 1 x 3.3, 3 x 3.2, 2 x 3.0, 2 x 2.3 GHz"
    flash = "Samsung UFS 4.0 (announced 2022-05-04): 4,200 MB/s"
    rates = {8: 1.67e12 / 2, 16: 8.3e11 / 2, 32: 4.2e11 / 2}  # 16 float32 lanes on the first core, 8 on five, 4 on two
    constants = {
        **level_constants(
            "l3",
            stated(12e6, "B", "12 MB shared by the cores", "R"),
            _share(150e9, "B/s", "8 B a cycle of six large cores", "R", 2.0),
            _share(10e-12, "J/B", f"SRAM of that size, from {_HOROWITZ}, scaled", "R", 3.0),
        ),
        **level_constants(
            "dram",
            stated(12e9, "B", "LPDDR5X, 8 to 24 GB", "R"),
            stated(38e9, "B/s", f"half of 2 x 4800 MHz x 64 b, {chip}", "R", low=20e9, high=70e9),
            stated(40e-12, "J/B", _LPDDR5, "R", low=32e-12, high=64e-12),
        ),
        **level_constants(
            "ssd",
            stated(256e9, "B", "usual", "R"),
            stated(4.2e9, "B/s", flash, "S", low=2.1e9, high=4.2e9),
            stated(0.42e-9, "J/B", "Samsung UFS 4.0: 6.0 MB/s a mA, at 2.5 V", "D", low=0.3e-9, high=3e-9),
        ),
        **{f"macs_{width}": _share(rate, "1/s", f"{chip}; lanes by core", "R", 1.5) for width, rate in rates.items()},
        "mac_energy": _share(5.0 / rates[8], "J", "5 W of all cores / peak rate", "R", 3.0),
        "efficiency": _EFFICIENCY,
        "call": stated(1e-6, "s", "a loop that is warm", "R", low=0.3e-6, high=3e-6),
        "static_power": stated(0.5, "W", "awake, display apart", "R", low=0.1, high=1.5),
        "mode_power": stated(8.0, "W", "for seconds; about 4 W for long", "R", low=4.0, high=12.0),
    }
    return Made(constants, ("l3", "dram", "ssd"), (8, 16, 32))


def _stm32h7() -> Made:
    """Return a microcontroller: Cortex-M7 at 480 MHz with 1 MB of SRAM and 2 MB of flash."""
    chip = "ST STM32H743 (DS12110): 480 MHz, 128 kB DTCM, 512 kB AXI SRAM, 2 MB flash"
    clock = 480e6
    constants = {
        **level_constants(
            "dtcm",
            stated(128e3, "B", chip, "S"),
            stated(8 * clock, "B/s", f"64 b a cycle; {chip}", "D", low=4 * clock, high=8 * clock),
            _share(10e-12, "J/B", f"SRAM of that size at 40 nm, from {_HOROWITZ}", "R", 3.0),
        ),
        **level_constants(
            "sram",
            stated(512e3, "B", chip, "S"),
            stated(4 * clock, "B/s", "64 b at half the clock", "D", low=clock, high=4 * clock),
            _share(20e-12, "J/B", f"SRAM of that size at 40 nm, from {_HOROWITZ}", "R", 3.0),
        ),
        **level_constants(
            "flash",
            stated(2e6, "B", chip, "S"),
            stated(1e9, "B/s", "256 b a line, a few wait states", "R", low=0.3e9, high=2e9),
            _share(50e-12, "J/B", "embedded flash", "R", 3.0),
        ),
        **level_constants(
            "ssd",
            stated(32e9, "B", "a memory card", "R"),
            stated(25e6, "B/s", "4 b at 50 MHz", "R", low=10e6, high=50e6),
            stated(10e-9, "J/B", "a memory card, 0.25 W", "R", low=3e-9, high=30e-9),
        ),
        "macs_8": stated(2 * clock, "1/s", "SMLAD, two a cycle (CMSIS-NN, arXiv:1801.06601)", "P"),
        "macs_16": stated(2 * clock, "1/s", "SMLAD, two a cycle (CMSIS-NN, arXiv:1801.06601)", "P"),
        "macs_32": stated(clock, "1/s", "one a cycle", "R"),
        "mac_energy": _share(0.3e-9, "J", "about 0.3 W at two a cycle", "R", 3.0),
        "efficiency": stated(0.4, "1", "loads and loops beside the products", "R", low=0.2, high=0.7),
        "call": stated(0.2e-6, "s", "a function call", "R", low=0.1e-6, high=1e-6),
        "static_power": stated(0.1, "W", "clocks and flash", "R", low=0.03, high=0.3),
        "mode_power": stated(0.5, "W", "about 150 mA at 3.3 V", "R", low=0.3, high=0.9),
    }
    return Made(constants, ("dtcm", "sram", "flash", "ssd"), (8, 16, 32))


def _edge_8gb() -> Made:
    """Return the simulated accelerator of Edge-LLM, which makes use of few bits and of zeros."""
    paper = "Edge-LLM (arXiv:2406.15758): 512 kB to 1 MB SRAM, 8 to 16 GB DRAM at 25.6 GB/s, SSD at 2 GB/s"
    constants = {
        **level_constants(
            "sram",
            stated(1e6, "B", paper, "P", low=0.5e6, high=1e6),
            _share(200e9, "B/s", "1600 b at 1 GHz", "R", 3.0),
            _share(3.7e-12, "J/B", f"100 pJ for 64 b of 1 MB at 45 nm ({_HOROWITZ}), scaled to 22 nm", "R", 3.0),
        ),
        **level_constants(
            "dram",
            stated(8e9, "B", paper, "P"),
            stated(25.6e9, "B/s", paper, "P"),
            stated(64e-12, "J/B", "LPDDR4, 8 pJ/b (hwcomponents-library)", "P", low=32e-12, high=64e-12),
        ),
        **_SSD,
        "macs_8": _share(1e12, "1/s", "1000 units at 1 GHz; the paper gives none", "R", 3.0),
        "macs_16": _share(0.25e12, "1/s", "a quarter of that of 8 bits", "R", 3.0),
        "mac_energy": _share(0.2e-12, "J", f"0.23 pJ at 45 nm ({_HOROWITZ}), scaled, x 3 for control", "R", 3.0),
        "efficiency": stated(0.8, "1", "a schedule that fits", "R", low=0.5, high=1.0),
        "call": stated(1e-6, "s", "the start of a kernel", "R", low=0.3e-6, high=3e-6),
        "static_power": stated(0.5, "W", "DRAM and clocks", "R", low=0.1, high=1.5),
        "mode_power": stated(5.0, "W", "an edge board", "R", low=2.0, high=10.0),
    }
    return Made(constants, ("sram", "dram", "ssd"), (8, 16), True, True)


_AGX = {"bus": 256, "gigabytes": 64.0}
_NX = {"bus": 128, "gigabytes": 16.0}
_NANO = {"bus": 128, "gigabytes": 8.0}


def _watts(value: float, source: str = _STRESS, mark: str = "S") -> Constant:
    return stated(value, "W", source, mark)


_GUESS = "as a core and GHz of the AGX"
_LIKE_AGX = 5.6 / (8 * 1.73)

MACHINES: Mapping[str, Callable[[], Made]] = {
    "orin-agx-15W": partial(_orin_cpu, cores=4, clock=1.11e9, emc=2133e6, watts=15.0, cpu_watts=_watts(1.6), **_AGX),
    "orin-agx-30W": partial(_orin_cpu, cores=8, clock=1.73e9, emc=3200e6, watts=30.0, cpu_watts=_watts(5.6), **_AGX),
    "orin-agx-50W": partial(_orin_cpu, cores=12, clock=1.50e9, emc=3200e6, watts=50.0, cpu_watts=_watts(6.0), **_AGX),
    "orin-agx-MAXN": partial(_orin_cpu, cores=12, clock=2.2e9, emc=3200e6, watts=60.0, cpu_watts=_watts(15.2), **_AGX),
    "orin-agx-15W-gpu": partial(_orin_gpu, tpc=3, clock=408e6, emc=2133e6, watts=15.0, **_AGX),
    "orin-agx-30W-gpu": partial(_orin_gpu, tpc=4, clock=612e6, emc=3200e6, watts=30.0, **_AGX),
    "orin-agx-50W-gpu": partial(_orin_gpu, tpc=8, clock=816e6, emc=3200e6, watts=50.0, **_AGX),
    "orin-agx-MAXN-gpu": partial(_orin_gpu, tpc=8, clock=1300e6, emc=3200e6, watts=60.0, **_AGX),
    "orin-nx-25W": partial(
        _orin_cpu,
        cores=8,
        clock=1.50e9,
        emc=3200e6,
        watts=25.0,
        cpu_watts=_watts(_LIKE_AGX * 8 * 1.5, _GUESS, "R"),
        **_NX,
    ),
    "orin-nx-25W-gpu": partial(_orin_gpu, tpc=4, clock=408e6, emc=3200e6, watts=25.0, **_NX),
    "orin-nx-40W-gpu": partial(_orin_gpu, tpc=4, clock=1173e6, emc=3200e6, watts=40.0, **_NX),
    "orin-nano-15W": partial(
        _orin_cpu,
        cores=6,
        clock=1.50e9,
        emc=2133e6,
        watts=15.0,
        cpu_watts=_watts(_LIKE_AGX * 6 * 1.5, _GUESS, "R"),
        **_NANO,
    ),
    "orin-nano-25W": partial(
        _orin_cpu,
        cores=6,
        clock=1.34e9,
        emc=3199e6,
        watts=25.0,
        cpu_watts=_watts(_LIKE_AGX * 6 * 1.34, _GUESS, "R"),
        **_NANO,
    ),
    "orin-nano-15W-gpu": partial(_orin_gpu, tpc=4, clock=612e6, emc=2133e6, watts=15.0, **_NANO),
    "orin-nano-25W-gpu": partial(_orin_gpu, tpc=4, clock=918e6, emc=3199e6, watts=25.0, **_NANO),
    "snapdragon-8-gen3": _snapdragon,
    "stm32h743": _stm32h7,
    "edge-8GB": _edge_8gb,
}
"""Name -> its numbers. `-gpu` is the GPU of a mode, the others are CPUs."""
