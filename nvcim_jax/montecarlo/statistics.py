"""Running statistics over instances, in float64 on the host: moments, quantiles, non-finite instances.

Moments merge chunk by chunk after Chan, Golub and LeVeque (1983), so that a million instances lose no digits.
An instance with a NaN or an infinity in any of its values is counted and left out of everything else.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.signature import checked
from nvcim_jax.types import PyTree

__all__ = ["Moments", "Stats", "finite_instances", "merge", "moments", "stats_of_moments", "stats_of_values"]


class Stats(NamedTuple):
    """What a Monte Carlo run found; trees have the structure of one instance's value, in float64.

    Attributes:
        mean: Mean over the finite instances.
        standard_error: Standard error of that mean: standard deviation / sqrt(finite instances).
        standard_deviation: Standard deviation over instances (n - 1 in the denominator).
        quantiles: Quantiles over the finite instances, leading axis in the order of `quantile_levels`.
        values: All values in instance order, leading axis `num_instances`, non-finite ones included; None where
            they were not kept.
        num_nonfinite: Number of instances with a NaN or an infinity, which no statistic includes.
        num_instances: Number of instances computed.
        quantile_levels: The levels of `quantiles`.

    Example:
        >>> import jax
        >>> from nvcim_jax import montecarlo
        >>> stats = montecarlo.run(lambda key: 3.0 + jax.random.normal(key), jax.random.key(0), 1000, quantiles=(0.5,))
        >>> stats
        Stats(1,000 instances: 3.01 +- 0.0304, standard deviation 0.96; quantile 0.5: 2.98)
        >>> [(row["name"], round(row["mean"], 2)) for row in stats.table()]  # pandas.DataFrame(stats.table())
        [('', 3.01)]
    """

    mean: PyTree
    standard_error: PyTree
    standard_deviation: PyTree
    quantiles: PyTree
    values: PyTree
    num_nonfinite: int
    num_instances: int
    quantile_levels: tuple[float, ...]

    def table(self) -> list[dict[str, Any]]:
        """Return one flat row for each number of an instance, without the values: what a data frame is made of.

        Returns:
            Rows with `name` (path in the tree, and index in an array), `mean`, `standard_error`,
            `standard_deviation`, `instances`, `nonfinite`, and `q0.5` for the quantile of the level 0.5.
        """
        parts = (self.mean, self.standard_error, self.standard_deviation)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(self.mean)]
        columns = [[np.asarray(leaf, np.float64) for _, leaf in _leaves(part)] for part in parts]
        quantiles = [np.asarray(leaf, np.float64) for _, leaf in _leaves(self.quantiles)]
        rows = []
        for i, path in enumerate(paths):
            for index in np.ndindex(columns[0][i].shape):
                row: dict[str, Any] = {"name": path + (str(list(index)) if index else "")}
                names = ("mean", "standard_error", "standard_deviation")
                row |= {name: float(column[i][index]) for name, column in zip(names, columns, strict=True)}
                row |= {"instances": self.num_instances, "nonfinite": self.num_nonfinite}
                levels = enumerate(self.quantile_levels)
                rows.append(row | {f"q{level:g}": float(quantiles[i][(k, *index)]) for k, level in levels})
        return rows

    def __repr__(self) -> str:
        """Return the statistics of the first numbers, without the values."""
        rows, most = self.table(), 3

        def shown(row: dict[str, Any]) -> str:
            name = f"{row['name']} " if row["name"] else ""
            levels = [f"{level:g}: {row[f'q{level:g}']:.3g}" for level in self.quantile_levels]
            quantiles = f"; quantile {', '.join(levels)}" if levels else ""
            spread = f"standard deviation {row['standard_deviation']:.3g}"
            return f"{name}{row['mean']:.3g} +- {row['standard_error']:.3g}, {spread}{quantiles}"

        more = f" | and {len(rows) - most} more" if len(rows) > most else ""
        lost = f", {self.num_nonfinite} of them not finite" if self.num_nonfinite else ""
        return f"Stats({self.num_instances:,} instances{lost}: {' | '.join(map(shown, rows[:most]))}{more})"


def _leaves(tree: PyTree) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


class Moments(NamedTuple):
    """Number of finite instances, their mean, and the sum of squared deviations from it."""

    num: int
    mean: PyTree
    squares: PyTree


def finite_instances(values: PyTree) -> np.ndarray:
    """Return for each instance whether all its values are finite.

    Example:
        >>> finite_instances({"loss": np.array([1.0, np.nan]), "right": np.array([1, 1])}).tolist()
        [True, False]
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    good = np.ones(len(leaves[0]), bool)
    for leaf in leaves:
        good &= np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
    return good


def moments(values: PyTree) -> Moments:
    """Return the moments of one chunk of values (leading axis: instances; all finite)."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), values)
    count = len(jax.tree.leaves(wide)[0])
    if count == 0:
        zero = jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:]), wide)
        return Moments(0, zero, zero)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), wide)
    return Moments(count, mean, jax.tree.map(lambda leaf, m: np.square(leaf - m).sum(axis=0), wide, mean))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets of instances together.

    Example:
        >>> both = merge(moments(np.array([1.0, 2.0])), moments(np.array([6.0])))
        >>> float(both.mean), float(both.squares)  # of 1, 2, 6: mean 3, squares 4 + 1 + 9
        (3.0, 14.0)
    """
    count = a.num + b.num
    if a.num == 0 or b.num == 0:
        return a if b.num == 0 else b
    shift = jax.tree.map(lambda x, y: y - x, a.mean, b.mean)
    mean = jax.tree.map(lambda x, d: x + d * (b.num / count), a.mean, shift)
    squares = jax.tree.map(lambda x, y, d: x + y + d**2 * (a.num * b.num / count), a.squares, b.squares, shift)
    return Moments(count, mean, squares)


def stats_of_moments(
    found: Moments, quantiles: PyTree, values: PyTree, num_instances: int, levels: tuple[float, ...]
) -> Stats:
    """Put the statistics together; with fewer than two finite instances the spread is NaN (with none, the mean too)."""
    nan = np.float64("nan")
    mean = found.mean if found.num else jax.tree.map(lambda m: m + nan, found.mean)
    spread = found.num - 1
    deviation = jax.tree.map(lambda s: np.sqrt(s / spread) if spread > 0 else s + nan, found.squares)
    error = jax.tree.map(lambda d: d / np.sqrt(max(found.num, 1)), deviation)
    return Stats(mean, error, deviation, quantiles, values, num_instances - found.num, num_instances, levels)


@checked
def stats_of_values(values: PyTree, levels: tuple[float, ...]) -> Stats:
    """Return the statistics of all values at once; the same whatever the chunks they came in.

    Args:
        values: Tree of arrays with a leading instance axis; truth values count as 0 and 1.
        levels: Levels of the quantiles, each in [0, 1].

    Example:
        >>> stats = stats_of_values(np.array([1.0, 2.0, np.inf, 6.0]), (0.5,))
        >>> float(stats.mean), float(stats.quantiles[0]), stats.num_nonfinite
        (3.0, 2.0, 1)
    """
    if not jax.tree.leaves(values):
        checks.fail("values", "hold an array", f"is {checks.shown(values)}")
    for leaf in jax.tree.leaves(values):
        if np.result_type(leaf) != np.bool:
            checks.real("values", leaf)
        if not np.ndim(leaf):
            checks.fail("values", "have a leading instance axis", f"hold {leaf!r}")
    good = finite_instances(values)
    kept = jax.tree.map(lambda leaf: np.asarray(leaf)[good], values)

    def quantile(leaf: np.ndarray) -> np.ndarray:
        if len(leaf) == 0:
            return np.full((len(levels), *leaf.shape[1:]), np.nan)
        return np.quantile(leaf.astype(np.float64), levels, axis=0)

    return stats_of_moments(moments(kept), jax.tree.map(quantile, kept), values, len(good), levels)
