"""Sequential stops keep their coverage; observed for nominal 95 %: 93.5 to 96.5 % over 2,000 repetitions."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import io, montecarlo
from nvcim_jax.montecarlo import stopping
from nvcim_jax.montecarlo.intervals import skewness
from nvcim_jax.montecarlo.stopping import Precision

REPETITIONS = 2000
Draw = Callable[[np.random.Generator, int], np.ndarray]


def normal(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.normal(size=num)


def exponential(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.exponential(size=num)


def lognormal(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.exp(0.5 * rng.normal(size=num))


def wide(rng: np.random.Generator, num: int) -> np.ndarray:
    return np.exp(rng.normal(size=num))


def difference(rng: np.random.Generator, num: int) -> np.ndarray:
    """Loss of two methods on the same chips: what is common cancels, what is left is skewed."""
    chip = rng.normal(size=num)
    return (1.1 * np.exp(0.3 * chip) + 0.1 * rng.normal(size=num)) - np.exp(0.3 * chip)


def uniform(rng: np.random.Generator, num: int) -> np.ndarray:
    return rng.random(num)


CASES = [
    ("mean of normal", normal, 0.0, Precision(half_width=0.1)),
    ("mean of exponential", exponential, 1.0, Precision(half_width=0.08)),
    ("relative mean of lognormal", lognormal, math.exp(0.125), Precision(half_width=0.04, relative=True)),
    ("lognormal, few at first", wide, math.exp(0.5), Precision(half_width=0.2, relative=True, min_instances=30)),
    ("lognormal, roughly", wide, math.exp(0.5), Precision(half_width=0.3, relative=True, min_instances=30)),
    ("lognormal, half", lognormal, math.exp(0.125), Precision(half_width=0.2, relative=True, min_instances=30)),
    ("paired difference", difference, 0.1 * math.exp(0.045), Precision(half_width=0.008)),
    ("median", normal, 0.0, Precision(kind="quantile", quantile=0.5, half_width=0.08)),
    ("95 % quantile", normal, NormalDist().inv_cdf(0.95), Precision(kind="quantile", quantile=0.95, half_width=0.09)),
    ("worst 1 %", exponential, math.log(100), Precision(kind="quantile", quantile=0.99, half_width=0.22)),
    ("yield 90 %", uniform, 0.9, Precision(kind="yield", bound=0.9, half_width=0.015)),
    ("yield 99 %", uniform, 0.99, Precision(kind="yield", bound=0.99, half_width=0.004)),
]


def _run(draw: Draw, rng: np.random.Generator, precision: Precision) -> tuple[montecarlo.Interval, int]:
    values, found, looks, skew = np.zeros(0), None, 0, 0.0
    while (wanted := stopping.next_look(found, len(values), precision, skew)) > len(values):
        values = np.concatenate([values, draw(rng, wanted - len(values))])
        found, skew = stopping.interval(values, precision), skewness(values)
        looks += 1
    assert found is not None
    return found, looks


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "truth", "precision"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_coverage_of_the_interval_at_the_stop(draw: Draw, truth: float, precision: Precision) -> None:
    rng = np.random.default_rng(7)
    runs = [_run(draw, rng, precision) for _ in range(REPETITIONS)]
    covered = np.mean([found.low <= truth <= found.high for found, _ in runs])
    assert 0.935 <= covered <= 0.965
    target = precision.half_width
    assert all(f.half_width <= target * (abs(f.estimate) if precision.relative else 1) for f, _ in runs)
    assert np.mean([looks for _, looks in runs]) > 1.2, "the data are looked at repeatedly"


@pytest.mark.slow
def test_looking_at_every_instance_would_not_keep_the_coverage() -> None:
    """Why looks are planned: stopping at the first of many looks where the interval is narrow covers too rarely."""
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(500):
        values = rng.exponential(size=2000)
        stop = next(n for n in range(10, 2000) if montecarlo.mean_interval(values[:n]).half_width <= 0.2 or n == 1999)
        found = montecarlo.mean_interval(values[:stop])
        covered.append(found.low <= 1.0 <= found.high)
    assert np.mean(covered) < 0.92


def shifted(key: jax.Array, shift: float) -> dict[str, jax.Array]:
    return {"loss": jax.random.normal(key) + shift, "other": jnp.ones(2)}


def test_run_until_stops_when_narrow_and_covers() -> None:
    rule = Precision(half_width=0.05, of="loss")
    found = montecarlo.run_until(shifted, jax.random.key(1), rule, args=(3.0,))
    assert found.reached
    assert found.interval.half_width <= 0.05
    assert abs(found.interval.estimate - 3.0) < 5 * found.stats.standard_error["loss"]
    assert 1300 < found.stats.num_instances == found.looks[-1] < 2000
    same = montecarlo.run(shifted, jax.random.key(1), found.looks[-1], args=(3.0,))
    np.testing.assert_array_equal(same.values["loss"], found.stats.values["loss"])


def test_run_until_gives_up_and_says_so() -> None:
    found = montecarlo.run_until(
        shifted, jax.random.key(1), Precision(half_width=1e-6, of="loss"), args=(3.0,), max_instances=700
    )
    assert not found.reached
    assert found.stats.num_instances == 700


def test_run_until_resumes_to_the_same_stop(tmp_path: Path) -> None:
    rule = Precision(half_width=0.05, of="loss")
    options = {"args": (3.0,), "store": io.folder(tmp_path, save_every_s=0.0)}
    part = montecarlo.run_until(shifted, jax.random.key(1), rule, max_instances=500, **options)
    assert not part.reached
    whole = montecarlo.run_until(shifted, jax.random.key(1), rule, **options)
    fresh = montecarlo.run_until(shifted, jax.random.key(1), rule, args=(3.0,))
    assert whole.interval == fresh.interval


def test_paired_methods_see_the_same_chips() -> None:
    def slower(key: jax.Array) -> jax.Array:
        return 1.1 * jax.random.normal(key) + 0.2

    both = montecarlo.paired(jax.random.normal, slower)
    rule = Precision(half_width=0.01, of="difference")
    found = montecarlo.run_until(both, jax.random.key(3), rule)
    # difference 0.1 z + 0.2: about (1.96 * 0.1 / 0.01)^2 = 384 instances; unpaired it would be 86,000
    assert 300 < found.stats.num_instances < 600
    assert abs(found.interval.estimate - 0.2) < 5 * found.stats.standard_error["difference"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_width": 0.0}, "`half_width` must lie in"),
        ({"half_width": 1.0, "kind": "quantile"}, "`quantile` must be given"),
        ({"half_width": 1.0, "bound": 1.0}, "`bound` must be given"),
        ({"half_width": 1.0, "kind": "median"}, "`kind` must be one of mean, quantile, yield"),
        ({"half_width": 1.0, "level": 1.0}, "`level` must lie in"),
    ],
)
def test_bad_precision_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Precision(**options)


def test_bad_names_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'loss'"):
        montecarlo.run_until(shifted, jax.random.key(1), Precision(half_width=1, of="los"), args=(3.0,))
    with pytest.raises(ValueError, match="`of` must name a scalar"):
        montecarlo.run_until(shifted, jax.random.key(1), Precision(half_width=1, of="other"), args=(3.0,))
    with pytest.raises(TypeError, match="Did you mean 'half_width'"):
        Precision(halfwidth=1)  # type: ignore[call-arg]


@pytest.mark.filterwarnings("ignore:The values are so skewed")
def test_values_that_are_all_equal_are_not_believed_at_the_first_look() -> None:
    def failed(key: jax.Array) -> jax.Array:
        return (jax.random.uniform(key) < 0.005).astype(jnp.float32)

    held = 0
    for seed in range(20):
        found = montecarlo.run_until(failed, jax.random.key(seed), Precision(half_width=0.002), progress=False)
        held += found.interval.low <= 0.005 <= found.interval.high
    assert held >= 15  # 19 of 20 are promised; 15 fewer than once in 2,000
    with pytest.warns(RuntimeWarning, match="No value has differed from another in 2000 instances"):
        same = montecarlo.run_until(lambda key: jnp.float32(3.0), jax.random.key(0), Precision(half_width=0.1))
    assert same.interval == (3.0, 3.0, 3.0, 0.95, 2000)
    assert same.reached


def test_truth_values_and_small_integers_differ_as_numbers_do() -> None:
    for first, second, difference in ((jnp.uint8(3), jnp.uint8(2), -1.0), (True, False, -1.0), (False, True, 1.0)):
        metric = montecarlo.paired(lambda key, a=first: a, lambda key, b=second: b)
        assert montecarlo.run(metric, jax.random.key(0), 5, progress=False).mean["difference"] == difference
