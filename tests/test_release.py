"""What a release says of itself agrees: the tag, the package, the citation, the changelog."""

import re
import subprocess
import tomllib
from pathlib import Path

import nvcim_jax

ROOT = Path(__file__).parents[1]
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]  # that of the tag
    fallback = project["tool"]["hatch"]["version"]["fallback-version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == fallback == nvcim_jax.__version__


def test_a_tag_is_the_version_and_has_its_changes() -> None:
    words = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD", "v*"]
    tags = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    assert tags in ([], [f"v{nvcim_jax.__version__}"])
    if tags:
        assert f"## [{nvcim_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_changelog_is_in_order() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *others = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert first == "Unreleased"
    numbers = [tuple(map(int, name.split("."))) for name in others]
    assert numbers == sorted(numbers, reverse=True)
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]
