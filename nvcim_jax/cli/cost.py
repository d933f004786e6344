"""`nvcim cost`: what a search for a stored prompt takes on a chip and on machines, and how far that is known."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nvcim_jax import checks, cost, crossbar, files, pipeline, plots
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result

__all__ = ["FILES", "Options", "main"]

MARKED = {"latency": 120.0, "energy": 60.0}
"""Ratios that NVCiM-PT reports at most, against the CPU of a Jetson Orin."""

NAMES = {"name": "--technology"}
"""Options of what the library calls otherwise."""

FILES = ("latency.png", "energy.png", "items.png", "sensitivities.png", "curves.csv", "cost.json")
UNITS = {"latency": (1e6, "us"), "energy": (1e9, "nJ")}
PERIPHERY = cost.Periphery()
SIZES = tuple(10**n * m for n in range(1, 7) for m in (1, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Price one search among stored prompts: latency, energy and area by item, against digital machines.

    Every constant has a unit, a range, a source and a mark (`--constants` prints them all); bands are 5-95 % over their
    ranges. A ratio holds for one number of stored prompts, which stands beside it, with the constants that it rests on
    and that nobody has checked.
    """

    arrays: Annotated[crossbar.Config, tyro.conf.arg(name="")] = pipeline.Preset().arrays
    """Crossbars and converters; those of the pipeline by default."""
    periphery: Annotated[cost.Periphery, tyro.conf.arg(name="")] = PERIPHERY
    """What stands around the arrays."""
    technology: str = "RRAM-22nm"
    """Technology of the chip: RRAM-22nm, FeFET-22nm, PCM-22nm."""
    node_nm: float = 22.0
    """Node of its logic, 14 to 130."""
    machine: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Digital machine to compare with; may be repeated, the first is that of the ratios. None: orin-agx-30W,
    snapdragon-8-gen3 and stm32h743; this-host is measured."""
    level: str | None = None
    """Memory that holds the store, of those machines that have one of that name. None: the nearest that has room; with
    a language model between two searches, which fills all caches, rather dram."""
    stored: int = 1000
    """Stored prompts."""
    values: int = 48
    """Rows of a key: 48 of a code; 84 where pooled copies for scales 1, 2 and 4 are stored apart."""
    tokens: int = 8
    """Codes of one prompt, which is read back after the search."""
    constant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: another value of a constant of the technology, or MACHINE.NAME=VALUE of a machine, in SI units; may
    be repeated."""
    draws: int = 2000
    """Draws of all constants."""
    seed: int = 0
    """Seed of the draws."""
    constants: bool = False
    """Print every constant with its range, source and mark, and nothing else."""
    plots: bool = True
    """Whether to draw the figures."""
    out: Path = Path("runs/cost")
    """Folder of the results."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


DEFAULT_MACHINES = ("orin-agx-30W", "snapdragon-8-gen3", "stm32h743")


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    for name in ("stored", "values", "tokens"):
        checks.integer(f"--{name}", getattr(options, name), high=10**9)
    checks.integer("--draws", options.draws, low=20, high=10**6)
    checks.integer("--seed", options.seed, low=0, high=2**32 - 1)
    chip, machines = _specifications(options)
    if options.constants:
        found = cost.constant_table(chip, *machines)
        print_table([_shown(dict(row)) for row in found])
        print_result(options, found)
        return 0
    bill = _on_chip(options, options.stored, chip)
    for machine in machines:  # a store that it cannot hold is told before anything is printed
        _digital(options, options.stored, machine)
    files.folder("--out", options.out)
    _print_bill(options, bill, chip)
    headlines = _print_ratios(options, chip, machines)
    curves = _curves(options, chip, machines)
    for path in _write(options, bill, chip, machines, headlines, curves):
        print(f"written: {path}")
    print_result(options, files.read_json("--out", options.out / "cost.json"))
    return 0


def _specifications(options: Options) -> tuple[cost.Technology, list[cost.Machine]]:
    """Return the chip and the machines, with the constants that the user replaces."""
    names = options.machine or DEFAULT_MACHINES
    for name in names:
        checks.choice("--machine", name, cost.machines.names())
    changes: dict[str, dict[str, float]] = {name: {} for name in ("", *names)}
    for word in options.constant:
        owner, name, value = _constant(word)
        if owner not in changes:
            checks.fail("--constant", f"name one of the machines {', '.join(names)}", f"names {owner!r}")
        plain = cost.machines.get(owner) if owner else cost.technology(options.technology)
        checks.choice("--constant", name, plain.values)
        changes[owner][name] = value
    chip = cost.technology(options.technology, node_nm=options.node_nm, **changes[""])
    machines = [cost.machines.get(name, **changes[name]) for name in names]
    if options.level is not None:
        checks.choice("--level", options.level, {level for machine in machines for level in machine.levels})
    return chip, machines


def _constant(word: str) -> tuple[str, str, float]:
    name, equals, text = word.partition("=")
    owner, _, last = name.rpartition(".")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not equals or not last or value != value:
        checks.fail("--constant", "be NAME=VALUE or MACHINE.NAME=VALUE, the value a number", f"is {word!r}")
    return owner, last, value


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row.pop("low"), row.pop("high")
    return {**row, "range": "" if low == high else f"{low:.3g} .. {high:.3g}"}


def _print_bill(options: Options, bill: cost.Bill, chip: cost.Technology) -> None:
    done = bill.operations
    parts = (("latency (us)", 1e6, bill.latency), ("energy (nJ)", 1e9, bill.energy), ("area (mm2)", 1e6, bill.area))
    rows = []
    for what, factor, items in parts:
        numbers = {name: factor * float(value) for name, value in items._asdict().items()}
        whole = sum(numbers.values())
        rows += [{"cost": what, "item": n, "value": v, "share": f"{v / whole:.1%}"} for n, v in numbers.items()]
        rows.append({"cost": what, "item": "total", "value": whole, "share": ""})
    print_table(rows, title=f"One search among {options.stored:,} stored prompts on {chip.name}")
    lossless = "" if done.lossless_bits is None else f"; {done.lossless_bits} bits would lose nothing of a sum"
    print(f"{done.num_arrays} arrays, {done.num_conversions:,} conversions in {done.num_steps} steps{lossless}.")
    back = cost.read_back(options.tokens, options.arrays, on=chip, values=options.values, periphery=options.periphery)
    print(
        f"Reading {options.tokens} codes back: {float(back.latency_s) * 1e6:.3g} us, "
        f"{float(back.energy_j) * 1e9:.3g} nJ. Idle: {float(bill.idle_power) * 1e3:.3g} mW."
    )


def _digital(options: Options, num: int, machine: cost.Machine) -> Any:
    level = options.level if options.level in machine.levels else None
    return cost.search_digital(num, on=machine, values=options.values, level=level)


def _on_chip(options: Options, num: int, chip: cost.Technology) -> cost.Bill:
    return cost.search(options.arrays, num, on=chip, values=options.values, periphery=options.periphery)


def _part(bill: Any, quantity: str) -> Any:
    return bill.latency_s if quantity == "latency" else bill.energy_j


def _print_ratios(options: Options, chip: cost.Technology, machines: Sequence[cost.Machine]) -> list[dict[str, Any]]:
    """Print how many times as much each machine takes, from where on, and what the ratios rest on."""
    rows, found = [], []
    for machine in machines:
        for quantity, marked in MARKED.items():

            def ratio(on: cost.Technology, against: cost.Machine, quantity: str = quantity) -> Any:
                digital, own = _digital(options, options.stored, against), _on_chip(options, options.stored, on)
                return _part(digital, quantity) / _part(own, quantity)

            key = jax.random.key(options.seed)
            line = cost.headline(key, ratio, chip, machine, num_stored=options.stored, num_draws=options.draws)
            spans = {r: _span(options, chip, machine, quantity, r) for r in (1.0, marked)}
            band = f"{line.band.low:.3g} .. {line.band.high:.3g}"
            row = {"machine": machine.name, "of": quantity, "stored": options.stored, "times the chip": line.value}
            reach = {"ahead": spans[1.0], "as reported": f"{marked:g} x {spans[marked]}"}
            rows.append({**row, "5-95 %": band, **reach, "unchecked": len(line.recalled)})
            found.append({**row, "low": line.band.low, "high": line.band.high, "spans": spans, "line": line})
    print_table(rows, title=f"What a machine takes beside the chip, at {options.stored:,} stored prompts")
    print(f"Latency against {machines[0].name}: {found[0]['line']}.")
    return found


def _span(options: Options, chip: cost.Technology, machine: cost.Machine, quantity: str, ratio: float) -> str:
    level = options.level if options.level in machine.levels else None
    spans = cost.break_even(
        options.arrays,
        on=chip,
        machine=machine,
        quantity=quantity,
        ratio=ratio,
        values=options.values,
        level=level,
        periphery=options.periphery,
    )
    ends = [f"from {s.first:,}" + ("" if s.last is None else f" to {s.last:,}") for s in spans]
    return " and ".join(ends) or "never"


def _curves(options: Options, chip: cost.Technology, machines: Sequence[cost.Machine]) -> list[dict[str, Any]]:
    """Return costs against the number of stored prompts, the same draws for all numbers."""
    keys = jax.random.split(jax.random.key(options.seed), 1 + len(machines))
    drawn = [cost.draw(key, one, options.draws) for key, one in zip(keys, [chip, *machines], strict=True)]
    rows = []
    for one, many in zip([chip, *machines], drawn, strict=True):
        price = _on_chip if isinstance(one, cost.Technology) else _digital
        for num in SIZES:
            try:
                plain = price(options, num, one)  # type: ignore[arg-type]
            except ValueError:  # a store that no memory of this machine holds
                break
            spread = jax.vmap(lambda on, n=num, p=price: _both(p(options, n, on)))(many)
            for quantity, values in spread.items():
                low, high = (float(q) for q in jnp.quantile(values, jnp.asarray([0.05, 0.95], jnp.float32)))
                rows.append({"of": one.name, "quantity": quantity, "stored": num, "low": low, "high": high})
                rows[-1]["value"] = float(_part(plain, quantity))
    return rows


def _both(bill: Any) -> dict[str, Any]:
    return {quantity: _part(bill, quantity) for quantity in MARKED}


def _figure(rows: Sequence[dict[str, Any]], quantity: str, chip: str) -> Any:
    factor, unit = UNITS[quantity]
    curves = []
    for name in dict.fromkeys(row["of"] for row in rows):
        own = [row for row in rows if row["of"] == name and row["quantity"] == quantity]
        x = np.array([row["stored"] for row in own], float)
        value, low, high = (factor * np.array([row[part] for row in own]) for part in ("value", "low", "high"))
        curves.append(plots.CostCurve(name, x, value, low, high))
        if name == chip:
            times = MARKED[quantity]
            curves.append(plots.CostCurve(f"{times:g} x {chip}", x, times * value, low, high, dashed=True))
    return plots.cost_curves(curves, xlabel="stored prompts", ylabel=f"{quantity} of one search ({unit})")


def _items(options: Options, chip: cost.Technology) -> Any:
    """Draw the items of the energy at a few numbers of stored prompts, each as a share of its whole."""
    bills = {}
    for num in sorted({100, options.stored, 10_000, 100_000}):
        energy = _on_chip(options, num, chip).energy
        whole = sum(float(value) for value in energy)
        bills[f"{num:,}"] = {name: 100 * float(value) / whole for name, value in energy._asdict().items()}
    return plots.cost_bars(bills, xlabel="share of the energy of one search (%)", ylabel="stored prompts", totals=False)


def _write(
    options: Options,
    bill: cost.Bill,
    chip: cost.Technology,
    machines: Sequence[cost.Machine],
    headlines: Sequence[dict[str, Any]],
    curves: list[dict[str, Any]],
) -> list[Path]:
    first = headlines[0]["line"]
    made: dict[str, Any] = {}
    if options.plots:
        made = {
            "latency.png": plots.png(_figure(curves, "latency", chip.name)),
            "energy.png": plots.png(_figure(curves, "energy", chip.name)),
            "items.png": plots.png(_items(options, chip)),
            "sensitivities.png": plots.png(
                plots.cost_sensitivities(
                    first.sensitivities, xlabel=f"d log (latency of {machines[0].name} / chip) / d log (constant)"
                )
            ),
        }
    about = {
        "command": command_line("cost", options, in_full=True),
        "bill": jax.tree.map(float, {p: getattr(bill, p)._asdict() for p in ("latency", "energy", "area")}),
        "operations": dataclasses.asdict(bill.operations),  # type: ignore[call-overload]
        "ratios": [_about(row) for row in headlines],
        "constants": cost.constant_table(chip, *machines),
    }
    made |= {"curves.csv": files.csv(curves), "cost.json": json.dumps(about, indent=1) + "\n"}
    return [files.write(options.out / name, made[name]) for name in FILES if name in made]


def _about(row: dict[str, Any]) -> dict[str, Any]:
    line = row["line"]
    own = {"recalled": list(line.recalled), "sensitivities": line.sensitivities}
    spans = {f"{ratio:g}": words for ratio, words in row["spans"].items()}
    return {**{name: value for name, value in row.items() if name not in ("line", "spans")}, "spans": spans, **own}
