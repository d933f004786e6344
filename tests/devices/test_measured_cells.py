"""Devices of measured cells: what is simulated is what was measured, at every level, time and pair of times."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from nvcim_jax import crossbar, data, devices, io
from nvcim_jax.devices.records import Records

LAWS = ("trajectories", "empirical", "student", "gaussian")
TIMES_S = np.array([0.0, 1.0, 100.0, 1e4])
TARGETS_US = np.array([2.0, 11.0, 24.0, 38.0])
SIGMA_US = np.array([[0.3, 0.8, 1.2, 1.5], [0.3, 1.0, 1.5, 2.0], [0.3, 1.1, 1.6, 2.2], [0.3, 0.9, 1.1, 1.4]])
FREEDOM = 5.0


def _measured(seed: int, num_cells: int = 400, *, tails: bool = True) -> Records:
    """Simulate a measurement whose cells wander: heavy tails, and one time correlated with the next."""
    rng = np.random.default_rng(seed)
    shape = len(TARGETS_US), num_cells
    scale = (FREEDOM / (FREEDOM - 2.0)) ** -0.5 if tails else 1.0
    z = np.zeros((*shape, len(TIMES_S)))
    for k in range(len(TIMES_S)):
        fresh = scale * rng.standard_t(FREEDOM, shape) if tails else rng.normal(size=shape)
        z[..., k] = fresh if k < 2 else 0.8 * z[..., k - 1] + 0.6 * fresh
    g_us = TARGETS_US[:, None, None] - 0.4 * np.arange(len(TIMES_S)) + SIGMA_US[:, None, :] * z
    level, cell, time = np.indices(g_us.shape)
    cell = cell + num_cells * level
    return Records(
        level.ravel(), g_us.ravel(), cell.ravel(), TARGETS_US, ("a", "b", "c", "d"), t_s=TIMES_S[time.ravel()]
    )


@pytest.fixture(scope="module")
def fit() -> Any:
    return devices.fit_records(_measured(0), g_max_us=40.0)


@pytest.fixture(scope="module")
def apart() -> Any:
    return devices.fit_records(_measured(1), g_max_us=40.0)


@pytest.fixture(scope="module")
def made(fit: Any) -> dict[str, devices.Device]:
    return {law: devices.from_records(fit, law=law) for law in LAWS}


@jax.jit
def _life(key: jax.Array, g: jax.Array, device: devices.Device) -> jax.Array:
    """Return cells at the times of the records, in microsiemens (times, ...)."""
    cells = devices.program(key, g, device)
    return jnp.stack([devices.drift(cells, t, device).g for t in jnp.asarray(TIMES_S, jnp.float32)]) * device.g_max_us


def _simulated(fit: Any, device: devices.Device, num: int = 20_000) -> list[np.ndarray]:
    targets = jnp.asarray(fit.target_us / fit.g_max_us, jnp.float32)[:, None]
    found = _life(jax.random.key(3), jnp.broadcast_to(targets, (len(fit.labels), num)), device)
    return list(np.moveaxis(np.asarray(found), 0, 2))


def _levels(fit: Any) -> list[np.ndarray]:
    reads = np.where(fit.read, fit.g_us, np.nan)
    return [reads[a:b] for a, b in zip(fit.starts, fit.starts[1:], strict=False)]


def _limit(held: int, fitted: int, tests: int) -> float:
    """Return how far two samples of one distribution are apart, at 5 % over all tests."""
    return float(special.kolmogi(0.05 / tests)) * (1.0 / held + 1.0 / fitted) ** 0.5


def _held_apart(fit: Any, apart: Any, simulated: list[np.ndarray]) -> None:
    """Hold simulated cells against cells that were kept apart: distributions, tails, correlations in time."""
    tests = fit.counts.size
    standard = []
    for reads, cells, counts in zip(_levels(apart), simulated, fit.counts, strict=True):
        for k in range(len(fit.times_s)):
            mine = reads[:, k][np.isfinite(reads[:, k])]
            assert stats.ks_2samp(mine, cells[:, k]).statistic < _limit(len(mine), counts[k], tests)
        standard.append([(g - np.nanmean(g, axis=0)) / np.nanstd(g, axis=0) for g in (reads, cells)])
    held, drawn = (np.concatenate(part) for part in zip(*standard, strict=True))
    for k in range(1, len(fit.times_s)):
        share = np.mean(np.abs(held[np.isfinite(held[:, k]), k]) > 4.0), np.mean(np.abs(drawn[:, k]) > 4.0)
        found = fit.beyond_4[:, k] @ fit.counts[:, k], apart.beyond_4[:, k] @ apart.counts[:, k]
        if min(found) >= 25:  # of fewer cells nothing can be told to a factor of 1.5
            assert 1 / 1.5 < share[1] / share[0] < 1.5
        for earlier in range(k):
            both = np.isfinite(held[:, [earlier, k]]).all(axis=1)
            pair = held[both][:, [earlier, k]]
            found = np.corrcoef(drawn[:, earlier], drawn[:, k])[0, 1]
            # of the product of two standardised numbers: right for heavy tails too
            error = pair.prod(axis=1).std() * (2.0 / len(pair)) ** 0.5
            assert abs(found - np.corrcoef(pair.T)[0, 1]) < 5 * error


def test_trajectories_are_cells_that_were_kept_apart(fit: Any, made: dict[str, devices.Device]) -> None:
    others = devices.fit_records(_measured(1, 2000), g_max_us=40.0)
    _held_apart(fit, others, _simulated(fit, made["trajectories"]))


@pytest.mark.parametrize("law", ["empirical", "student"])
def test_quantiles_are_those_of_cells_that_were_kept_apart(
    law: str, fit: Any, apart: Any, made: dict[str, devices.Device]
) -> None:
    for reads, cells in zip(_levels(apart), _simulated(fit, made[law]), strict=True):
        for k in range(len(TIMES_S)):
            mine = reads[:, k][np.isfinite(reads[:, k])]
            assert stats.ks_2samp(mine, cells[:, k]).statistic < _limit(len(mine), 400, fit.counts.size)


def test_a_gaussian_has_the_moments_and_not_the_tails(fit: Any, made: dict[str, devices.Device]) -> None:
    for level, cells in enumerate(_simulated(fit, made["gaussian"])):
        np.testing.assert_allclose(cells.std(axis=0), fit.sigma_us[level], rtol=0.03)
        z = (cells - cells.mean(axis=0)) / cells.std(axis=0)
        assert (np.abs(z) > 4.0).mean() < 5e-4
    assert fit.beyond_4[:, 1:].mean() > 2e-3


def test_every_measured_cell_is_drawn_as_often_as_any_other(fit: Any, made: dict[str, devices.Device]) -> None:
    cells = _simulated(fit, made["trajectories"], 40_000)[1]
    known = np.sort(_levels(fit)[1][:, 0])
    which = np.abs(cells[:, 0][:, None] - known[None, :]).argmin(axis=1)
    counts = np.bincount(which, minlength=len(known))
    assert stats.chisquare(counts).pvalue > 1e-4
    # and goes the way that cell went: its reads, and nothing between
    followed = _levels(fit)[1][np.argsort(_levels(fit)[1][:, 0])]
    np.testing.assert_allclose(cells, followed[which], atol=2e-4)


@pytest.mark.slow
def test_between_two_times_a_cell_lies_on_the_line_in_log_time(fit: Any, made: dict[str, devices.Device]) -> None:
    device = made["trajectories"]
    cells = devices.program(jax.random.key(1), jnp.full(50, 24.0 / 40.0), device)
    at = {t: np.asarray(devices.drift(cells, t, device).g) for t in (0.0, 0.5, 1.0, 10.0, 100.0, 1e4)}
    np.testing.assert_allclose(at[10.0], (at[1.0] + at[100.0]) / 2, atol=1e-6)
    np.testing.assert_allclose(at[0.5], (at[0.0] + at[1.0]) / 2, atol=1e-6)
    np.testing.assert_array_equal(at[0.0], cells.g)
    with pytest.raises(ValueError, match=r"`t_s` must lie in \[0, 10000\.1\] s, but is 20000 s\. Nothing is known"):
        devices.drift(cells, 2e4, device)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("g", [0.6, 0.43])
def test_moments_are_exact_on_a_level_and_between(law: str, g: float, fit: Any, assert_moments: Any) -> None:
    for t_s in (0.0, 30.0):
        device = devices.from_records(fit, law=law, t_s=t_s, name="")
        mean, variance = devices.program_moments(g, device)
        cells = jax.jit(devices.program)(jax.random.key(5), jnp.full(200_000, g), device)
        assert_moments(cells.g, mean, variance)


def test_at_a_time_for_good_is_drifted_there(fit: Any, made: dict[str, devices.Device]) -> None:
    g = jnp.linspace(0.05, 0.95, 5000)
    for law in LAWS:
        now = devices.from_records(fit, law=law, t_s=100.0)
        later = devices.drift(devices.program(jax.random.key(2), g, made[law]), 100.0, made[law])
        np.testing.assert_allclose(devices.program(jax.random.key(2), g, now).g, later.g, atol=2e-6)
        with pytest.raises(ValueError, match="have drift"):
            devices.drift(devices.program(jax.random.key(2), g, now), 1.0, now)


def test_fitted_numbers_are_within_their_standard_errors() -> None:
    from nvcim_jax.devices.four_laws import student_fits

    scores: dict[str, list[float]] = {"mean": [], "sigma": [], "scale": [], "freedom": []}
    truth = TARGETS_US[:, None] - 0.4 * np.arange(len(TIMES_S))
    for seed in range(4):
        found = devices.fit_records(_measured(seed, 1500), g_max_us=40.0)
        scores["mean"] += ((found.mean_us - truth) / found.mean_error_us).ravel().tolist()
        gaussian = devices.fit_records(_measured(seed, 1500, tails=False), g_max_us=40.0)
        scores["sigma"] += ((gaussian.sigma_us - SIGMA_US) / gaussian.sigma_error_us).ravel().tolist()
        for sigma, times in zip(SIGMA_US, student_fits(found), strict=True):
            for k in (0, 1):  # later times are sums, and no Student's any more
                scale = sigma[k] * (FREEDOM / (FREEDOM - 2.0)) ** -0.5
                scores["scale"].append((times[k].scale - scale) / times[k].scale_error)
                scores["freedom"].append(
                    (np.log(times[k].freedom) - np.log(FREEDOM)) * times[k].freedom / times[k].freedom_error
                )
    for name, score in scores.items():
        assert np.abs(score).max() < 4.5, name
        assert 0.6 < np.std(score) < 1.4, name


def test_repeats_part_cells_from_programmings() -> None:
    rng = np.random.default_rng(4)
    num_cells, repeats = 300, 8
    level, cell, cycle = (a.ravel() for a in np.indices((2, num_cells, repeats)))
    offset = 0.8 * rng.normal(size=num_cells)
    g_us = np.array([5.0, 30.0])[level] + offset[cell] + 0.5 * rng.normal(size=level.size)
    for given in (cycle, None):
        records = Records(level, g_us, cell, None, ("0", "1"), cycle=given)
        found = devices.fit_records(records, g_max_us=40.0)
        assert abs(found.d2d_sigma_us - 0.8) < 5 * found.d2d_error_us
        np.testing.assert_allclose(found.sigma_us[:, 0], 0.5, rtol=0.06)
        device = devices.from_records(found)
        np.testing.assert_allclose(device.d2d_sigma * 40.0, found.d2d_sigma_us, rtol=1e-5)
        assert device.drift is None


def test_what_looks_wrong_is_counted_and_follows_the_rule() -> None:
    records = _measured(0)
    g_us = records.g_us.copy()
    g_us[:3], g_us[-2:] = 99.0, -30.0
    few = np.concatenate([records.level, [4, 4]])
    odd = records._replace(
        level=few,
        g_us=np.concatenate([g_us, [20.0, 21.0]]),
        cell=np.concatenate([records.cell, [9998, 9999]]),
        t_s=np.concatenate([records.t_s, [0.0, 0.0]]),
        target_us=None,
        labels=("a", "b", "c", "d", "e"),
    )
    found = devices.fit_records(odd, g_max_us=36.0)
    assert found.left_out["reads beyond -0.1 to 1.5 of g_max"] == 5
    assert found.left_out["cells of levels with fewer than 10"] == 2
    assert found.left_out["cells of levels beyond 0 to g_max"] == 400
    assert found.labels == ("a", "b", "c")
    assert found.kept["reads filled in between those of their cell"] == 3
    only = devices.fit_records(odd, g_max_us=40.0, levels=["d", "b"])
    assert only.labels == ("b", "d")
    with pytest.raises(ValueError, match=r"hold 10 cells of each level, but 2 are of 'e'"):
        devices.fit_records(odd, g_max_us=40.0, levels=["a", "e"])
    with pytest.raises(ValueError, match=r"`g_max_us` must lie near the greatest conductances, .* 954 of it"):
        devices.fit_records(_measured(0), g_max_us=0.04)


def test_reads_that_are_missing_keep_the_distribution_of_the_others() -> None:
    records = _measured(2, 1000)
    rng = np.random.default_rng(0)
    kept = (records.t_s != 100.0) | (rng.uniform(size=records.t_s.size) < 0.4)
    thinned = records._replace(**{n: getattr(records, n)[kept] for n in ("level", "g_us", "cell", "t_s")})
    found, whole = (devices.fit_records(r, g_max_us=40.0) for r in (thinned, records))
    _held_apart(found, whole, _simulated(found, devices.from_records(found)))


def test_irregular_times_are_gathered() -> None:
    rng = np.random.default_rng(0)
    records = _measured(0)
    jitter = np.where(records.t_s > 0, records.t_s * rng.uniform(0.9, 1.1, records.t_s.size), 0.0)
    found = devices.fit_records(records._replace(t_s=jitter), g_max_us=40.0)
    np.testing.assert_allclose(found.times_s, TIMES_S, rtol=0.02)
    anywhere = np.where(records.t_s > 0, 10 ** rng.uniform(0, 4, records.t_s.size), 0.0)
    found = devices.fit_records(records._replace(t_s=anywhere), g_max_us=40.0)
    assert len(found.times_s) <= 15
    assert np.isfinite(found.g_us).all()
    nominal = devices.fit_records(records._replace(t_s=jitter), g_max_us=40.0, times_s=[0.0, 1.0, 100.0, 1e4])
    np.testing.assert_array_equal(nominal.times_s, TIMES_S)


@pytest.mark.parametrize("law", LAWS)
def test_one_level_works(law: str) -> None:
    records = _measured(0)
    mine = records.level == 1
    one = records._replace(
        level=np.zeros(mine.sum(), int),
        g_us=records.g_us[mine],
        cell=records.cell[mine],
        t_s=records.t_s[mine],
        target_us=None,
        labels=("b",),
    )
    device = devices.from_records(one, g_max_us=40.0, law=law)
    assert device.num_levels is None
    cells = devices.program(jax.random.key(0), jnp.full(20_000, 11.0 / 40.0), device)
    np.testing.assert_allclose(devices.drift(cells, 100.0, device).g.std() * 40.0, 1.5, rtol=0.15)


def test_one_record_and_one_time() -> None:
    single = Records(np.array([0, 1]), np.array([5.0, 30.0]), np.array([0, 1]), None, ("0", "1"))
    with pytest.raises(ValueError, match="hold a level of 10 cells within g_max, but hold none: 2 cells of levels"):
        devices.from_records(single, g_max_us=40.0)
    device = devices.from_records(single, g_max_us=40.0, min_records=1)
    cells = devices.program(jax.random.key(0), jnp.full(10, 0.125), device)
    np.testing.assert_allclose(cells.g, 0.125, rtol=1e-6)
    assert device.drift is None
    for law in ("gaussian", "student"):
        with pytest.raises(ValueError, match=r"hold 2 reads of each level and time .* there is 1 of level '0' at 0 s"):
            devices.from_records(single, g_max_us=40.0, min_records=1, law=law)


def test_wrong_arguments_are_named(fit: Any) -> None:
    nameless = _measured(0)._replace(cell=None)
    assert "empirical" in devices.from_records(nameless, g_max_us=40.0).name
    with pytest.raises(ValueError, match="name the cell of each read for law='trajectories'"):
        devices.from_records(nameless, g_max_us=40.0, law="trajectories")
    with pytest.raises(ValueError, match=r"`law` must be one of .* Did you mean 'gaussian'"):
        devices.from_records(fit, law="gausian")
    with pytest.raises(TypeError, match="has no option `g_max`"):
        devices.from_records(fit, g_max=40.0)
    with pytest.raises(ValueError, match="`g_max_us` must be given with records"):
        devices.from_records(nameless)
    with pytest.raises(ValueError, match=r"is a fit\. Call fit_records again"):
        devices.from_records(fit, min_records=3)
    with pytest.raises(ValueError, match=r"`t_s` must lie in \[0, 1.* Nothing is known later"):
        devices.from_records(fit, t_s=1e6)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_sweeps_share_a_trace_and_chips_share_the_table(law: str, made: dict[str, devices.Device]) -> None:
    device, traces = made[law].replace(name=""), []

    @jax.jit
    def one(key: jax.Array, t_s: jax.Array, device: devices.Device) -> jax.Array:
        traces.append(1)
        cells = devices.program(key, jnp.linspace(0.1, 0.9, 6), device)
        return devices.drift(cells, t_s, device).g

    def keys() -> jax.Array:
        return jax.random.split(jax.random.key(0), 3)

    alone = [
        one(key, jnp.float32(5.0), device.replace(sigma=s)) for key, s in zip(keys(), (0.5, 1.0, 2.0), strict=True)
    ]
    one(jax.random.key(1), jnp.float32(50.0), device.replace(g_max_us=20.0))
    assert len(traces) == 1
    sigmas = jnp.asarray([0.5, 1.0, 2.0])
    mapped = jax.vmap(lambda key, sigma: one(key, jnp.float32(5.0), device.replace(sigma=sigma)))(keys(), sigmas)
    np.testing.assert_allclose(mapped, jnp.stack(alone), atol=1e-6)
    config = crossbar.Config(rows=8)
    axes = crossbar.chip_axes(crossbar.program(jax.random.key(2), jnp.ones((4, 2)), device, config=config))
    many = jax.vmap(lambda key: crossbar.program(key, jnp.ones((4, 2)), device, config=config), out_axes=axes)(keys())
    assert jax.tree.leaves(many.device)[-1].shape == jax.tree.leaves(device)[-1].shape
    assert many.cells.g.shape[0] == 3


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_gradients_are_those_of_differences(law: str, fit: Any) -> None:
    device = devices.from_records(fit, law=law)
    g = jnp.full(4000, 0.43)

    def of(sigma: jax.Array, t_s: jax.Array, target: jax.Array) -> jax.Array:
        own = device.replace(sigma=sigma)
        cells = devices.program(jax.random.key(0), g + target, own)
        return jnp.mean(devices.drift(cells, t_s, own).g)

    at = (jnp.float32(1.0), jnp.float32(30.0), jnp.float32(0.0))
    slopes = jax.grad(of, argnums=(0, 1, 2))(*at)
    for i, step in ((0, 0.05), (1, 1.0)):
        up, down = ([v + sign * step * (j == i) for j, v in enumerate(at)] for sign in (1.0, -1.0))
        np.testing.assert_allclose(slopes[i], (of(*up) - of(*down)) / (2 * step), rtol=0.02, atol=2e-5)
    # to the target: that of the mean, where cells are not quantiles
    mean = [fit.mean_us[:, 2] / 40.0, TARGETS_US / 40.0]
    expected = (mean[0][2] - mean[0][1]) / (mean[1][2] - mean[1][1])
    np.testing.assert_allclose(slopes[2], expected, atol=0.02)


@pytest.mark.slow
def test_output_sampling_is_refused_and_moments_are_not(fit: Any) -> None:
    x, weights = jnp.ones((4, 20)), jnp.linspace(-1.0, 1.0, 60).reshape(20, 3)
    for law in ("trajectories", "empirical", "student"):
        target = crossbar.encode(weights, devices.from_records(fit, law=law, t_s=1.0), config=crossbar.Config())
        for sampling in ("pair", "output_joint", "output_marginal", "moment_matched"):
            with pytest.raises(
                ValueError, match=r"noise that is not Gaussian\. Use sampling='device'; product_moments"
            ):
                crossbar.sample(jax.random.key(0), x, target, sampling=sampling)
    mean, variance = crossbar.product_moments(x[0], target)
    draw = jax.jit(jax.vmap(lambda key: crossbar.sample(key, x[:1], target)[0][0]))
    y = draw(jax.random.split(jax.random.key(1), 4000))
    np.testing.assert_allclose(y.mean(axis=0), mean, atol=5 * float(jnp.sqrt(variance.max() / 4000)))
    np.testing.assert_allclose(y.var(axis=0), variance, rtol=0.15)
    gaussian = crossbar.encode(weights, devices.from_records(fit, law="gaussian", t_s=1.0), config=crossbar.Config())
    crossbar.sample(jax.random.key(0), x, gaussian, sampling="output_marginal")
    cut = devices.from_records(fit, t_s=1.0, clip=True)
    with pytest.raises(ValueError, match="have moments in closed form"):
        devices.program_moments(0.5, cut)


def test_write_verify_leaves_the_measured_first_reads(fit: Any, made: dict[str, devices.Device]) -> None:
    device = made["trajectories"].replace(sigma=6.0)  # as written once, before any verification
    verified = jnp.arange(4000).reshape(100, 40) % 2 == 0
    config = crossbar.Config(rows=100, cols=40)
    chip = crossbar.program_verified(jax.random.key(0), jnp.ones((100, 40)), verified, device, 1.0, config=config)
    g = np.asarray(chip.cells.g[0, 0]) * 40.0
    first = _levels(fit)[-1][:, 0] + 40.0 - TARGETS_US[-1]
    assert stats.ks_2samp(g[np.asarray(verified)], first).statistic < _limit(2000, len(first), 1)
    assert g[~np.asarray(verified)].std() > 4 * first.std()
    # and relax as measured, whatever they were programmed to
    later = np.asarray(crossbar.drift(chip, 1e4).cells.g - chip.cells.g)[0, 0] * 40.0
    change = np.diff(_levels(fit)[-1][:, [0, 3]], axis=1)
    np.testing.assert_allclose(later[np.asarray(verified)].std(), change.std(), rtol=0.1)


def test_a_stuck_cell_does_not_move_and_the_product_of_a_chip_is_that_of_sample(fit: Any) -> None:
    device = devices.from_records(fit, stuck_on=0.2)
    cells = devices.program(jax.random.key(0), jnp.full(5000, 0.5), device)
    later = devices.drift(cells, 1e4, device)
    stuck = np.asarray(cells.fault) > 0
    assert 0.15 < stuck.mean() < 0.25
    np.testing.assert_array_equal(np.asarray(later.g)[stuck], 1.0)
    plain = devices.from_records(fit)
    target = crossbar.encode(jnp.ones((20, 3)), plain, config=crossbar.Config(rows=8))
    write, read = jax.random.split(jax.random.key(1))
    x = jnp.linspace(0.0, 1.0, 20)[None]
    y, _ = crossbar.sample(jax.random.key(1), x, target)
    again, _ = crossbar.matmul(read, x, crossbar.write(write, target))
    np.testing.assert_allclose(y, again, rtol=1e-6)


def test_a_device_comes_back_from_its_file(made: dict[str, devices.Device], tmp_path: Path) -> None:
    for device in (*made.values(), devices.get("PCM", stuck_on=0.1), devices.get("FeFET6")):
        found = io.load_device(io.save_device(tmp_path / "a.device.npz", device))
        assert jax.tree.structure(found) == jax.tree.structure(device)
        jax.tree.map(np.testing.assert_array_equal, found, device)

    def bow(g: jax.Array) -> jax.Array:
        return 0.1 * g

    bowed = devices.get("Gaussian").replace(programming=devices.Law(sigma=bow))
    with pytest.raises(ValueError, match=r"`device` must use the library's own laws .* uses 'bow'"):
        io.save_device(tmp_path / "a.npz", bowed)
    (tmp_path / "b.npz").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"must be a device file, but .*b\.npz is none, or broken. Write one with"):
        io.load_device(tmp_path / "b.npz")


@pytest.mark.slow
@pytest.mark.skipif(data.data_folder("rram_relaxation") is None, reason="no folder rram_relaxation")
def test_measured_rram_is_simulated_as_it_was_measured() -> None:
    folder = data.data_folder("rram_relaxation")
    assert folder is not None
    columns = {"cell": 0, "t_s": 1, "g": 3, "level": 5}
    records = devices.read_records(folder / "techC_relaxation.tsv.gz", columns=columns, units={"g": "S"})
    mine = np.random.default_rng(1).permutation(records.cell.max() + 1) % 2 == 0

    def part(own: np.ndarray) -> Records:
        kept = own[records.cell]
        return records._replace(**{n: getattr(records, n)[kept] for n in ("level", "g_us", "cell", "t_s")})

    fit = devices.fit_records(part(mine), g_max_us=40.0)
    assert len(fit.labels) == 32
    assert len(fit.times_s) == 6
    apart = devices.fit_records(part(~mine), g_max_us=40.0, levels=fit.labels, times_s=fit.times_s.tolist())
    device = devices.from_records(fit)
    targets = jnp.asarray(fit.target_us / 40.0, jnp.float32)[:, None]
    cells = devices.program(jax.random.key(0), jnp.repeat(targets, 20_000, axis=1), device)
    made = np.stack([np.asarray(devices.drift(cells, float(t), device).g) * 40.0 for t in fit.times_s], axis=2)
    _held_apart(fit, apart, list(made))
