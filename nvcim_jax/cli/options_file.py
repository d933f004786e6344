"""A file of options as the words that say the same on the command line."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nvcim_jax import checks

__all__ = ["words_of"]


def words_of(path: str | Path) -> list[str]:
    """Return the options of a TOML file as words; a table holds those that begin with its name.

        sigma = 0.2
        [config.tuning]
        num_steps = 20

    says `--sigma 0.2 --config.tuning.num-steps 20`.

    Args:
        path: The file, in UTF-8.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no TOML file, or holds a table in a list.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.toml"
        >>> _ = path.write_text("sigma = 0.2\\nplots = false\\n[config]\\nkeys = 'centroid'\\n")
        >>> words_of(path)
        ['--sigma', '0.2', '--no-plots', '--config.keys', 'centroid']
    """
    path = checks.file("file", path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        checks.fail("file", "be a TOML file", f"{path} is not: {error}")
    return list(_words(found, "", path))


def _words(table: Mapping[str, Any], prefix: str, path: Path) -> Iterator[str]:
    for name, value in table.items():
        plain = name.replace("_", "-")
        if isinstance(value, dict):
            yield from _words(value, f"{prefix}{plain}.", path)
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict | list):
                checks.fail("file", "hold plain values", f"{path} has a table or a list in the list {name!r}")
            if isinstance(part, bool):
                yield f"--{prefix}{'' if part else 'no-'}{plain}"
            else:
                yield from (f"--{prefix}{plain}", str(part))
