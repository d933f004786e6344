"""Grids: numbers share a program, points share chips, shards merge into what one process computes."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from nvcim_jax import io, montecarlo
from nvcim_jax.montecarlo.stopping import Precision

AXES = {"law": ["linear", "square"], "sigma": [0.1, 0.2, 0.4], "shift": [0.0, 1.0]}


def build(settings: dict):
    power = {"linear": 1, "square": 2}[settings["law"]]

    def metric(key: jax.Array, numbers: dict, scale: jax.Array) -> dict[str, jax.Array]:
        z = jax.random.normal(key) ** power
        return {"loss": scale * (numbers["sigma"] * z + numbers["shift"]), "z": z}

    return metric


def _sweep(
    folder: Path | None = None, num: int | range = 40, axes: dict = AXES, config: dict | None = None, **options
) -> montecarlo.Sweep:
    store = None if folder is None else io.points(folder, config=config or {"rows": 8})
    common = {"traced": ("sigma", "shift"), "args": (jnp.float32(2.0),), "store": store}
    return montecarlo.sweep(build, jax.random.key(1), axes, num, **(common | options))


def test_numbers_share_one_program_and_points_share_their_chips() -> None:
    found = _sweep()
    assert found.num_programs == 2
    assert len(found.points) == 12
    assert found.points[1].settings == {"law": "linear", "sigma": 0.1, "shift": 1.0}
    for point in found.points:
        s = point.settings
        np.testing.assert_array_equal(
            point.stats.values["z"], found.points[0 if s["law"] == "linear" else 6].stats.values["z"]
        )
        np.testing.assert_allclose(
            point.stats.values["loss"], 2 * (s["sigma"] * point.stats.values["z"] + s["shift"]), rtol=1e-5, atol=1e-6
        )


def test_axes_of_names_beside_numbers_compile_once_a_combination_of_names() -> None:
    """A method axis and a device axis: six programs serve them, whatever the number of numbers."""
    methods = {"none": lambda z: z, "clip": lambda z: jnp.clip(z, -1.0, 1.0), "halve": lambda z: 0.5 * z}
    offsets = {"RRAM1": 0.0, "FeFET6": 1.0}
    built, compiled = [], []

    def listen(event: str, seconds: float, **_: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    def build(settings: dict):
        built.append(settings)
        method, offset = methods[settings["method"]], offsets[settings["device"]]

        def metric(key: jax.Array, numbers: dict) -> jax.Array:
            return numbers["sigma"] * method(jax.random.normal(key)) + numbers["time"] * offset

        return metric

    axes = {"method": [*methods], "sigma": [0.1, 0.2, 0.3], "device": [*offsets], "time": [0.0, 1.0, 2.0, 5.0]}
    key = jax.random.key(1)
    jax.monitoring.register_event_duration_secs_listener(listen)
    found = montecarlo.sweep(build, key, axes, 20, traced=("sigma", "time"))
    assert len(found.points) == 72
    assert found.num_programs == len(built) == len(compiled) == 6
    values = {tuple(p.settings.values()): p.stats.values for p in found.points}
    z = values["none", 0.1, "RRAM1", 0.0] / np.float32(0.1)
    for (method, sigma, device, time), value in values.items():
        chip = np.asarray(methods[method](jnp.asarray(z)))
        np.testing.assert_allclose(value, sigma * chip + time * offsets[device], rtol=1e-5, atol=1e-6)


def test_a_saved_sweep_resumes_with_one_compile_a_program(tmp_path: Path) -> None:
    whole = _sweep()
    _sweep(tmp_path, num=17)
    found = _sweep(tmp_path)
    assert found.num_programs == 2
    for a, b in zip(found.points, whole.points, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.stats.values, b.stats.values)


def test_a_grid_may_grow_and_another_setting_is_refused(tmp_path: Path) -> None:
    _sweep(tmp_path, axes={"law": ["linear"], "sigma": [0.1], "shift": [0.0]})
    _sweep(tmp_path)
    assert len(list((tmp_path / "points").iterdir())) == 12
    with pytest.raises(ValueError, match=r"the setting rows \(8 there, 16 here\)"):
        _sweep(tmp_path, config={"rows": 16})


def test_each_point_stops_when_it_is_known() -> None:
    rule = Precision(half_width=0.02, of="loss")
    found = _sweep(num=100_000, axes=AXES | {"law": ["linear"], "shift": [0.0]}, precision=rule)
    counts = [point.stats.num_instances for point in found.points]
    assert counts == sorted(counts)
    assert counts[-1] > 3 * counts[0]
    assert all(point.interval is not None and point.interval.half_width <= 0.02 for point in found.points)


@pytest.mark.slow
def test_shards_merge_into_the_whole(tmp_path: Path) -> None:
    whole = _sweep(tmp_path / "whole")
    for k in (1, 2, 3):
        _sweep(tmp_path / f"shard-{k}", num=montecarlo.shard_range(40, k, 3))
    merged = io.merge_points([tmp_path / f"shard-{k}" for k in (1, 2, 3)], tmp_path / "m", num_instances=40)
    assert all(found == io.Merged(40, (), 0) for found in merged.values())
    for (s1, one), (s2, two) in zip(io.read_points(tmp_path / "m"), io.read_points(tmp_path / "whole"), strict=True):
        assert s1 == s2
        np.testing.assert_array_equal(one.columns["loss"], two.columns["loss"])
    again = _sweep(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, again.points[3].stats.values, whole.points[3].stats.values)


def _metric(key: jax.Array, scale: float) -> jax.Array:
    return scale * jax.random.normal(key)


def _part(folder: Path, first: int, num: int, scale: float = 1.0) -> Path:
    montecarlo.run(_metric, jax.random.key(0), range(first, first + num), args=(scale,), store=io.folder(folder))
    return folder


def test_merge_finds_gaps_and_duplicates(tmp_path: Path) -> None:
    sources = [_part(tmp_path / "a", 0, 10), _part(tmp_path / "b", 8, 7), _part(tmp_path / "c", 20, 5)]
    found = io.merge(sources, tmp_path / "m", num_instances=30)
    assert found == io.Merged(20, (range(15, 20), range(25, 30)), 2)
    assert io.read(tmp_path / "m").instance.tolist() == [*range(15), *range(20, 25)]
    sources.append(_part(tmp_path / "d", 15, 5))
    found = io.merge(sources, tmp_path / "m", num_instances=25)
    assert found.gaps == ()
    whole = montecarlo.run(_metric, jax.random.key(0), 25, args=(1.0,))
    np.testing.assert_array_equal(io.read(tmp_path / "m").columns["value"], whole.values)


def test_merge_finds_conflicting_values_and_other_runs(tmp_path: Path) -> None:
    a, b = _part(tmp_path / "a", 0, 10), _part(tmp_path / "b", 9, 6)
    file = next((b / "chunks").glob("*.parquet"))
    table = pq.read_table(file)
    changed = table.column("value").to_numpy().copy()
    changed[0] *= 1.001
    pq.write_table(table.set_column(1, "value", [changed]), file)
    with pytest.raises(ValueError, match="instance 9 has `value`"):
        io.merge([a, b], tmp_path / "m")
    assert io.merge([a, b], tmp_path / "m2", rtol=0.01).num_duplicates == 1
    other = _part(tmp_path / "c", 0, 10, scale=2.0)
    with pytest.raises(ValueError, match=r"c differs in argument 0 \(1.0 there, 2.0 here\)"):
        io.merge([a, other], tmp_path / "m3")


def test_tables_hold_every_instance_and_every_point(tmp_path: Path) -> None:
    found = _sweep(tmp_path)
    parquet, summary = io.export(tmp_path, command="nvcim sweep")
    table = pq.read_table(parquet)
    assert table.num_rows == 12 * 40
    assert json.loads(table.schema.metadata[b"axes"]) == ["law", "sigma", "shift"]
    assert table.schema.metadata[b"command"] == b"nvcim sweep"
    rows = list(csv.DictReader(summary.read_text().splitlines()))
    assert len(rows) == 24
    want = found.points[4]
    row = next(
        r
        for r in rows
        if r["metric"] == "loss" and {k: r[k] for k in AXES} == {k: str(v) for k, v in want.settings.items()}
    )
    assert float(row["mean"]) == pytest.approx(want.stats.mean["loss"], rel=1e-12)
    assert float(row["q95"]) == pytest.approx(want.stats.quantiles["loss"][3], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": AXES | {"sigma": []}}, "`axes.sigma` must be a list"),
        ({"axes": AXES | {"sigma": [0.1, 0.1]}}, "`axes.sigma` must hold each value once"),
        ({"axes": AXES | {"sigma": ["big"]}}, "`axes.sigma` must hold numbers"),
        ({"axes": AXES | {"sigma": [float("nan")]}}, "`axes.sigma` must be finite"),
        ({"traced": ("sigm",)}, "`traced` must be one of law, shift, sigma.*Did you mean 'sigma'"),
        ({"num": range(20), "precision": Precision(half_width=1.0)}, "`precision` must be None with a range of ids"),
    ],
)
def test_bad_grids_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _sweep(**options)


def test_a_bad_shard_is_named() -> None:
    with pytest.raises(ValueError, match="`shard` must be an integer of at least 1 and at most 3"):
        montecarlo.shard_range(40, 4, 3)
