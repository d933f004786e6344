"""What the site has besides the pages of this folder: the README as its front page, a page a room, and linked files.

Pages link to files of the repository as they lie there, so that they can be read on GitHub too. Of these, other pages
become links within the site, figures and records are copied into it, and of the rest the words stay without a link.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(path.parent.name for path in (ROOT / "nvcim_jax").glob("*/__init__.py") if path.parent.name != "cli")
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md"}
COPIED = {".png", ".svg", ".md", ".json", ".csv", ".ipynb", ".py", ".toml"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Add the pages of the rooms to the navigation."""
    rooms = [{f"nv.{room}": f"reference/{room}.md"} for room in ROOMS]
    config.nav.append({"Reference": ["reference/index.md", *rooms]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the files that pages link to."""
    pages = {name: (ROOT / source).read_text(encoding="utf-8") for source, name in PAGES.items()}
    pages |= {f"reference/{room}.md": f"# nv.{room}\n\n::: nvcim_jax.{room}\n" for room in ROOMS}
    rooms = "\n".join(f"- [nv.{room}]({room}.md)" for room in ROOMS)
    pages["reference/index.md"] = f"# Reference\n\nEvery public name of every room.\n\n{rooms}\n"
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    sources = [ROOT / source for source in PAGES] + sorted((ROOT / "docs").glob("*.md"))
    linked = {target for source in sources for target in _linked(source)}
    for target in sorted(linked):
        if target.suffix in COPIED and not target.is_relative_to(ROOT / "docs") and not _page(target):
            files.append(File.generated(config, f"files/{_name(target)}", abs_src_path=str(target)))
    return files


def _linked(source: Path) -> list[Path]:
    """Return the files of the repository that a page links to."""
    words = source.read_text(encoding="utf-8")
    paths = [(source.parent / target.partition("#")[0]).resolve() for _, _, target in LINK.findall(words)]
    return [path for path in paths if path.is_file() and path.is_relative_to(ROOT)]


def _page(target: Path) -> str | None:
    """Return the page of the site that a file became."""
    if target.parent == ROOT:
        return PAGES.get(target.name)
    return target.name if target.parent == ROOT / "docs" and target.suffix == ".md" else None


def _name(target: Path) -> str:
    """Return where a copied file lies; a page of Markdown would be rendered, so that its name says text."""
    name = target.relative_to(ROOT).as_posix()
    return f"{name}.txt" if target.suffix in (".md", ".py") else name


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links within the site."""
    del config, files
    own = {name: ROOT / source for source, name in PAGES.items()}
    source = own.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def changed(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group(0)
        path, _, anchor = target.partition("#")
        found = (source.parent / path).resolve()
        if not found.is_relative_to(ROOT) or page.file.src_uri.startswith("reference/"):
            return match.group(0)
        place = _page(found)
        if place is None and found.is_relative_to(ROOT / "docs") and found.is_file():
            place = found.relative_to(ROOT / "docs").as_posix()
        if place is None and found.is_file() and found.suffix in COPIED:
            place = f"files/{_name(found)}"
        if place is None:
            return words
        return f"{image}[{words}]({posixpath.relpath(place, here or '.')}{'#' + anchor if anchor else ''})"

    return LINK.sub(changed, markdown)
