"""Turn the public releases into what the experiments read, or say where to get them.

Command:  python -m experiments.data                          # each release: where it is, its licence, what it makes
          python -m experiments.data clinc150 data_full.json  # makes clinc150/clinc150.jsonl.gz
Duration: Seconds each.
Result:   A folder below the one that NVCIM_DATA names, below runs/data without it, below --out where that is given; and
          the number of rows beside the number that the recorded results were made from.

Give a release as it was downloaded: the file, the folder, or the archive (zip, tar) that holds it. Nothing is fetched.
"""

import argparse
import fnmatch
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.releases import RELEASES
from nvcim_jax import checks, data

__all__ = ["folder", "main", "make"]

Members = dict[str, Callable[[], bytes]]
_GET = "`python -m experiments.data` says where to get it."


def folder(name: str, fix: str = "") -> Path:
    """Return the folder of data that an experiment needs.

    Args:
        name: Its name, such as `clinc150`.
        fix: What else to do without it.

    Raises:
        ValueError: If it is not there.
    """
    found = data.data_folder(name)
    if found is None:
        checks.fail("NVCIM_DATA", f"name a folder that holds {name}", "none is there", f"{_GET} {fix}".rstrip())
    return found


def _members(path: Path) -> Members:
    """Return the files of a folder or an archive by name; a plain file is the only one of its own."""
    if path.is_dir():
        return {
            part.relative_to(path).as_posix(): part.read_bytes for part in sorted(path.rglob("*")) if part.is_file()
        }
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        return {name: partial(archive.read, name) for name in archive.namelist()}
    if tarfile.is_tarfile(path):
        tar = tarfile.open(path)  # noqa: SIM115 (the functions that are returned read from it)
        return {part.name: partial(_untar, tar, part) for part in tar.getmembers() if part.isfile()}
    return {path.name: path.read_bytes}


def _untar(tar: tarfile.TarFile, part: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(part)
    return b"" if file is None else file.read()


def _found(members: Members, patterns: tuple[str, ...], path: Path) -> bytes:
    """Return the file of the first pattern that one has."""
    for pattern in patterns:
        names = [name for name in members if fnmatch.fnmatch(f"/{name}", f"*/{pattern}")]
        if len(names) > 1:
            checks.fail("PATH", f"hold one {pattern}", f"{path} holds {len(names)}", f"Give the folder of {names[0]}.")
        if names:
            return members[names[0]]()
    return checks.fail("PATH", f"hold {' or '.join(patterns)}", f"{path} holds none", _GET)


def make(name: str, path: str | Path, out: str | Path) -> tuple[Path, int]:
    """Turn a release into what the experiments read.

    Args:
        name: One of `RELEASES`.
        path: The release as it was downloaded: file, folder or archive.
        out: The folder that NVCIM_DATA is to name; a folder of the release is made in it.

    Returns:
        That folder, and the number of rows.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If the name is unknown, a file is missing, or holds something else.
    """
    checks.choice("NAME", name, RELEASES)
    release, path = RELEASES[name], Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}; get it from {release.source}")
    members = _members(path)
    if path.is_file() and len(members) == len(release.needs) == 1:  # whatever it was saved as
        parts = {part: next(iter(members.values()))() for part in release.needs}
    else:
        parts = {part: _found(members, patterns, path) for part, patterns in release.needs.items()}
    made = Path(out) / release.folder
    made.mkdir(parents=True, exist_ok=True)
    return made, release.write(parts, made)


def _list() -> str:
    lines = ["python -m experiments.data NAME PATH: PATH is a release as it was downloaded.", ""]
    for name, release in RELEASES.items():
        wanted = ", ".join(patterns[0] for patterns in release.needs.values())
        rows = "" if release.rows is None else f", {release.rows:,} rows"
        lines += [name, f"    from {release.source}", f"    licence: {release.licence}; {release.note}"]
        lines += [f"    reads {wanted}", f"    makes {release.folder}{rows}", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make one release, or list all."""
    parser = argparse.ArgumentParser(prog="python -m experiments.data", description=_list(), formatter_class=_Plain)
    parser.add_argument("name", nargs="?", choices=RELEASES, metavar="NAME")
    parser.add_argument("path", nargs="?", metavar="PATH", help="file, folder or archive")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("NVCIM_DATA") or "runs/data"))
    args = parser.parse_args(argv)
    if args.name is None:
        print(_list())
        return
    if args.path is None:
        parser.error(f"name the file, folder or archive of {args.name}: {RELEASES[args.name].source}")
    try:
        made, rows = make(args.name, args.path, args.out)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    wanted = RELEASES[args.name].rows
    same = (
        "" if wanted is None else ", as the recorded results" if rows == wanted else f"; recorded results: {wanted:,}"
    )
    print(f"{args.name}: {rows:,} rows in {made}{same}")
    if Path(os.environ.get("NVCIM_DATA") or "").resolve() != args.out.resolve():
        print(f"export NVCIM_DATA={args.out.resolve()}")


_Plain = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main(sys.argv[1:])
