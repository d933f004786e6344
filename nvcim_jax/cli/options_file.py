"""A file of options as the words that say the same on the command line."""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from nvcim_jax import checks

__all__ = ["words_of"]


def words_of(path: str | Path, known: Collection[str]) -> list[str]:
    """Return the options of a TOML file as words; a table holds those that begin with its name.

        sigma = 0.2
        [config.tuning]
        num_steps = 20

    says `--sigma 0.2 --config.tuning.num-steps 20`.

    Args:
        path: The file, in UTF-8.
        known: The options that there are, such as `--sigma`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no TOML file, or holds a table in a list or what is no option.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.toml"
        >>> _ = path.write_text("sigma = 0.2\\nplots = false\\n[config]\\nkeys = 'centroid'\\n")
        >>> words_of(path, ["--sigma", "--plots", "--config.keys"])
        ['--sigma', '0.2', '--no-plots', '--config.keys', 'centroid']
    """
    path = checks.file("file", path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        checks.fail("file", "be a TOML file", f"{path} is not: {error}")
    return list(_words(found, "", path, {option.removeprefix("--") for option in known}))


def _words(table: Mapping[str, Any], prefix: str, path: Path, known: Collection[str]) -> Iterator[str]:
    for name, value in table.items():
        plain = name.replace("_", "-")
        if isinstance(value, dict):
            yield from _words(value, f"{prefix}{plain}.", path, known)
            continue
        if not {f"{prefix}{plain}", f"{prefix}{plain.removeprefix('no-')}"} & {*known}:
            near = checks.suggestion(f"{prefix}{plain}", known)
            fix = near if near.startswith("Did") else "The command's --help lists them all."
            checks.fail(f"{prefix}{name}", "be an option of the command", f"stands in {path}", fix)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict | list):
                checks.fail("file", "hold plain values", f"{path} has a table or a list in the list {name!r}")
            if isinstance(part, bool):
                yield f"--{prefix}{'' if part else 'no-'}{plain}"
            else:
                yield from (f"--{prefix}{plain}", str(part))
