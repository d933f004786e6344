"""`nvcim doctor` and `nvcim devices`: what is there is said, and what is missing is named with its fix."""

import importlib.metadata
import json

import pytest

from nvcim_jax import cli, devices
from nvcim_jax.cli import doctor


def test_what_is_needed_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("nvcim_jax", "Python", *doctor.NEEDED, "backend", "memory", "threads"):
        assert any(line[2:].startswith(name) for line in lines), name
    assert not any(line.startswith("!") for line in lines)


def test_versions_are_those_of_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--json"])
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["jax"]["found"] == importlib.metadata.version("jax")
    assert {row["state"] for row in found.values()} <= {"ok", "more"}
    assert all(row["advice"] for row in found.values() if row["state"] == "more")


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("jax", "no-such-package"))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "! no-such-package" in said
    assert "pip install no-such-package" in said
    assert said.rstrip().endswith("Missing: no-such-package.")


def test_a_folder_that_cannot_be_written_to_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert cli.main(["doctor"]) == 1
    assert "No space left on device" in capsys.readouterr().out


def test_all_devices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["device"] for row in rows] == list(devices.names())
    (pcm,) = [row for row in rows if row["device"] == "PCM"]
    assert (pcm["drifts"], pcm["read noise"], pcm["g_max (uS)"]) == (True, True, 25.0)
    assert all(row["source"] for row in rows)
    assert cli.main(["devices"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in devices.names())


def test_words_that_are_no_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("doctor", "devices"):
        assert cli.main([command, "--jsno"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
