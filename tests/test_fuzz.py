"""Wrong inputs over the command line and the public functions: one line that names what is wrong, or it runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing
import pytest
from support import wrong_inputs

SEED = 20241112
NAMED = re.compile(r"`|unexpected keyword argument|missing \d+ required|There is no \S+ in ")


def _found(what: str, count: int = 0) -> list[dict[str, Any]]:
    """Run generated inputs in a Python of their own and return what came of each."""
    done = subprocess.run(
        [sys.executable, str(Path(fuzzing.__file__)), what, str(SEED), str(count)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def _is_clear(said: dict[str, Any]) -> bool:
    one_line = "\n" not in said["message"] and NAMED.search(said["message"])
    return said["raised"] in ("ValueError", "TypeError", "FileNotFoundError") and bool(one_line)


@pytest.mark.slow
def test_public_functions_name_the_wrong_argument_or_run() -> None:
    found = _found("functions", 45)
    assert len(found) == 45 * len(wrong_inputs.ROOMS) >= 400
    assert [said for said in found if said["raised"] and not _is_clear(said)] == []
    assert sum(bool(said["raised"]) for said in found) > len(found) / 2, "most of these inputs are wrong"


@pytest.mark.slow
def test_every_function_that_takes_a_key_takes_any_kind_and_names_what_is_none() -> None:
    found = _found("keys")
    assert len({said["call"] for said in found}) >= 15
    good = [said for said in found if said["value"] in wrong_inputs.GOOD_KEYS]
    assert [said for said in good if said["raised"]] == []
    bad = [said for said in found if said["value"] in wrong_inputs.BAD_KEYS]
    assert [said for said in bad if said["raised"] != "ValueError" or "`key`" not in said["message"]] == []


@pytest.mark.slow
def test_the_command_line_says_in_one_line_what_is_wrong_before_it_computes_and_leaves_nothing() -> None:
    found = _found("cli", 200)
    refused = [said for said in found if said["code"] == 2]
    assert len(refused) > 100
    assert [said for said in found if said["raised"] or said["code"] not in (0, 1, 2)] == []
    for said in refused:
        assert said["err"].startswith("nvcim "), said
        assert said["err"].count("\n") == 1, said
        assert re.search(r"`|--|argument", said["err"]), said
        assert said["out"] == "", said
        assert not said["left"], said


@pytest.mark.parametrize("room", wrong_inputs.ROOMS)
def test_what_the_table_calls_is_there(room: str) -> None:
    there = fuzzing.functions(room)
    assert [name for name in wrong_inputs.CALLS if name.startswith(f"{room}.") and name not in there] == []
