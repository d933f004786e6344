"""What was trained for a study, kept in files: trained once, whichever experiment, process or restart asks for it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nvcim_jax import checks, files, io
from nvcim_jax.study.plan import Unit
from nvcim_jax.types import PyTree, Work

__all__ = ["Session", "kept", "plain", "records_digest", "stream_digest"]


class Session(NamedTuple):
    """Say how a study is worked through; no record depends on it.

    Attributes:
        advance: Called as `advance(1, note)` for each unit finished, and `advance(0, note)` before a training.
        trained: Folder of trained stores and prompts, which studies, processes and restarts share: what is there is not
            trained again. None keeps none. Files are named by everything that a training depends on.
        skip: Units that are not measured.
        dry_run: Whether `run` only checks that it would go on in the folder, and writes nothing.
    """

    advance: Callable[[int, str], None] = lambda count, note: None
    trained: Path | None = None
    skip: frozenset[Unit] = frozenset()
    dry_run: bool = False


def records_digest(records: Sequence[Any]) -> str:
    """Return a hash of the texts and answers of some records, in order."""
    text = json.dumps([[record.input, record.output] for record in records])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stream_digest(stream: Any) -> str:
    """Return a hash of all texts and answers of a stream, in order."""
    blocks = [[[record.input, record.output] for record in block.records] for block in stream.blocks]
    test = {name: [[record.input, record.output] for record in rows] for name, rows in stream.test.items()}
    text = json.dumps([blocks, test, list(stream.labels)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Return options as plain values; JSON has no infinite number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return "infinite" if isinstance(value, float) and abs(value) == float("inf") else value


def kept(session: Session, work: Work, settings: dict[str, Any], make: Callable[[], PyTree], like: PyTree) -> PyTree:
    """Return what `make` returns, from a file where one is kept of it.

    Args:
        session: Names the folder.
        work: Key and arrays that it depends on, the language model by a digest.
        settings: All else that it depends on, as plain values.
        make: Makes it.
        like: A tree of the same structure.

    Raises:
        ValueError: If the file is damaged.
    """
    if session.trained is None:
        return make()
    about = json.dumps(io.fingerprint(settings, work), sort_keys=True)
    path = session.trained / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        return _read(path, like)
    made = make()
    files.folder("trained", session.trained)
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(made))}
    with files.replacing(path) as part:
        save_file(leaves, part, metadata={"about": about})
    return made


def _read(path: Path, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    try:
        with safe_open(path, framework="numpy") as file:
            found = [file.get_tensor(str(i)) for i in range(len(leaves))]
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        checks.fail("trained", "hold whole files", f"{path} is damaged ({reason})", "Delete it to train it again.")
    return structure.unflatten([jnp.asarray(leaf) for leaf in found])
