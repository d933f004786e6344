"""One matrix product in tiles: bytes that move, time, and the best of all tiles, loops and ways to transfer.

A (M, K) and W (K, N) make C (M, N); bits b_a and b_w, a share p of the weights zero. All of it is inferred from what
Edge-LLM says in words and figures, whose scheduler is not public:

    tile (t_m, t_k, t_n): r (t_m t_k b_a / 8 + t_k t_n W / (K N)) + 4 t_m t_n <= near memory, r = 2 with overlap, else 1
    outputs stay:  A ceil(N / t_n) + W ceil(M / t_m) + C b_a / 8
    weights stay:  A ceil(N / t_n) + W + C (8 (ceil(K / t_k) - 1) + b_a / 8)
    inputs stay:   A + W ceil(M / t_m) + C (8 (ceil(K / t_k) - 1) + b_a / 8)      bytes (partial sums take 4)
    time: start + max(bytes / bandwidth, M K N (1 - p) / rate) with overlap, else their sum
"""

from typing import NamedTuple

import numpy as np

from nvcim_jax import checks
from nvcim_jax.cost.machines import Machine, mac_energy, macs_per_s

__all__ = ["STATIONARY", "Gemm", "Tiling", "best_tiling", "sizes", "tile_bytes", "traffic"]

STATIONARY = ("outputs", "weights", "inputs")
"""What stays in the near memory while the innermost loop runs."""


class Gemm(NamedTuple):
    """One product.

    Attributes:
        m: Rows of the inputs.
        k: What is summed over.
        n: Columns of the weights.
        weight_bits: Bits of a weight.
        activation_bits: Bits of an input and of an output.
        sparsity: Share of the weights that are zero, in [0, 1].
    """

    m: int
    k: int
    n: int
    weight_bits: int = 16
    activation_bits: int = 16
    sparsity: float = 0.0


class Tiling(NamedTuple):
    """How a product is cut, and what it takes.

    Attributes:
        tile: (t_m, t_k, t_n).
        stationary: Out of `STATIONARY`.
        overlap: Whether the next tiles come while these are multiplied.
        near: Memory that holds the tiles.
        moved_bytes: Bytes that go between it and the memory behind.
        transfer_s: Seconds they take.
        compute_s: Seconds of the multiplications.
        time_s: Seconds of the product.
        energy_j: Joules of its transfers and multiplications, without what a machine draws at rest.
    """

    tile: tuple[int, int, int]
    stationary: str
    overlap: bool
    near: str
    moved_bytes: float
    transfer_s: float
    compute_s: float
    time_s: float
    energy_j: float


def sizes(gemm: Gemm, sparse: bool) -> tuple[float, float, float]:
    """Return the bytes of A and W, and the numbers of C; zeros are left out of W where the machine knows of them.

    Example:
        >>> sizes(Gemm(10, 20, 30, weight_bits=4, activation_bits=8, sparsity=0.5), sparse=True)  # 2 + 1 bits a weight
        (200.0, 225.0, 300.0)
    """
    p = gemm.sparsity if sparse else 0.0
    weights = gemm.k * gemm.n * (gemm.weight_bits * (1.0 - p) + (p > 0)) / 8
    return gemm.m * gemm.k * gemm.activation_bits / 8, weights, float(gemm.m * gemm.n)


def traffic(gemm: Gemm, tiles: np.ndarray, sparse: bool) -> np.ndarray:
    """Return the bytes moved by each tile (tiles, 3) in each order of `STATIONARY`: (tiles, 3)."""
    a, w, c = sizes(gemm, sparse)
    over_m, over_k, over_n = (-(-size // tiles[:, i]) for i, size in enumerate((gemm.m, gemm.k, gemm.n)))
    out = gemm.activation_bits / 8
    partial = c * (8 * (over_k - 1) + out)
    return np.stack([a * over_n + w * over_m + c * out, a * over_n + w + partial, a + w * over_m + partial], axis=1)


def tile_bytes(gemm: Gemm, tiles: np.ndarray, sparse: bool, overlap: bool) -> np.ndarray:
    """Return the bytes that each tile (tiles, 3) takes in the near memory: (tiles,)."""
    _, w, _ = sizes(gemm, sparse)
    m, k, n = tiles.T
    read = m * k * gemm.activation_bits / 8 + k * n * (w / (gemm.k * gemm.n))
    return (2 if overlap else 1) * read + 4.0 * m * n


def _lengths(size: int) -> np.ndarray:
    """Return the lengths of tiles that are tried: powers of two, thrice such, and the whole."""
    powers = 2 ** np.arange(24)
    every = np.concatenate([powers, 3 * powers, [size]])
    return np.unique(every[every <= size])


def _candidates(gemm: Gemm) -> np.ndarray:
    lengths = [_lengths(size) for size in (gemm.m, gemm.k, gemm.n)]
    return np.stack(np.meshgrid(*lengths, indexing="ij"), axis=-1).reshape(-1, 3)


def best_tiling(gemm: Gemm, on: Machine, far: str) -> Tiling:
    """Return the fastest way to make a product whose operands lie in the memory `far`; of equals, that of least bytes.

    Everything is tried: each nearer memory for the tiles, tiles of 2^i, 3 x 2^i and whole lengths, the three orders,
    with and without overlap.

    Raises:
        ValueError: If the machine multiplies nothing so wide, or no tile fits into any nearer memory.
    """
    where = on.levels.index(far)
    near = on.levels[:where] or on.levels[:1]
    values = {name: float(value) for name, value in on.values.items()}
    rate = float(macs_per_s(on, gemm.weight_bits, gemm.activation_bits))
    sparse = on.exploits_sparsity
    tiles = _candidates(gemm)
    moved = traffic(gemm, tiles, sparse)
    macs = gemm.m * gemm.k * gemm.n * (1.0 - (gemm.sparsity if sparse else 0.0))
    transfer, compute = moved / values[f"{far}_bandwidth"], macs / rate
    found: list[tuple[float, float, int, int, bool, str]] = []
    for level in near:
        for overlap in (True, False):
            fits = tile_bytes(gemm, tiles, sparse, overlap) <= values[f"{level}_size"]
            if fits.any():
                time = np.maximum(transfer, compute) if overlap else transfer + compute
                time = np.where(fits[:, None], time, np.inf)
                order = np.lexsort((moved.ravel(), time.ravel()))[0]
                tile, kept = np.unravel_index(order, time.shape)
                found.append((float(time[tile, kept]), float(moved[tile, kept]), int(tile), int(kept), overlap, level))
    if not found:
        checks.fail("on", "hold a tile of every product", f"{on.name} holds none of {gemm}", "Choose another machine.")
    time_s, bytes_, tile, kept, overlap, level = min(found, key=lambda item: item[:2])
    energy = bytes_ * values[f"{far}_energy"] + macs * float(mac_energy(on, gemm.weight_bits, gemm.activation_bits))
    chosen = tiles[tile]
    return Tiling(
        (int(chosen[0]), int(chosen[1]), int(chosen[2])),
        STATIONARY[kept],
        overlap,
        level,
        bytes_,
        bytes_ / values[f"{far}_bandwidth"],
        compute,
        values["call"] + time_s,
        energy,
    )
