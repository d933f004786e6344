"""A study in a folder: every finished unit is kept, and a second call goes on where the first one stopped."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nvcim_jax import checks, devices, files, io
from nvcim_jax.models import LM, Text
from nvcim_jax.pipeline import Preset
from nvcim_jax.signature import checked
from nvcim_jax.study.measure import Record, measure
from nvcim_jax.study.plan import DIGITAL, Design, Unit, plan
from nvcim_jax.study.trained import Session, plain, stream_digest
from nvcim_jax.types import Key, Work

__all__ = ["Incomplete", "incomplete", "read", "run"]

RECORDS, ABOUT, TRAINED = "records.jsonl", "study.json", "trained"


class Incomplete(NamedTuple):
    """Units of a study that are not whole.

    Attributes:
        num_found: Records that are there, of all units.
        num_expected: Records that a finished study has.
        units: Units that lack some or all of their records.
    """

    num_found: int
    num_expected: int
    units: tuple[Unit, ...]


@checked
def read(folder: str | Path) -> list[Record]:
    r"""Return the records of a folder, and of all folders below it, in the order of their paths.

    Args:
        folder: A folder that `run` has written, or one that holds such folders (parts of one study).

    Returns:
        The records of all finished units: no mean over them misses any. `incomplete` tells what is left out.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no records, a line of them is damaged, or folders in it are not parts of one study: two
            hold the same unit, or what they were made with differs in more than what is compared.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp())
        >>> unit = Unit("block", 0, "digital", 0.0, "", "frozen")._asdict()
        >>> for part, stream, share in (("b", 0, 0.5), ("a", 1, 0.25)):
        ...     (where / part).mkdir()
        ...     line = json.dumps(unit | {"stream": stream, "accuracy": share})
        ...     _ = (where / part / "records.jsonl").write_text(f"{line}\n")
        >>> [record["accuracy"] for record in read(where)]
        [0.25, 0.5]
    """
    parts = {}
    for path in _record_files(folder):
        wanted = _wanted(path)
        parts[path.parent] = _whole_lines(path) if wanted is None else _finished(path, wanted)
    _one_study(parts)
    return [record for part in parts.values() for record in part]


def _one_study(parts: Mapping[Path, list[Record]]) -> None:
    """Refuse folders that were made with other settings, or that hold one unit twice."""
    fix = "Read each folder alone."
    known = [path for path in parts if (path / ABOUT).is_file()]
    alike = [_alike(_about_of(path / ABOUT)["fingerprint"]) for path in known]
    for path, other in zip(known, alike, strict=True):
        differing = io.difference(alike[0], other)
        if differing:
            found = f"{path} differs from {known[0]} in {'; '.join(differing[:6])}"
            checks.fail("folder", "hold parts of one study", found, fix)
    owners: dict[Unit, Path] = {}
    for path, records in parts.items():
        for unit in _counts(records):
            other = owners.setdefault(unit, path)
            if other != path:
                found = f"{unit.method} on stream {unit.stream} and {unit.device} stands in {other} and {path}"
                checks.fail("folder", "hold each unit once", found, fix)


def _alike(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return of a fingerprint what parts of one study share: all but streams, with their keys, methods and devices."""
    config = {name: value for name, value in fingerprint.get("config", {}).items() if name != "streams"}
    design = config.pop("design", {})
    config["design"] = {name: value for name, value in design.items() if name not in ("methods", "baselines")}
    args = {name: value for name, value in fingerprint.get("args", {}).items() if not name.startswith("device ")}
    return {"config": config, "versions": fingerprint.get("versions"), "args": args}


@checked
def incomplete(folder: str | Path) -> Incomplete:
    r"""Return what the studies in a folder lack; nothing is known of records that stand without their `study.json`.

    Args:
        folder: See `read`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no records, or a line of them is damaged.

    Example:
        >>> import tempfile
        >>> where = Path(tempfile.mkdtemp())
        >>> line = json.dumps(Unit("block", 0, "digital", 0.0, "", "frozen")._asdict())
        >>> _ = (where / "records.jsonl").write_text(f"{line}\n{line[:20]}")  # killed while it wrote
        >>> found = incomplete(where)
        >>> found.num_found, found.num_expected, [unit.method for unit in found.units]
        (1, 2, ['frozen'])
    """
    num_found, num_expected, units = 0, 0, []
    for path in _record_files(folder):
        lines = _whole_lines(path)
        wanted = _wanted(path) or {}
        there = _counts(lines)
        num_found += len(lines)
        if not wanted and _cut(path):  # how many are missing is not known; the last unit is one of them
            num_expected += 1
            units += [_unit(line) for line in lines[-1:]]
        num_expected += sum(wanted.values()) if wanted else len(lines)
        units += [unit for unit, number in wanted.items() if there.get(unit) != number]
    return Incomplete(num_found, num_expected, tuple(units))


def _record_files(folder: str | Path) -> list[Path]:
    folder = checks.file("folder", folder, folder=True)
    paths = sorted(Path(folder).rglob(RECORDS))
    if not paths:
        checks.fail("folder", f"hold {RECORDS}, or folders that do", f"{folder} has none", "Run the study first.")
    return paths


def _wanted(path: Path) -> dict[Unit, int] | None:
    """Return how many records each unit has, from the file beside the records; None where there is none."""
    about = path.with_name(ABOUT)
    return {Unit(*unit): number for *unit, number in _about_of(about)["units"]} if about.is_file() else None


def _about_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"fingerprint": dict(found["fingerprint"]), "units": list(found["units"])}
    except (ValueError, KeyError, TypeError):
        fix = "Use another folder, or delete it to measure everything again."
    return checks.fail("folder", f"hold a whole {ABOUT}", f"{path} is damaged", fix)


def _cut(path: Path) -> bool:
    """Return whether the last line was left half written."""
    return path.read_bytes()[-1:] not in (b"", b"\n")


def _whole_lines(path: Path) -> list[Record]:
    """Return the records of a file; a last line that a killed process left half written does not count."""
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            _unit(record)
        except (ValueError, KeyError, TypeError):
            fix = "Delete that line: the same command measures its unit again."
            checks.fail("folder", "hold whole records", f"line {number} of {path} is damaged", fix)
        found.append(record)
    return found


def _unit(record: Record) -> Unit:
    return Unit(*(record[name] for name in Unit._fields))


def _counts(records: list[Record]) -> dict[Unit, int]:
    return dict(collections.Counter(map(_unit, records)))


def _finished(path: Path, wanted: dict[Unit, int]) -> list[Record]:
    """Return the records of the units that are whole."""
    records = _whole_lines(path) if path.is_file() else []
    numbers = _counts(records)
    return [record for record in records if numbers[_unit(record)] == wanted.get(_unit(record))]


def _numbers(streams: Sequence[Any], device_list: Sequence[devices.Device], design: Design) -> dict[Unit, int]:
    """Return how many records each unit has."""
    sizes = {}
    for stream in streams:
        names = len(stream.domains) + (getattr(stream, "unseen", None) is not None)
        for unit in plan([stream], device_list, design):
            chips = design.num_instances if unit.device != DIGITAL else 1
            sizes[unit] = names * chips * (len(stream.blocks) if design.every_block else 1)
    return sizes


def _about(
    key: Key,
    streams: Sequence[Any],
    lm: LM,
    text: Text,
    device_list: Sequence[devices.Device],
    preset: Preset,
    design: Design,
) -> Any:
    """Return everything that a record depends on."""
    trained_on = design.train_device
    settings = {
        "preset": plain(preset),
        "template": plain(text.template),
        "design": plain(design._asdict() | {"train_device": None if trained_on is None else trained_on.name}),
        "streams": {f"{getattr(s, 'kind', 'stream')} {getattr(s, 'seed', 0)}": stream_digest(s) for s in streams},
    }
    devices_used = {f"device {i} ({d.name})": d for i, d in enumerate(device_list, 1)}
    args = {"the language model": lm.params, **devices_used, "train_device": trained_on}
    return io.fingerprint(settings, Work(None, key, args))


def _lines(records: list[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@checked
def run(
    folder: str | Path,
    key: Key,
    streams: Sequence[Any],
    lm: LM,
    text: Text,
    device_list: Sequence[devices.Device],
    *,
    preset: Preset,
    design: Design = Design(),  # noqa: B008  # frozen
    session: Session = Session(),  # noqa: B008  # immutable
) -> list[Record]:
    """Run `measure` into a folder, unit by unit, and return its records in the order of `plan`.

    Every finished unit is added to `records.jsonl` in one write. A process may be killed at any moment: the same call
    again leaves out a unit that is half written, skips those that are whole, and ends with the same records as without
    a break. `study.json` holds what the records depend on.

    Args:
        folder: The folder, made when it is not there.
        key: Key of the study.
        streams: The streams.
        lm: The language model.
        text: Its tokenizer and the form of the task.
        device_list: The devices.
        preset: Everything that is chosen.
        design: What is compared.
        session: As for `measure`; its `trained` is a folder inside this one unless it names another.

    Returns:
        All records; none where `session.dry_run` asks for nothing but the check of the folder.

    Raises:
        ValueError: If the folder holds another study (the message shows what differs) or is in use, or an argument
            of `measure` is wrong.

    Example:
        >>> import tempfile
        >>> import jax
        >>> from nvcim_jax import data, models, pipeline
        >>> layout = models.Config(vocab_size=32, width=32, num_layers=1, num_heads=4, mlp_width=64, eos_ids=(2,))
        >>> lm = models.init(jax.random.key(0), config=layout)
        >>> text = models.Text(lambda words, **_: {"input_ids": [ord(letter) % 32 for letter in words]})
        >>> stream = data.builtin_users(0, num_users=2, buffer_size=4, num_topics=1, num_train=4, num_test=3)
        >>> chosen = {"preset": pipeline.Preset(), "design": Design(methods={}, baselines=("1-NN text",))}
        >>> where = tempfile.mkdtemp()
        >>> rows = run(where, jax.random.key(1), [stream], lm, text, [], **chosen)
        >>> len(rows), run(where, jax.random.key(1), [stream], lm, text, [], **chosen) == rows == read(where)
        (2, True)
    """
    folder = files.folder("folder", folder, make=not session.dry_run)
    path, about = folder / RECORDS, _about(key, streams, lm, text, device_list, preset, design)
    if session.dry_run:
        if (folder / ABOUT).is_file():
            _same_study(folder / ABOUT, about)
        return []
    with io.locked(folder):
        wanted = _numbers(streams, device_list, design)
        if not (folder / ABOUT).is_file():
            units = [[*unit, number] for unit, number in wanted.items()]
            files.write_json(folder / ABOUT, {"fingerprint": about, "units": units})
        _same_study(folder / ABOUT, about)
        done = _finished(path, wanted)
        files.write(path, _lines(done))
        skip = frozenset(_unit(record) for record in done)
        session.advance(len(skip), "already there")
        part: list[Record] = []
        trained = folder / TRAINED if session.trained is None else session.trained
        session = session._replace(trained=trained, skip=session.skip | skip)
        chosen: Any = {"preset": preset, "design": design, "session": session}
        for record in measure(key, streams, lm, text, device_list, **chosen):
            part.append(record)
            if len(part) == wanted[_unit(record)]:
                files.append(path, _lines(part))
                part = []
        order = {unit: i for i, unit in enumerate(wanted)}
        records = sorted(_whole_lines(path), key=lambda record: order[_unit(record)])
        files.write(path, _lines(records))
    return records


def _same_study(path: Path, about: Any) -> None:
    differing = io.difference(_about_of(path)["fingerprint"], about)
    if differing:
        found = f"differs in {'; '.join(differing[:6])}: {path.parent}"
        fix = "Use another folder, or go back to what it was made with."
        checks.fail("folder", "hold the same study", found, fix)
