"""An index shows the README away from its repository: there each link and picture has its full address."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = "neurotrails/neurotrails"
PAGE = f"https://github.com/{REPOSITORY}/blob/main/"
PICTURE = f"https://raw.githubusercontent.com/{REPOSITORY}/main/"
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(root: Path, readme: str) -> str:
    """Return the README as the wheel's metadata hold it, by the substitutions of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert hook["fragments"] == [{"path": "README.md"}]
    assert "readme" in project["project"]["dynamic"]
    for each in hook["substitutions"]:
        readme = re.sub(each["pattern"], each["replacement"], readme)
    return readme


def links(text: str) -> Iterator[tuple[bool, str]]:
    """Yield for each link outside code whether it is a picture, and its target."""
    yield from ((bool(picture), target) for picture, target in LINK.findall(CODE.sub("", text)))


def absolute(picture: bool, target: str) -> str:
    if target.startswith(("https://", "mailto:", "#")):
        return target
    return (PICTURE if picture else PAGE) + target


def test_every_link_and_picture_has_its_full_address(readme: str, shown: str) -> None:
    assert list(links(shown)) == [(picture, absolute(picture, target)) for picture, target in links(readme)]
    assert any(picture for picture, _ in links(readme))
    assert any(not target.startswith("https://") for _, target in links(readme))


def test_nothing_else_changes(readme: str, shown: str) -> None:
    assert shown.replace(PICTURE, "").replace(PAGE, "") == readme
    assert CODE.findall(shown) == CODE.findall(readme)
