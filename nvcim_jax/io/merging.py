"""Join records of one run that were computed apart, and find what is missing, double or in conflict."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nvcim_jax import checks, files
from nvcim_jax.io import records
from nvcim_jax.io.fingerprint import difference
from nvcim_jax.signature import checked

__all__ = ["Merged", "merge", "merge_points"]


class Merged(NamedTuple):
    """What `merge` found.

    Attributes:
        num_instances: Different instances in the result.
        gaps: Ranges of ids, from 0 to the number expected, that no source has.
        num_duplicates: Instances that more than one source has, with values equal within rounding.
    """

    num_instances: int
    gaps: tuple[range, ...]
    num_duplicates: int


@checked
def merge(
    sources: Sequence[str | Path], target: str | Path, *, num_instances: int | None = None, rtol: float = 1e-5
) -> Merged:
    """Merge folders of records of one run into a folder.

    Args:
        sources: Folders of records, each of any instances.
        target: Folder of the result; it may already hold records of the run.
        num_instances: Number expected, for the gaps; None stands for the largest id found.
        rtol: Relative difference up to which two values of one instance are the same: other machines round otherwise.

    Returns:
        `Merged`.

    Raises:
        ValueError: If the sources are of different runs (the difference is shown) or one instance has two values.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, montecarlo
        >>> where = Path(tempfile.mkdtemp())
        >>> for name, ids in {"a": range(0, 3), "b": range(2, 4), "c": range(6, 8)}.items():
        ...     _ = montecarlo.run(jax.random.normal, jax.random.key(0), ids, store=io.folder(where / name))
        >>> io.merge([where / "a", where / "b", where / "c"], where / "all", num_instances=8)
        Merged(num_instances=6, gaps=(range(4, 6),), num_duplicates=1)
    """
    target = Path(target)
    folders = [Path(source) for source in sources]
    if not folders:
        checks.fail("sources", "name one folder at least", "is empty")
    tables = [records.read(folder) for folder in folders]
    found = _same_run(folders)
    files.folder("target", target)
    with records.locked(target):
        records.open_folder(target, found)
        if done := records.finished(target):
            tables.append(records.read(target))
        if any(set(table.columns) != set(tables[0].columns) for table in tables):
            checks.fail("sources", "hold the same values", f"hold {[sorted(t.columns) for t in tables]}")
        joined, num_duplicates = records.join(tables, rtol)
        stop = int(joined.instance[-1]) + 1
        gaps = _gaps(joined.instance, range(num_instances or stop))
        for ids in records.missing(range(stop), [*done, *_gaps(joined.instance, range(stop))]):
            inside = (joined.instance >= ids.start) & (joined.instance < ids.stop)
            records.write_columns(target, ids.start, {n: a[inside] for n, a in joined.columns.items()})
    return Merged(len(joined.instance), tuple(gaps), num_duplicates)


@checked
def merge_points(
    sources: Sequence[str | Path], target: str | Path, *, num_instances: int | None = None, rtol: float = 1e-5
) -> dict[str, Merged]:
    """Merge sweeps (such as the shards of one) point by point; a point that a source lacks shows as a gap.

    Args:
        sources: Folders of sweeps.
        target: Folder of the result.
        num_instances: As for `merge`, for every point.
        rtol: As for `merge`.

    Returns:
        For each point, by the name of its folder, what `merge` found.

    Raises:
        ValueError: As `merge`, or if no source holds points, or their points are of several sweeps.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import io, montecarlo
        >>> where = Path(tempfile.mkdtemp())
        >>> for name, settings in {"a": {"sigma": 0.1}, "b": {"sigma": 0.2}}.items():
        ...     store = io.points(where / name)(settings)
        ...     _ = montecarlo.run(jax.random.normal, jax.random.key(0), 2, store=store)
        >>> {point: found.num_instances for point, found in io.merge_points([where / "a", where / "b"], where).items()}
        {'sigma=0.1': 2, 'sigma=0.2': 2}
    """
    folders = [Path(source) for source in sources]
    points = {folder: {path.name for path in (folder / "points").glob("*")} for folder in folders}
    names = sorted(set().union(*points.values()))
    if not names:
        checks.fail("sources", "hold the points of a sweep", f"have none: {[str(f) for f in folders]}")
    records.same_sweep([path for folder in (*folders, Path(target)) for path in records.points_of(folder)], "sources")
    return {
        name: merge(
            [folder / "points" / name for folder in folders if name in points[folder]],
            Path(target) / "points" / name,
            num_instances=num_instances,
            rtol=rtol,
        )
        for name in names
    }


def _same_run(folders: list[Path]) -> dict[str, object]:
    found = [records.read_about(folder)["fingerprint"] for folder in folders]
    for folder, other in zip(folders, found, strict=True):
        differing = difference(found[0], other)
        if differing:
            checks.fail("sources", f"be of the run of {folders[0]}", f"{folder} differs in {'; '.join(differing)}")
    return found[0]


def _gaps(instance: np.ndarray, ids: range) -> list[range]:
    breaks = np.flatnonzero(np.diff(instance) > 1)
    starts, stops = [instance[0], *instance[breaks + 1]], [*instance[breaks], instance[-1]]
    return records.missing(ids, [range(int(a), int(b) + 1) for a, b in zip(starts, stops, strict=True)])
