"""What `Stats` says of itself: short in words, whole as rows of a data frame."""

import jax
import jax.numpy as jnp
import numpy as np

from nvcim_jax import montecarlo


def both(key: jax.Array) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {"pair": jax.random.normal(first, (2,)), "right": jax.random.bernoulli(second, 0.25).astype(jnp.float32)}


def test_rows_hold_every_number_once() -> None:
    stats = montecarlo.run(both, jax.random.key(0), 200, quantiles=(0.1, 0.9))
    rows = stats.table()
    assert [row["name"] for row in rows] == ["pair[0]", "pair[1]", "right"]
    assert [row["mean"] for row in rows] == [*stats.mean["pair"].tolist(), float(stats.mean["right"])]
    assert [row["q0.9"] for row in rows] == [*stats.quantiles["pair"][1].tolist(), float(stats.quantiles["right"][1])]
    assert {row["instances"] for row in rows} == {200}
    assert all(isinstance(value, str | int | float) for row in rows for value in row.values())


def test_words_are_short_and_hold_no_values() -> None:
    stats = montecarlo.run(lambda key: jax.random.normal(key, (100,)), jax.random.key(0), 50)
    said = repr(stats)
    assert len(said) < 500
    assert said.startswith("Stats(50 instances: [0] ")
    assert said.endswith("and 97 more)")


def test_what_is_not_finite_is_said() -> None:
    values = jnp.where(jnp.arange(10) < 3, jnp.nan, 1.0)
    stats = montecarlo.run(lambda key, v: v[jax.random.key_data(key)[0] % 10], jax.random.key(0), 40, args=(values,))
    assert stats.num_nonfinite > 0
    assert f"{stats.num_nonfinite} of them not finite" in repr(stats)
    assert np.isfinite(stats.table()[0]["mean"])


def test_truth_values_count_as_zero_and_one() -> None:
    found = montecarlo.run(lambda key: jax.random.uniform(key) < 0.25, jax.random.key(0), 4000, progress=False)
    assert abs(found.mean - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert found.values.dtype == bool
