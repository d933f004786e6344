"""Measured devices: fits against known truths, files with every mistake named."""

from pathlib import Path

import numpy as np
import pytest

from nvcim_jax import devices
from nvcim_jax.devices.programming import mean_of

TARGETS = np.array([2.0, 14.0, 27.0, 40.0])
MEANS = np.array([2.5, 14.0, 26.0, 38.5])
SIGMAS = np.array([0.5, 2.0, 1.6, 0.8])


def _records(seed: int, num_cells: int, repeats: int, d2d_us: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level, conductance and cell of every record, in a shuffled order."""
    rng = np.random.default_rng(seed)
    cell, level = (axis.ravel() for axis in np.indices((num_cells, 4, repeats))[:2])
    g_us = MEANS[level] + d2d_us * rng.normal(size=num_cells)[cell] + SIGMAS[level] * rng.normal(size=cell.size)
    order = rng.permutation(cell.size)
    return level[order], g_us[order], cell[order]


def test_a_table_becomes_a_device_that_programs_by_it(key, assert_moments) -> None:
    levels, mean, sigma = [0.0, 0.5, 1.0], [0.02, 0.5, 0.97], [0.01, 0.05, 0.03]
    device = devices.from_table(levels, mean, sigma, g_max_us=40.0, clip=False, name="chip 7", citation="own data")
    assert (device.name, device.citation, device.num_levels, float(device.sigma)) == ("chip 7", "own data", 3, 1.0)
    g = np.broadcast_to(np.float32(levels), (50_000, 3))
    assert_moments(devices.program(key, g, device).g, mean, np.square(sigma))
    np.testing.assert_allclose(mean_of(np.float32(0.75), device), (0.5 + 0.97) / 2, rtol=1e-6)
    doubled = device.replace(sigma=2.0)
    np.testing.assert_allclose(devices.sigma_of(g[0], doubled), 2 * np.float32(sigma), rtol=1e-6)
    unshifted = devices.from_table(levels, None, sigma, g_max_us=40.0)
    np.testing.assert_array_equal(mean_of(g[0], unshifted), levels)


def test_a_fit_is_right_within_its_own_standard_errors() -> None:
    scores = []
    for seed in range(40):
        level, g_us, _ = _records(seed, num_cells=1, repeats=100, d2d_us=0.0)
        fit = devices.fit_table(level, g_us)
        np.testing.assert_array_equal(fit.counts, 100)
        scores.append([(fit.mean_us - MEANS) / fit.mean_error_us, (fit.sigma_us - SIGMAS) / fit.sigma_error_us])
    scores = np.array(scores).reshape(40, 2, 4).swapaxes(0, 1).reshape(2, -1)
    assert np.abs(scores).max() < 5
    # the errors themselves: 160 scores of unit variance; the sigma of 100 records is biased by 1/4n of itself
    assert np.all(np.abs(scores.mean(axis=1)) < 5 / np.sqrt(160) + 0.04)
    assert np.all(np.abs(scores.var(axis=1) - 1) < 5 * np.sqrt(2 / 160))


@pytest.mark.parametrize("d2d_us", [0.0, 1.5])
def test_offsets_of_cells_come_apart_from_the_noise_of_programming(d2d_us: float) -> None:
    estimates, sigmas, scores = [], [], []
    for seed in range(40):
        level, g_us, cell = _records(seed, num_cells=30, repeats=5, d2d_us=d2d_us)
        fit = devices.fit_table(level, g_us, cell=cell)
        estimates.append(fit.d2d_sigma_us**2)
        sigmas.append(fit.sigma_us**2)
        scores.append((fit.mean_us - MEANS) / fit.mean_error_us)
        if d2d_us:
            assert abs(fit.d2d_sigma_us - d2d_us) < 5 * fit.d2d_error_us
    np.testing.assert_allclose(np.mean(sigmas, axis=0), SIGMAS**2, rtol=5 * np.sqrt(2 / (40 * 120)))
    # variance of a variance of 30 cells; without offsets the square is cut at 0 and stays within its noise
    noise = np.mean(SIGMAS**2) / 20
    error = (d2d_us**2 + noise) * np.sqrt(2 / 29) / np.sqrt(40)
    assert abs(np.mean(estimates) - d2d_us**2) < 5 * error
    if d2d_us:
        plain = devices.fit_table(level, g_us)
        np.testing.assert_allclose(plain.sigma_us**2, SIGMAS**2 + d2d_us**2, rtol=0.7)
        assert plain.d2d_sigma_us is None
        assert np.abs(scores).max() < 5


@pytest.mark.parametrize("cells_a_level", [2, 3, 10])
def test_offsets_are_right_where_each_cell_knows_one_level(cells_a_level: int) -> None:
    """Then the mean of a level takes that of its cells' offsets: a degree of freedom for each level."""
    found, scores = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        cell = np.repeat(np.arange(4 * cells_a_level), 5)
        level = cell % 4
        offset = 1.5 * rng.normal(size=4 * cells_a_level)
        g_us = MEANS[level] + offset[cell] + SIGMAS[level] * rng.normal(size=cell.size)
        fit = devices.fit_table(level, g_us, cell=cell)
        found.append(fit.d2d_sigma_us**2)
        scores.append(fit.mean_us - MEANS)
    expected = np.sqrt((1.5**2 + SIGMAS**2 / 5) / cells_a_level)  # of a level's mean
    np.testing.assert_allclose(np.std(scores, axis=0), expected, rtol=0.25)
    if cells_a_level == 10:
        np.testing.assert_allclose(fit.mean_error_us, expected, rtol=0.35)
    assert abs(np.mean(found) - 1.5**2) < 5 * np.std(found) / np.sqrt(200)


def test_one_cell_a_level_tells_nothing_of_offsets() -> None:
    level = np.repeat(np.arange(4), 10)
    fit = devices.fit_table(level, MEANS[level] + np.random.default_rng(0).normal(size=40), cell=level)
    assert (fit.d2d_sigma_us, fit.d2d_error_us) == (0.0, np.inf)


def test_an_unbalanced_fit_pools_the_groups_that_repeat() -> None:
    level = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    cell = np.array([7, 7, 7, 9, 9, 7, 7, 9, 3])
    g_us = np.array([1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 12.0, 20.0, 30.0])
    fit = devices.fit_table(level, g_us, cell=cell, min_records=4)
    # level 0: squares 2 of three records and 2 of two, on 2 + 1 degrees of freedom; level 1: 2 on 1
    np.testing.assert_allclose(fit.sigma_us**2, [4 / 3, 2.0])
    np.testing.assert_allclose(fit.sigma_error_us, fit.sigma_us / np.sqrt([6.0, 2.0]))


def test_a_fitted_device_has_the_moments_of_the_records(key, assert_moments) -> None:
    level, g_us, cell = _records(0, num_cells=60, repeats=20, d2d_us=1.5)
    fit = devices.fit_table(level, g_us, cell=cell, target_us=TARGETS)
    device = devices.from_records(fit, g_max_us=40.0, clip=False)
    np.testing.assert_allclose(device.programming.levels.conductance, TARGETS / 40, rtol=1e-6)
    np.testing.assert_allclose(device.on_off_ratio, 20.0)
    np.testing.assert_allclose(device.d2d_sigma * 40, fit.d2d_sigma_us, rtol=1e-6)
    g = np.broadcast_to(np.float32(TARGETS / 40), (50_000, 4))
    variance = (fit.sigma_us**2 + fit.d2d_sigma_us**2) / 1600
    assert_moments(devices.program(key, g, device).g, fit.mean_us / 40, variance)
    assert devices.from_records(fit, g_max_us=40.0, d2d_sigma=0.5).d2d_sigma == 0.5


def _write(folder: Path, text: str) -> Path:
    file = folder / "chip.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_records_in_a_file_give_the_device_of_the_fit(tmp_path: Path) -> None:
    level, g_us, cell = _records(1, num_cells=6, repeats=4, d2d_us=1.0)
    rows = [f"{c}, {k},{TARGETS[k]},{g!r},x" for c, k, g in zip(cell, level, g_us.tolist(), strict=True)]
    file = _write(tmp_path, "\ufeff# probe station 3\ncell,level,target_us,g_us,note\n" + "\n".join(rows) + "\n\n")
    records = devices.read_records(file)
    np.testing.assert_array_equal(records.level, level)
    np.testing.assert_array_equal(records.g_us, g_us)
    device = devices.from_csv(file, g_max_us=40.0, drift=devices.Drift(mean=0.05))
    fit = devices.fit_table(level, g_us, cell=cell, target_us=TARGETS)
    np.testing.assert_allclose(device.programming.levels.sigma * 40, fit.sigma_us, rtol=1e-6)
    np.testing.assert_allclose(device.programming.levels.mean * 40, fit.mean_us, rtol=1e-6)
    assert device.name == "chip"
    assert device.drift is not None


def test_a_table_in_a_file_gives_its_device_in_any_order(tmp_path: Path) -> None:
    file = _write(tmp_path, "sigma_us,level,mean_us\n0.8,2,39\n0.2,0,1\n1.0,1,20\n")
    device = devices.from_csv(file, g_max_us=40.0, on_off_ratio=40.0)
    np.testing.assert_allclose(device.programming.levels.sigma * 40, [0.2, 1.0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(device.programming.levels.conductance, [0.025, 0.5125, 1.0], rtol=1e-6)
    targets = _write(tmp_path, "level,mean_us,sigma_us,target_us\n1,20,1,21\n0,1,0.2,2\n")
    device = devices.from_csv(targets, g_max_us=40.0)
    np.testing.assert_allclose(device.programming.levels.conductance, [0.05, 0.525], rtol=1e-6)
    np.testing.assert_allclose(device.on_off_ratio, 20.0)


MANY = "".join(f"{k},{k}.5\n" for k in (0, 1, 2) for _ in range(10))
WRONG_FILES = {
    "page": (
        "<!DOCTYPE html><html></html>",
        r"must be a CSV file in UTF-8, but .*chip\.csv is an HTML page\. The download",
    ),
    "empty": ("", r"must hold a header and at least one row, but 'chip\.csv' holds 0 lines"),
    "header only": ("level,g_us\n", "must hold a header and at least one row, .* holds 1 lines"),
    "no g_us": ("level,conductance\n0,1\n", "must have a column g_us, .* has level, conductance. Columns: level, g_us"),
    "no level": ("g_us\n1\n", "must have a column level"),
    "no sigma": ("level,mean_us\n0,1\n", "must have a column sigma_us, .* Columns: level, mean_us, sigma_us"),
    "semicolons": ("level;g_us\n0;1\n", "must have a column level, .* separated by commas"),
    "NaN": (f"level,g_us\n{MANY}2,nan\n", "must hold finite numbers, .* has 'nan' in column g_us of line 32"),
    "empty entry": (f"level,g_us\n{MANY}2,\n", "must hold finite numbers, .* has '' in column g_us of line 32"),
    "text": (f"level,g_us\n{MANY}two,1\n", "must hold finite numbers, .* has 'two' in column level of line 32"),
    "half level": (f"level,g_us\n{MANY}1.5,1\n", r"must count level by integers from 0, .* has '1\.5' in line 32"),
    "short row": (f"level,g_us\n{MANY}1\n", "must have 2 fields in every row, .* has 1 in line 32"),
    "missing level": (f"level,g_us\n{MANY}4,4.5\n", r"hold every level from 0 to 4, but has no record of \[3\]"),
    "few records": (f"level,g_us\n{MANY}3,3.5\n", "hold at least 10 records of each, but has 1 of level 3"),
    "two targets": (
        "level,g_us,target_us\n0,1,1\n1,2,2\n1,2,3\n",
        "must have one target_us for each level, .* has several of level 1",
    ),
    "missing row": (
        "level,mean_us,sigma_us\n0,1,1\n2,3,1\n",
        r"one row for each level .* 0 to 2, .* no row of \[1\]",
    ),
    "double row": (
        "level,mean_us,sigma_us\n0,1,1\n1,3,1\n1,3,1\n",
        "one row for each level .* 0 to 1, .* has 3 rows",
    ),
    "negative sigma": ("level,mean_us,sigma_us\n0,1,-1\n", "standard deviations of at least 0, .* has '-1' in line 2"),
    "target too high": (
        "level,mean_us,sigma_us,target_us\n0,1,1,1\n1,50,1,50\n",
        r"`target_us` must lie in \[0, 40\] uS, but is 50 uS\. Raise g_max_us",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_FILES)
def test_a_mistake_in_a_file_gets_one_clear_line(mistake: str, tmp_path: Path) -> None:
    text, message = WRONG_FILES[mistake]
    with pytest.raises(ValueError, match=message) as caught:
        devices.from_csv(_write(tmp_path, text), g_max_us=40.0)
    assert "\n" not in str(caught.value)


def test_further_mistakes_with_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path` must name a file, but there is none: .*nowhere\.csv"):
        devices.from_csv(tmp_path / "nowhere.csv", g_max_us=40.0)
    file = _write(tmp_path, f"level,g_us\n{MANY}")
    with pytest.raises(ValueError, match=r"hold every level from 0 to 3, but has no record of \[3\]"):
        devices.from_csv(file, g_max_us=40.0, num_levels=4)
    with pytest.raises(ValueError, match="`num_levels` must be an integer of at least 3, but is 2"):
        devices.from_csv(file, g_max_us=40.0, num_levels=2)
    with pytest.raises(ValueError, match="hold at least 11 records"):
        devices.from_csv(file, g_max_us=40.0, min_records=11)
    with pytest.raises(ValueError, match=r"`g_max_us` must lie in \(0, "):
        devices.from_csv(file, g_max_us=0.0)
    with pytest.raises(TypeError, match=r"from_table has no option `dirft`\. Did you mean 'drift'\?"):
        devices.from_csv(file, g_max_us=40.0, dirft=None)
    table = _write(tmp_path, "level,mean_us,sigma_us\n0,1,1\n1,3,1\n")
    with pytest.raises(
        ValueError, match=r"must have a column of conductances or resistances, .* has level, mean_us, sigma_us"
    ):
        devices.read_records(table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [0.0, 0.5, 0.5]}, "`levels` must rise from entry to entry"),
        ({"levels": [0.0, 5.0, 40.0]}, r"`levels` must lie in \[0, 1\], but is 5\. Divide conductances by g_max"),
        ({"levels": [1.0], "mean": [1.0], "sigma": [0.1]}, "`num_levels` must be an integer of at least 2, but is 1"),
        ({"levels": np.array([[0.0, 1.0]])}, r"`levels` must have shape \(levels,\), but has shape \(1, 2\)"),
        ({"sigma": [0.1, 0.2]}, r"`sigma` must have shape \(3,\), but has shape \(2,\)"),
        ({"sigma": [0.1, -0.2, 0.1]}, r"`sigma` must lie in \[0, inf\], but is -0\.2"),
        ({"mean": [0.1, 0.2]}, r"`mean` must have shape \(3,\)"),
        ({"mean": [0.1, float("nan"), 0.2]}, "`mean` must be finite, but has 1 NaN"),
        ({"g_max_us": -1.0}, r"`g_max_us` must lie in \(0, "),
    ],
)
def test_a_wrong_table_is_named(changes: dict, message: str) -> None:
    right = {"levels": [0.0, 0.5, 1.0], "mean": [0.0, 0.5, 1.0], "sigma": [0.1, 0.1, 0.1], "g_max_us": 40.0}
    given = right | changes
    with pytest.raises(ValueError, match=message):
        devices.from_table(given.pop("levels"), given.pop("mean"), given.pop("sigma"), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": [0.0, 1.0]}, "`level` must hold integers from 0, but has 2 entries of type float64"),
        ({"level": []}, "`level` must hold integers from 0, but has 0 entries"),
        ({"level": [0, -1]}, "`level` must hold integers from 0"),
        ({"g_us": [1.0]}, r"`g_us` must have shape of level"),
        ({"g_us": [1.0, float("inf"), 2.0, 2.0]}, "`g_us` must be finite, but has 1 NaN or infinite values of 4. Drop"),
        ({"cell": [0, 1, 0, 1]}, "`cell` must be programmed repeatedly, but no cell has two records of level 0"),
        ({"cell": [5, 5, 5, 5]}, "`number of cells` must be an integer of at least 2, but is 1"),
        ({"target_us": [3.0, 2.0]}, "`target_us` must rise from level to level"),
        ({"target_us": [3.0]}, r"`target_us` must have shape \(levels,\) = \(2,\)"),
        ({"min_records": 3}, "hold at least 3 records of each, but has 2 of level 0"),
    ],
)
def test_wrong_records_are_named(changes: dict, message: str) -> None:
    given = {"level": [0, 0, 1, 1], "g_us": [1.0, 2.0, 3.0, 4.0], "min_records": 2} | changes
    with pytest.raises(ValueError, match=message):
        devices.fit_table(given.pop("level"), given.pop("g_us"), **given)
