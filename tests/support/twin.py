"""A crossbar in float64 NumPy, written from its equations: no noise, every option, physical array by physical array."""

import dataclasses
from typing import NamedTuple

import numpy as np

from nvcim_jax import crossbar

__all__ = ["Hardware", "Read", "cell_variance", "programmed", "read"]


class Hardware(NamedTuple):
    """What the cells and wires are.

    Attributes:
        on_off_ratio: g_max / g_min.
        kept: Share of each conductance that is left after drift.
        compensated: Whether the outputs of each array are scaled by what its sum has lost.
        ohm: Resistance of a segment of wire, in units of 1 / g_max; None for ideal wires.
    """

    on_off_ratio: float
    kept: float
    compensated: bool
    ohm: float | None


class Read(NamedTuple):
    """Outputs, where rounding decides nothing, and the outputs of every array before conversion.

    Attributes:
        y: Products (vectors, cols).
        sure: Whether all conversions of an output lie away from the middle between two codes.
        seen: What the converters of each (row tile, slice) and column tile see, and so what calibration takes.
    """

    y: np.ndarray
    sure: np.ndarray
    seen: dict[tuple[int, int, int], np.ndarray]


@dataclasses.dataclass
class Layout:
    """Numbers that follow from the options and the matrix."""

    slices: int
    base: float
    levels: float
    largest_code: float
    zero: float
    rows: int
    cols: int
    word_lines: int
    bit_lines: int


def _layout(shape: tuple[int, int], c: crossbar.Config) -> Layout:
    pair = c.mapping == "differential"
    bits = c.cell_bits if c.weight_bits is None else c.weight_bits - (1 if pair else 0)
    slices = 1 if bits is None or c.cell_bits is None else -(-bits // c.cell_bits)
    code = 1.0 if bits is None else 2.0**bits - 1
    levels = 1.0 if bits is None else 2.0 ** (bits if c.cell_bits is None else min(bits, c.cell_bits)) - 1
    zero = 0.0 if pair else 0.5 if bits is None else 2.0 ** (bits - 1)
    largest = code if pair else 0.5 if bits is None else 2.0 ** (bits - 1) - 1
    word, lines = (slices if c.slices == "rows" else 1), (slices if c.slices == "columns" else 1)
    per_column = lines * (2 if pair and c.slices == "columns" else 1)
    references = 1 if c.mapping == "offset" else 0
    room_rows = shape[0] if c.rows is None else c.rows // word
    room_cols = shape[1] if c.cols is None else c.cols // per_column - references
    return Layout(
        slices=slices,
        base=1.0 if slices == 1 else 2.0 ** (c.cell_bits or 0),
        levels=levels,
        largest_code=largest,
        zero=zero,
        rows=room_rows,
        cols=room_cols,
        word_lines=c.rows or shape[0] * word,
        bit_lines=c.cols or shape[1] * per_column + references * lines,
    )


def _rounded(values: np.ndarray, steps: float | None) -> np.ndarray:
    return values if steps is None else np.round(values * steps) / steps


def _unit(w: np.ndarray, c: crossbar.Config) -> tuple[np.ndarray, np.ndarray]:
    """Return weights in units of the largest of their column or matrix, and that scale."""
    scale = np.abs(w).max(axis=0 if c.weight_scale == "column" else None, keepdims=True)
    scale = np.broadcast_to(scale.reshape(1, -1), (1, w.shape[1]))
    return np.divide(w, scale, out=np.zeros_like(w), where=scale > 0), scale[0]


def programmed(w: np.ndarray, c: crossbar.Config, on_off_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Return conductances (slices, halves, rows, cols), and those of a zero weight (slices,)."""
    own = _layout((w.shape[0], w.shape[1]), c)
    unit, _ = _unit(w, c)
    exact = c.weight_bits is None and c.cell_bits is None
    code = _rounded(unit, None if exact else own.largest_code) * own.largest_code
    halves = (
        np.stack([np.maximum(code, 0), np.maximum(-code, 0)]) if c.mapping == "differential" else own.zero + code[None]
    )

    def cells(codes: np.ndarray) -> np.ndarray:
        digits = (
            [np.floor(codes / own.base**s + 1e-9) % own.base for s in range(own.slices)] if own.slices > 1 else [codes]
        )
        g_min = 1 / on_off_ratio
        return g_min + (1 - g_min) * np.stack(digits) / own.levels

    return cells(halves), cells(np.array([own.zero]))[:, 0]


def _transfer(g: np.ndarray, ohm: float) -> np.ndarray:
    """Return I = V T of an array by Kirchhoff's laws at every node."""
    rows, cols = g.shape
    word = np.arange(rows * cols).reshape(rows, cols)
    bit = word + rows * cols
    system, drive = np.zeros((2 * rows * cols,) * 2), np.zeros((2 * rows * cols, rows))

    def between(a: np.ndarray, b: np.ndarray, conductance: np.ndarray | float) -> None:
        for i, j, value in zip(a.ravel(), b.ravel(), np.broadcast_to(conductance, a.shape).ravel(), strict=True):
            system[[i, j], [i, j]] += value
            system[[i, j], [j, i]] -= value

    between(word, bit, g)
    between(word[:, 1:], word[:, :-1], 1 / ohm)
    between(bit[:-1], bit[1:], 1 / ohm)
    system[word[:, 0], word[:, 0]] += 1 / ohm
    drive[word[:, 0], np.arange(rows)] += 1 / ohm
    system[bit[-1], bit[-1]] += 1 / ohm
    return np.linalg.solve(system, drive)[bit[-1]].T / ohm


def _through_wires(
    cells: np.ndarray, references: np.ndarray, own: Layout, c: crossbar.Config, hardware: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the bit lines of one row tile and column tile see; `cells` (slices, halves, rows, cols)."""
    slices, halves, rows, cols = cells.shape
    if hardware.ohm is None:
        return cells, references
    seen, seen_references = np.empty_like(cells), np.empty_like(references)
    together = {"arrays": 1, "rows": slices, "columns": slices}[c.slices]
    per_array = halves if c.slices == "columns" else 1
    for first in range(0, slices, together):
        for half in range(0, halves, per_array):
            array = np.full((own.word_lines, own.bit_lines), 1 / hardware.on_off_ratio)
            places = []
            for s in range(first, first + together):
                for h in range(half, half + per_array):
                    word = np.arange(rows) * slices + s if c.slices == "rows" else np.arange(rows)
                    column = np.append(np.arange(cols), own.cols)  # a reference lies behind the room for columns
                    bit = (column * slices + s) * halves + h if c.slices == "columns" else column
                    array[np.ix_(word, bit[:cols])] = cells[s, h]
                    if c.mapping == "offset":
                        array[word, bit[cols]] = references[s]
                    places.append((s, h, word, bit))
            through = _transfer(array, hardware.ohm)
            for s, h, word, bit in places:
                seen[s, h] = through[np.ix_(word, bit[:cols])]
                if c.mapping == "offset":
                    seen_references[s] = through[word, bit[cols]]
    return seen, seen_references


def _planes(unit: np.ndarray, c: crossbar.Config) -> list[tuple[float, np.ndarray]]:
    """Return what is applied in each cycle, and its digital weight."""
    if c.dac_bits is None:
        return [(1.0, unit)]
    steps = 2.0 ** (c.dac_bits - 1) - 1
    code = np.round(unit * steps)
    if c.dac_bits_per_cycle is None:
        return [(1.0, code / steps)]
    base = 2.0**c.dac_bits_per_cycle
    num = -(-(c.dac_bits - 1) // c.dac_bits_per_cycle)
    digits = [np.sign(code) * (np.floor(np.abs(code) / base**p + 1e-9) % base) for p in range(num)]
    return [(base**p * (base - 1) / steps, digit / (base - 1)) for p, digit in enumerate(digits)]


def _convert(v: np.ndarray, low: np.ndarray, high: np.ndarray, c: crossbar.Config) -> tuple[np.ndarray, np.ndarray]:
    """Return codes in the unit of outputs, and whether they are sure."""
    clipped = np.clip(v, low, high)
    if c.adc_code == "symmetric":
        step, start = high / (2.0 ** (c.adc_bits - 1) - 1), 0.0
    else:
        step, start = (high - low) / (2.0**c.adc_bits - 1), low
    place = (clipped - start) / step
    sure = np.abs(place - np.floor(place) - 0.5) > 1e-3
    return np.round(place) * step + start, sure


def _adc(
    v: dict[str, np.ndarray], bounds: tuple[float, float] | None, used_rows: int, c: crossbar.Config
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Convert the outputs of one column tile; `v` maps the kinds of lines to outputs (vectors, lines)."""
    every = np.concatenate(list(v.values()), axis=1)
    if c.adc_range == "absmax":
        high = np.abs(every).max(axis=1, keepdims=True)
        high = np.where(high > 0, high, 1.0)
        low = -high
    elif c.adc_range == "max":
        low, high = np.array(-float(used_rows)), np.array(float(used_rows))
    else:
        assert bounds is not None
        low, high = np.array(bounds[0]), np.array(bounds[1])
    found = {}
    cols = next(iter(v.values())).shape[1]
    sure = np.ones((every.shape[0], cols), bool)
    for kind, outputs in v.items():
        found[kind], certain = _convert(outputs, low, high, c)
        sure &= certain if certain.shape[1] == cols else certain.all(axis=1, keepdims=True)
    return found, sure


def read(
    x: np.ndarray,
    w: np.ndarray,
    c: crossbar.Config,
    hardware: Hardware,
    dac_max: float | None = None,
    bounds: dict[tuple[int, int, int], tuple[float, float]] | None = None,
) -> Read:
    """Return the product of inputs (vectors, rows) with weights (rows, cols), float64.

    Args:
        x: Inputs.
        w: Weights.
        c: Options.
        hardware: Cells and wires.
        dac_max: Full scale of the inputs where they have one.
        bounds: Range of the conversions of each (row tile, slice, column tile) where they have one.
    """
    own = _layout((w.shape[0], w.shape[1]), c)
    cells, zero = programmed(w, c, hardware.on_off_ratio)
    _, scale = _unit(w, c)
    factor = own.levels / (own.largest_code * (1 - 1 / hardware.on_off_ratio)) * scale
    tile_rows, tile_cols = min(own.rows, w.shape[0]), min(own.cols, w.shape[1])
    y, certain, seen = np.zeros((len(x), w.shape[1])), np.ones((len(x), w.shape[1]), bool), {}
    for t, top in enumerate(range(0, w.shape[0], tile_rows)):
        rows = slice(top, min(top + tile_rows, w.shape[0]))
        part = x[:, rows]
        full = np.full((len(x), 1), dac_max) if dac_max is not None else np.abs(part).max(axis=1, keepdims=True)
        full = np.ones_like(full) if c.dac_bits is None and c.adc_bits is None else np.where(full > 0, full, 1.0)
        planes = _planes(np.clip(part / full, -1, 1) if dac_max is not None else part / full, c)
        now, fresh = [], []
        for left in range(0, w.shape[1], tile_cols):
            block = cells[:, :, rows, left : left + tile_cols]
            reference = np.broadcast_to(zero[:, None], (own.slices, block.shape[2]))
            fresh.append(_through_wires(block, reference, own, c, hardware))
            now.append(_through_wires(block * hardware.kept, reference * hardware.kept, own, c, hardware))
        for s in range(own.slices):
            gain = 1.0
            if hardware.compensated:
                was, is_ = (
                    sum(a[s].sum() + (b[s].sum() if c.mapping == "offset" else 0) for a, b in side)
                    for side in (fresh, now)
                )
                gain = was / is_ if was > 0 and is_ > 0 else 1.0
            for k, (data, reference) in enumerate(now):
                columns = slice(k * tile_cols, k * tile_cols + data.shape[3])
                lines = {"plus": data[s, 0]}
                if c.mapping == "differential":
                    lines["minus"] = data[s, 1]
                elif c.mapping == "offset":
                    lines["minus"] = reference[s][:, None]
                for weight, applied in planes:
                    v = {kind: applied @ g for kind, g in lines.items()}
                    if not (c.adc_before_subtraction and c.mapping != "offset_digital"):
                        v = {"plus": v["plus"] - v.get("minus", 0.0)}
                    seen.setdefault((t, s, k), []).append(np.concatenate([a.ravel() for a in v.values()]))
                    if c.adc_bits is not None:
                        bound = None if bounds is None else bounds[t, s, k]
                        v, sure = _adc(v, bound, part.shape[1], c)
                        certain[:, columns] &= sure
                    out = gain * (v["plus"] - v.get("minus", 0.0))
                    if c.mapping == "offset_digital":
                        out = out - zero[s] * applied.sum(axis=1, keepdims=True)
                    y[:, columns] += weight * own.base**s * full * out
    return Read(y * factor, certain, {place: np.concatenate(parts) for place, parts in seen.items()})


def cell_variance(w: np.ndarray, x: np.ndarray, c: crossbar.Config, on_off_ratio: float, variance) -> np.ndarray:
    """Return Var(y) over chips with ideal converters; `variance` maps conductances to variances of cells."""
    own = _layout((w.shape[0], w.shape[1]), c)
    cells, zero = programmed(w, c, on_off_ratio)
    _, scale = _unit(w, c)
    factor = own.levels / (own.largest_code * (1 - 1 / on_off_ratio)) * scale
    total = np.zeros((len(x), w.shape[1]))
    for s in range(own.slices):
        spread = variance(cells[s]).sum(axis=0)
        if c.mapping == "offset":
            spread = spread + variance(zero[s])
        total += own.base ** (2 * s) * (np.square(x) @ spread)
    return total * factor**2
