"""Resistive wires against a nodal analysis of the whole network by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from nvcim_jax import crossbar, devices

RNG = np.random.default_rng(4)


def _nodal_currents(g: np.ndarray, v: np.ndarray, row: float, col: float) -> np.ndarray:
    """Return the currents into the sense amplifiers by Kirchhoff's laws at every node, in float64."""
    rows, cols = g.shape
    word = np.arange(rows * cols).reshape(rows, cols)
    bit = word + rows * cols
    system, source = lil_matrix((2 * rows * cols, 2 * rows * cols)), np.zeros(2 * rows * cols)

    def resistor(a: int, b: int | None, conductance: float, voltage: float = 0.0) -> None:
        system[a, a] += conductance
        if b is None:
            source[a] += conductance * voltage
            return
        system[b, b] += conductance
        system[a, b] -= conductance
        system[b, a] -= conductance

    for i in range(rows):
        for j in range(cols):
            resistor(word[i, j], bit[i, j], g[i, j])
            resistor(word[i, j], word[i, j - 1] if j else None, 1 / row, v[i])
            resistor(bit[i, j], bit[i + 1, j] if i + 1 < rows else None, 1 / col)
    potential = spsolve(system.tocsr(), source)
    return potential[bit[-1]] / col


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 3), (3, 8), (16, 16)])
@pytest.mark.parametrize(("row", "col"), [(1e-3, 1e-3), (0.02, 0.1), (0.3, 1e-5)])
def test_transfer_equals_nodal_analysis(rows: int, cols: int, row: float, col: float) -> None:
    g = RNG.uniform(0, 1, (rows, cols))
    g[0, 0] = 0.0
    v = RNG.uniform(-1, 1, rows)
    transfer = crossbar.transfer_matrix(jnp.asarray(g, jnp.float32), jnp.asarray(row), jnp.asarray(col))
    np.testing.assert_allclose(v @ np.asarray(transfer), _nodal_currents(g, v, row, col), rtol=2e-5, atol=1e-6)


def test_no_resistance_is_no_drop() -> None:
    g = jnp.asarray(RNG.uniform(0, 1, (9, 5)), jnp.float32)
    zero = jnp.asarray(0.0)
    np.testing.assert_array_equal(crossbar.transfer_matrix(g, zero, zero), g)


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences() -> None:
    g = jnp.asarray(RNG.uniform(0.2, 1, (5, 4)), jnp.float32)
    direction = jnp.asarray(RNG.standard_normal((5, 4)), jnp.float32)

    def loss(g: jax.Array, r: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(crossbar.transfer_matrix(g, r, r)))

    r = jnp.asarray(0.05)
    slope_g, slope_r = jax.grad(loss, argnums=(0, 1))(g, r)
    step = 1e-2
    numeric = (loss(g + step * direction, r) - loss(g - step * direction, r)) / (2 * step)
    assert float((slope_g * direction).sum()) == pytest.approx(float(numeric), rel=1e-2)
    numeric = (loss(g, r + 0.005) - loss(g, r - 0.005)) / 0.01
    assert float(slope_r) == pytest.approx(float(numeric), rel=1e-2)


@pytest.mark.parametrize("slices", ["arrays", "rows", "columns"])
def test_cells_meet_the_wires_of_the_array_they_lie_in(slices: str) -> None:
    """A product through wires, put together by hand from nodal analyses of the physical arrays."""
    device = devices.get("ideal", g_max_us=50.0)
    ohm = 40.0
    config = crossbar.Config(rows=12, cols=12, weight_bits=3, cell_bits=1, slices=slices)
    w = RNG.integers(-3, 4, (5, 2))
    w[0, 0] = 3
    x = RNG.uniform(-1, 1, 5)
    chip = crossbar.program(jax.random.key(0), w, device, config=config, wires=crossbar.Wires(row_ohm=ohm, col_ohm=ohm))
    y, _ = crossbar.matmul(jax.random.key(1), x, chip)
    r = ohm * 50e-6

    def currents_of(used: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the currents of an array of 12 x 12 cells of which only these are used; the others are erased."""
        whole = np.zeros((12, 12))
        whole[: used.shape[0], : used.shape[1]] = used
        return _nodal_currents(whole, np.concatenate([v, np.zeros(12 - len(v))]), r, r)[: used.shape[1]]

    bits = np.stack(
        [np.stack([np.maximum(s * w, 0) >> k & 1 for s in (1, -1)]) for k in (0, 1)]
    )  # slice, half, row, col
    total = np.zeros(2)
    for k in (0, 1):
        sign = np.array([1.0, -1.0])
        if slices == "arrays":
            currents = np.stack([currents_of(bits[k, h], x) for h in (0, 1)])
        elif slices == "rows":  # rows of one weight together, only those of this slice driven
            v = np.stack([x * (s == k) for s in (0, 1)], axis=1).ravel()
            stacked = bits.transpose(1, 2, 0, 3).reshape(2, 10, 2)
            currents = np.stack([currents_of(stacked[h], v) for h in (0, 1)])
        else:  # bit lines of one weight together: low plus, low minus, high plus, high minus
            flat = bits.transpose(2, 3, 0, 1).reshape(5, 8)
            currents = currents_of(flat, x).reshape(2, 2, 2)[:, k].T
        total += 2.0**k * sign @ currents
    np.testing.assert_allclose(y, total, rtol=1e-4, atol=1e-5)
    assert np.abs(total - x @ w).max() > 1e-3  # the wires matter


def test_one_solve_serves_every_read_and_read_noise_solves_its_own() -> None:
    wires = crossbar.Wires(row_ohm=20.0, col_ohm=20.0)
    config = crossbar.Config()
    w = RNG.uniform(-1, 1, (6, 3))
    quiet = devices.get("Gaussian", sigma=0.05)
    chip = crossbar.program(jax.random.key(0), w, quiet, config=config, wires=wires)
    assert chip.transfer is not None
    first, _ = crossbar.matmul(jax.random.key(1), np.eye(6), chip)
    stored = crossbar.read_back(jax.random.key(2), chip)
    np.testing.assert_allclose(first, stored, atol=1e-6)
    noisy = devices.get("Gaussian", sigma=0.05, read=devices.Read(sigma=0.05))
    chip = crossbar.program(jax.random.key(0), w, noisy, config=config, wires=wires)
    reads = [crossbar.matmul(jax.random.key(k), np.eye(6), chip)[0] for k in (1, 2)]
    assert np.abs(reads[0] - reads[1]).max() > 1e-3
